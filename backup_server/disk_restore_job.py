"""The restore of single disks as new volumes, without a VM, step by step (figure 5; [0045]).

plan, then send for each disk, and attach for each where a VM was named.
Invariants:
  D1 before ``plan`` is recorded nothing is made; a volume's name that is taken is refused there.
  D2 a failure removes the volumes that this job made; an attachment whose answer was lost stays, with its
     volume (restore_sends I2).
  D3 from the first attachment on nobody cancels.
Callers: the engine's thread of the job.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from arraylift.errors import AlreadyExists
from arraylift.exchange.messages import Figures
from arraylift.vm.types import Disk
from backup_server import documents
from backup_server.engine import Outcome
from backup_server.inventory import Inventory, VmSide
from backup_server.job_rules import (
    Job,
    RestoreOrder,
    Step,
    restored_volume_name,
    step_name,
)
from backup_server.job_run import JobRun
from backup_server.job_turns import Demand, distinct
from backup_server.model import Receipt
from backup_server.ports import HostRef, Peers
from backup_server.registry import Registry
from backup_server.restore_sends import SEND, PlannedDisk, RestoreSends, attached_disk, planned_array
from backup_server.server_db import ServerDb

PLAN, ATTACH = "plan", "attach"


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """All that is decided before anything is made."""

    target: str
    disks: tuple[PlannedDisk, ...]
    vm_id: str
    """That gets the volumes; empty: none."""
    host: HostRef


class DiskRestoreJob:
    """Runs restores of single disks (engine.Runner)."""

    def __init__(self, db: ServerDb, registry: Registry, inventory: Inventory, peers: Peers) -> None:
        self._db = db
        self._registry = registry
        self._inventory = inventory
        self._sends = RestoreSends(registry, peers)

    def place(self, run: JobRun) -> Demand:
        plan = self._planning(run)
        return Demand(plan.host.name, distinct(one.disk.array for one in plan.disks), plan.target)

    def run(self, run: JobRun) -> None:
        plan = self._planning(run)
        run.in_parallel(plan.disks, lambda disk: self._sends.send(run, plan.target, disk))
        if not plan.vm_id:
            return
        run.begin_commit()
        for planned in plan.disks:
            disk = attached_disk(planned.disk, run.job.job_id)
            run.step(step_name(ATTACH, planned.disk.name), str, self._attaching(run, plan, disk))

    def _attaching(self, run: JobRun, plan: DiskPlan, disk: Disk) -> Callable[[], str]:
        def attach() -> str:
            side = self._side(run.job)
            found = side.find(plan.vm_id)
            side.attach(plan.vm_id, disk, HostRef(found.host, found.host_address))
            return disk.name

        return attach

    def _planning(self, run: JobRun) -> DiskPlan:
        return run.step(PLAN, DiskPlan, lambda: self._plan(run.job), detail=_plan_detail)

    def _side(self, job: Job) -> VmSide:
        return self._inventory.side(direct=_order(job).direct)

    def _plan(self, job: Job) -> DiskPlan:
        order = _order(job)
        backup = self._db.backup(order.backup_id)
        vm_id, host = "", HostRef("", "")
        if order.attach:
            found = self._side(job).find(order.attach)
            vm_id, host = found.vm.vm_id, HostRef(found.host, found.host_address)
        disks = []
        for made in backup.disks:
            if made.disk_name not in order.disks:
                continue
            array = planned_array(self._registry, backup, made, order.array)
            name = order.volume or restored_volume_name(backup.vm_name, made.disk_name, job.job_id)
            disk = Disk(made.disk_name, array.name, array.address, name, made.size_bytes)
            if self._sends.array(disk).volume_size(name) is not None:
                raise AlreadyExists(
                    f"array {array.name} has a volume {name} already",
                    subject=f"volume {name}",
                    next_step="name another",
                )
            disks.append(PlannedDisk(made.image_id, disk))
        return DiskPlan(backup.target, tuple(disks), vm_id, host)

    # -- cleaning up ------------------------------------------------------------------------

    def clean_up(self, run: JobRun) -> None:
        """D2."""
        plan = run.result(PLAN, DiskPlan)
        if plan is None:
            return  # D1
        chores = [
            (f"volume {planned.disk.name}", self._removal(run, plan, planned))
            for planned in plan.disks
            if run.began(step_name("send", planned.disk.name))
        ]
        run.tidy(chores)

    def _removal(self, run: JobRun, plan: DiskPlan, planned: PlannedDisk) -> Callable[[], None]:
        vm_id = plan.vm_id if run.began(step_name(ATTACH, planned.disk.name)) else ""

        def remove() -> None:
            self._sends.remove(run.job, planned.disk, self._side(run.job), vm_id)

        return remove

    # -- views ------------------------------------------------------------------------------

    def view(self, job: Job, steps: Sequence[Step]) -> Outcome:
        figures: dict[str, tuple[int, Figures]] = {}
        attached_to = ""
        for step in steps:
            if step.name == PLAN and step.ended_at_ns:
                attached_to = documents.load(DiskPlan, step.result, what="a plan").vm_id
            if step.name.startswith(SEND) and step.ended_at_ns:
                one = documents.load(Receipt, step.result, what="a receipt")
                figures[step.name.removeprefix(SEND)] = (one.figures.spans_total, one.figures)
        return Outcome(job.vm_id, job.vm_name, figures, result_vm_id=attached_to)


def _order(job: Job) -> RestoreOrder:
    assert job.restore is not None, "a restore job has a restore's order"
    return job.restore


def _plan_detail(plan: DiskPlan) -> str:
    names = ", ".join(f"{one.disk.name} as volume {one.disk.volume_name}" for one in plan.disks)
    return f"{names}, from target {plan.target}" + f" for VM {plan.vm_id}" * bool(plan.vm_id)
