"""Read FAT12, FAT16 and FAT32.

A file's number is the offset of its entry of 32 bytes; that of the root is 0. Times have no zone: they are
taken as UTC. There are no owners: files are root's, and what is marked as read-only has no w. Invariant: F1 a
chain of clusters is followed no further than there are clusters, and a file's must be as long as its size
needs. Layout: Microsoft's "FAT: General Overview of On-Disk Format".
"""

from __future__ import annotations

import datetime as dt
import stat
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from arraylift.errors import WrongState
from backup_server.catalog.entry import NO_TIME
from backup_server.catalog.parse.filesystem import NS, Label, Node, Recent, text_of
from backup_server.catalog.parse.space import Space
from backup_server.catalog.pieces import Run

ENTRY_BYTES = 32
DIRECTORY_BYTES_MAX = 2 << 20
"""65,536 entries, the format's own maximum."""
_READ_ONLY, _LABEL, _DIRECTORY, _LONG = 0x01, 0x08, 0x10, 0x0F
_DELETED, _END = 0xE5, 0x00
_FAT_PAGE = 1 << 16
_BAD = {12: 0xFF7, 16: 0xFFF7, 32: 0x0FFFFFF7}


@dataclass(frozen=True, slots=True)
class _Layout:
    """What the boot sector says, in bytes from the volume's start."""

    bits: int
    fat_start: int
    fat_bytes: int
    root_start: int
    root_bytes: int
    root_cluster: int
    data_start: int
    cluster_bytes: int
    clusters: int


