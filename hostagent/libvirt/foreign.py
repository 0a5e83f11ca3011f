"""The disks of an adopted guest, exported: by libvirt's pull-mode backup, or by qemu-nbd while it is off.

Invariants: those of hostagent/foreign_disks.py, and
  F1 a bitmap is told of only if its checkpoint is one that this host made of that very disk (``backup_xml``
     W1), libvirt still has it, and no snapshot lies inside the guest's images: going back to one is not
     recorded by any bitmap. What libvirt refuses is exported without.
  F2 at most STATES_MAX checkpoints of ours a guest: before a new one the oldest go that nobody asks about.
     The admin's own checkpoints are never touched.
  F3 no export outlives the room for what the guest overwrites (``exports`` E1).
  F4 an export whose VM snapshot this host does not know any more is ended before the next one begins.
Callers: as foreign_disks.py says; ``reap`` on the reaper's thread.
Why: docs/decisions/0095-foreign-disks-by-pull-mode.md
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from arraylift.clock import Clock
from arraylift.errors import ArrayliftError, DeadlineExceeded, NotFound, WrongState
from arraylift.ids import SnapshotId, SourceState, VmId, VmSnapshotId
from arraylift.logs import get_logger
from arraylift.outcome import attempt
from arraylift.vm.types import DirtyBitmap, Disk, DiskSnapshot, ForeignSource
from hostagent.foreign_disks import STATES_MAX
from hostagent.libvirt import backup_xml
from hostagent.libvirt.backup_xml import BITMAP, Endpoint, ExportedDisk
from hostagent.libvirt.domain_xml import DomainDisk, facts
from hostagent.libvirt.exports import ExportPlaces
from hostagent.libvirt.hypervisor import Hypervisor
from hostagent.libvirt.off_exports import OffExports
from hostagent.vm_types import VmRecord

END_SECONDS, POLL_SECONDS = 8.0, 0.02

_log = get_logger("foreign_disks")


@dataclass(frozen=True, slots=True)
class _Planned:
    source: DomainDisk
    size_bytes: int
    exported: ExportedDisk
    since: SourceState | None


@dataclass(frozen=True, slots=True)
class _Plan:
    """``endpoints``: one for a guest that runs, one a disk for one that is off."""

    uuid: str
    active: bool
    disks: tuple[_Planned, ...]
    endpoints: tuple[Endpoint, ...]
    targets: tuple[str, ...]


def uuid_of(vm_id: VmId) -> str:
    """An adopted guest's UUID is its VM id."""
    return f"{vm_id[:8]}-{vm_id[8:12]}-{vm_id[12:16]}-{vm_id[16:20]}-{vm_id[20:]}"


