"""The host agent as a process beside a real array: VM snapshots, crashes, leases, guest files."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from arraylift.errors import (
    AlreadyExists,
    ArrayliftError,
    InvalidRequest,
    NotFound,
    PeerUnavailable,
    WrongState,
)
from arraylift.ids import random_id
from arraylift.sizes import GRANULE_BYTES, KIB, MIB
from arraylift.v1 import vm_pb2 as pb
from tests.e2e.cluster import in_thread
from tests.e2e.daemon import wait_until
from tests.e2e.host_cluster import HostCluster, fsck, make_ext4
from tests.programs import need

GONE_SECONDS = 20.0


@pytest.fixture
def house(tmp_path: Path) -> Iterator[HostCluster]:
    cluster = HostCluster(tmp_path)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def shared_house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostCluster]:
    """For tests that kill nothing and use names of their own."""
    cluster = HostCluster(tmp_path_factory.mktemp("house"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


def ext4_vm(house: HostCluster, tmp_path: Path, name: str) -> tuple[pb.Vm, bytearray]:
    need("debugfs", "mke2fs", "e2fsck")
    disk = make_ext4(
        tmp_path / f"{name}.ext4", 48 * MIB, {"hello.txt": b"hello\n", "big": os.urandom(3 * MIB)}
    )
    house.import_disk(f"{name}-root", disk)
    return house.create_vm(name, house.disk("root", volume=f"{name}-root"), on=True), disk


# -- life ---------------------------------------------------------------------------------------


def test_a_vm_lives_over_a_restart_and_dies_with_its_volumes(house: HostCluster) -> None:
    vm = house.create_vm(
        "web1", house.disk("root", size_bytes=MIB), house.disk("data", size_bytes=MIB), on=True
    )
    assert len(house.volume_names()) == 2
    assert vm.config.uuid
    assert [disk.size_bytes for disk in vm.config.disks] == [MIB, MIB]
    house.host.kill()
    house.host.start()
    found = house.ask("GetVm", pb.GetVmRequest(name="web1")).vm
    assert found == vm
    with pytest.raises(WrongState):
        house.ask("DeleteVm", pb.DeleteVmRequest(vm_id=vm.vm_id))
    house.ask("PowerOff", pb.PowerOffRequest(vm_id=vm.vm_id))
    house.ask("DeleteVm", pb.DeleteVmRequest(vm_id=vm.vm_id))
    assert house.volume_names() == []
    house.ask("DeleteVm", pb.DeleteVmRequest(vm_id=vm.vm_id, missing_ok=True))


@pytest.mark.parametrize("point", ["vm.making", "vm.made", "vm.rename.after", "vm.rename.before@2"])
def test_a_host_killed_while_making_a_vm_leaves_nothing(house: HostCluster, point: str) -> None:
    house.import_disk("mine", bytes([7]) * MIB)
    house.host.stop()
    name, _, at = point.partition("@")
    house.arm_host(f"{name}=kill@{at or 1}")
    vm_id = random_id()
    with pytest.raises(ArrayliftError):
        house.create_vm(
            "web1", house.disk("new", size_bytes=MIB), house.disk("old", volume="mine"), vm_id=vm_id
        )
    house.host.wait_dead()
    house.host.start()
    wait_until(lambda: house.volume_names() == ["mine"], "only the old volume is left", seconds=GONE_SECONDS)
    assert list(house.ask("ListVms", pb.ListVmsRequest()).vms) == []
    wait_until(
        lambda: not list((house.host.state / "vms").glob("*.alv")), "the record goes", seconds=GONE_SECONDS
    )
    made = house.create_vm("web1", house.disk("old", volume="mine"), vm_id=vm_id)
    assert made.config.disks[0].size_bytes == MIB


# -- VM snapshots -------------------------------------------------------------------------------

POINTS = [
    "vm-snapshot.create.before",
    "vm-snapshot.rename.before",
    "vm-snapshot.rename.after",
    "vm-snapshot.intent",
    "vm-snapshot.freeze.before",
    "vm-snapshot.freeze.after",
    "vm-snapshot.group.before",
    "vm-snapshot.group.after",
    "vm-snapshot.thawed",
    "vm-snapshot.create.before@2",
    "vm-snapshot.rename.before@2",
]


@pytest.mark.parametrize("point", POINTS)
def test_a_host_killed_while_taking_a_snapshot_leaves_nothing(
    house: HostCluster, tmp_path: Path, point: str
) -> None:
    vm = house.create_vm("web1", house.disk("a", size_bytes=MIB), house.disk("b", size_bytes=MIB), on=True)
    house.host.stop()
    name, _, at = point.partition("@")
    house.arm_host(f"{name}=kill@{at or 1}")
    with pytest.raises(ArrayliftError):
        house.snapshot_vm(vm)
    house.host.wait_dead()
    house.host.start()
    wait_until(lambda: not house.array_snapshots(), "no volume snapshot is left", seconds=GONE_SECONDS)
    assert not house.ask("ListVmSnapshots", pb.ListVmSnapshotsRequest()).snapshots
    again = house.snapshot_vm(vm, level_min="CONSISTENCY_LEVEL_FILESYSTEM")
    assert again.frozen_ns > 0
    assert len(house.array_snapshots()) == 2


@pytest.mark.parametrize("point", ["vm-snapshot.rename.after@2", "vm-snapshot.recorded"])
def test_a_snapshot_that_was_recorded_before_the_kill_is_the_answer_to_the_same_call(
    house: HostCluster, point: str
) -> None:
    vm = house.create_vm("web1", house.disk("a", size_bytes=MIB), on=True)
    house.host.stop()
    name, _, at = point.partition("@")
    house.arm_host(f"{name}=kill@{at or 1}")
    with pytest.raises(ArrayliftError):
        house.snapshot_vm(vm)
    house.host.wait_dead()
    house.host.start()
    taken = house.array_snapshots()
    assert len(taken) == 1
    assert house.snapshot_vm(vm).disks[0].snapshot_id == taken[0].snapshot_id
    assert len(house.array_snapshots()) == 1


@pytest.mark.parametrize("point", ["vm-snapshot.release.marked", "vm-snapshot.release.deleted"])
def test_a_host_killed_while_releasing_finishes_after_its_restart(house: HostCluster, point: str) -> None:
    vm = house.create_vm("web1", house.disk("a", size_bytes=MIB), on=True)
    made = house.snapshot_vm(vm)
    house.host.stop()
    house.arm_host(f"{point}=kill")
    request = pb.DeleteVmSnapshotRequest(vm_snapshot_id=made.vm_snapshot_id)
    with pytest.raises(ArrayliftError):
        house.ask("DeleteVmSnapshot", request)
    house.host.wait_dead()
    house.host.start()
    wait_until(lambda: not house.array_snapshots(), "no volume snapshot is left", seconds=GONE_SECONDS)
    house.ask("DeleteVmSnapshot", request)


def test_a_lease_that_nobody_renews_ends_and_begins_anew_after_a_restart(house: HostCluster) -> None:
    vm = house.create_vm("web1", house.disk("a", size_bytes=MIB), on=True)
    made = house.snapshot_vm(vm, lease_seconds=10)
    house.host.kill()
    house.host.start()
    assert house.snapshot_vm(vm).vm_snapshot_id == made.vm_snapshot_id
    wait_until(lambda: not house.array_snapshots(), "the lease lapses", seconds=30)
    with pytest.raises(NotFound):
        house.ask("GetVmSnapshot", pb.GetVmSnapshotRequest(vm_snapshot_id=made.vm_snapshot_id))


def test_an_array_that_hangs_in_the_group_does_not_keep_the_guest_frozen(
    house: HostCluster, tmp_path: Path
) -> None:
    vm, _ = ext4_vm(house, tmp_path, "web1")
    os.kill(house.array.pid, signal.SIGSTOP)
    try:
        with pytest.raises(PeerUnavailable):
            house.snapshot_vm(vm)
    finally:
        os.kill(house.array.pid, signal.SIGCONT)
    house.put(vm, "/after", b"thawed")
    # The array may have carried the call out after all: it goes again, within seconds.
    wait_until(
        lambda: not list((house.host.state / "vm-snapshots").glob("*.alv")),
        "it is undone",
        seconds=GONE_SECONDS,
    )
    assert not house.array_snapshots()


def test_snapshots_of_an_absent_array_are_deleted_when_it_is_back(house: HostCluster) -> None:
    vm = house.create_vm("web1", house.disk("a", size_bytes=MIB))
    made = house.snapshot_vm(vm, level_min="CONSISTENCY_LEVEL_FILESYSTEM")
    assert made.frozen_ns == 0
    house.array.kill()
    request = pb.DeleteVmSnapshotRequest(vm_snapshot_id=made.vm_snapshot_id)
    with pytest.raises(PeerUnavailable):
        house.ask("DeleteVmSnapshot", request)
    with pytest.raises(NotFound):
        house.ask("GetVmSnapshot", pb.GetVmSnapshotRequest(vm_snapshot_id=made.vm_snapshot_id))
    house.array.start()
    wait_until(lambda: not house.array_snapshots(), "it is deleted", seconds=30)
    house.ask("DeleteVmSnapshot", request)


# -- guest files --------------------------------------------------------------------------------


def test_guest_files_go_in_and_out_of_a_real_file_system(shared_house: HostCluster, tmp_path: Path) -> None:
    house = shared_house
    vm, disk = ext4_vm(house, tmp_path, "files1")
    assert house.get(vm, "/hello.txt") == b"hello\n"
    content = os.urandom(2 * MIB + 123)
    made = house.put(vm, "/lost+found/a name <2> #x", content, mode=0o600)
    assert (made.size_bytes, made.mode & 0o7777) == (len(content), 0o600)
    assert house.get(vm, "/lost+found/a name <2> #x") == content
    house.put(vm, "/hello.txt", b"changed")
    assert house.get(vm, "/hello.txt") == b"changed"
    names = {entry.path: entry for entry in house.entries(vm, "/")}
    assert names.keys() == {"/hello.txt", "/big", "/lost+found"}
    assert names["/hello.txt"].size_bytes == len(b"changed")
    assert names["/hello.txt"].modified_at_ns > 10**18
    house.remove(vm, "/hello.txt")
    with pytest.raises(NotFound):
        house.get(vm, "/hello.txt")
    after = house.volume_bytes("files1-root")
    fsck(tmp_path / "after.ext4", after)
    changed = np.frombuffer(disk, np.uint8) != np.frombuffer(after, np.uint8)
    assert changed.any()


def test_only_granules_that_differ_are_written(shared_house: HostCluster, tmp_path: Path) -> None:
    house = shared_house
    vm, disk = ext4_vm(house, tmp_path, "files2")
    before = house.snapshot_vm(vm).disks[0].snapshot_id
    house.put(vm, "/small", b"x" * 5000)
    after = house.volume_bytes("files2-root")
    differs = np.frombuffer(disk, np.uint8) != np.frombuffer(after, np.uint8)
    granules = set((np.flatnonzero(differs) // GRANULE_BYTES).tolist())
    log = house.host.log_path.read_text()
    written = int(log.rpartition("bytes_written=")[2].split()[0].strip("\x1b[0m"))
    assert 0 < len(granules) < 32
    assert written == len(granules) * GRANULE_BYTES
    assert house.volume_bytes(snapshot_id=before) == disk


def test_what_cannot_be_done_with_guest_files_is_said(shared_house: HostCluster, tmp_path: Path) -> None:
    house = shared_house
    vm, _ = ext4_vm(house, tmp_path, "files3")
    for path in ('/a"b', "/a\nrm /big", "relative", "/../etc", "/" + "x" * 300):
        with pytest.raises(InvalidRequest):
            house.put(vm, path, b"")
    with pytest.raises(NotFound):
        house.put(vm, "/no/such/directory", b"")
    with pytest.raises(WrongState):
        house.remove(vm, "/lost+found")
    with pytest.raises(ArrayliftError, match="full"):
        house.put(vm, "/huge", bytes(range(256)) * (64 * MIB // 256))
    assert house.get(vm, "/hello.txt") == b"hello\n"
    house.ask("PowerOff", pb.PowerOffRequest(vm_id=vm.vm_id))
    with pytest.raises(WrongState, match="off"):
        house.get(vm, "/hello.txt")
    blank = house.create_vm("blank", house.disk("a", size_bytes=MIB), on=True)
    with pytest.raises(WrongState, match="file system"):
        house.get(blank, "/x")


def test_a_write_back_cut_by_a_kill_is_finished_after_the_restart(house: HostCluster, tmp_path: Path) -> None:
    vm, _ = ext4_vm(house, tmp_path, "web1")
    house.host.stop()
    house.arm_host("write-back.rename.after=kill")
    content = os.urandom(300 * KIB)
    with pytest.raises(ArrayliftError):
        house.put(vm, "/late", content)
    house.host.wait_dead()
    house.host.start()
    assert house.get(vm, "/late") == content
    fsck(tmp_path / "after.ext4", house.volume_bytes("web1-root"))
    wait_until(
        lambda: not list((house.host.state / "guest-disks").glob("*.*")),
        "no copy is left",
        seconds=GONE_SECONDS,
    )


def test_many_vms_are_snapshotted_at_once(shared_house: HostCluster) -> None:
    house = shared_house
    vms = [house.create_vm(f"many{index}", house.disk("a", size_bytes=MIB), on=True) for index in range(8)]
    running = [in_thread(lambda vm=vm: iter([house.snapshot_vm(vm, "at-once")])) for vm in vms]  # type: ignore[misc]
    taken = {one.wait()[0].vm_id for one in running}
    assert taken == {vm.vm_id for vm in vms}


def test_a_volume_belongs_to_one_vm(shared_house: HostCluster) -> None:
    house = shared_house
    house.import_disk("single", b"\1" * MIB)
    first = house.create_vm("owner", house.disk("a", volume="single"))
    with pytest.raises(AlreadyExists):
        house.create_vm("thief", house.disk("a", volume="single"))
    house.ask("DetachVolume", pb.DetachVolumeRequest(vm_id=first.vm_id, disk_name="a"))
    second = house.create_vm("heir", house.disk("b", size_bytes=MIB))
    request = pb.AttachVolumeRequest(vm_id=second.vm_id, disk=house.disk("c", volume="single"))
    vm = house.ask("AttachVolume", request).vm
    assert [disk.name for disk in vm.config.disks] == ["b", "c"]
    assert house.ask("AttachVolume", request).vm == vm
