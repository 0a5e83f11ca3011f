"""kill -9 of the center and of either host, at every step of a migration: it ends by itself, and at no
time can two hosts run the VM.

The short share is in every run; all points, and chains of kills by chance, are a campaign.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from arraylift.errors import ArrayliftError
from tests import campaign
from tests.e2e.cluster import in_thread
from tests.e2e.daemon import wait_until
from tests.e2e.move_house import CENTER, HOSTS, MoveHouse, running_move_house

NAME = "kills in migrations"
CHAINS_IN_CAMPAIGN = 100

OLD, NEW = "old", "new"
FULL_DISK = "vm.create.before=enospc"


@dataclass(frozen=True, slots=True)
class Point:
    """Who dies, where; ``undo``: in a migration that cannot succeed."""

    victim: str
    failpoint: str
    undo: bool = False

    def __str__(self) -> str:
        return f"{self.victim} {self.failpoint}" + (" undo" if self.undo else "")


POINTS = [
    *(Point(CENTER, f"move.{phase}") for phase in ("expect", "hand-over", "accept", "finish", "end")),
    *(Point(CENTER, f"move.{phase}", undo=True) for phase in ("undo", "end")),
    *(Point(OLD, f"migration.{step}") for step in ("handing", "handed-over", "ended", "let-go")),
    *(Point(NEW, f"migration.{step}") for step in ("expected", "accepting", "running", "accepted")),
    *(Point(NEW, f"migration.{step}", undo=True) for step in ("ended", "undone")),
    *(Point(OLD, f"migration.{step}", undo=True) for step in ("ended",)),
    *(Point(side, f"vm.rename.{when}") for side in (OLD, NEW) for when in ("before", "after")),
    *(Point(OLD, f"ended-migrations.rename.{when}") for when in ("before", "after")),
]
FEW_POINTS = [
    Point(CENTER, "move.accept"),
    Point(OLD, "migration.handed-over"),
    Point(NEW, "migration.running"),
]


class Walk:
    """One VM that is moved to and fro, while somebody dies each time."""

    def __init__(self, house: MoveHouse) -> None:
        self.house = house
        self.vm_id = house.make_vm("web1").vm_id
        self.moved = 0

    def run(self, point: Point) -> None:
        house = self.house
        source = house.shown(self.vm_id).host.name
        (destination,) = set(HOSTS) - {source}
        victim = {OLD: source, NEW: destination}.get(point.victim, point.victim)
        armed = {victim: f"{point.failpoint}=kill"}
        if point.undo:  # the old host has no room to note that it hands over: it refuses
            armed[source] = ",".join(filter(None, (FULL_DISK, armed.get(source))))
        for name, failpoints in armed.items():
            house.daemons[name].stop()
            house.daemons[name].start(failpoints=failpoints)
        house.wait_alive()
        moving = in_thread(lambda: iter(house.migrate(self.vm_id, destination)))
        dying = house.daemons[victim]
        wait_until(lambda: not dying.running, f"{point}: it dies")
        assert len(house.who_runs_it(self.vm_id)) <= 1, point
        dying.wait_dead()
        dying.start()
        house.wait_ended()
        now = house.check_at_rest(self.vm_id)
        self.moved += now != source
        try:
            moving.wait()
        except (ArrayliftError, AssertionError):
            pass  # cut, or undone: what counts is where the VM is
        else:
            assert now == destination, point


def test_somebody_dies_in_a_migration_and_it_ends_by_itself(tmp_path: Path) -> None:
    with running_move_house(tmp_path) as house:
        walk = Walk(house)
        for point in FEW_POINTS:
            walk.run(point)
        assert walk.moved == len(FEW_POINTS)


@pytest.mark.campaign
def test_campaign_of_every_point(tmp_path: Path) -> None:
    with running_move_house(tmp_path) as house:
        walk = Walk(house)
        for point in POINTS:
            walk.run(point)
    campaign.report(NAME, seed=0, points=len(POINTS), moved=walk.moved)


@pytest.mark.campaign
def test_campaign_of_chains_of_kills(tmp_path: Path) -> None:
    """Everybody is armed at once, by chance, and comes back armed: several may die in one migration."""
    seed = campaign.seed_of(NAME)
    chance = random.Random(seed)
    chains = campaign.scaled(CHAINS_IN_CAMPAIGN)
    with running_move_house(tmp_path) as house:
        vm_id = house.make_vm("web1").vm_id
        kills = moved = 0
        for _ in range(chains):
            kills += _chain(house, vm_id, chance)
            moved += house.check_at_rest(vm_id) == HOSTS[1]
    campaign.record(NAME, seed=seed, chains=chains, kills=kills)
    campaign.report(NAME, seed=seed, chains=chains, kills=kills, ended_on_the_second=moved)


def _chain(house: MoveHouse, vm_id: str, chance: random.Random) -> int:
    source = house.shown(vm_id).host.name
    (destination,) = set(HOSTS) - {source}
    sides = {OLD: source, NEW: destination, CENTER: CENTER}
    for name in sides.values():
        house.daemons[name].stop()
        own = [point for point in POINTS if sides[point.victim] == name]
        house.daemons[name].start(failpoints=f"{chance.choice(own).failpoint}=kill@{chance.randint(1, 2)}")
    house.wait_alive()
    in_thread(lambda: iter(house.migrate(vm_id, destination)))
    kills = 0
    deadline = chance.uniform(0.5, 4.0)
    for name in sides.values():
        try:
            wait_until(lambda name=name: not house.daemons[name].running, "it dies", seconds=deadline)  # type: ignore[misc]
        except AssertionError:
            continue
        assert len(house.who_runs_it(vm_id)) <= 1
        house.daemons[name].wait_dead()
        house.daemons[name].start()
        kills += 1
    for name in sides.values():  # whoever still has something armed dies now, or never
        if house.daemons[name].running:
            house.daemons[name].stop()
        house.daemons[name].start()
    house.wait_ended()
    return kills
