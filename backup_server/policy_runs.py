"""Runs policies: begins what is due, starts backups in their time, locks them, lets retention go over them.

Invariants:
  G1 a run is recorded before its first backup starts; the job of a start bears an id that follows from
     policy, VM and instant, so a start that is repeated after a crash is the same job.
  G2 backups start inside the policy's windows only, also those that had to wait.
  G3 retention deletes only backups that the policy's own runs made, and only by a plan made just before.
  G4 what goes wrong with one policy stops no other one, and is kept as its problem.
Limits: a round starts all that is due; jobs beyond JOBS_UNFINISHED_MAX wait as starts.
Callers: ``start`` and ``stop`` from the composition root, the rounds in a thread of its own; the rest
from edges, any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

from arraylift.clock import Clock
from arraylift.errors import (
    ArrayliftError,
    Conflict,
    DeadlineExceeded,
    NotFound,
    Overloaded,
    PeerUnavailable,
    WrongState,
)
from arraylift.logs import get_logger
from arraylift.outcome import attempt
from arraylift.vm.types import Vm
from backup_server.backups import Backups
from backup_server.inventory import Inventory
from backup_server.job_rules import Job
from backup_server.orders import Orders
from backup_server.policies import retention, schedule
from backup_server.policies.policy import Policy, meant
from backup_server.policies.retention import Decision
from backup_server.policy_store import KeptPolicy, PolicyStore, Start

NS = 1_000_000_000
ROUND_SECONDS = 20.0
RETENTION_SECONDS = 3600.0
"""Between two times that retention goes over a policy's backups by itself."""
JOIN_SECONDS = 30.0
STARTS_AT_ONCE = 256
PROBLEMS_TOLD_MAX = 20

_log = get_logger("policies")


@dataclass(frozen=True, slots=True)
class Applied:
    """What retention did."""

    deleted_count: int
    kept_count: int
    problems: tuple[str, ...]


def start_job_id(start: Start) -> str:
    """The id of its job (G1)."""
    text = f"{start.policy}\0{start.vm_id}\0{start.due_ns}".encode()
    return blake2b(text, digest_size=16, person=b"arraylift policy").hexdigest()


def jitter_of(policy: Policy, vm: Vm) -> int:
    """Nanoseconds that a VM's start is put off behind the run's instant."""
    return schedule.jitter_ns(policy.schedule, f"{policy.name}\0{vm.vm_id}")


