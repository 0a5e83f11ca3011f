"""What a VM may look like: checks, and what is filled in where the request left it empty.

Pure: randomness comes in as bytes. Raises InvalidRequest naming the field.
Callers: machines, any thread. Words and limits: protos/arraylift/v1/vm.proto
"""

from __future__ import annotations

import hashlib
import re
import uuid as uuids
from collections.abc import Callable, Iterable
from dataclasses import replace

from arraylift.envelope import canonical_json
from arraylift.errors import InvalidRequest
from arraylift.ids import check_name
from arraylift.sizes import IMAGE_BYTES_MAX
from arraylift.vm.types import DISKS_MAX, NETWORKS_MAX, TAGS_MAX, Disk, NetworkInterface, VmConfig
from hostagent.vm_record import config_to_json
from hostagent.vm_types import (
    ARRAYS_PER_VM_MAX,
    CPUS_MAX,
    FIRMWARES,
    GUEST_FILE_BYTES_MAX,
    MEMORY_BYTES_MAX,
    MEMORY_BYTES_MIN,
    TAG_VALUE_BYTES_MAX,
)

SECTOR_BYTES = 512
PATH_BYTES_MAX = 4096
VOLUME_NAME_BYTES_MAX = 200  # of what people chose, before the token that makes it ours

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_ADDRESS = re.compile(r"[A-Za-z0-9.\-]{1,253}:[0-9]{1,5}|\[[0-9A-Fa-f:.]{2,45}\]:[0-9]{1,5}")


def check_config(config: VmConfig) -> None:
    """Refuse what no VM can be; empty uuid, MAC, volume name and firmware are still allowed."""
    check_name(config.name, "a VM name")
    _check_count(config.cpus, 1, CPUS_MAX, "cpus")
    _check_count(config.memory_bytes, MEMORY_BYTES_MIN, MEMORY_BYTES_MAX, "memory_bytes")
    if config.uuid and not _UUID.fullmatch(config.uuid):
        raise InvalidRequest(
            f"{config.uuid[:60]!r} is no UUID", next_step="write 8-4-4-4-12 lower-case hex digits"
        )
    if config.firmware and config.firmware not in FIRMWARES:
        raise InvalidRequest(f"{config.firmware[:40]!r} is no firmware", next_step="use bios or uefi")
    if len(config.disks) > DISKS_MAX or len(config.networks) > NETWORKS_MAX or len(config.tags) > TAGS_MAX:
        raise InvalidRequest(
            f"a VM has at most {DISKS_MAX} disks, {NETWORKS_MAX} networks and {TAGS_MAX} tags"
        )
    for disk in config.disks:
        check_disk(disk)
    _check_distinct((disk.name for disk in config.disks), "disk name")
    _check_distinct(
        ((disk.array_address, disk.volume_name) for disk in config.disks if disk.volume_name), "volume"
    )
    if len({disk.array_address for disk in config.disks}) > ARRAYS_PER_VM_MAX:
        raise InvalidRequest(f"the disks of a VM lie on at most {ARRAYS_PER_VM_MAX} arrays")
    for network in config.networks:
        check_name(network.network, "a network name")
        if network.mac and (not _MAC.fullmatch(network.mac) or int(network.mac[:2], 16) & 1):
            raise InvalidRequest(
                f"{network.mac[:40]!r} is no MAC of one card", next_step="write 52:54:00:xx:xx:xx, lower case"
            )
    _check_distinct((network.mac for network in config.networks if network.mac), "MAC")
    for key, value in config.tags:
        check_name(key, "a tag")
        if len(value.encode()) > TAG_VALUE_BYTES_MAX:
            raise InvalidRequest(f"tag {key!r} has more than {TAG_VALUE_BYTES_MAX} bytes")


def check_whole_config(config: VmConfig) -> None:
    """Refuse what a VM that exists somewhere cannot be: everything is filled in, every disk is a volume."""
    check_config(config)
    volumes, macs = [disk.volume_name for disk in config.disks], [one.mac for one in config.networks]
    if not all([config.uuid, config.firmware, *volumes, *macs]):
        raise InvalidRequest(f"the configuration of VM {config.name} has gaps: it has no such VM anywhere")


