"""The QEMU driver under a real host agent and a real array: whatever dies, all agree again.

Most steps at which the host agent is killed are campaigns; one of each kind runs always.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arraylift.errors import ArrayliftError, DeadlineExceeded, NotFound, PeerUnavailable, WrongState
from arraylift.sizes import MIB
from arraylift.v1 import vm_pb2 as pb
from arraylift.vm.types import DISKS_MAX
from tests.e2e.daemon import wait_until
from tests.e2e.qemu_hosts import QemuHosts, running_hosts
from tests.programs import lacking


def steps(always: str, *campaign: str) -> list[Any]:
    """Where the host agent is killed."""
    return [always, *(pytest.param(step, marks=pytest.mark.campaign) for step in campaign)]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QemuHosts]:
    # A path that no Unix socket could be bound to.
    with running_hosts(tmp_path_factory.mktemp("d" * 100)) as found:
        yield found


def test_a_guest_outlives_its_host_agent_and_leaves_nothing_when_it_is_off(hosts: QemuHosts) -> None:
    vm_id = hosts.make()
    assert hosts.agrees(vm_id)
    hosts.on(vm_id)
    hosts.on(vm_id)
    assert hosts.is_on(vm_id)
    assert hosts.agrees(vm_id)
    [before] = hosts.processes(vm_id)
    assert all(one.connection_count for one in hosts.exports())
    hosts.host.kill()
    hosts.arm_host("")
    assert hosts.is_on(vm_id)
    assert hosts.processes(vm_id) == [before]
    with pytest.raises(WrongState):
        hosts.ask("DeleteVm", pb.DeleteVmRequest(vm_id=vm_id))
    hosts.off(vm_id)
    assert hosts.agrees(vm_id)
    hosts.on(vm_id)
    hosts.off(vm_id)
    hosts.ask("DeleteVm", pb.DeleteVmRequest(vm_id=vm_id))
    assert hosts.volume_names() == []
    assert list((hosts.host.state / "qemu").iterdir()) == []


def test_a_qemu_that_dies_is_shown_off_and_starts_again(hosts: QemuHosts) -> None:
    vm_id = hosts.make("dies")
    hosts.on(vm_id)
    os.kill(hosts.processes(vm_id)[0], signal.SIGKILL)
    wait_until(lambda: not hosts.is_on(vm_id), "the VM is shown off", seconds=20)
    hosts.wait_agreed(vm_id)
    hosts.on(vm_id)
    os.kill(hosts.processes(vm_id)[0], signal.SIGKILL)
    wait_until(lambda: not hosts.processes(vm_id), "it is dead")
    hosts.on(vm_id)  # perhaps before the host has noticed
    wait_until(lambda: hosts.is_on(vm_id) and hosts.agrees(vm_id), "it runs again", seconds=20)
    hosts.off(vm_id)


@pytest.mark.parametrize(
    "step",
    steps(
        "qemu.spawn.after",
        "qemu.exported",
        "qemu.spawn.before",
        "qemu.answers",
        "qemu.runs",
        "qemu.rename.after",
        "vm.rename.before",
    ),
)
def test_a_host_agent_killed_in_a_start_leaves_one_qemu_or_none(hosts: QemuHosts, step: str) -> None:
    vm_id = hosts.make(f"start {step}", disks=1)
    hosts.host.kill()
    hosts.arm_host(f"{step}=kill")
    with pytest.raises(ArrayliftError):
        hosts.on(vm_id)
    hosts.revive()
    hosts.wait_agreed(vm_id)
    hosts.on(vm_id)
    assert hosts.is_on(vm_id)
    hosts.wait_agreed(vm_id)
    hosts.off(vm_id)
    assert hosts.agrees(vm_id)


@pytest.mark.parametrize(
    "step", steps("qemu.rename.after", "qemu.ended", "qemu.rename.before", "vm.rename.before")
)
def test_a_host_agent_killed_in_a_stop_knows_that_the_guest_is_off(hosts: QemuHosts, step: str) -> None:
    vm_id = hosts.make(f"stop {step}", disks=1)
    hosts.on(vm_id)
    hosts.host.kill()
    hosts.arm_host(f"{step}=kill")
    with pytest.raises(ArrayliftError):
        hosts.off(vm_id)
    hosts.revive()
    wait_until(lambda: not hosts.is_on(vm_id), "the VM is shown off", seconds=20)
    hosts.wait_agreed(vm_id)


@pytest.mark.parametrize("step", steps("qemu.rename.after", "vm.rename.after", "qemu.plugged"))
def test_a_host_agent_killed_in_an_attach_attaches(hosts: QemuHosts, step: str) -> None:
    vm_id = hosts.make(f"attach {step}", disks=1)
    hosts.import_disk(f"extra {step}", bytearray(MIB))
    hosts.on(vm_id)
    hosts.host.kill()
    hosts.arm_host(f"{step}=kill")
    extra = hosts.disk("extra", volume=f"extra {step}")
    with pytest.raises(ArrayliftError):
        hosts.ask("AttachVolume", pb.AttachVolumeRequest(vm_id=vm_id, disk=extra))
    hosts.revive()
    assert len(hosts.vm(vm_id).config.disks) == 2
    hosts.wait_agreed(vm_id)
    hosts.ask("AttachVolume", pb.AttachVolumeRequest(vm_id=vm_id, disk=extra))
    hosts.off(vm_id)


@pytest.mark.campaign
def test_a_guest_that_does_not_let_go_keeps_its_disk(hosts: QemuHosts) -> None:
    vm_id = hosts.make("holds on")
    hosts.on(vm_id)
    with pytest.raises(DeadlineExceeded, match="does not let go of disk d1"):
        hosts.ask("DetachVolume", pb.DetachVolumeRequest(vm_id=vm_id, disk_name="d1"))
    assert len(hosts.vm(vm_id).config.disks) == 2
    assert hosts.agrees(vm_id)
    hosts.off(vm_id)
    hosts.ask("DetachVolume", pb.DetachVolumeRequest(vm_id=vm_id, disk_name="d1"))
    hosts.on(vm_id)
    assert hosts.agrees(vm_id)
    hosts.off(vm_id)


def test_a_qemu_that_hangs_goes_by_force_in_bounded_time(hosts: QemuHosts) -> None:
    vm_id = hosts.make("hangs")
    hosts.on(vm_id)
    os.kill(hosts.processes(vm_id)[0], signal.SIGSTOP)
    began = time.monotonic()
    taken = hosts.ask("CreateVmSnapshot", pb.CreateVmSnapshotRequest(vm_id=vm_id, name="job")).snapshot
    assert taken.level == pb.CONSISTENCY_LEVEL_CRASH
    assert time.monotonic() - began < 15
    hosts.ask("DeleteVmSnapshot", pb.DeleteVmSnapshotRequest(vm_snapshot_id=taken.vm_snapshot_id))
    began = time.monotonic()
    hosts.ask("PowerOff", pb.PowerOffRequest(vm_id=vm_id, grace_seconds=1))
    assert time.monotonic() - began < 20
    assert hosts.agrees(vm_id)


def test_an_array_that_is_away_stops_a_start_and_no_stop(hosts: QemuHosts) -> None:
    vm_id = hosts.make("alone", disks=1)
    hosts.array.stop()
    with pytest.raises(PeerUnavailable):
        hosts.on(vm_id)
    assert hosts.processes(vm_id) == []
    hosts.array.start()
    hosts.wait_array()
    hosts.wait_agreed(vm_id)
    hosts.on_when_it_can(vm_id)
    hosts.array.stop()
    hosts.off(vm_id)
    assert not hosts.is_on(vm_id)
    assert hosts.processes(vm_id) == []
    with pytest.raises(PeerUnavailable):
        hosts.ask("DeleteVm", pb.DeleteVmRequest(vm_id=vm_id))
    hosts.host.kill()
    hosts.host.start()
    hosts.array.start()
    hosts.wait_array()
    hosts.wait_agreed(vm_id)


def test_what_this_host_has_not_is_said_before_anything_runs(hosts: QemuHosts) -> None:
    hosts.host.kill()
    hosts.configure("host", networks=["lan=isolated"], ovmf_code=str(hosts.home / "no.fd"))
    hosts.arm_host("")
    other, uefi = hosts.make("elsewhere", network="dmz"), hosts.make("uefi", firmware="uefi")
    for vm_id, why in ((other, "no network 'dmz'"), (uefi, "no.fd")):
        with pytest.raises(WrongState, match=why):
            hosts.on(vm_id)
        assert hosts.agrees(vm_id)
    hosts.host.kill()
    hosts.configure("host", networks=["*=isolated"], ovmf_code="/usr/share/OVMF/OVMF_CODE_4M.fd")
    hosts.arm_host("")


def test_as_many_disks_as_a_vm_may_have(hosts: QemuHosts) -> None:
    vm_id = hosts.make("wide", disks=DISKS_MAX)
    hosts.on(vm_id)
    assert len([one for one in hosts.exports() if vm_id in one.name and one.connection_count]) == DISKS_MAX
    hosts.off(vm_id)
    assert hosts.agrees(vm_id)
    hosts.ask("DeleteVm", pb.DeleteVmRequest(vm_id=vm_id))


@pytest.mark.campaign
def test_qemu_runs_as_another_user_and_owns_nothing(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        lacking("only root runs programs as somebody else")
    with running_hosts(tmp_path, qemu_user="nobody") as hosts:
        vm_id = hosts.make(disks=1)
        hosts.on(vm_id)
        [pid] = hosts.processes(vm_id)
        assert os.stat(f"/proc/{pid}").st_uid == pwd.getpwnam("nobody").pw_uid
        for path in (hosts.host.state / "qemu").rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # a temporary file of a moment ago
                assert path.stat().st_uid == 0, path
        hosts.host.kill()
        hosts.arm_host("")
        assert hosts.processes(vm_id) == [pid]
        hosts.off(vm_id)
        assert hosts.agrees(vm_id)
        with pytest.raises(NotFound):
            hosts.ask("PowerOn", pb.PowerOnRequest(vm_id="0" * 32))
