"""Images on their way to volumes of arrays: what all restores do alike ([0024], [0045]).

Invariants:
  I1 a replay is the same transfer: its id follows from the job's and the disk's.
  I2 a volume of a chosen name goes only if this restore made it, and no VM has it.
Callers: jobs, on the threads that ``JobRun.in_parallel`` makes.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

from arraylift.errors import AlreadyExists, Conflict, NotFound
from arraylift.exchange.messages import Figures
from arraylift.sizes import spans_of
from arraylift.vm.types import Disk
from backup_server.inventory import VmSide
from backup_server.job_rules import Job, step_name, transfer_id
from backup_server.job_run import JobRun
from backup_server.model import Backup, BackupDisk, Receipt, RegisteredPeer
from backup_server.ports import Array, Peers
from backup_server.registry import Registry

SEND = "send "
GRANTS_LOST_MAX = 5


@dataclass(frozen=True, slots=True)
class PlannedDisk:
    """An image, and the disk that it becomes, or is restored onto."""

    image_id: str
    disk: Disk


def planned_array(registry: Registry, backup: Backup, made: BackupDisk, asked: str) -> RegisteredPeer:
    """The array that a disk of a backup is restored to: the one asked for, or its own.

    A foreign disk becomes a volume of the array that read it. Raises NotFound.
    """
    was = next((disk for disk in backup.config.disks if disk.name == made.disk_name), None)
    return registry.array(asked or made.array, was.array_address if was is not None and not asked else "")


def attached_disk(disk: Disk, job_id: str) -> Disk:
    """As a VM calls what it gets besides its own: it may have one of that name."""
    return replace(disk, name=f"{disk.name[:63]}-{job_id[:12]}")


class RestoreSends:
    """For one server."""

    def __init__(self, registry: Registry, peers: Peers) -> None:
        self._registry = registry
        self._peers = peers

    def array(self, disk: Disk) -> Array:
        """Looked up at each try: an operator may have set an address right meanwhile."""
        return self._peers.array(self._peer(disk))

    def _peer(self, disk: Disk) -> RegisteredPeer:
        return self._registry.array(disk.array, disk.array_address)

    def remove(self, job: Job, disk: Disk, side: VmSide, vm_id: str) -> None:
        """Take back what was restored, on its way or there, unless the VM has it by now (I2)."""
        array, transfer = self.array(disk), transfer_id(job.job_id, disk.name)
        array.revoke_restore(transfer)
        if vm_id:
            has = side.find(vm_id).vm.config.disks
            if (disk.array, disk.volume_name) in {(one.array, one.volume_name) for one in has}:
                return
        if array.has_restored(transfer, disk.volume_name):
            array.delete_volume(disk.volume_name)

    def send(self, run: JobRun, target_name: str, planned: PlannedDisk, *, group_id: str = "") -> Receipt:
        """Do the step that brings one image into its volume, or, with a group, beside it (I1)."""
        disk = planned.disk
        transfer = transfer_id(run.job.job_id, disk.name)
        grants_lost = itertools.count(1)

        def send() -> Receipt:
            array, target = self.array(disk), self._peers.target(self._registry.target(target_name))
            try:
                # Asked for at each try: an array forgets a grant that nobody used when it restarts.
                grant = array.prepare_restore(
                    transfer, target=target_name, volume_name=disk.volume_name, group_id=group_id
                )
            except AlreadyExists:
                # Ours, whole (a volume appears at its commit): its receipt was lost with the answer.
                # In place the volume was there before, and tells nothing.
                if group_id or not array.has_restored(transfer, disk.volume_name):
                    raise
                return Receipt("", b"", Figures(spans_total=spans_of(disk.size_bytes)))
            running = target.send_image(
                planned.image_id,
                transfer,
                receiver_address=self._peer(disk).address,
                grant=grant,
                patience_seconds=run.pacing.transfer_patience_seconds,
            )
            with running:
                try:
                    return run.follow(disk.name, running, spans_of(disk.size_bytes))
                except NotFound as error:
                    # The array restarted before anything arrived; or the image is gone, which stays so.
                    if next(grants_lost) > GRANTS_LOST_MAX:
                        raise
                    raise Conflict(
                        f"the restore of {disk.name} is to be prepared again: {error.message}"
                    ) from error

        return run.step(
            step_name("send", disk.name), Receipt, send, detail=lambda _: f"volume {disk.volume_name}"
        )