class PolicyRuns:
    """See the module's invariants."""

    def __init__(
        self, store: PolicyStore, orders: Orders, inventory: Inventory, backups: Backups, clock: Clock
    ) -> None:
        self._store, self._orders = store, orders
        self._inventory, self._backups, self._clock = inventory, backups, clock
        self._retained_at: dict[str, float] = {}
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._turn = threading.Lock()
        """One round at a time, be it the thread's or a caller's."""
        self._thread = threading.Thread(target=self._run, name="policies", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """No further round; ``join`` waits for the present one."""
        self._stopping.set()
        self._wake.set()

    def join(self) -> None:
        if self._thread.ident is not None:
            self._thread.join(JOIN_SECONDS)

    def changed(self) -> None:
        """A policy was set: look at once."""
        self._wake.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            _, error = attempt(self.round, "a round of policies")
            if error is not None:
                _log.error("policy_round_failed", error=str(error))
            self._wake.wait(ROUND_SECONDS)
            self._wake.clear()

    # -- rounds ---------------------------------------------------------------------------------

    def round(self) -> None:
        """Begin what is due, start what waits, lock and retain what there is."""
        with self._turn:
            for kept in self._store.all():
                if not kept.policy.disabled:
                    self._guarded(kept.policy, lambda kept=kept: self._begin_due(kept))  # type: ignore[misc]
            _, error = attempt(self._start_due, "starts of policies")
            if error is not None:
                _log.warning("policy_starts_wait", error=str(error))
            for kept in self._store.all():
                if self._stopping.is_set():
                    return
                if not kept.policy.disabled:
                    self._guarded(kept.policy, lambda policy=kept.policy: self._keep(policy))  # type: ignore[misc]

    def _guarded(self, policy: Policy, work: Callable[[], None]) -> None:
        """G4."""
        _, error = attempt(work, policy.subject)
        if error is not None:
            _log.warning("policy_problem", policy=policy.name, error=str(error))
            self._store.note(policy.name, str(error))

    def _begin_due(self, kept: KeptPolicy) -> None:
        since, now = max(kept.since_ns, kept.last_due_ns), self._clock.wall_ns()
        if since > now:
            self._store.set_back(kept.policy.name, now)
            _log.warning("policy_clock_set_back", policy=kept.policy.name, seconds=(since - now) // NS)
            return
        due = schedule.due(kept.policy.schedule, since, now)
        if due is not None:
            self._begin(kept.policy, due, spread=True)

    def _begin(self, policy: Policy, due_ns: int, *, spread: bool) -> list[Start]:
        """Record a run with a start for each VM that the policy means now (G1)."""
        starts = []
        for vm in self._chosen(policy):
            start_ns = due_ns + (jitter_of(policy, vm) if spread else 0)
            starts.append(Start(policy.name, vm.vm_id, vm.config.name, due_ns, start_ns))
        self._store.begin_run(policy.name, due_ns, starts)
        _log.info("policy_run", policy=policy.name, due_ns=due_ns, vm_count=len(starts))
        return starts

    def vms(self) -> list[Vm]:
        """Every VM there is. Raises WrongState, PeerUnavailable."""
        return self._inventory.side(direct=self._inventory.is_direct(asked=False)).vms()

    def _vms_by_id(self) -> dict[str, Vm]:
        return {vm.vm_id: vm for vm in self.vms()}

    def _chosen(self, policy: Policy) -> list[Vm]:
        return [one.vm for one in meant(policy.selection, self.vms()) if one.chosen]

    def _start_due(self) -> None:
        now = self._clock.wall_ns()
        policies = {kept.policy.name: kept.policy for kept in self._store.all()}
        if not self._store.starts(until_ns=now, count_max=1):
            return
        vms = self._vms_by_id()
        while batch := self._store.starts(until_ns=now, count_max=STARTS_AT_ONCE):
            for start in batch:
                if self._stopping.is_set():
                    return
                policy = policies.get(start.policy)
                if policy is None:  # set since this round began
                    return
                opens = schedule.open_from(policy.open_windows(), policy.schedule.zone, now)
                if opens > now:
                    self._store.postpone(start, opens)  # G2
                    continue
                try:
                    self._start(policy, start, vms.get(start.vm_id))
                except Overloaded:
                    return
                except ArrayliftError as error:
                    self._store.note(policy.name, f"VM {start.vm_name}: {error}")
                    self._store.postpone(start, now + int(2 * ROUND_SECONDS * NS))

    def _start(self, policy: Policy, start: Start, vm: Vm | None) -> str:
        """Start one backup; returns the job's id, or nothing if the VM is left out. Raises NotFound (target),
        Overloaded."""
        job_id, problem = start_job_id(start), ""
        try:
            if vm is None:
                problem = "it is gone"
            else:
                self._orders.start_of_policy(policy, vm, job_id)
        except Conflict as error:
            problem = str(error)
        if problem:
            self._store.note(policy.name, f"VM {start.vm_name} was left out: {problem}")
        self._store.finish_start(start)
        return "" if problem else job_id

    def opens(self, job: Job, at_ns: int) -> int:
        """The first instant, then or later, at which a job of its policy may start (G2)."""
        name = job.backup.policy if job.backup is not None else ""
        for kept in self._store.all(name) if name else ():
            return schedule.open_from(kept.policy.open_windows(), kept.policy.schedule.zone, at_ns)
        return at_ns

    def run_now(self, name: str) -> list[str]:
        """Start the policy's backups; returns the ids of the jobs.

        Raises NotFound, Overloaded, PeerUnavailable.
        """
        with self._turn:
            policy = self._store.get(name).policy
            starts = self._begin(policy, self._clock.wall_ns(), spread=False)
            vms = self._vms_by_id()
            if not starts:
                raise NotFound(
                    f"{policy.subject} chooses no VM that there is",
                    subject=policy.subject,
                    next_step="look at its plan",
                )
            found = [self._start(policy, start, vms.get(start.vm_id)) for start in starts]
        return [job_id for job_id in found if job_id]

    # -- locks and retention ---------------------------------------------------------------------

    def _keep(self, policy: Policy) -> None:
        if policy.lock_days:
            seconds = policy.lock_days * 86_400
            now_ns = self._clock.wall_ns()
            for backup_id, until_ns in self._backups.index.to_lock(
                policy.name, seconds=seconds, now_ns=now_ns
            ):
                self._backups.lock(backup_id, until_ns)
        now = self._clock.monotonic()
        last = self._retained_at.get(policy.name)
        if policy.retention.keeps_all or (last is not None and now - last < RETENTION_SECONDS):
            return
        self._retained_at[policy.name] = now
        applied = self._apply(self.plan_retention(policy))
        if applied.problems:
            self._store.note(policy.name, "; ".join(applied.problems))

    def plan_retention(self, policy: Policy) -> list[Decision]:
        """What would be kept and what would go, by VM, newest first (G3)."""
        candidates = self._backups.index.made_by(policy.name, now_ns=self._clock.wall_ns())
        return retention.plan(candidates, policy.retention, zone=policy.schedule.zone)

    def apply_retention(self, name: str, digest: bytes) -> Applied:
        """Delete what the plan of this digest says. Raises NotFound, Conflict (there is another plan now)."""
        with self._turn:
            policy = self._store.get(name).policy
            decisions = self.plan_retention(policy)
            if retention.digest(decisions) != digest:
                raise Conflict(
                    f"the plan of {policy.subject} has changed since it was read",
                    subject=policy.subject,
                    next_step="look at the plan again",
                )
            return self._apply(decisions)

    def _apply(self, decisions: list[Decision]) -> Applied:
        problems: list[str] = []
        deleted = 0
        for one in decisions:
            if one.kept or self._stopping.is_set():
                continue
            try:
                self._backups.delete(one.candidate.backup_id)
                deleted += 1
            except NotFound:
                continue
            except (PeerUnavailable, DeadlineExceeded) as error:
                problems.append(f"{error}; the rest waits for the next time")
                break  # each would wait as long, and no policy starts meanwhile
            except WrongState as error:  # locked, or in use, since the plan: it goes another time
                problems.append(str(error))
            except ArrayliftError as error:
                problems.append(str(error))
        if deleted:
            _log.info("retention_applied", deleted=deleted, problems=len(problems))
        kept = sum(one.kept for one in decisions)
        return Applied(deleted, kept, tuple(problems[:PROBLEMS_TOLD_MAX]))
