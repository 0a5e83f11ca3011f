"""Records that golden files and unit tests share."""

from __future__ import annotations

from dataclasses import replace

from arraylift.ids import LineageId, MigrationId, PoolId, SnapshotId, SourceState, VmId, VmSnapshotId
from arraylift.sizes import GIB
from arraylift.vm.types import (
    ConsistencyLevel,
    DirtyBitmap,
    Disk,
    DiskSnapshot,
    ForeignSource,
    NetworkInterface,
    VmConfig,
)
from hostagent.change_tracking import MarkId
from hostagent.disk_copy import WriteBack
from hostagent.mark_record import Mark, MarkedState, Place, VmMarks
from hostagent.vm_types import Move, SnapshotRecord, SnapshotState, VmRecord, VmState

VM_ID = VmId("0123456789abcdef0123456789abcdef")
CONFIG = VmConfig(
    name="web1",
    uuid="00000000-0000-4000-8000-000000000001",
    cpus=2,
    memory_bytes=GIB,
    disks=(Disk("root", "array1", "127.0.0.1:7403", "web1-root-00000000000a", 8 * GIB),),
    networks=(NetworkInterface("52:54:00:00:00:01", "lan"),),
    tags=(("owner", "zoé"),),
    firmware="bios",
)
VM = VmRecord(VM_ID, CONFIG, VmState.ON, 3, "ab" * 32, ("root",))
MOVING_VM = replace(
    VM, move=Move(MigrationId("c" * 32), live=True, handed_over=True), came_by=MigrationId("b" * 32)
)
ENDED = [MigrationId("b" * 32), MigrationId("a" * 32)]
SNAPSHOT = SnapshotRecord(
    vm_snapshot_id=VmSnapshotId("f" * 32),
    vm_id=VM_ID,
    name="job-7",
    state=SnapshotState.READY,
    level=ConsistencyLevel.FILESYSTEM,
    frozen_ns=12_345_678,
    created_at_ns=1_700_000_000_000_000_000,
    config=CONFIG,
    addresses=("127.0.0.1:7403",),
    disks=(
        DiskSnapshot(
            "root", "array1", "127.0.0.1:7403", "web1-root-00000000000a", SnapshotId("e" * 32), 8 * GIB
        ),
    ),
    lease_seconds=60,
)
STATE = SourceState(PoolId("a" * 32), LineageId("b" * 32), 7)
STATED_SNAPSHOT = replace(
    SNAPSHOT,
    disks=(
        replace(SNAPSHOT.disks[0], state=STATE),
        DiskSnapshot(
            "data",
            "",
            "",
            "",
            SnapshotId(""),
            GIB,
            STATE,
            foreign=ForeignSource("nbd+unix:///data?socket=/run/x", DirtyBitmap("al-1", STATE)),
        ),
    ),
)
"""What a release that knows of states and foreign disks adds."""
WRITE_BACK = WriteBack("d" * 32, VM_ID, "127.0.0.1:7403", "web1-root-00000000000a", ((65536, 131072),))
MARKS = VmMarks(
    VM_ID,
    3,
    (
        Mark(MarkId("1" * 32), ()),
        Mark(
            MarkId("2" * 32),
            (MarkedState(Place("127.0.0.1:7403", "web1-root-00000000000a"), 8 * GIB, STATE),),
        ),
    ),
)
