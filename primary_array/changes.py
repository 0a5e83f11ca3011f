"""What changed in a map since a birth. Pure.

Owns: the answer that an incremental backup believes (promise TRACK).
Invariants:
  T1 the answer is a superset of what changed: every granule with a younger
     birth, tombstones included.
  T2 after a resize the last span of the smaller size counts as changed, and so
     does everything past the end of the base.
  T3 span indexes are sorted, without repeats, and inside the size.
  T4 two frozen maps of one family that name the same slot at a granule hold the same bytes
     there: a slot is overwritten in place only while no snapshot names it.
The caller has made sure that the older state is an ancestor (lineage.py), or that the two maps
belong to one family (T4).
Callers: any thread, over frozen maps. Source: US 2016/0170666 [0047]-[0052].
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from arraylift.sizes import GRANULE_BYTES, SPAN_BYTES, spans_of
from primary_array.block_map import NODE_PAGES, PAGE_GRANULES, U64, MapView, pages_of, without_repeats

NOTHING: U64 = np.zeros(PAGE_GRANULES, np.uint64)
"""Slots of a page that nobody wrote."""

GRANULES_PER_SPAN = SPAN_BYTES // GRANULE_BYTES


def changed_granules(view: MapView, since_birth: int) -> U64:
    """Return the granules of ``view`` born after ``since_birth``, ascending (T1)."""
    found = []
    for index, node in enumerate(view.nodes()):
        # Together for a node: a call of numpy costs as much as looking at a page.
        young = [
            (place, page.births)
            for place, page in enumerate(node.pages if node is not None else ())
            if page is not None and page.newest_birth > since_birth
        ]
        if young:
            at = np.flatnonzero(np.concatenate([births for _, births in young]) > since_birth)
            places = np.array([place for place, _ in young], np.uint64) + np.uint64(index * NODE_PAGES)
            inside = (at % PAGE_GRANULES).astype(np.uint64)
            found.append(places[at // PAGE_GRANULES] * np.uint64(PAGE_GRANULES) + inside)
    return np.concatenate(found) if found else np.empty(0, np.uint64)


def changed_flags(
    view: MapView, since_birth: int, first: int, count: int, *, size_bytes: int, base_bytes: int
) -> npt.NDArray[np.bool_]:
    """Say of each of ``count`` granules from ``first`` whether it was born later, or a resize touched
    its span (T1, T2)."""
    _, births = view.lookup(first, count)
    flags: npt.NDArray[np.bool_] = births > since_birth
    start, stop = _resized(size_bytes, base_bytes)
    flags[max(0, start * GRANULES_PER_SPAN - first) : max(0, stop * GRANULES_PER_SPAN - first)] = True
    return flags


def differing_granules(view: MapView, older: MapView) -> U64:
    """Return the granules of ``view`` whose slot is another than in ``older``, ascending (T4)."""
    found = []
    for number in range(pages_of(view.granule_count)):
        page = view.page(number)
        other = older.page(number) if number < pages_of(older.granule_count) else None
        if page is other:
            continue
        ours = NOTHING if page is None else page.slots
        theirs = NOTHING if other is None else other.slots
        found.append(np.flatnonzero(ours != theirs).astype(np.uint64) + np.uint64(number * PAGE_GRANULES))
    granules = np.concatenate(found) if found else np.empty(0, np.uint64)
    return granules[granules < np.uint64(view.granule_count)]


def spans_of_granules(granules: U64, *, size_bytes: int, base_bytes: int) -> U64:
    """Return the indexes of the spans that hold ``granules``, or that a resize touched (T2, T3)."""
    spans = without_repeats(granules // np.uint64(GRANULES_PER_SPAN))
    return np.union1d(spans, _resized_spans(size_bytes, base_bytes))


def ranges_of_granules(granules: U64, *, size_bytes: int, base_bytes: int) -> tuple[U64, U64]:
    """Return (offsets, lengths) in bytes: ascending, disjoint, cut at ``size_bytes`` (T2)."""
    resized = _resized_spans(size_bytes, base_bytes) * np.uint64(GRANULES_PER_SPAN)
    if len(resized):
        every = (resized[:, None] + np.arange(GRANULES_PER_SPAN, dtype=np.uint64)).ravel()
        granules = np.union1d(granules, every[every < -(-size_bytes // GRANULE_BYTES)])
    if not len(granules):
        return np.empty(0, np.uint64), np.empty(0, np.uint64)
    bounds = np.flatnonzero(np.diff(granules) != 1) + 1
    firsts = granules[np.concatenate(([0], bounds))]
    lasts = granules[np.concatenate((bounds - 1, [len(granules) - 1]))]
    offsets = firsts * np.uint64(GRANULE_BYTES)
    ends = np.minimum((lasts + np.uint64(1)) * np.uint64(GRANULE_BYTES), np.uint64(size_bytes))
    return offsets, ends - offsets


def _resized_spans(size_bytes: int, base_bytes: int) -> U64:
    return np.arange(*_resized(size_bytes, base_bytes), dtype=np.uint64)


def _resized(size_bytes: int, base_bytes: int) -> tuple[int, int]:
    """The spans that a resize touched: the first, and the one after the last."""
    if size_bytes == base_bytes:
        return 0, 0
    last_of_smaller = max(0, spans_of(min(size_bytes, base_bytes)) - 1)
    return last_of_smaller, spans_of(size_bytes) if size_bytes > base_bytes else last_of_smaller + 1
