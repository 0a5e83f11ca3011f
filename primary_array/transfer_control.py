"""What an operator may do to a running transfer: slow it down, speed it up, stop it.

Owns: the rate of a transfer, one bucket for all its lanes in the daemon, which hands out what is read.
Invariants:
  R1 over any stretch of time a transfer is handed at most rate x time + BURST_SECONDS x rate + one item.
  R2 a change counts from the moment it is made; what was handed out before is not taken back.
Callers: any thread. The bucket's unit is bytes read at the source: what travels is never more.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from arraylift.clock import SYSTEM_CLOCK, Clock
from arraylift.errors import InvalidRequest
from arraylift.sizes import KIB

RATE_BYTES_MIN = 64 * KIB
"""Bytes a second below which an offer would take a minute."""
BURST_SECONDS = 0.5
"""What an idle bucket saves up."""


def check_rate(bytes_per_second: int) -> int:
    """Return it if it may be a transfer's rate. Raises InvalidRequest."""
    if bytes_per_second and bytes_per_second < RATE_BYTES_MIN:
        raise InvalidRequest(
            f"a rate is 0 (no limit) or at least {RATE_BYTES_MIN:,} bytes a second, not {bytes_per_second:,}"
        )
    return bytes_per_second


class RateLimit:
    """A token bucket that may be overdrawn by one item, and is paid back before the next (R1)."""

    def __init__(self, bytes_per_second: int = 0, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._rate = bytes_per_second
        self._balance = bytes_per_second * BURST_SECONDS
        self._counted_at = clock.monotonic()

    @property
    def bytes_per_second(self) -> int:
        """What is allowed now; 0: no limit."""
        return self._rate

    def change(self, bytes_per_second: int) -> None:
        """From now on this many bytes a second; 0: no limit (R2)."""
        with self._lock:
            self._accrue()
            if not (self._rate and bytes_per_second):
                self._balance = 0.0  # nothing was counted while there was no limit
            self._rate = bytes_per_second
            self._balance = min(self._balance, self._rate * BURST_SECONDS)

    def take(self, count: int) -> float:
        """Take ``count`` bytes and return 0, or take nothing and return the seconds to wait first."""
        with self._lock:
            if not self._rate:
                return 0.0
            self._accrue()
            if self._balance < 0:
                return -self._balance / self._rate
            self._balance -= count
            return 0.0

    def _accrue(self) -> None:
        now = self._clock.monotonic()
        earned = (now - self._counted_at) * self._rate
        self._balance = min(self._balance + earned, self._rate * BURST_SECONDS)
        self._counted_at = now


@dataclass(frozen=True, slots=True)
class TransferControl:
    """The handles of one transfer, held by whoever runs it and by whoever steers it."""

    cancelled: threading.Event = field(default_factory=threading.Event)
    rate: RateLimit = field(default_factory=RateLimit)
