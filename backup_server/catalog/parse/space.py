"""Spaces: rows of bytes made of others, down to the disks: partitions, logical volumes, journals' overlays.

Invariants: V1 a read gives exactly what was asked for, or WrongState. V2 ``locate`` names, for the same
bytes as ``read``, the places on disks that hold them.
Used in the parser's process only.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from arraylift.errors import WrongState
from backup_server.catalog.pieces import NO_DISK, Place


class Space(Protocol):
    """Bytes from 0 to ``size_bytes``."""

    @property
    def size_bytes(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes: ...

    def locate(self, offset: int, length: int) -> Iterator[Place]: ...


class DiskReader(Protocol):
    """A disk by its number; ``read`` may give less at the end."""

    size_bytes: int
    number: int

    def read(self, offset: int, length: int) -> bytes: ...


def checked(space: Space, offset: int, length: int) -> None:
    """Raise WrongState for what lies outside a space (V1)."""
    if offset < 0 or length < 0 or offset + length > space.size_bytes:
        raise WrongState(f"{length} bytes at {offset} are outside a volume of {space.size_bytes}")


class DiskSpace:
    """A whole disk."""

    def __init__(self, disk: DiskReader) -> None:
        self.size_bytes = disk.size_bytes
        self._disk = disk

    def read(self, offset: int, length: int) -> bytes:
        checked(self, offset, length)
        return self._disk.read(offset, length)

    def locate(self, offset: int, length: int) -> Iterator[Place]:
        checked(self, offset, length)
        yield Place(self._disk.number, offset, length)


class Slice:
    """A part of another space; WrongState if it is none."""

    def __init__(self, base: Space, start: int, size_bytes: int) -> None:
        checked(base, start, size_bytes)
        self.size_bytes = size_bytes
        self._base, self._start = base, start

    def read(self, offset: int, length: int) -> bytes:
        checked(self, offset, length)
        return self._base.read(self._start + offset, length)

    def locate(self, offset: int, length: int) -> Iterator[Place]:
        checked(self, offset, length)
        return self._base.locate(self._start + offset, length)


class Joined:
    """Spaces one behind the other."""

    def __init__(self, parts: Sequence[Space]) -> None:
        self._parts = [part for part in parts if part.size_bytes]
        self._starts = [0, *accumulate(part.size_bytes for part in self._parts)]
        self.size_bytes = self._starts[-1]

    def read(self, offset: int, length: int) -> bytes:
        return b"".join(part.read(start, count) for part, start, count in self._cut(offset, length))

    def locate(self, offset: int, length: int) -> Iterator[Place]:
        for part, start, count in self._cut(offset, length):
            yield from part.locate(start, count)

    def _cut(self, offset: int, length: int) -> Iterator[tuple[Space, int, int]]:
        checked(self, offset, length)
        index = bisect_right(self._starts, offset) - 1
        while length:
            start = offset - self._starts[index]
            count = min(length, self._parts[index].size_bytes - start)
            yield self._parts[index], start, count
            offset, length, index = offset + count, length - count, index + 1


class Striped:
    """Spaces of one size, a chunk from each in turn."""

    def __init__(self, columns: Sequence[Space], chunk_bytes: int) -> None:
        self._columns, self._chunk_bytes = columns, chunk_bytes
        self.size_bytes = len(columns) * min(column.size_bytes for column in columns)

    def read(self, offset: int, length: int) -> bytes:
        return b"".join(column.read(start, count) for column, start, count in self._cut(offset, length))

    def locate(self, offset: int, length: int) -> Iterator[Place]:
        for column, start, count in self._cut(offset, length):
            yield from column.locate(start, count)

    def _cut(self, offset: int, length: int) -> Iterator[tuple[Space, int, int]]:
        checked(self, offset, length)
        while length:
            chunk, skip = divmod(offset, self._chunk_bytes)
            row, column = divmod(chunk, len(self._columns))
            count = min(length, self._chunk_bytes - skip)
            yield self._columns[column], row * self._chunk_bytes + skip, count
            offset, length = offset + count, length - count


@dataclass(frozen=True, slots=True)
class Replacement:
    """Where a block's true content is in the same space; ``first``: its first bytes if they differ there."""

    offset: int
    first: bytes = b""


class Overlaid:
    """A space some of whose blocks are elsewhere in it: in its journal."""

    def __init__(self, base: Space, block_bytes: int, blocks: Mapping[int, Replacement]) -> None:
        self.size_bytes = base.size_bytes
        self._base, self._block_bytes, self._blocks = base, block_bytes, blocks
        self._sorted = sorted(blocks)

    def read(self, offset: int, length: int) -> bytes:
        checked(self, offset, length)
        index = bisect_right(self._sorted, offset // self._block_bytes - 1)
        if index == len(self._sorted) or self._sorted[index] * self._block_bytes >= offset + length:
            return self._base.read(offset, length)
        return b"".join(
            part if isinstance(part, bytes) else self._base.read(*part) for part in self._cut(offset, length)
        )

    def locate(self, offset: int, length: int) -> Iterator[Place]:
        checked(self, offset, length)
        for part in self._cut(offset, length):
            if isinstance(part, bytes):
                yield Place(NO_DISK, 0, len(part), part)
            else:
                yield from self._base.locate(*part)

    def _cut(self, offset: int, length: int) -> Iterator[bytes | tuple[int, int]]:
        """Yield bytes, or (offset, length) in the base."""
        at, end, size = offset, offset + length, self._block_bytes
        index = bisect_right(self._sorted, offset // size - 1)
        while at < end:
            block = self._sorted[index] if index < len(self._sorted) else None
            if block is None or block * size >= end:
                yield at, end - at
                return
            start = max(at, block * size)
            if start > at:
                yield at, start - at
            stop = min(end, (block + 1) * size)
            replaced, skip = self._blocks[block], start - block * size
            first = replaced.first[skip : skip + stop - start]
            if first:
                yield first
            if len(first) < stop - start:
                yield replaced.offset + skip + len(first), stop - start - len(first)
            at, index = stop, index + 1
