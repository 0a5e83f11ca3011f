"""Disks of a VM snapshot on their way to a target: base, way and changes of each ([0039], [0049] to [0052]).

A volume's array sends its snapshot itself. A foreign disk is read by a gateway, an array that stands in for
the storage system.
Invariants:
  B1 a replay is the same transfer, with the same base and by the same array: its id follows from the job's
     and the disk's, the gateway is recorded before a grant names it.
  B2 what a VMM says of changes is passed on as it came, with the state since which it holds: the array
     compares that with the base at the target, so that nothing here vouches for anything.
  B3 the first backup of a restored VM names the image that it was restored from as base. The array
     judges it by its own record of the volume, so a VM that bears the tag wrongly costs a full read.
Callers: the backup job, on the threads that ``JobRun.in_parallel`` makes.
"""

from __future__ import annotations

import contextlib

from arraylift.errors import AlreadyExists, NotFound
from arraylift.sizes import spans_of
from arraylift.vm.types import DiskSnapshot, DiskState, SuppliedChanges, VmSnapshot
from backup_server.job_rules import (
    RESTORE_TAG,
    BackupOrder,
    backup_order,
    image_name,
    step_name,
    transfer_id,
)
from backup_server.job_run import JobRun
from backup_server.model import Backup, BackupDisk, ChangeSource, PeerKind, Receipt, RegisteredPeer
from backup_server.ports import Peers, Target, Transfer
from backup_server.registry import Registry
from backup_server.server_db import ServerDb

SEND = "send "
GATEWAY = "gateway"


