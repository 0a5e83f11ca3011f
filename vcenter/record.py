"""Hosts, VMs and configurations as the bytes that the store keeps, and back.

Pure. Invariants:
  J1 one value has one spelling: JSON with sorted keys, no spaces, UTF-8.
  J2 every record carries the checksum of its key and bytes; what does not match, or lacks a field,
     or has one more, is Corruption, never another record.
Callers: inventory_store. Format: docs/formats/inventory-v2.md
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import xxhash

from arraylift.errors import Corruption
from arraylift.ids import MigrationId, VmId
from arraylift.vm.types import Disk, NetworkInterface, PowerState, Vm, VmConfig
from vcenter.inventory import Claim
from vcenter.migration import Migration, Phase
from vcenter.model import Host

T = TypeVar("T")

CHECKSUM_BYTES = 8


def encode_host(host: Host) -> bytes:
    """Return a host's record; its key is the name."""
    return _spell(asdict(host))


def decode_host(data: bytes) -> Host:
    """Raises Corruption."""
    return _parsed(data, lambda fields: Host(**_of_type(_HOST, {"load_percent": 0, **fields})))


@dataclass(frozen=True, slots=True)
class Past:
    """What a VM was from some moment on. ``host`` is empty where version 1 did not note it."""

    host: str
    config: VmConfig
    removed: bool = False
    """No host had it from then on; configuration and host are the last ones."""


def encode_past(past: Past) -> bytes:
    """Return an entry of a VM's history."""
    fields = {"host": past.host, "config": _config_fields(past.config), "removed": past.removed}
    return _spell(fields)


def decode_past(data: bytes) -> Past:
    """Raises Corruption. Version 1 noted nothing but the configuration."""

    def build(fields: dict[str, Any]) -> Past:
        if "config" not in fields:
            return Past("", _config(fields))
        config = _config(fields.pop("config"))
        return Past(config=config, **_of_type({"host": "", "removed": False}, fields))

    return _parsed(data, build)


def encode_migration(migration: Migration) -> bytes:
    """Return the record of a migration; its key is the id."""
    fields = asdict(migration)
    return _spell({**fields, "firmware_variables": base64.b64encode(migration.firmware_variables).decode()})


def decode_migration(data: bytes) -> Migration:
    """Raises Corruption."""

    def build(fields: dict[str, Any]) -> Migration:
        plain = _of_type(_MIGRATION, fields)
        plain["firmware_variables"] = base64.b64decode(plain["firmware_variables"], validate=True)
        return Migration(**{**plain, "phase": Phase(plain["phase"])})

    return _parsed(data, build)


def encode_claim(claim: Claim) -> bytes:
    """Return the record of a host's claim on a VM; its key is VM id and host."""
    vm = claim.vm
    return _spell(
        {
            "vm_id": vm.vm_id,
            "host": vm.host,
            "power": int(vm.power),
            "revision": vm.revision,
            "order": claim.order,
            "config": _config_fields(vm.config),
        }
    )


def decode_claim(data: bytes) -> Claim:
    """Raises Corruption."""
    return _parsed(data, _claim)


def checksum(*parts: bytes) -> bytes:
    """Return the xxh3-64 of the parts, each with its length before it; little-endian."""
    state = xxhash.xxh3_64()
    for part in parts:
        state.update(len(part).to_bytes(4, "little"))
        state.update(part)
    return state.intdigest().to_bytes(CHECKSUM_BYTES, "little")


def _spell(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _parsed(data: bytes, build: Callable[[dict[str, Any]], T]) -> T:
    try:
        return build(json.loads(data))
    except (ValueError, TypeError, KeyError) as error:
        raise Corruption(f"a record of the inventory is damaged: {error}") from error


def _of_type(wanted: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """Check names and types of fields against those of an example (J2)."""
    if fields.keys() != wanted.keys() or any(type(fields[key]) is not type(wanted[key]) for key in wanted):
        raise ValueError("its fields are not those of its version")
    return fields


def _config_fields(config: VmConfig) -> dict[str, Any]:
    disks = [asdict(disk) for disk in config.disks]
    for disk in disks:
        if not disk["foreign"]:
            del disk["foreign"]
    return {**asdict(config), "disks": disks, "tags": [list(tag) for tag in config.tags]}


_HOST = asdict(Host("", "", ""))
_CONFIG = asdict(VmConfig("", "", 0, 0))
_DISK = asdict(Disk("", "", "", "", 0))
_NETWORK = asdict(NetworkInterface("", ""))
_MIGRATION = {
    **asdict(Migration(MigrationId(""), VmId(""), "", "", "", False, 0, 0, 0)),  # an example
    "phase": "",
    "firmware_variables": "",
}
_CLAIM = {"vm_id": "", "host": "", "power": 0, "revision": 0, "order": 0}


def _config(fields: dict[str, Any]) -> VmConfig:
    lists = {key: fields.pop(key) for key in ("disks", "networks", "tags")}
    plain = _of_type(_CONFIG, {**fields, "disks": (), "networks": (), "tags": ()})
    return VmConfig(
        **{
            **plain,
            "disks": tuple(Disk(**_of_type(_DISK, {"foreign": "", **disk})) for disk in lists["disks"]),
            "networks": tuple(NetworkInterface(**_of_type(_NETWORK, one)) for one in lists["networks"]),
            "tags": tuple((str(key), str(value)) for key, value in lists["tags"]),
        }
    )


def _claim(fields: dict[str, Any]) -> Claim:
    config = _config(fields.pop("config"))
    plain = _of_type(_CLAIM, fields)
    vm_id = VmId(plain["vm_id"])
    vm = Vm(vm_id, config, PowerState(plain["power"]), plain["host"], plain["revision"])
    return Claim(vm, plain["order"])
