"""kill -9 of each of the five daemons at each step of a backup, of a restore and of one in place.

A daemon dies at a failpoint of its own, or, where it has none, as soon as the job's record tells
that the step began; it is started again at once. What is checked: within a minute the job has
succeeded or failed and nothing is left of it; a backup that exists has every byte of its snapshot,
a restored VM every byte of its backup, disks that were restored in place all have the backup's bytes (and
named snapshots what they held) or all their own, and the earlier backup is untouched.
"""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from arraylift.errors import ArrayliftError, NotFound, PeerUnavailable
from arraylift.ids import random_id
from arraylift.sizes import MIB
from arraylift.v1 import backup_pb2 as pb
from arraylift.v1 import vm_pb2
from backup_server.job_rules import restored_volume_name
from tests.e2e.cluster import ARRAY
from tests.e2e.daemon import Daemon, wait_until
from tests.e2e.disks import random_disk
from tests.e2e.house import ENDED, JOB_SECONDS, House, Kept, refusal, running_house

DISKS = ("disk0", "disk1")
DISK_BYTES = 16 * MIB
CHANGED_BYTES = 6 * MIB
VM = "walked"
START_HITS_MAX = 10
AWAY_SECONDS = 45.0
DAEMONS = ("center", "host", "array", "target", "server")


@dataclass(frozen=True, slots=True)
class Point:
    """Who dies, in which step; ``failpoint`` empty: as soon as the step is seen to have begun."""

    daemon: str
    kind: str
    step: str
    failpoint: str = ""

    def __str__(self) -> str:
        return f"{self.daemon}, {self.kind}, {self.step}, {self.failpoint or 'as it begins'}"


def _backup(daemon: str, step: str, *failpoints: str) -> list[Point]:
    return [Point(daemon, "backup", step, failpoint) for failpoint in failpoints or ("",)]


def _restore(daemon: str, step: str, *failpoints: str) -> list[Point]:
    return [Point(daemon, "restore", step, failpoint) for failpoint in failpoints or ("",)]


def _in_place(daemon: str, step: str, *failpoints: str) -> list[Point]:
    return [Point(daemon, "in place", step, failpoint) for failpoint in failpoints or ("",)]


