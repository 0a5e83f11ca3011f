"""Random schedules over a whole target: ingest, backups, locks, moves, cycles, scrubs, flipped bits, crashes.

A schedule is STEPS steps on a target that lives through SCHEDULES_A_WORLD of them; other steps come between
those of a collection and of a move as well, and the machine may die inside any. Two targets of three
meet no flipped bit: there nothing may be refused, and no promise be broken. At a target's end nothing
is left but what is alive, and after all is deleted, nothing.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from arraylift.ids import ImageId
from tests import campaign
from tests.property.gc_world import TENANTS
from tests.property.target_model import ACTIVE, ARCHIVE
from tests.property.target_world import TargetWorld

SCHEDULES = 20_000
SCHEDULES_SHORT = 240
SCHEDULES_A_WORLD = 24
STEPS = 12
READ_ALL_EVERY = 4
IMAGES_MAX, SENDING_MAX, READING_MAX, BACKUPS_MAX = 10, 3, 3, 4

Step = tuple[int, Callable[[], None]]


class Driver:
    """Draws steps for one world."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self.world = TargetWorld(draw)
        flips = draw.random() < 1 / 3
        self._steps: list[Step] = [
            (70, self._transfer),
            (10, self._begin),
            (3, self._abort),
            (5, self._advance),
            (1, self._time),
            (6, self._delete),
            (4, self._publish),
            (2, self._withdraw),
            (2, self._lock),
            (4, self._start_reading),
            (10, self._go_on_reading),
            (1, self._scrub),
            (1, self._verify),
            (1, self._catch_up),
            (2 if flips else 0, self._flip),
        ]
        self._outer: list[Step] = [
            (5, self._collect),
            (3, self._collect_much),
            (2, self._collect_beside_a_log),
            (9, self._move),
            (2, self._move_back),
            (1, self._finish_moves),
            (1, self._rebuild),
            (1, self._survey),
            (1, self._settle),
            (5, self._die),
            (1, self._restart),
            (1, self._reopen),
            (2 if flips else 0, self._heal),
        ]

    def schedule(self) -> None:
        for _ in range(STEPS):
            self._step([*self._steps, *self._outer])
        self.world.check_promises()

    def _step(self, steps: Sequence[Step]) -> None:
        (chosen,) = self._draw.choices([step for _, step in steps], [weight for weight, _ in steps])
        chosen()

    def _between(self) -> Callable[[], None]:
        often = self._draw.choice((0.0, 0.2, 0.6))

        def between() -> None:
            if self._draw.random() < often:
                self._step(self._steps)

        return between

    # -- ingest -----------------------------------------------------------------------------

    def _transfer(self) -> None:
        if self.world.sending:
            self.world.next_step(self._draw.choice(list(self.world.sending.values())))

    def _begin(self) -> None:
        world, draw = self.world, self._draw
        if len(world.sending) < SENDING_MAX and len(world.images) < IMAGES_MAX:
            world.begin(draw.choice(TENANTS), None, draw.choice("aaab"), full=draw.random() < 0.3)

    def _abort(self) -> None:
        if self.world.sending:
            transfer = self._draw.choice(list(self.world.sending.values()))
            self._draw.choice((self.world.abort, self.world.revoke))(transfer)

    def _advance(self) -> None:
        lanes = [transfer for transfer in self.world.sending.values() if transfer.lane is not None]
        if lanes:
            self.world.advance(self._draw.choice(lanes))

    # -- images and backups -----------------------------------------------------------------

    def _time(self) -> None:
        draw = self._draw
        draw.choice(
            (
                self.world.lapse,
                lambda: self.world.pass_days(draw.randrange(1, 9)),
                lambda: self.world.set_wall_clock(draw.choice((0, 1, -1, 3650, -3650))),
                self.world.confirm_time,
            )
        )()

    def _delete(self) -> None:
        if len(self.world.images) > 1:
            self.world.delete(self._draw.choice(list(self.world.images)))

    def _publish(self) -> None:
        world = self.world
        if world.images and len(world.backups_made) < BACKUPS_MAX:
            first = self._draw.choice(list(world.images))
            same = [one for one, (tenant, _) in world.images.items() if tenant == world.images[first][0]]
            world.publish(sorted({first, self._draw.choice(same)}))

    def _withdraw(self) -> None:
        if self.world.backups_made:
            self.world.withdraw(self._draw.choice(list(self.world.backups_made)))

    def _lock(self) -> None:
        there = [*self.world.images, *self.world.backups_made]
        if there:
            self.world.lock(self._draw.choice(there), self._draw.randrange(-1, 9))

    def _start_reading(self) -> None:
        if self.world.images and len(self.world.reading) < READING_MAX:
            self.world.start_reading(self._draw.choice(list(self.world.images)))

    def _go_on_reading(self) -> None:
        if self.world.reading:
            self.world.go_on_reading()

    # -- maintenance ------------------------------------------------------------------------

    def _unit(self) -> str:
        return self._draw.choice((ACTIVE, ACTIVE, ARCHIVE))

    def _scrub(self) -> None:
        self.world.scrub(self._unit())

    def _verify(self) -> None:
        if self.world.images:
            self.world.verify(self._draw.choice(list(self.world.images)), self._draw.choice((0, 86_400)))

    def _catch_up(self) -> None:
        self.world.catch_up()

    def _flip(self) -> None:
        """Bits flip anywhere, or where it hurts a backup that is under way; then somebody may notice."""
        if self._draw.random() < 0.5:
            self.world.flip()
        else:
            self.world.flip_promised()
        if self._draw.random() < 0.7:
            self._scrub()

    def _heal(self) -> None:
        if self.world.images:
            self.world.heal(self._draw.choice(list(self.world.images)))

    def _collect(self, name: str = "") -> None:
        percent = self._draw.choice((0, 50, 100, 100))
        self.world.collect(name or self._unit(), live_percent_min=percent, between=self._between())

    def _collect_much(self) -> None:
        """What is condemned now is deleted, whatever goes on beside."""
        name = self._unit()
        for _ in range(3):
            self._collect(name)

    def _collect_beside_a_log(self) -> None:
        """All that keeps what a cut transfer made durable is its log."""
        lanes = [transfer for transfer in self.world.sending.values() if transfer.lane is not None]
        if lanes:
            transfer = self._draw.choice(lanes)
            self.world.advance(transfer)
            self.world.abort(transfer)
            for _ in range(3):
                self.world.collect(ACTIVE)

    def _move(self) -> None:
        images = list(self.world.images)
        if images:
            chosen = self._draw.sample(images, self._draw.randint(1, min(3, len(images))))
            self.world.move(chosen, between=self._draw.choice((self._between(), self._meddling(chosen))))

    def _meddling(self, image_ids: list[ImageId]) -> Callable[[], None]:
        """Once on the way, something is asked of an image that is moved."""
        left, draw, world = self._draw.randrange(1, 6), self._draw, self.world
        image_id = draw.choice(image_ids)

        def between() -> None:
            nonlocal left
            left -= 1
            if left == 0 and image_id in world.images:
                draw.choice((world.delete, world.start_reading, world.verify, self._lock_it, self._name_it))(
                    image_id
                )

        return between

    def _lock_it(self, image_id: ImageId) -> None:
        self.world.lock(image_id, self._draw.randrange(1, 9))

    def _name_it(self, image_id: ImageId) -> None:
        self.world.publish([image_id])

    def _move_back(self) -> None:
        self.world.move([], back=True, between=self._between())

    def _finish_moves(self) -> None:
        self.world.finish_moves()

    def _rebuild(self) -> None:
        self.world.rebuild(self._unit())

    def _survey(self) -> None:
        self.world.survey()

    def _settle(self) -> None:
        self.world.settle()

    # -- crashes ----------------------------------------------------------------------------

    def _die(self) -> None:
        """The machine dies in the middle of a step."""
        draw = self._draw
        some = (self._collect, self._move, self._move_back, self._transfer, self._delete, self._withdraw)
        more = (self._transfer, self._move, self._lock, self._publish, self._scrub, self._rebuild)
        inner = draw.choice((*some, *more))
        changes = draw.choice((draw.randrange(8), draw.randrange(80)))
        self.world.survive(inner, changes=changes, power=draw.random() < 0.5)

    def _restart(self) -> None:
        self.world.crash(power=True, index_lost=self._draw.random() < 0.4)

    def _reopen(self) -> None:
        self.world.reopen()


