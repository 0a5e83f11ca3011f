"""The restore of a backup onto the disks of its own VM, step by step (figure 5; [0024], [0045]).

plan, then send for each disk, power, stop where the VM runs, swap, and start where it was asked for.
The images arrive beside the volumes, which the VM goes on using meanwhile; it stands still for the swap only.
Invariants:
  Y1 the volumes change in one place, the step ``swap``: all of them in one commit of their one array,
     which keeps what they held as named snapshots. What would need two commits is refused by ``plan``.
  Y2 each try of the swap asks the VM's host first, and goes on only if the VM is off and has the planned
     disks; the array by itself refuses while a volume is open for writing.
  Y3 before the swap a failure or a cancellation leaves the VM as it was: what arrived is given up, then
     it is started again if this job had stopped it. From the swap on nobody cancels.
  Y4 a swap whose answer was lost is found by the lineage that it began: it is never undone, and its
     safety snapshots are told even if the job failed.
Callers: the engine's thread of the job.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from arraylift.errors import ArrayliftError, Conflict, WrongState
from arraylift.exchange.messages import Figures
from arraylift.vm.types import GRACE_SECONDS, PowerState, Vm
from backup_server import documents
from backup_server.engine import Outcome, Runner
from backup_server.inventory import Inventory, VmSide
from backup_server.job_rules import (
    Job,
    RestoreOrder,
    Step,
    restore_group_id,
    safety_name,
    step_name,
    transfer_id,
)
from backup_server.job_run import SWAP, JobRun
from backup_server.job_turns import Demand, distinct
from backup_server.model import Backup, Receipt, Safety
from backup_server.ports import Array, HostRef, Peers
from backup_server.registry import Registry
from backup_server.restore_sends import SEND, PlannedDisk, RestoreSends
from backup_server.server_db import ServerDb

PLAN, POWER, STOP, START = "plan", "power", "stop", "start"
REFUSALS_MAX = 4
"""Refusals of a swap while its VM is off: the VMM that just ended may still hold a connection."""


@dataclass(frozen=True, slots=True)
class InPlacePlan:
    """All that is decided before anything is made."""

    target: str
    disks: tuple[PlannedDisk, ...]


@dataclass(frozen=True, slots=True)
class Swapped:
    """What the swap left, a snapshot for each disk."""

    safeties: tuple[Safety, ...]


class InPlaceJob:
    """Runs restores in place (engine.Runner)."""

    def __init__(self, db: ServerDb, registry: Registry, inventory: Inventory, peers: Peers) -> None:
        self._db = db
        self._registry = registry
        self._inventory = inventory
        self._sends = RestoreSends(registry, peers)

    def place(self, run: JobRun) -> Demand:
        plan = self._planning(run)
        at = run.retry(lambda: self._look(run)[1], PLAN)
        return Demand(at.name, distinct(one.disk.array for one in plan.disks), plan.target)

    def _planning(self, run: JobRun) -> InPlacePlan:
        return run.step(PLAN, InPlacePlan, lambda: self._plan(run), detail=_plan_detail)

    def run(self, run: JobRun) -> None:
        refusals = itertools.count(1)
        plan = self._planning(run)
        if run.result(SWAP, Swapped) is None:
            self._send_all(run, plan)
            self._power_down(run)
            run.begin_commit()
            run.step(SWAP, Swapped, lambda: self._swap(run, plan, refusals), detail=_swap_detail)
        if _order(run.job).start:
            self._start(run)

    # -- steps ------------------------------------------------------------------------------

    def _side(self, run: JobRun) -> VmSide:
        return self._inventory.side(direct=_order(run.job).direct)

    def _look(self, run: JobRun) -> tuple[Vm, HostRef]:
        found = self._inventory.look(self._side(run), run.job.vm_id)
        return found.vm, HostRef(found.host, found.host_address)

    def _plan(self, run: JobRun) -> InPlacePlan:
        order = _order(run.job)
        backup, (vm, _) = self._db.backup(order.backup_id), self._look(run)
        if vm.power is not PowerState.OFF and not order.stop:
            raise still_runs(vm)
        return InPlacePlan(backup.target, matched(backup, vm, order.disks))

    def _send_all(self, run: JobRun, plan: InPlacePlan) -> None:
        group = restore_group_id(run.job.job_id)

        def renew() -> None:
            """Those that have arrived and wait for the others."""
            for planned in plan.disks:
                if run.result(step_name("send", planned.disk.name), Receipt) is not None:
                    self._sends.array(planned.disk).prepare_restore(
                        transfer_id(run.job.job_id, planned.disk.name),
                        target=plan.target,
                        volume_name=planned.disk.volume_name,
                        group_id=group,
                    )

        with run.renewing(renew, "a restored disk"):
            run.in_parallel(
                plan.disks, lambda planned: self._sends.send(run, plan.target, planned, group_id=group)
            )

    def _power_down(self, run: JobRun) -> None:
        was = run.step(POWER, PowerState, lambda: self._look(run)[0].power, detail=_power_detail)
        if was is PowerState.OFF:
            return

        def stop() -> str:
            vm, at = self._look(run)
            if not _order(run.job).stop:
                raise still_runs(vm)
            self._side(run).power(vm.vm_id, at, on=False, grace_seconds=GRACE_SECONDS)
            return "done"

        run.step(STOP, str, stop)

    def _swap(self, run: JobRun, plan: InPlacePlan, refusals: itertools.count[int]) -> Swapped:
        """One try (Y2)."""
        if not self._was_swapped(run, plan):
            vm, _ = self._look(run)
            if vm.power is not PowerState.OFF:
                raise still_runs(vm)
            _check_disks(plan, vm)
        try:
            return self._commit(run, plan)
        except WrongState as error:
            if next(refusals) > REFUSALS_MAX:
                raise
            raise Conflict(f"the array refuses still: {error.message}") from error

    def _commit(self, run: JobRun, plan: InPlacePlan) -> Swapped:
        job_id = run.job.job_id
        kept = self._array(plan).commit_group(
            restore_group_id(job_id),
            [transfer_id(job_id, planned.disk.name) for planned in plan.disks],
            safety_name=safety_name(job_id),
        )
        disks = {planned.disk.volume_name: planned.disk.name for planned in plan.disks}
        return Swapped(tuple(replace(one, disk_name=disks.get(one.volume_name, "")) for one in kept))

    def _was_swapped(self, run: JobRun, plan: InPlacePlan) -> bool:
        """Y4. One disk tells of all (Y1)."""
        disk = plan.disks[0].disk
        return self._array(plan).was_swapped(transfer_id(run.job.job_id, disk.name), disk.volume_name)

    def _array(self, plan: InPlacePlan) -> Array:
        return self._sends.array(plan.disks[0].disk)

    def _start(self, run: JobRun) -> None:
        def start() -> str:
            vm, at = self._look(run)
            self._side(run).power(vm.vm_id, at, on=True)
            return "done"

        try:
            run.step(START, str, start)
        except ArrayliftError as error:
            error.message = f"the VM was restored, but does not start: {error.message}"
            raise

    # -- cleaning up ------------------------------------------------------------------------

    def clean_up(self, run: JobRun) -> None:
        """Y3, Y4."""
        plan = run.result(PLAN, InPlacePlan)
        if plan is None or run.result(SWAP, Swapped) is not None:
            return

        def give_up() -> None:
            for planned in plan.disks:
                if run.began(step_name("send", planned.disk.name)):
                    self._sends.array(planned.disk).revoke_restore(
                        transfer_id(run.job.job_id, planned.disk.name)
                    )
            # From here on a swap that is still on its way finds nothing to swap.
            if run.began(SWAP) and self._was_swapped(run, plan):
                done = self._commit(run, plan)
                run.settle(SWAP, done, detail=_swap_detail(done))
            elif run.began(STOP) and not run.job.state.ended:
                vm, at = self._look(run)
                self._side(run).power(vm.vm_id, at, on=True)

        run.tidy([("give up", give_up)])

    # -- views ------------------------------------------------------------------------------

    def view(self, job: Job, steps: Sequence[Step]) -> Outcome:
        figures: dict[str, tuple[int, Figures]] = {}
        safeties: tuple[Safety, ...] = ()
        for step in steps:
            if not step.ended_at_ns:
                continue
            if step.name == SWAP:
                safeties = documents.load(Swapped, step.result, what="a swap").safeties
            elif step.name.startswith(SEND):
                one = documents.load(Receipt, step.result, what="a receipt")
                figures[step.name.removeprefix(SEND)] = (one.figures.spans_total, one.figures)
        return Outcome(job.vm_id, job.vm_name, figures, result_vm_id=job.vm_id, safeties=safeties)


class ByPlace:
    """Runs restores, each by what its order says (engine.Runner)."""

    def __init__(self, anew: Runner, in_place: Runner, disks: Runner, guest: Runner, on_disk: Runner) -> None:
        self._anew = anew
        self._in_place = in_place
        self._disks = disks
        self._guest, self._on_disk = guest, on_disk

    def _of(self, job: Job) -> Runner:
        order = _order(job)
        if order.files is not None:
            return self._on_disk if order.files.on_disk else self._guest
        if order.in_place:
            return self._in_place
        return self._disks if order.disks else self._anew

    def place(self, run: JobRun) -> Demand:
        return self._of(run.job).place(run)

    def run(self, run: JobRun) -> None:
        self._of(run.job).run(run)

    def clean_up(self, run: JobRun) -> None:
        self._of(run.job).clean_up(run)

    def view(self, job: Job, steps: Sequence[Step]) -> Outcome:
        return self._of(job).view(job, steps)


def matched(backup: Backup, vm: Vm, only: Sequence[str] = ()) -> tuple[PlannedDisk, ...]:
    """Pair images with the VM's present disks by name, all or ``only`` some. Raises WrongState where one
    commit could not swap all of them (Y1)."""
    present = {disk.name: disk for disk in vm.config.disks}
    planned: list[PlannedDisk] = []
    for made in backup.disks:
        if only and made.disk_name not in only:
            continue
        disk = present.get(made.disk_name)
        if disk is None:
            raise _not_in_place(vm, f"it has no disk {made.disk_name}")
        if not disk.volume_name:
            raise _not_in_place(vm, f"its disk {disk.name} is no volume of an array")
        if disk.size_bytes != made.size_bytes:
            sizes = f"{disk.size_bytes:,} bytes and {made.size_bytes:,} in the backup"
            raise _not_in_place(vm, f"its disk {disk.name} has {sizes}")
        planned.append(PlannedDisk(made.image_id, disk))
    if len({one.disk.array for one in planned}) > 1:
        raise _not_in_place(vm, "its disks lie on several arrays, which cannot change at one instant")
    return tuple(planned)


def still_runs(vm: Vm) -> WrongState:
    """A VM that is on is not restored in place."""
    return WrongState(
        f"VM {vm.config.name} is running",
        subject=f"VM {vm.config.name}",
        next_step="stop it and start the restore again, or say that the restore is to stop it (--stop)",
    )


def _not_in_place(vm: Vm, why: str) -> WrongState:
    return WrongState(
        f"VM {vm.config.name} cannot be restored in place: {why}",
        subject=f"VM {vm.config.name}",
        next_step="restore the backup as a new VM",
    )


def _check_disks(plan: InPlacePlan, vm: Vm) -> None:
    """Raise WrongState unless the VM still has the disks that the images are for (Y2)."""
    present = {(disk.name, disk.array, disk.volume_name, disk.size_bytes) for disk in vm.config.disks}
    for planned in plan.disks:
        disk = planned.disk
        if (disk.name, disk.array, disk.volume_name, disk.size_bytes) not in present:
            raise _not_in_place(vm, f"its disk {disk.name} was changed since this restore began")


def _order(job: Job) -> RestoreOrder:
    assert job.restore is not None, "a restore job has a restore's order"
    return job.restore


def _plan_detail(plan: InPlacePlan) -> str:
    names = ", ".join(planned.disk.name for planned in plan.disks)
    return f"{names} on array {plan.disks[0].disk.array}, from target {plan.target}"


def _power_detail(power: PowerState) -> str:
    return "the VM is off" if power is PowerState.OFF else "the VM runs"


def _swap_detail(swapped: Swapped) -> str:
    name = swapped.safeties[0].name if swapped.safeties else "nothing"
    return f"what the disks held is kept as {name}"
