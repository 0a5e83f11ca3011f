"""Clocks that a test turns by hand: real time passes, the wall clock may be lied about."""

from __future__ import annotations

SECOND_NS = 10**9
START_NS = 1_790_000_000 * SECOND_NS


class HandClock:
    """``real_ns`` is what a perfect clock would say; ``lie_ns`` is what the wall clock adds to it."""

    def __init__(self, real_ns: int = START_NS, lie_ns: int = 0) -> None:
        self.real_ns = real_ns
        self.lie_ns = lie_ns
        self._boot_ns = real_ns

    def monotonic(self) -> float:
        return (self.real_ns - self._boot_ns) / SECOND_NS

    def wall_ns(self) -> int:
        return self.real_ns + self.lie_ns

    def pass_seconds(self, seconds: float) -> None:
        """Real time passes, whatever clocks say."""
        self.real_ns += int(seconds * SECOND_NS)

    def another_process(self) -> HandClock:
        """The same machine after a restart: monotonic time begins anew."""
        return HandClock(self.real_ns, self.lie_ns)
