"""Marks of all VMs: begun, settled, dropped, and read as what changed: a ChangeTracker over a VMM's bitmaps.

The table says which marks vouch for which states; the VMM has the bitmaps, and loses them when it ends.
Invariants: K1-K3 of change_tracking.py, and
  R1 a bitmap stops only when a later mark is in the table, durably, and that began while it recorded: on
     each disk the marks that are there follow one another without a gap.
  R2 where that cannot be seen to hold (the newest mark is gone or does not record: a table or a VMM of
     another time; or the VM was changed: a disk may have been away, and written by others), all marks are
     void, in the table first.
  R3 between two states of one lineage is read every mark from the one of the older state to the one before
     the newer state's; one that the disk has not got makes the answer None. What an array does to a volume
     itself (sets it back, cuts it), which no VMM sees, begins another lineage.
Callers: vm_snapshots, under the VM's lock. Format: docs/formats/marks-v1.md
Why: docs/decisions/0092-marks-of-a-vmm.md
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from arraylift.ids import SourceState, VmId, random_id
from arraylift.logs import get_logger
from arraylift.outcome import attempt
from arraylift.sizes import SPAN_BYTES
from arraylift.vm.types import DiskSnapshot
from hostagent.change_tracking import MARKS_MAX, MarkId, Ranges
from hostagent.mark_record import Mark, MarkedState, Place, VmMarks
from hostagent.vm_types import VmRecord

_log = get_logger("marks")

Spans = npt.NDArray[np.bool_]
"""One of each span of a disk."""


class Bitmaps(Protocol):
    """The bitmaps of a VMM's running guests, by mark. Every method may raise ArrayliftError, having had its
    effect or not."""

    def look(self, vm: VmRecord) -> Mapping[Place, Mapping[MarkId, bool]]:
        """Of each disk of the guest, its sound bitmaps, and whether they record."""
        ...

    def add(self, vm: VmRecord, mark: MarkId) -> None:
        """One that records, on every disk at one instant."""
        ...

    def stop(self, vm: VmRecord, marks: Collection[MarkId]) -> None:
        """Let them record no more, after every write on its way has been answered and recorded."""
        ...

    def drop(self, vm: VmRecord, marks: Collection[MarkId]) -> None:
        """Those that are there."""
        ...

    def read(self, vm: VmRecord, place: Place, marks: Sequence[MarkId]) -> tuple[Spans, int]:
        """Spans that any of these stopped bitmaps calls dirty, and the disk's size in bytes."""
        ...


class MarkTable(Protocol):
    """Records by VM; ``put`` and ``remove`` are durable on return."""

    def find(self, record_id: VmId) -> VmMarks | None: ...
    def put(self, record: VmMarks) -> None: ...
    def remove(self, record_id: VmId) -> None: ...


