"""A volume or a snapshot as a disk that NBD can serve.

Invariants:
  D1 what a client was promised by a flush is what the pool promises (pool A3): of all connections.
  D2 only a snapshot tells what changed: its answer stands still, and is a superset (changes T1).
Callers: connections of the NBD server, each from its own thread; made by exports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

import numpy as np

from arraylift.durable import Buffer
from arraylift.errors import NotPermitted, WrongState
from arraylift.ids import SnapshotId
from arraylift.nbd import wire
from arraylift.nbd.device import BASE_ALLOCATION
from arraylift.sizes import GRANULE_BYTES, KIB, MIB
from primary_array.block_map import U64
from primary_array.pool import Pool
from primary_array.pool_types import SnapshotInfo, SnapshotSource, Source, VolumeInfo, VolumeSource

CHANGED_PREFIX = "arraylift:changed:"
"""Followed by the id of an older snapshot: which ranges may differ from it."""
CHANGED_CONTEXTS_MAX = 64
"""The newest of the older snapshots, that a client is told of."""
CACHE_BYTES_MAX = 64 * MIB
"""A hint to read more is taken for this much."""

WRITE_BYTES = 128 * KIB
"""Written at once: less than goes past the page cache, where a guest, and the next backup, find it."""

_ZEROS = bytes(WRITE_BYTES)


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Changes:
    """Ascending ranges that may differ; the rest is the same."""

    offsets: U64
    lengths: U64

    def states(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield (length, state) over a range."""
        stop = offset + length
        ends = self.offsets + self.lengths
        index = int(np.searchsorted(ends, np.uint64(offset), side="right"))
        while offset < stop:
            start = int(self.offsets[index]) if index < len(ends) else stop
            if start > offset:
                end = min(start, stop)
                yield end - offset, 0
            else:
                end = min(int(ends[index]), stop)
                yield end - offset, wire.STATE_CHANGED
                index += 1
            offset = end


SharedChanges = WeakValueDictionary[tuple[SnapshotId, SnapshotId], Changes]
"""By (snapshot, older one): computed once while any connection asks."""


class PoolDevice:
    """Device over one source of one pool. ``closed`` is called once, by ``close``."""

    block_bytes = GRANULE_BYTES

    def __init__(
        self,
        pool: Pool,
        info: VolumeInfo | SnapshotInfo,
        *,
        read_only: bool,
        shared: SharedChanges,
        closed: Callable[[], None],
    ) -> None:
        self.size_bytes = info.size_bytes
        self._pool = pool
        self._shared = shared
        self._closed = closed
        self._snapshot: SnapshotInfo | None = None
        self._source: Source
        if isinstance(info, SnapshotInfo):
            self._snapshot, self._name = info, info.volume_name
            self._source = SnapshotSource(info.snapshot_id)
            self.description = f"snapshot {info.label or info.snapshot_id} of {info.volume_name}"
        else:
            self._name = info.name
            self._source = VolumeSource(info.name)
            self.description = f"volume {info.name}"
        self.read_only = read_only or self._snapshot is not None
        self._changes: dict[str, Changes] = {}  # of this connection's contexts

    # -- data -----------------------------------------------------------------------------------

    def read_into(self, offset: int, into: memoryview) -> None:
        self._pool.read_into(self._source, offset, into)

    def write(self, offset: int, data: Buffer) -> None:
        name, view = self._writable(), memoryview(data)
        at = 0
        while at < view.nbytes:
            count = WRITE_BYTES - (offset + at) % WRITE_BYTES
            self._pool.write(name, offset + at, view[at : at + count])
            at += count

    def trim(self, offset: int, length: int) -> None:
        self._pool.trim(self._writable(), offset, length)

    def write_zeroes(self, offset: int, length: int, *, allocate: bool) -> None:
        name = self._writable()
        if not allocate:
            self._pool.trim(name, offset, length)
            return
        stop = offset + length
        while offset < stop:
            count = min(WRITE_BYTES - offset % WRITE_BYTES, stop - offset)
            self._pool.write(name, offset, memoryview(_ZEROS)[:count])
            offset += count

    def flush(self) -> None:
        if self._snapshot is None:  # also for who only reads: others may write
            self._pool.flush(self._name)  # D1

    def cache(self, offset: int, length: int) -> None:
        into = memoryview(bytearray(min(length, MIB)))
        stop = offset + min(length, CACHE_BYTES_MAX)
        while offset < stop:
            count = min(len(into), stop - offset)
            self._pool.read_into(self._source, offset, into[:count])
            offset += count

    def _writable(self) -> str:
        if self.read_only:
            raise NotPermitted(f"{self.description} is exported read-only", subject=self._name)
        return self._name

    # -- block status ---------------------------------------------------------------------------

    def contexts(self) -> Sequence[str]:
        if self._snapshot is None:  # D2
            return [BASE_ALLOCATION]
        state = self._snapshot.state
        older = [
            one.snapshot_id
            for one in self._pool.snapshots(self._name)
            if one.state.lineage_id == state.lineage_id and one.state.birth < state.birth
        ]
        return [BASE_ALLOCATION, *(f"{CHANGED_PREFIX}{one}" for one in older[-CHANGED_CONTEXTS_MAX:])]

    def status(self, context: str, offset: int, length: int) -> Iterator[tuple[int, int]]:
        if context != BASE_ALLOCATION:
            yield from self._changes_of(context).states(offset, length)
            return
        for _, extent_bytes, is_hole in self._pool.extents(self._source, offset, length):
            yield extent_bytes, wire.STATE_HOLE | wire.STATE_ZERO if is_hole else 0

    def _changes_of(self, context: str) -> Changes:
        """Raises NotFound, WrongState, where the older snapshot cannot vouch any more."""
        assert self._snapshot is not None
        if self._pool.get_snapshot(self._snapshot.snapshot_id).state != self._snapshot.state:
            raise WrongState(  # what was computed before is not believed either
                f"the changes of volume {self._name} are not believed any more", subject=self._name
            )
        if context not in self._changes:
            older = SnapshotId(context.removeprefix(CHANGED_PREFIX))
            key = self._snapshot.snapshot_id, older
            found = self._shared.get(key)
            if found is None:
                found = self._shared[key] = self._compute(older)
            self._changes[context] = found
        return self._changes[context]

    def _compute(self, older: SnapshotId) -> Changes:
        assert self._snapshot is not None
        since = self._pool.get_snapshot(older)
        ranges = self._pool.changed_ranges(
            self._snapshot.snapshot_id, since.state, base_bytes=since.size_bytes
        )
        if ranges is None:
            raise WrongState(f"snapshot {older} is no ancestor", subject=f"snapshot {older}")
        return Changes(*ranges)

    # -- end ------------------------------------------------------------------------------------

    def close(self) -> None:
        self._closed()
