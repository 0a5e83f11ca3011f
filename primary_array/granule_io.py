"""Write, trim and read ranges of bytes in granules and slots.

Owns: the rule of redirect-on-write, for volumes and drafts alike.
Invariants:
  W1 a granule born in the current epoch is overwritten in place; every other
     granule goes to a new slot, whole, with the old content around a partial write.
  W2 the map names a new slot only after its bytes were written.
  W3 a piece of a write that fails maps nothing: granules that would have moved keep
     their content, granules overwritten in place may hold some of the new bytes, as a disk's.
  W4 a trimmed granule becomes a tombstone; parts of granules are written with zeros.
  W5 a read holds its slots still (slot_store F2) from lookup to the last byte.
Callers: any thread; the range gate of the owner serialises writes that overlap,
and holds them back while a snapshot is taken, so the epoch stands still (W1).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from arraylift.durable import Buffer
from arraylift.errors import InvalidRequest, NotFound
from arraylift.sizes import GRANULE_BYTES, MIB
from primary_array.block_map import NO_SLOTS, NONE_SLOT, U64, MapView
from primary_array.map_commit import MapCommit
from primary_array.map_state import Draft, MapState, Volume
from primary_array.slot_store import SlotStore

WRITE_BYTES_MAX = 64 * MIB
"""A longer write is cut into such pieces, so that no gate is held for long."""

TRIM_GRANULES_MAX = 1 << 16
"""A longer trim is cut into such pieces, 4 GiB of a volume: each is looked up under the map lock."""

_ZEROS = bytes(GRANULE_BYTES)


class GranuleIo:
    """Data path of one pool."""

    def __init__(self, state: MapState, slots: SlotStore, commit: MapCommit) -> None:
        self._state = state
        self._slots = slots
        self._commit = commit

    # -- writing ----------------------------------------------------------------------------

    def write(self, owner: Volume | Draft, offset: int, data: Buffer) -> None:
        """Write ``data`` at byte ``offset``; kept once a flush was answered.

        Raises InvalidRequest (outside), NotFound (deleted meanwhile), OutOfSpace, StoreFailed.
        """
        view = memoryview(data).cast("B")
        check_range(owner, offset, view.nbytes)
        for start in range(0, view.nbytes, WRITE_BYTES_MAX):
            self._write_piece(owner, offset + start, view[start : start + WRITE_BYTES_MAX])

    def _write_piece(self, owner: Volume | Draft, offset: int, view: memoryview) -> None:
        self._commit.relieve(owner)
        first, skip = divmod(offset, GRANULE_BYTES)
        end = -(-(offset + view.nbytes) // GRANULE_BYTES)
        with owner.gate.hold(first, end), self._commit.guarded():
            with self._state.lock:
                check_not_gone(owner)
                check_range(owner, offset, view.nbytes)  # it may have shrunk meanwhile
                old = owner.map.lookup(first, end - first)
                epoch = owner.epoch
            self._redirect(owner, first, skip, view, old=old, epoch=epoch)

    def _redirect(
        self,
        owner: Volume | Draft,
        first: int,
        skip: int,
        view: memoryview,
        *,
        old: tuple[U64, U64],
        epoch: int,
    ) -> None:
        """Write ``view`` from byte ``skip`` of granule ``first``, in place or to new slots. Gate held."""
        moved = (old[0] == NONE_SLOT) | (old[1] != epoch)  # W1
        slots = old[0].copy()
        fresh = self._slots.allocate(int(np.count_nonzero(moved))) if moved.any() else NO_SLOTS
        slots[moved] = fresh
        try:
            self._put(view, skip, old[0], slots, moved)
        except BaseException:
            if len(fresh):
                self._slots.give_back(fresh)  # W3
            raise
        with self._state.lock:
            self._commit.note(owner, first, old=old, slots=slots, changed=moved)  # W2

    def _put(self, view: memoryview, skip: int, old: U64, slots: U64, moved: npt.NDArray[np.bool_]) -> None:
        """Write ``view`` from byte ``skip`` of the first slot: edge, whole granules, edge."""
        at, index = 0, 0
        if skip or view.nbytes < GRANULE_BYTES:
            at = min(GRANULE_BYTES - skip, view.nbytes)
            self._put_edge(view[:at], skip, int(old[0]), int(slots[0]), moved=bool(moved[0]))
            index = 1
        whole = (view.nbytes - at) // GRANULE_BYTES
        if whole:
            self._slots.write(slots[index : index + whole], view[at : at + whole * GRANULE_BYTES])
            at += whole * GRANULE_BYTES
        if at < view.nbytes:
            self._put_edge(view[at:], 0, int(old[-1]), int(slots[-1]), moved=bool(moved[-1]))

    def _put_edge(self, part: memoryview, inside: int, old: int, slot: int, *, moved: bool) -> None:
        """Write a part of one granule, with what was around it if it moves."""
        if not moved:
            self._slots.write_part(slot, inside, part)
            return
        whole = bytearray(GRANULE_BYTES)
        if old != NONE_SLOT:
            self._slots.read_into(np.array([old], np.uint64), 0, memoryview(whole))
        whole[inside : inside + part.nbytes] = part
        self._slots.write_part(slot, 0, memoryview(whole))

    def trim(self, owner: Volume | Draft, offset: int, length: int) -> None:
        """Make a range read as zeros and free its whole granules (W4). Errors as ``write``."""
        while not self._trim_once(owner, offset, length, owner.size_bytes):
            pass  # it was resized meanwhile

    def _trim_once(self, owner: Volume | Draft, offset: int, length: int, size_bytes: int) -> bool:
        """Trim while the owner has ``size_bytes``: where its end is decides what is a whole granule."""
        check_range(owner, offset, length)
        if not length:
            return True
        stop = offset + length
        first = -(-offset // GRANULE_BYTES)
        end = -(-size_bytes // GRANULE_BYTES) if stop == size_bytes else stop // GRANULE_BYTES
        if first >= end:  # no whole granule: one edge, or two that touch
            middle = min(stop, first * GRANULE_BYTES)
            self._zero_part(owner, offset, middle)
            self._zero_part(owner, middle, stop)
            return True
        for start in range(first, end, TRIM_GRANULES_MAX):
            if not self._trim_whole(owner, start, min(end, start + TRIM_GRANULES_MAX), size_bytes):
                return False
        self._zero_part(owner, offset, first * GRANULE_BYTES)
        self._zero_part(owner, end * GRANULE_BYTES, stop)
        return True

    def _trim_whole(self, owner: Volume | Draft, first: int, end: int, size_bytes: int) -> bool:
        self._commit.relieve(owner)
        with owner.gate.hold(first, end), self._commit.guarded(), self._state.lock:
            check_not_gone(owner)
            if owner.size_bytes != size_bytes:
                return False
            old = owner.map.lookup(first, end - first)
            nothing = np.zeros(end - first, np.uint64)
            self._commit.note(owner, first, old=old, slots=nothing, changed=old[0] != NONE_SLOT)
            return True

    def _zero_part(self, owner: Volume | Draft, start: int, stop: int) -> None:
        """Zero a part of one granule, unless it is a hole already."""
        if start >= stop:
            return
        with self._state.lock:
            check_range(owner, start, stop - start)
            slots, _ = owner.map.lookup(start // GRANULE_BYTES, 1)
        if int(slots[0]) != NONE_SLOT:
            self._write_piece(owner, start, memoryview(_ZEROS)[: stop - start])

    def zero_tail(self, owner: Volume | Draft) -> None:
        """Zero what the last granule holds past the end, before the owner grows: an earlier cut may
        have left it. The caller holds the whole gate. Errors as ``write``."""
        first, skip = divmod(owner.size_bytes, GRANULE_BYTES)
        if not skip:
            return
        with self._state.lock:
            old = owner.map.lookup(first, 1)
            epoch = owner.epoch
        if int(old[0][0]) != NONE_SLOT:
            self._redirect(owner, first, skip, memoryview(_ZEROS)[skip:], old=old, epoch=epoch)

    # -- reading ----------------------------------------------------------------------------

    def read_into(self, view: MapView, offset: int, into: memoryview) -> None:
        """Fill ``into`` from byte ``offset`` of a map; call inside ``slots.reading()`` (W5).

        Raises Corruption where the disk cannot read.
        """
        into = into.cast("B")
        if not into.nbytes:
            return
        first, skip = divmod(offset, GRANULE_BYTES)
        end = -(-(offset + into.nbytes) // GRANULE_BYTES)
        with self._state.lock:
            slots, _ = view.lookup(first, end - first)
        self._slots.read_into(slots, skip, into)


def check_range(owner: Volume | Draft, offset: int, length: int) -> None:
    """Raise InvalidRequest unless the range lies inside."""
    if offset < 0 or length < 0 or offset + length > owner.size_bytes:
        raise InvalidRequest(
            f"bytes {offset} to {offset + length} are outside {owner.name} of {owner.size_bytes} bytes",
            subject=owner.name,
        )


def check_not_gone(owner: Volume | Draft) -> None:
    """Raise NotFound if the owner ended while the caller waited. Map lock held."""
    if owner.gone:
        raise NotFound(f"volume {owner.name} is gone", subject=owner.name)
