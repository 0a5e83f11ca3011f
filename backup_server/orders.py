"""Takes orders: which jobs a request means, checked before any of them exists.

Callers: edges, any thread.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

from arraylift.clock import Clock
from arraylift.errors import ArrayliftError, Conflict, InvalidRequest, NotFound, WrongState
from arraylift.ids import check_name, random_id
from arraylift.vm.types import PowerState, Vm
from backup_server.backups import Backups
from backup_server.engine import Engine
from backup_server.in_place_job import matched, still_runs
from backup_server.inventory import Inventory, VmSide
from backup_server.job_rules import BackupOrder, FileOrder, Job, JobKind, JobState, RestoreOrder
from backup_server.model import Backup, ChangeSource, PeerKind
from backup_server.policies.policy import Policy, excluded_disks
from backup_server.registry import Registry
from backup_server.restore_job import check_name_is_free

VMS_MAX = 4096
"""VMs that one request may name or mean."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which VMs a request means: named, or all of them, those with a tag."""

    vms: tuple[str, ...]
    all: bool
    tag: str


class Orders:
    """Turns requests into jobs."""

    def __init__(
        self, engine: Engine, registry: Registry, inventory: Inventory, backups: Backups, clock: Clock
    ) -> None:
        self._engine = engine
        self._registry = registry
        self._inventory = inventory
        self._backups = backups
        self._clock = clock

    def start_backups(self, choice: Choice, order: BackupOrder) -> list[str]:
        """Start a job for each VM; returns their ids.

        Named VMs: all or none. Chosen by tag or all: those that are being backed up are left out.
        Raises NotFound, Conflict, Overloaded, InvalidRequest.
        """
        if not choice.vms and not choice.all and not choice.tag:
            raise InvalidRequest("no VM is named", next_step="name VMs, a tag, or all")
        target = self._registry.target(order.target)
        direct = self._inventory.is_direct(asked=order.direct)
        side = self._inventory.side(direct=direct)
        chosen = self._chosen(side, choice)
        if order.gateway:
            self._registry.find(PeerKind.ARRAY, order.gateway)
        order = replace(order, target=target.name, direct=direct)
        jobs = [self._backup_of(vm, order) for vm in chosen.values()]
        if choice.vms:
            self._engine.submit(jobs)
            return [job.job_id for job in jobs]
        return self._submit_free(jobs)

    def _chosen(self, side: VmSide, choice: Choice) -> dict[str, Vm]:
        if choice.vms:
            found = [side.find(vm).vm for vm in choice.vms[: VMS_MAX + 1]]
        else:
            key, equals, value = choice.tag.partition("=")
            if choice.tag and (not key or not equals):
                raise InvalidRequest(f"{choice.tag[:80]!r} is no tag", next_step="write key=value")
            found = [vm for vm in side.vms() if not choice.tag or (key, value) in vm.config.tags]
        if not found:
            which = f"no VM has the tag {choice.tag}" if choice.tag else "there is no VM"
            raise NotFound(which, subject=choice.tag or "VMs", next_step="list the VMs")
        if len(found) > VMS_MAX:
            raise InvalidRequest(f"one request starts at most {VMS_MAX} backups")
        return {vm.vm_id: vm for vm in found}

    def _submit_free(self, jobs: list[Job]) -> list[str]:
        busy: ArrayliftError | None = None
        started: list[str] = []
        for job in jobs:
            try:
                self._engine.submit([job])
                started.append(job.job_id)
            except Conflict as error:
                busy = error
        if not started:
            assert busy is not None, "there was a VM"
            raise busy
        return started

    def _backup_of(self, vm: Vm, order: BackupOrder) -> Job:
        return Job(
            job_id=random_id(),
            kind=JobKind.BACKUP,
            state=JobState.QUEUED,
            vm_id=vm.vm_id,
            vm_name=vm.config.name,
            created_at_ns=self._clock.wall_ns(),
            backup=order,
        )

    def start_of_policy(self, policy: Policy, vm: Vm, job_id: str) -> None:
        """Start the backup of one VM that a policy's run means; started before, it is no error.

        Raises NotFound (target), Conflict (it is being backed up), Overloaded.
        """
        with contextlib.suppress(NotFound):
            self._engine.view(job_id)
            return
        target = self._registry.target(policy.target)
        full = policy.change_source is ChangeSource.FULL_READ or self._full_is_due(policy, vm, target.name)
        order = BackupOrder(
            target=target.name,
            full=full,
            direct=self._inventory.is_direct(asked=False),
            level_min=policy.level_min,
            exclude_disks=excluded_disks(policy, vm),
            change_source=policy.change_source,
            policy=policy.name,
            bytes_per_second_max=policy.bytes_per_second_max,
            retries_max=policy.retries_max,
        )
        self._engine.submit([replace(self._backup_of(vm, order), job_id=job_id)])

    def _full_is_due(self, policy: Policy, vm: Vm, target: str) -> bool:
        """Everything is to be read again: the last backup that did so is too old, or there is none."""
        if not policy.full_every_days:
            return False
        limit_ns = self._clock.wall_ns() - policy.full_every_days * 86_400 * 10**9
        return not self._backups.index.was_read_whole(vm.vm_id, target=target, since_ns=limit_ns)

    def start_restore(self, order: RestoreOrder) -> str:
        """Start a restore; returns the job's id. Raises NotFound, AlreadyExists, Conflict, WrongState,
        InvalidRequest, Overloaded."""
        direct = self._inventory.is_direct(asked=order.direct)
        side = self._inventory.side(direct=direct)
        if order.stop and not order.in_place:
            raise InvalidRequest(
                "only a restore in place stops a VM", next_step="restore in place, or leave it"
            )
        with self._backups.reading(order.backup_id) as backup:
            self._registry.target(backup.target)
            _check_disks(order, backup)
            if order.in_place:
                name = self._in_place(order, backup, side)
            elif order.disks:
                name = self._disks(order, backup, side)
            else:
                name = self._anew(order, backup, side)
            job = Job(
                job_id=random_id(),
                kind=JobKind.RESTORE,
                state=JobState.QUEUED,
                vm_id=backup.vm_id,
                vm_name=name,
                created_at_ns=self._clock.wall_ns(),
                restore=replace(order, as_name="" if order.disks else name, direct=direct),
            )
            self._engine.submit([job])
        return job.job_id

    def start_file_restore(self, backup_id: str, files: FileOrder, *, vm: str, direct: bool) -> str:
        """Start a restore of files into a VM, empty: the backup's own; returns the job's id.

        Raises NotFound, WrongState (it does not run), Overloaded.
        """
        direct = self._inventory.is_direct(asked=direct)
        side = self._inventory.side(direct=direct)
        with self._backups.reading(backup_id) as backup:
            found = self._inventory.look(side, side.find(vm or backup.vm_id).vm.vm_id).vm
            if not files.on_disk and found.power is not PowerState.ON:
                raise WrongState(
                    f"VM {found.config.name} does not run",
                    subject=f"VM {found.config.name}",
                    next_step="start it, or restore the files on a disk",
                )
            job = Job(
                job_id=random_id(),
                kind=JobKind.RESTORE,
                state=JobState.QUEUED,
                vm_id=found.vm_id,
                vm_name=found.config.name,
                created_at_ns=self._clock.wall_ns(),
                restore=RestoreOrder(
                    *(backup_id, "", "", ""), start=False, direct=direct, keep_identity=False, files=files
                ),
            )
            self._engine.submit([job])
        return job.job_id

    def _anew(self, order: RestoreOrder, backup: Backup, side: VmSide) -> str:
        """The name of the VM to be made."""
        name = check_name(order.as_name or f"{backup.vm_name[:200]}-restored", "VM name")
        if order.array:
            self._registry.find(PeerKind.ARRAY, order.array)
        check_name_is_free(side, name)
        return name

    def _disks(self, order: RestoreOrder, backup: Backup, side: VmSide) -> str:
        """The name of the VM that the disks are of. No VM is made."""
        if order.as_name or order.host or order.keep_identity or order.start or order.edits:
            raise InvalidRequest(
                "single disks become volumes, and no VM is made of them",
                next_step="give no name, host, identity or attributes of a VM; or restore all disks",
            )
        if order.array:
            self._registry.find(PeerKind.ARRAY, order.array)
        if order.attach:
            side.find(order.attach)
        return backup.vm_name

    def _in_place(self, order: RestoreOrder, backup: Backup, side: VmSide) -> str:
        """The name of the VM that it is a backup of, as it is called now."""
        if order.as_name or order.host or order.array or order.keep_identity or order.edits:
            raise InvalidRequest(
                "a restore in place changes what is on the VM's disks, and nothing else of it",
                next_step="give no name, host, array, identity or attributes; or restore it as a new VM",
            )
        vm = self._inventory.look(side, backup.vm_id).vm
        if vm.power is not PowerState.OFF and not order.stop:
            raise still_runs(vm)
        matched(backup, vm, order.disks)
        return vm.config.name


def _check_disks(order: RestoreOrder, backup: Backup) -> None:
    """Raise unless the disks that are named are there, and the rest of the order goes with them."""
    names = [disk.disk_name for disk in backup.disks]
    for name in order.disks:
        if name not in names:
            raise NotFound(
                f"backup {backup.backup_id} has no disk {name}",
                subject=f"disk {name}",
                next_step=f"name one of {', '.join(names)}",
            )
    if len(set(order.disks)) != len(order.disks):
        raise InvalidRequest("a disk is named twice", next_step="name each once")
    if (order.volume or order.attach) and (order.in_place or not order.disks):
        raise InvalidRequest(
            "only single disks become volumes of a name, or of a VM", next_step="name the disks"
        )
    if order.volume and len(order.disks) > 1:
        raise InvalidRequest("one volume cannot hold several disks", next_step="name one disk, or no volume")
