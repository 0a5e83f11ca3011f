"""Where on a disk the guest's ext2/3/4 file system lies. Pure: bytes in, an offset out.

The whole disk, or the first Linux partition of a GPT or an MBR without logical partitions: what
the emulated guest can write. Whatever else is there is refused, never guessed (law 13).
Callers: emulated, any thread. Sources: UEFI specification 5.3 (GPT), ext4's on-disk layout.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

SECTOR_BYTES = 512
GPT_ENTRIES_MAX = 128
_LINUX_MBR = 0x83
_LINUX_GPT = bytes.fromhex("af3dc60f838472478e793d69d8477de4")
_ROOT_GPT = bytes.fromhex("e3bc684fcde8b14d96e7fbcaf984b709")  # root, x86-64
_SUPERBLOCK_AT, _SUPERBLOCK_BYTES = 1024, 1024
_EXT_MAGIC = 0xEF53
_NEEDS_RECOVERY = 0x4

Read = Callable[[int, int], bytes]
"""(offset, length) to bytes; fewer at the end of the disk."""


@dataclass(frozen=True, slots=True)
class ExtFileSystem:
    """``needs_recovery``: its journal holds changes that only a replay brings in."""

    offset: int
    needs_recovery: bool


def find_ext(read: Read) -> ExtFileSystem | None:
    """The file system of the whole disk, else that of its first Linux partition; None if neither."""
    return _ext_at(read, 0) or next(
        (found for offset in _partitions(read) if (found := _ext_at(read, offset))), None
    )


def _ext_at(read: Read, offset: int) -> ExtFileSystem | None:
    superblock = read(offset + _SUPERBLOCK_AT, _SUPERBLOCK_BYTES)
    if len(superblock) < _SUPERBLOCK_BYTES or struct.unpack_from("<H", superblock, 56)[0] != _EXT_MAGIC:
        return None
    (incompatible,) = struct.unpack_from("<I", superblock, 96)
    return ExtFileSystem(offset, bool(incompatible & _NEEDS_RECOVERY))


def _partitions(read: Read) -> list[int]:
    """Offset of the first Linux partition, as a list of one or none."""
    sector = read(0, SECTOR_BYTES)
    if len(sector) < SECTOR_BYTES or sector[510:512] != b"\x55\xaa":
        return []
    header = read(SECTOR_BYTES, 92)
    if header[:8] == b"EFI PART":
        return _gpt(read, header)
    for at in range(446, 510, 16):
        kind, start = sector[at + 4], struct.unpack_from("<I", sector, at + 8)[0]
        if kind == _LINUX_MBR and start:
            return [start * SECTOR_BYTES]
    return []


def _gpt(read: Read, header: bytes) -> list[int]:
    if len(header) < 92:
        return []
    table, count, size = struct.unpack_from("<QII", header, 72)
    if size < 128 or size > 4096 or not 0 < table < 1 << 55:
        return []
    for index in range(min(count, GPT_ENTRIES_MAX)):
        entry = read(table * SECTOR_BYTES + index * size, 48)
        if len(entry) == 48 and entry[:16] in {_LINUX_GPT, _ROOT_GPT}:
            (first,) = struct.unpack_from("<Q", entry, 32)
            return [first * SECTOR_BYTES] if 0 < first < 1 << 55 else []
    return []
