"""Files of a backup on a disk of their own, composed at the target and given to the VM (figure 6; [0046]).

plan, compose, send, attach, then ``tidy``: the composed image goes, the volume stays.
Invariants:
  C1 no content passes through this process: the target is told which pieces of its images lie where.
  C2 every try composes by the same id, which makes one image.
  C3 a failure removes image and volume, unless the VM has that volume by then (restore_sends I2).
Limits: restore_disk.FILES_MAX names. What a disk cannot hold is told with the step, and left out.
Callers: the engine's thread of the job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from arraylift.exchange.messages import Figures
from arraylift.vm.types import Disk
from backup_server import documents
from backup_server.backup_disks import BackupDisks
from backup_server.catalog.entry import DiskSet
from backup_server.catalog.pieces import Piece
from backup_server.engine import Outcome
from backup_server.file_reads import Browser, FileReads, Layout, Start, shown
from backup_server.inventory import Inventory, VmSide
from backup_server.job_rules import (
    Job,
    RestoreOrder,
    Step,
    derived_id,
    restored_volume_name,
    step_name,
)
from backup_server.job_run import JobRun
from backup_server.job_turns import Demand, distinct
from backup_server.model import Receipt
from backup_server.ports import ComposedExtent, HostRef, Peers, Target
from backup_server.registry import Registry
from backup_server.restore_disk import RestoreDisk
from backup_server.restore_sends import SEND, PlannedDisk, RestoreSends, attached_disk, planned_array
from backup_server.server_db import ServerDb

PLAN, COMPOSE, ATTACH, TIDY = "plan", "compose", "attach", "tidy"
DISK_NAME = "files"
LABEL = "RESTORED"
PROBLEMS_TOLD_MAX = 3


@dataclass(frozen=True, slots=True)
class DiskOfFilesPlan:
    """All that is decided before anything is made."""

    target: str
    disk: Disk
    """Without its size yet."""
    vm_id: str
    host: HostRef


@dataclass(frozen=True, slots=True)
class Composed:
    """What the target made."""

    image_id: str
    size_bytes: int
    file_count: int
    told: str
    """What is not on it."""


class RestoreDiskJob:
    """Runs restores of files onto disks (engine.Runner)."""

    def __init__(
        self,
        db: ServerDb,
        registry: Registry,
        inventory: Inventory,
        peers: Peers,
        disks: BackupDisks,
        browser: Browser,
    ) -> None:
        self._db, self._registry, self._inventory, self._peers = db, registry, inventory, peers
        self._disks, self._browser = disks, browser
        self._sends = RestoreSends(registry, peers)

    def place(self, run: JobRun) -> Demand:
        plan = self._planning(run)
        return Demand(plan.host.name, distinct([plan.disk.array]), plan.target)

    def run(self, run: JobRun) -> None:
        plan = self._planning(run)
        made = run.step(COMPOSE, Composed, lambda: self._compose(run.job, plan), detail=_told)
        planned = PlannedDisk(made.image_id, replace(plan.disk, size_bytes=made.size_bytes))
        self._sends.send(run, plan.target, planned)
        run.begin_commit()
        run.step(ATTACH, str, self._attaching(run, plan, planned.disk))
        run.step(TIDY, str, lambda: self._forget(plan, made.image_id))

    # -- steps ------------------------------------------------------------------------------

    def _planning(self, run: JobRun) -> DiskOfFilesPlan:
        return run.step(PLAN, DiskOfFilesPlan, lambda: self._plan(run.job), detail=_plan_detail)

    def _side(self, job: Job) -> VmSide:
        return self._inventory.side(direct=_order(job).direct)

    def _plan(self, job: Job) -> DiskOfFilesPlan:
        backup, found = self._db.backup(job.backup_id), self._side(job).find(job.vm_id)
        own = next((disk for disk in found.vm.config.disks if disk.volume_name), None)
        if own is not None:
            array = self._registry.array(own.array, own.array_address)
        else:
            array = planned_array(self._registry, backup, backup.disks[0], "")
        name = restored_volume_name(found.vm.config.name, DISK_NAME, job.job_id)
        disk = Disk(DISK_NAME, array.name, array.address, name, 0)
        return DiskOfFilesPlan(backup.target, disk, found.vm.vm_id, HostRef(found.host, found.host_address))

    def _compose(self, job: Job, plan: DiskOfFilesPlan) -> Composed:
        """One try (C1, C2)."""
        files = _order(job).files
        assert files is not None, "this one is of files"
        backup = self._db.backup(job.backup_id)
        disk, told, count = RestoreDisk(LABEL), list[str](), 0
        with self._disks.opened(job.backup_id) as disks:
            reads = FileReads(self._browser, disks, files.volume, content=_layout)
            start: Start | None = None
            for one in reads.read(files.paths, recursive=True):
                pieces: Sequence[Piece] = ()
                if isinstance(one, Layout):
                    pieces = one.pieces
                if start is not None:
                    why = disk.add(start.entry, pieces, hard_link_to=start.hard_link_to)
                    told += [f"{shown(start.entry.path)}: {shown(why)}"] * bool(why)
                    count += not why
                start = one if isinstance(one, Start) and not one.problem else None
                if isinstance(one, Start) and one.problem:
                    told.append(f"{shown(one.entry.path)}: {one.problem}")
            size, extents = disk.finish()
            images = [made.image_id for made in backup.disks]
            image_id = self._target(plan).compose_image(
                derived_id(job.job_id, COMPOSE),
                name=f"{job.vm_id}/{DISK_NAME}-{job.job_id[:12]}",
                size_bytes=size,
                extents=(
                    ComposedExtent(
                        one.offset,
                        one.length,
                        "" if one.literal else images[one.disk],
                        one.image_offset,
                        one.literal,
                    )
                    for one in extents
                ),
            )
        more = f"; and {len(told) - PROBLEMS_TOLD_MAX:,} more" * (len(told) > PROBLEMS_TOLD_MAX)
        return Composed(image_id, size, count, "; ".join(told[:PROBLEMS_TOLD_MAX]) + more)

    def _target(self, plan: DiskOfFilesPlan) -> Target:
        return self._peers.target(self._registry.target(plan.target))

    def _attaching(self, run: JobRun, plan: DiskOfFilesPlan, disk: Disk) -> Callable[[], str]:
        def attach() -> str:
            side = self._side(run.job)
            found = side.find(plan.vm_id)
            new = attached_disk(disk, run.job.job_id)
            side.attach(plan.vm_id, new, HostRef(found.host, found.host_address))
            return new.name

        return attach

    def _forget(self, plan: DiskOfFilesPlan, image_id: str) -> str:
        self._target(plan).delete_image(image_id)
        return "done"

    # -- cleaning up ------------------------------------------------------------------------

    def clean_up(self, run: JobRun) -> None:
        """C3."""
        plan = run.result(PLAN, DiskOfFilesPlan)
        if plan is None:
            return
        chores: list[tuple[str, Callable[[], None]]] = []
        if run.began(step_name("send", DISK_NAME)):
            vm_id = plan.vm_id if run.began(ATTACH) else ""
            chores.append(
                ("volume", lambda: self._sends.remove(run.job, plan.disk, self._side(run.job), vm_id))
            )
        if run.began(COMPOSE):
            # A transfer's id is that of the image that it makes.
            chores.append(
                ("image", lambda: self._target(plan).delete_image(derived_id(run.job.job_id, COMPOSE)))
            )
        run.tidy(chores)

    # -- views ------------------------------------------------------------------------------

    def view(self, job: Job, steps: Sequence[Step]) -> Outcome:
        figures: dict[str, tuple[int, Figures]] = {}
        for step in steps:
            if step.name.startswith(SEND) and step.ended_at_ns:
                one = documents.load(Receipt, step.result, what="a receipt")
                figures[step.name.removeprefix(SEND)] = (one.figures.spans_total, one.figures)
        return Outcome(job.vm_id, job.vm_name, figures, result_vm_id=job.vm_id)


def _layout(disks: DiskSet, pieces: Sequence[Piece]) -> Iterator[Layout]:  # noqa: ARG001 - of all contents
    if pieces:
        yield Layout(pieces)


def _order(job: Job) -> RestoreOrder:
    assert job.restore is not None, "a restore job has a restore's order"
    return job.restore


def _plan_detail(plan: DiskOfFilesPlan) -> str:
    return f"volume {plan.disk.volume_name} for VM {plan.vm_id}, from target {plan.target}"


def _told(made: Composed) -> str:
    return f"{made.file_count:,} files" + f"; left out: {made.told}" * bool(made.told)
