"""Records of VMs and VM snapshots: bytes of one small file each. Pure.

Invariants:
  V1 what is decoded has been encoded: envelope and checksum, every field present, of its type.
Callers: vm_store, any thread. Format: docs/formats/vm-record-v1.md
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

from arraylift import envelope
from arraylift.errors import Corruption, InvalidRequest
from arraylift.ids import (
    LineageId,
    MigrationId,
    PoolId,
    SnapshotId,
    SourceState,
    VmId,
    VmSnapshotId,
    check_id,
)
from arraylift.vm.types import (
    LATER,
    ConsistencyLevel,
    DirtyBitmap,
    Disk,
    DiskSnapshot,
    ForeignSource,
    NetworkInterface,
    VmConfig,
)
from hostagent.vm_types import Move, SnapshotRecord, SnapshotState, VmRecord, VmState

VM_MAGIC = b"ALVMRECD"
SNAPSHOT_MAGIC = b"ALVMSNAP"

_LATER_KEYS = frozenset({"move", "came_by", "adopted"})
_VM_KEYS = frozenset(field.name for field in fields(VmRecord)) - _LATER_KEYS
_SNAPSHOT_KEYS = frozenset(field.name for field in fields(SnapshotRecord))
_CONFIG_KEYS = frozenset(field.name for field in fields(VmConfig))
_TYPES = {"int": int, "str": str}

_DISK_SNAPSHOT_KEYS = frozenset(
    {"disk_name", "array", "array_address", "volume_name", "snapshot_id", "size_bytes"}
)

T = TypeVar("T", Disk, NetworkInterface)


def encode_vm(vm: VmRecord) -> bytes:
    """Return the whole file of a VM."""
    return envelope.encode(
        VM_MAGIC,
        envelope.canonical_json(
            {
                "vm_id": vm.vm_id,
                "config": config_to_json(vm.config),
                "state": vm.state.value,
                "revision": vm.revision,
                "request": vm.request,
                "made_volumes": list(vm.made_volumes),
                **_moving_to_json(vm),
                **({"adopted": True} if vm.adopted else {}),
            }
        ),
    )


def decode_vm(data: bytes, *, what: str) -> VmRecord:
    """Raises Corruption (V1), WrongState (a newer format)."""
    body, _ = envelope.decode(VM_MAGIC, data, what=what)
    value = envelope.parse_json(body, what=what, keys=_VM_KEYS, optional=_LATER_KEYS)
    try:
        vm = VmRecord(
            vm_id=VmId(check_id(value["vm_id"], "VM id")),
            config=_config(value["config"]),
            state=VmState(value["state"]),
            revision=_typed(value["revision"], int),
            request=_typed(value["request"], str),
            made_volumes=tuple(_typed(name, str) for name in value["made_volumes"]),
            move=_move(value["move"]) if "move" in value else None,
            came_by=_migration_id(value["came_by"]) if "came_by" in value else None,
            adopted=_typed(value.get("adopted", False), bool),
        )
        if vm.state is VmState.EXPECTED and vm.move is None:
            raise ValueError("a place that no migration keeps")
        return vm
    except (ValueError, TypeError, KeyError, AttributeError, InvalidRequest) as error:
        raise _senseless(what, error) from error


def encode_snapshot(snapshot: SnapshotRecord) -> bytes:
    """Return the whole file of a VM snapshot."""
    return envelope.encode(
        SNAPSHOT_MAGIC,
        envelope.canonical_json(
            {
                "vm_snapshot_id": snapshot.vm_snapshot_id,
                "vm_id": snapshot.vm_id,
                "name": snapshot.name,
                "state": snapshot.state.value,
                "level": snapshot.level,
                "frozen_ns": snapshot.frozen_ns,
                "created_at_ns": snapshot.created_at_ns,
                "config": config_to_json(snapshot.config),
                "addresses": list(snapshot.addresses),
                "disks": [_disk_snapshot_to_json(disk) for disk in snapshot.disks],
                "lease_seconds": snapshot.lease_seconds,
            }
        ),
    )


def decode_snapshot(data: bytes, *, what: str) -> SnapshotRecord:
    """Raises Corruption (V1), WrongState (a newer format)."""
    value = envelope.decode_json(SNAPSHOT_MAGIC, data, what=what, keys=_SNAPSHOT_KEYS)
    try:
        level = value["level"]
        disks = tuple(map(_disk_snapshot, value["disks"]))
        return SnapshotRecord(
            vm_snapshot_id=VmSnapshotId(check_id(value["vm_snapshot_id"], "VM snapshot id")),
            vm_id=VmId(check_id(value["vm_id"], "VM id")),
            name=_typed(value["name"], str),
            state=SnapshotState(value["state"]),
            level=None if level is None else ConsistencyLevel(level),
            frozen_ns=_typed(value["frozen_ns"], int),
            created_at_ns=_typed(value["created_at_ns"], int),
            config=_config(value["config"]),
            addresses=tuple(_typed(address, str) for address in value["addresses"]),
            disks=disks,
            lease_seconds=_typed(value["lease_seconds"], int),
        )
    except (ValueError, TypeError, KeyError, AttributeError, InvalidRequest) as error:
        raise _senseless(what, error) from error


def _moving_to_json(vm: VmRecord) -> dict[str, Any]:
    """What only a VM that moves, or has moved, has: the others' records are as ever."""
    moving: dict[str, Any] = {}
    if vm.move is not None:
        moving["move"] = {
            "migration_id": vm.move.migration_id,
            "live": vm.move.live,
            "handed_over": vm.move.handed_over,
        }
    if vm.came_by is not None:
        moving["came_by"] = vm.came_by
    return moving


