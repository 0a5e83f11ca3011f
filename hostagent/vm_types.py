"""What a host says of its VMs, and the limits that it keeps.

Callers: every module of the host agent; values only, no behaviour.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum

from arraylift.ids import SnapshotId, VmId, VmSnapshotId
from arraylift.sizes import GIB, MIB, TIB

CPUS_MAX = 256
MEMORY_BYTES_MIN, MEMORY_BYTES_MAX = MIB, 4 * TIB
DISKS_MAX = 64
NETWORKS_MAX = 16
ARRAYS_PER_VM_MAX = 16
"""Arrays that one VM's disks may lie on: each is one call while the guest is frozen."""
TAGS_MAX = 64
TAG_VALUE_BYTES_MAX = 1024
VMS_MAX = 1024
VM_SNAPSHOTS_PER_VM_MAX = 64
RECORDS_BYTES_MAX = 3 * MIB
"""All VMs of a host, and all its VM snapshots, each fit into one message of 4 MiB."""
LEASE_SECONDS, LEASE_SECONDS_MIN = 60, 10
LEASE_SECONDS_MAX = 3600
FREEZE_SECONDS_MAX = 10.0
"""Longest time that a guest stands still, whatever happens."""
GRACE_SECONDS, GRACE_SECONDS_MAX = 30, 3600
GUEST_FILE_BYTES_MAX = GIB
GUEST_ENTRIES_MAX = 100_000
FIRMWARES = ("bios", "uefi")


class ConsistencyLevel(IntEnum):
    """How consistent a VM snapshot is; higher is better."""

    CRASH = 1
    FILESYSTEM = 2
    APPLICATION = 3


class VmState(StrEnum):
    """What a VM's record is for."""

    MAKING = "making"
    """Its volumes may exist and nobody was told of the VM: undone at the next start."""
    OFF = "off"
    ON = "on"
    DELETING = "deleting"
    """Its volumes are being deleted; only DeleteVm may touch it."""


class SnapshotState(StrEnum):
    """What a VM snapshot's record is for."""

    TAKING = "taking"
    """Arrays may hold snapshots under its id; undone at the next start."""
    READY = "ready"
    RELEASING = "releasing"
    """Its volume snapshots are being deleted; nobody sees it any more."""


@dataclass(frozen=True, slots=True)
class Disk:
    """A volume of an array, as a disk of a VM. ``volume_name`` empty: to be made."""

    name: str
    array: str
    array_address: str
    volume_name: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class NetworkInterface:
    mac: str
    network: str


@dataclass(frozen=True, slots=True)
class VmConfig:
    """The VM attributes: what is needed to make the VM again."""

    name: str
    uuid: str
    cpus: int
    memory_bytes: int
    disks: tuple[Disk, ...]
    networks: tuple[NetworkInterface, ...]
    tags: tuple[tuple[str, str], ...]
    firmware: str


@dataclass(frozen=True, slots=True)
class Vm:
    """``request`` is the digest of the CreateVm that made it; ``made_volumes`` names the disks
    whose volumes were made for it, which alone are removed when making it fails."""

    vm_id: VmId
    config: VmConfig
    state: VmState
    revision: int
    request: str
    made_volumes: tuple[str, ...]

    @property
    def subject(self) -> str:
        return f"VM {self.config.name}"


@dataclass(frozen=True, slots=True)
class DiskSnapshot:
    disk_name: str
    array: str
    array_address: str
    volume_name: str
    snapshot_id: SnapshotId
    size_bytes: int


@dataclass(frozen=True, slots=True)
class VmSnapshot:
    """Volume snapshots of one VM's disks, taken while its guest stood still for ``frozen_ns``.

    ``level`` is None until it is READY. The arrays know each volume snapshot under the label
    ``vm_snapshot_id``. ``addresses``: of every array that may hold one.
    """

    vm_snapshot_id: VmSnapshotId
    vm_id: VmId
    name: str
    state: SnapshotState
    level: ConsistencyLevel | None
    frozen_ns: int
    created_at_ns: int
    config: VmConfig
    addresses: tuple[str, ...]
    disks: tuple[DiskSnapshot, ...]
    lease_seconds: int

    @property
    def subject(self) -> str:
        return f"VM snapshot {self.vm_snapshot_id}"


@dataclass(frozen=True, slots=True)
class GuestFile:
    """``mode`` has type and permissions, as st_mode."""

    path: str
    size_bytes: int
    mode: int
    uid: int
    gid: int
    modified_at_ns: int
