"""VMs, hosts and a center without a network, for the tests of the virtual center."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from arraylift.durable import RealFiles
from arraylift.errors import NotFound, PeerUnavailable
from arraylift.failpoints import Failpoints
from arraylift.ids import SnapshotId, VmId, VmSnapshotId
from arraylift.vm.types import (
    ConsistencyLevel,
    Disk,
    DiskSnapshot,
    NetworkInterface,
    PowerState,
    SnapshotRequest,
    Vm,
    VmConfig,
    VmSnapshot,
)
from vcenter.inventory_store import InventoryStore
from vcenter.live_inventory import LiveInventory
from vcenter.model import Host, Report

FIRST_REVISION = 1_000
GIB = 1 << 30


class HandClock:
    """Time that a test turns by hand."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def monotonic(self) -> float:
        return self.seconds

    def wall_ns(self) -> int:
        return 1_700_000_000_000_000_000 + int(self.seconds * 1e9)


def vm_id_of(number: int) -> VmId:
    return VmId(f"{number:032x}")


def config(name: str, *, array: str = "a1", memory_bytes: int = GIB, disks: int = 1) -> VmConfig:
    return VmConfig(
        name=name,
        uuid="6c5ba1ac-3f4e-4a7e-9d4c-0d6f6cf4a001",
        cpus=2,
        memory_bytes=memory_bytes,
        disks=tuple(
            Disk(f"disk{index}", array, "127.0.0.1:7403", f"{name}-{index}", 8 * GIB)
            for index in range(disks)
        ),
        networks=(NetworkInterface("52:54:00:00:00:01", "lan"),),
        tags=(("owner", "künstler"),),
        firmware="bios",
    )


def make_vm(
    number: int,
    host: str = "h1",
    *,
    power: PowerState = PowerState.OFF,
    revision: int = 1,
    name: str = "",
    array: str = "a1",
) -> Vm:
    return Vm(vm_id_of(number), config(name or f"vm{number}", array=array), power, host, revision)


def report(host: str, sequence: int, *vms: Vm, free: int = 8 * GIB) -> Report:
    return Report(host, sequence, vms, memory_bytes=16 * GIB, memory_free_bytes=free, cpus=8)


@dataclass
class Center:
    """A live inventory over a real store, with a clock by hand; ``reopen`` as after a crash."""

    directory: Path
    clock: HandClock = field(default_factory=HandClock)
    failpoints: Failpoints = field(default_factory=Failpoints)

    def __post_init__(self) -> None:
        self.store = self._open()
        self.live = LiveInventory(self.store, self.clock)

    def _open(self) -> InventoryStore:
        return InventoryStore(
            RealFiles(), str(self.directory), first_revision=FIRST_REVISION, failpoints=self.failpoints
        )

    def reopen(self) -> None:
        self.store.close()
        self.__post_init__()

    def add_hosts(self, *names: str) -> None:
        for name in names:
            self.live.register(name=name, address="127.0.0.1:7402", driver="emulated")


