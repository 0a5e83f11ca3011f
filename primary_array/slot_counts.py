"""How many pages of maps name each slot. Pure.

Owns: the counts; they are in memory only, and made anew from the maps at every start.
Invariants:
  R1 the count of a slot is the number of distinct pages, of all maps, that name it; the counts
     of pages and nodes (``block_map``) say the same of their parents. So a slot is named by a
     map exactly if its count is above 0, however many volumes, snapshots and clones share it.
  R2 a slot that falls to 0 is told once, by the ``drop`` that did it.
Callers: block_map, under the map lock.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
"""One-dimensional array of slots, births or granule indexes."""

NONE_SLOT = 0
"""Slot of a granule without data; slot 0 of the data file is never used."""

NO_SLOTS: U64 = np.empty(0, np.uint64)

_SLOTS_FIRST = 1024


class SlotCounts:
    """Four bytes a slot; grows with the highest slot."""

    def __init__(self) -> None:
        self._counts = np.zeros(_SLOTS_FIRST, np.uint32)

    def add(self, slots: U64) -> None:
        """One more page names each of ``slots`` (distinct; NONE_SLOT is left out)."""
        slots = slots[slots != NONE_SLOT]
        if len(slots):
            self._reach(int(slots.max()))
            self._counts[slots] += np.uint32(1)

    def drop(self, slots: U64) -> U64:
        """One page less names each of ``slots`` (distinct; NONE_SLOT is left out); returns those
        that nobody names any more (R2)."""
        slots = slots[slots != NONE_SLOT]
        if not len(slots):
            return NO_SLOTS
        left = self._counts[slots]
        assert left.all(), "R1: a slot is dropped that no page named"
        self._counts[slots] = left - np.uint32(1)
        freed: U64 = slots[left == 1]
        return freed

    def of(self, slots: U64) -> npt.NDArray[np.uint32]:
        """The counts of ``slots``; 0 for one that was never named. With or without the map lock."""
        counts = self._counts  # another, longer one may take its place meanwhile
        inside = slots < np.uint64(len(counts))
        found = np.zeros(len(slots), np.uint32)
        found[inside] = counts[slots[inside]]
        return found

    def named(self) -> U64:
        """Every slot that a map names, ascending."""
        return np.flatnonzero(self._counts).astype(np.uint64)

    def as_array(self) -> npt.NDArray[np.uint32]:
        """A copy, indexed by slot; what is past its end is 0."""
        return self._counts.copy()

    def replace(self, counts: npt.NDArray[np.uint32]) -> None:
        """Believe ``counts``, made anew from the maps."""
        self._counts = counts.astype(np.uint32, copy=True)
        self._reach(_SLOTS_FIRST - 1)

    def _reach(self, slot: int) -> None:
        if slot >= len(self._counts):
            grown = np.zeros(max(slot + 1, 2 * len(self._counts)), np.uint32)
            grown[: len(self._counts)] = self._counts
            self._counts = grown
