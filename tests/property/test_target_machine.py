"""A whole target against a dict: in whatever order backups are sent, cut, resumed, published, locked, moved,
deleted, collected, scrubbed and damaged, and whenever the machine dies, what was acknowledged is there."""

from __future__ import annotations

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from arraylift.ids import ImageId
from tests.property.gc_content import Content, Span
from tests.property.gc_world import TENANTS, Sending
from tests.property.target_model import ACTIVE, ARCHIVE
from tests.property.target_world import LOCK_DAYS_MAX, TargetWorld

PICKS = st.integers(0, 7)
UNITS = st.sampled_from((ACTIVE, ARCHIVE))
SMALL = st.tuples(*(st.integers(0, 23) for _ in range(6)))
BIG = st.tuples(st.integers(24, 31), st.integers(24, 31)).map(lambda pair: pair * 8)


class TargetMachine(RuleBasedStateMachine):
    """Rules are the steps of ``TargetWorld``; ``pick`` chooses among what is there."""

    def __init__(self) -> None:
        super().__init__()
        self.world = TargetWorld(random.Random(0))

    @initialize(
        contents=st.lists(st.tuples(SMALL) | st.tuples(BIG, SMALL), min_size=3, max_size=3),
        published=st.booleans(),
    )
    def stage(self, contents: list[Content], published: bool) -> None:
        """Three images of one disk, of which two may move, and a backup under way."""
        images = [self.world.image(content) for content in contents]
        if published:
            self.world.publish(images[:2])
        self.world.begin("", contents[0], "b", full=True)

    def sending(self, pick: int) -> Sending:
        return list(self.world.sending.values())[pick % len(self.world.sending)]

    def image(self, pick: int) -> ImageId:
        return list(self.world.images)[pick % len(self.world.images)]

    # -- open, offer, send, commit, abort, resume ---------------------------------------------

    @precondition(lambda self: len(self.world.sending) < 3 and len(self.world.images) < 8)
    @rule(
        tenant=st.sampled_from(TENANTS),
        full=st.booleans(),
        above=st.lists(st.just(()) | BIG, max_size=2),
        last=SMALL,
    )
    def begin(self, tenant: str, full: bool, above: list[Span], last: Span) -> None:
        content: Content = (*above, last)
        self.world.begin(tenant, content, "a", full=full)

    @precondition(lambda self: self.world.sending)
    @rule(pick=PICKS, steps=st.integers(1, 8))
    def go_on(self, pick: int, steps: int) -> None:
        transfer = self.sending(pick)
        for _ in range(steps):
            if transfer.transfer_id in self.world.sending:
                self.world.next_step(transfer)

    @precondition(lambda self: self.world.sending)
    @rule(pick=PICKS, revoke=st.booleans())
    def stop(self, pick: int, revoke: bool) -> None:
        (self.world.revoke if revoke else self.world.abort)(self.sending(pick))

    # -- images and backups -----------------------------------------------------------------

    @precondition(lambda self: self.world.images)
    @rule(pick=PICKS)
    def delete(self, pick: int) -> None:
        self.world.delete(self.image(pick))

    @precondition(lambda self: self.world.images)
    @rule(pick=PICKS)
    def publish(self, pick: int) -> None:
        self.world.publish([self.image(pick)])

    @precondition(lambda self: self.world.backups_made)
    @rule(pick=PICKS)
    def withdraw(self, pick: int) -> None:
        made = list(self.world.backups_made)
        self.world.withdraw(made[pick % len(made)])

    @precondition(lambda self: self.world.images)
    @rule(pick=st.integers(0, 20), days=st.integers(-1, LOCK_DAYS_MAX), asked=st.booleans())
    def lock(self, pick: int, days: int, asked: bool) -> None:
        """Lock something; perhaps it is to be deleted right after."""
        there = [*self.world.images, *self.world.backups_made]
        self.world.lock(there[pick % len(there)], days)
        if asked and self.world.backups_made:
            self.withdraw(pick)
        elif asked:
            self.delete(pick)

    @rule(
        days=st.integers(0, LOCK_DAYS_MAX), wall=st.sampled_from((0, 1, -1, 3650, -3650)), sure=st.booleans()
    )
    def time_passes(self, days: int, wall: int, sure: bool) -> None:
        self.world.set_wall_clock(wall)
        self.world.pass_days(days)
        if sure:
            self.world.confirm_time()

    # -- maintenance ------------------------------------------------------------------------

    @precondition(lambda self: self.world.images)
    @rule(picks=st.lists(PICKS, min_size=1, max_size=3), at=st.integers(0, 6), days=st.integers(1, 5))
    def move(self, picks: list[int], at: int, days: int) -> None:
        """While it moves, the image is locked, or another transfer goes on."""
        image_ids = list(dict.fromkeys(map(self.image, picks)))
        left = at

        def between() -> None:
            nonlocal left
            left -= 1
            if left == 0 and days < 3 and image_ids[0] in self.world.images:
                self.world.lock(image_ids[0], days)
            elif left == 0 and self.world.sending:
                self.go_on(days, 8)

        self.world.move(image_ids, between=between)

    @rule()
    def move_back(self) -> None:
        self.world.move([], back=True)

    @rule(name=UNITS, percent=st.sampled_from((0, 50, 100)), cycles=st.integers(1, 3), at=st.integers(0, 9))
    def collect(self, name: str, percent: int, cycles: int, at: int) -> None:
        """While it collects, a transfer goes on to its commit."""
        left = at

        def between() -> None:
            nonlocal left
            left -= 1
            if left == 0 and self.world.sending:
                self.go_on(at, 8)

        for _ in range(cycles):
            self.world.collect(name, live_percent_min=percent, between=between)

    @rule(name=UNITS)
    def scrub(self, name: str) -> None:
        self.world.scrub(name)

    @precondition(lambda self: self.world.images)
    @rule(pick=PICKS)
    def verify(self, pick: int) -> None:
        self.world.verify(self.image(pick))

    @rule(name=UNITS, condemned=st.booleans())
    def rebuild(self, name: str, condemned: bool) -> None:
        if condemned:
            self.world.collect(name)
        self.world.rebuild(name)

    @precondition(lambda self: self.world.sending and self.world.images)
    @rule(pick=PICKS, steps=st.integers(3, 8), damaged=st.booleans())
    def take_away_what_was_promised(self, pick: int, steps: int, damaged: bool) -> None:
        """An attempt rests on images that go, or on a segment that turns out damaged; then it commits."""
        transfer = self.sending(pick)
        for _ in range(steps):
            if transfer.left or transfer.lane is None:
                self.world.next_step(transfer)
        if damaged:
            self.world.flip_promised()
            self.world.scrub(ACTIVE)
        else:
            for image_id in list(self.world.images):
                self.world.delete(image_id)
            for _ in range(3):
                self.world.collect(ACTIVE)
        self.go_on(pick, 12)

    @rule()
    def survey(self) -> None:
        self.world.survey()

    # -- damage and crashes -----------------------------------------------------------------

    @precondition(lambda self: self.world.images and self.world.flips < 3)
    @rule(seed=st.integers(0, 1 << 16), noticed=st.booleans())
    def flip(self, seed: int, noticed: bool) -> None:
        self.world.draw.seed(seed)
        self.world.flip()
        self.world.flip_promised()
        if noticed:
            self.world.scrub(ACTIVE)

    @precondition(lambda self: self.world.flips)
    @rule(pick=PICKS)
    def heal(self, pick: int) -> None:
        if self.world.images:
            self.world.heal(self.image(pick))

    @precondition(lambda self: self.world.images)
    @rule(changes=st.integers(0, 80), power=st.booleans(), pick=PICKS, back=st.booleans())
    def die_while_moving(self, changes: int, power: bool, pick: int, back: bool) -> None:
        image_ids = [self.image(pick)]
        self.world.survive(lambda: self.world.move(image_ids, back=back), changes=changes, power=power)

    @rule(changes=st.integers(0, 60), power=st.booleans(), name=UNITS)
    def die_while_collecting(self, changes: int, power: bool, name: str) -> None:
        self.world.survive(lambda: self.world.collect(name), changes=changes, power=power)

    @precondition(lambda self: self.world.sending)
    @rule(changes=st.integers(0, 60), power=st.booleans(), pick=PICKS)
    def die_while_sending(self, changes: int, power: bool, pick: int) -> None:
        self.world.survive(lambda: self.go_on(pick, 8), changes=changes, power=power)

    @precondition(lambda self: self.world.images)
    @rule(changes=st.integers(0, 12), power=st.booleans(), pick=PICKS)
    def die_while_deleting(self, changes: int, power: bool, pick: int) -> None:
        act = self.withdraw if self.world.backups_made else self.delete
        self.world.survive(lambda: act(pick), changes=changes, power=power)

    @rule(index_lost=st.booleans(), in_order=st.booleans())
    def reopen(self, index_lost: bool, in_order: bool) -> None:
        if in_order:
            self.world.reopen()
        else:
            self.world.crash(power=True, index_lost=index_lost)

    # -- what must hold ---------------------------------------------------------------------

    @invariant()
    def what_was_acknowledged_is_there(self) -> None:
        self.world.check_promises()
        self.world.check_backups()

    def teardown(self) -> None:
        try:
            self.world.check()
            self.world.check_no_garbage()
            self.world.check()
            self.world.check_all_goes()
        finally:
            self.world.end_threads()


TargetMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestTarget = TargetMachine.TestCase