class MarkKeeper:
    """A ChangeTracker."""

    def __init__(self, bitmaps: Bitmaps, table: MarkTable) -> None:
        self._bitmaps, self._table = bitmaps, table

    def begin(self, vm: VmRecord) -> MarkId | None:
        mark, error = attempt(lambda: self._begin(vm), "a new mark")
        if error is not None:
            _log.warning("guest_not_tracked", vm=vm.vm_id, error=str(error))
        return mark

    def settle(self, vm: VmRecord, mark: MarkId, disks: Sequence[DiskSnapshot]) -> None:
        self._quietly(vm, lambda: self._settle(vm, mark, disks), "a mark's settling")

    def abandon(self, vm: VmRecord, mark: MarkId) -> None:
        self._quietly(vm, lambda: self._bitmaps.drop(vm, [mark]), "a mark's end")

    def changes(
        self, vm: VmRecord, disk: DiskSnapshot, since: SourceState, *, ranges_max: int
    ) -> Ranges | None:
        ranges, error = attempt(lambda: self._changes(vm, disk, since, ranges_max), "reading of marks")
        if error is not None:
            _log.warning("changes_unread", vm=vm.vm_id, disk=disk.disk_name, error=str(error))
        return ranges

    def forget(self, vm_id: VmId) -> None:
        _, error = attempt(lambda: self._table.remove(vm_id), "forgetting marks")
        if error is not None:
            _log.warning("marks_not_forgotten", vm=vm_id, error=str(error))

    # -- inside ---------------------------------------------------------------------------------

    def _begin(self, vm: VmRecord) -> MarkId:
        seen = self._bitmaps.look(vm)
        there = {mark for bitmaps in seen.values() for mark in bitmaps}
        record = self._table.find(vm.vm_id)
        known = () if record is None else record.marks
        if record is not None and not (
            known and record.revision == vm.revision and _goes_on(known[-1].mark_id, seen)
        ):
            _log.info("marks_void", vm=vm.vm_id, count=len(known))
            self._table.remove(vm.vm_id)  # R2
            known = ()
        strays = there - {mark.mark_id for mark in known}
        if strays:
            self._bitmaps.drop(vm, strays)
        mark = MarkId(random_id())
        self._bitmaps.add(vm, mark)
        return mark

    def _settle(self, vm: VmRecord, mark: MarkId, disks: Sequence[DiskSnapshot]) -> bool:
        states = tuple(
            MarkedState(_place(disk), disk.size_bytes, disk.state)
            for disk in disks
            if disk.state is not None and disk.foreign is None
        )
        before = self._marks(vm.vm_id)
        kept = (*before, Mark(mark, states))[-MARKS_MAX:]
        self._table.put(VmMarks(vm.vm_id, vm.revision, kept))  # R1
        earlier = {one.mark_id for one in before}
        if earlier:
            self._bitmaps.stop(vm, earlier)  # all of them: a stop before may have failed
        gone = earlier - {one.mark_id for one in kept}
        if gone:
            self._bitmaps.drop(vm, gone)
        return True

    def _changes(
        self, vm: VmRecord, disk: DiskSnapshot, since: SourceState, ranges_max: int
    ) -> Ranges | None:
        if disk.state is None or (since.pool_id, since.lineage_id) != (
            disk.state.pool_id,
            disk.state.lineage_id,
        ):
            return None  # R3
        place, known = _place(disk), self._marks(vm.vm_id)
        states = [mark.of(place) for mark in known]
        old = [index for index, one in enumerate(states) if one is not None and one.state == since]
        new = [index for index, one in enumerate(states) if one is not None and one.state == disk.state]
        if not old or not new or old[0] > new[-1]:
            return None
        between = [mark.mark_id for mark in known[old[0] : new[-1]]]
        if any(one is not None and one.size_bytes != disk.size_bytes for one in states[old[0] : new[-1] + 1]):
            return None
        if not between:  # the same state
            return _no_ranges()
        bitmaps = self._bitmaps.look(vm).get(place, {})
        if any(mark not in bitmaps for mark in between):  # R3
            return None
        recording = [mark for mark in between if bitmaps[mark]]
        if recording:
            self._bitmaps.stop(vm, recording)  # R1: the newer state's mark is in the table
        spans, size_bytes = self._bitmaps.read(vm, place, between)
        if size_bytes != disk.size_bytes:
            return None
        return ranges_of(spans, size_bytes, ranges_max=ranges_max)

    def _marks(self, vm_id: VmId) -> tuple[Mark, ...]:
        found = self._table.find(vm_id)
        return () if found is None else found.marks

    @staticmethod
    def _quietly(vm: VmRecord, work: Callable[[], object], what: str) -> None:
        _, error = attempt(work, what)
        if error is not None:
            _log.warning("marks_left_behind", vm=vm.vm_id, error=str(error))


def ranges_of(spans: Spans, size_bytes: int, *, ranges_max: int) -> Ranges:
    """Whole spans as ranges; where there are too many, the smallest gaps between them count as changed."""
    steps = np.flatnonzero(np.diff(np.concatenate(([False], spans, [False])).astype(np.int8)))
    starts, ends = steps[::2], steps[1::2]
    if len(starts) > ranges_max:
        gaps = starts[1:] - ends[:-1]
        widest = np.sort(np.argsort(gaps, kind="stable")[len(gaps) - (ranges_max - 1) :])
        starts, ends = starts[np.concatenate(([0], widest + 1))], ends[np.concatenate((widest, [len(gaps)]))]
    offsets = starts.astype(np.uint64) * np.uint64(SPAN_BYTES)
    stops = np.minimum(ends.astype(np.uint64) * np.uint64(SPAN_BYTES), np.uint64(size_bytes))
    return offsets, stops - offsets


def _goes_on(newest: MarkId, seen: Mapping[Place, Mapping[MarkId, bool]]) -> bool:
    """R2."""
    recording = [bitmaps[newest] for bitmaps in seen.values() if newest in bitmaps]
    return bool(recording) and all(recording)


def _no_ranges() -> Ranges:
    return np.empty(0, np.uint64), np.empty(0, np.uint64)


def _place(disk: DiskSnapshot) -> Place:
    return Place(disk.array_address, disk.volume_name)
