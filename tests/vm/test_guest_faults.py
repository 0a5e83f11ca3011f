"""Daemons die under a real guest: it is never left frozen, nor told of an error, nor lost."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from arraylift.errors import ArrayliftError
from arraylift.guest.build import Guest
from arraylift.v1 import vm_pb2
from tests.e2e.daemon import wait_until
from tests.vm.vm_house import VmHouse, running_vm_house

pytestmark = pytest.mark.timeout(300)
FROZEN_SECONDS_MAX = 10.0
GONE_SECONDS = 60.0
AWAY_SECONDS = 3.0


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory, guest: Guest) -> Iterator[tuple[VmHouse, vm_pb2.Vm]]:
    """A guest whose writer is at work."""
    with running_vm_house(tmp_path_factory.mktemp("house")) as house:
        vm = house.boot(house.make_guest("web", guest))
        house.write_rounds(vm, least=3)
        yield house, vm


@pytest.mark.parametrize("point", ["guest-agent.freeze.after", "vm-snapshot.group.after"])
def test_a_host_killed_under_a_freeze_leaves_it_thawed_and_nothing_behind(
    web: tuple[VmHouse, vm_pb2.Vm], point: str
) -> None:
    house, vm = web
    house.host.stop()
    house.arm_host(f"{point}=kill")
    house.write_rounds(vm, least=1)
    freezes, thaws = (house.console(vm).count(word) for word in ("GUEST-FREEZE", "GUEST-THAW"))
    with pytest.raises(ArrayliftError):
        house.snapshot_vm(vm)
    killed_at = time.monotonic()
    house.host.wait_dead()
    assert house.console(vm).count("GUEST-FREEZE") == freezes + 1, "it was frozen when its host died"
    wait_until(
        lambda: house.console(vm).count("GUEST-THAW") > thaws,
        "the guest is thawed with nobody there",
        seconds=FROZEN_SECONDS_MAX - (time.monotonic() - killed_at),
    )
    assert not house.host.running

    house.host.start()
    wait_until(lambda: not house.array_snapshots(), "no snapshot is left", seconds=GONE_SECONDS)
    listed = house.ask("ListVmSnapshots", vm_pb2.ListVmSnapshotsRequest(vm_id=vm.vm_id)).snapshots
    assert list(listed) == []
    house.write_rounds(vm, least=3)
    again = house.snapshot_vm(vm, "again")
    assert again.level == vm_pb2.CONSISTENCY_LEVEL_APPLICATION
    request = vm_pb2.DeleteVmSnapshotRequest(vm_snapshot_id=again.vm_snapshot_id)
    house.ask("DeleteVmSnapshot", request)


def test_an_array_that_comes_back_is_all_that_its_guest_sees(web: tuple[VmHouse, vm_pb2.Vm]) -> None:
    house, vm = web
    rounds = house.write_rounds(vm, least=1)
    house.array.kill()
    time.sleep(AWAY_SECONDS)  # long enough for many requests to fail
    house.array.start()
    after = house.write_rounds(vm, least=10)
    assert min(after) > max(rounds)
    said = house.run_in(vm, "dmesg | grep -iE 'I/O error|EXT4-fs error|Remounting' || echo nothing")
    assert said == "nothing\n"
    options = house.run_in(vm, "grep ext4 /proc/mounts | cut -d ' ' -f 4")
    assert [line.split(",")[0] for line in options.splitlines()] == ["rw"] * 3
    assert house.back_up_vm("web").frozen_ns > 0
