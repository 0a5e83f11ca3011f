"""Jobs whose server dies at any boundary of any step, any number of times, while peers misbehave.

Whatever happens: the job ends, succeeded or failed; a backup that succeeded has one manifest and all
its images, one that failed has none; nothing is left with host, array and target.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from arraylift import errors, pki
from backup_server.engine import JobView
from backup_server.job_rules import JobState
from tests.fakes.backup_server import Killed, Rig
from tests.fakes.peers import FakePeers
from tests.fakes.world import Fault
from tests.wire.stage import House

BACKUP_CALLS = (
    *("PrepareBackup", "CreateVmSnapshot", "GetVmSnapshot", "RenewSnapshot", "CreateGrant", "SendSnapshot"),
    *("PublishBackup", "ReleaseSnapshot", "DeleteVmSnapshot", "ListVmSnapshots", "RevokeGrant"),
    *("DeleteImage", "DeleteBackupManifest"),
)
RESTORE_CALLS = (
    *("PlaceVm", "ProvisionVm", "CreateVm", "PrepareRestore", "SendImage", "AttachVmVolume", "AttachVolume"),
    *("PowerVm", "PowerOn", "PowerOff", "RemoveVm", "DeleteVm", "DeleteVolume", "ListVolumes"),
)


@dataclass(frozen=True)
class Stage:
    house: House
    peers: FakePeers


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    directory = str(tmp_path_factory.mktemp("jobs-pki"))
    pki.init_ca(directory)
    house = House(directory)
    house.identity("server", "server1")
    peers = FakePeers(house)
    yield Stage(house, peers)
    peers.close()


def faults(methods: tuple[str, ...]) -> st.SearchStrategy[list[tuple[str, Fault]]]:
    kinds = st.sampled_from(["fail", "lost", "twice", "cut"])
    causes = st.sampled_from(
        [errors.PeerUnavailable("down"), errors.Overloaded("busy"), errors.Corruption("no")]
    )
    return st.lists(st.tuples(st.sampled_from(methods), st.builds(Fault, kinds, causes)), max_size=3)


def drive(rig: Rig, job_id: str, kills: list[int]) -> JobView:
    """Run the job in one life after the other; the last is not killed."""
    for kill_at in kills:
        rig.kill_at = kill_at
        try:
            rig.run(job_id)
        except Killed:
            event(f"killed at {rig.boundaries[-1].removeprefix('job.')}")
        rig.restart()
    view = rig.run(job_id)
    rig.sweep()
    return view


KILLS = st.lists(st.integers(0, 24), max_size=3)


@settings(max_examples=30)
@given(kills=KILLS, direct=st.booleans(), troubles=faults(BACKUP_CALLS), cancel_first=st.booleans())
@example(kills=[9, 9, 9], direct=False, troubles=[], cancel_first=False)
def test_a_backup_ends_whole_or_not_at_all(
    stage: Stage,
    kills: list[int],
    direct: bool,
    troubles: list[tuple[str, Fault]],
    cancel_first: bool,
) -> None:
    world = stage.peers.world
    world.reset()
    tls = pki.load(stage.house.directory, "server", "server1")
    with tempfile.TemporaryDirectory() as directory:
        rig = Rig(Path(directory), world, tls)
        try:
            job_id = rig.order_backup(direct=direct)
            for method, fault in troubles:
                world.fault(method, fault)
            if cancel_first and kills:
                rig.kill_at = kills[0]
                with contextlib.suppress(Killed):
                    rig.run(job_id)
                rig.restart()
                with contextlib.suppress(errors.WrongState):  # ended, or past its commit
                    rig.server.engine.cancel(job_id)
            view = drive(rig, job_id, kills)
            event(f"ends {view.job.state.name}")
            succeeded = view.job.state is JobState.SUCCEEDED
            assert view.job.state.ended
            assert world.leftovers() == []
            assert list(world.manifests) == [job_id] * succeeded
            assert world.made_manifests.count(job_id) <= 1
            assert [one.backup_id for one in rig.server.backups.all()] == [job_id] * succeeded
            rig.server.backups.sync()
            assert [one.backup_id for one in rig.server.backups.all()] == [job_id] * succeeded
            # The VM is free again.
            assert rig.run(rig.order_backup(direct=direct)).job.state.ended
        finally:
            rig.close()


@settings(max_examples=25)
@given(kills=KILLS, direct=st.booleans(), troubles=faults(RESTORE_CALLS), start=st.booleans())
@example(kills=[7, 3, 5], direct=True, troubles=[], start=True)
def test_a_restore_ends_whole_or_not_at_all(
    stage: Stage, kills: list[int], direct: bool, troubles: list[tuple[str, Fault]], start: bool
) -> None:
    world = stage.peers.world
    world.reset()
    tls = pki.load(stage.house.directory, "server", "server1")
    with tempfile.TemporaryDirectory() as directory:
        rig = Rig(Path(directory), world, tls)
        try:
            backup = rig.back_up()
            job_id = rig.order_restore(backup.backup_id, start=start, direct=direct)
            rig.boundaries.clear()
            for method, fault in troubles:
                world.fault(method, fault)
            view = drive(rig, job_id, kills)
            event(f"ends {view.job.state.name}")
            assert view.job.state in {JobState.SUCCEEDED, JobState.FAILED}
            assert world.leftovers() == []
            vms = world.restored()
            assert len(vms) == (view.job.state is JobState.SUCCEEDED)
            for vm in vms:
                assert [disk.name for disk in vm.config.disks] == ["disk0", "disk1"]
            assert list(world.manifests) == [backup.backup_id], "a restore changes no backup"
        finally:
            rig.close()


def boundaries_of(run: Callable[[Rig], str], stage: Stage, path: Path) -> list[str]:
    """The boundaries of one life that nobody cuts short."""
    stage.peers.world.reset()
    rig = Rig(path, stage.peers.world, pki.load(stage.house.directory, "server", "server1"))
    try:
        job_id = run(rig)
        rig.boundaries.clear()
        rig.run(job_id)
        return sorted(set(rig.boundaries))
    finally:
        rig.close()


def killed_once(run: Callable[[Rig], str], stage: Stage, path: Path, boundary: str) -> tuple[Rig, str]:
    """A server that died at that boundary, opened again; and its job."""
    stage.peers.world.reset()
    rig = Rig(path, stage.peers.world, pki.load(stage.house.directory, "server", "server1"))
    job_id = run(rig)
    rig.kill_on = boundary
    with pytest.raises(Killed):
        rig.run(job_id)
    rig.restart()
    return rig, job_id


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_every_boundary_of_a_backup_once(stage: Stage, tmp_path: Path, direct: bool, fails: bool) -> None:
    """Not by chance: each boundary there is, cleaning up included, is the one at which the server dies."""
    world = stage.peers.world

    def order(rig: Rig) -> str:
        if fails:
            world.fault("PublishBackup", *[Fault("lost", errors.Corruption("no"))] * 2)
        return rig.order_backup(direct=direct)

    names = boundaries_of(order, stage, tmp_path / "plain")
    assert {"job.snapshot.done", "job.send disk1.done", "job.publish.before", "job.end.before"} <= {*names}
    assert ("job.clean unpublish.before" in names) is fails
    assert ("job.release.done" in names) is not fails
    for number, boundary in enumerate(names):
        rig, job_id = killed_once(order, stage, tmp_path / str(number), boundary)
        try:
            view = rig.run(job_id)
            rig.sweep()
            assert view.job.state is (JobState.FAILED if fails else JobState.SUCCEEDED), boundary
            assert list(world.manifests) == [job_id] * (not fails), boundary
            assert world.leftovers() == [], boundary
        finally:
            rig.close()


@pytest.mark.parametrize("fails", [False, True])
def test_every_boundary_of_a_restore_once(stage: Stage, tmp_path: Path, fails: bool) -> None:
    """Likewise; and the array forgets its grants each time."""
    world = stage.peers.world

    def order(rig: Rig) -> str:
        if fails:
            world.fault("PowerVm", Fault("lost", errors.Corruption("no")))
        return rig.order_restore(rig.back_up().backup_id, start=True)

    names = boundaries_of(order, stage, tmp_path / "plain")
    assert {"job.plan.done", "job.send disk1.done", "job.attach disk0.done", "job.end.before"} <= {*names}
    assert ("job.clean vm.before" in names) is fails
    for number, boundary in enumerate(names):
        rig, job_id = killed_once(order, stage, tmp_path / str(number), boundary)
        try:
            world.forget_restores()
            view = rig.run(job_id)
            rig.sweep()
            assert view.job.state is (JobState.FAILED if fails else JobState.SUCCEEDED), boundary
            assert len(world.restored()) == (not fails), boundary
            assert world.leftovers() == [], boundary
        finally:
            rig.close()
