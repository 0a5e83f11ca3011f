"""Hold background reading and copying to so many bytes a second.

Callers: one thread an instance.
"""

from __future__ import annotations

import threading

from arraylift.clock import Clock


class RateLimit:
    """A bucket that may run into debt: what was done is paid for before the next piece."""

    def __init__(self, clock: Clock, bytes_per_second_max: int) -> None:
        """0: no limit."""
        self._clock = clock
        self._rate = bytes_per_second_max
        self._free_at = clock.monotonic()

    def spent(self, count_bytes: int) -> float:
        """Note that so many bytes were moved; returns the seconds that are to be waited."""
        if not self._rate:
            return 0.0
        now = self._clock.monotonic()
        self._free_at = max(self._free_at, now) + count_bytes / self._rate
        return self._free_at - now

    def pay(self, count_bytes: int, stopping: threading.Event) -> None:
        """Wait as long as that costs, or until ``stopping``."""
        seconds = self.spent(count_bytes)
        if seconds > 0:
            stopping.wait(seconds)
