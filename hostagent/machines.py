"""The life of VMs: made, started, stopped, given disks, deleted.

Invariants:
  H1 a durable MAKING record names the volumes before the first is made; what a crash or a failure
     leaves is deleted, and never a volume that was there before.
  H2 a volume belongs to one VM of this host, a name to one VM.
  H3 what is answered is durable; ``revision`` grows with each change.
Lock order: VM, then names. Callers: the edge, any thread; ``reap`` on the reaper's thread.
Failpoints: ``vm.making``, ``vm.made``, ``vm.deleting``; and those of arraylift.durable under ``vm``.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from dataclasses import replace

from arraylift.clock import Clock
from arraylift.errors import (
    AlreadyExists,
    InvalidRequest,
    NotFound,
    OutOfSpace,
    Overloaded,
    PeerUnavailable,
    WrongState,
)
from arraylift.failpoints import FAILPOINTS
from arraylift.ids import VmId
from arraylift.logs import get_logger
from arraylift.outcome import attempt
from arraylift.vm.types import GRACE_SECONDS, GRACE_SECONDS_MAX, Disk, VmConfig
from hostagent.driver import Driver
from hostagent.firmware_store import unpack_variables
from hostagent.locks import KeyedLocks
from hostagent.vm_rules import check_config, check_disk, complete_config, request_digest
from hostagent.vm_store import VmStore
from hostagent.vm_types import VMS_MAX, VmRecord, VmState
from hostagent.volumes import VolumeFacts, Volumes

SETTLE_SECONDS = 5.0
"""How long after a failed call an array that answers again may still make a volume."""

RETRY_SECONDS = 3.0

_UNTOLD = (VmState.MAKING, VmState.EXPECTED)

# After these an array has done nothing, and nothing is on its way.
_REFUSED = (AlreadyExists, InvalidRequest, NotFound, OutOfSpace, Overloaded, WrongState)

_log = get_logger("machines")


def told_of(vm: VmRecord) -> VmRecord:
    """Return the VM, or raise: nobody was told of one that is being made, or still has to come."""
    if vm.state in _UNTOLD:
        raise NotFound(f"there is no VM {vm.vm_id}", subject=vm.subject)
    return vm


def usable(vm: VmRecord) -> VmRecord:
    """Return a VM that may be started, changed and captured, or raise."""
    told_of(vm)
    if vm.state is VmState.DELETING:
        raise WrongState(
            f"{vm.subject} is being deleted", subject=vm.subject, next_step="call DeleteVm again"
        )
    if vm.move is not None:
        raise PeerUnavailable(
            f"{vm.subject} is being moved to another host",
            subject=vm.subject,
            next_step="retry in a few seconds, through the virtual center, which knows where it is then",
        )
    return vm


class Machines:
    """All VMs of this host."""

    def __init__(
        self,
        store: VmStore,
        driver: Driver,
        volumes: Volumes,
        locks: KeyedLocks,
        *,
        clock: Clock,
        changed: Callable[[], None],
    ) -> None:
        """Take over what a process before this one left: running guests run on, thawed."""
        self._store, self._driver, self._volumes, self._locks = store.vms, driver, volumes, locks
        self._firmware, self._ended = store.firmware, store.ended
        self._clock, self._changed = clock, changed
        self._names = threading.Lock()
        self._making: set[VmId] = set()
        self._settled: dict[VmId, float] = {}
        self._retry = 0.0
        for vm in self._store.all():
            if vm.state is VmState.ON:
                driver.resume(vm)
            elif vm.state is VmState.MAKING:
                self._unsettle(vm)
        known = self._store.all()
        driver.sweep(running=[vm.vm_id for vm in known if vm.has_vmm], known=[vm.vm_id for vm in known])

    # -- looks ----------------------------------------------------------------------------------

    def get(self, vm_id: VmId) -> VmRecord:
        """Raises NotFound."""
        return told_of(self._store.get(vm_id))

    def get_named(self, name: str) -> VmRecord:
        """Raises NotFound."""
        for vm in self.listed():
            if vm.config.name == name:
                return vm
        raise NotFound(f"there is no VM {name!r} on this host", subject=f"VM {name}")

    def listed(self) -> list[VmRecord]:
        """All VMs, by name."""
        told = (vm for vm in self._store.all() if vm.state not in _UNTOLD)
        return sorted(told, key=lambda vm: vm.config.name)

    # -- making ---------------------------------------------------------------------------------

    def create(self, vm_id: VmId, config: VmConfig, *, firmware_variables: bytes = b"") -> VmRecord:
        """Make a VM with its volumes; the same request again returns it.

        Raises InvalidRequest, AlreadyExists, NotFound (volume), Overloaded, OutOfSpace, PeerUnavailable.
        """
        check_config(config)
        unpack_variables(firmware_variables)
        digest = request_digest(config, firmware_variables)
        with self._locks.hold(vm_id):
            known = self._store.find(vm_id)
            if known is not None and known.state is VmState.MAKING:
                self._undo(known)
                known = self._store.find(vm_id)
                if known is not None:
                    raise PeerUnavailable(
                        f"what is left of {known.subject} is still being removed",
                        subject=known.subject,
                        next_step=f"retry in {SETTLE_SECONDS:.0f} seconds",
                    )
            if known is not None:
                if known.request != digest:
                    raise AlreadyExists(
                        f"VM {vm_id} was made by another request",
                        subject=known.subject,
                        next_step="draw a new id",
                    )
                return usable(known)
            made = tuple(disk.name for disk in config.disks if not disk.volume_name)
            vm = VmRecord(
                vm_id, complete_config(config, secrets.token_bytes), VmState.MAKING, 0, digest, made
            )
            self._reserve(vm)
            try:
                FAILPOINTS.hit("vm.making")
                self._firmware.put(vm_id, firmware_variables)
                disks = tuple(self._ready_disk(vm, disk) for disk in vm.config.disks)
                vm = replace(vm, config=replace(vm.config, disks=disks))
                FAILPOINTS.hit("vm.made")
                vm = self._put(vm, VmState.OFF)
            except BaseException as failure:
                if not isinstance(failure, _REFUSED):
                    self._unsettle(vm)
                _, error = attempt(lambda: self._undo(vm), "undo of a VM")
                if error is not None:
                    _log.warning("vm_undo_waits", vm=vm_id, error=str(error))
                raise
            finally:
                with self._names:
                    self._making.discard(vm_id)
        _log.info("vm_made", vm=vm_id, name=vm.config.name, disks=len(vm.config.disks))
        return vm

    def _reserve(self, vm: VmRecord) -> None:
        """Take name and volumes, durably (H1, H2). Raises AlreadyExists, Overloaded."""
        with self._names:
            others = [
                one
                for one in self._store.all()
                if one.vm_id != vm.vm_id and (one.state is not VmState.MAKING or one.vm_id in self._making)
            ]
            if len(others) >= VMS_MAX:
                raise Overloaded(f"this host has its {VMS_MAX} VMs", next_step="use another host")
            for one in others:
                if one.config.name == vm.config.name:
                    raise AlreadyExists(
                        f"this host has a {one.subject} already",
                        subject=one.subject,
                        next_step="choose another name",
                    )
                for disk in vm.config.disks:
                    _refuse_shared(one, disk)
            self._store.put(vm)
            if vm.state is VmState.MAKING:
                self._making.add(vm.vm_id)

    def keep_place(self, vm: VmRecord) -> None:
        """Make the record of a VM that is to come. Under its lock.

        Raises AlreadyExists (name, volume), NotFound (volume), Overloaded, PeerUnavailable.
        """
        assert vm.state is VmState.EXPECTED, "others are made by ``create``"
        for disk in vm.config.disks:
            self._volume(disk)
        self._reserve(vm)

    def adopt(self, vm: VmRecord) -> VmRecord:
        """Keep a guest that the VMM has, as it is now. Under its lock. Raises Overloaded.

        Another VM's name becomes one of its own, by its UUID.
        """
        with self._names:
            others = [one for one in self._store.all() if one.vm_id != vm.vm_id]
            known = self._store.find(vm.vm_id)
            if known is None and len(others) >= VMS_MAX:
                raise Overloaded(f"this host has its {VMS_MAX} VMs", next_step="use another host")
            if any(one.config.name == vm.config.name for one in others):
                name = f"{vm.config.name[:50]}-{vm.config.uuid}"
                vm = replace(vm, config=replace(vm.config, name=name))
            return vm if vm == known else self._put(vm, vm.state)

    def _ready_disk(self, vm: VmRecord, disk: Disk) -> Disk:
        if disk.name in vm.made_volumes:
            self._volumes.create(disk.array_address, disk.volume_name, disk.size_bytes)
            return disk
        return replace(disk, size_bytes=self._volume(disk).size_bytes)

    def _volume(self, disk: Disk) -> VolumeFacts:
        found = self._volumes.find(disk.array_address, disk.volume_name)
        if found is None:
            raise NotFound(
                f"array {disk.array} has no volume {disk.volume_name!r}", subject=f"volume {disk.volume_name}"
            )
        return found

    def _undo(self, vm: VmRecord) -> None:
        """Delete the volumes that were made for it, then its record (H1). Under the VM's lock."""
        settled = self._settled.get(vm.vm_id, 0.0) <= self._clock.monotonic()
        for disk in vm.config.disks:
            if disk.name in vm.made_volumes:
                self._volumes.delete(disk.array_address, disk.volume_name)
        if settled or not vm.made_volumes:
            self._store.remove(vm.vm_id)
            self._firmware.remove(vm.vm_id)
            self._settled.pop(vm.vm_id, None)
            _log.info("vm_undone", vm=vm.vm_id)

    def _unsettle(self, vm: VmRecord) -> None:
        self._settled[vm.vm_id] = self._clock.monotonic() + SETTLE_SECONDS

    # -- deletion -------------------------------------------------------------------------------

    def delete(self, vm_id: VmId, *, keep_volumes: bool, release_snapshots: Callable[[VmId], None]) -> None:
        """Delete a VM that is off and has no VM snapshots, with its volumes unless they are kept.

        Raises NotFound, WrongState, PeerUnavailable (an array; call again).
        """
        with self._locks.hold(vm_id):
            vm = self.get(vm_id)
            if vm.adopted:
                raise WrongState(
                    f"{vm.subject} belongs to the admin of this host, who made it",
                    subject=vm.subject,
                    next_step="undefine it where it was made, e.g. with virsh",
                )
            if vm.state is not VmState.DELETING:
                usable(vm)
                # Also one that only the VMM knows of: an admin may start what we defined.
                if vm.state is VmState.ON or self._driver.is_running(vm_id):
                    raise WrongState(f"{vm.subject} runs", subject=vm.subject, next_step="power it off first")
                release_snapshots(vm_id)
                if not keep_volumes:
                    self._check_deletable(vm)
                    vm = self._put(vm, VmState.DELETING)
                    FAILPOINTS.hit("vm.deleting")
            self._finish_delete(vm)

    def _check_deletable(self, vm: VmRecord) -> None:
        for disk in vm.config.disks:
            found = self._volumes.find(disk.array_address, disk.volume_name)
            if found is not None and found.snapshot_count:
                raise WrongState(
                    f"volume {disk.volume_name} of {vm.subject} has snapshots",
                    subject=vm.subject,
                    next_step="delete them first, or keep the volumes",
                )

    def _finish_delete(self, vm: VmRecord) -> None:
        self._driver.release(vm)
        if vm.state is VmState.DELETING:
            for disk in vm.config.disks:
                self._volumes.delete(disk.array_address, disk.volume_name)
        self.forget(vm)
        _log.info("vm_deleted", vm=vm.vm_id, name=vm.config.name)

    def forget(self, vm: VmRecord) -> None:
        """Keep nothing of a VM whose disks no array serves to this host any more. Under its lock."""
        self._ended.add(vm.came_by)  # what brought it here must not bring it again
        self._store.remove(vm.vm_id)
        self._changed()
        # After the record: what a crash leaves of these is swept at start.
        self._driver.forget(vm)
        self._firmware.remove(vm.vm_id)

    def reap(self) -> None:
        """Finish what a failure or a crash has left; on the reaper's thread."""
        now = self._clock.monotonic()
        if now < self._retry:
            return
        for vm in self._store.all():
            if vm.state in {VmState.MAKING, VmState.DELETING} and vm.vm_id not in self._making:
                _, error = attempt(lambda vm_id=vm.vm_id: self._reap_one(vm_id), "removal of a VM")  # type: ignore[misc]
                if error is not None:
                    _log.warning("vm_removal_waits", vm=vm.vm_id, error=str(error))
        self._retry = self._clock.monotonic() + RETRY_SECONDS

    def _reap_one(self, vm_id: VmId) -> None:
        with self._locks.hold(vm_id, seconds=0.1):
            vm = self._store.find(vm_id)
            if vm is not None and vm.state is VmState.MAKING:
                self._undo(vm)
            elif vm is not None and vm.state is VmState.DELETING:
                self._finish_delete(vm)

    # -- power ----------------------------------------------------------------------------------

    def power_on(self, vm_id: VmId) -> VmRecord:
        """Raises NotFound, WrongState (a disk is missing), PeerUnavailable."""
        with self._locks.hold(vm_id):
            vm = usable(self._store.get(vm_id))
            if vm.state is VmState.ON and self._driver.is_running(vm_id):
                return vm
            for disk in vm.config.disks:
                if disk.foreign:
                    continue  # the VMM looks itself
                if self._volumes.find(disk.array_address, disk.volume_name) is None:
                    raise WrongState(
                        f"disk {disk.name} of {vm.subject} is missing: array {disk.array} has no volume "
                        f"{disk.volume_name!r}",
                        subject=vm.subject,
                        next_step="restore the volume, or detach the disk",
                    )
            self._driver.start(vm)
            try:
                return self._put(vm, VmState.ON)
            except BaseException:
                self._driver.stop(vm, grace_seconds=0, force=True)
                raise

    def power_off(self, vm_id: VmId, *, grace_seconds: int = 0, force: bool = False) -> VmRecord:
        """Raises NotFound, InvalidRequest, PeerUnavailable (a disk has still to be written)."""
        if grace_seconds > GRACE_SECONDS_MAX:
            raise InvalidRequest(f"the grace is at most {GRACE_SECONDS_MAX} s")
        with self._locks.hold(vm_id):
            vm = usable(self._store.get(vm_id))
            if vm.state is not VmState.ON and not self._driver.is_running(vm_id):
                return vm
            self._driver.stop(vm, grace_seconds=grace_seconds or GRACE_SECONDS, force=force)
            return self._put(vm, VmState.OFF)

    def notice(self) -> None:
        """Show as OFF what runs no more: its guest shut down, or its VMM died. On the reaper's thread."""
        for vm in self._store.all():
            if self._ended_by_itself(vm):
                _, error = attempt(lambda vm_id=vm.vm_id: self._notice_one(vm_id), "end of a VM")  # type: ignore[misc]
                if error is not None:
                    _log.warning("vm_end_waits", vm=vm.vm_id, error=str(error))

    def _notice_one(self, vm_id: VmId) -> None:
        with self._locks.hold(vm_id, seconds=0.1):
            vm = self._store.find(vm_id)
            if vm is not None and self._ended_by_itself(vm):
                self._driver.stop(vm, grace_seconds=0, force=True)
                self._put(vm, VmState.OFF)
                _log.warning("vm_ended_by_itself", vm=vm_id, name=vm.config.name)

    def _ended_by_itself(self, vm: VmRecord) -> bool:
        # What a migration left of a guest is the migration's: it alone knows whether it runs elsewhere.
        # An adopted guest is its admin's, who may be starting it again: adoption looks, and stops nothing.
        ours = vm.state is VmState.ON and vm.move is None and not vm.adopted
        return ours and not self._driver.is_running(vm.vm_id)

    # -- disks ----------------------------------------------------------------------------------

    def attach(self, vm_id: VmId, disk: Disk) -> VmRecord:
        """Add an existing volume as the last disk; idempotent.

        Raises NotFound, AlreadyExists (name; the volume is another VM's), InvalidRequest, PeerUnavailable.
        """
        check_disk(disk)
        if not disk.volume_name:
            raise InvalidRequest("name the volume to attach", next_step="make it on the array first")
        with self._locks.hold(vm_id):
            vm = usable(self._store.get(vm_id))
            for known in vm.config.disks:
                if known.name == disk.name or _same_volume(known, disk):
                    if known.name == disk.name and _same_volume(known, disk):
                        self._driver.attach(vm, known)  # an attempt before this one may have failed there
                        return vm
                    raise AlreadyExists(
                        f"{vm.subject} has disk {known.name} on volume {known.volume_name}",
                        subject=vm.subject,
                    )
            disk = replace(disk, size_bytes=self._volume(disk).size_bytes)
            config = replace(vm.config, disks=(*vm.config.disks, disk))
            check_config(replace(config, disks=tuple(one for one in config.disks if not one.foreign)))
            with self._names:
                for one in self._store.all():
                    if one.vm_id != vm_id:
                        _refuse_shared(one, disk)
                vm = self._put(replace(vm, config=config), vm.state)
            self._driver.attach(vm, disk)
            return vm

    def detach(self, vm_id: VmId, disk_name: str) -> VmRecord:
        """Take a disk away; its volume stays. Idempotent. Raises NotFound (VM)."""
        with self._locks.hold(vm_id):
            vm = usable(self._store.get(vm_id))
            gone = [disk for disk in vm.config.disks if disk.name == disk_name]
            if not gone:
                return vm
            self._driver.detach(vm, gone[0])
            disks = tuple(disk for disk in vm.config.disks if disk.name != disk_name)
            try:
                return self._put(replace(vm, config=replace(vm.config, disks=disks)), vm.state)
            except BaseException:
                self._driver.attach(vm, gone[0])
                raise

    def tell(self) -> None:
        """Something changed that the virtual center should hear of."""
        self._changed()

    def _put(self, vm: VmRecord, state: VmState) -> VmRecord:
        """Make a change durable (H3)."""
        vm = replace(vm, state=state, revision=vm.revision + 1)
        self._store.put(vm)
        self._changed()
        return vm


def _same_volume(one: Disk, other: Disk) -> bool:
    if one.foreign or other.foreign:
        return False
    # Either may be wrong about the other's array: a name and an address each tell enough.
    same_array = one.array == other.array or one.array_address == other.array_address
    return same_array and one.volume_name == other.volume_name


def _refuse_shared(owner: VmRecord, disk: Disk) -> None:
    if any(_same_volume(known, disk) for known in owner.config.disks):
        raise AlreadyExists(
            f"volume {disk.volume_name!r} is a disk of {owner.subject}",
            subject=f"volume {disk.volume_name}",
            next_step="detach it there first, or clone it",
        )
