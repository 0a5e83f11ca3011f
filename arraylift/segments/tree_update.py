"""Build a tree on another one: only nodes above what changed are encoded ([0048], [0056]).

Invariants:
  P1 the root is that of a build from all leaves (T1), whatever changed, in size or content.
  P2 work follows the change: a node is read and encoded only if a span below it changed, or
     if it is the last of its level and the number of its children changed.
Callers: any thread. Format: docs/formats/segment-tree-v1.md
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from arraylift.ids import Fingerprint
from arraylift.segments.fingerprint import ZERO_FINGERPRINT, FingerprintKey
from arraylift.segments.tree import (
    FAN_OUT,
    Leaves,
    Root,
    encode_inner,
    encode_root,
    height_of,
    no_leaves,
    width_of,
)
from arraylift.segments.tree_view import Places, TreeView
from arraylift.sizes import spans_of


def update(
    base: TreeView, *, image_bytes: int, changed: Places, leaves: Leaves, key: FingerprintKey
) -> Iterator[tuple[Fingerprint, bytes]]:
    """Yield (fingerprint, encoded node) of the nodes that the base may not have, children first, the
    root last: the tree of ``image_bytes`` whose spans ``changed`` (ascending, once each) have
    ``leaves``, shape (n, 32), and whose other spans are the base's, or holes beyond its end.

    REQUIRES: if the sizes differ, the last span of the smaller one is in ``changed``.
    """
    spans = spans_of(image_bytes)
    shared = min(spans, base.spans)
    assert image_bytes == base.info.image_bytes or (shared - 1) in changed, "a leaf knows its length"
    old = no_leaves(len(changed))
    inside = changed < base.spans
    old[inside] = base.leaves_at(changed[inside])
    differs = (old != leaves).any(axis=1)
    places, rows = changed[differs], leaves[differs]
    height = height_of(spans)
    for level in range(1, height + 1):
        nodes = _touched(base, spans, level, places)
        made = []
        for node in nodes.tolist():
            first, last = np.searchsorted(places, (node * FAN_OUT, (node + 1) * FAN_OUT))
            children = _children(base, spans, level, node)
            children[places[first:last] - node * FAN_OUT] = rows[first:last]
            encoded = encode_inner(children)
            fingerprint = key.node(encoded) if encoded else ZERO_FINGERPRINT
            if encoded:
                yield fingerprint, encoded
            made.append(fingerprint)
        places, rows = nodes, np.frombuffer(b"".join(made), dtype=np.uint8).reshape(-1, len(ZERO_FINGERPRINT))
    top = rows[0] if len(places) else base.row(height, 0)
    root = encode_root(Root(image_bytes, base.info.segmentation, height, Fingerprint(top.tobytes())))
    yield key.node(root), root


def _touched(base: TreeView, spans: int, level: int, below: Places) -> Places:
    """Nodes of a level that are not the base's: above a change, at the seam of two sizes, or new on top."""
    more = []
    if level <= base.height:
        old, new = width_of(base.spans, level - 1), width_of(spans, level - 1)
        seam = (min(old, new) - 1) // FAN_OUT
        if _child_count(old, seam) != _child_count(new, seam):
            more.append(seam)
    elif level == base.height + 1:
        more.append(0)
    return np.unique(np.concatenate((below // FAN_OUT, np.array(more, dtype=np.int64))))


def _child_count(width_below: int, node: int) -> int:
    return min(FAN_OUT, width_below - node * FAN_OUT)


def _children(base: TreeView, spans: int, level: int, node: int) -> Leaves:
    """A copy of the base's children of a node, cut or extended with holes to the new count."""
    children = no_leaves(_child_count(width_of(spans, level - 1), node))
    known = None
    if level <= base.height and node < width_of(base.spans, level):
        known = base.children(level, node)
    elif level == base.height + 1 and node == 0:
        known = base.row(base.height, 0).reshape(1, -1)
    if known is not None:
        count = min(len(known), len(children))
        children[:count] = known[:count]
    return children
