"""The server dies before any transaction of a round of policies: runs, starts, locks, deletions go on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backup_server.job_rules import JobState
from backup_server.policies.policy import Policy, Selection
from backup_server.policies.retention import Retention
from backup_server.policies.schedule import Schedule
from tests.fakes.backup_server import Killed, Rig
from tests.fakes.peers import FakePeers
from tests.unit.backup_server.test_policy_runs import Desk, HandClock
from tests.wire.stage import House

PRUNED = Policy(
    "pruned",
    selection=Selection(vms=("web1",)),
    schedule=Schedule(("0 2 * * *",)),
    retention=Retention(keep_last=1),
)
LOCKED = Policy("locked", selection=Selection(vms=("db1",)), schedule=PRUNED.schedule, lock_days=36_500)
CHANGES_MAX = 60


def kill_before_change(rig: Rig, number: int) -> list[int]:
    """The process ends as it begins its transaction of that number; returns how many there were."""
    real, count = rig.server.db.change, [0]

    @contextlib.contextmanager
    def change() -> Iterator[Any]:
        count[0] += 1
        if count[0] > number:
            raise Killed
        with real() as db:
            yield db

    rig.server.db.change = change  # type: ignore[method-assign]
    return count


def prepared(rig: Rig) -> Desk:
    """Both policies ran on two days; on the third their runs are due."""
    desk = Desk(rig, HandClock("2026-11-24T12:00"))
    for policy in (PRUNED, LOCKED):
        desk.store.set(policy, now_ns=desk.clock.now_ns)
    for day in (25, 26):
        desk.runs._retained_at[PRUNED.name] = desk.clock.monotonic() + 10**9  # not yet
        desk.round_at(f"2026-11-{day}T02:00")
        desk.finish()
    desk.runs._retained_at.clear()
    return desk


def test_a_round_that_dies_anywhere_is_gone_on_with(
    fake_peers: FakePeers, fake_house: House, tmp_path: Path
) -> None:
    tls = fake_house.identity("server", "server1")
    deaths = 0
    for number in range(CHANGES_MAX):
        fake_peers.world.reset()
        rig = Rig(tmp_path / str(number), fake_peers.world, tls)
        try:
            desk = prepared(rig)
            count = kill_before_change(rig, number)
            died = False
            try:
                desk.round_at("2026-11-27T02:00")
            except Killed:
                died, deaths = True, deaths + 1
            rig.restart()
            desk.renew()
            rig.server.backups.finish_deletes()
            desk.round_at("2026-11-27T02:01")
            desk.finish()
            desk.runs._retained_at.clear()
            desk.round_at("2026-11-27T02:02")
            check(desk)
        finally:
            rig.close()
        if not died:
            assert deaths == number == count[0], "each of its transactions was the last one once"
            return
    pytest.fail(f"a round has more than {CHANGES_MAX} transactions")


def check(desk: Desk) -> None:
    jobs = desk.jobs()
    assert len(jobs) == 6, "three days, two VMs, each once"
    assert {job.state for job in jobs} == {JobState.SUCCEEDED}
    left = desk.rig.server.backups.all()
    assert [one.backup_id for one in left if one.policy == PRUNED.name] == [
        max((job.created_at_ns, job.job_id) for job in jobs if job.vm_name == "web1")[1]
    ]
    locked = [one for one in left if one.policy == LOCKED.name]
    assert len(locked) == 3
    assert all(one.lock_until_ns for one in locked)
    assert desk.store.starts(count_max=9) == []
    world = desk.rig.world
    assert sorted(world.manifests) == sorted(one.backup_id for one in left)
    assert world.leftovers() == []
