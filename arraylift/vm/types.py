"""VMs, their configuration and their snapshots: values only, one word for one thing in every daemon.

The fields are those of protos/arraylift/v1/vm.proto, which documents them. Sizes in bytes, times in
UTC nanoseconds since 1970. What only one daemon keeps (records, reports, jobs) is that daemon's.
Owns: these types, and the limits that the contract states.
Invariants:
  V1 values are immutable, hashable and compare by content: an unchanged VM is an equal VM.
  V2 nothing here checks: who takes a value from a peer checks it (``hostagent.vm_rules``,
     ``vcenter.admission``).
Callers: any thread.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from arraylift.ids import SnapshotId, SourceState, VmId, VmSnapshotId

LATER = "later"
"""Metadata of a field that came after version 1 of the formats that keep it: left out at its default."""

DISKS_MAX = 64
NETWORKS_MAX = 16
TAGS_MAX = 64
FOREIGN_BYTES_MAX = 1024
"""Of the path or address at which a foreign disk lies."""
LEASE_SECONDS, LEASE_SECONDS_MIN = 60, 10
LEASE_SECONDS_MAX = 3600
"""Of a VM snapshot."""
GRACE_SECONDS, GRACE_SECONDS_MAX = 30, 3600
"""What a guest gets to shut down."""
CHANGED_RANGES_MAX = 1 << 16
"""Of one disk's SuppliedChanges; those of a VM snapshot together have no more than twice as many, so that it
fits into one message."""
FIRMWARE_VARIABLES_BYTES_MAX = 256 << 10
"""Of UEFI, compressed."""


class PowerState(IntEnum):
    """Numbers are those of the proto, here and below."""

    UNKNOWN = 0
    """Nobody can say: the VM's host is lost."""
    OFF = 1
    ON = 2


class ConsistencyLevel(IntEnum):
    """How consistent a VM snapshot is; higher is better."""

    UNSPECIFIED = 0
    """Demanded: any. Reached: nothing is promised."""
    CRASH = 1
    FILESYSTEM = 2
    APPLICATION = 3


@dataclass(frozen=True, slots=True)
class Disk:
    """A volume of an array, as a disk of a VM. ``volume_name`` empty: to be made. A *foreign* disk lies
    elsewhere, only its VMM reads it: ``foreign`` says where, and array, address and volume are empty."""

    name: str
    array: str
    array_address: str
    volume_name: str
    size_bytes: int
    foreign: str = field(default="", metadata={LATER: True})


@dataclass(frozen=True, slots=True)
class NetworkInterface:
    """A network interface of a VM."""

    mac: str
    network: str


Tags = tuple[tuple[str, str], ...]
"""Keys and values, in the order of the keys, each key once."""


@dataclass(frozen=True, slots=True)
class VmConfig:
    """The VM attributes: what is needed to make the VM again ([0041])."""

    name: str
    uuid: str
    cpus: int
    memory_bytes: int
    disks: tuple[Disk, ...] = ()
    networks: tuple[NetworkInterface, ...] = ()
    tags: Tags = ()
    firmware: str = ""

    def arrays(self) -> frozenset[str]:
        """Names of the arrays that its disks lie on; foreign disks lie on none."""
        return frozenset(disk.array for disk in self.disks if not disk.foreign)


@dataclass(frozen=True, slots=True)
class Vm:
    """A VM on a host, as that host says. ``revision`` is the host's own count of its changes."""

    vm_id: VmId
    config: VmConfig
    power: PowerState
    host: str
    revision: int

    @property
    def running(self) -> bool:
        """Its guest is on, as far as anybody knows."""
        return self.power is PowerState.ON


@dataclass(frozen=True, slots=True)
class SuppliedChanges:
    """What a VMM saw change since the state ``since``: a superset. ``offsets`` and ``lengths`` are packed
    little-endian u64 in bytes, ascending and disjoint, as they travel."""

    since: SourceState
    offsets: bytes
    lengths: bytes


@dataclass(frozen=True, slots=True)
class DirtyBitmap:
    """A bitmap that a VMM exports beside a disk; cleared at the instant of the state ``since``."""

    name: str
    since: SourceState


@dataclass(frozen=True, slots=True)
class ForeignSource:
    """Where a gateway reads a foreign disk's state, until the VM snapshot is deleted."""

    uri: str
    bitmap: DirtyBitmap | None = None


@dataclass(frozen=True, slots=True)
class DiskSnapshot:
    """A volume snapshot of one disk, on its array; of a foreign disk, where its VMM shows its state."""

    disk_name: str
    array: str
    array_address: str
    volume_name: str
    snapshot_id: SnapshotId
    size_bytes: int
    state: SourceState | None = None
    """None: whoever took it did not say."""
    changes: SuppliedChanges | None = None
    """Since the state that was asked for. None: the VMM does not know, or nobody asked."""
    foreign: ForeignSource | None = None


@dataclass(frozen=True, slots=True)
class DiskState:
    """A state of one disk that the caller has a backup of."""

    disk_name: str
    state: SourceState


@dataclass(frozen=True, slots=True)
class SnapshotRequest:
    """A VM snapshot as it is asked for; idempotent by VM and name. ``lease_seconds`` 0: the default."""

    vm_id: VmId
    name: str
    level_min: ConsistencyLevel = ConsistencyLevel.UNSPECIFIED
    lease_seconds: int = 0
    exclude_disks: tuple[str, ...] = ()
    changes_since: tuple[DiskState, ...] = ()


@dataclass(frozen=True, slots=True)
class VmSnapshot:
    """Snapshots of one VM's disks taken at one instant, for which its guest stood still ``frozen_ns``."""

    vm_snapshot_id: VmSnapshotId
    vm_id: VmId
    name: str
    level: ConsistencyLevel
    frozen_ns: int
    created_at_ns: int
    config: VmConfig
    disks: tuple[DiskSnapshot, ...]
    lease_seconds: int = 0
    """0: whoever kept it did not keep this."""
    firmware_variables: bytes = field(default=b"", repr=False)
    """Of UEFI, compressed by zlib; told only where one VM snapshot is asked for."""
