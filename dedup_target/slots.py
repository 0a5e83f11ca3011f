"""Count records by the slots of their containers: one bit a slot (law 8).

Invariants:
  S1 a place is the number of one slot of one container of the snapshot, from 0 without gaps.
  S2 a bit once set stays; ``fresh`` says of each place, once, that it was set just now.
Memory: ``Slots`` 49 bytes a container, 3 MB for 1 TiB of them; ``Bits`` one bit a slot: 13 MB for
1 TiB of records of 10 KiB. Callers: one thread; whoever walks.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from arraylift.errors import Corruption
from arraylift.ids import ContainerId
from dedup_target.segment_index import ContainerMark, Entries

Rows = npt.NDArray[np.int64]
"""Indexes into the columns of ``Slots``; -1 for a container that is not in the snapshot."""
Places = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


class Slots:
    """The containers of one unit as its index had them at one moment, ascending by id (S1)."""

    def __init__(self, marks: Mapping[ContainerId, ContainerMark]) -> None:
        order = sorted(marks)
        self.containers = np.array(order, dtype=np.uint64)
        columns = np.array([marks[one] for one in order], dtype=np.uint64).reshape(
            -1, len(ContainerMark._fields)
        )
        named = dict(zip(ContainerMark._fields, columns.T, strict=True))
        self.tenants, self.kinds = named["tenant"], named["kind"].astype(np.uint8)
        self.slot_counts = named["slot_count"].astype(np.int64)
        self.file_bytes = named["file_bytes"].astype(np.int64)
        self.stored_bytes = named["stored_bytes"].astype(np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self.slot_counts)]).astype(np.int64)

    def __len__(self) -> int:
        return len(self.containers)

    @property
    def count(self) -> int:
        """Slots of all containers."""
        return int(self._starts[-1])

    def container(self, row: int) -> ContainerId:
        return ContainerId(int(self.containers[row]))

    def rows_of(self, entries: Entries) -> Rows:
        """The container of each entry; -1 for absent ones, and for those of newer containers."""
        if not len(self):
            return np.full(len(entries), -1, dtype=np.int64)
        rows = np.searchsorted(self.containers, entries["container"])
        rows[rows == len(self)] = 0
        rows[self.containers[rows] != entries["container"]] = -1
        return rows.astype(np.int64)

    def places_of(self, entries: Entries, rows: Rows) -> Places:
        """The place of each entry. REQUIRES rows >= 0. Raises Corruption (S1)."""
        slots = entries["slot"].astype(np.int64)
        if (slots >= self.slot_counts[rows]).any():
            raise Corruption(
                "the index names a slot that its container does not have",
                subject="index",
                next_step="run 'arraylift target rebuild'",
            )
        places: Places = self._starts[rows] + slots
        return places

    def live_slots(self, row: int, bits: Bits) -> npt.NDArray[np.int64]:
        """The slots of one container whose bits are set, ascending."""
        start = int(self._starts[row])
        return np.flatnonzero(bits.has(np.arange(start, int(self._starts[row + 1]))))


class Bits:
    """One bit a place."""

    def __init__(self, count: int) -> None:
        self._bytes = np.zeros(-(-count // 8), dtype=np.uint8)

    @property
    def nbytes(self) -> int:
        return self._bytes.nbytes

    def has(self, places: Places) -> Flags:
        """Which bits are set."""
        flags: Flags = (self._bytes[places >> 3] >> (places & 7).astype(np.uint8)) & 1 == 1
        return flags

    def fresh(self, places: Places) -> Flags:
        """Set bits; True where a bit was not set, the first time that it occurs (S2)."""
        distinct, first = np.unique(places, return_index=True)
        unset = ~self.has(distinct)
        chosen = distinct[unset]
        np.bitwise_or.at(self._bytes, chosen >> 3, np.left_shift(1, chosen & 7).astype(np.uint8))
        flags = np.zeros(len(places), dtype=np.bool_)
        flags[first[unset]] = True
        return flags

    def clear(self) -> None:
        self._bytes[:] = 0
