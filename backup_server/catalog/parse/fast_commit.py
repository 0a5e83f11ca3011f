"""Read ext4's fast commits: what changed after the last full commit of its journal, as an overlay.

They lie in an area of their own behind the journal's log: records of tag and length, in commits that each end
in a checksum. Invariants: Q1 only commits that are whole count, in order, up to the first that is not. Q2
nothing counts that does not follow the last full commit. Layout and meaning: the kernel's
fs/ext4/fast_commit.h, and its replay in fast_commit.c.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from arraylift.errors import WrongState
from backup_server.catalog.parse.ext_inode import BLOCK_BYTES, BLOCK_OFFSET, FLAG_EXTENTS, FLAG_INLINE
from backup_server.catalog.pieces import Run

_ADD_RANGE, _DELETE_RANGE, _CREATE, _LINK, _UNLINK, _INODE, _PAD, _TAIL, _HEAD = range(1, 10)
_TAG = struct.Struct("<HH")
_WRITTEN_MAX = 1 << 15
_EMPTY_TREE = struct.pack("<HHHHI", 0xF30A, 0, 4, 0, 0).ljust(BLOCK_BYTES, b"\0")
_GENERATION_OFFSET = BLOCK_OFFSET + BLOCK_BYTES
_INODE_BYTES_MAX = 1024


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)  # noqa: PLW2901
        table.append(value)
    return table


_CRC32C = _table()


def crc32c(seed: int, data: bytes) -> int:
    """The kernel's crc32c: no inversion at either end."""
    for byte in data:
        seed = seed >> 8 ^ _CRC32C[(seed ^ byte) & 0xFF]
    return seed


@dataclass(slots=True)
class FastCommits:
    """What fast commits changed: of directories, of inodes, of the runs of files."""

    names: dict[int, dict[bytes, int | None]] = field(default_factory=dict)
    inodes: dict[int, bytes] = field(default_factory=dict)
    ranges: dict[int, list[Run]] = field(default_factory=dict)
    """Offset None: not mapped any more, or preallocated: zeros in either case."""

    def names_of(self, directory: int, names: Iterator[tuple[bytes, int]]) -> Iterator[tuple[bytes, int]]:
        changed = self.names.get(directory)
        if changed is None:
            yield from names
            return
        for name, number in names:
            if name not in changed:
                yield name, number
        for name, found in changed.items():
            if found is not None:
                yield name, found

    def inode_of(self, number: int, raw: bytes) -> bytes:
        """Return an inode's bytes as they are after the replay."""
        newer = self.inodes.get(number)
        if newer is None:
            return raw
        block = raw[BLOCK_OFFSET:_GENERATION_OFFSET]
        flags = int.from_bytes(newer[32:36], "little")
        if flags & FLAG_EXTENTS:
            if block[:2] != _EMPTY_TREE[:2]:
                block = _EMPTY_TREE
        elif flags & FLAG_INLINE or not flags & FLAG_EXTENTS:
            block = newer[BLOCK_OFFSET:_GENERATION_OFFSET]
        after = newer[_GENERATION_OFFSET : len(raw)]
        return newer[:BLOCK_OFFSET] + block + after + raw[_GENERATION_OFFSET + len(after) :]

    def runs_of(self, number: int, runs: list[Run]) -> list[Run]:
        for change in self.ranges.get(number, ()):
            runs = [*_without(runs, change.file_offset, change.file_offset + change.length), change]
        return runs


def _without(runs: list[Run], start: int, end: int) -> Iterator[Run]:
    for run in runs:
        stop = run.file_offset + run.length
        if stop <= start or run.file_offset >= end:
            yield run
            continue
        if run.file_offset < start:
            yield Run(run.file_offset, start - run.file_offset, run.offset)
        if stop > end:
            yield Run(end, stop - end, None if run.offset is None else run.offset + end - run.file_offset)


def read_fast_commits(
    read_block: Callable[[int], bytes], *, first: int, last: int, sequence: int, block_bytes: int
) -> FastCommits:
    """Return what the fast commits in these blocks of the journal change, after the full commit before
    ``sequence``. WrongState: they change what cannot be told."""
    found = FastCommits()
    for tag, value in _whole_commits(read_block, first, last, sequence):
        if tag in {_CREATE, _LINK, _UNLINK}:
            parent, number = struct.unpack_from("<II", value)
            found.names.setdefault(parent, {})[value[8:]] = None if tag == _UNLINK else number
        elif tag == _INODE:
            number = int.from_bytes(value[:4], "little")
            if not _GENERATION_OFFSET <= len(value) - 4 <= _INODE_BYTES_MAX:
                raise WrongState("a fast commit has an inode of an odd size")
            found.inodes[number] = value[4:]
        elif tag in {_ADD_RANGE, _DELETE_RANGE}:
            number, start = struct.unpack_from("<II", value)
            offset: int | None = None
            if tag == _ADD_RANGE:
                length, high, low = struct.unpack_from("<HHI", value, 8)
                if length > _WRITTEN_MAX:
                    length -= _WRITTEN_MAX
                else:
                    offset = (low | high << 32) * block_bytes
            else:
                (length,) = struct.unpack_from("<I", value, 8)
            run = Run(start * block_bytes, length * block_bytes, offset)
            found.ranges.setdefault(number, []).append(run)
    return found


def _whole_commits(
    read_block: Callable[[int], bytes], first: int, last: int, sequence: int
) -> Iterator[tuple[int, bytes]]:
    """Yield (tag, value) of the commits whose checksum holds (Q1, Q2)."""
    pending: list[tuple[int, bytes]] = []
    checksum = 0
    for number in range(first, last):
        block = read_block(number)
        at = 0
        if number == first and block[:2] != _HEAD.to_bytes(2, "little"):
            return
        while at + _TAG.size <= len(block):
            tag, length = _TAG.unpack_from(block, at)
            value = block[at + _TAG.size : at + _TAG.size + length]
            if len(value) != length or not _ADD_RANGE <= tag <= _HEAD:
                return
            if tag == _HEAD and int.from_bytes(value[4:8], "little") != sequence:
                return
            if tag == _TAIL:
                tid, expected = struct.unpack_from("<II", value)
                checksum = crc32c(checksum, block[at : at + _TAG.size + 4])
                if tid != sequence or checksum != expected:
                    return
                yield from pending
                pending.clear()
                checksum = 0
                break  # the next commit begins with a block
            checksum = crc32c(checksum, block[at : at + _TAG.size + length])
            pending.append((tag, value))
            at += _TAG.size + length
