"""VMs backed up and restored by five daemons, whole and by file; every byte is compared."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from arraylift.errors import AlreadyExists, Conflict, InvalidRequest, NotFound, WrongState
from arraylift.sizes import MIB, SPAN_BYTES
from arraylift.v1 import backup_pb2 as pb
from arraylift.v1 import vm_pb2
from backup_server.job_rules import restored_volume_name
from tests.e2e.daemon import wait_until
from tests.e2e.disks import random_disk
from tests.e2e.host_cluster import fsck, make_ext4
from tests.e2e.house import House, Kept, refusal, running_house
from tests.programs import need

DISK_BYTES = 24 * MIB


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """For tests that use names of their own and kill nothing."""
    with running_house(tmp_path_factory.mktemp("house"), registered_hosts=True) as made:
        yield made


@pytest.fixture(scope="module")
def wide_house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Two hosts, two arrays, two targets."""
    with running_house(tmp_path_factory.mktemp("wide"), kinds=2) as made:
        yield made


def ext4_vm(house: House, tmp_path: Path, name: str, files: dict[str, bytes]) -> vm_pb2.Vm:
    """A running VM with two ext4 disks: ``files`` on root, others on data."""
    need("debugfs", "mke2fs", "e2fsck")
    house.import_disk(f"{name}-root", make_ext4(tmp_path / f"{name}-root", 32 * MIB, files))
    more = {"database": os.urandom(6 * MIB)}
    house.import_disk(f"{name}-data", make_ext4(tmp_path / f"{name}-data", 16 * MIB, more))
    disks = [house.disk(disk, volume=f"{name}-{disk}") for disk in ("root", "data")]
    config = vm_pb2.VmConfig(
        name=name,
        cpus=2,
        memory_bytes=256 * MIB,
        disks=disks,
        networks=[vm_pb2.NetworkInterface(network="lan")],
        tags={"tier": "web"},
    )
    return made_vm(house, config)


def made_vm(house: House, config: vm_pb2.VmConfig, *, host: str = "host1") -> vm_pb2.Vm:
    """A running VM that the center knows."""
    at = house.of(host=host)
    vm = at.ask("CreateVm", vm_pb2.CreateVmRequest(vm_id=os.urandom(16).hex(), config=config)).vm
    on: vm_pb2.Vm = at.ask("PowerOn", vm_pb2.PowerOnRequest(vm_id=vm.vm_id)).vm
    house.wait_managed(config.name)
    return on


def plain_vm(house: House, name: str, *, seed: int, size_bytes: int = DISK_BYTES) -> vm_pb2.Vm:
    """A running VM with one disk of random bytes."""
    house.import_disk(f"{name}-disk0", random_disk(size_bytes, seed=seed))
    disks = [house.disk("disk0", volume=f"{name}-disk0")]
    return made_vm(house, vm_pb2.VmConfig(name=name, cpus=1, memory_bytes=64 * MIB, disks=disks))


# -- one VM, all ways ---------------------------------------------------------------------------


@pytest.mark.parametrize("direct", [False, True], ids=["center", "direct"])
def test_full_incremental_restore_and_files(house: House, tmp_path: Path, *, direct: bool) -> None:
    name = "direct1" if direct else "web1"
    vm = ext4_vm(house, tmp_path, name, {"hello.txt": b"hello\n", "big": os.urandom(12 * MIB)})

    full_job = house.back_up_vm(name, direct=direct)
    full = Kept(full_job.backup_id, house.vm_bytes(vm))
    assert full_job.figures.segments_sent > 0
    assert not house.backup(full.backup_id).incremental
    assert house.array_snapshots() == [], "the VM snapshot goes with the job"

    # The put leaves the disks as they will be: the emulated guest writes back before it answers.
    payload = os.urandom(700_000)
    house.put(vm, "/report.bin", payload, mode=0o640)
    job = house.back_up_vm(name, direct=direct)
    incremental = Kept(job.backup_id, house.vm_bytes(vm))
    assert house.backup(job.backup_id).incremental
    # The sample is a third of disks so small, and where the file lies is mke2fs's affair.
    assert job.figures.spans_read < full_job.figures.spans_read / 2, "only what changed"
    assert job.figures.bytes_sent < 3 * MIB
    assert job.figures.spans_total == 48
    house.check_images(full)
    house.check_images(incremental)

    listed = {one.path.rpartition("/")[2]: one for one in house.files(job.backup_id, "/")}
    assert {"hello.txt", "big", "report.bin"} <= set(listed)
    assert listed["report.bin"].size_bytes == len(payload)
    found, data = house.file(job.backup_id, "/report.bin")
    assert data == payload
    assert found.size_bytes == len(payload)
    assert found.mode & 0o777 == 0o640
    assert house.file(full.backup_id, "/hello.txt")[1] == b"hello\n"
    assert isinstance(refusal(lambda: house.file(full.backup_id, "/report.bin")), NotFound)
    assert "database" in {one.path.rpartition("/")[2] for one in house.files(job.backup_id, "/", "data")}

    restored = house.check_restore(incremental, as_name=f"{name}-again", direct=direct)
    assert restored.config.uuid != vm.config.uuid
    assert restored.config.networks[0].mac != vm.config.networks[0].mac
    assert restored.config.networks[0].network == "lan"
    assert restored.config.tags["tier"] == "web"
    assert (restored.config.cpus, restored.config.memory_bytes) == (2, 256 * MIB)
    assert [disk.name for disk in restored.config.disks] == ["root", "data"]
    assert restored.power == vm_pb2.POWER_STATE_OFF
    for disk, content in house.vm_bytes(restored).items():
        fsck(tmp_path / f"{name}-{disk}.fsck", content)
    house.wait_managed(f"{name}-again")

    again = house.back_up_vm(f"{name}-again", direct=direct)
    assert house.backup(again.backup_id).incremental, "the array remembers what it restored from"
    assert again.figures.segments_sent == 0
    assert again.figures.bytes_read < full_job.figures.bytes_read / 2
    house.check_images(Kept(again.backup_id, incremental.disks))

    whole = house.back_up_vm(name, direct=direct, full=True)
    assert not house.backup(whole.backup_id).incremental
    assert whole.figures.segments_sent == 0, "read whole, and nothing of it is new"
    house.wait_nothing_left()


