"""Two hosts: a guest is backed up through the virtual center wherever it has moved, off or running."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from arraylift.guest.build import Guest
from arraylift.rpc.channel import stream
from arraylift.v1 import virtual_center_pb2, vm_pb2
from tests.e2e.cluster import TARGET
from tests.e2e.house import CENTER
from tests.vm.traces import read_traces
from tests.vm.vm_house import DISK_NAMES, FILES, VmHouse, running_vm_house

pytestmark = pytest.mark.timeout(300)
MOVE_SECONDS = 120.0
BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VmHouse]:
    with running_vm_house(tmp_path_factory.mktemp("house"), kinds=2) as made:
        yield made


def test_a_backup_finds_a_guest_that_has_moved(house: VmHouse, guest: Guest, tmp_path: Path) -> None:
    vm = house.make_guest("web", guest)
    first = house.back_up_vm("web", target=TARGET)
    vm = _moved(house, vm, "host2", live=False)
    second = house.back_up_vm("web", target=TARGET)
    assert house.backup(second.backup_id).incremental
    assert first.backup_id != second.backup_id

    vm = house.boot(vm)
    files, boot_id = house.run_in(vm, FILES), house.run_in(vm, BOOT_ID)
    house.write_rounds(vm, least=3)
    vm = _moved(house, vm, "host1", live=True)
    rounds = house.write_rounds(vm, least=3)
    assert house.run_in(vm, BOOT_ID) == boot_id, "it went on, and did not boot anew"
    assert house.run_in(vm, FILES) == files

    third = house.back_up_vm("web", target=TARGET)
    backup = house.backup(third.backup_id)
    assert backup.incremental
    assert [disk.disk_name for disk in backup.disks] == list(DISK_NAMES)
    traces = read_traces([house.image_bytes(disk.image_id) for disk in backup.disks], tmp_path)
    assert traces.quiesced, traces
    assert traces.synced[0] >= max(rounds)
    assert house.array_snapshots() == []


def _moved(house: VmHouse, vm: vm_pb2.Vm, host: str, *, live: bool) -> vm_pb2.Vm:
    """Through the center; it must have arrived."""
    request = virtual_center_pb2.MigrateVmRequest(vm_id=vm.vm_id, host=host, live=live)
    news = list(stream(house.inventory.MigrateVm, request, peer=CENTER, timeout_seconds=MOVE_SECONDS))
    moved: vm_pb2.Vm = news[-1].vm
    assert moved.host == host
    assert moved.power == (vm_pb2.POWER_STATE_ON if live else vm_pb2.POWER_STATE_OFF)
    return moved
