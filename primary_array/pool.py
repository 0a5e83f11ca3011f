"""The pool: volumes, snapshots and drafts of one directory. The storage layer's front door.

Owns: nothing of its own; it checks requests, takes locks in their order and calls
the modules that own the state.
Invariants:
  A1 a snapshot contains every write that was acknowledged before it, of all its
     volumes at one instant, and birth + 1 is durable before any later write is admitted.
  A2 a pinned snapshot is neither deleted nor are its slots reused.
  A3 ``flush`` answered = every write and trim answered before it survives.
  A4 changes are told only against an ancestor of the snapshot; anything else is None.
Callers: any thread, every method. What makes each pair of operations safe is in
primary_array/__init__.py. Format: docs/formats/pool-v2.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack

import numpy as np
import numpy.typing as npt

from arraylift.clock import SYSTEM_CLOCK, Clock
from arraylift.durable import Buffer, Files
from arraylift.errors import InvalidRequest, NotFound, WrongState
from arraylift.ids import (
    LineageId,
    PoolId,
    SnapshotId,
    SourceState,
    VolumeId,
    check_name,
    random_id,
)
from arraylift.sizes import GRANULE_BYTES
from primary_array import changes, map_state
from primary_array.block_map import U64
from primary_array.draft import Draft
from primary_array.granule_io import GranuleIo
from primary_array.map_commit import JOURNAL_BYTES_MAX
from primary_array.map_events import (
    SnapshotDeleted,
    TrackerDistrusted,
    VolumeCreated,
    VolumeDeleted,
)
from primary_array.map_state import Snapshot
from primary_array.pin import Pin
from primary_array.pool_check import CheckNews, PoolCheck
from primary_array.pool_open import OpenedPool, open_pool
from primary_array.pool_types import (
    VOLUMES_PER_GROUP_MAX,
    DraftInfo,
    PoolStats,
    SnapshotInfo,
    Source,
    VolumeInfo,
)
from primary_array.pool_view import PoolView
from primary_array.superblock import Layout
from primary_array.volume_ops import Swap, VolumeOps, check_size


class Pool:
    """One open pool; ``close`` it, or it recovers at its next start."""

    def __init__(self, parts: OpenedPool, files: Files, directory: str, clock: Clock) -> None:
        self._lock_file = parts.lock
        self._state = parts.state
        self._slots = parts.slots
        self._commit = parts.commit
        self._checkpointer = parts.checkpointer
        self._io = GranuleIo(parts.state, parts.slots, parts.commit)
        self._view = PoolView(parts.state)
        self._ops = VolumeOps(parts.state, parts.commit, self._io, clock)
        self._check = PoolCheck(
            files,
            Layout(directory),
            state=parts.state,
            slots=parts.slots,
            commit=parts.commit,
            checkpointer=parts.checkpointer,
        )
        self._files = files
        self._directory = directory

    @classmethod
    def open(
        cls,
        files: Files,
        directory: str,
        *,
        clock: Clock = SYSTEM_CLOCK,
        journal_bytes_max: int = JOURNAL_BYTES_MAX,
        background: bool = False,
    ) -> Pool:
        """Open the pool in ``directory`` (absolute), made if the directory is empty or missing.

        ``background``: checkpoints are written by a thread, and hold no flush up.

        Raises WrongState (in use, or another version's), Corruption (nothing was changed).
        """
        parts = open_pool(files, directory, journal_bytes_max=journal_bytes_max, background=background)
        return cls(parts, files, directory, clock)

    def close(self) -> None:
        """Make everything durable and give the directory back. No other call may be running.
        Raises OutOfSpace, StoreFailed: what was not flushed may be lost; the pool is closed anyway."""
        try:
            self._checkpointer.close()
        finally:
            self._lock_file.close()

    @property
    def pool_id(self) -> PoolId:
        return self._state.pool_id

    @property
    def data_path(self) -> str:
        """The file of slots, for workers that open it read-only."""
        return self._slots.path

    # -- volumes ----------------------------------------------------------------------------

    def create_volume(self, name: str, size_bytes: int) -> VolumeInfo:
        """Make an empty volume, durably. Raises AlreadyExists, InvalidRequest, OutOfSpace, Overloaded."""
        check_name(name, "a volume name")
        check_size(size_bytes)
        with self._commit.transaction():
            self._ops.check_room_for(name)
            event = VolumeCreated(VolumeId(random_id()), name, size_bytes, LineageId(random_id()))
            self._commit.commit(event)
            return self.volume(name)

    def delete_volume(self, name: str, *, cascade: bool = False) -> None:
        """Remove a volume; with ``cascade`` its snapshots too. Raises NotFound, WrongState (has
        snapshots; one is pinned). Waits for writes that are on their way."""
        volume = self._view.volume(name)
        self._ops.refuse_if_used(name)
        with volume.gate.hold(), self._commit.transaction(), self._ops.kept_unused(name):
            with self._state.lock:
                if volume.gone:
                    raise NotFound(f"volume {name} is gone", subject=name)
                if volume.snapshots and not cascade:
                    raise WrongState(
                        f"volume {name} has {len(volume.snapshots)} snapshots",
                        subject=name,
                        next_step="delete them first, or delete with cascade",
                    )
                ending = list(volume.snapshots)
                _begin_ending(ending)
            try:
                self._commit.commit(VolumeDeleted(volume.volume_id))
            finally:
                _stop_ending(ending)

    def resize_volume(self, name: str, size_bytes: int) -> VolumeInfo:
        """Make a volume larger (zeros are added) or smaller (what is cut off is gone, but from its
        snapshots), durably. Raises NotFound, InvalidRequest, WrongState (smaller, while it is used),
        OutOfSpace (nothing happened)."""
        self._ops.resize(self._view.volume(name), size_bytes)
        return self.volume(name)

    def clone_volume(self, snapshot_id: SnapshotId, name: str) -> VolumeInfo:
        """Make a volume with a snapshot's content, which shares its slots, durably. Raises NotFound,
        AlreadyExists, InvalidRequest, OutOfSpace, Overloaded."""
        self._ops.clone(snapshot_id, name)
        return self.volume(name)

    def rollback_volume(
        self, name: str, snapshot_id: SnapshotId, *, safety_name: str = ""
    ) -> tuple[VolumeInfo, SnapshotInfo | None]:
        """Set a volume back to one of its snapshots, durably; younger snapshots stay. With
        ``safety_name`` what it held becomes a snapshot, in the same instant. Raises NotFound,
        InvalidRequest, WrongState (it is used), OutOfSpace, Overloaded (nothing happened)."""
        safety = self._ops.rollback(self._view.volume(name), snapshot_id, safety_name)
        return self.volume(name), None if safety is None else self.get_snapshot(safety)

    def refuse_changes_under(
        self,
        refuse_if_used: Callable[[str], None],
        kept_unused: Callable[[str], AbstractContextManager[None]] | None = None,
        kept_unexported: Callable[[str], AbstractContextManager[None]] | None = None,
    ) -> None:
        """Ask ``refuse_if_used`` (volume name; raises WrongState) before a volume is made smaller,
        replaced or deleted, and do that inside ``kept_unused``, or make it smaller inside
        ``kept_unexported``. Called once, before requests come."""
        self._ops.refuse_if_used = refuse_if_used
        if kept_unused is not None:
            self._ops.kept_unused = kept_unused
        if kept_unexported is not None:
            self._ops.kept_unexported = kept_unexported

    def volumes(self, *, with_space: bool = False) -> list[VolumeInfo]:
        """All volumes, by name; ``with_space`` counts what only each one names (milliseconds for
        each 8 GiB)."""
        return self._view.volume_infos(with_space=with_space)

    def volume(self, name: str, *, with_space: bool = False) -> VolumeInfo:
        """Raises NotFound."""
        return self._view.volume_info(name, with_space=with_space)

    def distrust(self, name: str) -> None:
        """Stop believing the births of a volume, durably: from now on no earlier state of it or of
        its snapshots is an ancestor of anything. Raises NotFound, OutOfSpace."""
        with self._commit.transaction():
            volume = self._view.volume(name)
            renewed = tuple((s.snapshot_id, LineageId(random_id())) for s in volume.snapshots)
            self._commit.commit(TrackerDistrusted(volume.volume_id, LineageId(random_id()), renewed))

    # -- data -------------------------------------------------------------------------------

    def write(self, name: str, offset: int, data: Buffer) -> None:
        """Write to a volume; kept once ``flush`` answered. Raises NotFound, InvalidRequest, OutOfSpace
        (the range may hold old or new bytes, nothing else is touched), StoreFailed."""
        self._io.write(self._view.volume(name), offset, data)

    def trim(self, name: str, offset: int, length: int) -> None:
        """Make a range of a volume zero and free its space. Errors as ``write``."""
        self._io.trim(self._view.volume(name), offset, length)

    def flush(self, name: str) -> None:
        """Make everything acknowledged durable (A3), of this volume and, as it happens, of all.
        Raises NotFound, OutOfSpace (nothing lost; repeat), StoreFailed."""
        self._view.volume(name)
        self._commit.flush()

    def read_into(self, source: Source, offset: int, into: memoryview) -> None:
        """Fill ``into`` from a volume or snapshot. Raises NotFound, InvalidRequest, Corruption."""
        with self._slots.reading():
            view = self._view.mapped(source, offset, into.nbytes)
            self._io.read_into(view, offset, into)

    def extents(self, source: Source, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """Iterate over (offset, length, is_hole) of a range, ascending, neighbours of one kind joined.

        Of a volume that is being written, each stretch of 4 GiB is as of one instant.
        Raises NotFound, InvalidRequest.
        """
        view = self._view.mapped(source, offset, length)
        return self._view.extents(view, offset, length)

    # -- snapshots --------------------------------------------------------------------------

    def snapshot(self, names: Sequence[str], label: str = "") -> list[SnapshotInfo]:
        """Take one snapshot of each volume, all at one instant, durable on return (A1).

        Holds back writes to these volumes while it commits: two syncs of what was written since
        the flush with which it begins. Raises NotFound, InvalidRequest, Overloaded (too many
        snapshots), OutOfSpace (none was taken).
        """
        if not 1 <= len(names) <= VOLUMES_PER_GROUP_MAX or len(set(names)) != len(names):
            raise InvalidRequest(f"name 1 to {VOLUMES_PER_GROUP_MAX} different volumes, got {len(names)}")
        if label:
            check_name(label, "a snapshot name")
        volumes = [self._view.volume(name) for name in names]
        self._commit.flush()  # so that little is left to sync while writers wait
        with ExitStack() as stack:
            for volume in sorted(volumes, key=lambda volume: volume.volume_id):
                stack.enter_context(volume.gate.hold())
            stack.enter_context(self._commit.transaction())
            taken = self._ops.snapshot_event(volumes, label)
            self._commit.commit(taken)
            return [self._view.snapshot_info(snapshot_id) for _, snapshot_id, _ in taken.members]

    def snapshots(self, name: str | None = None, *, with_space: bool = False) -> list[SnapshotInfo]:
        """Snapshots of one volume, oldest first, or of all by volume name. Raises NotFound."""
        return self._view.snapshot_infos(name, with_space=with_space)

    def get_snapshot(self, snapshot_id: SnapshotId) -> SnapshotInfo:
        """Raises NotFound."""
        return self._view.snapshot_info(snapshot_id)

    def delete_snapshot(self, snapshot_id: SnapshotId) -> None:
        """Remove a snapshot and free what only it named. Raises NotFound, WrongState (pinned)."""
        with self._commit.transaction():
            with self._state.lock:
                snapshot = self._view.snapshot(snapshot_id)
                _begin_ending([snapshot])
            try:
                self._commit.commit(SnapshotDeleted(snapshot_id))
            finally:
                _stop_ending([snapshot])

    def pin(self, snapshot_id: SnapshotId) -> Pin:
        """Hold a snapshot still (A2). Raises NotFound, WrongState (is being deleted)."""
        with self._state.lock:
            snapshot = self._view.snapshot(snapshot_id)
            if snapshot.ending:
                raise WrongState(f"snapshot {snapshot_id} is being deleted", subject=snapshot_id)
            snapshot.pins += 1

        def release() -> None:
            with self._state.lock:
                snapshot.pins -= 1

        info = self._view.snapshot_info(snapshot_id)
        return Pin(info, snapshot.map, data_path=self.data_path, release=release)

    # -- changes ----------------------------------------------------------------------------

    def changed_spans(
        self, snapshot_id: SnapshotId, since: SourceState | bytes, *, base_bytes: int | None = None
    ) -> U64 | None:
        """Return the indexes of the spans that may differ from ``since``, or None if nobody can tell.

        ``since`` is a state (A4) or the root of the image that the volume was restored from;
        ``base_bytes`` is the size of that base, if it may differ. Raises NotFound.
        """
        return self._view.changed_spans(snapshot_id, since, base_bytes)

    def changed_ranges(
        self, snapshot_id: SnapshotId, since: SourceState | bytes, *, base_bytes: int | None = None
    ) -> tuple[U64, U64] | None:
        """Like ``changed_spans``, in (offsets, lengths) of bytes, cut at granules."""
        return self._view.changed_ranges(snapshot_id, since, base_bytes)

    def changed_flags(
        self, snapshot_id: SnapshotId, since: SourceState, first: int, count: int, *, base_bytes: int
    ) -> npt.NDArray[np.bool_] | None:
        """Say of each of ``count`` granules from ``first`` whether it may differ from ``since``, or None
        (A4). As much work and memory as granules. Raises NotFound."""
        return self._view.changed_flags(snapshot_id, since, first, count, base_bytes)

    def diff(self, snapshot_id: SnapshotId, base_id: SnapshotId) -> tuple[U64, U64] | None:
        """Return (offsets, lengths) of what two snapshots have in different slots: a superset of what
        differs, cut at granules; None if their volumes share no history. Raises NotFound."""
        granules = self._view.differing_granules(snapshot_id, base_id)
        if granules is None:
            return None
        sizes = self.get_snapshot(snapshot_id).size_bytes, self.get_snapshot(base_id).size_bytes
        return changes.ranges_of_granules(granules, size_bytes=sizes[0], base_bytes=sizes[1])

    def diff_spans(
        self, snapshot_id: SnapshotId, base_id: SnapshotId, since: SourceState, *, base_bytes: int
    ) -> U64 | None:
        """Return the indexes of the spans in which two snapshots may differ, or None unless
        ``base_id`` is exactly the state ``since``. Raises NotFound (``snapshot_id`` alone)."""
        info = self.get_snapshot(snapshot_id)
        try:
            if self.get_snapshot(base_id).state != since:
                return None
            granules = self._view.differing_granules(snapshot_id, base_id)
        except NotFound:
            return None
        if granules is None:
            return None
        return changes.spans_of_granules(granules, size_bytes=info.size_bytes, base_bytes=base_bytes)

    # -- drafts -----------------------------------------------------------------------------

    def begin_volume(self, name: str, size_bytes: int, *, volume_id: VolumeId | None = None) -> Draft:
        """Begin a volume that appears at its commit; the name is taken from now on.

        ``volume_id``: an id of the caller's making, by which it finds the volume again. Raises
        AlreadyExists, InvalidRequest, Overloaded.
        """
        check_name(name, "a volume name")
        check_size(size_bytes)
        with self._commit.transaction():
            self._ops.check_room_for(name)
            record = self._state.new_draft(volume_id or VolumeId(random_id()), name, size_bytes)
            self._ops.check_id_free(record.volume_id, name)
            with self._state.lock:
                self._state.add(record)
        return self._draft(record)

    def begin_clone(
        self, name: str, reference: SnapshotId, size_bytes: int, *, volume_id: VolumeId | None = None
    ) -> Draft:
        """Begin a draft with a snapshot's content, cut or filled to ``size_bytes``: what a growing
        snapshot's last granule holds past its end is undefined. Errors as ``begin_volume``; NotFound."""
        draft_id = volume_id or VolumeId(random_id())
        return self._draft(self._ops.begin_clone(name, reference, size_bytes, draft_id))

    def begin_clone_of(
        self, volume_name: str, name: str, size_bytes: int, *, volume_id: VolumeId | None = None
    ) -> Draft:
        """As ``begin_clone``, with what a volume holds now."""
        volume, draft_id = self._view.volume(volume_name), volume_id or VolumeId(random_id())
        return self._draft(self._ops.begin_clone_of(volume, name, size_bytes, draft_id))

    def swap_drafts(self, members: Sequence[Swap], *, safety_name: str) -> list[SnapshotInfo]:
        """Make drafts the content of volumes that they are clones of, all in one commit; what the
        volumes held becomes snapshots, which are returned. Raises NotFound, InvalidRequest,
        WrongState (used; no clone), OutOfSpace, Overloaded: then nothing happened."""
        return [self.get_snapshot(taken) for taken in self._ops.swap(members, safety_name)]

    def drafts(self) -> list[DraftInfo]:
        """Drafts that are being written, and those that a stop of the array left with saved progress."""
        return self._view.draft_infos()

    def resume_draft(self, draft_id: VolumeId) -> Draft:
        """Go on with a draft. The caller sees to it that only one does. Raises NotFound."""
        with self._state.lock:
            record = self._state.drafts.get(draft_id)
        if record is None:
            raise NotFound(f"there is no draft {draft_id}", subject=draft_id)
        return self._draft(record)

    def _draft(self, record: map_state.Draft) -> Draft:
        return Draft(record, state=self._state, slots=self._slots, commit=self._commit, io=self._io)

    # -- the whole --------------------------------------------------------------------------

    def check(self, *, repair: bool, report: Callable[[CheckNews], None] = lambda _: None) -> CheckNews:
        """Look for contradictions in everything that the pool keeps; with ``repair`` mend what can be.

        A check holds nothing up for long; a repair holds writes back while it runs. Raises Conflict (one
        runs); a repair: OutOfSpace, StoreFailed.
        """
        return self._check.run(repair=repair, report=report)

    def stats(self) -> PoolStats:
        """Figures of this moment."""
        used, waiting = self._slots.counts()
        counts = self._view.counts()
        return PoolStats(
            pool_id=self.pool_id,
            granule_bytes=GRANULE_BYTES,
            slots_used=used,
            slots_waiting=waiting,
            data_file_bytes=self._slots.allocated_bytes(),
            free_bytes=self._files.free_bytes(self._directory),
            volume_count=counts.volumes,
            snapshot_count=counts.snapshots,
            draft_count=counts.drafts,
            map_bytes=counts.map_bytes,
            journal_bytes=self._commit.journal_bytes,
        )


def _begin_ending(snapshots: Sequence[Snapshot]) -> None:
    """Admit no more pins; raises WrongState if there is one (A2). Map lock held."""
    for snapshot in snapshots:
        if snapshot.pins:
            raise WrongState(
                f"snapshot {snapshot.snapshot_id} is being read by {snapshot.pins} transfers",
                subject=snapshot.snapshot_id,
                next_step="wait for them or cancel them",
            )
    for snapshot in snapshots:
        snapshot.ending = True


def _stop_ending(snapshots: Sequence[Snapshot]) -> None:
    """Admit pins again, where the deletion failed; the deleted ones nobody finds any more."""
    for snapshot in snapshots:
        snapshot.ending = False
