"""Whatever the wall clock does, over kills and restarts and full disks, no lock ends early.

Early means: more than a day (what the wall clock may gain unconfirmed), and an hour (how far the clock
of a confirming daemon may be off ours), before its time by a clock that was always right.
"""

from __future__ import annotations

import contextlib

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from arraylift.errors import WrongState
from dedup_target.lock_clock import AGREEMENT_NS_MAX, DAY_NS, SECOND_NS, STEP_NS_MAX, LockClock
from tests.fakes.disk import FakeFiles
from tests.unit.dedup_target.hand_clock import HandClock

YEARS_NS = 3652 * DAY_NS
SLACK_NS = STEP_NS_MAX + AGREEMENT_NS_MAX
LOCKS_MAX = 8


class LockClockMachine(RuleBasedStateMachine):
    """One target's clock against a clock that is always right."""

    def __init__(self) -> None:
        super().__init__()
        self.files = FakeFiles()
        self.files.make_dirs("/state")
        self.clock = HandClock()
        self.opened = LockClock(self.files, "/state", self.clock, newest_image_ns=None)
        self.locks: list[int] = []

    def reopen(self) -> None:
        self.clock = self.clock.another_process()
        with contextlib.suppress(Exception):
            self.files.set_capacity(None)
        self.opened = LockClock(self.files, "/state", self.clock, newest_image_ns=self.clock.real_ns)

    @rule(seconds=st.integers(0, 40 * 86_400))
    def time_passes(self, seconds: int) -> None:
        self.clock.pass_seconds(seconds)

    @rule(
        lie_ns=st.one_of(
            st.sampled_from([0, YEARS_NS, -YEARS_NS, DAY_NS, -DAY_NS, DAY_NS - SECOND_NS, 7200 * SECOND_NS]),
            st.integers(-YEARS_NS, YEARS_NS),
        )
    )
    def the_wall_clock_is_set(self, lie_ns: int) -> None:
        self.clock.lie_ns = lie_ns

    @rule(hours=st.sampled_from([20, 23, 1, -20]), times=st.integers(1, 4), restart=st.booleans())
    def the_wall_clock_creeps(self, hours: int, times: int, restart: bool) -> None:
        """Each time less than what is not believed; does it add up?"""
        for _ in range(times):
            self.clock.lie_ns += hours * 3600 * SECOND_NS
            if restart:
                self.reopen()
            self.opened.now()

    @rule(down_seconds=st.sampled_from([0, 60, 3600, 86_400, 30 * 86_400]))
    def the_daemon_is_stopped_and_started(self, down_seconds: int) -> None:
        self.clock.pass_seconds(down_seconds)
        self.reopen()

    @rule()
    def the_daemon_is_killed(self) -> None:
        self.files = self.files.after_kill()
        self.reopen()

    @rule(state=st.integers(0, 3))
    def the_power_is_cut(self, state: int) -> None:
        found = list(self.files.post_crash_states(maximum=4))
        self.files = found[state % len(found)]
        self.reopen()

    @rule(full=st.booleans())
    def the_disk_fills_or_not(self, full: bool) -> None:
        self.files.set_capacity(0 if full else None)

    @rule()
    def an_honest_daemon_confirms(self) -> None:
        self.files.set_capacity(None)
        if abs(self.clock.lie_ns) > AGREEMENT_NS_MAX:
            with contextlib.suppress(WrongState):
                self.opened.confirm(self.clock.real_ns)
                raise AssertionError("our clock is wrong by more than an hour")
        else:
            self.opened.confirm(self.clock.real_ns)
            assert not self.opened.now().lags

    @precondition(lambda self: len(self.locks) < LOCKS_MAX)
    @rule(days=st.integers(2, 4000))
    def something_is_locked(self, days: int) -> None:
        self.locks.append(self.clock.real_ns + days * DAY_NS)

    @invariant()
    def no_lock_ends_early(self) -> None:
        assert self.opened.now().time_ns <= self.clock.real_ns + SLACK_NS
        for until_ns in self.locks:
            if self.clock.real_ns < until_ns - SLACK_NS:
                assert self.opened.holds(until_ns)

    @invariant()
    def it_says_so_when_it_does_not_follow(self) -> None:
        now = self.opened.now()
        if abs(now.time_ns - self.clock.wall_ns()) > STEP_NS_MAX:
            assert now.lags


TestLockClock = LockClockMachine.TestCase
TestLockClock.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
