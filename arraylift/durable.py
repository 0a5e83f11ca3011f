"""The one seam to the disk: write, fsync, rename, remove, lock (laws 1-3).

Owns: every call that changes a file or makes it durable; the tidy test keeps
the rest of the house away from them.
Invariants:
  D1 ``publish`` is atomic: after any crash the path has the old content, or
     all of the new; when it returns, the new survives power loss.
  D2 ``AppendFile.sync`` and ``RandomFile.sync`` return only when everything
     written before survives power loss.
  D3 a failed write-back (fsync) poisons the Files object: every later change
     raises StoreFailed until the process starts again from the disk.
  D4 a full disk never poisons: OutOfSpace, and nothing is left behind.
Failpoints: ``<label>.<step>.before|after``, step one of create, write, fsync,
rename, fsync_dir, remove, append, sync.
Callers: any thread; one AppendFile or RandomFile belongs to one thread at a time
(RandomFile reads may run beside writes).
Tests run the same code over ``tests.fakes.disk.FakeFiles``, which enumerates the
legal states after a power cut.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator, Sequence
from typing import Protocol

from arraylift.errors import Corruption, NotFound, OutOfSpace, StoreFailed, WrongState
from arraylift.failpoints import FAILPOINTS, Failpoints

Buffer = bytes | bytearray | memoryview
"""Anything that ``os.write`` takes; mmap comes wrapped in a memoryview."""

DIRECT_ALIGNMENT = 4096
TEMPORARY_SUFFIX = ".tmp"

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class AppendFile(Protocol):
    """A log: grows at its end, read by its owner's parser at start."""

    @property
    def size(self) -> int:
        """Bytes appended so far, synced or not."""
        ...

    def append(self, data: Buffer) -> None:
        """Add ``data`` at the end; may be torn by a crash before ``sync``. OutOfSpace leaves the
        size as it was."""
        ...

    def sync(self) -> None:
        """Make everything appended durable (D2)."""
        ...

    def truncate(self, size: int) -> None:
        """Cut a torn tail off and make that durable."""
        ...

    def close(self) -> None: ...


class RandomFile(Protocol):
    """A sparse file of slots, written in place."""

    @property
    def path(self) -> str:
        """For worker processes that open it read-only."""
        ...

    def write(self, offset: int, data: Buffer) -> None:
        """Write all of ``data``; torn by a crash before ``sync``."""
        ...

    def read_into(self, offset: int, into: memoryview) -> None:
        """Fill ``into``; bytes past the end of the file are zero. Any thread."""
        ...

    def punch(self, offset: int, length: int) -> None:
        """Give the space back; reads as zero afterwards. Durable with the next ``sync``."""
        ...

    def allocated_bytes(self) -> int:
        """What the file occupies on its disk."""
        ...

    def sync(self) -> None: ...

    def close(self) -> None: ...


class StoreLock(Protocol):
    """Held for the life of a store; ``token`` grows with every holder (law 9)."""

    @property
    def token(self) -> int: ...

    def close(self) -> None: ...