class LibvirtForeignDisks:
    """ForeignDisks over one Hypervisor."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        places: ExportPlaces,
        off: OffExports,
        *,
        clock: Clock,
        is_known: Callable[[VmSnapshotId], bool],
    ) -> None:
        """``is_known``: this host has a record of that VM snapshot."""
        self._hypervisor, self._places, self._off, self._clock = hypervisor, places, off, clock
        self._is_known = is_known
        self._lock = threading.Lock()
        self._plans: dict[VmSnapshotId, _Plan] = {}

    # -- beginning ------------------------------------------------------------------------------

    def prepare(
        self,
        vm: VmRecord,
        vm_snapshot_id: VmSnapshotId,
        disks: Sequence[Disk],
        since: Mapping[str, SourceState],
    ) -> None:
        uuid = vm.config.uuid
        domain = self._hypervisor.domain(uuid)
        found = facts(domain.xml, what=vm.subject)
        sources = {disk.target: disk for disk in found.disks}
        gone = [disk.name for disk in disks if disk.name not in sources]
        if gone:
            raise WrongState(
                f"{vm.subject} has no disk {gone[0]} any more",
                subject=vm.subject,
                next_step="repeat the backup",
            )
        self._places.check_room()
        if domain.active:
            self._refuse_another(vm)
        elif self._off.holds(vm.vm_id):
            raise _busy(vm)
        known = self._checkpoints(vm, domain.active, since)
        tracks = domain.active and self._hypervisor.internal_snapshots(uuid) == 0
        planned = []
        for disk in disks:
            source = sources[disk.name]
            asked = since.get(disk.name)
            checkpoint = None if asked is None else backup_xml.checkpoint_of(asked, uuid, disk.name)
            vouches = checkpoint is not None and disk.name in known.get(checkpoint, ())
            exported = ExportedDisk(
                target=disk.name,
                export=backup_xml.export_name(vm_snapshot_id, disk.name),
                scratch=self._places.scratch(vm.vm_id, vm_snapshot_id, disk.name),
                since=(checkpoint or "") if vouches else "",
                tracked=tracks and source.tracks,
            )
            if not domain.active and not source.path:
                raise WrongState(
                    f"disk {disk.name} of {vm.subject} can be read only while it runs: {source.where}",
                    subject=vm.subject,
                    next_step="start the guest, or leave the disk out",
                )
            size_bytes = self._hypervisor.block_bytes(uuid, disk.name)
            planned.append(_Planned(source, size_bytes, exported, asked if vouches else None))
        count = 1 if domain.active else len(planned)
        endpoints = tuple(
            self._places.endpoint(vm_snapshot_id, f"{index:x}" if index else "") for index in range(count)
        )
        with self._lock:
            self._plans[vm_snapshot_id] = _Plan(uuid, domain.active, tuple(planned), endpoints, found.targets)

    def begin(
        self,
        vm: VmRecord,
        vm_snapshot_id: VmSnapshotId,
        disks: Sequence[Disk],  # noqa: ARG002 - as prepared
        since: Mapping[str, SourceState],  # noqa: ARG002 - likewise
        *,
        timeout_seconds: float,
    ) -> tuple[DiskSnapshot, ...]:
        with self._lock:
            plan = self._plans.pop(vm_snapshot_id)
        until = self._clock.monotonic() + timeout_seconds
        if plan.active:
            plan = self._begun(vm, vm_snapshot_id, plan, until)
        else:
            plan = self._served(vm, vm_snapshot_id, plan, until)
        told = []
        for index, one in enumerate(plan.disks):
            endpoint = plan.endpoints[0 if plan.active else index]
            bitmap = _bitmap_name(plan, one)
            told.append(
                DiskSnapshot(
                    disk_name=one.exported.target,
                    array="",
                    array_address="",
                    volume_name="",
                    snapshot_id=SnapshotId(""),
                    size_bytes=one.size_bytes,
                    state=backup_xml.state_of(vm_snapshot_id, plan.uuid, one.exported.target),
                    foreign=ForeignSource(
                        endpoint.uri(one.exported.export),
                        DirtyBitmap(bitmap, one.since) if one.exported.since and one.since else None,
                    ),
                )
            )
        return tuple(told)

    def _begun(self, vm: VmRecord, vm_snapshot_id: VmSnapshotId, plan: _Plan, until: float) -> _Plan:
        """Of a guest that runs: with all that is planned, or with less where libvirt refuses (F1)."""
        steps = [plan]
        if any(one.exported.since for one in plan.disks):
            steps.append(_lessened(plan, tracked=True))
        if any(one.exported.tracked for one in plan.disks):
            steps.append(_lessened(plan, tracked=False))
        for step in steps:
            exported = [one.exported for one in step.disks]
            tracked = [one.target for one in exported if one.tracked]
            try:
                self._hypervisor.begin_backup(
                    plan.uuid,
                    backup_xml.backup_xml(plan.endpoints[0], exported),
                    backup_xml.checkpoint_xml(vm_snapshot_id, tracked, plan.targets),
                    seconds=_left(self._clock, until),
                )
                return step
            except WrongState as error:
                if step is steps[-1]:
                    raise
                _log.warning("foreign_export_lessened", vm=vm.vm_id, error=str(error))
        raise AssertionError("the last step returns or raises")

    def _served(self, vm: VmRecord, vm_snapshot_id: VmSnapshotId, plan: _Plan, until: float) -> _Plan:
        """Of a guest that is off. It cannot be started between two disks: the first one is locked."""
        served = []
        for one, endpoint in zip(plan.disks, plan.endpoints, strict=True):
            step = one
            while True:
                try:
                    self._off.begin(
                        vm.vm_id,
                        vm_snapshot_id,
                        export=step.exported.export,
                        endpoint=endpoint,
                        path=step.source.path,
                        image_format=step.source.format,
                        bitmap=step.exported.since,
                        seconds=_left(self._clock, until),
                    )
                    break
                except WrongState:
                    if not step.exported.since:
                        raise
                    step = replace(step, exported=replace(step.exported, since=""), since=None)
            served.append(step)
        return replace(plan, disks=tuple(served))

    # -- ending ---------------------------------------------------------------------------------

    def end(self, vm_id: VmId, vm_snapshot_id: VmSnapshotId, *, told: bool) -> None:
        with self._lock:
            self._plans.pop(vm_snapshot_id, None)
        self._off.end(vm_id, vm_snapshot_id)
        uuid = uuid_of(vm_id)
        try:
            if self._is_exported(uuid, vm_snapshot_id):
                self._hypervisor.end_backup(uuid)
                until = self._clock.monotonic() + END_SECONDS
                while self._is_exported(uuid, vm_snapshot_id):  # it is only told to end
                    if self._clock.monotonic() > until:
                        raise DeadlineExceeded("the exports do not end", subject=f"guest {uuid}")
                    time.sleep(POLL_SECONDS)
            if not told:
                self._hypervisor.delete_checkpoint(uuid, backup_xml.checkpoint_name(vm_snapshot_id))
        except NotFound:
            _log.info("foreign_guest_gone", vm=vm_id)
        self._places.clean(vm_id, vm_snapshot_id)

    def _is_exported(self, uuid: str, vm_snapshot_id: VmSnapshotId) -> bool:
        job = self._hypervisor.backup(uuid)
        return job is not None and backup_xml.backup_owner(job) == vm_snapshot_id

    def reap(self) -> None:
        """End exports that have no room any more (F3): their transfers fail, their guests go on."""
        for vm_id, vm_snapshot_id in self._places.crowded():
            _log.error("foreign_export_crowded", vm=vm_id, vm_snapshot=vm_snapshot_id)
            _, error = attempt(
                lambda vm_id=vm_id, snapshot=vm_snapshot_id: self.end(vm_id, snapshot, told=True),  # type: ignore[misc]
                "end of an export",
            )
            if error is not None:
                _log.error("foreign_export_stays", vm=vm_id, error=str(error))

    def distrust(self, uuid: str) -> None:
        """The guest went back to a snapshot: no bitmap of it has recorded that (F1)."""
        for name, _ in self._hypervisor.checkpoints(uuid):
            if backup_xml.checkpoint_owner(name) is not None:
                self._hypervisor.delete_checkpoint(uuid, name)

    # -- checkpoints ----------------------------------------------------------------------------

    def _checkpoints(
        self, vm: VmRecord, active: bool, since: Mapping[str, SourceState]
    ) -> dict[str, frozenset[str]]:
        """Ours that vouch, with their disks; room is made for one more (F2)."""
        uuid = vm.config.uuid
        ours = [
            (name, backup_xml.checkpointed(xml))
            for name, xml in self._hypervisor.checkpoints(uuid)
            if backup_xml.checkpoint_owner(name) is not None
        ]
        if self._hypervisor.internal_snapshots(uuid):
            self.distrust(uuid)
            return {}
        asked = {backup_xml.checkpoint_of(state, uuid, target) for target, state in since.items()}
        spare = [name for name, _ in ours if name not in asked]
        if active:
            for name in spare[: max(0, len(ours) - (STATES_MAX - 1))]:
                self._drop(vm, name)
        return dict(ours)

    def _drop(self, vm: VmRecord, name: str) -> None:
        try:
            self._hypervisor.delete_checkpoint(vm.config.uuid, name)
        except ArrayliftError as error:  # one bitmap more is no reason to have no backup
            _log.warning("checkpoint_stays", vm=vm.vm_id, checkpoint=name, error=str(error))

    def _refuse_another(self, vm: VmRecord) -> None:
        job = self._hypervisor.backup(vm.config.uuid)
        if job is None:
            return
        owner = backup_xml.backup_owner(job)
        if owner is None or self._is_known(owner):
            raise _busy(vm)
        _log.warning("lost_export_ended", vm=vm.vm_id, vm_snapshot=owner)  # F4
        self.end(vm.vm_id, owner, told=False)


def _busy(vm: VmRecord) -> WrongState:
    return WrongState(
        f"another backup reads the foreign disks of {vm.subject}",
        subject=vm.subject,
        next_step="wait for it, delete its VM snapshot, or end it with virsh domjobabort",
    )


def _lessened(plan: _Plan, *, tracked: bool) -> _Plan:
    """Without bitmaps, and without a new checkpoint unless ``tracked``."""
    disks = tuple(
        replace(
            one,
            exported=replace(one.exported, since="", tracked=one.exported.tracked and tracked),
            since=None,
        )
        for one in plan.disks
    )
    return replace(plan, disks=disks)


def _bitmap_name(plan: _Plan, one: _Planned) -> str:
    return BITMAP if plan.active else one.exported.since


def _left(clock: Clock, until: float) -> float:
    left = until - clock.monotonic()
    if left <= 0:
        raise DeadlineExceeded("the exports took too long")
    return left
