"""A running guest moves between hosts under QEMU: it goes on, is never lost, never runs twice."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from arraylift.errors import ArrayliftError
from arraylift.guest.build import Guest
from arraylift.rpc.channel import call, stream
from arraylift.v1 import virtual_center_pb2 as center_pb
from arraylift.v1 import vm_pb2, volume_pb2
from tests.e2e.cluster import ARRAY, in_thread
from tests.e2e.daemon import Daemon, wait_until
from tests.e2e.host_cluster import HOST
from tests.e2e.house import CENTER
from tests.vm.vm_house import VmHouse, running_vm_house

pytestmark = pytest.mark.timeout(300)
OTHER = {HOST: "host2", "host2": HOST}
SETTLE_SECONDS = 90.0


class Mover:
    """A guest whose writer is at work, and where it is."""

    def __init__(self, house: VmHouse, vm: vm_pb2.Vm) -> None:
        self.house, self.vm_id, self.name = house, vm.vm_id, vm.config.name

    @property
    def vm(self) -> vm_pb2.Vm:
        return self.house.managed_vms()[self.name]

    def move(self, to: str) -> center_pb.MigrateVmResponse:
        request = center_pb.MigrateVmRequest(vm_id=self.vm_id, host=to, live=True)
        last: center_pb.MigrateVmResponse
        *_, last = stream(self.house.inventory.MigrateVm, request, peer=CENTER, timeout_seconds=120)
        return last

    def hosts_that_run_it(self) -> list[str]:
        """Hosts whose QEMU of this guest is not standing still, as far as a monitor says."""
        return [name for name in self.house.hosts if self._pids(name)]

    def _pids(self, host: str) -> list[int]:
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    links = {os.readlink(f"/proc/{name}/fd/{fd}") for fd in os.listdir(f"/proc/{name}/fd")}
                except OSError:
                    continue
                if f"{self.folder(host)}/lock" in links:
                    found.append(int(name))
        return found

    def folder(self, host: str) -> Path:
        return Path(self.house.hosts[host].state, "qemu", self.vm_id)

    def exports(self) -> set[str]:
        """Hosts that the array serves this guest's disks to."""
        listed = call(self.house.volumes.ListExports, volume_pb2.ListExportsRequest(), peer=ARRAY).exports
        return {one.name.split(".")[1] for one in listed if self.vm_id in one.name}

    def check(self, host: str) -> None:
        """It runs there and only there, has not been started anew, writes, and can be backed up."""
        wait_until(
            lambda: self.vm.host == host and self.exports() == {host} and self.hosts_that_run_it() == [host],
            f"the guest is on {host} alone",
            seconds=SETTLE_SECONDS,
        )
        assert self.vm.power == vm_pb2.POWER_STATE_ON
        assert self.booted_once()
        assert self.house.write_rounds(self.vm, least=3)
        at = self.house.of(host=host)
        taken = at.snapshot_vm(self.vm, f"on {host}")
        assert taken.level == vm_pb2.CONSISTENCY_LEVEL_APPLICATION
        at.ask("DeleteVmSnapshot", vm_pb2.DeleteVmSnapshotRequest(vm_snapshot_id=taken.vm_snapshot_id))

    def booted_once(self) -> bool:
        consoles = "".join(
            path.read_text(errors="replace")
            for host in self.house.hosts.values()
            for path in host.state.glob("qemu/*/console.log")
        )
        return consoles.count("GUEST-BOOTED") <= 1


@pytest.fixture(scope="module")
def mover(tmp_path_factory: pytest.TempPathFactory, guest: Guest) -> Iterator[Mover]:
    with running_vm_house(tmp_path_factory.mktemp("house"), kinds=2) as house:
        vm = house.boot(house.make_guest("web", guest, firmware="uefi"))
        house.write_rounds(vm, least=3)
        yield Mover(house, vm)


def test_it_goes_there_and_back_while_it_writes(mover: Mover) -> None:
    variables = mover.house.snapshot_vm(mover.vm, "before").firmware_variables
    assert variables
    for _ in range(2):
        to = OTHER[mover.vm.host]
        last = mover.move(to)
        assert last.host.name == to
        assert 0 < last.downtime_ns < 5e9
        mover.check(to)
    after = mover.house.of(host=mover.vm.host).snapshot_vm(mover.vm, "after").firmware_variables
    assert after == variables


def daemons(mover: Mover, at_old: bool) -> tuple[str, Daemon]:
    name = mover.vm.host if at_old else OTHER[mover.vm.host]
    return name, mover.house.hosts[name]


@pytest.mark.parametrize(
    ("at_old", "step"),
    [
        (True, "qemu.sending"),
        (True, "migration.sent"),
        (False, "qemu.answers"),
        (False, "qemu.accepted"),
    ],
)
def test_a_host_agent_that_dies_on_the_way_loses_no_guest(mover: Mover, at_old: bool, step: str) -> None:
    name, daemon = daemons(mover, at_old)
    to = OTHER[mover.vm.host]
    before = mover.vm.host
    daemon.kill()
    daemon.start(failpoints=f"{step}=kill")
    wait_until(lambda: _hears(mover, name), f"{name} answers")
    moving = in_thread(lambda: iter([mover.move(to)]))
    daemon.wait_dead()
    daemon.start()
    wait_until(lambda: _hears(mover, name), f"{name} answers")
    wait_until(lambda: _no_migrations(mover), "the move has ended", seconds=SETTLE_SECONDS)
    with contextlib.suppress(ArrayliftError):  # the caller may be told that it was undone
        moving.wait()
    assert mover.vm.host in (before, to)
    mover.check(mover.vm.host)


def test_a_qemu_that_dies_as_it_receives_leaves_the_guest_where_it_was(mover: Mover) -> None:
    before, to = mover.vm.host, OTHER[mover.vm.host]
    daemon = mover.house.hosts[before]
    daemon.kill()
    daemon.start(failpoints="qemu.sending=hang")
    wait_until(lambda: _hears(mover, before), f"{before} answers")
    request = center_pb.MigrateVmRequest(vm_id=mover.vm_id, host=to, live=True)
    moving = mover.house.inventory.MigrateVm(request, timeout=60)
    wait_until(lambda: bool(mover._pids(to)), "the new host waits for it")
    for pid in mover._pids(to):
        os.kill(pid, signal.SIGKILL)
    daemon.kill()
    daemon.start()
    moving.cancel()
    wait_until(lambda: _hears(mover, before), f"{before} answers")
    wait_until(lambda: _no_migrations(mover), "the move has ended", seconds=SETTLE_SECONDS)
    mover.check(mover.vm.host)


def _hears(mover: Mover, name: str) -> bool:
    return mover.house.of(host=name)._hears()


def _no_migrations(mover: Mover) -> bool:
    listed = call(mover.house.inventory.ListMigrations, center_pb.ListMigrationsRequest(), peer=CENTER)
    return not listed.migrations