SWAP_STEPS = ("plan", "power", "stop", "swap", "start")
IN_PLACE_POINTS = [
    *(point for step in ("send", "power", "stop", "swap", "start") for point in _in_place("center", step)),
    *(point for step in ("send", "stop", "swap", "start") for point in _in_place("host", step)),
    *_in_place("array", "send", "journal.sync.before=kill", "journal.sync.after=kill@4", ""),
    *_in_place("array", "stop"),
    *_in_place("array", "swap", "restore-group.swap.before=kill", "restore-group.swap.after=kill"),
    *_in_place("array", "start"),
    *_in_place("target", "send"),
    *_in_place("target", "swap"),
    *(
        point
        for step in SWAP_STEPS
        for point in _in_place(
            "server", step, *(f"job.{step}.{when}=kill" for when in ("before", "done", "after"))
        )
    ),
    *_in_place("server", "send", "job.send*=kill@2", "job.send*=kill@3", ""),
    *_in_place("server", "end", "job.end.before=kill"),
]
POINTS = [
    *(point for step in ("snapshot", "send", "publish", "release") for point in _backup("center", step)),
    *(point for step in ("provision", "send", "attach") for point in _restore("center", step)),
    *_backup(
        "host",
        "snapshot",
        "vm-snapshot.intent=kill",
        "vm-snapshot.group.before=kill",
        "vm-snapshot.group.after=kill",
        "vm-snapshot.recorded=kill",
    ),
    *_backup("host", "send"),
    *_backup("host", "publish"),
    *_backup("host", "release", "vm-snapshot.release.marked=kill", "vm-snapshot.release.deleted=kill"),
    *_restore("host", "provision", "vm.making=kill", "vm.made=kill", "vm.rename.after=kill@2"),
    *_restore("host", "send"),
    *_restore("host", "attach", "vm.rename.before=kill@3", "vm.rename.after=kill@3"),
    *_backup("array", "snapshot", "journal.sync.before=kill", "journal.sync.after=kill"),
    *_backup("array", "send"),
    *_backup("array", "publish"),
    *_backup("array", "release", "journal.sync.before=kill@3", "journal.sync.after=kill@4"),
    *_restore("array", "provision"),
    *_restore("array", "send", "journal.sync.before=kill", "journal.sync.after=kill@5", ""),
    *_restore("array", "attach"),
    *_backup("target", "snapshot"),
    *_backup(
        "target",
        "send",
        "transfer-create.rename.after=kill",
        "container.rename.before=kill",
        "manifest.rename.before=kill",
        "manifest.fsync_dir.after=kill",
    ),
    *_backup(
        "target", "publish", "backup-manifest.rename.before=kill", "backup-manifest.fsync_dir.after=kill"
    ),
    *_backup("target", "release"),
    *_restore("target", "provision"),
    *_restore("target", "send"),
    *_restore("target", "attach"),
    *(
        point
        for step in ("snapshot", "publish", "release")
        for point in _backup("server", step, f"job.{step}.before=kill", f"job.{step}.done=kill")
    ),
    *_backup("server", "send", "job.send*=kill@2", "job.send*=kill@3", ""),
    *_backup("server", "end", "job.end.before=kill"),
    *_restore("server", "provision", "job.provision.before=kill", "job.provision.done=kill"),
    *_restore("server", "send", "job.send*=kill@2", "job.send*=kill@3", ""),
    *_restore("server", "attach", "job.attach*=kill@1", "job.attach*=kill@2", "job.end.before=kill"),
    *IN_PLACE_POINTS,
]
FEW_POINTS = [
    *_backup("center", "snapshot"),
    *_backup("host", "snapshot", "vm-snapshot.group.after=kill"),
    *_backup("array", "send"),
    *_backup("target", "publish", "backup-manifest.fsync_dir.after=kill"),
    *_restore("server", "provision", "job.provision.done=kill"),
    *_in_place("array", "swap", "restore-group.swap.after=kill"),
    *_in_place("server", "swap", "job.swap.done=kill"),
]