def _move(value: dict[str, Any]) -> Move:
    if value.keys() != {"migration_id", "live", "handed_over"}:
        raise ValueError("a migration with other fields")
    return Move(
        _migration_id(value["migration_id"]),
        live=_typed(value["live"], bool),
        handed_over=_typed(value["handed_over"], bool),
    )


def _migration_id(value: str) -> MigrationId:
    return MigrationId(check_id(value, "migration id"))


def config_to_json(config: VmConfig) -> dict[str, Any]:
    """The VM attributes as JSON; tags as an object."""
    return {
        "name": config.name,
        "uuid": config.uuid,
        "cpus": config.cpus,
        "memory_bytes": config.memory_bytes,
        "disks": [_plain_to_json(disk) for disk in config.disks],
        "networks": [_plain_to_json(network) for network in config.networks],
        "tags": dict(config.tags),
        "firmware": config.firmware,
    }


def _config(value: dict[str, Any]) -> VmConfig:
    if value.keys() != _CONFIG_KEYS:
        raise ValueError("a configuration with other fields")
    return VmConfig(
        name=_typed(value["name"], str),
        uuid=_typed(value["uuid"], str),
        cpus=_typed(value["cpus"], int),
        memory_bytes=_typed(value["memory_bytes"], int),
        disks=tuple(_plain(Disk, disk) for disk in value["disks"]),
        networks=tuple(_plain(NetworkInterface, network) for network in value["networks"]),
        tags=tuple(sorted((_typed(key, str), _typed(text, str)) for key, text in value["tags"].items())),
        firmware=_typed(value["firmware"], str),
    )


def _disk_snapshot_to_json(disk: DiskSnapshot) -> dict[str, Any]:
    """What has changed is told once and not kept: it is asked for anew."""
    value: dict[str, Any] = {name: getattr(disk, name) for name in _DISK_SNAPSHOT_KEYS}
    if disk.state is not None:
        value["state"] = state_to_json(disk.state)
    if disk.foreign is not None:
        bitmap = disk.foreign.bitmap
        value["foreign"] = {"uri": disk.foreign.uri}
        if bitmap is not None:
            value["foreign"]["bitmap"] = {"name": bitmap.name, "since": state_to_json(bitmap.since)}
    return value


def _disk_snapshot(value: dict[str, Any]) -> DiskSnapshot:
    if value.keys() - {"state", "foreign"} != _DISK_SNAPSHOT_KEYS:
        raise ValueError("a DiskSnapshot with other fields")
    foreign = value.get("foreign")
    return DiskSnapshot(
        disk_name=_typed(value["disk_name"], str),
        array=_typed(value["array"], str),
        array_address=_typed(value["array_address"], str),
        volume_name=_typed(value["volume_name"], str),
        # A foreign disk's state lies on no array.
        snapshot_id=SnapshotId(check_id(value["snapshot_id"], "snapshot id") if foreign is None else ""),
        size_bytes=_typed(value["size_bytes"], int),
        state=state_from_json(value["state"]) if "state" in value else None,
        foreign=None if foreign is None else _foreign(foreign),
    )


def _foreign(value: dict[str, Any]) -> ForeignSource:
    bitmap = value.get("bitmap")
    return ForeignSource(
        _typed(value["uri"], str),
        None
        if bitmap is None
        else DirtyBitmap(_typed(bitmap["name"], str), state_from_json(bitmap["since"])),
    )


def state_to_json(state: SourceState) -> list[str | int]:
    """A state of a disk: pool, lineage, birth."""
    return [state.pool_id, state.lineage_id, state.birth]


def state_from_json(value: list[Any]) -> SourceState:
    """Raises ValueError, TypeError, InvalidRequest."""
    pool_id, lineage_id, birth = value
    return SourceState(
        PoolId(check_id(pool_id, "pool id")),
        LineageId(check_id(lineage_id, "lineage id")),
        _typed(birth, int),
    )


def _plain_to_json(value: Disk | NetworkInterface) -> dict[str, Any]:
    return {
        field.name: getattr(value, field.name)
        for field in fields(value)
        if not (field.metadata.get(LATER) and getattr(value, field.name) == field.default)
    }


def _plain(cls: type[T], value: dict[str, Any]) -> T:
    """A dataclass of texts and whole numbers."""
    declared = {field.name: _TYPES.get(str(field.type), str) for field in fields(cls)}
    later = {field.name for field in fields(cls) if field.metadata.get(LATER)}
    if not declared.keys() - later <= value.keys() <= declared.keys():
        raise ValueError(f"a {cls.__name__} with other fields")
    typed: dict[str, Any] = {name: _typed(value[name], declared[name]) for name in value}
    return cls(**typed)


V = TypeVar("V", int, str, bool)


def _typed(value: object, kind: type[V]) -> V:
    if type(value) is not kind:
        raise TypeError(f"{value!r} where a {kind.__name__} belongs")
    return value


def _senseless(what: str, error: Exception) -> Corruption:
    return Corruption(
        f"{what} makes no sense: {error}", subject=what, next_step="restore that file from a copy"
    )
