"""What changed in a map since a birth. Pure.

Owns: the answer that an incremental backup believes (promise TRACK).
Invariants:
  T1 the answer is a superset of what changed: every granule with a younger
     birth, tombstones included.
  T2 after a resize the last span of the smaller size counts as changed, and so
     does everything past the end of the base.
  T3 span indexes are sorted, without repeats, and inside the size.
The caller has made sure that the older state is an ancestor (lineage.py).
Callers: any thread, over frozen maps. Source: US 2016/0170666 [0047]-[0052].
"""

from __future__ import annotations

import numpy as np

from arraylift.sizes import GRANULE_BYTES, SPAN_BYTES, spans_of
from primary_array.block_map import PAGE_GRANULES, U64, MapView, without_repeats

GRANULES_PER_SPAN = SPAN_BYTES // GRANULE_BYTES


def changed_granules(view: MapView, since_birth: int) -> U64:
    """Return the granules of ``view`` born after ``since_birth``, ascending (T1)."""
    found = [
        np.flatnonzero(page.births > since_birth).astype(np.uint64) + np.uint64(number * PAGE_GRANULES)
        for number, page in enumerate(view.pages())
        if page is not None and page.newest_birth > since_birth
    ]
    return np.concatenate(found) if found else np.empty(0, np.uint64)


def changed_spans(view: MapView, since_birth: int, *, size_bytes: int, base_bytes: int) -> U64:
    """Return the indexes of the spans that may differ from a base of ``base_bytes`` (T1-T3)."""
    spans = without_repeats(changed_granules(view, since_birth) // np.uint64(GRANULES_PER_SPAN))
    return np.union1d(spans, _resized_spans(size_bytes, base_bytes))


def changed_ranges(view: MapView, since_birth: int, *, size_bytes: int, base_bytes: int) -> tuple[U64, U64]:
    """Return (offsets, lengths) in bytes: ascending, disjoint, cut at ``size_bytes`` (T1, T2)."""
    granules = changed_granules(view, since_birth)
    resized = _resized_spans(size_bytes, base_bytes) * np.uint64(GRANULES_PER_SPAN)
    if len(resized):
        every = (resized[:, None] + np.arange(GRANULES_PER_SPAN, dtype=np.uint64)).ravel()
        granules = np.union1d(granules, every[every < view.granule_count])
    if not len(granules):
        return np.empty(0, np.uint64), np.empty(0, np.uint64)
    bounds = np.flatnonzero(np.diff(granules) != 1) + 1
    firsts = granules[np.concatenate(([0], bounds))]
    lasts = granules[np.concatenate((bounds - 1, [len(granules) - 1]))]
    offsets = firsts * np.uint64(GRANULE_BYTES)
    ends = np.minimum((lasts + np.uint64(1)) * np.uint64(GRANULE_BYTES), np.uint64(size_bytes))
    return offsets, ends - offsets


def _resized_spans(size_bytes: int, base_bytes: int) -> U64:
    if size_bytes == base_bytes:
        return np.empty(0, np.uint64)
    last_of_smaller = max(0, spans_of(min(size_bytes, base_bytes)) - 1)
    last = spans_of(size_bytes) if size_bytes > base_bytes else last_of_smaller + 1
    return np.arange(last_of_smaller, last, dtype=np.uint64)
