"""What the virtual center speaks of: hosts, VMs, their configuration, VM snapshots. Values only.

Owns: these types and the limits on what a host may report.
Invariants:
  O1 values are immutable and compare by content, so that an unchanged report changes nothing.
Callers: any thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from arraylift.ids import SnapshotId, VmId, VmSnapshotId

HOSTS_MAX = 1024
VMS_PER_HOST_MAX = 10_000
VMS_MAX = 100_000
"""Of one center, claims of several hosts on one VM counted each."""

DISKS_MAX = 64
NETWORKS_MAX = 16
TAGS_MAX = 64


class PowerState(IntEnum):
    """As in the protos."""

    UNKNOWN = 0
    """Nobody can say: the VM's host is lost."""
    OFF = 1
    ON = 2


class ConsistencyLevel(IntEnum):
    """As in the protos; higher is better."""

    ANY = 0
    CRASH = 1
    FILESYSTEM = 2
    APPLICATION = 3


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of a VM: a volume of an array."""

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
    """The VM attributes: what is needed to make the VM again. ``tags`` in key order."""

    name: str
    uuid: str
    cpus: int
    memory_bytes: int
    disks: tuple[Disk, ...] = ()
    networks: tuple[NetworkInterface, ...] = ()
    tags: tuple[tuple[str, str], ...] = ()
    firmware: str = ""

    def arrays(self) -> frozenset[str]:
        """Names of the arrays that its disks lie on."""
        return frozenset(disk.array for disk in self.disks)


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
        return self.power is PowerState.ON


@dataclass(frozen=True, slots=True)
class Host:
    """A registered host. Memory and the time of the last report are soft: the store may lag behind."""

    name: str
    address: str
    driver: str
    sequence: int = 0
    """Of the last report that was taken; 0: none yet."""
    lost: bool = False
    memory_bytes: int = 0
    memory_free_bytes: int = 0
    cpus: int = 0
    last_report_ns: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """The whole inventory of a host at one moment."""

    host: str
    sequence: int
    vms: tuple[Vm, ...]
    memory_bytes: int = 0
    memory_free_bytes: int = 0
    cpus: int = 0
    received_at_ns: int = 0


@dataclass(frozen=True, slots=True)
class DiskSnapshot:
    """A volume snapshot of one disk, on its array."""

    disk_name: str
    array: str
    array_address: str
    volume_name: str
    snapshot_id: SnapshotId
    size_bytes: int


@dataclass(frozen=True, slots=True)
class VmSnapshot:
    """Disk snapshots of one VM taken at one instant, as its host describes them."""

    vm_snapshot_id: VmSnapshotId
    vm_id: VmId
    name: str
    level: ConsistencyLevel
    frozen_ns: int
    created_at_ns: int
    config: VmConfig
    disks: tuple[DiskSnapshot, ...]
    lease_seconds: int


@dataclass(frozen=True, slots=True)
class SnapshotRequest:
    """What a VMM is asked to capture. ``lease_seconds`` 0: the VMM's default."""

    vm_id: VmId
    name: str
    level_min: ConsistencyLevel = ConsistencyLevel.ANY
    lease_seconds: int = 0
    exclude_disks: tuple[str, ...] = ()
