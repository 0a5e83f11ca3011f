"""Reports over policies and backups: who is unprotected, who is overdue, where the space goes.

Callers: edges, any thread. Nothing is cached; the inventory is asked each time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from arraylift.clock import Clock
from arraylift.vm.types import Vm
from backup_server.backup_index import Sums
from backup_server.backups import Backups
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
        newest = self._backups.index.newest()
        last: dict[str, int] = {}
        for (vm_id, _), at_ns in newest.items():
            last[vm_id] = max(last.get(vm_id, 0), at_ns)
        return [
            Gap(
                vm,
                "",
                last.get(vm.vm_id, 0),
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
        newest, now_ns = self._backups.index.newest(), self._clock.wall_ns()
        found = []
        for kept in self._store.all():
            if kept.policy.disabled:
                continue
            due_at = functools.cache(functools.partial(schedule.due, kept.policy.schedule, kept.since_ns))
            for one in meant(kept.policy.selection, vms):
                if not one.chosen:
                    continue
                due = self._due(kept, one.vm, due_at, now_ns)
                last = newest.get((one.vm.vm_id, kept.policy.name), 0)
                if due and last < due:
                    found.append(Gap(one.vm, kept.policy.name, last, due, self._why(kept, one.vm)))
        return sorted(found, key=lambda gap: (gap.due_at_ns, gap.vm.config.name, gap.vm.vm_id))

    def _due(self, kept: KeptPolicy, vm: Vm, due_at: Callable[[int], int | None], now_ns: int) -> int:
        """The instant of the last run whose backup of the VM should be there by now; 0: none."""
        policy, late = kept.policy, now_ns - OVERDUE_SECONDS * NS
        at = late
        for _ in range(STEPS_BACK_MAX):
            due = due_at(at)
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

    def space(self) -> tuple[list[Sums], list[Sums]]:
        """(by VM, by target), largest first."""
        index = self._backups.index
        return index.space("vm_name"), index.space("target")
