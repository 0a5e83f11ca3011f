"""A transfer's rate: never more than it allows, changed at once, paid back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arraylift.errors import InvalidRequest
from arraylift.sizes import KIB, MIB
from primary_array.transfer_control import BURST_SECONDS, RATE_BYTES_MIN, RateLimit, check_rate


class Turned:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def wall_ns(self) -> int:
        return 0


def drain(limit: RateLimit, clock: Turned, seconds: float, item: int) -> int:
    """Take items as fast as the limit lets, for so long; returns the bytes."""
    end, taken = clock.now + seconds, 0
    while True:
        wait = limit.take(item)
        if not wait:
            taken += item
            continue
        if clock.now + wait > end:
            clock.now = end
            return taken
        clock.now += max(wait, 1e-6)


def test_without_a_limit_nothing_waits() -> None:
    limit = RateLimit(clock=Turned())
    assert [limit.take(1 << 40) for _ in range(3)] == [0, 0, 0]


@given(
    rate=st.integers(RATE_BYTES_MIN, 100 * MIB),
    item=st.integers(1 * KIB, 4 * MIB),
    seconds=st.floats(1, 60),
)
def test_over_any_time_it_is_the_rate_a_burst_and_an_item(rate: int, item: int, seconds: float) -> None:
    item = max(item, int(rate * seconds / 2_000))
    clock = Turned()
    limit = RateLimit(rate, clock=clock)
    clock.now += 1_000  # idle time is not saved up
    taken = drain(limit, clock, seconds, item)
    assert taken <= rate * (seconds + BURST_SECONDS) + item + 1, "R1"
    assert taken >= rate * seconds - item, "what is allowed is used"


def test_a_change_counts_from_its_moment() -> None:
    clock = Turned()
    limit = RateLimit(MIB, clock=clock)
    assert drain(limit, clock, 10, 64 * KIB) == pytest.approx(10.5 * MIB, rel=0.02)
    limit.change(10 * MIB)
    assert drain(limit, clock, 10, 64 * KIB) == pytest.approx(100 * MIB, rel=0.02)
    limit.change(MIB)
    assert drain(limit, clock, 10, 64 * KIB) == pytest.approx(10 * MIB, rel=0.02)
    limit.change(0)
    assert limit.take(1 << 40) == 0
    clock.now += 5
    limit.change(MIB)
    assert drain(limit, clock, 10, 64 * KIB) == pytest.approx(10 * MIB, rel=0.02), "no debt, no savings"


def test_lifting_the_limit_ends_the_wait() -> None:
    clock = Turned()
    limit = RateLimit(RATE_BYTES_MIN, clock=clock)
    assert limit.take(64 * MIB) == 0
    assert limit.take(1) > 1_000
    limit.change(0)
    assert limit.take(1) == 0


def test_rates_that_may_be() -> None:
    assert [check_rate(rate) for rate in (0, RATE_BYTES_MIN, 1 << 40)] == [0, RATE_BYTES_MIN, 1 << 40]
    with pytest.raises(InvalidRequest, match="bytes a second"):
        check_rate(RATE_BYTES_MIN - 1)
