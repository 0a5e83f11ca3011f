"""A volume or a snapshot as a disk that NBD can serve.

Invariants:
  D1 what a client was promised by a flush is what the pool promises (pool A3): of all connections.
  D2 only a snapshot tells what changed: its answer stands still, and is a superset (changes T1).
Callers: connections of the NBD server, each from its own thread; made by exports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from arraylift.durable import Buffer
from arraylift.errors import NotPermitted, WrongState
from arraylift.ids import SnapshotId
from arraylift.nbd import wire
from arraylift.nbd.device import BASE_ALLOCATION
from arraylift.sizes import GRANULE_BYTES, KIB, MIB
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

STATUS_GRANULES = 4096
"""Looked at together to tell changes: 256 MiB of a volume."""

_ZEROS = bytes(WRITE_BYTES)


class PoolDevice:
    """Device over one source of one pool. ``closed`` is called once, by ``close``."""

    block_bytes = GRANULE_BYTES

    def __init__(
        self,
        pool: Pool,
        info: VolumeInfo | SnapshotInfo,
        *,
        read_only: bool,
        closed: Callable[[], None],
    ) -> None:
        self.size_bytes = info.size_bytes
        self._pool = pool
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
        self._older: dict[str, SnapshotInfo] = {}  # of this connection's contexts

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
            yield from self._changes(context, offset, offset + length)
            return
        for _, extent_bytes, is_hole in self._pool.extents(self._source, offset, length):
            yield extent_bytes, wire.STATE_HOLE | wire.STATE_ZERO if is_hole else 0

    def _changes(self, context: str, offset: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield (length, state). Raises NotFound, WrongState, where the older snapshot cannot vouch."""
        start, state = offset, 0
        while offset < stop:
            first = offset // GRANULE_BYTES
            count = min(STATUS_GRANULES, -(-stop // GRANULE_BYTES) - first)
            flags = self._changed_flags(context, first, count)
            for index in [0, *(np.flatnonzero(flags[1:] != flags[:-1]) + 1).tolist()]:
                at = max(offset, (first + index) * GRANULE_BYTES)
                if bool(flags[index]) * wire.STATE_CHANGED != state:
                    if at > start:
                        yield at - start, state
                    start, state = at, bool(flags[index]) * wire.STATE_CHANGED
            offset = (first + count) * GRANULE_BYTES
        yield stop - start, state

    def _changed_flags(self, context: str, first: int, count: int) -> npt.NDArray[np.bool_]:
        """Asked anew each time: what vouches may be distrusted meanwhile."""
        assert self._snapshot is not None
        if context not in self._older:
            self._older[context] = self._pool.get_snapshot(SnapshotId(context.removeprefix(CHANGED_PREFIX)))
        older = self._older[context]
        flags = self._pool.changed_flags(
            self._snapshot.snapshot_id, older.state, first, count, base_bytes=older.size_bytes
        )
        if flags is None:
            raise WrongState(
                f"snapshot {older.snapshot_id} is no ancestor that is believed",
                subject=f"snapshot {older.snapshot_id}",
            )
        return flags

    # -- end ------------------------------------------------------------------------------------

    def close(self) -> None:
        self._closed()
