"""Edge: the values of ``types`` to and from the generated classes.

Translates and checks nothing but enumerations (``types`` V2). Callers: the daemons' edges, any thread.
"""

from __future__ import annotations

from typing import TypeVar

from arraylift.errors import InvalidRequest
from arraylift.exchange.convert import state_from_pb, state_to_pb
from arraylift.ids import SnapshotId, SourceState, VmId, VmSnapshotId
from arraylift.v1 import backup_logic_pb2, virtual_center_pb2
from arraylift.v1 import vm_pb2 as pb
from arraylift.vm.types import (
    ConsistencyLevel,
    DirtyBitmap,
    Disk,
    DiskSnapshot,
    DiskState,
    ForeignSource,
    NetworkInterface,
    PowerState,
    SnapshotRequest,
    SuppliedChanges,
    Vm,
    VmConfig,
    VmSnapshot,
)

_POWERS, _LEVELS = frozenset(PowerState), frozenset(ConsistencyLevel)

# Whoever is asked, host or center, is asked in the same words.
Asked = TypeVar("Asked", pb.CreateVmSnapshotRequest, virtual_center_pb2.PrepareBackupRequest)


def config_to_pb(config: VmConfig) -> pb.VmConfig:
    return pb.VmConfig(
        name=config.name,
        uuid=config.uuid,
        cpus=config.cpus,
        memory_bytes=config.memory_bytes,
        disks=map(disk_to_pb, config.disks),
        networks=[pb.NetworkInterface(mac=one.mac, network=one.network) for one in config.networks],
        tags=dict(config.tags),
        firmware=config.firmware,
    )


def config_from_pb(config: pb.VmConfig) -> VmConfig:
    return VmConfig(
        name=config.name,
        uuid=config.uuid,
        cpus=config.cpus,
        memory_bytes=config.memory_bytes,
        disks=tuple(map(disk_from_pb, config.disks)),
        networks=tuple(NetworkInterface(one.mac, one.network) for one in config.networks),
        tags=tuple(sorted(config.tags.items())),
        firmware=config.firmware,
    )


def disk_to_pb(disk: Disk) -> pb.Disk:
    return pb.Disk(
        name=disk.name,
        array=disk.array,
        array_address=disk.array_address,
        volume_name=disk.volume_name,
        size_bytes=disk.size_bytes,
        foreign=disk.foreign,
    )


def disk_from_pb(disk: pb.Disk) -> Disk:
    return Disk(disk.name, disk.array, disk.array_address, disk.volume_name, disk.size_bytes, disk.foreign)


def vm_to_pb(vm: Vm) -> pb.Vm:
    return pb.Vm(
        vm_id=vm.vm_id,
        config=config_to_pb(vm.config),
        power=pb.PowerState.Name(vm.power),
        host=vm.host,
        revision=vm.revision,
    )


def vm_from_pb(vm: pb.Vm) -> Vm:
    return Vm(
        vm_id=VmId(vm.vm_id),
        config=config_from_pb(vm.config),
        power=power_from_pb(vm.power),
        host=vm.host,
        revision=vm.revision,
    )


def power_from_pb(power: int) -> PowerState:
    """A state of a later release is UNKNOWN."""
    return PowerState(power) if power in _POWERS else PowerState.UNKNOWN


def level_demanded(level: int) -> ConsistencyLevel:
    """What must be reached. Raises InvalidRequest: what is unknown cannot be kept."""
    if level not in _LEVELS:
        raise InvalidRequest(f"consistency level {level} is unknown")
    return ConsistencyLevel(level)


def level_reached(level: int) -> ConsistencyLevel:
    """What somebody says was reached: a level that we do not know promises nothing."""
    return ConsistencyLevel(level) if level in _LEVELS else ConsistencyLevel.UNSPECIFIED


def snapshot_request_to_pb(request: SnapshotRequest, kind: type[Asked]) -> Asked:
    return kind(
        vm_id=request.vm_id,
        name=request.name,
        level_min=pb.ConsistencyLevel.Name(request.level_min),
        lease_seconds=request.lease_seconds,
        exclude_disks=request.exclude_disks,
        changes_since=[
            pb.DiskState(disk_name=one.disk_name, state=state_to_pb(one.state))
            for one in request.changes_since
        ],
    )