class BackupSends:
    """For one server."""

    def __init__(self, db: ServerDb, registry: Registry, peers: Peers) -> None:
        self._db = db
        self._registry = registry
        self._peers = peers

    def states_since(self, run: JobRun) -> tuple[DiskState, ...]:
        """States since which changes are worth asking for: those of the VM's last backup on that target,
        of foreign disks, and of all if the order wants what the VMM saw (B2)."""
        order = backup_order(run.job)
        if order.full:
            return ()
        last = self._db.last_backup(run.job.vm_id, target=order.target)
        if last is None:
            return ()
        foreign = {disk.name for disk in last.config.disks if disk.foreign}
        return tuple(
            DiskState(disk.disk_name, disk.state)
            for disk in last.disks
            if disk.state is not None
            and (disk.disk_name in foreign or order.change_source is ChangeSource.SUPPLIED)
        )

    def choose_gateway(self, run: JobRun, snapshot: VmSnapshot) -> str:
        """Record which array reads the foreign disks (B1); empty if there are none. Raises NotFound."""
        if not any(disk.foreign is not None for disk in snapshot.disks):
            return ""
        order = backup_order(run.job)

        def choose() -> str:
            if order.gateway:
                return self._registry.find(PeerKind.ARRAY, order.gateway).name
            name = self.expected_gateway(order)
            if not name:
                raise NotFound(
                    f"no array is registered that could read the foreign disks of VM {run.job.vm_name}",
                    subject="array",
                    next_step="add one: it serves as gateway",
                )
            return name

        return run.step(GATEWAY, str, choose, detail=lambda name: f"array {name}")

    def expected_gateway(self, order: BackupOrder) -> str:
        """The array that would be chosen now; empty: there is none."""
        if order.gateway:
            return order.gateway
        return next((array.name for array in self._registry.all(PeerKind.ARRAY)), "")

    def send(self, run: JobRun, disk: DiskSnapshot, gateway: str) -> Receipt:
        """Do the steps that make one disk's image."""
        run.step(
            step_name("grant", disk.disk_name),
            str,
            lambda: self._choose_base(run, disk, gateway),
            detail=lambda base: f"base {base}" if base else "no base",
        )

        def send() -> Receipt:
            with self._begin(run, disk, gateway) as running:
                return run.follow(disk.disk_name, running, spans_of(disk.size_bytes))

        return run.step(step_name("send", disk.disk_name), Receipt, send, detail=_receipt_detail)

    def _begin(self, run: JobRun, disk: DiskSnapshot, gateway: str) -> Transfer:
        order, transfer = backup_order(run.job), transfer_id(run.job.job_id, disk.disk_name)
        # Asked for again: it is the same, base included, and so never lies in our database.
        grant, _ = self._grant(run, disk, gateway)
        # Looked up at each try: an operator may have set an address right meanwhile.
        array = self._peers.array(self._sender(disk, gateway))
        address, patience = (
            self._registry.target(order.target).address,
            run.pacing.transfer_patience_seconds,
        )
        if disk.foreign is None:
            return array.send_snapshot(
                disk.snapshot_id,
                transfer,
                target_address=address,
                grant=grant,
                full=order.full,
                patience_seconds=patience,
                changes=self._changes(run, disk),
                bytes_per_second_max=order.bytes_per_second_max,
            )
        assert disk.state is not None, "check_snapshot saw to it"
        return array.send_foreign_disk(
            disk.foreign,
            transfer,
            state=disk.state,
            target_address=address,
            grant=grant,
            full=order.full,
            patience_seconds=patience,
            bytes_per_second_max=order.bytes_per_second_max,
        )

    def _changes(self, run: JobRun, disk: DiskSnapshot) -> SuppliedChanges | None:
        """What the VMM saw, where it is wanted and holds since the base; else births tell more."""
        if disk.changes is None or backup_order(run.job).change_source is not ChangeSource.SUPPLIED:
            return None
        base = run.result(step_name("grant", disk.disk_name), str)
        known = (one for backup in self._db.backups(vm=run.job.vm_id) for one in backup.disks)
        state = next((one.state for one in known if one.image_id == base), None)
        return disk.changes if state == disk.changes.since else None

    def _sender(self, disk: DiskSnapshot, gateway: str) -> RegisteredPeer:
        if disk.foreign is not None:
            return self._registry.array(gateway)
        return self._registry.array(disk.array, disk.array_address)

    # -- grants -----------------------------------------------------------------------------

    def _grant(self, run: JobRun, disk: DiskSnapshot, gateway: str, base: str = "") -> tuple[bytes, str]:
        """The grant, and the base's id."""
        order = backup_order(run.job)
        return self.target(order).create_grant(
            transfer_id(run.job.job_id, disk.disk_name),
            array=sent_by(disk, gateway),
            image_name=image_name(run.job.vm_id, disk.disk_name),
            full=order.full,
            base_image_id=base,
        )

    def _choose_base(self, run: JobRun, disk: DiskSnapshot, gateway: str) -> str:
        restored_from = self._restored_from(run, disk.disk_name)
        if restored_from:
            # Deleted since; or asked before, when there was another choice.
            with contextlib.suppress(NotFound, AlreadyExists):
                return self._grant(run, disk, gateway, restored_from)[1]
        return self._grant(run, disk, gateway)[1]

    def _restored_from(self, run: JobRun, disk_name: str) -> str:
        """The image that a restored VM's disk was made from, until the disk has images of its own (B3)."""
        order, draft = backup_order(run.job), run.result("attributes", Backup)
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

    def target(self, order: BackupOrder) -> Target:
        """Where the order's images go."""
        return self._peers.target(self._registry.target(order.target))


def sent_by(disk: DiskSnapshot, gateway: str) -> str:
    """The array that sends a disk."""
    return gateway if disk.foreign is not None else disk.array


def sent_disk(disk: DiskSnapshot, receipt: Receipt, gateway: str) -> BackupDisk:
    """A disk of a backup, once it was sent."""
    return BackupDisk(
        disk_name=disk.disk_name,
        image_id=receipt.receipt_id,
        size_bytes=disk.size_bytes,
        root=receipt.root,
        figures=receipt.figures,
        array=sent_by(disk, gateway),
        state=disk.state,
        change_source=receipt.change_source,
    )


def _image_of(backup: Backup, disk_name: str) -> str:
    return next((disk.image_id for disk in backup.disks if disk.disk_name == disk_name), "")


def _receipt_detail(receipt: Receipt) -> str:
    source = receipt.change_source
    how = f", by {source.name.lower().replace('_', ' ')}" if source else ""
    return f"image {receipt.receipt_id}{how}"
