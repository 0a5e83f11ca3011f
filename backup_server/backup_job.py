"""The backup of one VM, step by step (figures 1 to 3 and 8; [0039], [0041] to [0043], [0049] to [0051]).

locate, snapshot, identify, attributes, then for each disk grant and send, then publish, release.
Invariants:
  W1 the VM snapshot is asked for under the job's id: a replay is given the same one.
  W2 a backup is published over images whose receipts are recorded, and exists from then on.
  W3 until then a failure leaves nothing: VM snapshot, grants and images of this job are removed.
     From then on the job goes forward only; a VM snapshot that cannot be deleted falls to its lease.
  W4 the first backup of a restored VM names the image that it was restored from as base. The array
     judges it by its own record of the volume, so a VM that bears the tag wrongly costs a full read.
Callers: the engine's thread of the job.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from arraylift.errors import AlreadyExists, ArrayliftError, NotFound, WrongState
from arraylift.exchange.messages import Figures
from arraylift.ids import VmId
from arraylift.logs import get_logger
from arraylift.sizes import spans_of
from arraylift.vm.types import ConsistencyLevel, DiskSnapshot, SnapshotRequest, VmSnapshot
from backup_server import documents
from backup_server.engine import Outcome
from backup_server.inventory import Inventory, VmSide
from backup_server.job_rules import (
    RESTORE_TAG,
    BackupOrder,
    Job,
    JobState,
    Step,
    check_snapshot,
    image_name,
    step_name,
    transfer_id,
)
from backup_server.job_run import PUBLISH, JobRun
from backup_server.model import Backup, BackupDisk, Receipt
from backup_server.ports import HostRef, Peers, Target
from backup_server.registry import Registry
from backup_server.server_db import ServerDb

_log = get_logger("backup_job")

_SEND = "send "


class BackupJob:
    """Runs backups (engine.Runner)."""

    def __init__(self, db: ServerDb, registry: Registry, inventory: Inventory, peers: Peers) -> None:
        self._db = db
        self._registry = registry
        self._inventory = inventory
        self._peers = peers

    def run(self, run: JobRun) -> None:
        if run.result(PUBLISH, str) is None:
            self._make(run)
        self._let_go(run)

    def _make(self, run: JobRun) -> None:
        side = self._inventory.side(direct=_order(run.job).direct)
        at = run.step(
            "locate", HostRef, lambda: self._locate(side, run.job), detail=lambda ref: f"host {ref.name}"
        )
        taken = run.step(
            "snapshot", VmSnapshot, lambda: self._snapshot(run, side, at), detail=_snapshot_detail
        )
        snapshot = run.step("identify", VmSnapshot, lambda: self._identify(run, side, taken, at))
        draft = run.step("attributes", Backup, lambda: _draft(run.job, snapshot))
        receipts = self._send_all(run, side, snapshot, at)
        backup = replace(
            draft,
            disks=tuple(_disk(disk, receipt) for disk, receipt in zip(snapshot.disks, receipts, strict=True)),
            incremental=any(receipt.used_births for receipt in receipts),
        )
        run.begin_commit()
        run.step(PUBLISH, str, lambda: self._publish(run, backup))

    def _let_go(self, run: JobRun) -> None:
        try:
            run.step("release", str, lambda: self._release(run))
        except ArrayliftError as error:  # W3
            _log.warning("snapshot_left_to_its_lease", error=str(error))
            run.left_something = True

    # -- steps ------------------------------------------------------------------------------

    def _locate(self, side: VmSide, job: Job) -> HostRef:
        found = side.find(job.vm_id)
        return HostRef(found.host, found.host_address)

    def _snapshot(self, run: JobRun, side: VmSide, at: HostRef) -> VmSnapshot:
        order = _order(run.job)
        asked = SnapshotRequest(
            vm_id=VmId(run.job.vm_id),
            name=run.job.job_id,  # W1
            level_min=order.level_min,
            lease_seconds=run.pacing.lease_seconds,
            exclude_disks=order.exclude_disks,
        )
        return side.take_snapshot(asked, at)

    def _identify(self, run: JobRun, side: VmSide, taken: VmSnapshot, at: HostRef) -> VmSnapshot:
        snapshot = side.identify(taken, at)
        check_snapshot(snapshot, _order(run.job))
        return snapshot

    def _send_all(self, run: JobRun, side: VmSide, snapshot: VmSnapshot, at: HostRef) -> Sequence[Receipt]:
        sent = [run.result(step_name("send", disk.disk_name), Receipt) for disk in snapshot.disks]
        receipts = [receipt for receipt in sent if receipt is not None]
        if len(receipts) == len(snapshot.disks):
            return receipts
        with run.renewing(lambda: side.renew(snapshot, at), "the VM snapshot"):
            return run.in_parallel(snapshot.disks, lambda disk: self._send(run, disk))

    def _send(self, run: JobRun, disk: DiskSnapshot) -> Receipt:
        order = _order(run.job)
        transfer = transfer_id(run.job.job_id, disk.disk_name)

        # Looked up at each try: an operator may have set an address right meanwhile.
        def grant(base: str = "") -> tuple[bytes, str]:
            return self._target(run.job).create_grant(
                transfer,
                array=disk.array,
                image_name=image_name(run.job.vm_id, disk.disk_name),
                full=order.full,
                base_image_id=base,
            )

        def choose_base() -> str:
            restored_from = self._restored_from(run, disk.disk_name)
            if restored_from:
                # Deleted since; or asked before, when there was another choice.
                with contextlib.suppress(NotFound, AlreadyExists):
                    return grant(restored_from)[1]
            return grant()[1]

        def send() -> Receipt:
            # Asked for again: it is the same, base included, and so never lies in our database.
            secret, _ = grant()
            array = self._peers.array(self._registry.array(disk.array, disk.array_address))
            running = array.send_snapshot(
                disk.snapshot_id,
                transfer,
                target_address=self._registry.target(order.target).address,
                grant=secret,
                full=order.full,
                patience_seconds=run.pacing.transfer_patience_seconds,
            )
            with running:
                return run.follow(disk.disk_name, running, spans_of(disk.size_bytes))

        run.step(
            step_name("grant", disk.disk_name),
            str,
            choose_base,
            detail=lambda base: f"base {base}" if base else "no base",
        )
        return run.step(
            step_name("send", disk.disk_name), Receipt, send, detail=lambda one: f"image {one.receipt_id}"
        )

    def _restored_from(self, run: JobRun, disk_name: str) -> str:
        """The image that a restored VM's disk was made from, until the disk has images of its own (W4)."""
        order, draft = _order(run.job), run.result("attributes", Backup)
        assert draft is not None, "it comes before the grants"
        restored_by = dict(draft.config.tags).get(RESTORE_TAG, "")
        if order.full or not restored_by:
            return ""
        own = self._db.backups(vm=run.job.vm_id)
        if any(one.target == order.target and _image_of(one, disk_name) for one in own):
            return ""
        try:
            source = self._db.backup(self._db.job(restored_by).backup_id)
        except NotFound:
            return ""
        return _image_of(source, disk_name) if source.target == order.target else ""

    def _publish(self, run: JobRun, backup: Backup) -> str:
        self._target(run.job).publish_backup(backup)
        self._db.save_backup(backup)
        return backup.backup_id

    def _release(self, run: JobRun) -> str:
        at, taken = run.result("locate", HostRef), run.result("snapshot", VmSnapshot)
        assert at is not None, "W2"
        assert taken is not None, "W2"
        side = self._inventory.side(direct=_order(run.job).direct)
        side.release(run.job.vm_id, taken.vm_snapshot_id, at)
        return taken.vm_snapshot_id

    def _target(self, job: Job) -> Target:
        return self._peers.target(self._registry.target(_order(job).target))

    # -- cleaning up ------------------------------------------------------------------------

    def clean_up(self, run: JobRun) -> None:
        """W3. Goes by what the steps' records say was begun."""
        chores = self._snapshot_chores(run)
        if run.job.state is not JobState.SUCCEEDED:
            chores += self._image_chores(run)
        run.tidy(chores)

    def _snapshot_chores(self, run: JobRun) -> list[tuple[str, Callable[[], None]]]:
        at = run.result("locate", HostRef)
        if at is None or not run.began("snapshot"):
            return []
        job, taken = run.job, run.result("snapshot", VmSnapshot)

        def release() -> None:
            assert taken is not None, "asked below"
            side = self._inventory.side(direct=_order(job).direct)
            side.release(job.vm_id, taken.vm_snapshot_id, at)

        def release_strays() -> None:
            """Those whose answer never came."""
            host = self._peers.host(at)
            for stray in self._inventory.strays(job.vm_id, job.job_id, at):
                host.delete_snapshot(stray)

        known = [("release", release)] if taken is not None else []
        return [*known, ("strays", release_strays)]

    def _image_chores(self, run: JobRun) -> list[tuple[str, Callable[[], None]]]:
        begun = [step.name.removeprefix("grant ") for step in run.steps() if step.name.startswith("grant ")]
        job = run.job

        def unpublish() -> None:
            self._target(job).delete_backup(job.job_id)
            self._db.forget_backup(job.job_id)

        def give_up(disk_name: str) -> None:
            target, transfer = self._target(job), transfer_id(job.job_id, disk_name)
            # Never made, forgotten, or committed: then the image goes.
            with contextlib.suppress(NotFound, WrongState):
                target.revoke_grant(transfer)
            target.delete_image(transfer)

        published = [("unpublish", unpublish)] if run.began(PUBLISH) else []
        return [*published, *((f"image {name}", _bound(give_up, name)) for name in begun)]

    # -- views ------------------------------------------------------------------------------

    def view(self, job: Job, steps: Sequence[Step]) -> Outcome:
        figures: dict[str, tuple[int, Figures]] = {}
        frozen_ns, level = 0, ConsistencyLevel.UNSPECIFIED
        for step in steps:
            if not step.ended_at_ns:
                continue
            if step.name == "snapshot":
                snapshot = documents.load(VmSnapshot, step.result, what="a VM snapshot")
                frozen_ns, level = snapshot.frozen_ns, snapshot.level
            elif step.name.startswith(_SEND):
                one = documents.load(Receipt, step.result, what="a receipt")
                figures[step.name.removeprefix(_SEND)] = (one.figures.spans_total, one.figures)
        return Outcome(job.vm_id, job.vm_name, figures, frozen_ns, level)


