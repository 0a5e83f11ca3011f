"""The bytes of the pool: one sparse file of slots, and who may take which slot.

Owns: slots.data, the free slots, and the wait of freed slots for readers.
Slot n lies at n * GRANULE_BYTES; slot 0 is never used.
Invariants:
  F1 a slot is allocated to one caller until it is released or given back.
  F2 a released slot becomes allocatable only when every read that began before
     the release has ended: such a read may have found it in a map.
  F3 a slot is punched before it becomes allocatable, never after.
  F4 ``release`` is called only for slots whose freeing is durable in the journal;
     ``give_back`` only for slots that no map ever named.
Callers: any thread; the lock inside is a leaf (nothing else is taken under it).
Format: docs/formats/pool-v2.md.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arraylift.durable import RandomFile
from arraylift.errors import ArrayliftError, OutOfSpace, Overloaded
from arraylift.sizes import GRANULE_BYTES, MIB
from primary_array.block_map import NONE_SLOT, U64

PUNCH_BYTES_MAX = 16 * MIB
"""One punch: a file system without holes has zeros written instead, from memory."""

READERS_MAX = 4096


@dataclass(frozen=True, slots=True)
class _Waiting:
    """Released slots that reads older than ``ticket`` may still look at."""

    ticket: int
    slots: U64
    punch: bool


class SlotStore:
    """Slots of one pool. See the module for threads."""

    def __init__(self, data: RandomFile, used: U64) -> None:
        """``used``: every slot that a map names; all others below the highest are free."""
        self._data = data
        self._lock = threading.Lock()
        self._end = int(used.max()) + 1 if len(used) else 1
        taken = np.zeros(self._end, np.bool_)
        taken[used] = True
        taken[NONE_SLOT] = True
        self._free: U64 = np.flatnonzero(~taken).astype(np.uint64)  # ascending; [0, _at) is handed out
        self._at = 0
        self._returned: list[U64] = []
        self._returned_count = 0
        self._waiting: list[_Waiting] = []
        self._readers: dict[int, None] = {}  # tickets, ascending
        self._next_ticket = 0

    @property
    def path(self) -> str:
        return self._data.path

    def counts(self) -> tuple[int, int]:
        """Return (slots that are allocated, slots that wait for readers)."""
        with self._lock:
            waiting = sum(len(batch.slots) for batch in self._waiting)
            free = len(self._free) - self._at + self._returned_count
            return self._end - 1 - free - waiting, waiting

    def allocated(self) -> npt.NDArray[np.bool_]:
        """Say of each slot below the end whether it is given out or waits for readers."""
        with self._lock:
            held = np.ones(self._end, np.bool_)
            held[self._free[self._at :]] = False
            for slots in self._returned:
                held[slots] = False
            return held

    def waiting(self) -> U64:
        """Slots that are released and wait for readers."""
        with self._lock:
            return np.concatenate([np.empty(0, np.uint64), *(batch.slots for batch in self._waiting)])

    def reclaim(self, held: U64) -> None:
        """Believe that exactly ``held`` and what waits are in use (a repair). REQUIRES that nobody
        allocates meanwhile."""
        waiting = self.waiting()
        with self._lock:
            both = np.concatenate([held, waiting])
            self._end = max(self._end, int(both.max()) + 1 if len(both) else 1)
            taken = np.zeros(self._end, np.bool_)
            taken[both] = True
            taken[NONE_SLOT] = True
            self._free, self._at = np.flatnonzero(~taken).astype(np.uint64), 0
            self._returned, self._returned_count = [], 0

    def allocated_bytes(self) -> int:
        return self._data.allocated_bytes()

    # -- allocation -------------------------------------------------------------------------

    def allocate(self, count: int) -> U64:
        """Return ``count`` slots, ascending; consecutive wherever the free space is."""
        if self._waiting:
            self.drain()
        with self._lock:
            if len(self._free) - self._at < count and self._returned:
                self._free = np.sort(np.concatenate([self._free[self._at :], *self._returned]))
                self._at, self._returned, self._returned_count = 0, [], 0
            reused = self._free[self._at : self._at + count]
            self._at += len(reused)
            missing = count - len(reused)
            grown = np.arange(self._end, self._end + missing, dtype=np.uint64)
            self._end += missing
            return np.concatenate([reused, grown])

    def give_back(self, slots: U64) -> None:
        """Undo an allocation whose write failed (F4)."""
        with suppress(ArrayliftError):  # the caller is already handling what went wrong
            self._punch(slots)
        self._return(slots)

    def release(self, slots: U64, *, punch: bool) -> None:
        """Free slots as soon as no reader can be looking (F2, F4); ``punch`` returns the space to
        the file system, which pays for bulk deletions only."""
        if len(slots):
            with self._lock:
                self._waiting.append(_Waiting(self._next_ticket, slots, punch))
        self.drain()

    def drain(self) -> None:
        """Make those released slots allocatable whose readers have gone."""
        with self._lock:
            oldest = next(iter(self._readers), self._next_ticket)
            ready = [batch for batch in self._waiting if batch.ticket <= oldest]
            self._waiting = [batch for batch in self._waiting if batch.ticket > oldest]
        for batch in ready:
            if batch.punch:
                with suppress(OutOfSpace, Overloaded):  # a hole may cost room; the slot is reusable without
                    self._punch(np.sort(batch.slots))  # F3
            self._return(batch.slots)

    def _return(self, slots: U64) -> None:
        with self._lock:
            self._returned.append(slots)
            self._returned_count += len(slots)

    def _punch(self, slots: U64) -> None:
        for start, stop in stretches(slots):
            offset = int(slots[start]) * GRANULE_BYTES
            end = offset + (stop - start) * GRANULE_BYTES
            while offset < end:
                length = min(PUNCH_BYTES_MAX, end - offset)
                self._data.punch(offset, length)
                offset += length

    # -- bytes ------------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Hold slots still (F2): enter before looking into a map, leave after the last read."""
        with self._lock:
            if len(self._readers) >= READERS_MAX:
                raise Overloaded("too many reads at once", next_step="repeat later")
            ticket = self._next_ticket
            self._next_ticket += 1
            self._readers[ticket] = None
        try:
            yield
        finally:
            with self._lock:
                del self._readers[ticket]

    def read_into(self, slots: U64, skip: int, into: memoryview) -> None:
        """Fill ``into`` with the granules of ``slots``, from byte ``skip`` of the first.

        NONE_SLOT reads as zeros. Raises Corruption where the disk cannot read, or the file was cut: a slot
        that a map names was written whole.
        """
        assert skip >= 0
        assert skip + into.nbytes <= len(slots) * GRANULE_BYTES
        for start, stop in stretches(slots):
            begin = max(0, start * GRANULE_BYTES - skip)
            end = min(into.nbytes, stop * GRANULE_BYTES - skip)
            if begin >= end:
                continue
            slot = int(slots[start])
            if slot == NONE_SLOT:
                np.frombuffer(into[begin:end], np.uint8)[:] = 0
            else:
                inside = begin + skip - start * GRANULE_BYTES
                self._data.read_exactly(slot * GRANULE_BYTES + inside, into[begin:end])

    def write(self, slots: U64, data: memoryview) -> None:
        """Write whole granules; consecutive slots go in one call. Raises OutOfSpace, StoreFailed."""
        assert data.nbytes == len(slots) * GRANULE_BYTES
        for start, stop in stretches(slots):
            piece = data[start * GRANULE_BYTES : stop * GRANULE_BYTES]
            self._data.write(int(slots[start]) * GRANULE_BYTES, piece)

    def write_part(self, slot: int, inside: int, data: memoryview) -> None:
        """Write ``data`` from byte ``inside`` of one slot that already has content."""
        assert slot != NONE_SLOT
        assert inside + data.nbytes <= GRANULE_BYTES
        self._data.write(slot * GRANULE_BYTES + inside, data)

    def sync(self) -> None:
        self._data.sync()

    def close(self) -> None:
        self._data.close()


def stretches(slots: U64) -> list[tuple[int, int]]:
    """Cut ``slots`` into [start, stop) index ranges of consecutive slots, or of NONE_SLOT."""
    if len(slots) <= 1:
        return [(0, len(slots))] if len(slots) else []
    step = np.where(slots[:-1] == NONE_SLOT, 0, 1).astype(np.uint64)
    cuts = (np.flatnonzero(slots[1:] != slots[:-1] + step) + 1).tolist()
    return list(zip([0, *cuts], [*cuts, len(slots)], strict=True))
