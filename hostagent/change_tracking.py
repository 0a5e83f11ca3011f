"""What a VMM sees its guests write: the contract of drivers that track changes ([0050], [0052]).

A *mark* records, on every disk of a VM, what is written while it stands. A VM snapshot begins a new one
before the arrays take theirs, and stops the one before when they have: each mark holds every change from
the state at whose instant it began to the state at which the next one began, and a little more.
Contract (tests/property/test_change_marks.py):
  K1 ``changes`` tells every range in which the two states can differ, or None: never a guess. A VMM
     that was restarted, a disk that was taken away and came back, was resized, or a mark that was
     dropped, is None.
  K2 a mark stops only when the next one is recorded durably, and has seen every write that the arrays'
     snapshots may hold, also those that were on their way.
  K3 a failure of the tracker fails no snapshot and keeps no guest frozen: no method raises for what VMM,
     disks or records do.
Limits: MARKS_MAX marks a VM, CHANGED_RANGES_MAX ranges a disk.
Callers: vm_snapshots, under the VM's lock; ``forget`` a driver's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NewType, Protocol

import numpy as np
import numpy.typing as npt

from arraylift.ids import SourceState, VmId
from arraylift.vm.types import DiskSnapshot
from hostagent.vm_types import VmRecord

MARKS_MAX = 4
"""States of a VM of which it can be said what changed since."""

MarkId = NewType("MarkId", str)

Ranges = tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]
"""Offsets and lengths in bytes, ascending and disjoint."""


class ChangeTracker(Protocol):
    """Changes of all VMs of a driver."""

    def begin(self, vm: VmRecord) -> MarkId | None:
        """Record into a new mark as well, before the arrays are asked. None: this VM is not tracked."""
        ...

    def settle(self, vm: VmRecord, mark: MarkId, disks: Sequence[DiskSnapshot]) -> None:
        """The arrays have taken these snapshots: stop the mark before (K2)."""
        ...

    def abandon(self, vm: VmRecord, mark: MarkId) -> None:
        """There is no snapshot: the mark before goes on."""
        ...

    def changes(
        self, vm: VmRecord, disk: DiskSnapshot, since: SourceState, *, ranges_max: int
    ) -> Ranges | None:
        """What changed from ``since`` to a settled snapshot, in at most ``ranges_max`` ranges (K1)."""
        ...

    def forget(self, vm_id: VmId) -> None:
        """The VM is gone."""
        ...