def _bound(work: Callable[[str], None], name: str) -> Callable[[], None]:
    return lambda: work(name)


def _order(job: Job) -> BackupOrder:
    assert job.backup is not None, "a backup job has a backup's order"
    return job.backup


def _snapshot_detail(snapshot: VmSnapshot) -> str:
    level = snapshot.level.name.lower()
    return f"{len(snapshot.disks)} disks, {level}, frozen {snapshot.frozen_ns / 1e9:.3f} s"


def _image_of(backup: Backup, disk_name: str) -> str:
    return next((disk.image_id for disk in backup.disks if disk.disk_name == disk_name), "")


def _draft(job: Job, snapshot: VmSnapshot) -> Backup:
    """The VM attributes, stored before any data moves ([0041])."""
    return Backup(
        backup_id=job.job_id,
        vm_id=job.vm_id,
        vm_name=snapshot.config.name,
        target=_order(job).target,
        snapshot_at_ns=snapshot.created_at_ns,
        level=snapshot.level,
        frozen_ns=snapshot.frozen_ns,
        disks=(),
        config=snapshot.config,
        incremental=False,
    )


def _disk(disk: DiskSnapshot, receipt: Receipt) -> BackupDisk:
    return BackupDisk(
        disk_name=disk.disk_name,
        image_id=receipt.receipt_id,
        size_bytes=disk.size_bytes,
        root=receipt.root,
        figures=receipt.figures,
        array=disk.array,
    )
