"""Reports over policies and backups: who is unprotected, who is overdue, where the space goes.

Callers: edges, any thread. Nothing is cached; the inventory is asked each time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from arraylift.clock import Clock
from arraylift.vm.types import Vm
from backup_server.backups import Backups
from backup_server.model import Backup
from backup_server.policies import schedule
from backup_server.policies.policy import meant
from backup_server.policy_runs import NS, PolicyRuns, jitter_of
from backup_server.policy_store import KeptPolicy, PolicyStore
from backup_server.server_db import ServerDb

OVERDUE_SECONDS = 2 * 3600
"""After a backup should have started it may take so long before it is missed."""
STEPS_BACK_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Gap:
    """A VM that is not protected as it should be. Instants in UTC nanoseconds, 0: none."""

    vm: Vm
    policy: str
    last_backup_at_ns: int
    due_at_ns: int
    reason: str


@dataclass(frozen=True, slots=True)
class Space:
    """What the backups of one VM, or on one target, amount to. Bytes."""

    name: str
    backup_count: int
    bytes_protected: int
    bytes_sent: int
    bytes_stored: int


class Reports:
    """See the module."""

    def __init__(
        self, db: ServerDb, store: PolicyStore, runs: PolicyRuns, backups: Backups, clock: Clock
    ) -> None:
        self._db, self._store, self._runs = db, store, runs
        self._backups, self._clock = backups, clock

    def unprotected(self) -> list[Gap]:
        """VMs that no enabled policy chooses, by name. Raises PeerUnavailable."""
        vms = self._runs.vms()
        chosen: set[str] = set()
        disabled: dict[str, str] = {}
        for kept in self._store.all():
            for one in meant(kept.policy.selection, vms):
                if one.chosen and kept.policy.disabled:
                    disabled[one.vm.vm_id] = kept.policy.name
                elif one.chosen:
                    chosen.add(one.vm.vm_id)
        newest = _newest(self._backups.all(), by_policy=False)
        return [
            Gap(
                vm,
                "",
                newest.get((vm.vm_id, ""), 0),
                0,
                f"policy {disabled[vm.vm_id]} is disabled"
                if vm.vm_id in disabled
                else "no policy chooses it",
            )
            for vm in sorted(vms, key=lambda vm: (vm.config.name, vm.vm_id))
            if vm.vm_id not in chosen
        ]

    def overdue(self) -> list[Gap]:
        """VMs without the backup that they should have by now, longest overdue first.

        Raises PeerUnavailable.
        """
        vms = self._runs.vms()
        newest = _newest(self._backups.all(), by_policy=True)
        found = []
        for kept in self._store.all():
            if kept.policy.disabled:
                continue
            for one in meant(kept.policy.selection, vms):
                if not one.chosen:
                    continue
                due = self._due(kept, one.vm)
                last = newest.get((one.vm.vm_id, kept.policy.name), 0)
                if due and last < due:
                    found.append(Gap(one.vm, kept.policy.name, last, due, self._why(kept, one.vm)))
        return sorted(found, key=lambda gap: (gap.due_at_ns, gap.vm.config.name, gap.vm.vm_id))

    def _due(self, kept: KeptPolicy, vm: Vm) -> int:
        """The instant of the last run whose backup of the VM should be there by now; 0: none."""
        policy, now = kept.policy, self._clock.wall_ns()
        late = now - OVERDUE_SECONDS * NS
        at = late
        for _ in range(STEPS_BACK_MAX):
            due = schedule.due(policy.schedule, kept.since_ns, at)
            if due is None:
                return 0
            opens = schedule.open_from(
                policy.open_windows(), policy.schedule.zone, due + jitter_of(policy, vm)
            )
            if opens <= late:
                return due
            at = due - 1
        return 0

    def _why(self, kept: KeptPolicy, vm: Vm) -> str:
        job = self._db.last_backup_job(vm.vm_id)
        if job is not None and job.failure is not None:
            return f"job {job.job_id[:12]} failed: {job.failure.message}"
        if job is not None and not job.state.ended:
            return f"job {job.job_id[:12]} is {job.state.name.lower()}"
        return kept.problem or "no backup was made"

    def space(self) -> tuple[list[Space], list[Space]]:
        """(by VM, by target), largest first."""
        by_vm: dict[str, list[int]] = {}
        by_target: dict[str, list[int]] = {}
        for backup in self._backups.all():
            sums = (
                1,
                sum(disk.size_bytes for disk in backup.disks),
                sum(disk.figures.bytes_sent for disk in backup.disks),
                sum(disk.figures.bytes_stored for disk in backup.disks),
            )
            for groups, name in ((by_vm, backup.vm_name), (by_target, backup.target)):
                group = groups.setdefault(name, [0, 0, 0, 0])
                for index, value in enumerate(sums):
                    group[index] += value
        return _largest(by_vm), _largest(by_target)


def _largest(groups: dict[str, list[int]]) -> list[Space]:
    found = [Space(name, *sums) for name, sums in groups.items()]
    return sorted(found, key=lambda one: (-one.bytes_stored, one.name))


def _newest(backups: Iterable[Backup], *, by_policy: bool) -> dict[tuple[str, str], int]:
    """Instant of the newest backup by (VM, policy)."""
    newest: dict[tuple[str, str], int] = {}
    for backup in backups:
        key = (backup.vm_id, backup.policy if by_policy else "")
        newest[key] = max(newest.get(key, 0), backup.snapshot_at_ns)
    return newest
