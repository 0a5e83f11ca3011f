"""Restores in place through random faults, deaths, cancellations and people who start the VM meanwhile.

The law: the disks are all old or all new; never swapped under a guest; nothing is left but, if they are
new, the named snapshots of what they held; a job that says success made them new, one that was cancelled left
them old, and then the VM runs as it did.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

import pytest

from arraylift import errors
from arraylift.v1 import vm_pb2
from backup_server.engine import JobView
from backup_server.job_rules import JobState
from backup_server.model import Backup
from tests.fakes.backup_server import Killed, Rig
from tests.fakes.world import Fault
from tests.unit.backup_server.test_in_place_job import check_told, disks_of, images

OFF, ON = vm_pb2.POWER_STATE_OFF, vm_pb2.POWER_STATE_ON
METHODS = ("GetVm", "PrepareRestore", "SendImage", "CommitRestoreGroup", "ListVolumes", "RevokeRestore")
POWER = {False: ("GetManagedVm", "PowerVm"), True: ("PowerOff", "PowerOn")}
KINDS = ("fail", "lost", "twice", "for good", "lost for good")
BOUNDARIES = 30
"""More than a run has; later ones are never reached."""


def once(rig: Rig, backup: Backup, draw: random.Random) -> None:
    """One restore in place with whatever happens to it."""
    world, vm = rig.world, rig.world.vm_named("web1")
    for known in (world.held, world.lineages, world.safeties, world.faults):
        known.clear()
    vm.power = draw.choice((ON, ON, OFF))
    was, direct, start = vm.power, draw.random() < 0.3, draw.random() < 0.5
    job_id, meddled = rig.order_in_place(backup.backup_id, start=start, direct=direct), False

    def start_it() -> None:
        nonlocal meddled
        vm.power, meddled = ON, True

    for _ in range(draw.randrange(4)):
        kind = draw.choice(KINDS)
        world.fault(
            draw.choice(METHODS + POWER[direct]),
            *["none"] * draw.randrange(3),
            _fault(kind, start_it if draw.random() < 0.3 else lambda: None),
        )
    cancel_at, meddle_at = (draw.randrange(2 * BOUNDARIES) for _ in range(2))
    deaths = sorted(draw.randrange(BOUNDARIES) for _ in range(draw.randrange(3)))
    count = 0

    def boundary(_name: str) -> None:
        nonlocal count
        count += 1
        if count == cancel_at:
            with contextlib.suppress(errors.WrongState):
                rig.server.engine.cancel(job_id)
        if count == meddle_at:
            start_it()

    rig.on_boundary = boundary
    view = None
    while view is None:
        rig.boundaries.clear()
        rig.kill_at = deaths.pop() if deaths else None
        try:
            view = rig.run(job_id)
        except Killed:
            rig.restart()
    rig.on_boundary = lambda _name: None
    rig.kill_at = None
    world.wait_idle()
    rig.sweep()
    check(rig, backup, rig.server.engine.view(job_id), view, was=was, meddled=meddled)


def _fault(kind: str, meanwhile: Callable[[], None]) -> Fault:
    if kind.endswith("for good"):
        return Fault("lost" if "lost" in kind else "fail", errors.Corruption("no"), meanwhile)
    return Fault(kind, meanwhile=meanwhile)


def check(rig: Rig, backup: Backup, view: JobView, ended: JobView, *, was: int, meddled: bool) -> None:
    held, power = disks_of(rig), rig.world.vm_named("web1").power
    assert rig.world.swapped_under_a_guest == []
    assert rig.world.leftovers() == []
    if held == ["old", "old"]:
        assert ended.job.state in {JobState.FAILED, JobState.CANCELLED}
        assert rig.world.safeties == {}
        assert view.outcome.safeties == ()
        assert meddled or power == was or ended.job.failure is not None
        return
    assert held == images(backup), "half"
    assert ended.job.state in {JobState.SUCCEEDED, JobState.FAILED}
    assert sorted(rig.world.safeties) == ["web1-disk0@old", "web1-disk1@old"]
    check_told(rig, view)


@pytest.mark.parametrize("seed", range(4))
def test_all_or_nothing_whatever_happens(rig: Rig, seed: int) -> None:
    backup, draw = rig.back_up(), random.Random(seed)
    for _ in range(15):
        once(rig, backup, draw)


@pytest.mark.campaign
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(100, 140))
def test_all_or_nothing_for_long(rig: Rig, seed: int) -> None:
    backup, draw = rig.back_up(), random.Random(seed)
    for _ in range(100):
        once(rig, backup, draw)
