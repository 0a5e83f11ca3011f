"""The operator's own files: disk images that come in, images that go out, daemons' logs.

Owns: every file that the command line writes outside a store. It is not ``arraylift.durable``: these
files are the operator's, may be any size, lie anywhere, and belong to no commit protocol.
Invariants:
  L1 a file that stood at the destination stays whole until the new one is: written beside it
     under a temporary name, synced, then renamed; on any error the temporary one is removed.
  L2 without ``overwrite`` nothing that exists is replaced, not even by a race.
Callers: SourceImage from any one thread; the rest main thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from arraylift.errors import (
    AlreadyExists,
    ArrayliftError,
    Conflict,
    InvalidRequest,
    NotFound,
    NotPermitted,
    OutOfSpace,
)
from arraylift.sizes import IMAGE_BYTES_MAX, human

SECTOR_BYTES = 512

_OTHER_FORMATS = {b"QFI\xfb": "a qcow2", b"KDMV": "a VMDK", b"vhdxfile": "a VHDX", b"conectix": "a VHD"}


class SourceImage:
    """A raw disk image, or a block device, opened to be read. A context manager."""

    def __init__(self, path: Path, *, any_content: bool = False) -> None:
        """With ``any_content`` it is raw whatever it begins with.

        Raises NotFound, NotPermitted, InvalidRequest (a directory, not raw, size).
        """
        self.path = path
        self._any_content = any_content
        # A pipe would make open wait for its writer.
        self._descriptor = _open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self.size_bytes = self._checked_size()
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def _checked_size(self) -> int:
        subject = str(self.path)
        size = self._size_of_file("a raw disk image")
        head = os.pread(self._descriptor, 8, 0)
        for magic, name in _OTHER_FORMATS.items():
            if head.startswith(magic) and not self._any_content:
                raise InvalidRequest(
                    f"{self.path} is {name} image, not a raw one",
                    subject=subject,
                    next_step=f"convert it: qemu-img convert -O raw {self.path} {self.path}.raw",
                )
        if size % SECTOR_BYTES or not 0 < size <= IMAGE_BYTES_MAX:
            raise InvalidRequest(
                f"{self.path} has {size:,} bytes, which is no disk's size",
                subject=subject,
                next_step=f"a disk has a multiple of {SECTOR_BYTES}, at most {human(IMAGE_BYTES_MAX)}",
            )
        return size

    def _size_of_file(self, wanted: str) -> int:
        mode = os.fstat(self._descriptor).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            what = "a directory" if stat.S_ISDIR(mode) else "no file"
            raise InvalidRequest(
                f"{self.path} is {what}",
                subject=str(self.path),
                next_step=f"give {wanted} or a block device",
            )
        return os.lseek(self._descriptor, 0, os.SEEK_END)

    def data_ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield (offset, end) of what may hold data within ``start``..``end``, in ascending order.

        Raises Conflict (the file shrank: what it lost is no hole), ArrayliftError.
        """
        while start < end:
            try:
                begin = os.lseek(self._descriptor, start, os.SEEK_DATA)
                stop = os.lseek(self._descriptor, begin, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # only a hole is left
                    if os.lseek(self._descriptor, 0, os.SEEK_END) < self.size_bytes:
                        raise self._shorter() from None
                    return
                if error.errno != errno.EINVAL:
                    raise self._unreadable(error) from None
                begin, stop = start, end  # a device that knows of no holes
            if begin >= end:
                return
            yield begin, min(stop, end)
            start = stop

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes. Raises Conflict (the file shrank), ArrayliftError."""
        data = b""
        while len(data) < length:
            try:
                more = os.pread(self._descriptor, length - len(data), offset + len(data))
            except OSError as error:
                raise self._unreadable(error) from None
            if not more:
                raise self._shorter()
            data = data + more if data else more
        return data

    def _shorter(self) -> Conflict:
        return Conflict(
            f"{self.path} became shorter while it was read",
            subject=str(self.path),
            next_step="stop what writes to it, then repeat",
        )

    def _unreadable(self, error: OSError) -> ArrayliftError:
        return ArrayliftError(
            f"cannot read {self.path}: {error.strerror}", subject=str(self.path), next_step="check its disk"
        )


class SparseFile(SourceImage):
    """A file of any content and size, its holes known. A context manager."""

    def _checked_size(self) -> int:
        size = self._size_of_file("a file")
        if not 0 < size <= IMAGE_BYTES_MAX:
            raise InvalidRequest(
                f"{self.path} has {size:,} bytes",
                subject=str(self.path),
                next_step=f"give a file of 1 byte to {human(IMAGE_BYTES_MAX)}",
            )
        return size


class SourceFile:
    """A regular file of any size, opened to be read from its beginning. A context manager."""

    def __init__(self, path: Path) -> None:
        """Raises NotFound, NotPermitted, InvalidRequest (no regular file)."""
        self.path = path
        self._descriptor = _open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        facts = os.fstat(self._descriptor)
        self.size_bytes = facts.st_size
        self.permissions = stat.S_IMODE(facts.st_mode)
        if not stat.S_ISREG(facts.st_mode):
            os.close(self._descriptor)
            raise InvalidRequest(f"{path} is no regular file", subject=str(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def pieces(self, piece_bytes: int) -> Iterator[bytes]:
        """Yield the content, once."""
        while True:
            try:
                data = os.read(self._descriptor, piece_bytes)
            except OSError as error:
                raise ArrayliftError(
                    f"cannot read {self.path}: {error.strerror}", subject=str(self.path)
                ) from None
            if not data:
                return
            yield data


class NewFile:
    """A file in the making: nothing at ``path`` before ``commit`` (L1, L2). A context manager."""

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        """Raises AlreadyExists, InvalidRequest, NotFound, NotPermitted."""
        self.path = path
        self._overwrite = overwrite
        if os.path.lexists(path):
            if not overwrite:
                raise _taken(path)
            if not path.is_file() or path.is_symlink():
                raise InvalidRequest(f"{path} is not a regular file, so it is not overwritten")
        self.temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.tmp")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._descriptor = _open(self.temporary, flags)
        self._committed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)
        if not self._committed:
            with contextlib.suppress(OSError):
                os.unlink(self.temporary)

    def write(self, offset: int, data: bytes) -> None:
        """Write all of ``data``; what is never written reads as zero and takes no space."""
        view = memoryview(data)
        with _naming(self.path):
            while view:
                written = os.pwrite(self._descriptor, view, offset)
                view, offset = view[written:], offset + written

    def commit(
        self, size_bytes: int, *, permissions: int | None = None, modified_at_ns: int | None = None
    ) -> None:
        """Give the file its size, attributes where given, and its name. Raises AlreadyExists, OutOfSpace."""
        with _naming(self.path):
            os.ftruncate(self._descriptor, size_bytes)
            if permissions is not None:
                os.fchmod(self._descriptor, permissions)
            if modified_at_ns is not None:
                os.utime(self._descriptor, ns=(modified_at_ns, modified_at_ns))
            os.fsync(self._descriptor)
            if self._overwrite:
                os.replace(self.temporary, self.path)
            else:
                self._claim()
        self._committed = True

    def _claim(self) -> None:
        try:
            os.link(self.temporary, self.path)
        except FileExistsError:
            raise _taken(self.path) from None
        os.unlink(self.temporary)


def read_head(path: Path, count: int) -> bytes:
    """Return the first bytes of a file or block device; fewer where it is shorter, none of what is neither.

    Raises NotFound, NotPermitted.
    """
    descriptor = _open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        mode = os.fstat(descriptor).st_mode
        return os.pread(descriptor, count, 0) if stat.S_ISREG(mode) or stat.S_ISBLK(mode) else b""
    finally:
        os.close(descriptor)


def open_log(path: Path) -> int:
    """Return a descriptor that appends to a daemon's log; the caller closes it."""
    return _open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of the system as ours, about ``path``."""
    try:
        yield
    except OSError as error:
        kind = OutOfSpace if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG} else ArrayliftError
        raise kind(
            f"cannot write {path}: {error.strerror}", subject=str(path), next_step="write it elsewhere"
        ) from None


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags, 0o600)
    except (FileNotFoundError, NotADirectoryError):
        missing = path.parent if flags & os.O_CREAT else path
        raise NotFound(f"there is no {missing}", subject=str(missing), next_step="check the path") from None
    except PermissionError:
        doing = "write" if flags & os.O_CREAT else "read"
        raise NotPermitted(
            f"you may not {doing} {path}", subject=str(path), next_step="change its permissions"
        ) from None
    except OSError as error:
        raise InvalidRequest(f"cannot open {path}: {error.strerror}", subject=str(path)) from None


def _taken(path: Path) -> AlreadyExists:
    return AlreadyExists(
        f"{path} exists", subject=str(path), next_step="give another name, or --force to replace it"
    )
