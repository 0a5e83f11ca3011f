"""A simulated kernel: ``SystemCalls`` over files in memory, each with its unsynced past.

Owns: what is durable, what is only in the cache, and the order between them; faults and the
power switch. The model of the disk is stated in ``tests/fakes/disk.py``.
Callers: any thread; one lock covers every call.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from arraylift.disk.contracts import FileStatus
from tests.fakes.content import PAGE_BYTES, Content, DataOp

ROOT = 0
LOG_ENTRIES_MAX = 10_000
UNLIMITED_BYTES = 1 << 50


class PowerCut(BaseException):
    """The machine is gone. Not an Exception: no handler of the tested code may survive it."""


@dataclass(slots=True)
class Inode:
    """A file or a directory; ``current`` is the cache, ``durable`` the disk without ``pending``."""

    number: int
    is_dir: bool
    durable: Content = field(default_factory=Content)
    current: Content = field(default_factory=Content)
    pending: list[DataOp] = field(default_factory=list)
    locked_by: int = -1
    unreadable: bool = False
    cache_lies: bool = False
    """Pages whose write-back failed are still shown from the cache."""

    def change(self, op: DataOp) -> None:
        # Contents are shared with the durable state and with other kernels: copy, then write.
        self.current = self.current.copy()
        op.apply(self.current)
        self.pending.append(op)

    def commit(self) -> None:
        """A successful fsync; what an earlier one failed to write is lost without a word."""
        self.durable = self.on_disk()
        self.cache_lies = self.cache_lies or any(op.doomed for op in self.pending)
        self.pending.clear()

    def on_disk(self) -> Content:
        """The durable content with all that the kernel still will write."""
        if not self.cache_lies and not any(op.doomed for op in self.pending):
            return self.current
        content = self.durable.copy()
        for op in self.pending:
            if not op.doomed:
                op.apply(content)
        return content

    def forget_cache(self) -> None:
        self.current = self.on_disk()
        self.pending = [op for op in self.pending if not op.doomed]
        self.cache_lies = False

    def doom(self) -> None:
        """A failed fsync: the kernel marks the pages clean and forgets them."""
        self.pending = [replace(op, doomed=True) for op in self.pending]

    def clone(self) -> Inode:
        return replace(self, pending=list(self.pending), locked_by=-1)


Entry = tuple[int, str]
"""A name: directory's inode number, name in it."""


@dataclass(frozen=True, slots=True)
class NameOp:
    """One unsynced change of names, atomic; each entry gets an inode or loses its own (None)."""

    text: str
    entries: tuple[tuple[Entry, int | None], ...]

    def touches(self, entries: set[Entry]) -> bool:
        return any(entry in entries for entry, _ in self.entries)

    def apply(self, names: dict[Entry, int]) -> None:
        for entry, inode in self.entries:
            if inode is None:
                names.pop(entry, None)
            else:
                names[entry] = inode


