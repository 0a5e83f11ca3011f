"""What the backup server speaks of beside VMs (``arraylift.vm.types``): backups, peers, transfers.

The fields are those of protos/arraylift/v1/backup.proto, which documents them. Sizes in bytes, times
in UTC nanoseconds since 1970. All of it can be written as JSON (``documents``).
Callers: any thread; values only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from arraylift.exchange.messages import Figures
from arraylift.ids import SourceState
from arraylift.vm.types import LATER, ConsistencyLevel, Vm, VmConfig


class PeerKind(IntEnum):
    """Numbers are those of the proto."""

    ARRAY = 1
    TARGET = 2
    HOST = 3
    VCENTER = 4

    @property
    def role(self) -> str:
        """In certificates."""
        return self.name.lower()

    @property
    def word(self) -> str:
        """As people say it."""
        return "virtual center" if self is PeerKind.VCENTER else self.name.lower()


class ChangeSource(IntEnum):
    """Who says what changed since the base. Numbers are those of the proto."""

    UNSPECIFIED = 0
    BIRTHS = 1
    FULL_READ = 2
    DIFF = 3
    SUPPLIED = 4
    BITMAP = 5


@dataclass(frozen=True, slots=True)
class RegisteredPeer:
    """Where a daemon is reached; its name is that of its certificate."""

    kind: PeerKind
    name: str
    address: str

    def __str__(self) -> str:
        return f"{self.kind.word} {self.name}"


@dataclass(frozen=True, slots=True)
class Located:
    """A VM and the VmService that has it."""

    vm: Vm
    host: str
    host_address: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a transfer made: an image, or a volume."""

    receipt_id: str
    root: bytes
    figures: Figures
    used_births: bool = False
    """Only what changed was read, whoever said so; older than ``change_source``."""
    change_source: ChangeSource = field(default=ChangeSource.UNSPECIFIED, metadata={LATER: True})


@dataclass(frozen=True, slots=True)
class BackupDisk:
    """A disk of a backup: an image on the target."""

    disk_name: str
    image_id: str
    size_bytes: int
    root: bytes
    figures: Figures
    array: str
    """That sent it; of a foreign disk the gateway."""
    state: SourceState | None = field(default=None, metadata={LATER: True})
    """Of the disk at that instant, as its array or VMM names it; None: nobody said."""
    change_source: ChangeSource = field(default=ChangeSource.UNSPECIFIED, metadata={LATER: True})


@dataclass(frozen=True, slots=True)
class Backup:
    """One VM at one instant. The backup's id is that of the job that made it."""

    backup_id: str
    vm_id: str
    vm_name: str
    target: str
    snapshot_at_ns: int
    level: ConsistencyLevel
    frozen_ns: int
    disks: tuple[BackupDisk, ...]
    config: VmConfig
    incremental: bool
    lock_until_ns: int = field(default=0, metadata={LATER: True})
    """As the target's manifest says; 0: not locked."""
    firmware_variables: bytes = field(default=b"", metadata={LATER: True}, repr=False)
    """Of UEFI, as its VMM gave them. In the target's manifest only: the database does not keep them."""
    policy: str = field(default="", metadata={LATER: True})
    """Whose run made it, and whose retention goes over it; empty: nobody's."""


@dataclass(frozen=True, slots=True)
class Safety:
    """A snapshot that keeps what a disk held before it was restored in place."""

    disk_name: str
    array: str
    volume_name: str
    snapshot_id: str
    name: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """One message of a verification at a target; the last is ``done``, and says the rest."""

    containers_done: int
    containers_total: int
    done: bool
    whole: bool
    damaged_span_count: int
    damaged_spans: tuple[int, ...]
    oldest_check_at_ns: int
    bytes_read: int


@dataclass(frozen=True, slots=True)
class TransferNews:
    """One message of a transfer on its way; the last has the receipt."""

    spans_done: int
    figures: Figures
    receipt: Receipt | None = None
