"""Jobs, steps and backups that the tests of this folder share."""

from __future__ import annotations

from dataclasses import replace

from arraylift.exchange.messages import Figures
from arraylift.ids import SnapshotId, VmId, VmSnapshotId
from arraylift.vm.types import ConsistencyLevel, Disk, DiskSnapshot, NetworkInterface, VmConfig, VmSnapshot
from backup_server import documents
from backup_server.job_rules import BackupOrder, Job, JobKind, JobState, RestoreOrder, Step
from backup_server.model import Backup, BackupDisk
from backup_server.ports import HostRef

VM_ID = "e" * 32
DISK = Disk("disk0", "array1", "127.0.0.1:7403", "web1-disk0", 1 << 20)
CONFIG = VmConfig(
    "web1", "u", 2, 1 << 30, (DISK,), (NetworkInterface("52:54:00:00:00:01", "lan"),), (("a", "b"),)
)
SNAPSHOT = VmSnapshot(
    vm_snapshot_id=VmSnapshotId("f" * 32),
    vm_id=VmId(VM_ID),
    name="job",
    level=ConsistencyLevel.FILESYSTEM,
    frozen_ns=7,
    created_at_ns=9,
    config=CONFIG,
    disks=(
        DiskSnapshot("disk0", "array1", DISK.array_address, DISK.volume_name, SnapshotId("d" * 32), 1 << 20),
    ),
    lease_seconds=60,
)


def job(number: int, *, state: JobState = JobState.QUEUED, vm_id: str = VM_ID) -> Job:
    """Backup job ``number``."""
    order = BackupOrder(
        "target1", full=False, direct=True, level_min=ConsistencyLevel.CRASH, exclude_disks=("swap",)
    )
    return Job(f"{number:032x}", JobKind.BACKUP, state, vm_id, "web1", number, backup=order)


def restore_job(number: int, backup_id: str) -> Job:
    """Restore job ``number``."""
    order = RestoreOrder(backup_id, "web2", "", "", start=True, direct=False, keep_identity=False)
    return Job(f"{number:032x}", JobKind.RESTORE, JobState.QUEUED, VM_ID, "web2", number, restore=order)


def located() -> Step:
    """A step that is done."""
    return Step("locate", 5, 6, "host host1", documents.dump(HostRef("host1", "127.0.0.1:7402")))


def backup(number: int, *, target: str = "target1", at_ns: int | None = None, vm: str = "web1") -> Backup:
    """Backup ``number``, of one disk."""
    disk = replace(DISK, volume_name=f"{vm}-disk0")
    return Backup(
        backup_id=f"{number:032x}",
        vm_id=VM_ID,
        vm_name=vm,
        target=target,
        snapshot_at_ns=number if at_ns is None else at_ns,
        level=ConsistencyLevel.FILESYSTEM,
        frozen_ns=7,
        disks=(BackupDisk("disk0", "a" * 32, 1 << 20, b"r" * 32, Figures(spans_total=1), "array1"),),
        config=replace(CONFIG, disks=(disk,)),
        incremental=True,
    )
