"""The backup of one VM, step by step (figures 1 to 3 and 8; [0039], [0041] to [0043], [0049] to [0051]).

locate, snapshot, identify, attributes, gateway where there are foreign disks, then for each disk grant and
send (``backup_sends``), then publish, release.
Invariants:
  W1 the VM snapshot is asked for under the job's id: a replay is given the same one.
  W2 a backup is published over images whose receipts are recorded, and exists from then on.
  W3 until then a failure leaves nothing: VM snapshot, grants and images of this job are removed.
     From then on the job goes forward only; a VM snapshot that cannot be deleted falls to its lease.
  W4 each try of ``snapshot`` looks where the VM is now, and records that host first: a VM that moves is
     followed, and whatever a try left on a host is found there.
Callers: the engine's thread of the job.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from arraylift.errors import ArrayliftError, Conflict, NotFound, WrongState
from arraylift.exchange.messages import Figures
from arraylift.ids import VmId
from arraylift.logs import get_logger
from arraylift.vm.types import ConsistencyLevel, SnapshotRequest, VmSnapshot
from backup_server import documents
from backup_server.backup_sends import SEND, BackupSends, sent_disk
from backup_server.engine import Outcome
from backup_server.inventory import Inventory, VmSide
from backup_server.job_rules import (
    Job,
    JobState,
    Step,
    backup_order,
    check_snapshot,
    step_name,
    transfer_id,
)
from backup_server.job_run import PUBLISH, JobRun
from backup_server.job_turns import Demand, distinct
from backup_server.model import Backup, Receipt
from backup_server.ports import HostRef, Peers, Target
from backup_server.registry import Registry
from backup_server.server_db import ServerDb

_log = get_logger("backup_job")

LOCATE = "locate"
MOVES_MAX = 5
"""Times that a VM is looked for again because the host that had it no longer does."""


class BackupJob:
    """Runs backups (engine.Runner)."""

    def __init__(self, db: ServerDb, registry: Registry, inventory: Inventory, peers: Peers) -> None:
        self._db = db
        self._inventory = inventory
        self._peers = peers
        self._sends = BackupSends(db, registry, peers)

    def place(self, run: JobRun) -> Demand:
        order = backup_order(run.job)
        at = run.step(LOCATE, HostRef, lambda: self._locate(run.job), detail=_host_detail)
        # A VM that moves while it waits is followed (W4); its turn stays what it was.
        disks = run.retry(lambda: self._side(run.job).find(run.job.vm_id).vm.config.disks, LOCATE)
        arrays = (
            self._sends.expected_gateway(order) if disk.foreign else disk.array
            for disk in disks
            if disk.name not in order.exclude_disks
        )
        return Demand(at.name, distinct(arrays), order.target)

    def run(self, run: JobRun) -> None:
        if run.result(PUBLISH, str) is None:
            self._make(run)
        self._let_go(run)

    def _make(self, run: JobRun) -> None:
        moves = itertools.count(1)
        run.step(LOCATE, HostRef, lambda: self._locate(run.job), detail=_host_detail)
        taken = run.step("snapshot", VmSnapshot, lambda: self._snapshot(run, moves), detail=_snapshot_detail)
        at = _places(run)[0]
        snapshot = run.step("identify", VmSnapshot, lambda: self._identify(run, taken, at))
        draft = run.step("attributes", Backup, lambda: _draft(run.job, snapshot))
        gateway = self._sends.choose_gateway(run, snapshot)
        receipts = self._send_all(run, snapshot, gateway)
        backup = replace(
            draft,
            disks=tuple(
                sent_disk(disk, receipt, gateway)
                for disk, receipt in zip(snapshot.disks, receipts, strict=True)
            ),
            incremental=any(receipt.used_births for receipt in receipts),
            firmware_variables=snapshot.firmware_variables,
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

    def _side(self, job: Job) -> VmSide:
        """Asked for at each try: hosts may have been added meanwhile."""
        return self._inventory.side(direct=backup_order(job).direct)

    def _locate(self, job: Job) -> HostRef:
        found = self._side(job).find(job.vm_id)
        return HostRef(found.host, found.host_address)

    def _snapshot(self, run: JobRun, moves: itertools.count[int]) -> VmSnapshot:
        order = backup_order(run.job)
        asked = SnapshotRequest(
            vm_id=VmId(run.job.vm_id),
            name=run.job.job_id,  # W1
            level_min=order.level_min,
            lease_seconds=run.pacing.lease_seconds,
            exclude_disks=order.exclude_disks,
            changes_since=self._sends.states_since(run),
        )
        at = self._locate(run.job)
        places = _places(run)
        if at != places[0]:  # W4
            run.note(step_name(LOCATE, str(len(places) + 1)), at, detail=_host_detail(at))
        try:
            return self._side(run.job).take_snapshot(asked, at)
        except NotFound as error:
            # It was there a moment ago.
            if next(moves) > MOVES_MAX:
                raise
            raise Conflict(f"VM {run.job.vm_name} has left host {at.name}: {error.message}") from error

    def _identify(self, run: JobRun, taken: VmSnapshot, at: HostRef) -> VmSnapshot:
        snapshot = self._side(run.job).identify(taken, at)
        check_snapshot(snapshot, backup_order(run.job))
        return snapshot

    def _send_all(self, run: JobRun, snapshot: VmSnapshot, gateway: str) -> Sequence[Receipt]:
        sent = [run.result(step_name("send", disk.disk_name), Receipt) for disk in snapshot.disks]
        receipts = [receipt for receipt in sent if receipt is not None]
        if len(receipts) == len(snapshot.disks):
            return receipts
        at = _places(run)[0]
        with run.renewing(lambda: self._side(run.job).renew(snapshot, at), "the VM snapshot"):
            return run.in_parallel(snapshot.disks, lambda disk: self._sends.send(run, disk, gateway))

    def _publish(self, run: JobRun, backup: Backup) -> str:
        self._target(run.job).publish_backup(backup)
        self._db.save_backup(backup)
        return backup.backup_id

    def _release(self, run: JobRun) -> str:
        taken = run.result("snapshot", VmSnapshot)
        assert taken is not None, "W2"
        self._side(run.job).release(run.job.vm_id, taken.vm_snapshot_id, _places(run)[0])
        return taken.vm_snapshot_id

    def _target(self, job: Job) -> Target:
        return self._sends.target(backup_order(job))

    # -- cleaning up ------------------------------------------------------------------------

    def clean_up(self, run: JobRun) -> None:
        """W3. Goes by what the steps' records say was begun."""
        chores = self._snapshot_chores(run)
        if run.job.state is not JobState.SUCCEEDED:
            chores += self._image_chores(run)
        run.tidy(chores)

    def _snapshot_chores(self, run: JobRun) -> list[tuple[str, Callable[[], None]]]:
        places = _places(run)
        if not places or not run.began("snapshot"):
            return []
        job, taken = run.job, run.result("snapshot", VmSnapshot)

        def release() -> None:
            assert taken is not None, "asked below"
            self._side(job).release(job.vm_id, taken.vm_snapshot_id, places[0])

        def release_strays(at: HostRef) -> None:
            """Those whose answer never came."""
            host = self._peers.host(at)
            for stray in self._inventory.strays(job.vm_id, job.job_id, at):
                host.delete_snapshot(stray)

        known = [("release", release)] if taken is not None else []
        return [*known, *(("strays", partial(release_strays, at)) for at in places)]

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
        return [*published, *((f"image {name}", partial(give_up, name)) for name in begun)]

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
            elif step.name.startswith(SEND):
                one = documents.load(Receipt, step.result, what="a receipt")
                figures[step.name.removeprefix(SEND)] = (one.figures.spans_total, one.figures)
        return Outcome(job.vm_id, job.vm_name, figures, frozen_ns, level)


def _places(run: JobRun) -> list[HostRef]:
    """Hosts that the VM was found on, the latest first (W4)."""
    steps = [one for one in run.steps() if one.name.split(" ")[0] == LOCATE and one.ended_at_ns]
    return [documents.load(HostRef, one.result, what="a host") for one in reversed(steps)]


def _host_detail(at: HostRef) -> str:
    return f"host {at.name}"


def _snapshot_detail(snapshot: VmSnapshot) -> str:
    level = snapshot.level.name.lower()
    return f"{len(snapshot.disks)} disks, {level}, frozen {snapshot.frozen_ns / 1e9:.3f} s"


def _draft(job: Job, snapshot: VmSnapshot) -> Backup:
    """The VM attributes, stored before any data moves ([0041])."""
    return Backup(
        backup_id=job.job_id,
        vm_id=job.vm_id,
        vm_name=snapshot.config.name,
        target=backup_order(job).target,
        snapshot_at_ns=snapshot.created_at_ns,
        level=snapshot.level,
        frozen_ns=snapshot.frozen_ns,
        disks=(),
        config=snapshot.config,
        incremental=False,
        policy=backup_order(job).policy,
    )
