"""What a host keeps of its VMs and VM snapshots, and the limits that are its own.

What it says of them to others are the values of ``arraylift.vm.types``.
Callers: every module of the host agent; values only.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from arraylift.ids import MigrationId, VmId, VmSnapshotId
from arraylift.sizes import GIB, MIB, TIB
from arraylift.vm.types import ConsistencyLevel, DiskSnapshot, PowerState, Vm, VmConfig, VmSnapshot

CPUS_MAX = 256
MEMORY_BYTES_MIN, MEMORY_BYTES_MAX = MIB, 4 * TIB
ARRAYS_PER_VM_MAX = 16
"""Arrays that one VM's disks may lie on: each is one call while the guest is frozen."""
TAG_VALUE_BYTES_MAX = 1024
VMS_MAX = 1024
VM_SNAPSHOTS_PER_VM_MAX = 64
RECORDS_BYTES_MAX = 3 * MIB
"""All VMs of a host, and all its VM snapshots, each fit into one message of 4 MiB."""
FREEZE_SECONDS_MAX = 10.0
"""Longest time that a guest stands still, whatever happens."""
GUEST_FILE_BYTES_MAX = GIB
GUEST_ENTRIES_MAX = 100_000
FIRMWARES = ("bios", "uefi")


class VmState(StrEnum):
    """What a VM's record is for."""

    MAKING = "making"
    """Its volumes may exist and nobody was told of the VM: undone at the next start."""
    OFF = "off"
    ON = "on"
    DELETING = "deleting"
    """Its volumes are being deleted; only DeleteVm may touch it."""
    EXPECTED = "expected"
    """A place for a VM that another host still has: nobody is told of it, and nobody can start it."""


class SnapshotState(StrEnum):
    """What a VM snapshot's record is for."""

    TAKING = "taking"
    """Arrays may hold snapshots under its id; undone at the next start."""
    READY = "ready"
    RELEASING = "releasing"
    """Its volume snapshots are being deleted; nobody sees it any more."""


@dataclass(frozen=True, slots=True)
class Move:
    """A migration that a VM is in. ``handed_over``: on the old host, it will not run there again; on the
    new one, which was asked to accept, its guest may run already."""

    migration_id: MigrationId
    live: bool
    handed_over: bool = False


@dataclass(frozen=True, slots=True)
class VmRecord:
    """``request`` is the digest of the CreateVm that made it, empty where it came from another host;
    ``made_volumes`` names the disks whose volumes were made for it, which alone are removed when making
    it fails. ``came_by`` is the migration that brought it here, if one did. An ``adopted`` VM is a guest
    that the host's admin made: its config is what the VMM says of it."""

    vm_id: VmId
    config: VmConfig
    state: VmState
    revision: int
    request: str
    made_volumes: tuple[str, ...]
    move: Move | None = None
    came_by: MigrationId | None = None
    adopted: bool = False

    @property
    def subject(self) -> str:
        return f"VM {self.config.name}"

    @property
    def has_vmm(self) -> bool:
        """Whether a VMM of it may be there: of a guest that runs, comes in, or was sent."""
        return self.state is VmState.ON or (self.state is VmState.EXPECTED and self.in_move.live)

    @property
    def in_move(self) -> Move:
        assert self.move is not None, "only asked of a VM that moves"
        return self.move

    def told(self, host: str) -> Vm:
        """As this host, of that name, tells others of it."""
        power = PowerState.ON if self.state is VmState.ON else PowerState.OFF
        return Vm(self.vm_id, self.config, power, host, self.revision)


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
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

    def told(self, firmware_variables: bytes = b"") -> VmSnapshot:
        """As others are told of it."""
        assert self.level is not None, "only a READY snapshot is told of"
        return VmSnapshot(
            vm_snapshot_id=self.vm_snapshot_id,
            vm_id=self.vm_id,
            name=self.name,
            level=self.level,
            frozen_ns=self.frozen_ns,
            created_at_ns=self.created_at_ns,
            config=self.config,
            disks=self.disks,
            lease_seconds=self.lease_seconds,
            firmware_variables=firmware_variables,
        )


@dataclass(frozen=True, slots=True)
class GuestFile:
    """``mode`` has type and permissions, as st_mode."""

    path: str
    size_bytes: int
    mode: int
    uid: int
    gid: int
    modified_at_ns: int
