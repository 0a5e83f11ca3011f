"""The guests of a libvirt host that its admin made.

Invariants:
  I1 a guest that libvirt does not tell of whole (busy, hung, unreadable) is told of as it was last, or not
     yet.
Callers: adoption, on its own thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from arraylift.clock import Clock
from arraylift.errors import ArrayliftError
from arraylift.ids import VmId
from arraylift.logs import get_logger
from arraylift.vm.types import Disk
from hostagent.found_guests import FoundGuest
from hostagent.libvirt.domain_xml import DomainDisk, DomainFacts, facts, plain_name
from hostagent.libvirt.hypervisor import Domain, Hypervisor
from hostagent.vm_types import VmRecord

AGAIN_SECONDS = 30.0
"""How long a guest that did not answer is left alone."""

_log = get_logger("libvirt_inventory")


class LibvirtInventory:
    """FoundGuests. ``export_of``: under which name an array serves a disk to a VM of this host."""

    def __init__(
        self, hypervisor: Hypervisor, export_of: Callable[[VmId, Disk], str], *, clock: Clock
    ) -> None:
        self._hypervisor, self._export_of, self._clock = hypervisor, export_of, clock
        self._quiet_until: dict[str, float] = {}

    def watch(self, changed: Callable[[], None]) -> None:
        self._hypervisor.watch(changed)

    def found(self, known: Mapping[VmId, VmRecord]) -> list[FoundGuest]:
        guests: list[FoundGuest] = []
        for domain in sorted(self._hypervisor.domains(), key=lambda domain: domain.uuid):
            vm_id = VmId(domain.uuid.replace("-", ""))
            try:
                read = facts(domain.xml, what=f"guest {domain.name}")
                if read.made_as:
                    continue
                config = read.config(
                    plain_name(read.name) or read.uuid, self._disks(domain, read, known.get(vm_id))
                )
                guest = FoundGuest(vm_id, config, domain.active)
            except ArrayliftError as error:
                _log.warning("guest_unread", guest=domain.uuid, error=str(error))
                last = known.get(vm_id)
                if last is None:
                    continue
                guest = FoundGuest(vm_id, last.config, domain.active)  # I1
            guests.append(guest)
        return guests

    def _disks(self, domain: Domain, read: DomainFacts, known: VmRecord | None) -> tuple[Disk, ...]:
        vm_id = VmId(domain.uuid.replace("-", ""))
        kept = () if known is None else known.config.disks
        served = {self._export_of(vm_id, disk): disk for disk in kept if not disk.foreign}
        sizes = {(disk.name, disk.foreign): disk.size_bytes for disk in kept if disk.foreign}
        disks = []
        for one in read.disks:
            if one.export in served:
                disks.append(served[one.export])
            else:
                size_bytes = self._size(domain, one, sizes.get((one.target, one.where)))
                disks.append(Disk(one.target, "", "", "", size_bytes, one.where))
        return tuple(disks)

    def _size(self, domain: Domain, disk: DomainDisk, last: int | None) -> int:
        """A guest whose monitor hangs keeps the sizes it had; it is asked again AGAIN_SECONDS later."""
        now = self._clock.monotonic()
        if last is not None and self._quiet_until.get(domain.uuid, 0.0) > now:
            return last
        try:
            size_bytes = self._hypervisor.block_bytes(domain.uuid, disk.target)
        except ArrayliftError:
            self._quiet_until[domain.uuid] = now + AGAIN_SECONDS
            if last is None:
                raise
            return last
        self._quiet_until.pop(domain.uuid, None)
        return size_bytes
