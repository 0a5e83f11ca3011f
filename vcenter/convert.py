"""Messages of the VM API and the virtual center to the center's values, checked, and back.

Invariants:
  V1 nothing that a peer says gets in unless it keeps the contract's limits.
  V2 a VM that has not changed is converted once: a listing of 10,000 costs copies only.
Callers: edges (``service``, ``peers``), any thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from arraylift.errors import InvalidRequest
from arraylift.ids import SnapshotId, VmId, VmSnapshotId, check_id, check_name
from arraylift.sizes import IMAGE_BYTES_MAX
from arraylift.v1 import virtual_center_pb2, vm_pb2
from vcenter.event_log import Event
from vcenter.inventory import Inventory
from vcenter.model import (
    DISKS_MAX,
    NETWORKS_MAX,
    TAGS_MAX,
    VMS_PER_HOST_MAX,
    ConsistencyLevel,
    Disk,
    DiskSnapshot,
    Host,
    NetworkInterface,
    PowerState,
    Report,
    SnapshotRequest,
    Vm,
    VmConfig,
    VmSnapshot,
)

TEXT_BYTES_MAX = 255
COUNT_MAX = 2**63 - 1
"""Largest number that every store of ours keeps."""
LEASE_SECONDS_MIN, LEASE_SECONDS_MAX = 10, 3600

Message = TypeVar("Message")

# -- from messages ------------------------------------------------------------------------------


def vm_from_pb(message: vm_pb2.Vm, *, host: str) -> Vm:
    """Return a VM that ``host`` told of. Raises InvalidRequest (V1)."""
    vm_id = VmId(check_id(message.vm_id, "VM id"))
    if message.power not in (vm_pb2.POWER_STATE_OFF, vm_pb2.POWER_STATE_ON):
        raise InvalidRequest(f"VM {vm_id} is neither on nor off")
    return Vm(
        vm_id=vm_id,
        config=config_from_pb(message.config),
        power=PowerState(message.power),
        host=message.host or host,
        revision=_count(message.revision, "the revision of a VM"),
    )


def config_from_pb(message: vm_pb2.VmConfig) -> VmConfig:
    """Raises InvalidRequest (V1)."""
    name = check_name(message.name, "VM name")
    _few(message.disks, DISKS_MAX, f"disks of VM {name}")
    _few(message.networks, NETWORKS_MAX, f"networks of VM {name}")
    _few(message.tags, TAGS_MAX, f"tags of VM {name}")
    disks = tuple(map(disk_from_pb, message.disks))
    if len({disk.name for disk in disks}) != len(disks):
        raise InvalidRequest(f"two disks of VM {name} have one name")
    return VmConfig(
        name=name,
        uuid=_text(message.uuid, "UUID"),
        cpus=message.cpus,
        memory_bytes=_count(message.memory_bytes, "the memory of a VM"),
        disks=disks,
        networks=tuple(
            NetworkInterface(_text(one.mac, "MAC"), _text(one.network, "network")) for one in message.networks
        ),
        tags=tuple(
            sorted((_text(key, "tag"), _text(value, "value of a tag")) for key, value in message.tags.items())
        ),
        firmware=_text(message.firmware, "firmware"),
    )


def disk_from_pb(message: vm_pb2.Disk) -> Disk:
    """Raises InvalidRequest (V1)."""
    if message.size_bytes > IMAGE_BYTES_MAX:
        raise InvalidRequest(f"disk {message.name!r} has more than {IMAGE_BYTES_MAX} bytes")
    return Disk(
        name=check_name(message.name, "disk name"),
        array=_text(message.array, "array"),
        array_address=_text(message.array_address, "array address"),
        volume_name=_text(message.volume_name, "volume name"),
        size_bytes=message.size_bytes,
    )


def report_from_pb(message: virtual_center_pb2.ReportInventoryRequest) -> Report:
    """Raises InvalidRequest (V1)."""
    _few(message.vms, VMS_PER_HOST_MAX, "VMs")
    vms = tuple(vm_from_pb(vm, host=message.name) for vm in message.vms)
    if len({vm.vm_id for vm in vms}) != len(vms):
        raise InvalidRequest("a report names a VM twice")
    strange = next((vm for vm in vms if vm.host != message.name), None)
    if strange is not None:
        raise InvalidRequest(f"a report of host {message.name} speaks of a VM on host {strange.host}")
    if not message.sequence:
        raise InvalidRequest("a report has a sequence number, from 1 on")
    return Report(
        host=message.name,
        sequence=_count(message.sequence, "a sequence"),
        vms=vms,
        memory_bytes=_count(message.memory_bytes, "memory"),
        memory_free_bytes=_count(message.memory_free_bytes, "free memory"),
        cpus=message.cpus,
    )


def snapshot_request_from_pb(message: virtual_center_pb2.PrepareBackupRequest) -> SnapshotRequest:
    """Raises InvalidRequest (V1)."""
    if message.lease_seconds and not LEASE_SECONDS_MIN <= message.lease_seconds <= LEASE_SECONDS_MAX:
        raise InvalidRequest(
            f"a lease of {message.lease_seconds} s is not possible",
            next_step=f"ask for {LEASE_SECONDS_MIN} to {LEASE_SECONDS_MAX} s, or 0",
        )
    _few(message.exclude_disks, DISKS_MAX, "disks to leave out")
    return SnapshotRequest(
        vm_id=VmId(check_id(message.vm_id, "VM id")),
        name=check_name(message.name, "name of the VM snapshot"),
        level_min=_level(message.level_min),
        lease_seconds=message.lease_seconds,
        exclude_disks=tuple(check_name(name, "disk name") for name in message.exclude_disks),
    )


def snapshot_from_pb(message: vm_pb2.VmSnapshot) -> VmSnapshot:
    """Raises InvalidRequest (V1)."""
    _few(message.disks, DISKS_MAX, "disk snapshots")
    return VmSnapshot(
        vm_snapshot_id=VmSnapshotId(check_id(message.vm_snapshot_id, "VM snapshot id")),
        vm_id=VmId(check_id(message.vm_id, "VM id")),
        name=check_name(message.name, "name of the VM snapshot"),
        level=_level(message.level),
        frozen_ns=message.frozen_ns,
        created_at_ns=message.created_at_ns,
        config=config_from_pb(message.config),
        disks=tuple(
            DiskSnapshot(
                disk_name=check_name(disk.disk_name, "disk name"),
                array=check_name(disk.array, "array"),
                array_address=_text(disk.array_address, "array address"),
                volume_name=check_name(disk.volume_name, "volume name"),
                snapshot_id=SnapshotId(check_id(disk.snapshot_id, "snapshot id")),
                size_bytes=disk.size_bytes,
            )
            for disk in message.disks
        ),
        lease_seconds=message.lease_seconds,
    )


def _level(value: int) -> ConsistencyLevel:
    try:
        return ConsistencyLevel(value)
    except ValueError:
        raise InvalidRequest(f"consistency level {value} is unknown") from None


def _text(value: str, what: str) -> str:
    if len(value.encode()) > TEXT_BYTES_MAX:
        raise InvalidRequest(f"{what} {value[:40]!r} has more than {TEXT_BYTES_MAX} bytes")
    return value


def _count(value: int, what: str) -> int:
    if value > COUNT_MAX:
        raise InvalidRequest(f"{what} is at most {COUNT_MAX}, not {value}")
    return value


def _few(values: Iterable[object], count_max: int, what: str) -> None:
    count = sum(1 for _ in values)
    if count > count_max:
        raise InvalidRequest(f"{count} {what}; at most {count_max}")


# -- to messages --------------------------------------------------------------------------------


def config_to_pb(config: VmConfig) -> vm_pb2.VmConfig:
    return vm_pb2.VmConfig(
        name=config.name,
        uuid=config.uuid,
        cpus=config.cpus,
        memory_bytes=config.memory_bytes,
        disks=map(disk_to_pb, config.disks),
        networks=[vm_pb2.NetworkInterface(mac=one.mac, network=one.network) for one in config.networks],
        tags=dict(config.tags),
        firmware=config.firmware,
    )


def disk_to_pb(disk: Disk) -> vm_pb2.Disk:
    return vm_pb2.Disk(
        name=disk.name,
        array=disk.array,
        array_address=disk.array_address,
        volume_name=disk.volume_name,
        size_bytes=disk.size_bytes,
    )


def vm_to_pb(vm: Vm) -> vm_pb2.Vm:
    return vm_pb2.Vm(
        vm_id=vm.vm_id,
        config=config_to_pb(vm.config),
        power=vm_pb2.PowerState.Name(vm.power),
        host=vm.host,
        revision=vm.revision,
    )


def host_to_pb(host: Host, inventory: Inventory) -> virtual_center_pb2.Host:
    """``vm_count`` counts what is shown on the host, which a lost rival claim is not."""
    states = virtual_center_pb2.HostState
    count = sum(
        1 for vm_id in inventory.ids_by_host.get(host.name, ()) if inventory.shown[vm_id].host == host.name
    )
    return virtual_center_pb2.Host(
        name=host.name,
        address=host.address,
        state=states.HOST_STATE_LOST if host.lost else states.HOST_STATE_ALIVE,
        memory_bytes=host.memory_bytes,
        memory_free_bytes=host.memory_free_bytes,
        cpus=host.cpus,
        vm_count=count,
        last_report_ns=host.last_report_ns,
        driver=host.driver,
    )


def snapshot_to_pb(snapshot: VmSnapshot) -> vm_pb2.VmSnapshot:
    return vm_pb2.VmSnapshot(
        vm_snapshot_id=snapshot.vm_snapshot_id,
        vm_id=snapshot.vm_id,
        name=snapshot.name,
        level=vm_pb2.ConsistencyLevel.Name(snapshot.level),
        frozen_ns=snapshot.frozen_ns,
        created_at_ns=snapshot.created_at_ns,
        config=config_to_pb(snapshot.config),
        disks=[
            vm_pb2.DiskSnapshot(
                disk_name=disk.disk_name,
                array=disk.array,
                array_address=disk.array_address,
                volume_name=disk.volume_name,
                snapshot_id=disk.snapshot_id,
                size_bytes=disk.size_bytes,
            )
            for disk in snapshot.disks
        ],
        lease_seconds=snapshot.lease_seconds,
    )


def event_to_pb(event: Event, messages: VmMessages) -> virtual_center_pb2.WatchInventoryResponse:
    return virtual_center_pb2.WatchInventoryResponse(
        revision=event.revision,
        vms=map(messages.of, event.vms),
        removed_vm_ids=event.gone,
        listing=event.listing,
    )


class VmMessages:
    """VMs as messages, made once (V2). Any thread; the messages are for reading."""

    def __init__(self) -> None:
        self._made: dict[VmId, tuple[Vm, vm_pb2.Vm]] = {}

    def of(self, vm: Vm) -> vm_pb2.Vm:
        """Return the message of a VM."""
        found = self._made.get(vm.vm_id)
        if found is not None and found[0] is vm:
            return found[1]
        message = vm_to_pb(vm)
        self._made[vm.vm_id] = (vm, message)
        return message

    def keep_only(self, inventory: Inventory) -> None:
        """Forget VMs that are gone, once they outnumber the others."""
        if len(self._made) > 2 * len(inventory.shown) + 64:
            self._made = {vm_id: made for vm_id, made in list(self._made.items()) if vm_id in inventory.shown}
