"""Who may say what changed since the base at the target: births, a diff of two snapshots, or the caller.

Invariants:
  S1 the base is what the target says it is; each source vouches only for that very state.
  S2 a source that cannot vouch gives None, and everything is read: never a guess.
  S3 what the caller supplies counts only inside one lineage: whoever watched a disk from outside did not
     see the array set it back, clone it, cut it or replace it. Nor did he see what came by another way (an
     operator, another host): what was born since counts as changed as well.
Callers: send, one thread a transfer. Source: US 2016/0170666 [0047]-[0052].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from arraylift.errors import InvalidRequest
from arraylift.exchange.messages import Base
from arraylift.ids import SnapshotId, SourceState
from arraylift.sizes import SPAN_BYTES
from primary_array.block_map import U64
from primary_array.change_types import Changed, ChangeSource
from primary_array.pool import Pool
from primary_array.pool_types import SnapshotInfo

SUPPLIED_RANGES_MAX = 1 << 16
"""Ranges of one request: 1 MiB of it."""


@dataclass(frozen=True, slots=True)
class Supplied:
    """What the caller saw change since the state ``since``: (offsets, lengths) in bytes, ascending."""

    since: SourceState
    offsets: U64
    lengths: U64

    def __post_init__(self) -> None:
        if len(self.offsets) != len(self.lengths) or len(self.offsets) > SUPPLIED_RANGES_MAX:
            raise InvalidRequest(f"supply at most {SUPPLIED_RANGES_MAX} ranges, as many offsets as lengths")
        starts, ends = self.offsets, self.offsets + self.lengths
        if np.any(ends <= starts) or np.any(starts[1:] < ends[:-1]):
            raise InvalidRequest("supplied ranges ascend, do not overlap, and are not empty")


@dataclass(frozen=True, slots=True)
class ChangeRequest:
    """The source asked for, with what it needs."""

    source: ChangeSource = ChangeSource.ANY
    diff_base: SnapshotId | None = None
    supplied: Supplied | None = None

    def __post_init__(self) -> None:
        if (self.source is ChangeSource.DIFF) != (self.diff_base is not None):
            raise InvalidRequest("a diff, and nothing else, names the older snapshot")
        if (self.source is ChangeSource.SUPPLIED) != (self.supplied is not None):
            raise InvalidRequest("supplied changes come with that change source, and with no other")


def changed_since(pool: Pool, info: SnapshotInfo, base: Base, request: ChangeRequest) -> Changed | None:
    """Return what changed since ``base``, or None (S2). Raises InvalidRequest (supplied past the end)."""
    spans: U64 | None = None
    source = request.source
    if source in {ChangeSource.ANY, ChangeSource.BIRTHS}:
        spans, source = _births(pool, info, base), ChangeSource.BIRTHS
    elif source is ChangeSource.DIFF and base.state is not None:
        assert request.diff_base is not None
        spans = pool.diff_spans(info.snapshot_id, request.diff_base, base.state, base_bytes=base.image_bytes)
    elif source is ChangeSource.SUPPLIED:
        assert request.supplied is not None
        spans = _supplied(pool, info, base, request.supplied)
    return None if spans is None else Changed(spans, source)


def _births(pool: Pool, info: SnapshotInfo, base: Base) -> U64 | None:
    # The state that the base was taken from, or the image that this volume was restored from: where both
    # vouch, only what both call changed can be.
    told: U64 | None = None
    for since in (base.state, base.root):
        if since is not None:
            spans = pool.changed_spans(info.snapshot_id, since, base_bytes=base.image_bytes)
            if spans is not None:
                told = spans if told is None else np.intersect1d(told, spans)
    return told


def _supplied(pool: Pool, info: SnapshotInfo, base: Base, supplied: Supplied) -> U64 | None:
    state = base.state
    ends = supplied.offsets + supplied.lengths
    if len(ends) and int(ends[-1]) > info.size_bytes:
        raise InvalidRequest(f"supplied changes reach past the end, {info.size_bytes} bytes")
    if state is None or state != supplied.since:  # S1
        return None
    same_line = (state.pool_id, state.lineage_id) == (info.state.pool_id, info.state.lineage_id)
    if not same_line or state.birth > info.state.birth:  # S3
        return None
    marks = np.zeros(-(-info.size_bytes // SPAN_BYTES) + 1, np.int64)
    np.add.at(marks, (supplied.offsets // np.uint64(SPAN_BYTES)).astype(np.int64), 1)
    np.add.at(marks, ((ends - np.uint64(1)) // np.uint64(SPAN_BYTES)).astype(np.int64) + 1, -1)
    touched = np.flatnonzero(np.cumsum(marks[:-1])).astype(np.uint64)
    born = pool.changed_spans(info.snapshot_id, state, base_bytes=base.image_bytes)
    return None if born is None else np.union1d(touched, born)
