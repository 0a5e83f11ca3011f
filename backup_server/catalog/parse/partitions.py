"""Read partition tables: GPT, and MBR with logical partitions.

Invariant: G1 numbers are those that Linux gives: a GPT's by the place in its table, an MBR's 1 to 4, logical
ones from 5 in the order of their chain. They stay the same as long as the table does.
Used in the parser's process only. Layouts: UEFI specification, chapter 5; MBR as the kernel reads it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from backup_server.catalog.parse.filesystem import text_of
from backup_server.catalog.parse.space import Space

SECTOR = 512
PARTITIONS_MAX = 256
_GPT_ENTRIES_BYTES_MAX = 1 << 20
_EXTENDED = {0x05, 0x0F, 0x85}
_PROTECTIVE = 0xEE


@dataclass(frozen=True, slots=True)
class Partition:
    """Bytes of a disk; ``size_bytes`` is what the table says, which may pass the disk's end."""

    number: int
    start: int
    size_bytes: int
    name: str = ""


def partitions(disk: Space) -> list[Partition] | None:
    """Return a disk's partitions, or None where there is no table."""
    if disk.size_bytes < 2 * SECTOR:
        return None
    first = disk.read(0, SECTOR)
    entries = _mbr_entries(first)
    if any(kind == _PROTECTIVE for kind, _, _ in entries) or not any(first[510:512]):
        for sector_bytes in (512, 4096):
            found = _gpt(disk, sector_bytes)
            if found is not None:
                return found
    if first[510:512] != b"\x55\xaa" or _is_boot_sector(first):
        return None
    found = list(_mbr(disk, entries))
    return found[:PARTITIONS_MAX] or None


def _is_boot_sector(first: bytes) -> bool:
    """Say whether this is a boot sector of FAT or NTFS, or its flags those of no table."""
    if (
        first[3:11] in {b"NTFS    ", b"-FVE-FS-", b"EXFAT   "}
        or first[54:57] == b"FAT"
        or first[82:85] == b"FAT"
    ):
        return True
    return any(first[446 + 16 * index] & 0x7F for index in range(4))


def _mbr_entries(sector: bytes) -> list[tuple[int, int, int]]:
    """Return (type, first sector, sectors) of the four entries."""
    return [(sector[at + 4], *struct.unpack_from("<II", sector, at + 8)) for at in range(446, 510, 16)]


def _mbr(disk: Space, entries: list[tuple[int, int, int]]) -> Iterator[Partition]:
    sectors = disk.size_bytes // SECTOR
    number = 5
    for index, (kind, start, count) in enumerate(entries, 1):
        if kind and start and count and start < sectors and kind not in _EXTENDED:
            yield Partition(index, start * SECTOR, count * SECTOR)
    for kind, start, count in entries:
        if kind in _EXTENDED and start < sectors and count:
            for logical, size in _logical(disk, start):
                yield Partition(number, logical * SECTOR, size * SECTOR)
                number += 1


def _logical(disk: Space, extended: int) -> Iterator[tuple[int, int]]:
    """Yield (first sector, sectors) along a chain of extended tables, which may not run for ever."""
    at = extended
    for _ in range(PARTITIONS_MAX):
        if (at + 1) * SECTOR > disk.size_bytes:
            return
        sector = disk.read(at * SECTOR, SECTOR)
        if sector[510:512] != b"\x55\xaa":
            return
        (kind, start, count), (next_kind, following, _) = _mbr_entries(sector)[:2]
        if kind and kind not in _EXTENDED and count:
            yield at + start, count
        if next_kind not in _EXTENDED or not following:
            return
        at = extended + following


def _gpt(disk: Space, sector_bytes: int) -> list[Partition] | None:
    """Return the partitions of the first of both tables whose checksums hold."""
    for at in (1, disk.size_bytes // sector_bytes - 1):
        if at < 1 or (at + 1) * sector_bytes > disk.size_bytes:
            continue
        header = disk.read(at * sector_bytes, sector_bytes)
        size, checksum = struct.unpack_from("<II", header, 12)
        if header[:8] != b"EFI PART" or not 92 <= size <= sector_bytes:
            continue
        if zlib.crc32(header[:16] + bytes(4) + header[20:size]) != checksum:
            continue
        table, count, entry_bytes, table_checksum = struct.unpack_from("<QIII", header, 72)
        start, length = table * sector_bytes, count * entry_bytes
        if entry_bytes < 128 or length > _GPT_ENTRIES_BYTES_MAX or start + length > disk.size_bytes:
            continue
        entries = disk.read(start, length)
        if zlib.crc32(entries) == table_checksum:
            return list(_gpt_entries(entries, entry_bytes, sector_bytes))[:PARTITIONS_MAX]
    return None


def _gpt_entries(entries: bytes, entry_bytes: int, sector_bytes: int) -> Iterator[Partition]:
    for number, at in enumerate(range(0, len(entries), entry_bytes), 1):
        first, last = struct.unpack_from("<QQ", entries, at + 32)
        if any(entries[at : at + 16]) and 0 < first <= last:
            name = text_of(entries[at + 56 : at + 128], "utf-16-le")
            yield Partition(number, first * sector_bytes, (last - first + 1) * sector_bytes, name)
