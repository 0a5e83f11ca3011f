"""A tree, read as far as somebody needed it: inner nodes once each, holes not at all.

Invariants:
  W1 a row is used only after the node that names it was read: ``known`` is set after the
     rows are there, so that threads may read one view at once without a lock. Two that
     read the same node write the same rows.
  W2 nothing is read that is not on the path to what was asked for.
Memory: 32 bytes a span, taken from the system only where nodes were read.
Callers: any thread. Format: docs/formats/segment-tree-v1.md
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from arraylift.ids import Fingerprint
from arraylift.segments.tree import (
    FAN_OUT,
    Fetch,
    Leaves,
    Root,
    decode_inner,
    decode_root,
    holes_of,
    no_leaves,
    width_of,
)
from arraylift.sizes import spans_of

FETCH_NODES_MAX = 256
"""Nodes asked for at once: 2 MiB of encodings."""

Places = npt.NDArray[np.int64]
"""Ascending indexes of spans, or of nodes on one level."""


class TreeView:
    """One tree. Level 0 is the leaves, level ``height`` the one node under the root."""

    def __init__(self, root: Fingerprint, fetch: Fetch) -> None:
        """Read the root node. Raises what ``fetch`` raises, and Corruption (T3)."""
        (node,) = fetch([root])
        self.root = root
        self.info: Root = decode_root(node)
        self.spans = spans_of(self.info.image_bytes)
        self._fetch = fetch
        self._rows = [no_leaves(width_of(self.spans, level)) for level in range(self.height + 1)]
        self._known = [np.zeros(len(rows), dtype=np.bool_) for rows in self._rows]
        self._rows[-1][0] = np.frombuffer(self.info.top, dtype=np.uint8)

    @property
    def height(self) -> int:
        return self.info.height

    @property
    def leaves(self) -> Leaves:
        """Fingerprints of all leaves, shape (spans, 32); reads the tree whole."""
        self.load(0, self.spans)
        return self._rows[0]

    def leaves_of(self, first: int, end: int) -> Leaves:
        """Fingerprints of the leaves of spans first .. end - 1."""
        self.load(first, end)
        return self._rows[0][first:end]

    def leaves_at(self, spans: Places) -> Leaves:
        """Fingerprints of the leaves of these spans."""
        for level in range(self.height, 0, -1):
            self.read_nodes(level, np.unique(spans // FAN_OUT**level))
        leaves: Leaves = self._rows[0][spans]
        return leaves

    def load(self, first: int, end: int) -> None:
        """Read every node above spans first .. end - 1."""
        for level in range(self.height, 0, -1):
            self.read_nodes(level, np.arange(first // FAN_OUT**level, width_of(end, level)))

    def row(self, level: int, place: int) -> Leaves:
        """Fingerprint of one node, shape (32,)."""
        for above in range(self.height, level, -1):
            self.read_nodes(above, np.array([place // FAN_OUT ** (above - level)]))
        row: Leaves = self._rows[level][place]
        return row

    def rows_below(self, level: int, nodes: Places) -> Leaves:
        """Rows on level - 1, of which those below ``nodes`` are known."""
        self.read_nodes(level, nodes)
        return self._rows[level - 1]

    def children(self, level: int, node: int) -> Leaves:
        """Fingerprints below one node, shape (up to 256, 32)."""
        self.row(level, node)
        self.read_nodes(level, np.array([node]))
        return self._rows[level - 1][node * FAN_OUT : (node + 1) * FAN_OUT]

    def read_nodes(self, level: int, nodes: Places) -> None:
        """Read what is not known of these nodes. REQUIRES their own rows known (W1)."""
        known, own, below = self._known[level], self._rows[level], self._rows[level - 1]
        nodes = nodes[~known[nodes]]
        if not len(nodes):
            return
        hole = holes_of(own[nodes])
        solid = nodes[~hole]
        for start in range(0, len(solid), FETCH_NODES_MAX):
            chunk = solid[start : start + FETCH_NODES_MAX].tolist()
            encoded = self._fetch([Fingerprint(own[node].tobytes()) for node in chunk])
            for node, data in zip(chunk, encoded, strict=True):
                first = node * FAN_OUT
                count = min(FAN_OUT, len(below) - first)
                below[first : first + count] = decode_inner(data, count)
        known[nodes] = True
