"""Which slot holds which granule, and in which epoch it was born. Pure.

Owns: the nodes and pages of every map in memory.
A map is a list of nodes, a node NODE_PAGES pages, a page PAGE_GRANULES entries (slot, birth). What
nobody ever wrote is None. Maps share nodes, nodes share pages: a snapshot or clone costs one
pointer a node; the first write below a shared node copies that node, the first write into a shared
page that page. So the memory of a snapshot is what changed since.
Invariants:
  M1 a page or node reachable from a FrozenMap never changes again (a page's arrays are read-only).
  M2 a mapped entry has slot > 0 and birth > 0; (0, 0) was never written;
     (0, birth) is a tombstone: trimmed, or grown into, in that epoch.
  M3 ``mapped_count`` is the number of entries with a slot.
  M4 ``Page.newest_birth`` is >= every birth in the page, so a page with
     newest_birth <= b holds no change since b.
  M5 ``Node.refs`` counts the maps that hold a node, ``Page.refs`` the places in nodes that hold a page,
     SlotCounts the pages that name a slot. What falls to 0 drops what it held.
  M6 entries past the end of a map are (0, 0).
Callers: BlockMap, ``fork`` and ``release`` under the map lock; reading a FrozenMap from any thread,
without a lock, also after its release. Format: docs/formats/pool-v2.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from primary_array.slot_counts import NO_SLOTS, NONE_SLOT, U64, SlotCounts

__all__ = [
    "NODE_PAGES",
    "NONE_SLOT",
    "NO_SLOTS",
    "PAGE_GRANULES",
    "U64",
    "BlockMap",
    "FrozenMap",
    "MapView",
    "Node",
    "Page",
    "nodes_of",
    "pages_of",
    "without_repeats",
]

PAGE_GRANULES = 1024
"""Entries of a page: 64 MiB of a volume in 16 KiB of memory. Part of the format."""

NODE_PAGES = 128
"""Pages of a node: 8 GiB of a volume in 1 KiB of memory. Part of the format."""


class Page:
    """PAGE_GRANULES entries. Writable until frozen, then shared (M1)."""

    __slots__ = ("births", "checksum", "home", "newest_birth", "refs", "slots")

    def __init__(self, slots: U64, births: U64) -> None:
        assert slots.shape == births.shape == (PAGE_GRANULES,)
        self.slots = slots
        self.births = births
        self.newest_birth = int(births.max())
        self.refs = 0
        self.home = 0
        """Where it lies in the page file, and with which checksum; 0: nowhere yet (page_file)."""
        self.checksum = 0

    @classmethod
    def empty(cls) -> Page:
        return cls(np.zeros(PAGE_GRANULES, np.uint64), np.zeros(PAGE_GRANULES, np.uint64))

    @classmethod
    def tombstones(cls, birth: int) -> Page:
        """All tombstones of one epoch, frozen: one such page stands in many places."""
        page = cls(np.zeros(PAGE_GRANULES, np.uint64), np.full(PAGE_GRANULES, birth, np.uint64))
        page.freeze()
        return page

    def copy(self) -> Page:
        """A writable twin that nobody holds yet."""
        return Page(self.slots.copy(), self.births.copy())

    def freeze(self) -> None:
        self.slots.flags.writeable = False
        self.births.flags.writeable = False

    def mapped_count(self) -> int:
        return int(np.count_nonzero(self.slots))

    def drop(self, counts: SlotCounts) -> U64:
        """One holder less; returns the slots that nobody names any more (M5)."""
        self.refs -= 1
        assert self.refs >= 0
        return NO_SLOTS if self.refs else counts.drop(self.slots)


class Node:
    """NODE_PAGES places for pages; holds each of its pages once a place."""

    __slots__ = ("pages", "refs")

    def __init__(self, pages: list[Page | None]) -> None:
        assert len(pages) == NODE_PAGES
        self.pages = pages
        self.refs = 0
        for page in pages:
            if page is not None:
                page.refs += 1

    def drop(self, counts: SlotCounts) -> U64:
        """One map less; returns the slots that nobody names any more (M5)."""
        self.refs -= 1
        assert self.refs >= 0
        if self.refs:
            return NO_SLOTS
        return _joined([page.drop(counts) for page in self.pages if page is not None])


class MapView:
    """What living and frozen maps share: reading."""

    __slots__ = ("_counts", "_nodes", "granule_count", "mapped_count")

    _nodes: Sequence[Node | None]

    def __init__(
        self, granule_count: int, counts: SlotCounts, nodes: Sequence[Node | None], mapped_count: int
    ) -> None:
        assert len(nodes) == nodes_of(granule_count)
        self.granule_count = granule_count
        self.mapped_count = mapped_count
        self._counts = counts
        self._nodes = nodes
        for node in nodes:
            if node is not None:
                node.refs += 1

    def lookup(self, first: int, count: int) -> tuple[U64, U64]:
        """Return copies of (slots, births) of ``count`` granules from ``first``."""
        assert first >= 0
        assert count >= 0
        assert first + count <= self.granule_count
        slots = np.zeros(count, np.uint64)
        births = np.zeros(count, np.uint64)
        for number, start, stop, at in _pieces(first, count):
            page = self.page(number)
            if page is not None:
                slots[at : at + stop - start] = page.slots[start:stop]
                births[at : at + stop - start] = page.births[start:stop]
        return slots, births

    def page(self, number: int) -> Page | None:
        """Page ``number``, to read; None where nobody wrote."""
        node = self._nodes[number // NODE_PAGES]
        return None if node is None else node.pages[number % NODE_PAGES]

    def nodes(self) -> Sequence[Node | None]:
        """The nodes in order; only to read."""
        return self._nodes

    def pages(self) -> Iterator[tuple[int, Page]]:
        """Yield (number, page) of every page that exists, ascending; only to read."""
        for index, node in enumerate(self._nodes):
            if node is not None:
                for place, page in enumerate(node.pages):
                    if page is not None:
                        yield index * NODE_PAGES + place, page

    def fork(self) -> BlockMap:
        """A living map with this content, which shares all of it; O(nodes) of a frozen one."""
        return BlockMap(self.granule_count, self._counts, list(self._nodes), self.mapped_count)

    def release(self) -> U64:
        """End this map; returns the slots that nobody names any more. Reading goes on to work."""
        return _joined([node.drop(self._counts) for node in self._nodes if node is not None])

    def unique_count(self) -> int:
        """Granules whose slots no other map names. With or without the map lock: without it, of about
        this moment."""
        total = 0
        for node in self._nodes:
            if node is None or node.refs != 1:
                continue
            alone = [page.slots for page in node.pages if page is not None and page.refs == 1]
            if alone:
                total += int(np.count_nonzero(self._counts.of(np.concatenate(alone)) == 1))
        return total


class FrozenMap(MapView):
    """The map of a snapshot. Any thread, no lock (M1)."""

    __slots__ = ()


class BlockMap(MapView):
    """The map of something that is still written."""

    __slots__ = ("_owned_nodes", "_owned_pages")

    _nodes: list[Node | None]

    def __init__(
        self,
        granule_count: int,
        counts: SlotCounts,
        nodes: list[Node | None] | None = None,
        mapped_count: int = 0,
    ) -> None:
        """An empty map, or one that shares the frozen ``nodes``."""
        super().__init__(granule_count, counts, nodes or [None] * nodes_of(granule_count), mapped_count)
        self._owned_nodes: set[int] = set()
        self._owned_pages: set[int] = set()

    def freeze(self) -> FrozenMap:
        """Return the map as it is now, for ever; O(nodes) pointers, and the pages written since the
        last freeze."""
        self._disown()
        return FrozenMap(self.granule_count, self._counts, tuple(self._nodes), self.mapped_count)

    def fork(self) -> BlockMap:
        """As of a frozen map; this one goes on as well."""
        self._disown()
        return super().fork()

    def still(self) -> tuple[Node | None, ...]:
        """Return the nodes as they are now, for ever, without holding them: for a checkpoint, which
        needs no slot to stay."""
        self._disown()
        return tuple(self._nodes)

    def _disown(self) -> None:
        for number in self._owned_pages:
            page = self.page(number)
            assert page is not None
            page.freeze()
        self._owned_pages.clear()
        self._owned_nodes.clear()

    # -- writing ----------------------------------------------------------------------------

    def assign(self, first: int, slots: U64, births: U64) -> U64:
        """Set ``len(slots)`` entries from granule ``first``; returns the slots that nobody names now."""
        assert slots.shape == births.shape
        assert first + len(slots) <= self.granule_count
        freed = []
        for number, start, stop, at in _pieces(first, len(slots)):
            page = self._own_page(number)
            inside, part = slice(start, stop), slice(at, at + stop - start)
            before = page.slots[inside].copy()
            page.slots[inside] = slots[part]
            page.births[inside] = births[part]
            page.newest_birth = max(page.newest_birth, int(births[part].max()))
            freed.append(self._moved(before, slots[part]))
        return _joined(freed)

    def scatter(self, granules: U64, slots: U64, birth: int) -> U64:
        """Set entries in any order, all with one birth; of repeated granules the last wins. Returns
        the slots that nobody names now."""
        if not len(granules):
            return NO_SLOTS
        assert int(granules.max()) < self.granule_count
        assert birth > 0
        numbers = granules // PAGE_GRANULES
        order = np.argsort(numbers, kind="stable")  # stable: the last of repeats stays last
        bounds = np.flatnonzero(np.diff(numbers[order])) + 1
        freed = []
        for part in np.split(order, bounds):
            page = self._own_page(int(numbers[part[0]]))
            before = page.slots.copy()
            inside = granules[part] % PAGE_GRANULES
            page.slots[inside] = slots[part]
            page.births[inside] = birth
            page.newest_birth = max(page.newest_birth, birth)
            freed.append(self._moved(before, page.slots))
        return _joined(freed)

    def _moved(self, before: U64, after: U64) -> U64:
        """Count what entries of one page name now, instead of ``before``."""
        moved = before != after
        gone, come = before[moved], after[moved]
        self.mapped_count += int(np.count_nonzero(come)) - int(np.count_nonzero(gone))
        self._counts.add(come)
        return self._counts.drop(gone)

    def resize(self, granule_count: int, birth: int) -> U64:
        """Cut off what is past ``granule_count``, or add tombstones of ``birth`` up to it: what was
        there before an earlier cut counts as changed. Returns the slots that nobody names now."""
        if granule_count < self.granule_count:
            return self._shrink(granule_count)
        first, self.granule_count = self.granule_count, granule_count
        self._nodes += [None] * (nodes_of(granule_count) - len(self._nodes))
        within = -(-first // PAGE_GRANULES) * PAGE_GRANULES
        self._bury(first, min(within, granule_count), birth)
        last = granule_count // PAGE_GRANULES * PAGE_GRANULES
        if last > within:
            self._bury_pages(within // PAGE_GRANULES, last // PAGE_GRANULES, birth)
        self._bury(max(within, last), granule_count, birth)
        return NO_SLOTS

    def _bury(self, first: int, end: int, birth: int) -> None:
        if first < end:
            count = end - first
            self.assign(first, np.zeros(count, np.uint64), np.full(count, birth, np.uint64))

    def _bury_pages(self, first: int, end: int, birth: int) -> None:
        """One page of tombstones in all places, one node of it in all whole nodes."""
        page = Page.tombstones(birth)
        whole: Node | None = None
        number = first
        while number < end:
            index, place = divmod(number, NODE_PAGES)
            if place == 0 and number + NODE_PAGES <= end:
                whole = whole or Node([page] * NODE_PAGES)
                assert self._nodes[index] is None
                self._nodes[index] = whole
                whole.refs += 1
                number += NODE_PAGES
                continue
            node = self._own_node(index)
            assert node.pages[place] is None
            node.pages[place] = page
            page.refs += 1
            number += 1

    def _shrink(self, granule_count: int) -> U64:
        freed = []
        pages = pages_of(granule_count)
        for number, page in list(self.pages()):
            if number >= pages:
                self.mapped_count -= page.mapped_count()
        inside = granule_count % PAGE_GRANULES
        if inside and self.page(pages - 1) is not None:
            page = self._own_page(pages - 1)
            before = page.slots.copy()
            page.slots[inside:] = NONE_SLOT
            page.births[inside:] = 0
            freed.append(self._moved(before, page.slots))
        if pages % NODE_PAGES and self._nodes[pages // NODE_PAGES] is not None:
            node = self._own_node(pages // NODE_PAGES)
            for place in range(pages % NODE_PAGES, NODE_PAGES):
                gone, node.pages[place] = node.pages[place], None
                if gone is not None:
                    freed.append(gone.drop(self._counts))
        for cut in self._nodes[nodes_of(granule_count) :]:
            if cut is not None:
                freed.append(cut.drop(self._counts))
        del self._nodes[nodes_of(granule_count) :]
        self._owned_pages = {number for number in self._owned_pages if number < pages}
        self._owned_nodes = {index for index in self._owned_nodes if index < len(self._nodes)}
        self.granule_count = granule_count
        return _joined(freed)

    # -- ownership --------------------------------------------------------------------------

    def _own_node(self, index: int) -> Node:
        """Return node ``index``, ours alone and never frozen: made, copied, or ours already."""
        node = self._nodes[index]
        if index not in self._owned_nodes:
            mine = Node([None] * NODE_PAGES if node is None else list(node.pages))
            mine.refs = 1
            if node is not None:
                node.drop(self._counts)  # frees nothing: the copy holds its pages
            self._nodes[index] = mine
            self._owned_nodes.add(index)
            return mine
        assert node is not None
        return node

    def _own_page(self, number: int) -> Page:
        """Return page ``number``, writable: made, copied, or ours already."""
        node = self._own_node(number // NODE_PAGES)
        page = node.pages[number % NODE_PAGES]
        if number not in self._owned_pages:
            mine = Page.empty() if page is None else page.copy()
            mine.refs = 1
            self._counts.add(mine.slots)
            if page is not None:
                page.drop(self._counts)  # frees nothing: the copy names its slots
            node.pages[number % NODE_PAGES] = page = mine
            self._owned_pages.add(number)
        assert page is not None
        assert page.slots.flags.writeable
        return page


def pages_of(granule_count: int) -> int:
    """Return how many pages a map of ``granule_count`` entries has."""
    return -(-granule_count // PAGE_GRANULES)


def nodes_of(granule_count: int) -> int:
    """Return how many nodes a map of ``granule_count`` entries has."""
    return -(-granule_count // (PAGE_GRANULES * NODE_PAGES))


def without_repeats(ascending: U64) -> U64:
    """Return each value of a sorted array once. (numpy's unique hashes, 20 times slower.)"""
    keep = np.ones(len(ascending), np.bool_)
    keep[1:] = ascending[1:] != ascending[:-1]
    return ascending[keep]


def _joined(parts: list[U64]) -> U64:
    parts = [part for part in parts if len(part)]
    return np.concatenate(parts) if parts else NO_SLOTS


def _pieces(first: int, count: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut a range at page bounds: (page number, start, stop, position in the range)."""
    at = 0
    while at < count:
        number, start = divmod(first + at, PAGE_GRANULES)
        stop = min(PAGE_GRANULES, start + count - at)
        yield number, start, stop, at
        at += stop - start
