"""What the backup server speaks of: VMs, their snapshots, backups, peers. Values only, no I/O.

The fields are those of protos/arraylift/v1/vm.proto and backup.proto, which document them. Sizes in
bytes, times in UTC nanoseconds since 1970. All of it can be written as JSON (``documents``).
Callers: any thread.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from arraylift.exchange.messages import Figures


class PeerKind(IntEnum):
    """Numbers are those of the proto, here and below."""

    ARRAY = 1
    TARGET = 2
    HOST = 3
    VCENTER = 4

    @property
    def word(self) -> str:
        """As people say it."""
        return "virtual center" if self is PeerKind.VCENTER else self.name.lower()


class Level(IntEnum):
    """How consistent a VM snapshot is; higher is better."""

    UNSPECIFIED = 0
    CRASH = 1
    FILESYSTEM = 2
    APPLICATION = 3


@dataclass(frozen=True, slots=True)
class RegisteredPeer:
    """Where a daemon is reached; its name is that of its certificate."""

    kind: PeerKind
    name: str
    address: str

    def __str__(self) -> str:
        return f"{self.kind.word} {self.name}"


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of a VM: a volume of an array."""

    name: str
    array: str
    array_address: str
    volume_name: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Network:
    """A network interface of a VM."""

    mac: str
    network: str


@dataclass(frozen=True, slots=True)
class VmConfig:
    """The VM attributes: what is needed to make the VM again ([0041])."""

    name: str
    uuid: str
    cpus: int
    memory_bytes: int
    disks: tuple[Disk, ...] = ()
    networks: tuple[Network, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)
    firmware: str = ""


@dataclass(frozen=True, slots=True)
class Vm:
    """A VM as its host or its virtual center lists it."""

    vm_id: str
    config: VmConfig
    running: bool
    host: str


@dataclass(frozen=True, slots=True)
class Located:
    """A VM and the VmService that has it."""

    vm: Vm
    host: str
    host_address: str


@dataclass(frozen=True, slots=True)
class DiskSnapshot:
    """A volume snapshot on an array, by the name of its disk."""

    disk_name: str
    array: str
    array_address: str
    volume_name: str
    snapshot_id: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class VmSnapshot:
    """Snapshots of a VM's disks, taken at one instant."""

    vm_snapshot_id: str
    vm_id: str
    name: str
    level: Level
    frozen_ns: int
    created_at_ns: int
    config: VmConfig
    disks: tuple[DiskSnapshot, ...]


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a transfer made: an image, or a volume."""

    receipt_id: str
    root: bytes
    figures: Figures
    used_births: bool = False


@dataclass(frozen=True, slots=True)
class BackupDisk:
    """A disk of a backup: an image on the target."""

    disk_name: str
    image_id: str
    size_bytes: int
    root: bytes
    figures: Figures
    array: str


@dataclass(frozen=True, slots=True)
class Backup:
    """One VM at one instant. The backup's id is that of the job that made it."""

    backup_id: str
    vm_id: str
    vm_name: str
    target: str
    snapshot_at_ns: int
    level: Level
    frozen_ns: int
    disks: tuple[BackupDisk, ...]
    config: VmConfig
    incremental: bool


@dataclass(frozen=True, slots=True)
class TransferNews:
    """One message of a transfer on its way; the last has the receipt."""

    spans_done: int
    figures: Figures
    receipt: Receipt | None = None
