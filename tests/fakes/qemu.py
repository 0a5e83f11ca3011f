"""QEMUs without QEMU: processes, monitors and arrays in memory, which outlive the host agent.

What is asserted at every change is the law of the driver: one QEMU a VM, and none whose disks nobody serves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from arraylift.errors import NotFound, PeerUnavailable
from arraylift.nbd.uri import NbdUri
from hostagent.qemu.command_line import device_id
from hostagent.qemu.exports import node_name
from hostagent.qemu.guest_folder import GuestFolder
from hostagent.qemu.monitor import MonitorRefused
from hostagent.qemu.processes import Process
from hostagent.qemu.run_record import PlacedDisk
from hostagent.vm_types import VmRecord


@dataclass
class FakeQemu:
    """One process: its nodes and devices, and what its guest does."""

    pid: int
    status: str = "prelaunch"
    nodes: dict[str, str] = field(default_factory=dict)
    devices: set[str] = field(default_factory=set)
    lets_go: bool = True
    migration: dict[str, Any] = field(default_factory=dict)
    sending_to: str = ""


class Killed(BaseException):
    """kill -9 of the host agent: nothing that it would still do has an effect."""


class World:
    """A machine's QEMUs by lock file, and the exports of its arrays; both outlive a host agent."""

    def __init__(self) -> None:
        self.running: dict[str, FakeQemu] = {}
        self.exports: dict[tuple[str, str], str] = {}
        self.away: set[str] = set()
        self._pid = 0
        self.waiting: dict[str, FakeQemu] = {}
        """QEMUs that wait for a guest, by port."""
        self.calls_left = -1
        """Until the host agent is killed with -9; below 0: it is not."""
        self.dead = False
        self.at_death: Callable[[], None] = lambda: None

    def tick(self) -> None:
        """The host agent's process goes out of itself, or comes back: here it may die."""
        self.calls_left -= self.calls_left >= 0
        if self.calls_left == 0 and not self.dead:
            self.dead = True
            self.at_death()
        if self.dead:
            raise Killed

    def start(self, lock_path: str, disks: Iterable[PlacedDisk]) -> FakeQemu:
        assert lock_path not in self.running, "a second QEMU for one VM"
        self._pid += 1
        made = self.running[lock_path] = FakeQemu(self._pid)
        for disk in disks:
            self.open(made, node_name(disk.export), disk.array_address, disk.export)
            made.devices.add(device_id(disk.export))
        return made

    def open(self, qemu: FakeQemu, node: str, address: str, export: str) -> None:
        if address in self.away or (address, export) not in self.exports:
            raise PeerUnavailable(f"nobody serves {export}")
        qemu.nodes[node] = export

    def check(self) -> None:
        """No guest has a disk that no array serves."""
        served = {export for _, export in self.exports}
        for qemu in self.running.values():
            assert set(qemu.nodes.values()) <= served, "an export was deleted under its guest"

    def finish_sending(self, lock_path: str) -> None:
        """The last byte of a guest that is being sent has come."""
        qemu = self.running[lock_path]
        assert qemu.migration["status"] == "active"
        there = self.waiting.pop(qemu.sending_to)
        qemu.status, qemu.migration = "postmigrate", {"status": "completed", "downtime": 7}
        there.status, there.migration = "paused", {"status": "completed"}

    def power_cut(self) -> None:
        self.running.clear()

    # -- what the host asks of arrays -----------------------------------------------------------

    def create_export(self, address: str, export: str, volume_name: str) -> NbdUri:
        self._reach(address)
        assert self.exports.setdefault((address, export), volume_name) == volume_name
        self.tick()
        return NbdUri(export, tls=False, host="array", port=10809)

    def delete_export(self, address: str, export: str) -> None:
        self._reach(address)
        self.exports.pop((address, export), None)
        self.check()
        self.tick()

    def _reach(self, address: str) -> None:
        self.tick()
        if address in self.away:
            raise PeerUnavailable(f"{address} is away")


class FakeProcess(Process):
    """A process of a World."""

    __slots__ = ("world",)
    world: World

    @classmethod
    def of(cls, world: World, qemu: FakeQemu) -> FakeProcess:
        made = cls(qemu.pid, qemu.pid)
        object.__setattr__(made, "world", world)
        return made

    @property
    def alive(self) -> bool:
        return any(qemu.pid == self.pid for qemu in self.world.running.values())