def test_an_identical_second_vm_sends_nothing(house: House) -> None:
    plain_vm(house, "twin1", seed=11)
    twin = plain_vm(house, "twin2", seed=11)
    first = house.back_up_vm("twin1")
    second = house.keep(twin)
    assert first.figures.segments_sent > 0
    job = house.job(second.backup_id)
    assert job.figures.segments_offered > 0
    assert job.figures.segments_sent == 0
    house.check_images(second)


def test_a_backup_is_what_the_vm_was_at_the_snapshot(house: House) -> None:
    vm = plain_vm(house, "busy1", seed=12, size_bytes=48 * MIB)
    before = house.vm_bytes(vm)
    (job_id,) = house.start_backup("busy1")
    wait_until(lambda: _done(house, job_id, "snapshot"), "the snapshot is taken")
    house.write("busy1-disk0", 0, random_disk(8 * MIB, seed=13))
    house.succeeded(job_id)
    house.check_images(Kept(job_id, before))
    restored = house.check_restore(Kept(job_id, before), as_name="busy1-before", start=True)
    assert restored.power == vm_pb2.POWER_STATE_ON
    after = house.keep(vm)
    assert house.job(after.backup_id).figures.bytes_sent <= 9 * SPAN_BYTES
    house.check_images(after)


def test_a_vm_that_is_being_backed_up_is_refused_with_its_job(house: House) -> None:
    plain_vm(house, "once1", seed=14, size_bytes=48 * MIB)
    (job_id,) = house.start_backup("once1")
    error = refusal(lambda: house.start_backup("once1"))
    assert isinstance(error, Conflict)
    assert error.fields["job_id"] == job_id
    house.succeeded(job_id)
    house.back_up_vm("once1")


def test_names_are_checked_before_a_job_begins(house: House) -> None:
    vm = plain_vm(house, "named1", seed=15, size_bytes=2 * MIB)
    kept = house.keep(vm)
    assert isinstance(refusal(lambda: house.start_restore(kept.backup_id, as_name="named1")), AlreadyExists)
    assert isinstance(refusal(lambda: house.start_restore("0" * 32, as_name="other")), NotFound)
    assert isinstance(refusal(lambda: house.start_backup("nobody")), NotFound)
    assert isinstance(refusal(lambda: house.start_backup("named1", target="target9")), NotFound)


def test_excluded_disks_and_a_level_that_is_not_reached(house: House) -> None:
    for disk in ("a", "b"):
        house.import_disk(f"part1-{disk}", random_disk(2 * MIB, seed=ord(disk)))
    disks = [house.disk(disk, volume=f"part1-{disk}") for disk in ("a", "b")]
    made_vm(house, vm_pb2.VmConfig(name="part1", cpus=1, memory_bytes=64 * MIB, disks=disks))
    job = house.back_up_vm("part1", exclude_disks=["a"])
    assert [disk.disk_name for disk in house.backup(job.backup_id).disks] == ["b"]
    restored = house.restore_vm(job.backup_id, as_name="part1-again")
    vm = house.all_vms()["part1-again"]
    assert vm.vm_id == restored.result_vm_id
    assert [disk.name for disk in vm.config.disks] == ["b"]
    (job_id,) = house.start_backup("part1", level_min=vm_pb2.CONSISTENCY_LEVEL_APPLICATION)
    ended = house.wait_job(job_id)
    assert ended.state == pb.JOB_STATE_FAILED
    assert ended.error.reason == WrongState.reason
    assert isinstance(refusal(lambda: house.backup(job_id)), NotFound)
    house.wait_nothing_left()


