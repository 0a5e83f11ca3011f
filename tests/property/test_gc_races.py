"""Whatever happens at whatever place inside a cycle: no image loses a byte, no promise is broken.

A cycle is stopped at each of its calls to what it shares with others (index, manifests, transfers, pins,
containers, state), one place a run; something happens there, to its end; the cycle goes on. Not where it
holds the lock under which promises are made, or containers indexed: there the others would wait.
Everything runs in one thread, so a failing place fails again.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from tests import campaign
from tests.property.gc_content import BIG_COUNT, SMALL_POOL, Content
from tests.property.gc_world import GcWorld, Sending

OLD = ((0, 1, 2, 3, 4, 5),)
"""Deleted, and condemned two cycles ago: due in the cycle under test."""
SPARSE = ((6, 7, 8, 9, 10, 11),)
KEPT = ((6, 7, 12, 13, 14, 15),)
TREE = ((SMALL_POOL, SMALL_POOL + 1) * (BIG_COUNT // 2), (), (16, 17, 18, 16, 17, 18))
RESUMED = ((SMALL_POOL + 2,) * BIG_COUNT, (19, 20, 21, 19, 20, 21))

STRIDE = 10
"""The default run tries one of so many places."""

Race = Callable[[GcWorld, "Stage"], None]


class Stage:
    """A target on which a cycle has everything to do, and what the races start from."""

    def __init__(self) -> None:
        self.world = world = GcWorld(random.Random(5))
        world.inherit_share = 1
        old = world.image(OLD)
        sparse = world.image(SPARSE)
        self.kept = world.image(KEPT)
        self.tree = world.image(TREE, name="b")
        world.delete(old)
        self.resumed = world.begin("", RESUMED, "c", full=True)
        world.open(self.resumed)
        while self.resumed.left:
            self._next(self.resumed)
        world.advance(self.resumed)
        world.crash(power=True)
        for _ in range(2):
            world.collect(live_percent_min=0)
        world.delete(sparse)  # its container is sparse now
        self.promised: Sending | None = None
        self.needed: Content = TREE
        """What must still be there while somebody reads or sends."""

    def _next(self, transfer: Sending) -> None:
        self.world.next_step(transfer)
        while transfer.asked:
            self.world.next_step(transfer)


# -- what may happen ----------------------------------------------------------------------------


def commit_what_only_the_log_holds(world: GcWorld, stage: Stage) -> None:
    world.open(stage.resumed)
    world.commit(stage.resumed)


def commit_then_forget(world: GcWorld, stage: Stage) -> None:
    """The log of a transfer that commits goes with its lease."""
    commit_what_only_the_log_holds(world, stage)
    world.lapse()


def send_what_is_being_deleted(world: GcWorld, _: Stage) -> None:
    world.image(OLD)


def promise_what_is_being_deleted(world: GcWorld, stage: Stage) -> None:
    stage.promised = transfer = world.begin("", OLD, "d", full=True)
    stage.needed = OLD
    world.open(transfer)
    world.offer(transfer)


def begin_on_a_base_and_delete_it(world: GcWorld, stage: Stage) -> None:
    stage.promised = world.begin("", (*TREE[:2], OLD[0]), "b", full=False)
    world.delete(stage.tree)


def open_on_a_base_and_delete_it(world: GcWorld, stage: Stage) -> None:
    begin_on_a_base_and_delete_it(world, stage)
    assert stage.promised is not None
    world.open(stage.promised)


def commit_on_a_base_that_is_deleted(world: GcWorld, stage: Stage) -> None:
    begin_on_a_base_and_delete_it(world, stage)
    assert stage.promised is not None
    while stage.promised.transfer_id in world.sending:
        world.next_step(stage.promised)
    stage.promised = None


def read_and_delete(world: GcWorld, stage: Stage) -> None:
    world.start_reading(stage.tree)
    world.delete(stage.tree)


def delete_the_last_root(world: GcWorld, stage: Stage) -> None:
    world.delete(stage.kept)
    world.delete(stage.tree)


def give_up_the_log(world: GcWorld, stage: Stage) -> None:
    world.revoke(stage.resumed)


def nothing(_world: GcWorld, _stage: Stage) -> None:
    pass


RACES: list[Race] = [
    commit_what_only_the_log_holds,
    commit_then_forget,
    send_what_is_being_deleted,
    promise_what_is_being_deleted,
    begin_on_a_base_and_delete_it,
    open_on_a_base_and_delete_it,
    commit_on_a_base_that_is_deleted,
    read_and_delete,
    delete_the_last_root,
    give_up_the_log,
]


# -- where ----------------------------------------------------------------------------------------


class Places:
    """Counts the calls of a cycle to what it shares, and lets something happen before one of them."""

    def __init__(self, patch: pytest.MonkeyPatch, world: GcWorld, at: int, act: Callable[[], None]) -> None:
        self.seen: list[str] = []
        self._at = at
        self._act = act
        self._lock: Any = world.store.unit.quarantine.lock
        self._unit = unit = world.store.unit
        for owner, names in (
            (unit.index, ("marks", "find_many", "add_containers")),
            (unit.manifests, ("all", "by_transfer")),
            (world.transfers, ("live_logs", "live_bases")),
            (unit.pins, ("held_roots", "is_spared")),
            (unit.containers, ("read_container", "acquire", "seal")),
            (unit.gc_state, ("spare", "condemn", "save")),
        ):
            for name in names:
                patch.setattr(owner, name, self._watched(name, getattr(owner, name)))

    def _watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **more: Any) -> Any:
            self._pass(name)
            return call(*args, **more)

        return watched

    def _pass(self, name: str) -> None:
        if self._lock._is_owned() or self._unit._adding.locked():
            return
        self.seen.append(name)
        if len(self.seen) - 1 == self._at:
            act, self._act = self._act, lambda: None
            act()


def _run(race: Race, at: int) -> int:
    """Let ``race`` happen at one place; returns how many there are."""
    stage = Stage()
    world = stage.world
    try:
        with pytest.MonkeyPatch.context() as patch:
            places = Places(patch, world, at, lambda: race(world, stage))
            world.note(f"{race.__name__} at {at}")
            world.collect()
            count = len(places.seen)
        world.note(f"places {places.seen}")
        for _ in range(4):
            world.collect()
        promised = stage.promised
        if world.reading or (promised is not None and promised.lane is not None and not promised.asked):
            assert world.holds("", stage.needed), f"what a reader or a transfer holds is gone; {world.story}"
        while world.reading:
            world.go_on_reading()
        if stage.promised is not None:
            while stage.promised.transfer_id in world.sending:
                world.next_step(stage.promised)
        if stage.resumed.transfer_id in world.sending:
            world.open(stage.resumed)
            assert not stage.resumed.left, f"what was durable was lost; {world.story}"
            world.commit(stage.resumed)
        assert world.conflicts == 0, f"a promise was broken; {world.story}"
        world.check()
        world.check_no_garbage()
        world.check()
    finally:
        world.end_threads()
    return count


def test_a_cycle_has_many_places() -> None:
    assert _run(nothing, 0) > 25


def _at_places(race: Race, first: int, stride: int) -> int:
    """Let the race happen at every ``stride``-th place; returns at how many."""
    at = first
    while at < _run(race, at):
        at += stride
    return (at - first) // stride


@pytest.mark.parametrize("race", RACES, ids=lambda race: race.__name__)
def test_a_race_at_some_places_of_a_cycle(race: Race) -> None:
    """A share of the places, another one in each run."""
    assert _at_places(race, random.randrange(STRIDE), STRIDE) > 1


@pytest.mark.campaign
@pytest.mark.parametrize("race", RACES, ids=lambda race: race.__name__)
def test_a_race_at_every_place_of_a_cycle(race: Race) -> None:
    count = _at_places(race, 0, 1)
    campaign.report("gc_races", seed="-", race=race.__name__, places=count, violations=0)
