"""The power goes, or the disk fails, at every change that three cycles of collection make.

The cycles copy forward, condemn and delete, beside a transfer of which only the log knows. Whatever disk is
found afterwards, with the index that there was or without one: all images are whole, the transfer goes on
where it was, and three quiet cycles leave no garbage.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from arraylift.errors import ArrayliftError
from tests import campaign
from tests.fakes.disk import FakeFiles, PowerCut
from tests.fakes.index import MemorySegmentIndex
from tests.property.gc_content import BIG_COUNT, SMALL_POOL
from tests.property.gc_world import GcWorld, Sending

STRIDE = 9
"""The default run tries one of so many changes, from a place that it draws."""
TREE = ((SMALL_POOL, SMALL_POOL + 1) * (BIG_COUNT // 2), (), (16, 17, 18, 16, 17, 18))


class Life:
    """A target with something to copy, to condemn and to delete, and a transfer under way."""

    def __init__(self) -> None:
        self.world = world = GcWorld(random.Random(3))
        first = world.image(((0, 1, 2, 3, 4, 5),))
        world.image(((0, 1, 6, 7, 8, 9),))
        second = world.image(((10, 11, 12, 13, 14, 15),), tenant="acme")
        world.image(TREE, name="b")
        third = world.image((*TREE[:2], (1, 2, 3, 1, 2, 3)), name="b", full=False)
        self.transfer: Sending = world.begin("", ((20, 21, 22, 20, 21, 22),), "c", full=True)
        world.open(self.transfer)
        while self.transfer.left or self.transfer.asked:
            world.next_step(self.transfer)
        world.advance(self.transfer)
        world.delete(first)
        world.delete(second)
        world.collect(live_percent_min=0)
        world.delete(third)

    def collect(self) -> None:
        for _ in range(3):
            self.world.collect()

    def check(self, files: FakeFiles, index: MemorySegmentIndex, *, index_lost: bool, where: str) -> None:
        """Start on what was found; then let everything come to its end."""
        world, images = self.world, dict(self.world.images)
        world.files, world.disk.index, world.disk.lost = files, index, index_lost
        world.note(where)
        world.open_store()
        try:
            world.check()
            self.transfer.lane = None
            world.open(self.transfer)
            assert not self.transfer.left, f"what was durable was lost; {world.story}"
            world.commit(self.transfer)
            world.check()
            world.check_no_garbage()
            world.check()
        finally:
            world.end_threads()
            world.images, world.sending = images, {self.transfer.transfer_id: self.transfer}


def _changes() -> int:
    life = Life()
    before = life.world.files.op_count
    life.collect()
    life.world.end_threads()
    return life.world.files.op_count - before


def _check_cuts(cuts: Iterable[int], states_max: int) -> int:
    states = 0
    for cut in cuts:
        life = Life()
        world = life.world
        world.files.crash_after(cut)
        with pytest.raises(PowerCut):
            life.collect()
        world.end_threads()
        index = world.disk.index
        for number, state in enumerate(world.files.post_crash_states(maximum=states_max, seed=cut)):
            lost = (cut + number) % 3 == 0
            life.check(
                state, index.copy(), index_lost=lost, where=f"cut {cut}, index lost {lost}: {state.story}"
            )
            states += 1
    return states


def test_a_cut_in_a_cycle_leaves_everything_that_is_alive() -> None:
    count = _changes()
    assert count > 30
    assert _check_cuts(range(random.randrange(STRIDE), count, STRIDE), states_max=2) > 2


@pytest.mark.campaign
@pytest.mark.timeout(0)
def test_every_state_after_every_cut_in_a_cycle() -> None:
    count = _changes()
    states = _check_cuts(range(count), states_max=48)
    campaign.report("gc_states", seed="-", cuts=count, states=states, violations=0)


def _check_faults(kind: str, places: Iterable[int]) -> None:
    """One change fails; the cycle tells or goes on, and the next start finds everything."""
    for at in places:
        life = Life()
        life.world.files.fail_after(at, kind)
        try:
            life.collect()
        except ArrayliftError:
            life.world.note("told")
        life.world.end_threads()
        files = life.world.files.after_kill()
        life.check(files, life.world.disk.index.copy(), index_lost=False, where=f"{kind} at {at}")


@pytest.mark.parametrize("kind", ["eio", "enospc"])
def test_a_disk_that_fails_once_in_a_cycle_loses_nothing(kind: str) -> None:
    _check_faults(kind, range(random.randrange(STRIDE), _changes(), STRIDE))


@pytest.mark.campaign
@pytest.mark.parametrize("kind", ["eio", "enospc"])
def test_every_change_of_a_cycle_fails_once(kind: str) -> None:
    _check_faults(kind, range(_changes()))
