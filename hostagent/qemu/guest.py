"""One VM's QEMU while this process runs: its process, its disks, its exports.

Invariants:
  Y1 an export of a disk that the guest has is never deleted; it is stale, durably, before it is.
  Y2 ``plug`` and ``unplug`` look before they act: each goes on where a crash or a failure has left it.
  Y3 what the VM should have (``vm``) and what QEMU has agree unless ``unsettled``; then ``settle`` makes
     them agree.
Callers: the driver, under ``lock``; ``running`` and ``monitor`` from any thread.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace

from arraylift.errors import DeadlineExceeded, PeerUnavailable
from arraylift.ids import VmId
from arraylift.logs import get_logger
from arraylift.outcome import attempt
from arraylift.vm.types import Disk
from hostagent.qemu.command_line import device_id, disk_device
from hostagent.qemu.exports import block_node, node_name, placed, serve
from hostagent.qemu.guest_folder import GuestFolder
from hostagent.qemu.monitor import Monitor, MonitorRefused
from hostagent.qemu.processes import Process
from hostagent.qemu.run_record import PlacedDisk, RunRecord, place_for
from hostagent.vm_types import VmRecord
from hostagent.volumes import Volumes

UNPLUG_SECONDS = 20.0
"""How long a guest may take to let go of a disk."""

SETTLE_SECONDS = 1.0
"""The same, where it is the reaper that waits: it comes again."""

UNPLUG_POLL_SECONDS = 0.1
UNPLUG_AGAIN_SECONDS = 5.0

_log = get_logger("qemu")


class Guest:
    """One VM. ``vm`` is its record as last seen; None after a sweep, of a VM that is not running."""

    def __init__(
        self, vm_id: VmId, folder: GuestFolder, monitor: Monitor, host: str, volumes: Volumes
    ) -> None:
        self.vm_id, self.folder = vm_id, folder
        self.lock = threading.RLock()
        self.monitor = monitor
        self.process: Process | None = None
        self.vm: VmRecord | None = None
        self.unsettled = False
        self.doomed = False
        """Its VM is not known any more: it goes when nothing is served for it."""
        self.looked_at = 0.0
        self._host, self._volumes = host, volumes

    @property
    def alive(self) -> bool:
        process = self.process
        return process is not None and process.alive

    @property
    def record(self) -> RunRecord:
        return self.folder.record or RunRecord()

    def status(self, *, seconds: float) -> str:
        """What QEMU says the guest does. Raises PeerUnavailable, DeadlineExceeded."""
        said = self.monitor.execute("query-status", seconds=seconds)
        return str(said.get("status", ""))[:40] if isinstance(said, dict) else ""

    # -- disks of a guest that is off -----------------------------------------------------------

    def place_all(self, vm: VmRecord, *, incoming: str = "") -> list[PlacedDisk]:
        """Note durably the disks that it is about to start with (Y1), or wait with for that migration."""
        disks = [placed(self._host, vm.vm_id, disk, place) for place, disk in enumerate(vm.config.disks)]
        used = {(disk.array_address, disk.export) for disk in disks}
        stale = [one for one in self.record.retired().stale if one not in used]
        self.folder.make()
        self.folder.keep(RunRecord(disks=tuple(disks), stale=tuple(dict.fromkeys(stale)), incoming=incoming))
        return disks

    def serve(self, disk: PlacedDisk) -> dict[str, object]:
        """Have its array serve it; the node to open it by. Raises as exports.serve."""
        return block_node(disk, serve(self._volumes, disk))

    def retire(self) -> None:
        """The guest has ended: all its exports are stale, durably."""
        self.unsettled = False
        if self.folder.record is not None:
            self.folder.keep(self.record.retired())

    def clear_stale(self) -> None:
        """Delete exports that shall go (Y1). Raises the first error; the rest is tried."""
        record, first = self.record, None
        away: set[str] = set()
        for address, export in record.stale:
            if address in away:
                continue
            _, error = attempt(
                lambda address=address, export=export: self._volumes.delete_export(address, export),  # type: ignore[misc]
                f"export on array {address}",
            )
            if error is None:
                stale = tuple(one for one in self.record.stale if one != (address, export))
                self.folder.keep(replace(self.record, stale=stale))
            else:
                away.add(address)
                first = first or error
        if first is not None:
            raise first
        if self.folder.record == RunRecord():
            self.folder.drop_record()

    # -- disks of a guest that runs -------------------------------------------------------------

    def plug(self, disk: Disk) -> None:
        """Show a disk to the running guest (Y2). Raises PeerUnavailable, DeadlineExceeded, NotFound."""
        assert self.vm is not None
        found = self._find(disk)
        if found is None:
            wanted = [one.name for one in self.vm.config.disks].index(disk.name)
            place = place_for(wanted, [one.place for one in self.record.disks])
            found = placed(self._host, self.vm_id, disk, place)
            stale = tuple(one for one in self.record.stale if one != (found.array_address, found.export))
            self.folder.keep(replace(self.record, disks=(*self.record.disks, found), stale=stale))
        if not self._has_node(found):
            self.monitor.execute("blockdev-add", self.serve(found))
        if not self._has_device(found):
            self.monitor.execute("device_add", disk_device(found))
            _log.info("disk_plugged", vm=self.vm_id, disk=disk.name, place=found.place)

    def unplug(self, disk: PlacedDisk, *, seconds: float = 0.0) -> None:
        """Take a disk from the running guest (Y2); nothing is written to it afterwards.

        Raises DeadlineExceeded: the guest does not let go of it.
        """
        until = time.monotonic() + (seconds or UNPLUG_SECONDS)
        again = 0.0
        while self._has_device(disk):
            now = time.monotonic()
            if now >= until:
                raise DeadlineExceeded(
                    f"the guest does not let go of disk {disk.name}",
                    subject=f"VM {self.vm_id}",
                    next_step="unmount it inside the guest, or power the VM off",
                )
            if now >= again:
                again = now + UNPLUG_AGAIN_SECONDS
                self._ask_for(disk)
            time.sleep(UNPLUG_POLL_SECONDS)
        if self._has_node(disk):
            self.monitor.execute("blockdev-del", {"node-name": node_name(disk.export)})
        rest = tuple(one for one in self.record.disks if one != disk)
        self.folder.keep(
            replace(self.record, disks=rest, stale=(*self.record.stale, (disk.array_address, disk.export)))
        )
        _log.info("disk_unplugged", vm=self.vm_id, disk=disk.name)

    def has_plain_places(self, vm: VmRecord) -> bool:
        """Whether a guest that is started anew would have the same machine."""
        found = [self._find(disk) for disk in vm.config.disks]
        return [one.place for one in found if one is not None] == list(range(len(self.record.disks)))

    def _ask_for(self, disk: PlacedDisk) -> None:
        try:
            self.monitor.execute("device_del", {"id": device_id(disk.export)})
        except MonitorRefused as error:  # it was asked before, or has gone this moment
            _log.debug("device_not_asked_for", vm=self.vm_id, disk=disk.name, error=str(error))

    def _find(self, disk: Disk) -> PlacedDisk | None:
        return next((one for one in self.record.disks if one.serves(disk)), None)

    def _has_node(self, disk: PlacedDisk) -> bool:
        nodes = self.monitor.execute("query-named-block-nodes", {"flat": True})
        return any(_field(one, "node-name") == node_name(disk.export) for one in _list(nodes))

    def _has_device(self, disk: PlacedDisk) -> bool:
        devices = self.monitor.execute("qom-list", {"path": "/machine/peripheral"})
        return any(_field(one, "name") == device_id(disk.export) for one in _list(devices))

    def settle(self) -> None:
        """Bring the running guest's disks in order (Y3). Raises what keeps it from that."""
        assert self.vm is not None
        wanted = self.vm.config.disks
        for disk in [one for one in self.record.disks if not any(one.serves(disk) for disk in wanted)]:
            self.unplug(disk, seconds=SETTLE_SECONDS)
        for one in wanted:
            self.plug(one)
        self.unsettled = False


def _list(said: object) -> list[object]:
    if not isinstance(said, list):
        raise PeerUnavailable("QEMU answers with something else than a list")
    return said


def _field(said: object, name: str) -> object:
    return said.get(name) if isinstance(said, dict) else None