class Files(Protocol):
    """All file access of a store. Paths are absolute and made by us, never by a peer."""

    def make_dirs(self, path: str) -> None:
        """Create a directory and its parents, durably; no error if it is there."""
        ...

    def list_dir(self, path: str) -> list[str]:
        """Names in ``path``, sorted; temporary files of ``publish`` are not shown. A missing
        directory is empty."""
        ...

    def exists(self, path: str) -> bool: ...

    def size(self, path: str) -> int:
        """Raises NotFound."""
        ...

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return exactly ``length`` bytes, or all to the end. Raises NotFound, Corruption if
        the file is shorter."""
        ...

    def publish(self, path: str, parts: Sequence[Buffer], *, label: str) -> None:
        """Replace or create ``path`` by the concatenation of ``parts`` (D1). A single part that
        is page aligned goes past the page cache where the file system allows it."""
        ...

    def remove(self, path: str, *, label: str, missing_ok: bool = False) -> None:
        """Unlink, durably. Raises NotFound."""
        ...

    def move(self, path: str, to: str, *, label: str) -> None:
        """Rename within one store, durably."""
        ...

    def append_file(self, path: str, *, label: str) -> AppendFile:
        """Open or create a log, positioned at its end; its name is durable on return."""
        ...

    def random_file(self, path: str, *, label: str) -> RandomFile:
        """Open or create a slot file; its name is durable on return."""
        ...

    def lock(self, directory: str) -> StoreLock:
        """Take the directory for this process. Raises WrongState naming the owner."""
        ...

    def sweep(self, directory: str) -> int:
        """Remove temporary files that a crash left; returns how many."""
        ...

    def free_bytes(self, path: str) -> int:
        """Free space of the file system that holds ``path``."""
        ...


class RealFiles:
    """Files on this machine's file systems."""

    def __init__(self, failpoints: Failpoints = FAILPOINTS) -> None:
        self._failpoints = failpoints
        self._poison = ""

    # -- guards -----------------------------------------------------------------------------

    def check_alive(self) -> None:
        """Raise StoreFailed if an earlier fsync failed (D3)."""
        if self._poison:
            raise StoreFailed(
                f"the store stopped taking writes: {self._poison}",
                next_step="check the disk, then restart the daemon; it recovers from what is on disk",
            )

    @contextlib.contextmanager
    def step(self, label: str, step: str, path: str) -> Iterator[None]:
        """Run one step between its failpoints and translate what the disk says."""
        self.check_alive()
        try:
            self._failpoints.hit(f"{label}.{step}.before")
            yield
            self._failpoints.hit(f"{label}.{step}.after")
        except OSError as error:
            if error.errno in _FULL and step not in {"fsync", "sync", "fsync_dir"}:
                raise OutOfSpace(
                    f"the disk is full while writing {path}",
                    subject=path,
                    next_step="free space on that file system, then repeat",
                ) from error
            self._poison = f"{step} of {path} failed: {error.strerror}"
            self.check_alive()

    def sync_dir(self, path: str, label: str) -> None:
        with self.step(label, "fsync_dir", path):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    # -- reading ----------------------------------------------------------------------------

    def list_dir(self, path: str) -> list[str]:
        try:
            names = os.listdir(path)
        except FileNotFoundError:
            return []
        return sorted(name for name in names if not name.endswith(TEMPORARY_SUFFIX))

    def exists(self, path: str) -> bool:
        return os.path.lexists(path)

    def size(self, path: str) -> int:
        try:
            return os.stat(path).st_size
        except FileNotFoundError:
            raise NotFound(f"{path} is not there", subject=path) from None

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise NotFound(f"{path} is not there", subject=path) from None
        try:
            wanted = os.fstat(descriptor).st_size - offset if length is None else length
            data = os.pread(descriptor, wanted, offset)
            while len(data) < wanted:
                more = os.pread(descriptor, wanted - len(data), offset + len(data))
                if not more:
                    raise Corruption(f"{path} ends at {offset + len(data)}", subject=path)
                data += more
            return data
        except OSError as error:
            raise Corruption(f"{path} cannot be read: {error.strerror}", subject=path) from error
        finally:
            os.close(descriptor)

    def free_bytes(self, path: str) -> int:
        stats = os.statvfs(path)
        return stats.f_bavail * stats.f_frsize

    # -- changing ---------------------------------------------------------------------------

    def make_dirs(self, path: str) -> None:
        missing = []
        while not os.path.isdir(path):
            missing.append(path)
            path = os.path.dirname(path)
        for child in reversed(missing):
            with self.step("directory", "create", child):
                os.mkdir(child, 0o700)
            self.sync_dir(os.path.dirname(child), "directory")

    def publish(self, path: str, parts: Sequence[Buffer], *, label: str) -> None:
        temporary = path + TEMPORARY_SUFFIX
        try:
            with self.step(label, "create", temporary):
                descriptor = _create(temporary, parts)
            try:
                with self.step(label, "write", temporary):
                    for part in parts:
                        _write_all(descriptor, part)
                with self.step(label, "fsync", temporary):
                    os.fdatasync(descriptor)
            finally:
                os.close(descriptor)
            with self.step(label, "rename", path):
                os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        self.sync_dir(os.path.dirname(path), label)

    def remove(self, path: str, *, label: str, missing_ok: bool = False) -> None:
        if not os.path.lexists(path):
            if missing_ok:
                return
            raise NotFound(f"{path} is not there", subject=path)
        with self.step(label, "remove", path):
            os.unlink(path)
        self.sync_dir(os.path.dirname(path), label)

    def move(self, path: str, to: str, *, label: str) -> None:
        with self.step(label, "rename", to):
            os.rename(path, to)
        for parent in {os.path.dirname(path), os.path.dirname(to)}:
            self.sync_dir(parent, label)

    def sweep(self, directory: str) -> int:
        names = os.listdir(directory) if os.path.isdir(directory) else []
        stale = [name for name in names if name.endswith(TEMPORARY_SUFFIX)]
        for name in stale:
            self.remove(os.path.join(directory, name), label="sweep")
        return len(stale)

    def append_file(self, path: str, *, label: str) -> AppendFile:
        return RealAppendFile(self, path, label)

    def random_file(self, path: str, *, label: str) -> RandomFile:
        return RealRandomFile(self, path, label)

    def lock(self, directory: str) -> StoreLock:
        return RealStoreLock(self, directory)


