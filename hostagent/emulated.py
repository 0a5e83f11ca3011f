"""The emulated VMM: VMs without a hypervisor, whose guests are nothing but their file systems.

Its power is what the VM's record says; a running guest is one whose file operations are admitted.
A file is put by copying the disk, changing the copy with debugfs and writing back what differs.
Invariants: those of driver.py, and
  M1 a disk's bytes change only inside ``GuestGate.writing``.
  M2 a disk that waits for the rest of a write-back is brought in order before it is read or started;
     until then a freeze reaches CRASH and no more.
Callers: as driver.py says; ``reap`` on a thread of its own. Limits: guest_gate.py, disk_copy.py, debugfs.py.
Why: docs/decisions/0021-the-emulated-guest.md
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from arraylift.clock import Clock
from arraylift.errors import ArrayliftError, NotFound, WrongState
from arraylift.ids import VmId
from arraylift.logs import get_logger
from arraylift.vm.types import ConsistencyLevel, Disk
from hostagent.debugfs import ExtFiles, find_program
from hostagent.disk_copy import DiskCopies, DiskCopy
from hostagent.guest_gate import GuestGate
from hostagent.partitions import find_ext
from hostagent.vm_types import GuestFile, VmRecord

DEFAULT_MODE = 0o644

_log = get_logger("emulated")


class EmulatedDriver:
    """Driver without a hypervisor."""

    name = "emulated"
    tracker = None
    foreign = None
    mover = None

    def __init__(
        self, copies: DiskCopies, *, clock: Clock, firmware: Callable[[VmId], bytes] = lambda _: b""
    ) -> None:
        """``firmware`` gives what a VM was made with: nothing here changes it."""
        self._copies = copies
        self._firmware = firmware
        self._clock = clock
        self._lock = threading.Lock()
        self._gates: dict[VmId, GuestGate] = {}
        self._detached: dict[VmId, set[tuple[str, str]]] = {}

    # -- power ----------------------------------------------------------------------------------

    def resume(self, vm: VmRecord) -> None:
        self._gate(vm).start()

    def sweep(self, *, running: Collection[VmId], known: Collection[VmId]) -> None:
        assert set(running) <= set(known)
        for vm_id in self._copies.unsettled() - set(known):
            self._copies.drop(vm_id)

    def start(self, vm: VmRecord) -> None:
        gate = self._gate(vm)
        if not gate.running:
            with gate.quiet():
                self._copies.settle(vm.vm_id)  # M2
            gate.start()

    def stop(self, vm: VmRecord, *, grace_seconds: float, force: bool) -> None:
        gate = self._gate(vm)
        gate.stop(grace_seconds=0 if force else grace_seconds)
        with gate.quiet():
            try:
                self._copies.settle(vm.vm_id)
            except ArrayliftError:
                if not force:
                    gate.start()  # it did not stop: it still has to write
                    raise
                self._copies.drop(vm.vm_id)

    def is_running(self, vm_id: VmId) -> bool:
        with self._lock:
            gate = self._gates.get(vm_id)
        return gate is not None and gate.running

    # -- freeze ---------------------------------------------------------------------------------

    def freeze(self, vm: VmRecord, *, timeout_seconds: float) -> ConsistencyLevel:
        self._gate(vm).freeze(timeout_seconds)
        return ConsistencyLevel.FILESYSTEM if self._copies.is_settled(vm.vm_id) else ConsistencyLevel.CRASH

    def thaw(self, vm_id: VmId) -> None:
        with self._lock:
            gate = self._gates.get(vm_id)
        if gate is not None:
            gate.thaw()

    def kept_level(self, vm: VmRecord, reached: ConsistencyLevel) -> ConsistencyLevel:  # noqa: ARG002
        return reached

    # -- disks ----------------------------------------------------------------------------------

    def attach(self, vm: VmRecord, disk: Disk) -> None:
        with self._lock:
            self._detached.get(vm.vm_id, set()).discard(_place(disk))

    def detach(self, vm: VmRecord, disk: Disk) -> None:
        with self._gate(vm).quiet():
            with self._lock:
                # An operation that waits at the gate may know of the disk from before.
                self._detached.setdefault(vm.vm_id, set()).add(_place(disk))
            self._copies.drop(vm.vm_id, disk.volume_name)

    def firmware_variables(self, vm: VmRecord) -> bytes:
        return self._firmware(vm.vm_id)

    def release(self, vm: VmRecord) -> None:
        """Nothing: this process reads and writes the volumes by itself."""

    def forget(self, vm: VmRecord) -> None:
        self._copies.drop(vm.vm_id)
        with self._lock:
            self._gates.pop(vm.vm_id, None)
            self._detached.pop(vm.vm_id, None)

    def reap(self) -> None:
        """Finish what an absent array or a crash has left of write-backs, in guests that run."""
        for vm_id in self._copies.unsettled():
            with self._lock:
                gate = self._gates.get(vm_id)
            if gate is not None and gate.running:
                with gate.operation(seconds=0), gate.writing():
                    self._copies.settle(vm_id)

    # -- files ----------------------------------------------------------------------------------

    def put_file(self, vm: VmRecord, disk: Disk, path: str, *, source: str, mode: int) -> GuestFile:
        with self._opened(vm, disk, change=True) as (copy, files):
            old = files.stat(path)
            if path == "/" or (old is not None and not stat.S_ISREG(old.mode)):
                raise _not_a_file(vm, path)
            directory = path.rpartition("/")[0] or "/"
            above = files.stat(directory)
            if above is None or not stat.S_ISDIR(above.mode):
                raise NotFound(f"{vm.subject} has no directory {directory}", subject=vm.subject)
            size = os.stat(source).st_size
            wanted = GuestFile(
                path,
                size,
                stat.S_IMODE(mode) or (old.mode if old else DEFAULT_MODE),
                old.uid if old else 0,
                old.gid if old else 0,
                0,
            )
            relative = os.path.relpath(source, self._copies.folder)
            files.write(path, relative, file=wanted, replaces=old is not None)
            made = files.stat(path)
            if made is None or made.size_bytes != size or not stat.S_ISREG(made.mode):
                raise WrongState(
                    f"{path} did not come out as it was sent",
                    subject=vm.subject,
                    next_step="check the guest's file system with e2fsck",
                )
            self._write_back(vm, disk, copy)
            return made

    def get_file(self, vm: VmRecord, disk: Disk, path: str, *, into: str) -> GuestFile:
        with self._opened(vm, disk, change=False) as (_, files):
            found = _existing(vm, files, path)
            if not stat.S_ISREG(found.mode):
                raise _not_a_file(vm, path)
            files.dump(path, os.path.relpath(into, self._copies.folder))
            return found

    def list_files(self, vm: VmRecord, disk: Disk, path: str) -> list[GuestFile]:
        with self._opened(vm, disk, change=False) as (_, files):
            if not stat.S_ISDIR(_existing(vm, files, path).mode):
                raise WrongState(f"{path} is no directory", subject=vm.subject)
            return files.entries(path)

    def remove_file(self, vm: VmRecord, disk: Disk, path: str) -> None:
        with self._opened(vm, disk, change=True) as (copy, files):
            found = _existing(vm, files, path)
            if not (stat.S_ISREG(found.mode) or stat.S_ISLNK(found.mode)):
                raise _not_a_file(vm, path)
            files.remove(path)
            self._write_back(vm, disk, copy)

    @contextmanager
    def _opened(self, vm: VmRecord, disk: Disk, *, change: bool) -> Iterator[tuple[DiskCopy, ExtFiles]]:
        """The disk's copy and the file system in it, as one operation of the guest."""
        find_program("debugfs")  # before gigabytes are read for nothing
        gate = self._gate(vm)
        with gate.operation():
            with self._lock:
                if _place(disk) in self._detached.get(vm.vm_id, ()):
                    raise NotFound(f"{vm.subject} has no disk {disk.name} any more", subject=vm.subject)
            if not self._copies.is_settled(vm.vm_id):
                with gate.writing():
                    self._copies.settle(vm.vm_id)  # M2
            with self._copies.copy(disk.array_address, disk.volume_name, keep_before=change) as copy:
                found = find_ext(copy.read)
                if found is None:
                    raise WrongState(
                        f"disk {disk.name} of {vm.subject} has no file system that this VMM reads",
                        subject=vm.subject,
                        next_step="use ext2, ext3 or ext4, on the whole disk or its first Linux partition",
                    )
                if change and found.needs_recovery:
                    raise WrongState(
                        f"the file system on disk {disk.name} of {vm.subject} was not unmounted",
                        subject=vm.subject,
                        next_step="replay its journal with e2fsck first",
                    )
                yield copy, ExtFiles(copy.folder, copy.image_name, found.offset)

    def _write_back(self, vm: VmRecord, disk: Disk, copy: DiskCopy) -> None:
        with self._gate(vm).writing():  # M1
            written = self._copies.write_back(copy, vm.vm_id, disk.array_address, disk.volume_name)
        _log.info("guest_disk_changed", vm=vm.vm_id, disk=disk.name, bytes_written=written)

    def _gate(self, vm: VmRecord) -> GuestGate:
        with self._lock:
            gate = self._gates.get(vm.vm_id)
            if gate is None:
                gate = self._gates[vm.vm_id] = GuestGate(vm.subject, self._clock)
            return gate


def _place(disk: Disk) -> tuple[str, str]:
    return disk.array_address, disk.volume_name


def _existing(vm: VmRecord, files: ExtFiles, path: str) -> GuestFile:
    found = files.stat(path)
    if found is None:
        raise NotFound(f"{vm.subject} has no {path}", subject=vm.subject)
    return found


def _not_a_file(vm: VmRecord, path: str) -> WrongState:
    return WrongState(f"{path} of {vm.subject} is no regular file", subject=vm.subject)