class FakeHosts:
    """HostCalls without a network: hosts are dicts of VMs. ``failing`` maps a host to its error,
    raised before the host does anything; ``dying`` to one raised after it did it."""

    def __init__(self, *names: str) -> None:
        self.vms: dict[str, dict[VmId, Vm]] = {name: {} for name in names}
        self.firmware: dict[VmId, bytes] = {}
        self.snapshots: dict[str, dict[VmSnapshotId, VmSnapshot]] = {name: {} for name in names}
        self.failing: dict[str, Exception] = {}
        self.dying: dict[str, Exception] = {}
        self.calls: list[tuple[str, str]] = []

    def _begin(self, host: Host, method: str, seconds: float) -> None:
        assert seconds > 0
        self.calls.append((host.name, method))
        if host.name in self.failing:
            raise self.failing[host.name]

    def _end(self, host: Host) -> None:
        if host.name in self.dying:
            raise self.dying[host.name]

    def _change(self, host: Host, vm_id: VmId, **fields: object) -> Vm:
        if vm_id not in self.vms[host.name]:
            raise NotFound(f"no VM {vm_id} on {host.name}")
        old = self.vms[host.name][vm_id]
        new = replace(old, **fields)  # type: ignore[arg-type]
        if new != old:
            new = replace(new, revision=old.revision + 1)
        self.vms[host.name][vm_id] = new
        return new

    def list_vms(self, host: Host, *, seconds: float) -> Sequence[Vm]:
        self._begin(host, "list_vms", seconds)
        return list(self.vms[host.name].values())

    def create_vm(
        self, host: Host, vm_id: VmId, config: VmConfig, *, firmware_variables: bytes, seconds: float
    ) -> Vm:
        self._begin(host, "create_vm", seconds)
        self.firmware[vm_id] = firmware_variables
        made = self.vms[host.name].setdefault(vm_id, Vm(vm_id, config, PowerState.OFF, host.name, 1))
        self._end(host)
        return made

    def delete_vm(self, host: Host, vm_id: VmId, *, keep_volumes: bool, seconds: float) -> None:
        self._begin(host, "delete_vm", seconds)
        if vm_id not in self.vms[host.name]:
            raise NotFound(f"no VM {vm_id} on {host.name}")
        del self.vms[host.name][vm_id]

    def power_on(self, host: Host, vm_id: VmId, *, seconds: float) -> Vm:
        self._begin(host, "power_on", seconds)
        return self._change(host, vm_id, power=PowerState.ON)

    def power_off(self, host: Host, vm_id: VmId, *, grace_seconds: int, force: bool, seconds: float) -> Vm:
        self._begin(host, "power_off", seconds)
        return self._change(host, vm_id, power=PowerState.OFF)

    def attach_volume(self, host: Host, vm_id: VmId, disk: Disk, *, seconds: float) -> Vm:
        self._begin(host, "attach_volume", seconds)
        config = self._change(host, vm_id).config
        disks = config.disks if disk in config.disks else (*config.disks, disk)
        return self._change(host, vm_id, config=replace(config, disks=disks))

    def create_vm_snapshot(self, host: Host, request: SnapshotRequest, *, seconds: float) -> VmSnapshot:
        self._begin(host, "create_vm_snapshot", seconds)
        vm = self._change(host, request.vm_id)
        for made in self.snapshots[host.name].values():
            if (made.vm_id, made.name) == (request.vm_id, request.name):
                return made
        number = sum(map(len, self.snapshots.values())) + 1
        snapshot = VmSnapshot(
            VmSnapshotId(f"{number:032x}"),
            request.vm_id,
            request.name,
            ConsistencyLevel.FILESYSTEM,
            1_000,
            2_000,
            vm.config,
            tuple(
                DiskSnapshot(
                    disk.name, disk.array, disk.array_address, disk.volume_name, SnapshotId("e" * 32), 4096
                )
                for disk in vm.config.disks
            ),
            request.lease_seconds or 60,
        )
        self.snapshots[host.name][snapshot.vm_snapshot_id] = snapshot
        self._end(host)
        return snapshot

    def delete_vm_snapshot(self, host: Host, vm_snapshot_id: VmSnapshotId, *, seconds: float) -> None:
        self._begin(host, "delete_vm_snapshot", seconds)
        self.snapshots[host.name].pop(vm_snapshot_id, None)

    def renew_vm_snapshot(self, host: Host, vm_snapshot_id: VmSnapshotId, *, seconds: float) -> None:
        self._begin(host, "renew_vm_snapshot", seconds)
        if vm_snapshot_id not in self.snapshots[host.name]:
            raise NotFound(f"no VM snapshot {vm_snapshot_id} on {host.name}")


SILENT = PeerUnavailable("the host does not answer", next_step="retry")
