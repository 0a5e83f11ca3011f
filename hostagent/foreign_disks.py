"""Disks that lie on no array of ours: what a host asks of a VMM that can show them as they were once.

Such a disk is *exported*: an NBD server of the VMM shows the bytes that it had while the guest stood still,
and beside them, where the VMM knows it, a dirty bitmap of what changed since an earlier export. A gateway
reads both (``SendForeignDisk``).
Contract (tests/unit/hostagent/test_foreign_disks.py):
  X1 an export shows one state from ``begin`` to ``end``, or nothing any more: never another state.
  X2 exports are found by the id of their VM snapshot: ``end`` ends what a process before this one began,
     wholly or half, or never began.
  X3 a bitmap has every change since the state that it names, or there is none: never a guess.
  X4 a state is named once: no two exports bear the same name.
Limits: one VM snapshot with exports a VM at a time; STATES_MAX states a disk since which changes are known.
Callers: vm_snapshots. ``begin`` under the VM's lock, ``end`` under the VM snapshot's; any thread.
Source: the gateway of [0039], [0043], [0044].
Why: docs/decisions/0095-foreign-disks-by-pull-mode.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from arraylift.ids import SourceState, VmId, VmSnapshotId
from arraylift.vm.types import Disk, DiskSnapshot
from hostagent.vm_types import VmRecord

STATES_MAX = 4
"""Checkpoints a disk: each costs the VMM a bitmap that every write of the guest touches."""


class ForeignDisks(Protocol):
    """The foreign disks of all VMs of a driver."""

    def prepare(
        self,
        vm: VmRecord,
        vm_snapshot_id: VmSnapshotId,
        disks: Sequence[Disk],
        since: Mapping[str, SourceState],
    ) -> None:
        """All that can be done or refused before the guest is frozen. ``since``: by disk name.

        Raises WrongState (another VM snapshot holds the exports; a disk has gone), OutOfSpace (for what
        the guest overwrites meanwhile), PeerUnavailable (VMM).
        """
        ...

    def begin(
        self,
        vm: VmRecord,
        vm_snapshot_id: VmSnapshotId,
        disks: Sequence[Disk],
        since: Mapping[str, SourceState],
        *,
        timeout_seconds: float,
    ) -> tuple[DiskSnapshot, ...]:
        """Export all ``disks`` as they are at one instant, with what changed since, where that is known (X3).

        Each answer has ``state`` (X4) and ``foreign``. REQUIRES ``prepare``, and an ``end`` afterwards in
        any case. Raises DeadlineExceeded, PeerUnavailable, WrongState.
        """
        ...

    def end(self, vm_id: VmId, vm_snapshot_id: VmSnapshotId, *, told: bool) -> None:
        """No more exports under that id (X2). Idempotent. Unless their states were ``told``, nobody
        will ask what changed since.

        Raises PeerUnavailable, DeadlineExceeded: call again.
        """
        ...
