"""What the backup logic sends: one state of one disk, wherever it lies.

Owns: the contract between a transfer and its source: a snapshot of the pool (``snapshot_disk``) or the NBD
export of a foreign storage system (``foreign_disk``).
Invariants:
  D1 while a SentDisk is open its bytes and its size do not change.
  D2 a granule without a place reads as zeros; every other one is read, or the transfer fails.
Callers: send (the transfer's thread) opens and plans; worker processes read through ``reader``.
Source: US 2016/0170666 [0039], [0043], [0044].
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import Protocol

from arraylift.exchange.messages import Base
from arraylift.ids import SourceState
from primary_array.change_types import Changed
from primary_array.send_plan import Slots


class GranuleReader(Protocol):
    """An open source in a worker process. One thread."""

    def read_ahead(self, places: Slots) -> None:
        """These granules are read soon: a hint."""
        ...

    def read(self, places: Slots, buffer: memoryview) -> int:
        """Put each granule that has a place where it belongs in ``buffer``, and return the bytes read.

        What lies in the buffer past the end of the disk means nothing. Raises Corruption, PeerUnavailable,
        Cancelled; then the buffer means nothing.
        """
        ...

    def close(self) -> None: ...


class DiskReader(Protocol):
    """How a worker process comes to the bytes. Pickled: values only."""

    def open(self, cancelled: threading.Event) -> GranuleReader: ...


class SentDisk(Protocol):
    """An open source (D1)."""

    @property
    def label(self) -> str:
        """For errors and logs, e.g. ``"snapshot 12ab"``."""
        ...

    @property
    def size_bytes(self) -> int: ...
    @property
    def state(self) -> SourceState: ...
    @property
    def reader(self) -> DiskReader: ...
    @property
    def readers_max(self) -> int:
        """Workers that may have it open at once."""
        ...

    @property
    def base_demanded(self) -> bool:
        """Rather fail than read everything for want of a base."""
        ...

    def begin_attempt(self) -> None:
        """Called before each attempt. Raises what keeps the source from being read now."""
        ...

    def places(self, first_granule: int, count: int) -> Slots:
        """Where each granule is, in the reader's own numbers; 0: nowhere, it is zero (D2)."""
        ...

    def changed_since(self, base: Base) -> Changed | None:
        """Spans that may differ from ``base``, or None where nobody can tell."""
        ...

    def distrust(self) -> None:
        """A sampled span differs from the base although nobody said so; durable when this returns."""
        ...


class DiskSource(Protocol):
    """Opens one disk for one transfer."""

    @property
    def label(self) -> str:
        """As that of the disk."""
        ...

    def open(self, cancelled: threading.Event) -> AbstractContextManager[SentDisk]:
        """Raises NotFound, PeerUnavailable, and what a source of that kind can meet."""
        ...