class Walk:
    """One VM in one house, its first backup, and job after job with somebody dying."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.daemons: dict[str, Daemon] = {name: getattr(house, name) for name in DAEMONS}
        self.seed = 1
        for disk in DISKS:
            house.import_disk(f"{VM}-{disk}", random_disk(DISK_BYTES, seed=self._next_seed()))
        config = vm_pb2.VmConfig(
            name=VM,
            cpus=1,
            memory_bytes=64 * MIB,
            disks=[house.disk(disk, volume=f"{VM}-{disk}") for disk in DISKS],
        )
        self.vm = house.ask("CreateVm", vm_pb2.CreateVmRequest(vm_id=random_id(), config=config)).vm
        house.ask("PowerOn", vm_pb2.PowerOnRequest(vm_id=self.vm.vm_id))
        house.wait_managed(VM)
        self.first = house.keep(self.vm)

    def _next_seed(self) -> int:
        self.seed += 1
        return self.seed

    def run(self, point: Point) -> str:
        """Have somebody die there; returns how the job ended and how long after the restart."""
        victim = self.daemons[point.daemon]
        if point.kind != "restore":
            for disk in DISKS:
                self.house.write(f"{VM}-{disk}", 0, random_disk(CHANGED_BYTES, seed=self._next_seed()))
        content = self.house.vm_bytes(self.vm)
        if point.failpoint:
            self._arm(victim, point.failpoint)
        self.house.wait_managed(VM)
        as_name = f"{VM}-again-{self._next_seed()}"
        if point.kind == "backup":
            (job_id,) = self.house.start_backup(VM)
        elif point.kind == "restore":
            job_id = self.house.start_restore(self.first.backup_id, as_name=as_name)
        else:
            job_id = self.house.start_restore(self.first.backup_id, in_place=True, stop=True, start=True)
        at = self._die(victim, point, job_id)
        victim.start()
        restarted = time.monotonic()
        job = self.house.wait_job(job_id)
        seconds = time.monotonic() - restarted
        self.house.wait_nothing_left(seconds=JOB_SECONDS - seconds)
        if point.kind == "backup":
            self._check_backup(job, content)
        elif point.kind == "restore":
            self._check_restore(job, as_name)
        else:
            self._check_in_place(job, content)
        self.house.check_images(self.first)
        end = {pb.JOB_STATE_SUCCEEDED: "succeeded", pb.JOB_STATE_FAILED: f"failed: {job.error_text}"}[
            job.state
        ]
        return f"died in [{at}]; {end} {seconds:.1f} s after the restart"

    def _arm(self, victim: Daemon, failpoint: str) -> None:
        """Start it with a failpoint; where it dies in its start, the point is armed for a later hit."""
        victim.stop()
        name, _, hit = failpoint.partition("@")
        for later in range(START_HITS_MAX):
            victim.launch(failpoints=f"{name}@{int(hit or 1) + later}")
            if victim.wait_started_or_dead():
                break
        wait_until(lambda: self.house.hosts_alive() == ["host1"], "the host reports")

    def _die(self, victim: Daemon, point: Point, job_id: str) -> str:
        """Wait for its death, or kill it in the step; returns the steps that were under way."""
        under_way = ""
        deadline = time.monotonic() + JOB_SECONDS
        while not _is_dead(victim):
            assert time.monotonic() < deadline, f"{point}: never reached"
            with contextlib.suppress(PeerUnavailable):
                job = self.house.job(job_id)
                under_way = ", ".join(step.name for step in job.steps if not step.ended_at_ns)
                if point.failpoint:
                    assert job.state not in ENDED or _is_dead(victim), f"{point}: missed, {job}"
                elif any(step.name.startswith(point.step) for step in job.steps):
                    victim.kill()
        victim.wait_dead()
        return under_way

    def _check_backup(self, job: pb.Job, content: dict[str, bytes]) -> None:
        if job.state == pb.JOB_STATE_SUCCEEDED:
            self.house.check_images(Kept(job.job_id, content))
        else:
            assert isinstance(refusal(lambda: self.house.backup(job.job_id)), NotFound)

    def _check_restore(self, job: pb.Job, as_name: str) -> None:
        vms = self.house.all_vms()
        if job.state == pb.JOB_STATE_SUCCEEDED:
            assert vms[as_name].vm_id == job.result_vm_id
            self.house.check_vm(vms[as_name], self.first.disks)
            self.house.delete_vm(as_name)
            return
        assert as_name not in vms
        for disk in DISKS:
            name = restored_volume_name(as_name, disk, job.job_id)
            assert not self.house.restore_is_open(name, array=ARRAY)

    def _check_in_place(self, job: pb.Job, content: dict[str, bytes]) -> None:
        """New, with the old state kept, or old, and whole in any case; the VM runs."""
        swapped = bool(job.safeties)
        self.house.check_vm(self.vm, self.first.disks if swapped else content)
        self.house.check_safeties(job, content if swapped else {})
        assert swapped or job.state == pb.JOB_STATE_FAILED
        if job.state == pb.JOB_STATE_SUCCEEDED:
            assert self.house.power(VM) == vm_pb2.POWER_STATE_ON
        self.house.drop_safeties()
        for disk in DISKS:
            assert not self.house.restore_is_open(f"{VM}-{disk}", group=True)
        self.house.ask("PowerOn", vm_pb2.PowerOnRequest(vm_id=self.vm.vm_id))

    def finish(self) -> None:
        """The first backup, restored after all that."""
        self.house.check_restore(self.first, as_name=f"{VM}-at-the-end")


def _is_dead(daemon: Daemon) -> bool:
    return not daemon.running


def test_somebody_dies_in_mid_job_and_all_is_well(tmp_path: Path) -> None:
    with running_house(tmp_path) as house:
        walk = Walk(house)
        for point in FEW_POINTS:
            walk.run(point)
        walk.finish()


def _end_badly(walk: Walk, job_id: str, state: int) -> pb.Job:
    """The job ends so, with nothing left, and the VM can be backed up at once."""
    house = walk.house
    job = house.wait_job(job_id)
    assert job.state == state, job
    house.wait_nothing_left()
    house.check_images(walk.first)
    assert sorted(house.all_vms()) == [VM]
    house.check_images(house.keep(walk.vm))
    return job


@pytest.mark.parametrize("kind", ["backup", "restore", "in place"])
def test_a_server_that_dies_while_it_cleans_up_goes_on_with_it(tmp_path: Path, kind: str) -> None:
    with running_house(tmp_path) as house:
        walk = Walk(house)
        house.server.stop()
        house.server.start(failpoints=f"job.clean*=kill@{1 if kind == 'in place' else 2}")
        for disk in DISKS:
            house.write(f"{VM}-{disk}", 0, random_disk(DISK_BYTES, seed=7))
        spoilt = house.vm_bytes(walk.vm)
        if kind == "backup":
            (job_id,) = house.start_backup(VM)
        elif kind == "restore":
            job_id = house.start_restore(walk.first.backup_id, as_name="never")
        else:
            job_id = house.start_restore(walk.first.backup_id, in_place=True, stop=True)
        wait_until(
            lambda: any(step.name.startswith("send") for step in house.job(job_id).steps), "sending begins"
        )
        house.ask_server("CancelJob", pb.CancelJobRequest(job_id=job_id))
        house.server.wait_dead()
        house.server.start()
        _end_badly(walk, job_id, pb.JOB_STATE_CANCELLED)
        house.check_vm(walk.vm, spoilt)
        assert house.power(VM) == vm_pb2.POWER_STATE_ON


@pytest.mark.campaign
@pytest.mark.parametrize("kind", ["backup", "restore"])
@pytest.mark.parametrize("daemon", ["target", "array", "host"])
def test_who_stays_away_fails_the_job_which_cleans_up_once_he_is_back(
    tmp_path: Path, daemon: str, kind: str
) -> None:
    with running_house(tmp_path, patience_seconds=6) as house:
        walk = Walk(house)
        victim = walk.daemons[daemon]
        for disk in DISKS:
            house.write(f"{VM}-{disk}", 0, random_disk(DISK_BYTES, seed=7))
        if daemon == "host":  # needed for an instant only, at the beginning
            victim.kill()
        if kind == "backup":
            (job_id,) = house.start_backup(VM)
        else:
            job_id = house.start_restore(walk.first.backup_id, as_name="never")
        if daemon != "host":
            wait_until(
                lambda: any(step.name.startswith("send") for step in house.job(job_id).steps),
                "sending begins",
            )
            victim.kill()
        wait_until(
            lambda: bool(house.job(job_id).error_text),
            "the job gives up",
            seconds=AWAY_SECONDS,
        )
        victim.start()
        _end_badly(walk, job_id, pb.JOB_STATE_FAILED)


@pytest.mark.campaign
@pytest.mark.parametrize("daemon", DAEMONS)
def test_everybody_dies_at_every_step(tmp_path: Path, daemon: str) -> None:
    """A point that fails is told at the end; the next one has a fresh house."""
    left = [point for point in POINTS if point.daemon == daemon]
    problems: list[str] = []
    while left:
        home = tmp_path / str(len(left))
        home.mkdir()
        with running_house(home) as house:
            walk = Walk(house)
            while left:
                point = left.pop(0)
                try:
                    told = walk.run(point)
                except (AssertionError, ArrayliftError) as error:
                    problems.append(f"{point}: {error}\n{house.logs()}")
                    sys.stdout.write(f"{point}: BAD {error}\n")
                    break
                sys.stdout.write(f"{point}: {told}\n")
            else:
                walk.finish()
    assert not problems, "\n\n".join(problems)
