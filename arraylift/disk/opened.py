"""Open files of a store: its logs, its slot files, its lock.

Owns: one descriptor each. Invariants: D2 to D5 of ``arraylift.durable``, through whose ``Files``
they are opened. Callers: one thread at a time, except that slot files are read by any.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import socket
import threading

from arraylift.disk.contracts import Buffer
from arraylift.disk.steps import Steps, byte_view, reading
from arraylift.errors import Corruption, OutOfSpace, Overloaded, WrongState

DIRECT_ALIGNMENT = 4096
DIRECT_BYTES_MIN = 256 << 10
"""Smaller writes gain nothing from going past the page cache."""
BOUNCE_BYTES = 1 << 20
"""Aligned memory of each thread that writes in bulk."""

_ZEROS = bytes(1 << 20)
_LOCK_BYTES = 200


class _OpenFile:
    """What AppendFile and RandomFile share: a descriptor whose name and content are durable (D5)."""

    def __init__(self, files: Steps, path: str, label: str) -> None:
        self._files = files
        self._label = label
        self.path = path
        self._descriptor = -1
        with files.parent_of(path, label) as directory:
            try:
                with files.step(label, "create", path):
                    self._descriptor = files.system.open(path, os.O_RDWR | os.O_CREAT)
                self.sync()  # an empty file too: a cut to nothing may not be durable yet
                # Pages whose write-back failed in another process look clean: read the disk.
                with contextlib.suppress(OSError):  # advice only
                    files.system.drop_cache(self._descriptor)
                files.sync_dir(directory, path, label)
            except BaseException:
                self.close()
                raise

    def _size(self) -> int:
        with reading(self.path):
            return self._files.system.fstat(self._descriptor).size

    def sync(self) -> None:
        assert self._descriptor >= 0, f"{self.path} is closed"
        with self._files.step(self._label, "sync", self.path):
            self._files.system.fdatasync(self._descriptor)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        self._files.close(descriptor)


class RealAppendFile(_OpenFile):
    """AppendFile over one descriptor."""

    def __init__(self, files: Steps, path: str, label: str) -> None:
        super().__init__(files, path, label)
        try:
            self.size = self._size()
        except BaseException:
            self.close()
            raise

    def append(self, data: Buffer) -> None:
        assert self._descriptor >= 0, f"{self.path} is closed"
        view = byte_view(data)
        try:
            with self._files.step(self._label, "append", self.path):
                self._files.write_all(self._descriptor, view, self.size)
        except (OutOfSpace, Overloaded):
            with self._files.step(self._label, "truncate", self.path):
                self._files.system.ftruncate(self._descriptor, self.size)
            raise
        self.size += view.nbytes

    def truncate(self, size: int) -> None:
        assert self._descriptor >= 0, f"{self.path} is closed"
        assert 0 <= size <= self.size, f"a log of {self.size} bytes is only ever cut, not made {size}"
        with self._files.step(self._label, "truncate", self.path):
            self._files.system.ftruncate(self._descriptor, size)
        self.size = size
        self.sync()


class RealRandomFile(_OpenFile):
    """RandomFile over one descriptor, and a second one past the page cache for large writes.

    Bulk writes (imports, restores) cost a third of the CPU that way, and do not push what guests
    read out of the cache. Reads and small writes stay buffered; the kernel keeps the two in step.
    """

    def __init__(self, files: Steps, path: str, label: str) -> None:
        self._direct = -1
        self._bounce = threading.local()
        super().__init__(files, path, label)
        with contextlib.suppress(OSError):  # tmpfs and some network file systems refuse
            self._direct = files.system.open(path, os.O_RDWR | os.O_DIRECT)

    def close(self) -> None:
        direct, self._direct = self._direct, -1
        self._files.close(direct)
        super().close()

    def _check_use(self, offset: int) -> None:
        assert self._descriptor >= 0, f"{self.path} is closed"
        assert offset >= 0, f"{offset} is before the start of {self.path}"

    def write(self, offset: int, data: Buffer) -> None:
        self._check_use(offset)
        view = byte_view(data)
        aligned = offset % DIRECT_ALIGNMENT == 0 and view.nbytes % DIRECT_ALIGNMENT == 0
        with self._files.step(self._label, "write", self.path):
            if aligned and view.nbytes >= DIRECT_BYTES_MIN and self._direct >= 0:
                self._write_direct(offset, view)
            else:
                self._files.write_all(self._descriptor, view, offset)

    def _write_direct(self, offset: int, view: memoryview) -> None:
        """Through an aligned buffer of this thread: O_DIRECT asks that of the memory too."""
        buffer: memoryview | None = getattr(self._bounce, "buffer", None)
        if buffer is None:
            buffer = self._bounce.buffer = memoryview(mmap.mmap(-1, BOUNCE_BYTES))
        for start in range(0, view.nbytes, BOUNCE_BYTES):
            piece = view[start : start + BOUNCE_BYTES]
            buffer[: piece.nbytes] = piece
            self._files.write_all(self._direct, buffer[: piece.nbytes], offset + start)

    def read_into(self, offset: int, into: memoryview) -> None:
        past = self._read(offset, into)
        if past.nbytes:
            past[:] = bytes(past.nbytes)

    def read_exactly(self, offset: int, into: memoryview) -> None:
        left = self._read(offset, into).nbytes
        if left:
            raise Corruption(
                f"{self.path} ends before byte {offset + into.nbytes}",
                subject=self.path,
                next_step="somebody cut the file: restore it from a copy",
            )

    def _read(self, offset: int, into: memoryview) -> memoryview:
        """Read up to the end of the file; returns what of ``into`` is left."""
        self._check_use(offset)
        into = into.cast("B") if into.nbytes else into
        while into.nbytes:
            with reading(self.path):
                count = self._files.system.preadv(self._descriptor, into, offset)
            if count == 0:
                break
            offset, into = offset + count, into[count:]
        return into

    def punch(self, offset: int, length: int) -> None:
        self._check_use(offset)
        assert length > 0, "a hole has a length"
        with self._files.step(self._label, "punch", self.path):
            try:
                self._files.system.punch(self._descriptor, offset, length)
            except OSError as error:
                if error.errno not in {errno.EOPNOTSUPP, errno.ENOSYS}:
                    raise
                self._write_zeros(offset, length)

    def _write_zeros(self, offset: int, length: int) -> None:
        """Where the file system has no holes: zeros, which keep the space, and never a longer file."""
        end = min(offset + length, self._size())
        for start in range(offset, end, len(_ZEROS)):
            piece = memoryview(_ZEROS)[: min(len(_ZEROS), end - start)]
            self._files.write_all(self._descriptor, piece, start)

    def allocated_bytes(self) -> int:
        assert self._descriptor >= 0, f"{self.path} is closed"
        with reading(self.path):
            return self._files.system.fstat(self._descriptor).allocated_bytes


class RealStoreLock(_OpenFile):
    """flock on ``<directory>/lock`` with a persisted fencing token; never expires (law 9).

    The token has a fixed width, so that a write of the next one, torn anywhere, still reads as
    no less than the one before.
    """

    def __init__(self, files: Steps, directory: str) -> None:
        super().__init__(files, os.path.join(directory, "lock"), "lock")
        try:
            self._take(directory)
            self.token = self._last_token() + 1
            line = f"{self.token:020d} pid {os.getpid()} on {socket.gethostname()}"
            with files.step("lock", "write", self.path):
                page = line.encode()[: _LOCK_BYTES - 1].ljust(_LOCK_BYTES - 1) + b"\n"
                files.write_all(self._descriptor, memoryview(page), 0)
            self.sync()
        except BaseException:
            self.close()
            raise

    def _read(self) -> str:
        with reading(self.path):
            page = self._files.system.pread(self._descriptor, _LOCK_BYTES, 0)
        return page.decode("ascii", "replace").strip("\0 \n")

    def _take(self, directory: str) -> None:
        with self._files.step("lock", "open", self.path):
            try:
                self._files.system.flock(self._descriptor)
            except BlockingIOError:
                owner = self._read().partition(" ")[2] or "another process"
                raise WrongState(
                    f"state directory {directory} is in use by {owner}",
                    subject=directory,
                    next_step="stop that daemon first, or give this one another directory",
                ) from None

    def _last_token(self) -> int:
        text = self._read()
        token = text.partition(" ")[0]
        if text and not (token.isascii() and token.isdigit()):
            raise Corruption(
                f"{self.path} does not hold a token: {text[:40]!r}",
                subject=self.path,
                next_step="check the disk; the token must never go back, so do not delete the file",
            )
        return int(token) if text else 0
