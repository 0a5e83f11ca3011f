"""Cron lines, time zones, clock changes, windows, jitter."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arraylift.errors import InvalidRequest
from backup_server.policies.schedule import (
    NS,
    Schedule,
    check_schedule,
    due,
    jitter_ns,
    next_runs,
    open_from,
    parse_window,
)

BERLIN = ZoneInfo("Europe/Berlin")


def ns(text: str, zone: ZoneInfo = BERLIN) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()) * NS


def told(times: list[int], zone: ZoneInfo = BERLIN) -> list[str]:
    return [f"{datetime.fromtimestamp(at // NS, zone):%Y-%m-%d %H:%M%z}" for at in times]


def test_a_night_run_follows_the_clock_of_its_zone() -> None:
    nightly = Schedule(("30 2 * * *",), "Europe/Berlin")
    assert told(next_runs(nightly, ns("2026-03-27T12:00"), 4)) == [
        "2026-03-28 02:30+0100",
        "2026-03-29 03:00+0200",  # 02:30 does not exist: right after the gap, not left out
        "2026-03-30 02:30+0200",
        "2026-03-31 02:30+0200",
    ]
    assert told(next_runs(nightly, ns("2026-10-24T12:00"), 2)) == [
        "2026-10-25 02:30+0200",  # it comes twice, and runs once
        "2026-10-26 02:30+0100",
    ]


def test_an_hourly_run_goes_by_real_time() -> None:
    hourly = Schedule(("0 * * * *",), "Europe/Berlin")
    for start in ("2026-03-28T22:30", "2026-10-24T22:30"):
        runs = next_runs(hourly, ns(start), 8)
        assert all(later - earlier == 3600 * NS for earlier, later in pairwise(runs))


def test_several_lines_are_one_schedule() -> None:
    both = Schedule(("0 1 * * *", "0 13 * * 1-5", "0 1 * * 0"))
    zone = ZoneInfo("UTC")
    assert told(next_runs(both, ns("2026-11-27T12:00", zone), 4), zone) == [
        "2026-11-27 13:00+0000",
        "2026-11-28 01:00+0000",
        "2026-11-29 01:00+0000",
        "2026-11-30 01:00+0000",
    ]


LINES = st.sampled_from(
    [
        "30 2 * * *",
        "0 * * * *",
        "*/15 * * * *",
        "15 1,2,3 * * *",
        "0 0 1 * *",
        "5 3 * * 0",
        "0 12 29 2 *",
        "* 2 * * *",
    ]
)
ZONES = st.sampled_from(["", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Africa/Casablanca"])
INSTANTS = (
    st.integers(ns("2026-03-28T00:00"), ns("2026-03-30T06:00"))
    | st.integers(ns("2026-10-24T00:00"), ns("2026-10-26T06:00"))
    | st.integers(ns("2020-01-01T00:00"), ns("2032-01-01T00:00"))
)


@settings(deadline=None)
@given(st.lists(LINES, min_size=1, max_size=3), ZONES, INSTANTS)
def test_runs_are_the_same_from_wherever_one_asks(lines: list[str], zone: str, at: int) -> None:
    schedule = Schedule(tuple(lines), zone)
    check_schedule(schedule)
    first, second, third = next_runs(schedule, at, 3)
    assert at < first < second < third
    assert next_runs(schedule, first, 2) == [second, third]
    assert next_runs(schedule, second - 1, 1) == [second]
    assert due(schedule, at, first) == first
    assert due(schedule, first, second - 1) is None
    assert due(schedule, at, third + 1) == third, "missed runs are caught up once"


@pytest.mark.parametrize(
    ("schedule", "why"),
    [
        (Schedule(("61 * * * *",)), "minute"),
        (Schedule(("* * * *",)), "five fields"),
        (Schedule(("0 0 0 * * *",)), "five fields"),
        (Schedule(("0 0 30 2 *",)), "day"),
        (Schedule(("@daily",)), "five fields"),
        (Schedule(("0 0 * * *",), "Mars/Olympus"), "time zone"),
        (Schedule(("0 0 * * *",), "../../etc/passwd"), "time zone"),
        (Schedule(("0 0 * * *",) * 17), "at most 16"),
        (Schedule(("0 0 * * *",), "", 86_401), "at most 86400"),
    ],
)
def test_what_is_no_schedule_is_refused(schedule: Schedule, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        check_schedule(schedule)


def test_jitter_is_bounded_spread_and_the_same_each_time() -> None:
    schedule = Schedule(("0 2 * * *",), "", 600)
    found = [jitter_ns(schedule, f"nightly vm{number}") for number in range(400)]
    assert found == [jitter_ns(schedule, f"nightly vm{number}") for number in range(400)]
    assert 0 <= min(found) < 60 * NS
    assert 540 * NS < max(found) <= 600 * NS
    assert jitter_ns(Schedule(("0 2 * * *",)), "x") == 0


def test_windows_open_and_close_in_local_time() -> None:
    nights = [parse_window(["fri", "sat"], "22:00", "06:00")]
    for at, opens in [
        ("2026-11-27T12:00", "2026-11-27T22:00"),  # Friday
        ("2026-11-28T05:59", "2026-11-28T05:59"),  # still Friday's
        ("2026-11-28T06:00", "2026-11-28T22:00"),
        ("2026-11-29T06:00", "2026-12-04T22:00"),  # Sunday: next Friday
    ]:
        assert open_from(nights, BERLIN, ns(at)) == ns(opens), at
    assert open_from([], BERLIN, 5) == 5
    always = [parse_window([], "00:00", "24:00")]
    assert open_from(always, BERLIN, ns("2026-11-27T12:00")) == ns("2026-11-27T12:00")
    assert open_from([parse_window([], "02:15", "02:45")], BERLIN, ns("2026-03-28T12:00")) == ns(
        "2026-03-29T03:15"
    )


@given(
    st.lists(
        st.builds(
            parse_window,
            st.lists(st.sampled_from(["mon", "wed", "sun"]), max_size=2),
            st.integers(0, 23).map(lambda hour: f"{hour}:30"),
            st.integers(0, 24).map(lambda hour: f"{hour}:00"),
        ),
        min_size=1,
        max_size=3,
    ),
    INSTANTS,
)
def test_an_opening_is_the_first_open_minute(windows: list, at: int) -> None:  # type: ignore[type-arg]
    opens = open_from(windows, BERLIN, at)
    assert opens >= at
    assert open_from(windows, BERLIN, opens) == opens, "it is open then"
    if opens > at + 60 * NS:
        middle = at + (opens - at) // 2
        assert open_from(windows, BERLIN, middle) == opens, "and closed until then"


@pytest.mark.parametrize(
    "bad", [(["moon"], "1:00", "2:00"), ([], "25:00", "2:00"), ([], "1:60", "2:00"), ([], "one", "")]
)
def test_what_is_no_window_is_refused(bad: tuple[list[str], str, str]) -> None:
    with pytest.raises(InvalidRequest):
        parse_window(*bad)


def test_a_day_of_the_leap_year_is_found() -> None:
    (run,) = next_runs(Schedule(("0 12 29 2 *",)), ns("2026-01-01T00:00"), 1)
    assert datetime.fromtimestamp(run // NS, ZoneInfo("UTC")) == datetime(
        2028, 2, 29, 12, tzinfo=ZoneInfo("UTC")
    )
