"""The one seam to the disk: write, fsync, rename, remove, lock (laws 1-3).

Owns: every call that changes a file or makes it durable; the tidy test keeps
the rest of the house away from them.
Invariants:
  D1 ``publish`` is atomic: after any crash the path has the old content, or
     all of the new; when it returns, the new survives power loss.
  D2 ``AppendFile.sync`` and ``RandomFile.sync`` return only when everything
     written before survives power loss.
  D3 a failed fsync, or any step whose effect is unknown, poisons the Files
     object: every later change raises StoreFailed until the process starts
     again from the disk. Reads go on.
  D4 a full disk or a lack of file handles met by a step before its fsync never
     poisons: OutOfSpace or Overloaded, and nothing is left behind. (A full disk
     met only by fsync has lost data: that is D3.)
  D5 what recovery sees is durable: opening a log or slot file, ``make_dirs`` and
     ``sweep`` sync what a killed process left in the page cache; opened files are
     then read from the disk, not from pages whose write-back failed.
Failpoints: ``<label>.<step>.before|after``, step one of open, create, write, fsync,
rename, fsync_dir, remove, append, truncate, punch, sync. An error armed at
``after`` means that the step happened and its outcome is unknown (D3).
Callers: any thread; one AppendFile or RandomFile belongs to one thread at a time
(RandomFile reads may run beside writes). Two threads may publish one path: the
last rename wins, whole. A process may hold several Files, each poisoned alone.
Contracts: arraylift/disk/contracts.py. Why: docs/decisions/0001-one-seam-to-the-disk.md.
Tests run this same code over ``tests.fakes.disk.FakeFiles``, which enumerates the
legal states after a power cut.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import itertools
import os
import stat
from collections.abc import Sequence

from arraylift.disk.contracts import (
    AppendFile,
    Buffer,
    Files,
    FileStatus,
    RandomFile,
    StoreLock,
    SystemCalls,
)
from arraylift.disk.opened import DIRECT_ALIGNMENT, RealAppendFile, RealRandomFile, RealStoreLock
from arraylift.disk.steps import Steps, byte_view, reading
from arraylift.errors import AlreadyExists, Corruption, NotFound
from arraylift.failpoints import FAILPOINTS, Failpoints

__all__ = [
    "DIRECT_ALIGNMENT",
    "TEMPORARY_SUFFIX",
    "AppendFile",
    "Buffer",
    "Files",
    "OsCalls",
    "RandomFile",
    "RealFiles",
    "StoreLock",
]

TEMPORARY_SUFFIX = ".tmp"


class OsCalls:
    """SystemCalls of this machine."""

    _PUNCH_HOLE_KEEP_SIZE = 0x03

    def __init__(self) -> None:
        self._fallocate = ctypes.CDLL(None, use_errno=True).fallocate
        self._fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]

    def open(self, path: str, flags: int) -> int:
        return os.open(path, flags | os.O_CLOEXEC, 0o600)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def stat(self, path: str) -> FileStatus:
        return _status(os.stat(path))

    def fstat(self, descriptor: int) -> FileStatus:
        return _status(os.fstat(descriptor))

    def pread(self, descriptor: int, length: int, offset: int) -> bytes:
        return os.pread(descriptor, length, offset)

    def preadv(self, descriptor: int, into: memoryview, offset: int) -> int:
        return os.preadv(descriptor, [into], offset)

    def pwrite(self, descriptor: int, data: memoryview, offset: int) -> int:
        try:
            return os.pwrite(descriptor, data, offset)
        except OSError as error:
            flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
            if error.errno != errno.EINVAL or not flags & os.O_DIRECT:
                raise
            # The file system took O_DIRECT at open but wants another alignment: go buffered.
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
            return os.pwrite(descriptor, data, offset)

    def ftruncate(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)

    def punch(self, descriptor: int, offset: int, length: int) -> None:
        while self._fallocate(descriptor, self._PUNCH_HOLE_KEEP_SIZE, offset, length) != 0:
            code = ctypes.get_errno()
            if code != errno.EINTR:
                raise OSError(code, os.strerror(code))

    def fdatasync(self, descriptor: int) -> None:
        os.fdatasync(descriptor)

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def drop_cache(self, descriptor: int) -> None:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def flock(self, descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def listdir(self, path: str) -> list[str]:
        return os.listdir(path)

    def mkdir(self, path: str) -> None:
        os.mkdir(path, 0o700)

    def rename(self, path: str, to: str) -> None:
        os.rename(path, to)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def free_bytes(self, path: str) -> int:
        stats = os.statvfs(path)
        return stats.f_bavail * stats.f_frsize

    def total_bytes(self, path: str) -> int:
        stats = os.statvfs(path)
        return stats.f_blocks * stats.f_frsize


def _status(found: os.stat_result) -> FileStatus:
    return FileStatus(found.st_size, found.st_blocks * 512, stat.S_ISDIR(found.st_mode), found.st_dev)


class RealFiles(Steps):
    """Files on this machine's file systems, or on any disk that ``system`` stands for."""

    def __init__(self, failpoints: Failpoints = FAILPOINTS, *, system: SystemCalls | None = None) -> None:
        super().__init__(failpoints, system or OsCalls())
        self._serial = itertools.count()

    # -- reading ----------------------------------------------------------------------------

    def list_dir(self, path: str) -> list[str]:
        return [name for name in self._names(path) if not name.endswith(TEMPORARY_SUFFIX)]

    def _names(self, path: str) -> list[str]:
        try:
            with reading(path):
                return sorted(self.system.listdir(path))
        except NotFound:
            return []

    def exists(self, path: str) -> bool:
        try:
            with reading(path):
                self.system.stat(path)
        except NotFound:
            return False
        return True

    def size(self, path: str) -> int:
        with reading(path):
            return self.system.stat(path).size

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        assert offset >= 0
        assert length is None or length >= 0
        with reading(path):
            descriptor = self.system.open(path, os.O_RDONLY)
            try:
                wanted = self.system.fstat(descriptor).size - offset if length is None else length
                data = self.system.pread(descriptor, wanted, offset) if wanted > 0 else b""
                while len(data) < wanted:
                    more = self.system.pread(descriptor, wanted - len(data), offset + len(data))
                    if not more:
                        break
                    data += more
            finally:
                self.close(descriptor)
        if len(data) != wanted:
            raise Corruption(f"{path} is too short for {wanted} bytes at {offset}", subject=path)
        return data

    def free_bytes(self, path: str) -> int:
        with reading(path):
            return self.system.free_bytes(path)

    def total_bytes(self, path: str) -> int:
        with reading(path):
            return self.system.total_bytes(path)

    # -- changing ---------------------------------------------------------------------------

    def make_dirs(self, path: str) -> None:
        missing = []
        while not self.exists(path):
            missing.append(path)
            path = os.path.dirname(path)
        with reading(path):
            found, above = self.system.stat(path), self.system.stat(os.path.dirname(path))
        if not found.is_dir:
            raise AlreadyExists(f"{path} is there and is not a directory", subject=path)
        if found.device == above.device:
            self._sync_found(path)
        for child in reversed(missing):
            with self.parent_of(child, "directory") as parent:
                with self.step("directory", "create", child), contextlib.suppress(FileExistsError):
                    self.system.mkdir(child)
                self.sync_dir(parent, child, "directory")

    def _sync_found(self, path: str) -> None:
        """A process that was killed may have made this directory and not yet its name durable (D5)."""
        above = os.path.dirname(path)
        descriptor = -1
        try:
            with self.step("directory", "open", above):
                try:
                    descriptor = self.system.open(above, os.O_RDONLY | os.O_DIRECTORY)
                except PermissionError:
                    return  # where we may not read we made nothing
            self.sync_dir(descriptor, path, "directory")
        finally:
            self.close(descriptor)

    def publish(self, path: str, parts: Sequence[Buffer], *, label: str) -> None:
        assert not path.endswith(TEMPORARY_SUFFIX), f"sweep would take {path} away"
        temporary = f"{path}.{next(self._serial)}{TEMPORARY_SUFFIX}"
        with self.parent_of(path, label) as directory:
            try:
                self._write_whole(temporary, parts, label)
                with self.step(label, "rename", path):
                    self.system.rename(temporary, path)
            except BaseException:
                with contextlib.suppress(OSError):  # else the next sweep takes it
                    self.system.unlink(temporary)
                raise
            self.sync_dir(directory, path, label)

    def _write_whole(self, path: str, parts: Sequence[Buffer], label: str) -> None:
        descriptor = -1
        try:
            with self.step(label, "create", path):
                descriptor = self._create(path, parts)
            with self.step(label, "write", path):
                offset = 0
                for view in map(byte_view, parts):
                    self.write_all(descriptor, view, offset)
                    offset += view.nbytes
            with self.step(label, "fsync", path):
                self.system.fdatasync(descriptor)
        finally:
            self.close(descriptor)

    def _create(self, path: str, parts: Sequence[Buffer]) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        if len(parts) == 1 and isinstance(parts[0], memoryview) and _whole_pages(parts[0]):
            with contextlib.suppress(OSError):  # tmpfs and some network file systems refuse
                return self.system.open(path, flags | os.O_DIRECT)
        return self.system.open(path, flags)

    def remove(self, path: str, *, label: str, missing_ok: bool = False) -> None:
        if missing_ok and not self.exists(os.path.dirname(path)):
            return
        with self.parent_of(path, label) as directory:
            try:
                with self.step(label, "remove", path):
                    self.system.unlink(path)
            except NotFound:
                if not missing_ok:
                    raise
            # Even where nothing was there: a killed process may have removed it undurably (D5).
            self.sync_dir(directory, path, label)

    def move(self, path: str, to: str, *, label: str) -> None:
        with self.parent_of(to, label) as new, self.parent_of(path, label) as old:
            with self.step(label, "rename", path):
                self.system.rename(path, to)
            # The new name first: what was moved is never without one.
            self.sync_dir(new, to, label)
            if os.path.dirname(path) != os.path.dirname(to):
                self.sync_dir(old, path, label)

    def sweep(self, directory: str) -> int:
        if not self.exists(directory):
            return 0
        stale = [name for name in self._names(directory) if name.endswith(TEMPORARY_SUFFIX)]
        with self.parent_of(os.path.join(directory, "any"), "sweep") as descriptor:
            for name in stale:
                path = os.path.join(directory, name)
                with self.step("sweep", "remove", path):
                    self.system.unlink(path)
            self.sync_dir(descriptor, os.path.join(directory, "any"), "sweep")
        return len(stale)

    def append_file(self, path: str, *, label: str) -> AppendFile:
        return RealAppendFile(self, path, label)

    def random_file(self, path: str, *, label: str) -> RandomFile:
        return RealRandomFile(self, path, label)

    def lock(self, directory: str) -> StoreLock:
        return RealStoreLock(self, directory)


def _whole_pages(view: memoryview) -> bool:
    return view.nbytes > 0 and view.nbytes % DIRECT_ALIGNMENT == 0
