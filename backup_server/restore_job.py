"""The restore of a backup as a new VM, step by step (figure 5; [0024], [0045]).

plan, provision, then send for each disk, then attach for each disk in the order of the guest, and
start where it was asked for.
Invariants:
  X1 before ``plan`` is recorded nothing is made; names that are taken are refused there.
  X2 the VM's id and the volumes' names follow from the job's id: what bears them is this job's.
  X3 a failure leaves nothing: the VM goes, then what is still being restored is given up, then
     its volumes.
Callers: the engine's thread of the job.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from arraylift.errors import AlreadyExists, NotFound
from arraylift.exchange.messages import Figures
from arraylift.vm.types import Disk, VmConfig
from backup_server import documents
from backup_server.engine import Outcome
from backup_server.inventory import Inventory, VmSide
from backup_server.job_rules import (
    Job,
    RestoreOrder,
    Step,
    edited_config,
    new_vm_id,
    restored_config,
    restored_volume_name,
    step_name,
    transfer_id,
)
from backup_server.job_run import JobRun
from backup_server.job_turns import Demand, distinct
from backup_server.model import Backup, Receipt
from backup_server.ports import HostRef, Peers
from backup_server.registry import Registry
from backup_server.restore_sends import SEND, PlannedDisk, RestoreSends, planned_array
from backup_server.server_db import ServerDb

PLAN, PROVISION, START = "plan", "provision", "start"


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """All that a restore decides; the rest only carries it out."""

    target: str
    config: VmConfig
    host: HostRef
    disks: tuple[PlannedDisk, ...]


class RestoreJob:
    """Runs restores (engine.Runner)."""

    def __init__(self, db: ServerDb, registry: Registry, inventory: Inventory, peers: Peers) -> None:
        self._db = db
        self._registry = registry
        self._inventory = inventory
        self._peers = peers
        self._sends = RestoreSends(registry, peers)

    def place(self, run: JobRun) -> Demand:
        plan = self._planning(run)
        return Demand(plan.host.name, distinct(one.disk.array for one in plan.disks), plan.target)

    def _planning(self, run: JobRun) -> RestorePlan:
        return run.step(
            PLAN, RestorePlan, lambda: self._plan(self._side(run.job), run.job), detail=_plan_detail
        )

    def _side(self, job: Job) -> VmSide:
        return self._inventory.side(direct=_order(job).direct)

    def run(self, run: JobRun) -> None:
        job, order = run.job, _order(run.job)
        side = self._side(job)
        vm_id = new_vm_id(job.job_id)
        plan = self._planning(run)
        at = run.step(
            PROVISION,
            HostRef,
            lambda: side.provision(vm_id, plan.config, plan.host, self._firmware_variables(order, plan)),
            detail=lambda ref: f"VM {vm_id} on host {ref.name}",
        )
        run.in_parallel(plan.disks, lambda disk: self._sends.send(run, plan.target, disk))
        for planned in plan.disks:
            run.step(
                step_name("attach", planned.disk.name), str, _doing(side.attach, vm_id, planned.disk, at)
            )
        if order.start:
            run.step(START, str, _doing(lambda: side.power(vm_id, at, on=True)))

    # -- steps ------------------------------------------------------------------------------

    def _plan(self, side: VmSide, job: Job) -> RestorePlan:
        order = _order(job)
        backup = self._db.backup(order.backup_id)
        check_name_is_free(side, job.vm_name)
        config = restored_config(
            edited_config(backup.config, order),
            name=job.vm_name,
            job_id=job.job_id,
            keep_identity=order.keep_identity,
        )
        disks = tuple(self._planned(job, backup, index) for index in range(len(backup.disks)))
        for planned in disks:
            if self._sends.array(planned.disk).volume_size(planned.disk.volume_name) is not None:
                raise AlreadyExists(
                    f"array {planned.disk.array} has a volume {planned.disk.volume_name} already",
                    subject=f"volume {planned.disk.volume_name}",
                    next_step="start the restore again: volumes are named anew",
                )
        arrays = list(dict.fromkeys(planned.disk.array for planned in disks))
        return RestorePlan(backup.target, config, side.place(config, arrays, order.host), disks)

    def _firmware_variables(self, order: RestoreOrder, plan: RestorePlan) -> bytes:
        """The target has them: the database does not keep what only a restore needs."""
        if plan.config.firmware != "uefi":
            return b""
        return (
            self._peers.target(self._registry.target(plan.target)).backup(order.backup_id).firmware_variables
        )

    def _planned(self, job: Job, backup: Backup, index: int) -> PlannedDisk:
        made, order = backup.disks[index], _order(job)
        array = planned_array(self._registry, backup, made, order.array)
        disk = Disk(
            name=made.disk_name,
            array=array.name,
            array_address=array.address,
            volume_name=restored_volume_name(job.vm_name, made.disk_name, job.job_id),  # X2
            size_bytes=made.size_bytes,
        )
        return PlannedDisk(made.image_id, disk)

    # -- cleaning up ------------------------------------------------------------------------

    def clean_up(self, run: JobRun) -> None:
        """X3. Only what bears this job's ids (X2)."""
        plan = run.result(PLAN, RestorePlan)
        if plan is None:
            return  # X1
        vm_id = new_vm_id(run.job.job_id)
        at = run.result(PROVISION, HostRef) or plan.host

        def remove_vm() -> None:
            side = self._inventory.side(direct=_order(run.job).direct)
            if run.began(START):
                try:
                    side.power(vm_id, at, on=False)
                except NotFound:
                    return
            side.remove(vm_id, at)

        chores: list[tuple[str, Callable[[], None]]] = []
        if run.began(PROVISION):
            chores.append(("vm", remove_vm))
        for planned in plan.disks:
            if run.began(step_name("send", planned.disk.name)):
                transfer = transfer_id(run.job.job_id, planned.disk.name)
                chores.append((f"volume {planned.disk.name}", self._removal(planned.disk, transfer)))
        run.tidy(chores)

    def _removal(self, disk: Disk, transfer: str) -> Callable[[], None]:
        """First what is still on its way, then what has arrived."""

        def remove() -> None:
            array = self._sends.array(disk)
            array.revoke_restore(transfer)
            array.delete_volume(disk.volume_name)

        return remove

    # -- views ------------------------------------------------------------------------------

    def view(self, job: Job, steps: Sequence[Step]) -> Outcome:
        figures: dict[str, tuple[int, Figures]] = {}
        made = ""
        for step in steps:
            if step.name == PROVISION and step.ended_at_ns:
                made = new_vm_id(job.job_id)
            if step.name.startswith(SEND) and step.ended_at_ns:
                one = documents.load(Receipt, step.result, what="a receipt")
                figures[step.name.removeprefix(SEND)] = (one.figures.spans_total, one.figures)
        return Outcome(job.vm_id, job.vm_name, figures, result_vm_id=made)


def check_name_is_free(side: VmSide, name: str) -> None:
    """Raise AlreadyExists if some VM has that name."""
    try:
        side.find(name)
    except NotFound:
        return
    raise AlreadyExists(
        f"there is a VM {name} already", subject=f"VM {name}", next_step="restore it under another name"
    )


def _order(job: Job) -> RestoreOrder:
    assert job.restore is not None, "a restore job has a restore's order"
    return job.restore


def _plan_detail(plan: RestorePlan) -> str:
    return f"{len(plan.disks)} disks from target {plan.target} to host {plan.host.name}"


def _doing(work: Callable[..., None], *arguments: object) -> Callable[[], str]:
    """A step whose result is that it was done."""

    def step() -> str:
        work(*arguments)
        return "done"

    return step