class FakeKernel:
    """SystemCalls of a machine that can be switched off."""

    def __init__(self, capacity_bytes: int | None = None) -> None:
        self.inodes: dict[int, Inode] = {ROOT: Inode(ROOT, is_dir=True)}
        self.names: dict[Entry, int] = {}
        self.durable_names: dict[Entry, int] = {}
        self.pending_names: list[NameOp] = []
        self.capacity_bytes = capacity_bytes
        self.handles_max = 1024
        self.dead = False
        self.op_count = 0
        self.log: deque[str] = deque(maxlen=LOG_ENTRIES_MAX)
        self.crash_at: int | None = None
        self.full_at: int | None = None
        self.faults: dict[int, int] = {}
        self.mutex = threading.RLock()
        self.handles: dict[int, Inode] = {}
        self._next_handle = 3
        self.next_inode = 1

    def restart(self) -> FakeKernel:
        """Kill all processes: the cache stays, handles and locks go. This kernel is then dead."""
        with self.mutex:
            self.dead = True
            other = FakeKernel(self.capacity_bytes)
            other.inodes = {number: inode.clone() for number, inode in self.inodes.items()}
            other.names, other.durable_names = self.names.copy(), self.durable_names.copy()
            other.pending_names = self.pending_names.copy()
            other.next_inode = self.next_inode
            return other

    # -- the power switch and the faults ------------------------------------------------------

    def check_power(self) -> None:
        if self.dead:
            raise PowerCut("this machine has no power")

    @contextmanager
    def operation(self, text: str) -> Iterator[int]:
        """One primitive change. Yields 0, or the errno that it must fail with."""
        with self.mutex:
            self.check_power()
            number, self.op_count = self.op_count, self.op_count + 1
            self.log.append(f"{number} {text}")
            if number == self.crash_at:
                self.dead = True
            if number == self.full_at:
                self.capacity_bytes = self.used_bytes()
            code = self.faults.pop(number, 0)
            yield code
            if self.dead:
                raise PowerCut(f"power cut at operation {text}")
            if code:
                raise OSError(code, f"{os.strerror(code)} (injected)")

    # -- names --------------------------------------------------------------------------------

    def resolve(self, path: str) -> Inode:
        assert path.startswith("/"), f"{path} is not absolute"
        inode = self.inodes[ROOT]
        for name in filter(None, path.split("/")):
            if not inode.is_dir:
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            number = self.names.get((inode.number, name))
            if number is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            inode = self.inodes[number]
        return inode

    def _entry(self, path: str) -> Entry:
        parent = self.resolve(os.path.dirname(path))
        if not parent.is_dir:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return parent.number, os.path.basename(path)

    def _rename_entries(self, text: str, *entries: tuple[Entry, int | None]) -> None:
        op = NameOp(text, entries)
        op.apply(self.names)
        self.pending_names.append(op)

    def _new_inode(self, *, is_dir: bool) -> Inode:
        inode = Inode(self.next_inode, is_dir)
        self.next_inode += 1
        self.inodes[inode.number] = inode
        return inode

    def mkdir(self, path: str) -> None:
        with self.mutex:
            self.check_power()
            entry = self._entry(path)
            if entry in self.names:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            with self.operation(f"mkdir {path}") as code:
                if not code:
                    self._rename_entries(f"mkdir {path}", (entry, self._new_inode(is_dir=True).number))

    def rename(self, path: str, to: str) -> None:
        with self.mutex:
            self.check_power()
            number, source, target = self.resolve(path).number, self._entry(path), self._entry(to)
            with self.operation(f"rename {path} {to}") as code:
                if not code:
                    self._rename_entries(f"rename {path} {to}", (source, None), (target, number))

    def unlink(self, path: str) -> None:
        with self.mutex:
            self.check_power()
            if self.resolve(path).is_dir:
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            entry = self._entry(path)
            with self.operation(f"unlink {path}") as code:
                if not code:
                    self._rename_entries(f"unlink {path}", (entry, None))

    def listdir(self, path: str) -> list[str]:
        with self.mutex:
            self.check_power()
            inode = self.resolve(path)
            if not inode.is_dir:
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            return [name for directory, name in self.names if directory == inode.number]

    def stat(self, path: str) -> FileStatus:
        with self.mutex:
            self.check_power()
            return _status(self.resolve(path))

    def _sync_names(self, directory: Inode) -> None:
        """Make the names in ``directory`` durable, with all earlier changes of the same entries."""
        needed: set[Entry] = set()
        kept: list[NameOp] = []
        chosen: list[NameOp] = []
        for op in reversed(self.pending_names):
            if op.touches(needed) or any(entry[0] == directory.number for entry, _ in op.entries):
                needed.update(entry for entry, _ in op.entries)
                chosen.append(op)
            else:
                kept.append(op)
        for op in reversed(chosen):
            op.apply(self.durable_names)
        self.pending_names = kept[::-1]

    # -- handles ------------------------------------------------------------------------------

    def open(self, path: str, flags: int) -> int:
        with self.mutex:
            self.check_power()
            if len(self.handles) >= self.handles_max:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            try:
                inode = self.resolve(path)
            except FileNotFoundError:
                if not flags & os.O_CREAT:
                    raise
                inode = self._create(path)
            if bool(flags & os.O_DIRECTORY) > inode.is_dir:
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            if inode.is_dir and flags & (os.O_WRONLY | os.O_RDWR):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if flags & os.O_TRUNC and inode.current.size:
                with self.operation(f"truncate {path} 0") as code:
                    if not code:
                        inode.change(DataOp("truncate", 0))
            handle, self._next_handle = self._next_handle, self._next_handle + 1
            self.handles[handle] = inode
            return handle

    def _create(self, path: str) -> Inode:
        entry = self._entry(path)
        with self.operation(f"create {path}") as code:
            inode = self._new_inode(is_dir=False)
            if not code:
                self._rename_entries(f"create {path}", (entry, inode.number))
        return inode

    def _of(self, descriptor: int) -> Inode:
        self.check_power()
        if descriptor not in self.handles:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self.handles[descriptor]

    def close(self, descriptor: int) -> None:
        """Works without power too, so that ``finally`` blocks of the tested code stay quiet."""
        with self.mutex:
            inode = self.handles.pop(descriptor, None)
            if inode is not None and inode.locked_by == descriptor:
                inode.locked_by = -1

    def flock(self, descriptor: int) -> None:
        with self.mutex:
            inode = self._of(descriptor)
            if inode.locked_by not in {-1, descriptor}:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            inode.locked_by = descriptor

    def fstat(self, descriptor: int) -> FileStatus:
        with self.mutex:
            return _status(self._of(descriptor))

    # -- content ------------------------------------------------------------------------------

    def pread(self, descriptor: int, length: int, offset: int) -> bytes:
        with self.mutex:
            inode = self._of(descriptor)
            if inode.is_dir:
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if inode.unreadable:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return inode.current.read(offset, length)

    def preadv(self, descriptor: int, into: memoryview, offset: int) -> int:
        data = self.pread(descriptor, into.nbytes, offset)
        into[: len(data)] = data
        return len(data)

    def pwrite(self, descriptor: int, data: memoryview, offset: int) -> int:
        with self.mutex:
            inode = self._of(descriptor)
            with self.operation(f"write #{inode.number} {offset}+{data.nbytes}") as code:
                # A failing write leaves its first half, as a short write before the error would.
                fitting = data.nbytes // 2 if code else self._fitting(inode, offset, data.nbytes)
                if fitting:
                    inode.change(DataOp("write", offset, bytes(data[:fitting])))
                elif not code and not self.dead:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return fitting

    def _fitting(self, inode: Inode, offset: int, length: int) -> int:
        """How many of ``length`` bytes the disk has room for."""
        if self.capacity_bytes is None:
            return length
        free_pages = max(0, self.free_bytes("/")) // PAGE_BYTES
        if inode.current.new_pages(offset, length) <= free_pages:
            return length
        fitting = 0
        while fitting < length:
            step = min(PAGE_BYTES - (offset + fitting) % PAGE_BYTES, length - fitting)
            if inode.current.new_pages(offset, fitting + step) > free_pages:
                break
            fitting += step
        return fitting

    def ftruncate(self, descriptor: int, size: int) -> None:
        with self.mutex:
            inode = self._of(descriptor)
            with self.operation(f"truncate #{inode.number} {size}") as code:
                if not code:
                    inode.change(DataOp("truncate", size))

    def punch(self, descriptor: int, offset: int, length: int) -> None:
        with self.mutex:
            inode = self._of(descriptor)
            with self.operation(f"punch #{inode.number} {offset}+{length}") as code:
                if not code:
                    inode.change(DataOp("punch", offset, length=length))

    def fdatasync(self, descriptor: int) -> None:
        self.fsync(descriptor)

    def fsync(self, descriptor: int) -> None:
        with self.mutex:
            inode = self._of(descriptor)
            with self.operation(f"fsync #{inode.number}") as code:
                if code:
                    inode.doom()
                elif not self.dead:  # an fsync in flight leaves everything pending
                    self._sync_names(inode) if inode.is_dir else inode.commit()

    def drop_cache(self, descriptor: int) -> None:
        with self.mutex:
            self._of(descriptor).forget_cache()

    def free_bytes(self, path: str) -> int:
        with self.mutex:
            self.check_power()
            self.resolve(path)
            return self.total_bytes(path) - self.used_bytes()

    def used_bytes(self) -> int:
        alive = {*self.names.values(), *(inode.number for inode in self.handles.values())}
        return sum(self.inodes[number].current.allocated_bytes for number in alive)

    def total_bytes(self, path: str) -> int:
        self.check_power()
        self.resolve(path)
        return UNLIMITED_BYTES if self.capacity_bytes is None else self.capacity_bytes


def _status(inode: Inode) -> FileStatus:
    size = PAGE_BYTES if inode.is_dir else inode.current.size
    return FileStatus(size, inode.current.allocated_bytes, inode.is_dir, device=1)
