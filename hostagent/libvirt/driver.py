"""The libvirt driver: guests that the host's admin made, and VMs of ours beside them.

Invariants: those of driver.py, and
  B1 for a VM of ours only a domain that bears its id is touched: an admin's guest never is, whatever its
     name or UUID.
  B2 whether a guest runs is libvirt's word of this moment; where libvirt says nothing, nothing is assumed.
Callers: as driver.py says; ``reap`` on a thread of its own.
Why: docs/decisions/0096-who-owns-an-adopted-guest.md
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Collection

from arraylift.durable import Files
from arraylift.errors import AlreadyExists, ArrayliftError, NotFound, WrongState
from arraylift.ids import VmId
from arraylift.logs import get_logger
from arraylift.vm.types import ConsistencyLevel, Disk
from hostagent.guest_agent.channel import AgentChannel
from hostagent.guest_agent.operations import GuestOperations
from hostagent.libvirt.agent_channel import LibvirtAgentChannel
from hostagent.libvirt.domain_build import ServedDisk, detached_xml, disk_xml, domain_xml, target_name
from hostagent.libvirt.domain_xml import DomainFacts, facts
from hostagent.libvirt.foreign import LibvirtForeignDisks
from hostagent.libvirt.hypervisor import Hypervisor
from hostagent.libvirt.off_exports import OffExports
from hostagent.libvirt.variables import Variables
from hostagent.vm_types import GuestFile, VmRecord
from hostagent.volumes import Volumes

POLL_SECONDS = 0.2
DETACH_SECONDS = 15.0

_log = get_logger("libvirt_driver")


class LibvirtDriver:
    """Driver over one Hypervisor. ``record_of``: what is kept of a VM."""

    name = "libvirt"
    tracker = None
    mover = None

    def __init__(
        self,
        hypervisor: Hypervisor,
        foreign: LibvirtForeignDisks,
        off: OffExports,
        volumes: Volumes,
        variables: Variables,
        *,
        host: str,
        uri: str,
        tls_name: Callable[[str], str],
        record_of: Callable[[VmId], VmRecord],
        files: Files,
    ) -> None:
        self._hypervisor, self.foreign, self._off, self._volumes = hypervisor, foreign, off, volumes
        self._variables, self._host, self._uri = variables, host, uri
        self._tls_name, self._record_of = tls_name, record_of
        self._operations = GuestOperations(self._channel, serial_of=self._serial, files=files)

    # -- power ----------------------------------------------------------------------------------

    def resume(self, vm: VmRecord) -> None:
        self._operations.resume(vm)

    def sweep(self, *, running: Collection[VmId], known: Collection[VmId]) -> None:  # noqa: ARG002
        self._off.sweep(list(known))

    def start(self, vm: VmRecord) -> None:
        if self._is_active(vm):
            return
        if self._off.holds(vm.vm_id):
            raise WrongState(
                f"a backup reads the disks of {vm.subject} as they are",
                subject=vm.subject,
                next_step="wait for it, or delete its VM snapshot",
            )
        if not vm.adopted:
            self._define(vm)
        else:
            for disk in vm.config.disks:
                if not disk.foreign:
                    self._serve(vm, disk, "")
        self._hypervisor.start(vm.config.uuid)

    def stop(self, vm: VmRecord, *, grace_seconds: float, force: bool) -> None:
        uuid = vm.config.uuid
        if self._is_active(vm):
            if not force:
                with contextlib.suppress(ArrayliftError):  # what cannot be asked is forced
                    self._hypervisor.shut_down(uuid)
                until = time.monotonic() + grace_seconds
                while self._hypervisor.is_active(uuid) and time.monotonic() < until:
                    time.sleep(POLL_SECONDS)
            self._hypervisor.destroy(uuid)
        self._operations.stopped(vm.vm_id)
        if not vm.adopted:
            with contextlib.suppress(ArrayliftError):  # `release` comes again before the VM goes
                self.release(vm)

    def is_running(self, vm_id: VmId) -> bool:
        try:
            return self._is_active(self._record_of(vm_id))  # B2
        except NotFound:
            return False

    def release(self, vm: VmRecord) -> None:
        for disk in vm.config.disks:
            if not disk.foreign:
                self._volumes.delete_export(disk.array_address, self.export_of(vm.vm_id, disk))

    def forget(self, vm: VmRecord) -> None:
        if not vm.adopted and self._its_domain(vm):
            self._hypervisor.undefine(vm.config.uuid)
        self._variables.forget(vm.vm_id)

    # -- freeze and files -----------------------------------------------------------------------

    def freeze(self, vm: VmRecord, *, timeout_seconds: float) -> ConsistencyLevel:
        return self._operations.freeze(vm, timeout_seconds=timeout_seconds)

    def thaw(self, vm_id: VmId) -> None:
        self._operations.thaw(vm_id)

    def kept_level(self, vm: VmRecord, reached: ConsistencyLevel) -> ConsistencyLevel:
        return self._operations.kept_level(vm, reached)

    def put_file(self, vm: VmRecord, disk: Disk, path: str, *, source: str, mode: int) -> GuestFile:
        return self._operations.put_file(vm, disk, path, source=source, mode=mode)

    def get_file(self, vm: VmRecord, disk: Disk, path: str, *, into: str) -> GuestFile:
        return self._operations.get_file(vm, disk, path, into=into)

    def list_files(self, vm: VmRecord, disk: Disk, path: str) -> list[GuestFile]:
        return self._operations.list_files(vm, disk, path)

    def remove_file(self, vm: VmRecord, disk: Disk, path: str) -> None:
        self._operations.remove_file(vm, disk, path)

    # -- disks ----------------------------------------------------------------------------------

    def attach(self, vm: VmRecord, disk: Disk) -> None:
        domain = self._its_domain(vm)
        if domain is None or self._target_of(vm, disk, domain):
            return  # a VM of ours without a domain gets it when it starts
        taken = set(domain.targets)
        free = next(name for place in range(len(taken) + 1) if (name := target_name(place)) not in taken)
        self._hypervisor.attach(vm.config.uuid, disk_xml(self._serve(vm, disk, free)))

    def detach(self, vm: VmRecord, disk: Disk) -> None:
        domain = self._its_domain(vm)
        target = "" if domain is None else self._target_of(vm, disk, domain)
        if disk.foreign:
            raise WrongState(
                f"disk {disk.name} of {vm.subject} is its admin's",
                subject=vm.subject,
                next_step="detach it with virsh",
            )
        if target:
            self._hypervisor.detach(vm.config.uuid, detached_xml(target))
            until = time.monotonic() + DETACH_SECONDS
            while self._target_of(vm, disk, self._facts(vm)):
                if time.monotonic() > until:
                    raise WrongState(
                        f"the guest of {vm.subject} does not let go of disk {disk.name}",
                        subject=vm.subject,
                        next_step="unmount it in the guest, then repeat",
                    )
                time.sleep(POLL_SECONDS)
        self._volumes.delete_export(disk.array_address, self.export_of(vm.vm_id, disk))

    def firmware_variables(self, vm: VmRecord) -> bytes:
        domain = self._its_domain(vm)
        return b"" if domain is None else self._variables.read(domain.nvram)

    def reap(self) -> None:
        """End exports that would break their guests."""
        self.foreign.reap()

    # -- inside ---------------------------------------------------------------------------------

    def _define(self, vm: VmRecord) -> None:
        """Write the domain from the record (B1)."""
        if self._its_domain(vm) is None:
            with contextlib.suppress(NotFound):
                found = self._facts(vm)
                raise AlreadyExists(
                    f"libvirt has another guest of the UUID of {vm.subject}: {found.name}",
                    subject=vm.subject,
                    next_step="restore it with a new UUID",
                )
        disks = [self._serve(vm, disk, target_name(place)) for place, disk in enumerate(vm.config.disks)]
        nvram = self._variables.place(vm) if vm.config.firmware == "uefi" else ""
        self._hypervisor.define(
            domain_xml(
                vm.vm_id, vm.config, disks, kind="kvm" if self._hypervisor.has_kvm() else "qemu", nvram=nvram
            )
        )

    def _its_domain(self, vm: VmRecord) -> DomainFacts | None:
        """None: there is none, or it is somebody else's (B1)."""
        try:
            found = self._facts(vm)
        except NotFound:
            return None
        return found if found.made_as == ("" if vm.adopted else vm.vm_id) else None

    def _is_active(self, vm: VmRecord) -> bool:
        if not vm.adopted and self._its_domain(vm) is None:
            return False
        return self._hypervisor.is_active(vm.config.uuid)

    def _facts(self, vm: VmRecord) -> DomainFacts:
        return facts(self._hypervisor.domain(vm.config.uuid).xml, what=vm.subject)

    def _target_of(self, vm: VmRecord, disk: Disk, domain: DomainFacts) -> str:
        export = self.export_of(vm.vm_id, disk)
        return next((one.target for one in domain.disks if one.export == export), "")

    def _serve(self, vm: VmRecord, disk: Disk, target: str) -> ServedDisk:
        export = self.export_of(vm.vm_id, disk)
        uri = self._volumes.create_export(disk.array_address, export, disk.volume_name)
        host = "localhost" if uri.socket_path else uri.host
        return ServedDisk(target, _serial_number(disk), uri, self._tls_name(host))

    def export_of(self, vm_id: VmId, disk: Disk) -> str:
        """Under which name an array serves a disk to a VM of this host."""
        digest = hashlib.sha256(disk.volume_name.encode()).hexdigest()[:12]
        return f"vm.{self._host}.{vm_id}.{digest}"

    def _channel(self, vm_id: VmId) -> AgentChannel:
        vm = self._record_of(vm_id)
        if not self._is_active(vm):
            raise WrongState(f"{vm.subject} is off", subject=vm.subject, next_step="power it on first")
        return LibvirtAgentChannel(self._hypervisor, self._uri, vm.config.uuid)

    def _serial(self, vm: VmRecord, disk: Disk) -> str:
        if not disk.foreign:
            return _serial_number(disk)
        return next((one.serial for one in self._facts(vm).disks if one.target == disk.name), "")


def _serial_number(disk: Disk) -> str:
    """How a guest sees a disk of ours: virtio has room for 20 characters."""
    return hashlib.sha256(disk.volume_name.encode()).hexdigest()[:20]
