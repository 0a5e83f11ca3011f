"""A snapshot of the pool as what is sent.

Invariants: K1 the snapshot stays pinned from the first read to the receipt.
Callers: send, the transfer's thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from arraylift.exchange.messages import Base
from arraylift.ids import SnapshotId, SourceState
from primary_array.change_sources import ChangeRequest, changed_since
from primary_array.change_types import Changed, ChangeSource
from primary_array.pin import Pin
from primary_array.pool import Pool
from primary_array.pool_reader import PoolFile
from primary_array.send_plan import Slots

READERS_MAX = 16


class SnapshotSource:
    """A DiskSource of one snapshot."""

    def __init__(self, pool: Pool, snapshot_id: SnapshotId, changes: ChangeRequest) -> None:
        self._pool = pool
        self._snapshot_id = snapshot_id
        self._changes = changes
        self.label = f"snapshot {snapshot_id}"

    @contextmanager
    def open(self, cancelled: threading.Event) -> Iterator[SnapshotDisk]:  # noqa: ARG002 - never waits
        """Pin it (K1). Raises NotFound, WrongState (it is being deleted)."""
        with self._pool.pin(self._snapshot_id) as pin:
            yield SnapshotDisk(self._pool, pin, self._changes)


class SnapshotDisk:
    """A SentDisk."""

    readers_max = READERS_MAX

    def __init__(self, pool: Pool, pin: Pin, changes: ChangeRequest) -> None:
        self._pool = pool
        self._pin = pin
        self._changes = changes
        self.label = f"snapshot {pin.info.snapshot_id}"
        self.size_bytes = pin.info.size_bytes
        self.state: SourceState = pin.info.state
        self.reader = PoolFile(pin.data_path)
        self.base_demanded = changes.source is ChangeSource.BIRTHS

    def begin_attempt(self) -> None:
        """It is pinned, and always there."""

    def places(self, first_granule: int, count: int) -> Slots:
        return self._pin.slots(first_granule, count)

    def changed_since(self, base: Base) -> Changed | None:
        return changed_since(self._pool, self._pin.info, base, self._changes)

    def distrust(self) -> None:
        self._pool.distrust(self._pin.info.volume_name)
