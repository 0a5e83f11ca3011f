"""A target against a dict: whatever order of sends, deletions, cycles, restores and crashes is tried,
every image reads back bit for bit, no promise is broken, and at the end no garbage is left."""

from __future__ import annotations

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.property.gc_content import Content, Span
from tests.property.gc_world import TENANTS, GcWorld

PICKS = st.integers(0, 7)
SMALL = st.tuples(*(st.integers(0, 23) for _ in range(6)))
BIG = st.tuples(st.integers(24, 31), st.integers(24, 31)).map(lambda pair: pair * 8)


class GarbageMachine(RuleBasedStateMachine):
    """Rules are the steps of ``GcWorld``; ``pick`` chooses among what is there."""

    def __init__(self) -> None:
        super().__init__()
        self.world = GcWorld(random.Random(0))

    @precondition(lambda self: len(self.world.sending) < 4 and len(self.world.images) < 6)
    @rule(
        tenant=st.sampled_from(TENANTS),
        name=st.sampled_from("ab"),
        full=st.booleans(),
        above=st.lists(st.just(()) | BIG, max_size=2),
        last=SMALL,
    )
    def begin(self, tenant: str, name: str, full: bool, above: list[Span], last: Span) -> None:
        content: Content = (*above, last)
        self.world.begin(tenant, content, name, full=full)

    @precondition(lambda self: self.world.sending)
    @rule(pick=PICKS, steps=st.integers(1, 6))
    def go_on(self, pick: int, steps: int) -> None:
        transfer = list(self.world.sending.values())[pick % len(self.world.sending)]
        for _ in range(steps):
            if transfer.transfer_id in self.world.sending:
                self.world.next_step(transfer)

    @precondition(lambda self: self.world.sending)
    @rule(pick=PICKS, revoke=st.booleans())
    def stop(self, pick: int, revoke: bool) -> None:
        transfer = list(self.world.sending.values())[pick % len(self.world.sending)]
        (self.world.revoke if revoke else self.world.abort)(transfer)

    @precondition(lambda self: any(transfer.lane for transfer in self.world.sending.values()))
    @rule(pick=PICKS)
    def let_become_durable(self, pick: int) -> None:
        lanes = [transfer for transfer in self.world.sending.values() if transfer.lane is not None]
        self.world.advance(lanes[pick % len(lanes)])

    @rule()
    def lapse(self) -> None:
        self.world.lapse()

    @precondition(lambda self: self.world.images)
    @rule(pick=PICKS)
    def delete(self, pick: int) -> None:
        self.world.delete(list(self.world.images)[pick % len(self.world.images)])

    @precondition(lambda self: self.world.images and len(self.world.reading) < 3)
    @rule(pick=PICKS)
    def start_reading(self, pick: int) -> None:
        self.world.start_reading(list(self.world.images)[pick % len(self.world.images)])

    @precondition(lambda self: self.world.reading)
    @rule()
    def go_on_reading(self) -> None:
        self.world.go_on_reading()

    @rule(percent=st.sampled_from((0, 50, 100)), cycles=st.integers(1, 3))
    def collect(self, percent: int, cycles: int) -> None:
        for _ in range(cycles):
            self.world.collect(live_percent_min=percent)

    @precondition(lambda self: self.world.sending)
    @rule(at=st.integers(0, 12), pick=PICKS)
    def collect_while_one_commits(self, at: int, pick: int) -> None:
        """Between two steps of a cycle, a transfer goes on to its commit."""
        left = at

        def between() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self.go_on(pick, 12)

        self.world.collect(between=between)

    @rule(changes=st.integers(0, 60), power=st.booleans(), percent=st.sampled_from((0, 100)))
    def die_while_collecting(self, changes: int, power: bool, percent: int) -> None:
        self.world.survive(lambda: self.world.collect(live_percent_min=percent), changes=changes, power=power)

    @precondition(lambda self: self.world.sending)
    @rule(changes=st.integers(0, 60), power=st.booleans(), pick=PICKS)
    def die_while_sending(self, changes: int, power: bool, pick: int) -> None:
        self.world.survive(lambda: self.go_on(pick, 6), changes=changes, power=power)

    @rule(index_lost=st.booleans())
    def restart(self, index_lost: bool) -> None:
        self.world.crash(power=True, index_lost=index_lost)

    @invariant()
    def no_promise_is_broken(self) -> None:
        assert self.world.conflicts == 0, self.world.story

    def teardown(self) -> None:
        try:
            self.world.check()
            self.world.check_no_garbage()
            self.world.check()
        finally:
            self.world.end_threads()


GarbageMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=30)
TestGarbage = GarbageMachine.TestCase
