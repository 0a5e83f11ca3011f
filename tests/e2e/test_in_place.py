"""Restores in place through five daemons: every byte before, after, and in the way back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from arraylift.errors import Conflict, WrongState
from arraylift.nbd.client import NbdClient
from arraylift.nbd.client_tls import house_credentials
from arraylift.nbd.uri import parse_uri
from arraylift.rpc.channel import call
from arraylift.sizes import MIB
from arraylift.v1 import backup_pb2 as pb
from arraylift.v1 import vm_pb2, volume_pb2
from tests.e2e.cluster import ARRAY
from tests.e2e.daemon import wait_until
from tests.e2e.disks import random_disk
from tests.e2e.host_cluster import HOST
from tests.e2e.house import House, Kept, refusal, running_house
from tests.e2e.test_control_path import made_vm

DISKS = ("disk0", "disk1")
DISK_BYTES = 12 * MIB


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with running_house(tmp_path_factory.mktemp("house"), registered_hosts=True) as made:
        yield made


def two_disks(house: House, name: str) -> tuple[vm_pb2.Vm, Kept, dict[str, bytes]]:
    """A running VM, its backup, and what its disks hold by now, which is something else."""
    for number, disk in enumerate(DISKS):
        house.import_disk(f"{name}-{disk}", random_disk(DISK_BYTES, seed=number + 1))
    disks = [house.disk(disk, volume=f"{name}-{disk}") for disk in DISKS]
    vm = made_vm(house, vm_pb2.VmConfig(name=name, cpus=1, memory_bytes=64 * MIB, disks=disks))
    kept = house.keep(vm)
    for number, disk in enumerate(DISKS):
        house.write(f"{name}-{disk}", number * 3 * MIB, random_disk(2 * MIB, seed=number + 7))
    return vm, kept, house.vm_bytes(vm)


@pytest.mark.parametrize("direct", [False, True], ids=["center", "direct"])
def test_all_disks_go_back_and_the_way_back_is_there(house: House, *, direct: bool) -> None:
    name = f"back-{direct}"
    vm, kept, spoilt = two_disks(house, name)
    job = house.restore_vm(kept.backup_id, in_place=True, stop=True, start=direct, direct=direct)
    house.check_vm(vm, kept.disks)
    assert job.result_vm_id == vm.vm_id
    assert house.power(name) == (vm_pb2.POWER_STATE_ON if direct else vm_pb2.POWER_STATE_OFF)
    assert job.figures.bytes_sent < 5 * MIB, "what the volumes had did not travel"
    house.check_safeties(job, spoilt)

    next_job = house.back_up_vm(name, direct=direct)
    assert next_job.figures.spans_read <= 8, "it goes on with an incremental"
    house.check_images(Kept(next_job.backup_id, kept.disks))

    for one in job.safeties:
        request = volume_pb2.RollbackVolumeRequest(volume_name=one.volume_name, snapshot_id=one.snapshot_id)
        call(house.volumes.RollbackVolume, request, peer=ARRAY)
    house.check_vm(vm, spoilt)
    house.drop_safeties()


def test_what_is_open_for_writing_is_not_replaced(house: House) -> None:
    """A VM that runs where its host does not know of it: the array has the last word."""
    vm, kept, spoilt = two_disks(house, "held")
    house.ask("PowerOff", vm_pb2.PowerOffRequest(vm_id=vm.vm_id, force=True))
    request = volume_pb2.CreateExportRequest(name="held", volume_name="held-disk1")
    uri = call(house.volumes.CreateExport, request, peer=ARRAY).export.uri
    credentials = house_credentials(house.tls("host", HOST))
    with NbdClient(parse_uri(uri), credentials=credentials) as guest:
        job_id = house.start_restore(kept.backup_id, in_place=True)
        other = refusal(lambda: house.start_restore(kept.backup_id, in_place=True))
        assert isinstance(other, Conflict)
        job = house.wait_job(job_id)
        guest.flush()
    assert job.state == pb.JOB_STATE_FAILED
    assert job.error.reason == "wrong_state"
    assert "open" in job.error_text
    house.check_vm(vm, spoilt)
    assert house.safeties_on(ARRAY) == []
    call(house.volumes.DeleteExport, volume_pb2.DeleteExportRequest(name="held"), peer=ARRAY)


def test_a_running_vm_is_refused_and_a_cancelled_restore_leaves_it_running(house: House) -> None:
    vm, kept, spoilt = two_disks(house, "runs")
    refused = refusal(lambda: house.start_restore(kept.backup_id, in_place=True))
    assert isinstance(refused, WrongState)
    assert "is running" in refused.message
    job_id = house.start_restore(kept.backup_id, in_place=True, stop=True)
    wait_until(lambda: any(step.name.startswith("send") for step in house.job(job_id).steps), "it sends")
    try:
        house.ask_server("CancelJob", pb.CancelJobRequest(job_id=job_id))
    except WrongState:  # it was faster
        assert house.wait_job(job_id).state == pb.JOB_STATE_SUCCEEDED
        house.check_vm(vm, kept.disks)
    else:
        assert house.wait_job(job_id).state == pb.JOB_STATE_CANCELLED
        house.check_vm(vm, spoilt)
        assert house.power("runs") == vm_pb2.POWER_STATE_ON
    house.drop_safeties()
    house.wait_nothing_left()