def run_world(seed: int, schedules: int) -> Counter[str]:
    """One target's life; raises AssertionError with its history."""
    driver = Driver(random.Random(seed))
    world = driver.world
    try:
        for number in range(schedules):
            driver.schedule()
            if number % READ_ALL_EVERY == 0:
                world.check()
        world.check()
        world.check_no_garbage()
        world.check()
        world.check_all_goes()
    finally:
        world.end_threads()
    return Counter(
        schedules=schedules,
        commits=world.commits,
        moves=world.moves,
        cycles=world.cycles,
        deleted_containers=world.deleted_containers,
        scrubs=world.scrubs_done,
        flips=world.flips,
        refused=world.refused,
        heals=world.heals,
        crashes=world.crashes,
        restores=world.restores,
    )


def _run(name: str, count: int) -> None:
    seed, figures, violations = campaign.seed_of(name), Counter[str](), 0
    draw = random.Random(seed)
    try:
        while figures["schedules"] < count:
            world_seed = draw.getrandbits(48)
            try:
                figures += run_world(world_seed, SCHEDULES_A_WORLD)
            except Exception:
                violations += 1
                print(f"world {world_seed}")  # noqa: T201 - replays the one that failed
                raise
    finally:
        campaign.report(name, seed=seed, **figures, violations=violations)
    for what in ("commits", "moves", "cycles", "crashes"):
        assert figures[what] > figures["schedules"] // 10, what
    assert figures["deleted_containers"] > 0


def test_schedules_short() -> None:
    _run("target schedules, short", SCHEDULES_SHORT)


@pytest.mark.campaign
@pytest.mark.timeout(0)
def test_schedules() -> None:
    _run("target schedules", campaign.scaled(SCHEDULES))
