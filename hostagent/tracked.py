"""A VM snapshot beside a driver's change tracker: a mark around it, and what changed in its answer.

Callers: vm_snapshots, under the VM's lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from arraylift.ids import SourceState
from arraylift.vm.types import CHANGED_RANGES_MAX, DiskSnapshot, DiskState, SuppliedChanges
from hostagent.change_tracking import ChangeTracker
from hostagent.driver import Driver
from hostagent.vm_types import SnapshotRecord, VmRecord

Settle = Callable[[Sequence[DiskSnapshot]], None]


@contextmanager
def marked(driver: Driver, vm: VmRecord) -> Iterator[Settle]:
    """A new mark for a running guest; the block calls what it gets once the arrays have their snapshots."""
    tracker = driver.tracker
    mark = tracker.begin(vm) if tracker is not None and driver.is_running(vm.vm_id) else None
    if tracker is None or mark is None:
        yield lambda _: None
        return
    settled = False

    def settle(disks: Sequence[DiskSnapshot]) -> None:
        nonlocal settled
        tracker.settle(vm, mark, disks)
        settled = True

    try:
        yield settle
    finally:
        if not settled:
            tracker.abandon(vm, mark)


def with_changes(
    driver: Driver, vm: VmRecord, snapshot: SnapshotRecord, asked: Sequence[DiskState]
) -> SnapshotRecord:
    """Say of each disk what changed since the state asked for, where the VMM can tell."""
    tracker = driver.tracker
    since = {one.disk_name: one.state for one in asked}
    if tracker is None or not since or not snapshot.disks:
        return snapshot
    # All together fit into one message.
    ranges_max = min(CHANGED_RANGES_MAX, 2 * CHANGED_RANGES_MAX // len(snapshot.disks))
    told = (_told(tracker, vm, disk, since.get(disk.disk_name), ranges_max) for disk in snapshot.disks)
    return replace(snapshot, disks=tuple(told))


def _told(
    tracker: ChangeTracker, vm: VmRecord, disk: DiskSnapshot, since: SourceState | None, ranges_max: int
) -> DiskSnapshot:
    if since is None or disk.state is None or disk.foreign is not None:
        return disk
    found = tracker.changes(vm, disk, since, ranges_max=ranges_max)
    if found is None:
        return disk
    offsets, lengths = (part.astype("<u8").tobytes() for part in found)
    return replace(disk, changes=SuppliedChanges(since, offsets, lengths))
