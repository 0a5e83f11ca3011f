"""Walk the trees of one unit, each node and segment once, and say what was met.

A node whose bit is set was walked with all that is below it, so nothing is read twice, however
many images share it.
Invariants:
  W1 a node that cannot be found or read ends the walk with its error: what is below it is
     unknown, so nobody may draw conclusions.
  W2 a segment that is nowhere is noted in ``lost``: an image that lacks it is damaged, which
     says nothing of the others.
Nodes in containers newer than the snapshot are walked and remembered by fingerprint.
Limits: NODES_AT_ONCE nodes read and LOOK_UPS_AT_ONCE looked up at a time; 8 MiB of names wait;
LOST_MAX lost segments, and as many new nodes. Callers: one thread, under the unit's maintenance.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from arraylift.errors import Corruption
from arraylift.ids import FINGERPRINT_BYTES, Fingerprint, TenantId
from arraylift.segments.fingerprint import ZERO_FINGERPRINT, FingerprintKey
from arraylift.segments.tree import Leaves, names_in
from dedup_target.segment_index import Entries
from dedup_target.segment_reader import SegmentReader
from dedup_target.slots import Bits, Flags, Places, Rows, Slots
from dedup_target.storage_unit import StorageUnit

NODES_AT_ONCE = 256
LOOK_UPS_AT_ONCE = 4096
LOST_MAX = 1 << 18

Met = Callable[[Rows, Entries, Places], None]
"""Called with records of the snapshot that are met for the first time: their containers' rows,
entries and places, each of shape (n,)."""


class TreeWalk:
    """One walk; ``seen`` has the bits of what was walked."""

    def __init__(
        self,
        unit: StorageUnit,
        slots: Slots,
        seen: Bits,
        met: Met,
        *,
        between: Callable[[], None] = lambda: None,
    ) -> None:
        """``between`` is called between batches; what it raises ends the walk."""
        self._unit = unit
        self._reader = SegmentReader(unit)
        self._slots = slots
        self._seen = seen
        self._met = met
        self._between = between
        self._keys: dict[TenantId, FingerprintKey] = {}
        self._newer: set[bytes] = set()
        self.lost: set[tuple[TenantId, bytes]] = set()
        """Segments that are named and nowhere (W2)."""

    def trees(self, tenant: TenantId, fingerprints: bytes, what: str) -> None:
        """Walk everything below nodes (32 n bytes). ``what`` names them in errors. Raises Corruption (W1)."""
        waiting = [_rows(fingerprints)]
        while waiting:
            names = waiting.pop()
            if len(names) > NODES_AT_ONCE:
                waiting.append(names[NODES_AT_ONCE:])
            below = self._nodes(tenant, names[:NODES_AT_ONCE], what)
            if len(below):
                waiting.append(below)

    def segments(self, tenant: TenantId, fingerprints: bytes) -> None:
        """Meet segments (32 n bytes)."""
        names = _rows(fingerprints)
        for start in range(0, len(names), LOOK_UPS_AT_ONCE):
            chunk = names[start : start + LOOK_UPS_AT_ONCE]
            entries = self._unit.index.find_many(tenant, chunk.tobytes())
            absent = np.flatnonzero(entries["container"] == 0)
            if len(absent):
                self._lose(tenant, chunk[absent])
            self._meet(entries)
            self._between()

    def _nodes(self, tenant: TenantId, names: Leaves, what: str) -> Leaves:
        """Meet nodes and the segments right below them; returns the names of nodes below."""
        self._between()
        entries = self._unit.index.find_many(tenant, names.tobytes())
        absent = np.flatnonzero(entries["container"] == 0)
        if len(absent):
            raise self._unreadable(what, f"node {names[absent[0]].tobytes().hex()[:16]} is nowhere")
        chosen = np.flatnonzero(self._meet(entries, names))
        forward = chosen[np.lexsort((entries["offset"][chosen], entries["container"][chosen]))]
        wanted = [Fingerprint(names[place].tobytes()) for place in forward]
        try:
            found = [names_in(node) for node in self._reader.nodes(tenant, self._key(tenant), wanted)]
        except Corruption as error:
            raise self._unreadable(what, error.message) from error
        self.segments(tenant, b"".join(packed for are_segments, packed in found if are_segments))
        return _rows(b"".join(packed for are_segments, packed in found if not are_segments))

    def _meet(self, entries: Entries, nodes: Leaves | None = None) -> Flags:
        """Set bits and tell; returns which are fresh, newer nodes included."""
        rows = self._slots.rows_of(entries)
        fresh = np.zeros(len(entries), dtype=np.bool_)
        known = np.flatnonzero(rows >= 0)
        places = self._slots.places_of(entries[known], rows[known])
        new = self._seen.fresh(places)
        fresh[known[new]] = True
        if new.any():
            self._met(rows[known[new]], entries[known[new]], places[new])
        if nodes is not None:
            for place in np.flatnonzero((rows < 0) & (entries["container"] != 0)).tolist():
                name = nodes[place].tobytes()
                fresh[place] = name not in self._newer
                self._newer.add(name)
            if len(self._newer) > LOST_MAX:
                raise self._unreadable("the walk", f"more than {LOST_MAX} nodes are newer than it")
        return fresh

    def _lose(self, tenant: TenantId, names: Leaves) -> None:
        self.lost.update((tenant, name.tobytes()) for name in names)
        if len(self.lost) > LOST_MAX:
            raise self._unreadable("the unit", f"more than {LOST_MAX} segments are lost")

    def _key(self, tenant: TenantId) -> FingerprintKey:
        if tenant not in self._keys:
            self._keys[tenant] = self._unit.fingerprint_key(tenant)
        return self._keys[tenant]

    def _unreadable(self, what: str, why: str) -> Corruption:
        return Corruption(
            f"{what} cannot be walked: {why}",
            subject=what,
            next_step="run 'arraylift target scrub'; back the same data up again, or delete what is damaged",
        )


def _rows(packed: bytes) -> Leaves:
    rows = np.frombuffer(packed, dtype=np.uint8).reshape(-1, FINGERPRINT_BYTES)
    assert not packed or packed[:FINGERPRINT_BYTES] != ZERO_FINGERPRINT, "a hole has no name"
    return rows