def test_a_deleted_backup_leaves_the_others_whole(house: House) -> None:
    vm = plain_vm(house, "chain1", seed=16, size_bytes=8 * MIB)
    kept = []
    for round_number in range(3):
        house.write("chain1-disk0", round_number * MIB, random_disk(MIB, seed=20 + round_number))
        kept.append(house.keep(vm))
    house.ask_server("DeleteBackup", pb.DeleteBackupRequest(backup_id=kept[1].backup_id))
    assert [one.backup_id for one in house.backup_list("chain1")] == [kept[2].backup_id, kept[0].backup_id]
    house.check_images(kept[0])
    house.check_restore(kept[2], as_name="chain1-again")
    house.wait_nothing_left()


# -- cancelling ---------------------------------------------------------------------------------


def _done(house: House, job_id: str, step: str) -> bool:
    return any(one.name == step and one.ended_at_ns for one in house.job(job_id).steps)


def _began(house: House, job_id: str, step: str) -> bool:
    return any(one.name == step for one in house.job(job_id).steps)


@pytest.mark.parametrize("step", ["locate", "snapshot", "grant disk0", "send disk0"])
def test_a_cancelled_backup_leaves_nothing(house: House, step: str) -> None:
    name = f"stop-{step.replace(' ', '-')}"
    vm = plain_vm(house, name, seed=30 + len(step), size_bytes=48 * MIB)
    backups_before = len(house.backup_list())
    (job_id,) = house.start_backup(name)
    wait_until(lambda: _began(house, job_id, step), f"step {step} begins")
    house.ask_server("CancelJob", pb.CancelJobRequest(job_id=job_id))
    job = house.wait_job(job_id)
    assert job.state == pb.JOB_STATE_CANCELLED, job
    house.wait_nothing_left()
    assert len(house.backup_list()) == backups_before
    assert isinstance(
        refusal(lambda: house.ask_server("CancelJob", pb.CancelJobRequest(job_id=job_id))), WrongState
    )
    house.check_images(house.keep(vm))  # and the VM can be backed up at once
    house.delete_vm(name)


@pytest.mark.parametrize("step", ["plan", "provision", "send disk0"])
def test_a_cancelled_restore_leaves_nothing(house: House, step: str) -> None:
    name = f"undo-{step.replace(' ', '-')}"
    vm = plain_vm(house, name, seed=40 + len(step), size_bytes=48 * MIB)
    kept = house.keep(vm)
    job_id = house.start_restore(kept.backup_id, as_name=f"{name}-again")
    wait_until(lambda: _began(house, job_id, step), f"step {step} begins")
    house.ask_server("CancelJob", pb.CancelJobRequest(job_id=job_id))
    job = house.wait_job(job_id)
    assert job.state == pb.JOB_STATE_CANCELLED, job
    house.wait_nothing_left()
    assert f"{name}-again" not in house.all_vms()
    volume_name = restored_volume_name(f"{name}-again", "disk0", job_id)
    assert not house.restore_is_open(volume_name), "neither a grant nor a draft"
    house.check_restore(kept, as_name=f"{name}-again")
    house.delete_vm(f"{name}-again")
    house.delete_vm(name)


# -- several of each kind -----------------------------------------------------------------------


def test_two_hosts_two_arrays_two_targets_at_once(wide_house: House) -> None:
    house = wide_house
    vms: dict[str, vm_pb2.Vm] = {}
    plan = {  # host, arrays of its disks, target
        "one": ("host1", ["array1"], "target1"),
        "two": ("host2", ["array2"], "target2"),
        "both": ("host2", ["array1", "array2"], "target1"),
    }
    for number, (name, (host, arrays, _)) in enumerate(plan.items()):
        disks = []
        for index, array in enumerate(arrays):
            volume = f"{name}-disk{index}"
            house.of(array=array).import_disk(volume, random_disk(16 * MIB, seed=50 + 2 * number + index))
            disks.append(house.disk_on(array, f"disk{index}", volume))
        config = vm_pb2.VmConfig(name=name, cpus=1, memory_bytes=64 * MIB, disks=disks)
        vms[name] = made_vm(house, config, host=host)
    jobs = {name: house.start_backup(name, target=target)[0] for name, (_, _, target) in plan.items()}
    for name, (host, arrays, target) in plan.items():
        house.succeeded(jobs[name])
        backup = house.backup(jobs[name])
        assert backup.target == target
        assert [disk.array for disk in backup.disks] == arrays
        assert vms[name].host == host
        house.check_images(Kept(jobs[name], house.vm_bytes(vms[name])))
    assert {one.name for one in house.of(target="target2").image_list()} == {f"{vms['two'].vm_id}/disk0"}
    # Both disks come back to the array that they were on; on the host that is named.
    kept = Kept(jobs["both"], house.vm_bytes(vms["both"]))
    restored = house.check_restore(kept, as_name="both-again", host="host1")
    assert restored.host == "host1"
    assert [disk.array for disk in restored.config.disks] == ["array1", "array2"]
    # A disk can be restored to another array, whose next backup has no births to go by.
    kept = Kept(jobs["one"], house.vm_bytes(vms["one"]))
    moved = house.check_restore(kept, as_name="one-moved", array="array2", host="host2")
    assert [disk.array for disk in moved.config.disks] == ["array2"]
    assert isinstance(refusal(lambda: house.start_backup("one")), InvalidRequest), "a target has to be named"
    house.wait_nothing_left()
