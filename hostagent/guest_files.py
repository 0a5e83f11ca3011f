"""Files inside guests: sizes and paths are checked here, the driver does the rest.

Owns: every byte below ``<state>/guest-files``, where files wait on their way; empty after a start.
Invariants:
  U1 an upload reaches the guest only when its end was announced; a cut one leaves nothing.
Limits: TRANSFERS_MAX files on their way at once, GUEST_FILE_BYTES_MAX each.
Callers: the edge, each call in its own thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from arraylift.durable import Files, RandomFile
from arraylift.errors import Corruption, InvalidRequest, NotFound, Overloaded, WrongState
from arraylift.ids import VmId, random_id
from arraylift.sizes import EXTENT_BYTES_MAX
from arraylift.vm.types import Disk
from hostagent.driver import Driver
from hostagent.machines import usable
from hostagent.vm_rules import check_file_bytes, check_guest_path
from hostagent.vm_store import VmStore
from hostagent.vm_types import GUEST_FILE_BYTES_MAX, GuestFile, VmRecord

TRANSFERS_MAX = 8
MODE_MAX = 0o7777

Finish = Callable[[], GuestFile]


class GuestFiles:
    """Files of all guests of this host. ``files`` is not the store's: a full disk here poisons no VM."""

    def __init__(self, files: Files, folder: str, store: VmStore, driver: Driver) -> None:
        self._files, self._folder, self._store, self._driver = files, folder, store, driver
        self._room = threading.BoundedSemaphore(TRANSFERS_MAX)
        files.make_dirs(folder)
        files.sweep(folder)
        for name in files.list_dir(folder):
            files.remove(f"{folder}/{name}", label="guest-file")

    @contextmanager
    def upload(self, vm_id: VmId, disk_name: str, path: str, *, mode: int) -> Iterator[Upload]:
        """Begin a put; ``Upload.commit`` ends it (U1). Raises NotFound, InvalidRequest, Overloaded."""
        path = check_guest_path(path)
        if mode > MODE_MAX:
            raise InvalidRequest(f"mode {mode:#o} is no permission", next_step="send the lowest 12 bits")
        vm, disk = self._where(vm_id, disk_name)
        with self._scratch() as file:
            yield Upload(file, lambda: self._driver.put_file(vm, disk, path, source=file.path, mode=mode))

    @contextmanager
    def download(self, vm_id: VmId, disk_name: str, path: str) -> Iterator[tuple[GuestFile, Iterator[bytes]]]:
        """The file and its content, in pieces of at most 1 MiB. Raises NotFound, WrongState, Overloaded."""
        path = check_guest_path(path)
        vm, disk = self._where(vm_id, disk_name)
        with self._scratch() as file:
            found = self._driver.get_file(vm, disk, path, into=file.path)
            if found.size_bytes > GUEST_FILE_BYTES_MAX:
                raise WrongState(f"{path} has more than {GUEST_FILE_BYTES_MAX} bytes", subject=vm.subject)
            if self._files.size(file.path) != found.size_bytes:
                raise Corruption(f"{path} of {vm.subject} could not be read whole", subject=vm.subject)
            yield found, _pieces(file, found.size_bytes)

    def listed(self, vm_id: VmId, disk_name: str, path: str) -> list[GuestFile]:
        """A directory, by name. Raises NotFound, WrongState, Overloaded."""
        vm, disk = self._where(vm_id, disk_name)
        return self._driver.list_files(vm, disk, check_guest_path(path))

    def remove(self, vm_id: VmId, disk_name: str, path: str) -> None:
        """Raises NotFound, WrongState (a directory)."""
        vm, disk = self._where(vm_id, disk_name)
        self._driver.remove_file(vm, disk, check_guest_path(path))

    def _where(self, vm_id: VmId, disk_name: str) -> tuple[VmRecord, Disk]:
        vm = usable(self._store.vms.get(vm_id))
        for disk in vm.config.disks:
            if disk_name in {"", disk.name}:
                return vm, disk
        raise NotFound(f"{vm.subject} has no disk {disk_name!r}", subject=vm.subject)

    @contextmanager
    def _scratch(self) -> Iterator[RandomFile]:
        if not self._room.acquire(blocking=False):
            raise Overloaded(f"{TRANSFERS_MAX} guest files are on their way", next_step="repeat later")
        try:
            path = f"{self._folder}/{random_id()}.part"
            file = self._files.random_file(path, label="guest-file")
            try:
                yield file
            finally:
                file.close()
                self._files.remove(path, label="guest-file", missing_ok=True)
        finally:
            self._room.release()


class Upload:
    """One file on its way into a guest. One thread."""

    def __init__(self, file: RandomFile, finish: Finish) -> None:
        self._file, self._finish = file, finish
        self.size_bytes = 0

    def write(self, data: bytes) -> None:
        """The next bytes. Raises InvalidRequest (too much), OutOfSpace."""
        check_file_bytes(self.size_bytes + len(data))
        if data:
            self._file.write(self.size_bytes, data)
            self.size_bytes += len(data)

    def commit(self) -> GuestFile:
        """Everything has come: put it into the guest (U1)."""
        return self._finish()


def _pieces(file: RandomFile, size_bytes: int) -> Iterator[bytes]:
    for start in range(0, size_bytes, EXTENT_BYTES_MAX):
        data = bytearray(min(EXTENT_BYTES_MAX, size_bytes - start))
        file.read_into(start, memoryview(data))
        yield bytes(data)