def _create(path: str, parts: Sequence[Buffer]) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    direct = len(parts) == 1 and len(parts[0]) and len(parts[0]) % DIRECT_ALIGNMENT == 0
    if direct and isinstance(parts[0], memoryview):
        with contextlib.suppress(OSError):  # tmpfs and some network file systems refuse
            return os.open(path, flags | os.O_DIRECT, 0o600)
    return os.open(path, flags, 0o600)


def _write_all(descriptor: int, data: Buffer, offset: int | None = None) -> None:
    view = memoryview(data)
    while view.nbytes:
        try:
            if offset is None:
                written = os.write(descriptor, view)
            else:
                written = os.pwrite(descriptor, view, offset)
                offset += written
        except OSError as error:
            if error.errno != errno.EINVAL or not fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
                raise
            # The file system took O_DIRECT at open but wants another alignment: go buffered.
            flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
            continue
        view = view[written:]


class _OpenFile:
    """What AppendFile and RandomFile share: a descriptor whose name is durable."""

    def __init__(self, files: RealFiles, path: str, label: str) -> None:
        self._files = files
        self._label = label
        self.path = path
        fresh = not os.path.exists(path)
        with files.step(label, "create", path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if fresh:
            files.sync_dir(os.path.dirname(path), label)

    def sync(self) -> None:
        with self._files.step(self._label, "sync", self.path):
            os.fdatasync(self._descriptor)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class RealAppendFile(_OpenFile):
    """AppendFile over one descriptor."""

    def __init__(self, files: RealFiles, path: str, label: str) -> None:
        super().__init__(files, path, label)
        self.size = os.fstat(self._descriptor).st_size

    def append(self, data: Buffer) -> None:
        try:
            with self._files.step(self._label, "append", self.path):
                _write_all(self._descriptor, data, self.size)
        except OutOfSpace:
            os.ftruncate(self._descriptor, self.size)
            raise
        self.size += len(data)

    def truncate(self, size: int) -> None:
        with self._files.step(self._label, "truncate", self.path):
            os.ftruncate(self._descriptor, size)
        self.size = size
        self.sync()


class RealRandomFile(_OpenFile):
    """RandomFile over one descriptor."""

    _PUNCH_KEEP_SIZE = 0x03

    def write(self, offset: int, data: Buffer) -> None:
        with self._files.step(self._label, "write", self.path):
            _write_all(self._descriptor, data, offset)

    def read_into(self, offset: int, into: memoryview) -> None:
        while into.nbytes:
            try:
                count = os.preadv(self._descriptor, [into], offset)
            except OSError as error:
                raise Corruption(
                    f"{self.path} cannot be read at {offset}: {error.strerror}", subject=self.path
                ) from error
            if count == 0:
                into[:] = bytes(into.nbytes)
                return
            offset, into = offset + count, into[count:]

    def punch(self, offset: int, length: int) -> None:
        with self._files.step(self._label, "punch", self.path):
            _punch(self._descriptor, offset, length)

    def allocated_bytes(self) -> int:
        return os.fstat(self._descriptor).st_blocks * 512


def _punch(descriptor: int, offset: int, length: int) -> None:
    """fallocate(PUNCH_HOLE | KEEP_SIZE); a file system without it keeps the space."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    call = libc.fallocate
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if call(descriptor, RealRandomFile._PUNCH_KEEP_SIZE, offset, length) != 0:
        code = ctypes.get_errno()
        if code in {errno.EOPNOTSUPP, errno.ENOSYS}:
            _write_all(descriptor, bytes(length), offset)
            return
        raise OSError(code, os.strerror(code))


class RealStoreLock:
    """flock on ``<directory>/lock`` with a persisted fencing token; never expires (law 9)."""

    def __init__(self, files: RealFiles, directory: str) -> None:
        path = os.path.join(directory, "lock")
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        content = os.pread(self._descriptor, 200, 0).decode("ascii", "replace").split()
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            owner = " ".join(content[1:]) or "another process"
            raise WrongState(
                f"state directory {directory} is in use by {owner}",
                subject=directory,
                next_step="stop that daemon first, or give this one another directory",
            ) from None
        content = os.pread(self._descriptor, 200, 0).decode("ascii", "replace").split()
        self.token = int(content[0]) + 1 if content and content[0].isdigit() else 1
        line = f"{self.token} pid {os.getpid()} on {socket.gethostname()}".ljust(199) + "\n"
        with files.step("lock", "write", path):
            os.pwrite(self._descriptor, line.encode(), 0)
        with files.step("lock", "sync", path):
            os.fsync(self._descriptor)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
