"""Turns of jobs: limits, all at once, nobody starves, nobody waits for nothing."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from backup_server.job_turns import Demand, Limits, Turns

HOSTS, ARRAYS, TARGETS, LINES = ("h0", "h1"), ("a0", "a1", "a2"), ("t0", "t1"), ("", "restore", "p1", "p2")
LIMITS = st.builds(Limits, *(st.integers(1, 4) for _ in range(4)))
DEMANDS = st.builds(
    Demand,
    st.sampled_from(("", *HOSTS)),
    st.lists(st.sampled_from(ARRAYS), max_size=3, unique=True).map(tuple),
    st.sampled_from(("", *TARGETS)),
)


def used(demands: list[Demand]) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for demand in demands:
        found.update([("all", ""), ("host", demand.host), ("target", demand.target)])
        found.update(("array", name) for name in demand.arrays)
    for nobody in (("host", ""), ("target", "")):
        found.pop(nobody, None)
    return found


def limit_of(limits: Limits, kind: str) -> int:
    return {
        "all": limits.running,
        "host": limits.per_host,
        "array": limits.per_array,
        "target": limits.per_target,
    }[kind]


class TurnsMachine(RuleBasedStateMachine):
    """Jobs come, wait, run and leave in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = Limits(3, 2, 2, 2)
        self.turns = Turns(self.limits)
        self.waiting: dict[str, Demand] = {}
        self.running: dict[str, Demand] = {}
        self.count = 0

    def gave(self, job_ids: list[str]) -> None:
        for job_id in job_ids:
            self.running[job_id] = self.waiting.pop(job_id)

    @rule(demand=DEMANDS, line=st.sampled_from(LINES))
    def ask(self, demand: Demand, line: str) -> None:
        self.count += 1
        job_id = f"j{self.count}"
        self.waiting[job_id] = demand
        if self.turns.ask(job_id, demand, line=line):
            self.gave([job_id])

    @rule(data=st.data())
    def ask_again(self, data: st.DataObject) -> None:
        everybody = sorted(self.waiting | self.running)
        if everybody:
            job_id = data.draw(st.sampled_from(everybody))
            demand = (self.waiting | self.running)[job_id]
            assert self.turns.ask(job_id, demand, line="") == (job_id in self.running)

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        everybody = sorted(self.waiting | self.running)
        if everybody:
            job_id = data.draw(st.sampled_from(everybody))
            self.waiting.pop(job_id, None)
            self.running.pop(job_id, None)
            self.gave(self.turns.leave(job_id))
            assert self.turns.leave(job_id) == [], "twice changes nothing"

    @invariant()
    def limits_hold(self) -> None:  # Q1
        for (kind, _), count in used(list(self.running.values())).items():
            assert count <= limit_of(self.limits, kind)

    @invariant()
    def somebody_runs(self) -> None:  # Q2: never all of them stuck
        assert self.running or not self.waiting

    @invariant()
    def who_waits_says_why(self) -> None:
        for job_id in self.waiting:
            lacks = self.turns.lacks(job_id)
            assert all(one == "a free place" or one.split()[1] in str(self.waiting[job_id]) for one in lacks)
        assert all(self.turns.lacks(job_id) == [] for job_id in self.running)

    def teardown(self) -> None:
        """Whoever runs ends, the latest first: everybody has had its turn."""
        for _ in range(len(self.waiting) + len(self.running)):
            job_id = next(reversed(self.running))
            del self.running[job_id]
            self.gave(self.turns.leave(job_id))
        assert not self.running
        assert not self.waiting


TestTurns = TurnsMachine.TestCase
TestTurns.settings = settings(max_examples=60, stateful_step_count=40)


@settings(max_examples=100)
@given(
    limits=LIMITS,
    before=st.lists(st.tuples(DEMANDS, st.sampled_from(LINES)), max_size=20),
    mine=DEMANDS,
    rush=st.lists(st.tuples(DEMANDS, st.sampled_from(LINES)), min_size=1, max_size=6),
)
def test_nobody_starves_however_many_come_later(
    limits: Limits, before: list[tuple[Demand, str]], mine: Demand, rush: list[tuple[Demand, str]]
) -> None:
    """Q3: others arrive without end, two for each that leaves; ours has its turn in bounded time."""
    turns, running, rounds = Turns(limits), [], 0
    for number, (demand, line) in enumerate(before):
        if turns.ask(f"before{number}", demand, line=line):
            running.append(f"before{number}")
    if turns.ask("mine", mine, line="p1"):
        return
    arrived = 0
    while "mine" not in running:
        rounds += 1
        assert rounds <= (len(before) + 2) * len(LINES) * (limits.running + 1), "it starves"
        for _ in range(2):
            demand, line = rush[arrived % len(rush)]
            arrived += 1
            if turns.ask(f"rush{arrived}", demand, line=line):
                running.append(f"rush{arrived}")
        running += turns.leave(running.pop(0))  # every job ends some time
    event(f"after {min(rounds // 10, 9)}x rounds")


def test_who_needs_two_things_is_not_passed_for_ever_by_those_who_need_one() -> None:  # Q3
    turns = Turns(Limits(running=9, per_array=1))
    assert turns.ask("a0-0", Demand(arrays=("a0",)), line="")
    assert turns.ask("a1-0", Demand(arrays=("a1",)), line="")
    assert not turns.ask("both", Demand(arrays=("a0", "a1")), line="")
    for array in ("a0", "a1"):
        assert not turns.ask(f"{array}-1", Demand(arrays=(array,)), line="")
    assert turns.leave("a0-0") == [], "it is kept, until the other is free too"
    assert turns.leave("a1-0") == ["both"]


def test_a_busy_array_stops_no_other() -> None:  # Q4
    turns = Turns(Limits(running=4, per_host=4, per_array=2, per_target=4))
    for number in range(50):
        asked = turns.ask(f"busy{number}", Demand("h0", ("a0",), "t0"), line="p1")
        assert asked == (number < 2)
    assert turns.ask("other", Demand("h0", ("a1",), "t0"), line="p1"), "a place is kept for one of them alone"
    assert turns.lacks("busy2") == ["array a0"]
    assert turns.leave("busy0") == ["busy2"]


def test_lines_take_turns() -> None:
    """A restore, or a small policy, does not wait for a thousand backups of a large one."""
    turns = Turns(Limits(running=1))
    for number in range(1000):
        turns.ask(f"large{number}", Demand(), line="large")
    turns.ask("small", Demand(), line="small")
    turns.ask("restore", Demand(), line="restore")
    order: list[str] = ["large0"]
    while len(order) < 6:
        order += turns.leave(order[-1])
    assert {"small", "restore"} < set(order)
    assert order[:2] == ["large0", "large1"]


def test_who_ran_before_a_restart_goes_on_whatever_the_limits_are() -> None:
    turns = Turns(Limits(running=1))
    for job_id in ("a", "b"):
        turns.resume(job_id, Demand("h0", ("a0",), "t0"))
    assert not turns.ask("c", Demand("h1"), line="")
    assert turns.leave("a") == []
    assert turns.leave("b") == ["c"]
    assert turns.ask("c", Demand("h1"), line=""), "it has it"


@pytest.mark.parametrize("limits", [Limits(running=0), Limits(per_array=0)])
def test_a_limit_of_none_is_a_bug(limits: Limits) -> None:
    with pytest.raises(AssertionError):
        Turns(limits)