def check_disk(disk: Disk) -> None:
    """One disk; its size is checked only where the volume is to be made."""
    check_name(disk.name, "a disk name")
    if disk.foreign:
        raise InvalidRequest(
            f"disk {disk.name!r} is foreign, and only the VMM that has it can give it to a VM",
            next_step="name a volume of an array, or a size",
        )
    check_name(disk.array, "an array name")
    if not _ADDRESS.fullmatch(disk.array_address):
        raise InvalidRequest(f"{disk.array_address[:80]!r} is no array address", next_step="write host:port")
    if disk.volume_name:
        check_name(disk.volume_name, "a volume name")
    elif disk.size_bytes % SECTOR_BYTES or not SECTOR_BYTES <= disk.size_bytes <= IMAGE_BYTES_MAX:
        raise InvalidRequest(
            f"disk {disk.name!r} of {disk.size_bytes} bytes cannot be made",
            next_step="sizes are multiples of 512 bytes, up to 16 TiB",
        )


def complete_config(config: VmConfig, random_bytes: Callable[[int], bytes]) -> VmConfig:
    """Fill in uuid, MACs, firmware and the names of the volumes that will be made.

    Those names bear 48 random bits, so that undoing a half-made VM never meets another's volume.
    """
    networks = tuple(
        network if network.mac else NetworkInterface(make_mac(random_bytes(3)), network.network)
        for network in config.networks
    )
    disks = tuple(
        disk
        if disk.volume_name
        else replace(disk, volume_name=made_volume_name(config.name, disk.name, random_bytes(6)))
        for disk in config.disks
    )
    return replace(
        config,
        uuid=config.uuid or make_uuid(random_bytes(16)),
        networks=networks,
        disks=disks,
        firmware=config.firmware or FIRMWARES[0],
    )


def make_mac(three: bytes) -> str:
    """A MAC of the prefix that QEMU's guests use, from 3 random bytes."""
    assert len(three) == 3, "three bytes follow the prefix"
    return "52:54:00:" + three.hex(":")


def make_uuid(sixteen: bytes) -> str:
    """A version 4 UUID from 16 random bytes."""
    return str(uuids.UUID(bytes=sixteen, version=4))


def made_volume_name(vm_name: str, disk_name: str, token: bytes) -> str:
    """``<VM>-<disk>-<token>``, within 255 bytes."""
    chosen = f"{vm_name}-{disk_name}".encode()[:VOLUME_NAME_BYTES_MAX].decode(errors="ignore").rstrip()
    return check_name(f"{chosen}-{token.hex()}", "a volume name")


def request_digest(config: VmConfig, firmware_variables: bytes = b"") -> str:
    """Names a CreateVm by what it asked for: the same request again has the same digest."""
    return hashlib.sha256(canonical_json(config_to_json(config)) + firmware_variables).hexdigest()


def check_guest_path(path: str) -> str:
    """Return an absolute path inside a guest, without '.', '..', or a character that could be read
    as anything but a name by the tool that opens the file system."""
    parts = [part for part in path.split("/") if part]
    if not path.startswith("/") or len(path.encode("utf-8", "surrogatepass")) > PATH_BYTES_MAX:
        raise InvalidRequest(
            f"{path[:80]!r} is no absolute path of at most {PATH_BYTES_MAX} bytes",
            next_step="begin it with '/'",
        )
    for part in parts:
        if part in {".", ".."} or len(part.encode("utf-8", "surrogatepass")) > 255:
            raise InvalidRequest(f"{part[:80]!r} cannot be a part of a guest path")
        # Law 13: quotes end a quoted argument; control characters end a command.
        if any(char == '"' or not char.isprintable() for char in part):
            raise InvalidRequest(
                f"{part[:80]!r} has characters that this VMM does not write",
                next_step="rename it inside the guest, without quotes and control characters",
            )
    return "/" + "/".join(parts)


def check_file_bytes(count_bytes: int) -> None:
    if count_bytes > GUEST_FILE_BYTES_MAX:
        raise InvalidRequest(
            f"a guest file has at most {GUEST_FILE_BYTES_MAX} bytes", next_step="send it in parts"
        )


def _check_count(value: int, low: int, high: int, what: str) -> None:
    if not low <= value <= high:
        raise InvalidRequest(f"{what} is {low} to {high}, not {value}")


def _check_distinct(values: Iterable[object], what: str) -> None:
    seen: set[object] = set()
    for value in values:
        if value in seen:
            raise InvalidRequest(f"the {what} {value!r} stands twice")
        seen.add(value)
