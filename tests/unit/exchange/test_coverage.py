from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arraylift.errors import InvalidRequest
from arraylift.exchange.coverage import Coverage, runs_of
from arraylift.exchange.lane import POLL
from arraylift.exchange.messages import NO_RUNS, Offer


def offer(spans: list[int], *runs: tuple[int, int]) -> Offer:
    return Offer(
        batch=1,
        spans=np.array(spans, "<u4"),
        counts=np.ones(len(spans), "<u2"),
        lengths=np.ones(len(spans), "<u4"),
        fingerprints=bytes(32 * len(spans)),
        hole_runs=np.array(runs, "<u4") if runs else NO_RUNS,
    )


def refuses(coverage: Coverage, message: Offer, why: str) -> None:
    before = coverage.flags.copy()
    with pytest.raises(InvalidRequest, match=why):
        coverage.claim(message)
    assert np.array_equal(coverage.flags, before)


def test_a_span_is_claimed_once_however_it_is_named() -> None:
    for first in (offer([2, 5]), offer([], (2, 1), (5, 1)), offer([2], (5, 1))):
        coverage = Coverage(8)
        coverage.claim(first)
        assert coverage.count == 2
        for second in (offer([5]), offer([0, 5]), offer([], (5, 1)), offer([], (0, 8)), offer([0], (4, 3))):
            refuses(coverage, second, "already has")
        coverage.claim(offer([0, 7], (3, 2)))
        assert coverage.flags.tolist() == [True, False, True, True, True, True, False, True]


def test_a_span_is_not_both_hole_and_offered() -> None:
    for message in (offer([1], (1, 1)), offer([0, 3], (1, 3)), offer([0], (0, 4))):
        refuses(Coverage(4), message, "calls a span a hole and offers it")


def test_a_poll_claims_nothing() -> None:
    coverage = Coverage(3)
    coverage.claim(POLL)
    assert coverage.count == 0


@given(flags=st.lists(st.booleans(), min_size=1, max_size=40))
def test_bitmaps_come_back(flags: list[bool]) -> None:
    coverage = Coverage(len(flags))
    coverage.flags[:] = flags
    bitmap = coverage.to_bitmap()
    assert bitmap == b"" if not any(flags) else len(bitmap) == -(-len(flags) // 8)
    assert Coverage.from_bitmap(bitmap, len(flags)).flags.tolist() == flags


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_bitmaps_of_another_length_are_refused(size: int) -> None:
    with pytest.raises(InvalidRequest, match=f"{size} bytes cannot cover 9 spans"):
        Coverage.from_bitmap(bytes(size), 9)


@given(flags=st.lists(st.booleans(), max_size=40))
def test_runs_are_the_flags(flags: list[bool]) -> None:
    runs = runs_of(np.array(flags, dtype=np.bool_)).tolist()
    found = [False] * len(flags)
    for first, count in runs:
        assert count
        found[first : first + count] = [True] * count
    assert found == flags
    ends = [first + count for first, count in runs]
    assert all(end < first for end, (first, _) in zip(ends, runs[1:], strict=False)), "runs are maximal"
