"""How busy this host's processors are, over the last minute.

Read from ``/proc/stat``: everything that is not idle, nor waiting for a disk, of all processors together.
Callers: the reporter, on its thread, at every report.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path

from arraylift.clock import Clock

SECONDS = 60.0
SAMPLES_MAX = 64
"""Reports come every few seconds, and more often while much changes: the oldest go then."""

_IDLE, _WAITING = 3, 4  # columns of the line "cpu", after its name


class LoadMeter:
    """Remembers what the processors did until now. One thread."""

    def __init__(self, clock: Clock, read: Callable[[], str] | None = None) -> None:
        """``read`` returns ``/proc/stat``."""
        self._clock = clock
        self._read = read or Path("/proc/stat").read_text
        self._samples: deque[tuple[float, int, int]] = deque(maxlen=SAMPLES_MAX)
        self.percent()

    def percent(self) -> int:
        """0 to 100, since SECONDS ago or the first call; 0 where the system does not tell."""
        try:
            ticks = [int(word) for word in self._read().partition("\n")[0].split()[1:9]]
            idle, total = ticks[_IDLE] + ticks[_WAITING], sum(ticks)
        except (OSError, ValueError, IndexError):
            return 0
        now = self._clock.monotonic()
        while len(self._samples) > 1 and self._samples[1][0] <= now - SECONDS:
            self._samples.popleft()
        self._samples.append((now, idle, total))
        _, idle_before, total_before = self._samples[0]
        passed = total - total_before
        return max(0, min(100, round(100 * (1 - (idle - idle_before) / passed)))) if passed > 0 else 0