def snapshot_request_from_pb(
    request: pb.CreateVmSnapshotRequest | virtual_center_pb2.PrepareBackupRequest,
) -> SnapshotRequest:
    """Raises InvalidRequest (level; a state without a name)."""
    return SnapshotRequest(
        vm_id=VmId(request.vm_id),
        name=request.name,
        level_min=level_demanded(request.level_min),
        lease_seconds=request.lease_seconds,
        exclude_disks=tuple(request.exclude_disks),
        changes_since=tuple(
            DiskState(one.disk_name, _named(state_from_pb(one.state))) for one in request.changes_since
        ),
    )


def _named(state: SourceState | None) -> SourceState:
    if state is None:
        raise InvalidRequest("say since which state changes are wanted")
    return state


def snapshot_to_pb(snapshot: VmSnapshot) -> pb.VmSnapshot:
    return pb.VmSnapshot(
        vm_snapshot_id=snapshot.vm_snapshot_id,
        vm_id=snapshot.vm_id,
        name=snapshot.name,
        level=pb.ConsistencyLevel.Name(snapshot.level),
        frozen_ns=snapshot.frozen_ns,
        created_at_ns=snapshot.created_at_ns,
        config=config_to_pb(snapshot.config),
        disks=map(disk_snapshot_to_pb, snapshot.disks),
        lease_seconds=snapshot.lease_seconds,
        firmware_variables=snapshot.firmware_variables,
    )


def snapshot_from_pb(snapshot: pb.VmSnapshot) -> VmSnapshot:
    """Raises InvalidRequest (a state that is none)."""
    return VmSnapshot(
        vm_snapshot_id=VmSnapshotId(snapshot.vm_snapshot_id),
        vm_id=VmId(snapshot.vm_id),
        name=snapshot.name,
        level=level_reached(snapshot.level),
        frozen_ns=snapshot.frozen_ns,
        created_at_ns=snapshot.created_at_ns,
        config=config_from_pb(snapshot.config),
        disks=tuple(map(disk_snapshot_from_pb, snapshot.disks)),
        lease_seconds=snapshot.lease_seconds,
        firmware_variables=snapshot.firmware_variables,
    )


def disk_snapshot_to_pb(disk: DiskSnapshot) -> pb.DiskSnapshot:
    return pb.DiskSnapshot(
        disk_name=disk.disk_name,
        array=disk.array,
        array_address=disk.array_address,
        volume_name=disk.volume_name,
        snapshot_id=disk.snapshot_id,
        size_bytes=disk.size_bytes,
        state=state_to_pb(disk.state),
        changes=None if disk.changes is None else changes_to_pb(disk.changes),
        foreign=None if disk.foreign is None else foreign_to_pb(disk.foreign),
    )


def disk_snapshot_from_pb(disk: pb.DiskSnapshot) -> DiskSnapshot:
    return DiskSnapshot(
        disk_name=disk.disk_name,
        array=disk.array,
        array_address=disk.array_address,
        volume_name=disk.volume_name,
        snapshot_id=SnapshotId(disk.snapshot_id),
        size_bytes=disk.size_bytes,
        state=state_from_pb(disk.state),
        changes=changes_from_pb(disk.changes) if disk.HasField("changes") else None,
        foreign=foreign_from_pb(disk.foreign) if disk.HasField("foreign") else None,
    )


def changes_to_pb(changes: SuppliedChanges) -> backup_logic_pb2.SuppliedChanges:
    return backup_logic_pb2.SuppliedChanges(
        since=state_to_pb(changes.since), offsets=changes.offsets, lengths=changes.lengths
    )


def changes_from_pb(changes: backup_logic_pb2.SuppliedChanges) -> SuppliedChanges | None:
    """None if it does not say since when: it vouches for nothing."""
    since = state_from_pb(changes.since)
    return None if since is None else SuppliedChanges(since, changes.offsets, changes.lengths)


def foreign_to_pb(source: ForeignSource) -> pb.ForeignSource:
    bitmap = source.bitmap
    return pb.ForeignSource(
        uri=source.uri,
        bitmap=None
        if bitmap is None
        else backup_logic_pb2.DirtyBitmap(name=bitmap.name, since=state_to_pb(bitmap.since)),
    )


def foreign_from_pb(source: pb.ForeignSource) -> ForeignSource:
    since = state_from_pb(source.bitmap.since)
    return ForeignSource(source.uri, None if since is None else DirtyBitmap(source.bitmap.name, since))
