"""The foreign disks of one VM snapshot: exported under its freeze, ended with it.

Invariants:
  E1 ``end`` ends whatever ``begin`` may have begun, in this process or one before it; it is called again
     until it succeeds, like the deletions on arrays.
Callers: vm_snapshots, the thread that holds the VM's or the VM snapshot's lock.
"""

from __future__ import annotations

from collections.abc import Mapping

from arraylift.errors import ArrayliftError, Corruption, WrongState
from arraylift.failpoints import FAILPOINTS
from arraylift.ids import SourceState
from arraylift.outcome import attempt
from arraylift.vm.types import DiskSnapshot
from hostagent.driver import Driver
from hostagent.foreign_disks import ForeignDisks
from hostagent.vm_types import SnapshotRecord, VmRecord

SECONDS_MIN = 0.1


class ForeignSnapshots:
    """Of a record that names the disks that take part; nothing happens where none is foreign."""

    def __init__(self, driver: Driver, snapshot: SnapshotRecord) -> None:
        self._foreign, self._snapshot = driver.foreign, snapshot
        self._disks = [disk for disk in snapshot.config.disks if disk.foreign]

    def prepare(self, vm: VmRecord, since: Mapping[str, SourceState]) -> None:
        """Before the freeze. Raises as ForeignDisks."""
        if self._disks:
            self._exporter(vm).prepare(vm, self._snapshot.vm_snapshot_id, self._disks, since)

    def begin(
        self, vm: VmRecord, since: Mapping[str, SourceState], seconds: float
    ) -> dict[str, DiskSnapshot]:
        """Under the freeze; by disk name. Raises as ForeignDisks."""
        if not self._disks:
            return {}
        FAILPOINTS.hit("vm-snapshot.export.before")
        told = self._exporter(vm).begin(
            vm, self._snapshot.vm_snapshot_id, self._disks, since, timeout_seconds=max(SECONDS_MIN, seconds)
        )
        FAILPOINTS.hit("vm-snapshot.export.after")
        exported = {one.disk_name: one for one in told}
        if exported.keys() != {disk.name for disk in self._disks}:
            raise Corruption("the VMM exported other disks than it was asked for", subject=vm.subject)
        return exported

    def end(self) -> list[ArrayliftError]:
        """What went wrong (E1)."""
        if not self._disks or self._foreign is None:
            return []
        foreign, snapshot = self._foreign, self._snapshot
        told = bool(snapshot.disks)  # READY once
        _, error = attempt(
            lambda: foreign.end(snapshot.vm_id, snapshot.vm_snapshot_id, told=told), "end of exports"
        )
        return [] if error is None else [error]

    def _exporter(self, vm: VmRecord) -> ForeignDisks:
        if self._foreign is None:
            raise WrongState(
                f"{vm.subject} has foreign disks, which this driver does not show",
                subject=vm.subject,
                next_step="run this host with the driver that it had",
            )
        return self._foreign
