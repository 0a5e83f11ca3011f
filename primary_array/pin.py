"""A pinned snapshot: what the workers of a transfer read.

Invariants: N1 while a pin is held the snapshot is not deleted, so none of its slots is
reused and its map never changes. N2 slots that a pin gave out stay valid until its release.
Callers: any thread; ``slots`` takes no lock.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from primary_array.block_map import U64, FrozenMap
from primary_array.pool_types import SnapshotInfo


class Pin:
    """Context manager; released once, at the latest when the block ends."""

    def __init__(
        self, info: SnapshotInfo, frozen: FrozenMap, *, data_path: str, release: Callable[[], None]
    ) -> None:
        self.info = info
        self.data_path = data_path
        """The file that holds slot n at n * GRANULE_BYTES; to be opened read-only."""
        self.granule_count = frozen.granule_count
        self._frozen = frozen
        self._release: Callable[[], None] | None = release

    def slots(self, first_granule: int, count: int) -> U64:
        """Return the slots of ``count`` granules; 0 is a hole. Past the end: AssertionError."""
        assert self._release is not None, "the pin was released"
        slots, _ = self._frozen.lookup(first_granule, count)
        return slots

    def release(self) -> None:
        """Let the snapshot go; twice is fine."""
        release, self._release = self._release, None
        if release is not None:
            release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
