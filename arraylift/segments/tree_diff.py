"""Compare two trees without reading what they share ([0056]).

Invariants:
  D1 what is not reported is equal in both images: equal fingerprints at equal places mean
     equal bytes, however either image was cut. What is reported may be equal.
  D2 a node is read only if its counterpart in the other tree is another one.
Memory: three chunks of 65,536 places, and what the views keep. Callers: any thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from arraylift.segments.tree import FAN_OUT, Leaf, width_of
from arraylift.segments.tree_view import FETCH_NODES_MAX, Places, TreeView

Range = tuple[int, int]
"""Start and end in bytes."""


def differing_spans(one: TreeView, other: TreeView) -> Iterator[Places]:
    """Yield, ascending and in pieces, the spans that both images have and whose leaves differ."""
    spans, level = min(one.spans, other.spans), min(one.height, other.height)
    if (one.row(level, 0) != other.row(level, 0)).any():
        yield from _walk(one, other, spans, level, np.zeros(1, dtype=np.int64))


def _walk(one: TreeView, other: TreeView, spans: int, level: int, nodes: Places) -> Iterator[Places]:
    if level == 0:
        yield nodes
        return
    for start in range(0, len(nodes), FETCH_NODES_MAX):
        chunk = nodes[start : start + FETCH_NODES_MAX]
        below = (chunk[:, None] * FAN_OUT + np.arange(FAN_OUT)).ravel()
        below = below[below < width_of(spans, level - 1)]
        rows = one.rows_below(level, chunk)[below], other.rows_below(level, chunk)[below]
        differing = below[(rows[0] != rows[1]).any(axis=1)]
        if len(differing):
            yield from _walk(one, other, spans, level - 1, differing)


def differing_ranges(one: Leaf | None, other: Leaf | None, span_bytes: int) -> list[Range]:
    """Ranges within a span's first ``span_bytes`` that no segment, at one place in both leaves, covers.

    None is a hole. Whole segments of ``other``, joined where they touch; the span where either is a hole.
    """
    if one is None or other is None:
        return [] if one is other else [(0, span_bytes)]
    starts, ends = _edges(one)
    other_starts, other_ends = _edges(other)
    _, mine, theirs = np.intersect1d(starts, other_starts, assume_unique=True, return_indices=True)
    equal = (ends[mine] == other_ends[theirs]) & (_prints(one)[mine] == _prints(other)[theirs]).all(axis=1)
    differs = np.ones(len(other_starts), dtype=np.bool_)
    differs[theirs[equal]] = False
    clipped = np.minimum(other_ends[differs], span_bytes).tolist()
    found = zip(other_starts[differs].tolist(), clipped, strict=True)
    return list(joined((start, end) for start, end in found if end > start))


def joined(ranges: Iterable[Range]) -> Iterator[Range]:
    """Join neighbours among ascending ranges."""
    last: Range | None = None
    for start, end in ranges:
        if last is not None and last[1] == start:
            last = last[0], end
            continue
        if last is not None:
            yield last
        last = start, end
    if last is not None:
        yield last


def _edges(leaf: Leaf) -> tuple[Places, Places]:
    ends = np.cumsum(leaf.lengths, dtype=np.int64)
    return ends - leaf.lengths, ends


def _prints(leaf: Leaf) -> np.ndarray:
    return np.frombuffer(leaf.fingerprints, dtype=np.uint8).reshape(-1, 32)
