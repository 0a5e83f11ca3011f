"""Start the QEMU of one VM, standing still, and see that it answers.

Invariants:
  U1 when ``launch`` raises, no process of it lives.
  U2 a QEMU inherits what its command line names, the VM's lock, and nothing else.
Failpoints, in order: ``qemu.spawn.before``, ``qemu.spawn.after``, ``qemu.answers``.
Callers: the driver and live_move, the thread that holds the guest's lock.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from arraylift.durable import Files
from arraylift.errors import DeadlineExceeded, PeerUnavailable, WrongState
from arraylift.failpoints import FAILPOINTS
from arraylift.logs import get_logger
from arraylift.nbd.uri import NbdUri
from hostagent.qemu.accelerator import Accelerator
from hostagent.qemu.command_line import Firmware, Machine, command_line
from hostagent.qemu.guest_folder import CONSOLE, QEMU_LOG, GuestFolder
from hostagent.qemu.monitor import Monitor
from hostagent.qemu.networks import Networks
from hostagent.qemu.processes import POLL_SECONDS, Process, Processes, holder_of, take_lock
from hostagent.qemu.run_record import PlacedDisk
from hostagent.vm_types import VmRecord

START_SECONDS = 30.0
"""How long a QEMU may take until it answers; its disks are open by then."""

LOCK_SECONDS = 5.0

_log = get_logger("qemu")


@dataclass(frozen=True, slots=True)
class Setup:
    """What is the same for every VM of this host. ``cpu`` empty: what the accelerator is best with."""

    program: str
    accelerator: Accelerator
    networks: Networks
    tls_path: str
    firmware_code: str
    firmware_variables: str
    cpu: str = ""


class Launcher:
    """Starts QEMUs."""

    def __init__(self, setup: Setup, processes: Processes, files: Files) -> None:
        self.setup, self._processes, self._files = setup, processes, files

    def launch(
        self,
        vm: VmRecord,
        folder: GuestFolder,
        disks: Sequence[tuple[PlacedDisk, NbdUri]],
        *,
        variables: bytes,
        incoming: bool = False,
    ) -> Process:
        """Return the process, whose guest stands still (U1). ``variables`` where the folder has none.

        Raises WrongState, PeerUnavailable (a disk's array), DeadlineExceeded.
        """
        folder.make()
        self._prepare_firmware(vm, folder, variables)
        with ExitStack() as stack:
            lock = self._lock(vm, folder)
            stack.callback(os.close, lock)
            machine, log, inherited = self._machine(vm, folder, disks, stack, incoming=incoming)
            FAILPOINTS.hit("qemu.spawn.before")
            process = self._processes.spawn(command_line(machine), inherited=(lock, *inherited), log=log)
        try:
            FAILPOINTS.hit("qemu.spawn.after")
            self._await_answer(vm, folder, process)
            FAILPOINTS.hit("qemu.answers")
        except BaseException:
            self._processes.kill(process)  # U1
            raise
        _log.info("qemu_started", vm=vm.vm_id, pid=process.pid, accelerator=self.setup.accelerator.name)
        return process

    def _lock(self, vm: VmRecord, folder: GuestFolder) -> int:
        until = time.monotonic() + LOCK_SECONDS
        while (lock := take_lock(folder.lock_path)) is None:
            stray = holder_of(folder.lock_path)
            if stray is not None:  # of a start that was cut, or one that did not end when it was told to
                _log.warning("qemu_stray_ended", vm=vm.vm_id, pid=stray.pid)
                self._processes.kill(stray)
            if time.monotonic() >= until:
                raise WrongState(
                    f"a QEMU of {vm.subject} still runs and cannot be ended",
                    subject=vm.subject,
                    next_step=f"find who holds {folder.lock_path}, and end it",
                )
            time.sleep(POLL_SECONDS)  # one that was killed lets go of its files a moment after it is dead
        return lock

    def _prepare_firmware(self, vm: VmRecord, folder: GuestFolder, variables: bytes) -> None:
        if vm.config.firmware != "uefi":
            return
        for path in (self.setup.firmware_code, self.setup.firmware_variables):
            if not self._files.exists(path):
                raise WrongState(
                    f"{vm.subject} starts by UEFI, and this host has no {path}",
                    subject=vm.subject,
                    next_step="install ovmf, or name its files in the host's settings",
                )
        template = self._files.read(self.setup.firmware_variables)
        current = folder.variables() or variables
        if len(current) != len(template):
            if current:
                _log.warning(
                    "firmware_variables_unfit", vm=vm.vm_id, bytes=len(current), wanted=len(template)
                )
            current = template
        if folder.variables() != current:
            folder.put_variables(current)

    def _machine(
        self,
        vm: VmRecord,
        folder: GuestFolder,
        disks: Sequence[tuple[PlacedDisk, NbdUri]],
        stack: ExitStack,
        *,
        incoming: bool,
    ) -> tuple[Machine, int, list[int]]:
        """Everything that QEMU is told, its log, and what it inherits; ``stack`` closes our copies."""

        def kept(descriptor: int) -> int:
            stack.callback(os.close, descriptor)
            return descriptor

        sockets: tuple[socket.socket, socket.socket] = folder.listeners()
        for listener in sockets:
            stack.callback(listener.close)
        monitor, agent = (listener.fileno() for listener in sockets)
        console, log = kept(folder.open_log(CONSOLE)), kept(folder.open_log(QEMU_LOG, anew=True))
        tls = kept(os.open(self.setup.tls_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        inherited = [monitor, agent, console, tls]
        firmware = None
        if vm.config.firmware == "uefi":
            firmware = Firmware(self.setup.firmware_code, kept(folder.open_variables()))
            inherited.append(firmware.variables)
        backends = []
        for network in vm.config.networks:
            backend = self.setup.networks.open(network.network)
            backends.append(backend.option)
            if backend.descriptor >= 0:
                inherited.append(kept(backend.descriptor))
        machine = Machine(
            program=self.setup.program,
            accelerator=self.setup.accelerator,
            cpu=self.setup.cpu or self.setup.accelerator.cpu,
            config=vm.config,
            disks=disks,
            backends=backends,
            monitor=monitor,
            agent=agent,
            console=console,
            tls_path=f"/proc/self/fd/{tls}",
            firmware=firmware,
            incoming=incoming,
        )
        return machine, log, inherited

    def _await_answer(self, vm: VmRecord, folder: GuestFolder, process: Process) -> None:
        until = time.monotonic() + START_SECONDS
        monitor = Monitor(folder.monitor_path, vm.subject)
        while True:
            with contextlib.suppress(PeerUnavailable, DeadlineExceeded):
                # Its listeners were there before it: it answers once it has opened its disks.
                monitor.execute("query-status", seconds=min(1.0, max(0.1, until - time.monotonic())))
                return
            if not process.alive:
                raise self._did_not_start(vm, folder)
            if time.monotonic() >= until:
                raise DeadlineExceeded(
                    f"QEMU of {vm.subject} does not answer",
                    subject=vm.subject,
                    next_step="see its qemu.log; retry",
                )

    def _did_not_start(self, vm: VmRecord, folder: GuestFolder) -> WrongState | PeerUnavailable:
        said = folder.log_end(QEMU_LOG)
        message = f"QEMU of {vm.subject} ended at once: {said or 'it said nothing'}"
        if "disk-" in said and any(word in said for word in _OF_AN_ARRAY):
            return PeerUnavailable(message, subject=vm.subject, next_step="retry when the array answers")
        return WrongState(message, subject=vm.subject, next_step=f"see {folder.path}/{QEMU_LOG}")


_OF_AN_ARRAY = ("onnect", "etwork", "TLS", "xport", "erver", "imed out")
"""Pieces of what QEMU says of a disk whose NBD server it does not reach."""
