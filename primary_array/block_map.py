"""Which slot holds which granule, and in which epoch it was born. Pure.

Owns: the pages of every map in memory.
A map is a list of pages of PAGE_GRANULES entries (slot, birth). A page that
nobody ever wrote is None. Freezing a map costs one pointer a page: both sides
then share the pages, and the living side copies a page before it first changes it.
Invariants:
  M1 a page reachable from a FrozenMap never changes again (its arrays are read-only).
  M2 a mapped entry has slot > 0 and birth > 0; (0, 0) was never written;
     (0, birth) is a tombstone: trimmed in that epoch.
  M3 ``mapped_count`` is the number of entries with a slot.
  M4 ``Page.newest_birth`` is >= every birth in the page, so a page with
     newest_birth <= b holds no change since b.
Callers: BlockMap under the map lock; FrozenMap from any thread, without a lock.
Format: docs/formats/pool-v1.md (pages in a checkpoint).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
"""One-dimensional array of slots, births or granule indexes."""

NONE_SLOT = 0
"""Slot of a granule without data; slot 0 of the data file is never used."""

PAGE_GRANULES = 1024
"""Entries of a page: 64 MiB of a volume in 16 KiB of memory. Part of the format."""


class Page:
    """PAGE_GRANULES entries. Writable until frozen, then shared (M1)."""

    __slots__ = ("births", "newest_birth", "slots")

    def __init__(self, slots: U64, births: U64) -> None:
        assert slots.shape == births.shape == (PAGE_GRANULES,)
        self.slots = slots
        self.births = births
        self.newest_birth = int(births.max())

    @classmethod
    def empty(cls) -> Page:
        return cls(np.zeros(PAGE_GRANULES, np.uint64), np.zeros(PAGE_GRANULES, np.uint64))

    def copy(self) -> Page:
        """A writable twin."""
        return Page(self.slots.copy(), self.births.copy())

    def freeze(self) -> None:
        self.slots.flags.writeable = False
        self.births.flags.writeable = False

    def mapped_count(self) -> int:
        return int(np.count_nonzero(self.slots))


class MapView:
    """What living and frozen maps share: reading."""

    __slots__ = ("_pages", "granule_count", "mapped_count")

    _pages: Sequence[Page | None]

    def __init__(self, granule_count: int, pages: Sequence[Page | None]) -> None:
        assert len(pages) == pages_of(granule_count)
        self.granule_count = granule_count
        self.mapped_count = sum(page.mapped_count() for page in pages if page is not None)
        self._pages = pages

    def lookup(self, first: int, count: int) -> tuple[U64, U64]:
        """Return copies of (slots, births) of ``count`` granules from ``first``."""
        assert first >= 0
        assert count >= 0
        assert first + count <= self.granule_count
        slots = np.zeros(count, np.uint64)
        births = np.zeros(count, np.uint64)
        for number, start, stop, at in _pieces(first, count):
            page = self._pages[number]
            if page is not None:
                slots[at : at + stop - start] = page.slots[start:stop]
                births[at : at + stop - start] = page.births[start:stop]
        return slots, births

    def pages(self) -> Sequence[Page | None]:
        """The pages in order; only to read."""
        return self._pages

    def mapped(self) -> Iterator[tuple[int, U64]]:
        """Yield (first granule, slots) of every page that exists; slots may hold NONE_SLOT."""
        for number, page in enumerate(self._pages):
            if page is not None:
                yield number * PAGE_GRANULES, page.slots

    def slots(self) -> U64:
        """Return every slot that this map names, in granule order."""
        named = [slots[slots != NONE_SLOT] for _, slots in self.mapped()]
        return np.concatenate(named) if named else np.empty(0, np.uint64)


class FrozenMap(MapView):
    """The map of a snapshot. Any thread, no lock (M1)."""

    __slots__ = ()


class BlockMap(MapView):
    """The map of something that is still written."""

    __slots__ = ("_owned",)

    _pages: list[Page | None]

    def __init__(self, granule_count: int, pages: Sequence[Page | None] | None = None) -> None:
        """An empty map, or one that shares the frozen ``pages``."""
        super().__init__(granule_count, list(pages or [None] * pages_of(granule_count)))
        self._owned: set[int] = set()

    def freeze(self) -> FrozenMap:
        """Return the map as it is now, for ever; O(pages) pointers."""
        for number in self._owned:
            page = self._pages[number]
            assert page is not None
            page.freeze()
        self._owned.clear()
        return FrozenMap(self.granule_count, tuple(self._pages))

    def assign(self, first: int, slots: U64, births: U64) -> None:
        """Set ``len(slots)`` entries from granule ``first``."""
        assert slots.shape == births.shape
        assert first + len(slots) <= self.granule_count
        for number, start, stop, at in _pieces(first, len(slots)):
            page = self._own(number)
            before = int(np.count_nonzero(page.slots[start:stop]))
            page.slots[start:stop] = slots[at : at + stop - start]
            page.births[start:stop] = births[at : at + stop - start]
            page.newest_birth = max(page.newest_birth, int(page.births[start:stop].max()))
            self.mapped_count += int(np.count_nonzero(page.slots[start:stop])) - before

    def scatter(self, granules: U64, slots: U64, birth: int) -> None:
        """Set entries in any order, all with one birth; of repeated granules the last wins."""
        if not len(granules):
            return
        assert int(granules.max()) < self.granule_count
        assert birth > 0
        numbers = granules // PAGE_GRANULES
        order = np.argsort(numbers, kind="stable")  # stable: the last of repeats stays last
        bounds = np.flatnonzero(np.diff(numbers[order])) + 1
        for part in np.split(order, bounds):
            page = self._own(int(numbers[part[0]]))
            before = page.mapped_count()
            inside = granules[part] % PAGE_GRANULES
            page.slots[inside] = slots[part]
            page.births[inside] = birth
            page.newest_birth = max(page.newest_birth, birth)
            self.mapped_count += page.mapped_count() - before

    def _own(self, number: int) -> Page:
        """Return page ``number``, writable: made, copied, or ours already."""
        page = self._pages[number]
        if number not in self._owned:
            page = Page.empty() if page is None else page.copy()
            self._pages[number] = page
            self._owned.add(number)
        assert page is not None
        assert page.slots.flags.writeable
        return page


def pages_of(granule_count: int) -> int:
    """Return how many pages a map of ``granule_count`` entries has."""
    return -(-granule_count // PAGE_GRANULES)


def only_in(candidate: MapView, others: Sequence[MapView]) -> U64:
    """Return the slots that ``candidate`` names and none of ``others`` does.

    Relies on a slot being named at one and the same granule by all maps that share it.
    Pages shared by identity cost nothing.
    """
    found = []
    for number, page in enumerate(candidate.pages()):
        if page is None:
            continue
        rivals = [other.pages()[number] for other in others if number < len(other.pages())]
        if any(rival is page for rival in rivals):
            continue
        alone = page.slots != NONE_SLOT
        for rival in rivals:
            if rival is not None:
                alone &= page.slots != rival.slots
        found.append(page.slots[alone])
    return np.concatenate(found) if found else np.empty(0, np.uint64)


def without_repeats(ascending: U64) -> U64:
    """Return each value of a sorted array once. (numpy's unique hashes, 20 times slower.)"""
    keep = np.ones(len(ascending), np.bool_)
    keep[1:] = ascending[1:] != ascending[:-1]
    return ascending[keep]


def _pieces(first: int, count: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut a range at page bounds: (page number, start, stop, position in the range)."""
    at = 0
    while at < count:
        number, start = divmod(first + at, PAGE_GRANULES)
        stop = min(PAGE_GRANULES, start + count - at)
        yield number, start, stop, at
        at += stop - start
