"""The power is cut at every step of a move to the archive, and of a drain: at each start after it every
image reads back, whichever unit has it, and the same move then ends.

Both units and the cache of the second lie on one simulated disk; their indexes in memory keep what was
durable, or are gone.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterable

import pytest

from arraylift.errors import NotFound
from tests import campaign
from tests.fakes.disk import PowerCut
from tests.property.test_commit_states import Backup
from tests.unit.dedup_target.material import backup
from tests.unit.dedup_target.units_world import BACKUPS, DISKS, UnitsWorld

STRIDE = 16
"""The default run tries one of so many primitive changes, from a place that it draws."""
STATES_MAX = 3

Act = Callable[[UnitsWorld], object]


def _staged() -> UnitsWorld:
    """Two images and a backup of one, in the first unit; the archive is empty."""
    world = UnitsWorld()
    world.add()
    world.send(*BACKUPS[:3])
    tenant = world.store.keys.by_name("default")
    made = backup(1, images=(1, 3))
    object.__setattr__(made, "tenant", tenant.tenant)
    world.store.unit.backups.publish(made)
    return world


def _archive(world: UnitsWorld) -> None:
    present = world.places()
    world.archive(*(one.image_id for one in BACKUPS[:3] if int(one.image_id, 16) in present))


def _drain(world: UnitsWorld) -> None:
    if not world.store.units.member("archive").entry.draining:
        _archive(world)
    world.admin.drain("archive")


def _delete_in_archive(world: UnitsWorld) -> None:
    _archive(world)
    with contextlib.suppress(NotFound):
        world.backups.delete_image(BACKUPS[1].image_id)


ACTS: dict[str, tuple[Act, dict[int, list[str]]]] = {
    "archive": (_archive, {1: ["archive"], 2: ["archive"], 3: ["active"]}),
    "drain": (_drain, {1: ["active"], 2: ["active"], 3: ["active"]}),
    "delete": (_delete_in_archive, {1: ["archive"], 3: ["active"]}),
}
"""What is done, and where the images are in the end."""


def _op_count(act: Act) -> int:
    """Primitive changes of the act."""
    world = _staged()
    first = world.files.op_count
    act(world)
    world.close()
    return world.files.op_count - first


def _cut(act: Act, cut: int) -> UnitsWorld:
    world = _staged()
    world.files.crash_after(cut)
    with pytest.raises(PowerCut):
        act(world)
    world.close()
    return world


def _check(world: UnitsWorld, act: Act, end: dict[int, list[str]], where: str) -> None:
    """Look at what a start finds, then do it again to the end."""
    try:
        found = world.places()
        assert set(found) >= set(end), where
        assert world.store.manifests.damaged == [], where
        world.check(iter(found), where)
        named = (BACKUPS[0].image_id, BACKUPS[2].image_id)
        assert world.store.backups.key(backup(1).backup_id).image_ids == named, where
        act(world)
        assert world.places() == end, where
        world.check(iter(end), where)
        for unit in world.store.units.open_units():
            assert unit.index.indexed_containers() == set(unit.containers.containers()), where
            assert unit.quarantine.is_empty, where
        assert world.target.read(Backup(1, DISKS[1], None)) == DISKS[1], where
    finally:
        world.close()


def _check_states(name: str, cuts: Iterable[int], states_max: int) -> int:
    act, end = ACTS[name]
    count = 0
    for cut in cuts:
        crashed = _cut(act, cut)
        for number, state in enumerate(crashed.files.post_crash_states(maximum=states_max, seed=cut)):
            lost = (cut + number) % 3 == 0
            indexes = crashed.indexes.after_crash(lost=lost)
            world = UnitsWorld(state, indexes)
            _check(world, act, end, f"{name}, cut {cut}, index lost: {lost}, {state.story}")
            count += 1
    return count


@pytest.mark.parametrize("name", ACTS)
def test_a_cut_leaves_every_image_readable_and_the_move_repeatable(name: str) -> None:
    """A share of the cuts, another one in each run; the campaign tries them all."""
    cuts = _op_count(ACTS[name][0])
    assert cuts > 40
    assert _check_states(name, range(secrets.randbelow(STRIDE), cuts, STRIDE), STATES_MAX) > 0


@pytest.mark.campaign
@pytest.mark.parametrize("name", ACTS)
def test_every_cut_leaves_every_image_readable(name: str) -> None:
    cuts = _op_count(ACTS[name][0])
    states = _check_states(name, range(cuts), campaign.scaled(16))
    campaign.report(f"power cuts in {name} of images", seed="all", cuts=cuts, states=states, images_lost=0)
