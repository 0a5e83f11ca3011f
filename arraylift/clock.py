"""The only home of time. Leases and deadlines use ``monotonic``; stamps use ``wall_ns``."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Injected where time decides anything, so that tests can turn it."""

    def monotonic(self) -> float:
        """Seconds that never jump; comparable only within this process."""
        ...

    def wall_ns(self) -> int:
        """UTC nanoseconds since 1970; may jump, so it never decides a deletion."""
        ...


class SystemClock:
    """The machine's clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall_ns(self) -> int:
        return time.time_ns()


def utc_text(nanoseconds: int) -> str:
    """UTC nanoseconds as people write a time."""
    try:
        return datetime.fromtimestamp(nanoseconds // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):  # beyond the year 9999
        return f"{nanoseconds} ns"


SYSTEM_CLOCK: Clock = SystemClock()
