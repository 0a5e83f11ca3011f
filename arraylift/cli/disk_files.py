"""Disk files of any format that we take: raw ones read as they are, the others through qemu-nbd.

Invariants:
  D1 a DiskFile reads as the disk inside the file: its size, its bytes, its zeros.
  D2 what is written appears under its name when it is whole; on any error nothing is left (local_files
     L1, L2).
Callers: main thread, or the one thread that sends what is read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from arraylift.cli import qemu_tools
from arraylift.cli.disk_formats import HEAD_BYTES, DiskFormat, check_info, format_of
from arraylift.cli.local_files import NewFile, SourceImage, read_head
from arraylift.errors import Corruption, InvalidRequest, WrongState
from arraylift.nbd import wire
from arraylift.nbd.device import BASE_ALLOCATION
from arraylift.sizes import MIB

READ_AHEAD_BYTES = 8 * MIB


class DiskFile(Protocol):
    """A disk to be read. A context manager."""

    path: Path
    size_bytes: int

    def data_ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield (offset, end) of what may hold data within ``start``..``end``, in ascending order."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class NewDisk(Protocol):
    """A disk in the making: nothing at its name before ``commit``. A context manager."""

    def write(self, offset: int, data: bytes) -> None: ...
    def commit(self, size_bytes: int) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def parse_format(text: str) -> DiskFormat:
    """Raises InvalidRequest."""
    try:
        return DiskFormat(text.lower())
    except ValueError:
        known = ", ".join(each.value for each in DiskFormat)
        raise InvalidRequest(f"{text!r} is no format", next_step=f"one of {known}") from None


def open_disk(path: Path, disk_format: str = "") -> DiskFile:
    """Open a disk file; its head says its format, unless the caller does.

    Raises NotFound (file, program), NotPermitted, InvalidRequest (not a disk, names other files, damaged),
    WrongState (in use).
    """
    if disk_format and parse_format(disk_format) is DiskFormat.RAW:
        return SourceImage(path, any_content=True)
    found = format_of(read_head(path, HEAD_BYTES), path)
    if disk_format and parse_format(disk_format) is not found:
        raise InvalidRequest(f"{path} is no {disk_format} image", subject=str(path))
    return SourceImage(path) if found is DiskFormat.RAW else ConvertedImage(path, found)


def new_disk(path: Path, disk_format: DiskFormat, size_bytes: int, *, overwrite: bool) -> NewDisk:
    """Begin a disk file. Raises AlreadyExists, InvalidRequest, NotFound, NotPermitted."""
    if disk_format is DiskFormat.RAW:
        return NewFile(path, overwrite=overwrite)
    return NewImage(path, disk_format, size_bytes, overwrite=overwrite)


class ConvertedImage:
    """A DiskFile inside a qcow2, VMDK or VHDX."""

    def __init__(self, path: Path, disk_format: DiskFormat) -> None:
        self.path = path
        self.size_bytes = check_info(qemu_tools.info(path, disk_format), disk_format, path)
        self._server = qemu_tools.ImageServer(path, disk_format)
        self._ahead_at, self._ahead = 0, b""
        if self._server.client.size_bytes != self.size_bytes:
            self._server.kill()
            raise Corruption(f"{path} has two sizes, whichever tool is asked", subject=str(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.kill()

    def data_ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        client = self._server.client
        if BASE_ALLOCATION not in client.contexts:
            yield start, end
            return
        while start < end:
            # One answer at a time: reads come in between.
            offset, states = next(client.status(start))
            begin = start
            for length, state in states[BASE_ALLOCATION].tolist():
                stop = min(begin + length, end)
                if not state & wire.STATE_ZERO and begin < end:
                    yield begin, stop
                begin = stop
            assert begin > offset
            start = begin

    def read(self, offset: int, length: int) -> bytes:
        at = offset - self._ahead_at
        if not 0 <= at <= len(self._ahead) - length:
            data = bytearray(min(max(length, READ_AHEAD_BYTES), self.size_bytes - offset))
            self._server.client.read([(offset, memoryview(data))])
            self._ahead_at, self._ahead, at = offset, bytes(data), 0
        return self._ahead[at : at + length]


class NewImage:
    """A NewDisk that becomes a qcow2, VMDK or VHDX (D2)."""

    def __init__(self, path: Path, disk_format: DiskFormat, size_bytes: int, *, overwrite: bool) -> None:
        self._file = NewFile(path, overwrite=overwrite)
        try:
            qemu_tools.create(self._file.temporary, disk_format, size_bytes)
            self._server = qemu_tools.ImageServer(self._file.temporary, disk_format, writable=True)
        except BaseException:
            self._file.__exit__(None, None, None)
            raise
        self._size_bytes = size_bytes
        if not self._server.client.writable or self._server.client.size_bytes < size_bytes:
            self.__exit__(None, None, None)
            raise WrongState(f"{path} cannot hold {size_bytes:,} bytes as {disk_format.value}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._server.kill()
        self._file.__exit__(kind, error, trace)

    def write(self, offset: int, data: bytes) -> None:
        self._server.client.write(offset, data)

    def commit(self, size_bytes: int) -> None:
        assert size_bytes == self._size_bytes
        self._server.finish()
        self._file.commit(os.stat(self._file.temporary).st_size)
