"""The clock of locks: what moves it, what does not, and what it says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from arraylift.errors import WrongState
from dedup_target.lock_clock import DAY_NS, SAVE_NS, SECOND_NS, LockClock
from tests.fakes.disk import FakeFiles
from tests.unit.dedup_target.hand_clock import START_NS, HandClock

YEARS_NS = 3652 * DAY_NS
HOUR = 3600


class Machine:
    """A target's disk, its clock, and one process after the other."""

    def __init__(self, *, newest_image_ns: int | None = None) -> None:
        self.files = FakeFiles()
        self.files.make_dirs("/state")
        self.clock = HandClock()
        self.newest_image_ns = newest_image_ns
        self.lock_clock = self.opened()

    def opened(self) -> LockClock:
        return LockClock(self.files, "/state", self.clock, newest_image_ns=self.newest_image_ns)

    def restart(self, *, down_seconds: float = 0) -> None:
        self.clock.pass_seconds(down_seconds)
        self.clock = self.clock.another_process()
        self.lock_clock = self.opened()

    @property
    def behind_seconds(self) -> float:
        """How far the clock of locks is behind real time."""
        return (self.clock.real_ns - self.lock_clock.now().time_ns) / SECOND_NS


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_it_goes_with_time(machine: Machine) -> None:
    for _ in range(10):
        machine.clock.pass_seconds(HOUR)
        assert machine.behind_seconds == 0
        machine.restart(down_seconds=HOUR / 2)
        assert machine.behind_seconds == 0
        assert not machine.lock_clock.now().lags


@pytest.mark.parametrize("lie_ns", [YEARS_NS, -YEARS_NS, 2 * DAY_NS, -2 * DAY_NS])
@pytest.mark.parametrize("restart", [False, True])
def test_a_jump_above_a_day_moves_nothing_until_another_daemon_agrees(
    machine: Machine, lie_ns: int, restart: bool
) -> None:
    machine.clock.lie_ns = lie_ns
    if restart:
        machine.restart()
    assert machine.behind_seconds == 0
    assert machine.lock_clock.now().lags
    with pytest.raises(WrongState, match="NTP"):
        machine.lock_clock.confirm(machine.clock.real_ns)
    machine.clock.pass_seconds(HOUR)
    assert machine.behind_seconds == 0
    assert machine.lock_clock.confirm(machine.clock.wall_ns() + SECOND_NS).time_ns == machine.clock.wall_ns()
    assert not machine.lock_clock.now().lags
    machine.restart()
    assert machine.lock_clock.now().time_ns == machine.clock.wall_ns(), "a confirmation is durable"


def test_a_wall_clock_that_comes_back_needs_nobody(machine: Machine) -> None:
    machine.clock.lie_ns = YEARS_NS
    assert machine.lock_clock.now().lags
    machine.clock.lie_ns = 0
    assert not machine.lock_clock.now().lags


def test_small_jumps_do_not_add_up(machine: Machine) -> None:
    for _ in range(40):
        machine.clock.lie_ns += 20 * HOUR * SECOND_NS
        machine.restart()
    assert -24 * HOUR <= machine.behind_seconds <= 0
    assert machine.lock_clock.now().lags


def test_downtime_is_followed_for_a_day_in_all_and_confirmed_after_that(machine: Machine) -> None:
    for _ in range(4):
        machine.restart(down_seconds=6 * HOUR)
        assert machine.behind_seconds == 0
    machine.restart(down_seconds=6 * HOUR)
    assert machine.behind_seconds == 6 * HOUR
    assert machine.lock_clock.now().lags
    machine.lock_clock.confirm(machine.clock.real_ns)
    assert machine.behind_seconds == 0
    machine.restart(down_seconds=6 * HOUR)
    assert machine.behind_seconds == 0, "a confirmation begins the count anew"


def test_a_killed_process_loses_little(machine: Machine) -> None:
    for _ in range(100):
        machine.clock.pass_seconds(61)
        machine.lock_clock.now()
    machine.clock.lie_ns = -YEARS_NS  # the wall clock is of no help
    machine.files = machine.files.after_kill()
    machine.restart()
    assert machine.behind_seconds <= SAVE_NS / SECOND_NS + 61


@pytest.mark.parametrize("damage", ["lost", "damaged"])
def test_a_lost_file_lets_it_go_on_from_the_newest_image(machine: Machine, damage: str) -> None:
    if damage == "lost":
        machine.files.remove("/state/lock-clock.ald", label="test")
    else:
        machine.files.corrupt("/state/lock-clock.ald", 30)
    machine.newest_image_ns = START_NS - 3 * DAY_NS
    machine.clock.lie_ns = YEARS_NS
    machine.restart()
    assert machine.lock_clock.now().time_ns == START_NS - 3 * DAY_NS
    assert machine.lock_clock.now().lags
    machine.newest_image_ns = START_NS + YEARS_NS  # an image of a day when the clock was wrong
    machine.files.remove("/state/lock-clock.ald", label="test")
    machine.clock.lie_ns = 0
    machine.restart()
    assert machine.behind_seconds == 0


def test_a_full_disk_stops_steps_and_no_reads(machine: Machine) -> None:
    machine.clock.lie_ns = 2 * HOUR * SECOND_NS
    machine.files.set_capacity(0)
    assert machine.behind_seconds == 0
    assert machine.lock_clock.now().lags
    machine.files.set_capacity(None)
    assert machine.behind_seconds == -2 * HOUR
    assert not machine.lock_clock.now().lags


def test_a_lock_holds_to_the_nanosecond(machine: Machine, tmp_path: Path) -> None:
    until = START_NS + HOUR * SECOND_NS
    clock = machine.lock_clock
    assert clock.holds(until)
    assert not clock.holds(None)
    machine.clock.pass_seconds(HOUR - 0.001)
    with pytest.raises(WrongState, match="image 1 is locked"):
        clock.check_unlocked("image 1", until)
    machine.clock.pass_seconds(0.001)
    clock.check_unlocked("image 1", until)
