"""A virtual center, two hosts and an array as processes, and VMs that move between the hosts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from arraylift import pki
from arraylift.errors import ArrayliftError, NotFound
from arraylift.ids import random_id
from arraylift.rpc.channel import call, connect, stream
from arraylift.sizes import MIB
from arraylift.v1 import virtual_center_pb2 as pb
from arraylift.v1 import virtual_center_pb2_grpc, vm_pb2, vm_pb2_grpc
from tests.e2e.daemon import Daemon, wait_until
from tests.e2e.running import shown_when_failing

ARRAY, CENTER, HOSTS = "array1", "vcenter1", ("host1", "host2")
CALL_SECONDS = 60.0
SETTLE_SECONDS = 60.0


class MoveHouse:
    """Four daemons, and what an operator does with VMs."""

    def __init__(self, home: Path) -> None:
        directory = home / "pki"
        directory.mkdir()
        self._pki = str(directory)
        pki.init_ca(self._pki)
        names = (
            ("array", ARRAY),
            ("vcenter", CENTER),
            ("operator", "admin"),
            *(("host", one) for one in HOSTS),
        )
        for role, name in names:
            pki.issue(self._pki, role, name)
        common: dict[str, Any] = {"home": home, "pki": directory}
        self.array = Daemon("primary_array", ARRAY, settings={}, **common)
        self.center = Daemon("vcenter", CENTER, settings={}, **common)
        settings = {"vcenter": self.center.address}
        self.hosts = {name: Daemon("hostagent", name, settings=settings, **common) for name in HOSTS}
        self.daemons = {ARRAY: self.array, CENTER: self.center, **self.hosts}
        tls = pki.load(self._pki, "operator", "admin")
        self._channels: list[grpc.Channel] = []

        def channel(daemon: Daemon) -> grpc.Channel:
            self._channels.append(connect(daemon.address, tls, daemon.role, daemon.name))
            return self._channels[-1]

        self._center = virtual_center_pb2_grpc.VirtualCenterServiceStub(channel(self.center))
        self._vms = {name: vm_pb2_grpc.VmServiceStub(channel(daemon)) for name, daemon in self.hosts.items()}

    # -- life -----------------------------------------------------------------------------------

    def start(self) -> None:
        for daemon in self.daemons.values():
            daemon.launch()
        for daemon in self.daemons.values():
            daemon.wait_started()
        self.wait_alive()

    def wait_alive(self) -> None:
        """Until both hosts report to the center."""

        def alive() -> bool:
            with contextlib.suppress(ArrayliftError):
                found = self.ask("ListHosts", pb.ListHostsRequest()).hosts
                return [host.state for host in found] == [pb.HOST_STATE_ALIVE] * len(HOSTS)
            return False

        wait_until(alive, "both hosts report")

    def close(self) -> None:
        for channel in self._channels:
            channel.close()
        with ThreadPoolExecutor(len(self.daemons)) as pool:
            list(pool.map(Daemon.close, self.daemons.values()))

    def logs(self) -> str:
        return "\n".join(f"==== {one.name}\n{one.log_tail()}" for one in self.daemons.values())

    # -- calls ----------------------------------------------------------------------------------

    def ask(self, method: str, request: object, *, seconds: float = CALL_SECONDS) -> Any:
        return call(getattr(self._center, method), request, peer=CENTER, timeout_seconds=seconds)

    def ask_host(self, name: str, method: str, request: object) -> Any:
        return call(getattr(self._vms[name], method), request, peer=name, timeout_seconds=CALL_SECONDS)

    def make_vm(self, name: str) -> vm_pb2.Vm:
        """Off, on the first host."""
        disk = vm_pb2.Disk(name="root", array=ARRAY, array_address=self.array.address, size_bytes=MIB)
        config = vm_pb2.VmConfig(name=name, cpus=1, memory_bytes=MIB, disks=[disk])
        request = pb.ProvisionVmRequest(vm_id=random_id(), config=config, host=HOSTS[0])
        made: vm_pb2.Vm = self.ask("ProvisionVm", request).vm
        return made

    def shown(self, vm_id: str) -> pb.GetManagedVmResponse:
        found: pb.GetManagedVmResponse = self.ask("GetManagedVm", pb.GetManagedVmRequest(vm_id=vm_id))
        return found

    def migrate(self, vm_id: str, host: str, **more: object) -> list[pb.MigrateVmResponse]:
        request = pb.MigrateVmRequest(vm_id=vm_id, host=host, **more)  # type: ignore[arg-type]
        return list(stream(self._center.MigrateVm, request, peer=CENTER, timeout_seconds=CALL_SECONDS))

    def migrations(self) -> list[pb.Migration]:
        return list(self.ask("ListMigrations", pb.ListMigrationsRequest()).migrations)

    def wait_ended(self) -> None:
        """Until no migration is under way, nor left over."""

        def ended() -> bool:
            with contextlib.suppress(ArrayliftError):
                return not self.migrations()
            return False

        wait_until(ended, "every migration ends", seconds=SETTLE_SECONDS)

    def _hears(self, name: str) -> bool:
        with contextlib.suppress(ArrayliftError):
            self.ask_host(name, "ListVms", vm_pb2.ListVmsRequest())
            return True
        return False

    # -- the law --------------------------------------------------------------------------------

    def who_runs_it(self, vm_id: str) -> list[str]:
        """Hosts on which it can be started, by trying; those that do not answer cannot be asked."""
        able = []
        for name in HOSTS:
            with contextlib.suppress(ArrayliftError):
                self.ask_host(name, "PowerOn", vm_pb2.PowerOnRequest(vm_id=vm_id))
                able.append(name)
        for name in able:
            with contextlib.suppress(ArrayliftError):  # it may be about to die
                self.ask_host(name, "PowerOff", vm_pb2.PowerOffRequest(vm_id=vm_id, force=True))
        return able

    def check_at_rest(self, vm_id: str) -> str:
        """One host has it, can run it, and is shown; the other knows nothing of it. Returns the host."""
        for name in HOSTS:  # our own connections come back a little later than the hosts
            wait_until(lambda name=name: self._hears(name), f"{name} answers")  # type: ignore[misc]
        (name,) = self.who_runs_it(vm_id)
        wait_until(lambda: self.shown(vm_id).host.name == name, f"{name} is shown", seconds=20)
        for other in set(HOSTS) - {name}:
            try:
                self.ask_host(other, "GetVm", vm_pb2.GetVmRequest(vm_id=vm_id))
            except NotFound:
                continue
            raise AssertionError(f"{other} still has the VM")
        return name


@contextmanager
def running_move_house(home: Path) -> Iterator[MoveHouse]:
    house = MoveHouse(home)
    try:
        house.start()
        with shown_when_failing(house):
            yield house
    finally:
        house.close()
