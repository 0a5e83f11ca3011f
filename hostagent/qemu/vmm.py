"""VMs as QEMU processes, which outlive this one: power, disks, firmware, and what failures leave.

Invariants: those of driver.py, and
  G1 what should run is said by the VM's record, what runs by the lock that QEMU holds, what arrays may serve
     by the run record; ``resume``, ``sweep`` and ``reap`` make them agree after any crash of any of them.
  G2 every wait for QEMU, a guest or an array is bounded; one that hangs can be powered off by force.
  G3 a guest whose disk failed it stands still, sees no error, and goes on when the array is back.
Callers: as driver.py says; ``reap`` on a thread of its own. Failpoints: launch.py; ``qemu.exported``,
``qemu.runs``, ``qemu.ended``, ``qemu.plugged``, ``qemu.unplugged``.
Why: docs/decisions/0087-qemu-holds-the-lock.md, 0088-disks-of-a-guest-are-exports.md
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace

from arraylift.durable import Files
from arraylift.errors import DeadlineExceeded, InvalidRequest
from arraylift.failpoints import FAILPOINTS
from arraylift.ids import VmId
from arraylift.logs import get_logger
from arraylift.outcome import attempt
from arraylift.vm.types import Disk
from hostagent.firmware_store import pack_variables, unpack_variables
from hostagent.qemu.exports import serve
from hostagent.qemu.guest import Guest
from hostagent.qemu.guest_folder import GuestFolder, folders
from hostagent.qemu.launch import Launcher
from hostagent.qemu.monitor import Monitor
from hostagent.qemu.processes import Processes
from hostagent.vm_types import VmRecord
from hostagent.volumes import Volumes

QUIT_SECONDS = 3.0
"""What a QEMU gets to close its disks before it is killed."""

POWERDOWN_AGAIN_SECONDS = 5.0
"""A guest that still boots does not hear the button: it is pressed again."""

LOOK_SECONDS, LOOK_ANSWER_SECONDS = 3.0, 1.0
"""How often a running guest's state is asked for, and how long its QEMU may take."""

_log = get_logger("qemu")