class FakeProcesses:
    """Processes and Launcher of one host agent's process."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.fails = False

    def find(self, lock_path: str) -> Process | None:
        qemu = self.world.running.get(lock_path)
        return None if qemu is None else FakeProcess.of(self.world, qemu)

    def collect(self) -> None: ...

    def wait(self, process: Process, *, seconds: float) -> bool:
        return not process.alive

    def kill(self, process: Process, *, seconds: float = 10.0) -> bool:
        self.world.tick()
        self.world.running = {
            path: qemu for path, qemu in self.world.running.items() if qemu.pid != process.pid
        }
        return True

    def launch(
        self,
        vm: VmRecord,
        folder: GuestFolder,
        disks: Sequence[tuple[PlacedDisk, NbdUri]],
        *,
        variables: bytes,
        incoming: bool = False,
    ) -> Process:
        folder.make()
        if self.fails:
            raise NotFound("no QEMU today")
        self.world.tick()
        qemu = self.world.start(folder.lock_path, [disk for disk, _ in disks])
        self.world.tick()
        return FakeProcess.of(self.world, qemu)


class FakeQemuMonitor:
    """The monitor of whatever runs under a lock file."""

    def __init__(self, world: World, path: str) -> None:
        self._world, self._lock_path = world, f"{path.rpartition('/')[0]}/lock"

    def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, seconds: float = 1.0
    ) -> Any:
        qemu = self._world.running.get(self._lock_path)
        if qemu is None:
            raise PeerUnavailable("no QEMU")
        self._world.tick()
        answer = getattr(self, command.replace("-", "_"))(qemu, dict(arguments or {}))
        self._world.tick()
        return answer

    def query_status(self, qemu: FakeQemu, _: dict[str, Any]) -> object:
        return {"status": qemu.status}

    def cont(self, qemu: FakeQemu, _: dict[str, Any]) -> None:
        qemu.status = "running"

    def system_powerdown(self, qemu: FakeQemu, _: dict[str, Any]) -> None:
        del self._world.running[self._lock_path]

    quit = system_powerdown

    def query_named_block_nodes(self, qemu: FakeQemu, _: dict[str, Any]) -> object:
        return [{"node-name": name} for name in qemu.nodes]

    def qom_list(self, qemu: FakeQemu, _: dict[str, Any]) -> object:
        return [{"name": name} for name in qemu.devices]

    def blockdev_add(self, qemu: FakeQemu, node: dict[str, Any]) -> None:
        address = next(address for address, export in self._world.exports if export == node["export"])
        self._world.open(qemu, node["node-name"], address, node["export"])

    def device_add(self, qemu: FakeQemu, device: dict[str, Any]) -> None:
        if device["drive"] not in qemu.nodes:
            raise MonitorRefused("no such node")
        qemu.devices.add(device["id"])

    def device_del(self, qemu: FakeQemu, device: dict[str, Any]) -> None:
        if qemu.lets_go:
            qemu.devices.discard(device["id"])

    def blockdev_del(self, qemu: FakeQemu, node: dict[str, Any]) -> None:
        del qemu.nodes[node["node-name"]]

    # -- moves ----------------------------------------------------------------------------------

    def query_migrate(self, qemu: FakeQemu, _: dict[str, Any]) -> object:
        return dict(qemu.migration)

    def migrate_incoming(self, qemu: FakeQemu, where: dict[str, Any]) -> None:
        port = where["uri"].rpartition(":")[2]
        if port in self._world.waiting:
            raise MonitorRefused("Address already in use")
        self._world.waiting[port] = qemu
        qemu.status, qemu.migration = "inmigrate", {"status": "setup", "socket-address": [{"port": port}]}

    def object_add(self, qemu: FakeQemu, _: dict[str, Any]) -> None: ...

    migrate_set_parameters = migrate_set_capabilities = object_add

    def migrate(self, qemu: FakeQemu, where: dict[str, Any]) -> None:
        assert qemu.status == "running", "a guest that stands still is not sent"
        qemu.sending_to = where["uri"].rpartition(":")[2]
        qemu.migration = {"status": "active", "ram": {"transferred": 1, "remaining": 9}}

    def migrate_cancel(self, qemu: FakeQemu, _: dict[str, Any]) -> None:
        if qemu.migration.get("status") == "active":
            qemu.migration = {"status": "cancelled"}