class FatFileSystem:
    """One file system that fills a space. WrongState: not readable, and why."""

    root = 0

    def __init__(self, space: Space) -> None:
        self.space = space
        self._layout = _layout(space)
        self.kind = f"fat{self._layout.bits}"
        self.remark = ""
        self._fat_pages = Recent(256, self._fat_page)
        dirty = space.read(65 if self._layout.bits == 32 else 37, 1)[0] & 1  # Linux; Windows uses the table
        if self._layout.bits > 12:
            dirty |= not self._next_raw(1) & (1 << 27 if self._layout.bits == 32 else 1 << 15)
        if dirty:
            self.remark = "it was in use: the newest changes may be missing"

    def names(self, number: int) -> Iterator[tuple[bytes, int]]:
        parts: dict[int, bytes] = {}
        checksum = -1
        for at, content in self._directory(number):
            for start in range(0, len(content) - ENTRY_BYTES + 1, ENTRY_BYTES):
                entry = content[start : start + ENTRY_BYTES]
                if entry[0] == _END:
                    return
                if entry[0] == _DELETED:
                    parts.clear()
                elif entry[11] & 0x3F == _LONG:
                    if entry[0] & 0x40:
                        parts.clear()
                        checksum = entry[13]
                    parts[entry[0] & 0x3F] = entry[1:11] + entry[14:26] + entry[28:32]
                else:
                    if not entry[11] & _LABEL and entry[:11].rstrip() not in {b".", b".."}:
                        long = _long_name(parts) if parts and checksum == _checksum(entry[:11]) else b""
                        yield long or _short_name(entry), at + start
                    parts.clear()

    def node(self, number: int) -> Node:
        if number == self.root:
            return Node(0, stat.S_IFDIR | 0o755, 0)
        entry = self._entry(number)
        kind = stat.S_IFDIR | 0o755 if entry[11] & _DIRECTORY else stat.S_IFREG | 0o644
        mode = kind & ~0o222 if entry[11] & _READ_ONLY else kind
        tenths, created, created_on, accessed_on = struct.unpack_from("<BHHH", entry, 13)
        modified, modified_on = struct.unpack_from("<HH", entry, 22)
        made = _time(created_on, created)
        return Node(
            number,
            mode,
            0 if entry[11] & _DIRECTORY else int.from_bytes(entry[28:32], "little"),
            modified_ns=_time(modified_on, modified),
            accessed_ns=_time(accessed_on, 0),
            created_ns=made if made == NO_TIME else made + min(tenths, 199) * (NS // 100),
        )

    def content(self, node: Node) -> bytes | Iterable[Run]:
        return self._chain_runs(_first_cluster(self._entry(node.number)), node.size_bytes)

    def _entry(self, number: int) -> bytes:
        entry = self.space.read(number, ENTRY_BYTES)
        if entry[0] in {_END, _DELETED} or entry[11] & _LABEL:
            raise WrongState("its entry is not in use")
        return entry

    def _directory(self, number: int) -> Iterator[tuple[int, bytes]]:
        """Yield (offset, content) of a directory's parts."""
        layout = self._layout
        cluster = layout.root_cluster
        if number != self.root:
            cluster = _first_cluster(self._entry(number))
        elif layout.bits != 32:
            yield layout.root_start, self.space.read(layout.root_start, layout.root_bytes)
            return
        left = DIRECTORY_BYTES_MAX
        for current in self._chain(cluster):
            at = self._cluster_start(current)
            yield at, self.space.read(at, layout.cluster_bytes)
            left -= layout.cluster_bytes
            if left <= 0:
                raise WrongState(f"a directory of more than {DIRECTORY_BYTES_MAX} bytes")

    def _chain_runs(self, cluster: int, size_bytes: int) -> list[Run]:
        size = self._layout.cluster_bytes
        needed = -(-size_bytes // size)
        runs: list[Run] = []
        first, count, at = 0, 0, 0
        for current in self._chain(cluster):
            if count and current == first + count:
                count += 1
            else:
                if count:
                    runs.append(Run(at, count * size, self._cluster_start(first)))
                    at += count * size
                first, count = current, 1
            needed -= 1
            if not needed:
                break
        if needed:
            raise WrongState("its chain of clusters is shorter than its size")  # F1
        runs.append(Run(at, count * size, self._cluster_start(first)))
        return runs

    def _chain(self, cluster: int) -> Iterator[int]:
        layout = self._layout
        end = _BAD[layout.bits] + 1
        for _ in range(layout.clusters):  # F1
            if not 2 <= cluster < layout.clusters + 2:
                raise WrongState(f"its chain of clusters leads to {cluster:#x}")
            yield cluster
            cluster = self._next(cluster)
            if cluster >= end:
                return
        raise WrongState("its chain of clusters is a loop")

    def _cluster_start(self, cluster: int) -> int:
        return self._layout.data_start + (cluster - 2) * self._layout.cluster_bytes

    def _next(self, cluster: int) -> int:
        following = self._next_raw(cluster)
        return following & 0x0FFFFFFF if self._layout.bits == 32 else following

    def _next_raw(self, cluster: int) -> int:
        bits = self._layout.bits
        if bits == 12:
            at = cluster + cluster // 2
            pair = self._fat_byte(at) | self._fat_byte(at + 1) << 8
            return pair >> 4 if cluster & 1 else pair & 0xFFF
        width = bits // 8
        page, skip = divmod(cluster * width, _FAT_PAGE)
        return int.from_bytes(self._fat_pages.get(page)[skip : skip + width], "little")

    def _fat_byte(self, at: int) -> int:
        page, skip = divmod(at, _FAT_PAGE)
        return self._fat_pages.get(page)[skip]

    def _fat_page(self, page: int) -> bytes:
        start = page * _FAT_PAGE
        return self.space.read(
            self._layout.fat_start + start, min(_FAT_PAGE, max(0, self._layout.fat_bytes - start))
        )


def probe(space: Space) -> Label | None:
    """Return kind and label of a FAT, if one seems to be there."""
    if space.size_bytes < 512:
        return None
    sector = space.read(0, 512)
    if sector[510:512] != b"\x55\xaa" or sector[0] not in {0xEB, 0xE9} or sector[3:11] == b"EXFAT   ":
        return None
    try:
        bits = _layout(space).bits
    except WrongState:
        return None
    at = 67 if bits == 32 else 39
    serial = sector[at : at + 4][::-1].hex().upper()
    label = text_of(sector[at + 4 : at + 15], "cp437")
    return Label(f"fat{bits}", "" if label == "NO NAME" else label, f"{serial[:4]}-{serial[4:]}")


def _layout(space: Space) -> _Layout:
    sector = space.read(0, 512)
    sector_bytes, per_cluster, reserved, fats, root_entries, small = struct.unpack_from("<HBHBHH", sector, 11)
    fat_sectors = struct.unpack_from("<H", sector, 22)[0] or struct.unpack_from("<I", sector, 36)[0]
    sectors = small or struct.unpack_from("<I", sector, 32)[0]
    sound = sector_bytes in {512, 1024, 2048, 4096} and per_cluster and not per_cluster & (per_cluster - 1)
    if not sound or not reserved or fats not in {1, 2} or not fat_sectors or not sectors:
        raise WrongState("the boot sector of the FAT contradicts itself")
    root_sectors = -(-root_entries * ENTRY_BYTES // sector_bytes)
    data = reserved + fats * fat_sectors + root_sectors
    clusters = (sectors - data) // per_cluster
    bits = 12 if clusters < 4085 else 16 if clusters < 65525 else 32
    if root_entries == 0:
        bits = 32
    if clusters <= 0 or sectors * sector_bytes > space.size_bytes:
        raise WrongState("the FAT is larger than its volume")
    if fat_sectors * sector_bytes * 8 < (clusters + 2) * bits or (bits == 32) != (root_entries == 0):
        raise WrongState("the table of the FAT is too small for it")
    active = struct.unpack_from("<H", sector, 40)[0] if bits == 32 else 0
    use = active & 0xF if active & 0x80 and active & 0xF < fats else 0
    return _Layout(
        bits=bits,
        fat_start=(reserved + use * fat_sectors) * sector_bytes,
        fat_bytes=fat_sectors * sector_bytes,
        root_start=(reserved + fats * fat_sectors) * sector_bytes,
        root_bytes=root_entries * ENTRY_BYTES,
        root_cluster=struct.unpack_from("<I", sector, 44)[0] if bits == 32 else 0,
        data_start=data * sector_bytes,
        cluster_bytes=per_cluster * sector_bytes,
        clusters=clusters,
    )


def _first_cluster(entry: bytes) -> int:
    high, low = struct.unpack_from("<H4xH", entry, 20)
    return int(low | high << 16)


def _short_name(entry: bytes) -> bytes:
    raw = (b"\xe5" if entry[0] == 0x05 else entry[:1]) + entry[1:11]
    base, extension = (part.decode("cp437").rstrip(" ") for part in (raw[:8], raw[8:]))
    base = base.lower() if entry[12] & 0x08 else base
    extension = extension.lower() if entry[12] & 0x10 else extension
    return (f"{base}.{extension}" if extension else base).encode()


def _long_name(parts: dict[int, bytes]) -> bytes:
    """Return a name of several entries, or nothing if some are missing."""
    if set(parts) != set(range(1, len(parts) + 1)):
        return b""
    units = b"".join(parts[number] for number in sorted(parts))
    text = units.decode("utf-16-le", "surrogatepass").partition("\0")[0]
    return text.encode("utf-8", "surrogatepass")


def _checksum(short: bytes) -> int:
    value = 0
    for byte in short:
        value = ((value >> 1 | value << 7) + byte) & 0xFF
    return value


def _time(date: int, time: int) -> int:
    if not date:
        return NO_TIME
    try:
        moment = dt.datetime(
            1980 + (date >> 9), date >> 5 & 0xF, date & 0x1F,
            time >> 11, time >> 5 & 0x3F, (time & 0x1F) * 2, tzinfo=dt.UTC,
        )  # fmt: skip
    except ValueError:
        return NO_TIME
    return int(moment.timestamp()) * NS