class Vmm:
    """All VMs of this host. What goes through a guest's agent is beside it (qemu_driver.py)."""

    def __init__(
        self,
        files: Files,
        root: str,
        *,
        host: str,
        volumes: Volumes,
        launcher: Launcher,
        processes: Processes,
        firmware: Callable[[VmId], bytes],
        monitor_of: Callable[[str, str], Monitor] = Monitor,
    ) -> None:
        """``root``: the folder of the VMs' folders. ``firmware`` gives what a VM was made with, packed."""
        self._monitor_of = monitor_of
        self._files, self._root = files, root
        self._host, self._volumes = host, volumes
        self._launcher, self._processes, self._firmware = launcher, processes, firmware
        self._lock = threading.Lock()
        self._guests: dict[VmId, Guest] = {}
        files.make_dirs(root)

    def guest(self, vm_id: VmId) -> Guest:
        """What this process knows of that VM."""
        with self._lock:
            found = self._guests.get(vm_id)
            if found is None:
                folder = GuestFolder(self._files, f"{self._root}/{vm_id}")
                monitor = self._monitor_of(folder.monitor_path, f"VM {vm_id}")
                found = self._guests[vm_id] = Guest(vm_id, folder, monitor, self._host, self._volumes)
            return found

    def guests(self) -> list[Guest]:
        with self._lock:
            return list(self._guests.values())

    # -- taking over ----------------------------------------------------------------------------

    def adopt(self, vm: VmRecord) -> bool:
        """Find the QEMU that runs for a VM; whether there is one (G1)."""
        guest = self.guest(vm.vm_id)
        with guest.lock:
            guest.vm = vm
            self._find_process(guest)
            guest.unsettled = guest.alive
            if guest.process is not None:
                _log.info("qemu_adopted", vm=vm.vm_id, pid=guest.process.pid)
            return guest.alive

    def _find_process(self, guest: Guest) -> None:
        found = self._processes.find(guest.folder.lock_path) if guest.folder.has_lock_file else None
        guest.process = found

    def sweep(self, *, running: Collection[VmId], known: Collection[VmId]) -> None:
        for vm_id in folders(self._files, self._root):
            guest = self.guest(vm_id)
            with guest.lock:
                guest.doomed = vm_id not in known
                if guest.process is None:
                    self._find_process(guest)
                if vm_id in running:
                    continue
                if guest.process is not None:
                    _log.warning("qemu_stray_ended", vm=vm_id, pid=guest.process.pid)
                    self._kill(guest)
                guest.retire()

    # -- power ----------------------------------------------------------------------------------

    def start(self, vm: VmRecord) -> None:
        guest = self.guest(vm.vm_id)
        with guest.lock:
            guest.vm = vm
            if guest.alive:
                return
            self._processes.collect()
            with self.starting(guest, vm):
                guest.monitor.execute("cont")
            FAILPOINTS.hit("qemu.runs")

    @contextmanager
    def starting(self, guest: Guest, vm: VmRecord, *, incoming: str = "") -> Iterator[None]:
        """A QEMU whose guest stands still; it ends, and its exports go, if the block fails."""
        disks = guest.place_all(vm, incoming=incoming)
        try:
            served = [(disk, serve(self._volumes, disk)) for disk in disks]
            FAILPOINTS.hit("qemu.exported")
            variables = unpack_variables(self._firmware(vm.vm_id))
            guest.process = self._launcher.launch(
                vm, guest.folder, served, variables=variables, incoming=bool(incoming)
            )
            yield
        except BaseException:
            self.end_by_force(guest)
            raise

    def end_by_force(self, guest: Guest) -> None:
        """Neither QEMU nor exports stay; those of an absent array go later. Under the guest's lock."""
        if guest.process is not None:
            self._kill(guest)
        self._processes.collect()
        guest.retire()
        self._clear(guest)

    def stop(self, vm: VmRecord, *, grace_seconds: float, force: bool) -> None:
        guest = self.guest(vm.vm_id)
        with guest.lock:
            guest.vm = vm
            if not force and guest.alive:
                self._ask_to_end(guest, grace_seconds)
            if guest.alive:
                self._end(guest)
            FAILPOINTS.hit("qemu.ended")
            guest.process = None
            self._processes.collect()
            guest.retire()
            self._clear(guest)

    def _ask_to_end(self, guest: Guest, grace_seconds: float) -> None:
        assert guest.process is not None
        until = time.monotonic() + grace_seconds
        while (left := until - time.monotonic()) > 0:
            _, error = attempt(lambda: self._press(guest, min(left, 2.0)), "power button")
            if error is not None:
                _log.info("guest_not_asked", vm=guest.vm_id, error=str(error))
            if self._processes.wait(guest.process, seconds=min(POWERDOWN_AGAIN_SECONDS, max(0.0, left))):
                return
        _log.info("guest_ignores_power_button", vm=guest.vm_id, seconds=grace_seconds)

    def _press(self, guest: Guest, seconds: float) -> None:
        guest.monitor.execute("system_powerdown", seconds=max(0.1, seconds))

    def _end(self, guest: Guest) -> None:
        """Raises DeadlineExceeded: it cannot even be killed."""
        assert guest.process is not None
        attempt(lambda: guest.monitor.execute("quit", seconds=QUIT_SECONDS), "quit of QEMU")
        if not self._processes.wait(guest.process, seconds=QUIT_SECONDS):
            self._kill(guest)

    def _kill(self, guest: Guest) -> None:
        assert guest.process is not None
        if not self._processes.kill(guest.process):
            raise DeadlineExceeded(
                f"QEMU {guest.process.pid} of VM {guest.vm_id} does not end, not even by force",
                subject=f"VM {guest.vm_id}",
                next_step="it waits in the kernel, for a device most likely: see to that, then repeat",
            )
        guest.process = None

    def _clear(self, guest: Guest) -> None:
        """Stale exports go, or wait for ``reap``."""
        _, error = attempt(guest.clear_stale, "exports of a VM")
        if error is not None:
            _log.warning("exports_wait", vm=guest.vm_id, error=str(error))

    def is_running(self, vm_id: VmId) -> bool:
        guest = self.guest(vm_id)
        return guest.alive and not guest.record.incoming and not guest.record.sent

    # -- disks ----------------------------------------------------------------------------------

    def attach(self, vm: VmRecord, disk: Disk) -> None:
        guest = self.guest(vm.vm_id)
        with guest.lock:
            guest.vm = vm
            if not guest.alive:
                return
            guest.unsettled = True  # until it is done: the VM's record has the disk already
            guest.plug(disk)
            guest.unsettled = False
            FAILPOINTS.hit("qemu.plugged")

    def detach(self, vm: VmRecord, disk: Disk) -> None:
        guest = self.guest(vm.vm_id)
        with guest.lock:
            guest.vm = vm
            found = [one for one in guest.record.disks if one.serves(disk)]
            if guest.alive and found:
                guest.unsettled = True
                guest.unplug(found[0])
                guest.unsettled = False
            rest = tuple(one for one in vm.config.disks if one != disk)
            guest.vm = replace(vm, config=replace(vm.config, disks=rest))
            FAILPOINTS.hit("qemu.unplugged")
            self._clear(guest)

    def release(self, vm: VmRecord) -> None:
        guest = self.guest(vm.vm_id)
        with guest.lock:
            assert not guest.alive, "only a VM that is off is released"
            guest.retire()
            guest.clear_stale()

    # -- firmware -------------------------------------------------------------------------------

    def firmware_variables(self, vm: VmRecord) -> bytes:
        made_with = self._firmware(vm.vm_id)
        if vm.config.firmware != "uefi":
            return made_with
        try:
            return pack_variables(self.guest(vm.vm_id).folder.variables()) or made_with
        except InvalidRequest:
            # A guest that fills them with noise shall not keep its disks from being backed up.
            _log.warning("firmware_variables_too_large", vm=vm.vm_id)
            return made_with

    # -- the end, and what failures leave -------------------------------------------------------

    def forget(self, vm: VmRecord) -> None:
        guest = self.guest(vm.vm_id)
        with guest.lock:
            assert not guest.alive, "only a VM that is off is forgotten"
            guest.folder.remove()
            with self._lock:
                self._guests.pop(vm.vm_id, None)

    def reap(self) -> None:
        """Put in order what is not, one guest after the other; pass by those that are busy."""
        self._processes.collect()
        for guest in self.guests():
            if guest.lock.acquire(blocking=False):
                try:
                    _, error = attempt(lambda guest=guest: self._reap_one(guest), "care of a VM")  # type: ignore[misc]
                finally:
                    guest.lock.release()
                if error is not None:
                    _log.info("guest_waits", vm=guest.vm_id, error=str(error))

    def _reap_one(self, guest: Guest) -> None:
        guest.folder.trim_logs()
        if guest.alive and time.monotonic() - guest.looked_at >= LOOK_SECONDS:
            guest.looked_at = time.monotonic()
            self._look(guest)
        if guest.record.stale:
            guest.clear_stale()
        if guest.doomed and not guest.alive and guest.folder.record is None:
            guest.folder.remove()
            with self._lock:
                self._guests.pop(guest.vm_id, None)

    def _look(self, guest: Guest) -> None:
        """Bring disks in order (Y3); let a guest run whose start was cut, or whose disk had failed (G3)."""
        record = guest.record
        if record.incoming or record.outgoing or guest.vm is None:
            return
        status = guest.status(seconds=LOOK_ANSWER_SECONDS)
        if guest.unsettled:
            guest.settle()
        if status in {"io-error", "prelaunch"}:
            guest.monitor.execute("cont", seconds=LOOK_ANSWER_SECONDS)
            _log.info("guest_let_run", vm=guest.vm_id, stood_for=status)
