"""Edge: the host agent's values to and from the generated classes."""

from __future__ import annotations

from arraylift.errors import InvalidRequest
from arraylift.v1 import vm_pb2 as pb
from hostagent.vm_types import (
    ConsistencyLevel,
    Disk,
    GuestFile,
    NetworkInterface,
    Vm,
    VmConfig,
    VmSnapshot,
    VmState,
)


def config_from_pb(config: pb.VmConfig) -> VmConfig:
    return VmConfig(
        name=config.name,
        uuid=config.uuid,
        cpus=config.cpus,
        memory_bytes=config.memory_bytes,
        disks=tuple(map(disk_from_pb, config.disks)),
        networks=tuple(NetworkInterface(network.mac, network.network) for network in config.networks),
        tags=tuple(sorted(config.tags.items())),
        firmware=config.firmware,
    )


def config_to_pb(config: VmConfig) -> pb.VmConfig:
    return pb.VmConfig(
        name=config.name,
        uuid=config.uuid,
        cpus=config.cpus,
        memory_bytes=config.memory_bytes,
        disks=[
            pb.Disk(
                name=disk.name,
                array=disk.array,
                array_address=disk.array_address,
                volume_name=disk.volume_name,
                size_bytes=disk.size_bytes,
            )
            for disk in config.disks
        ],
        networks=[
            pb.NetworkInterface(mac=network.mac, network=network.network) for network in config.networks
        ],
        tags=dict(config.tags),
        firmware=config.firmware,
    )


def disk_from_pb(disk: pb.Disk) -> Disk:
    return Disk(disk.name, disk.array, disk.array_address, disk.volume_name, disk.size_bytes)


def vm_to_pb(vm: Vm, host: str) -> pb.Vm:
    on = vm.state is VmState.ON
    return pb.Vm(
        vm_id=vm.vm_id,
        config=config_to_pb(vm.config),
        power=pb.POWER_STATE_ON if on else pb.POWER_STATE_OFF,
        host=host,
        revision=vm.revision,
    )


def level_from_pb(level: int) -> ConsistencyLevel:
    """Unspecified asks for nothing: CRASH."""
    if level not in pb.ConsistencyLevel.values():
        raise InvalidRequest(f"consistency level {level} is unknown")
    return ConsistencyLevel(level or ConsistencyLevel.CRASH)


def snapshot_to_pb(snapshot: VmSnapshot) -> pb.VmSnapshot:
    assert snapshot.level is not None, "only a READY snapshot is told of"
    return pb.VmSnapshot(
        vm_snapshot_id=snapshot.vm_snapshot_id,
        vm_id=snapshot.vm_id,
        name=snapshot.name,
        level=pb.ConsistencyLevel.Name(snapshot.level.value),
        frozen_ns=snapshot.frozen_ns,
        created_at_ns=snapshot.created_at_ns,
        config=config_to_pb(snapshot.config),
        disks=[
            pb.DiskSnapshot(
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


def file_to_pb(file: GuestFile) -> pb.GuestFile:
    return pb.GuestFile(
        path=file.path,
        size_bytes=file.size_bytes,
        mode=file.mode,
        uid=file.uid,
        gid=file.gid,
        modified_at_ns=file.modified_at_ns,
    )
