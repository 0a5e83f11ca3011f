"""What a target keeps free, so that deletion, collection and restore go on when the disk is full (law 17).

Two lines below the free space of the file system that holds the state directory, and a file:
below ``low_water_bytes`` no transfer begins; below half of that none goes on; and where even
that is used up, ``with_room`` gives the ballast up for work that frees space or records damage.
Invariants:
  W1 the ballast is given up only for work in ``with_room``, and only after the disk refused it.
  W2 it is laid again when free space is above the low-water mark without it.
Callers: any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from arraylift.ballast import Ballast
from arraylift.durable import Files
from arraylift.errors import OutOfSpace
from arraylift.logs import get_logger
from arraylift.sizes import GIB, MIB, human

LOW_WATER_SHARE = 16
"""The mark is this part of the file system,"""
LOW_WATER_BYTES_MIN, LOW_WATER_BYTES_MAX = 8 * MIB, 4 * GIB
"""within these bounds; on a very small one a quarter of it."""
BALLAST_BYTES_MAX = 192 * MIB
"""What the index may need to open again after a full disk, and a container in the making."""
BALLAST_AT_START_BYTES_MAX = 16 * MIB
"""A larger one is laid in the background, not while a start waits."""

T = TypeVar("T")

_log = get_logger("reserve")


class Reserve:
    """The reserve of one target."""

    def __init__(self, files: Files, state_path: str, *, low_water_bytes: int = 0) -> None:
        """``low_water_bytes``: 0 for a share of the file system."""
        self._files = files
        self._path = state_path
        self._configured = low_water_bytes
        self._lock = threading.Lock()
        self._ballast = Ballast(files, f"{state_path}/ballast", label="ballast")
        self._below = False

    # -- the marks ------------------------------------------------------------------------------

    @property
    def low_water_bytes(self) -> int:
        """Below this much free space no transfer begins. Follows a file system that is resized."""
        if self._configured:
            return self._configured
        whole = self._files.total_bytes(self._path)
        scaled = min(LOW_WATER_BYTES_MAX, max(LOW_WATER_BYTES_MIN, whole // LOW_WATER_SHARE))
        return min(scaled, whole // 4)

    @property
    def ballast_bytes(self) -> int:
        return min(BALLAST_BYTES_MAX, self.low_water_bytes // 2)

    def is_low(self) -> bool:
        """Whether new transfers are refused now."""
        return self._files.free_bytes(self._path) < self.low_water_bytes

    def check_begin(self) -> None:
        """Raise OutOfSpace below the low-water mark: for what begins to write."""
        self._check(self.low_water_bytes, 0)

    def check_more(self, more_bytes: int) -> None:
        """Raise OutOfSpace if writing so much would leave less than half of the mark: for what
        has begun."""
        self._check(self.low_water_bytes // 2, more_bytes)

    def _check(self, kept: int, more: int) -> None:
        free = self._files.free_bytes(self._path)
        if free - more < kept:
            raise OutOfSpace(
                f"the target has {human(free)} free and keeps {human(kept)} for deletion and restore",
                subject=self._path,
                next_step="delete backups and collect garbage, or enlarge the file system; then repeat",
                free_bytes=free,
                reserve_bytes=kept,
            )

    # -- the ballast ----------------------------------------------------------------------------

    def with_room(self, work: Callable[[], T]) -> T:
        """Do work that may be repeated and that a full disk must not stop; give the ballast up
        for it if need be (W1). Raises OutOfSpace if that does not help."""
        try:
            return work()
        except OutOfSpace:
            with self._lock:
                if not self._ballast.give_up():
                    raise
            _log.error("ballast_given_up", free_bytes=self._files.free_bytes(self._path))
        return work()

    def tend(self, *, size_bytes_max: int = BALLAST_BYTES_MAX) -> None:
        """Lay the ballast if it is gone and there is room (W2); tell when the mark is passed."""
        with self._lock:
            size = self.ballast_bytes
            room = self._files.free_bytes(self._path) - size
            wanted = size <= size_bytes_max and room >= self.low_water_bytes and not self._ballast.laid
            if wanted and self._ballast.lay(size):
                _log.info("ballast_laid", bytes=size)
            low = self.is_low()
            if low and not self._below:
                _log.error("space_low", free_bytes=room + size, reserve_bytes=self.low_water_bytes)
            elif self._below and not low:
                _log.info("space_regained", free_bytes=room + size)
            self._below = low
