"""Inodes of ext2, ext3 and ext4: attributes, times, and extended attributes. Pure but for blocks it is given.

Layout: the kernel's documentation, "ext4 data structures and algorithms".
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from arraylift.errors import WrongState
from backup_server.catalog.entry import NO_TIME
from backup_server.catalog.parse.acl import acl_of_ext
from backup_server.catalog.parse.filesystem import NS, clamped

FLAG_EXTENTS, FLAG_ENCRYPTED, FLAG_INLINE, FLAG_EA_INODE = 0x80000, 0x800, 0x10000000, 0x200000
BLOCK_OFFSET, BLOCK_BYTES = 40, 60
"""i_block: pointers, an extent tree's root, a short link's target, or the first bytes of inline data."""

_MAGIC = 0xEA020000
_PREFIXES = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
    7: b"system.",
    8: b"system.richacl",
}
_INLINE_DATA = b"system.data"
_ACLS = {b"system.posix_acl_access", b"system.posix_acl_default"}
_BASE_BYTES = 128
_HEAD = struct.Struct("<HHIIIIIHHI")
_TAIL = struct.Struct("<IIII6H")
_ENTRY = struct.Struct("<BBHIII")


@dataclass(slots=True)
class Inode:
    """One inode; ``raw`` is all of it."""

    number: int
    raw: bytes
    mode: int
    uid: int
    gid: int
    size_bytes: int
    links: int
    flags: int
    attribute_block: int

    @property
    def block(self) -> bytes:
        return self.raw[BLOCK_OFFSET : BLOCK_OFFSET + BLOCK_BYTES]


def inode_of(number: int, raw: bytes) -> Inode:
    mode, uid, size, _, _, _, _, gid, links, _ = _HEAD.unpack_from(raw)
    flags = int.from_bytes(raw[32:36], "little")
    _, attribute_low, size_high, _, _, attribute_high, uid_high, gid_high, _, _ = _TAIL.unpack_from(raw, 100)
    if stat.S_IFMT(mode) in {stat.S_IFREG, stat.S_IFDIR}:
        size |= size_high << 32
    return Inode(
        number, raw, mode, uid | uid_high << 16, gid | gid_high << 16, size, links, flags,
        attribute_low | attribute_high << 32,
    )  # fmt: skip


def times_of(inode: Inode) -> tuple[int, int, int, int]:
    """Return modified, changed, accessed, created in nanoseconds."""
    accessed, changed, modified = struct.unpack_from("<iii", inode.raw, 8)
    extra_bytes = int.from_bytes(inode.raw[128:130], "little") if len(inode.raw) > _BASE_BYTES else 0
    extra = inode.raw[_BASE_BYTES : _BASE_BYTES + extra_bytes].ljust(28, b"\0")
    changed_more, modified_more, accessed_more, created, created_more = struct.unpack_from("<IIIiI", extra, 4)
    return (
        _time(modified, modified_more),
        _time(changed, changed_more),
        _time(accessed, accessed_more),
        _time(created, created_more) if extra_bytes >= 20 else NO_TIME,
    )


def _time(seconds: int, extra: int) -> int:
    """The field ``extra`` has two bits of epoch, then nanoseconds."""
    return clamped((seconds + ((extra & 3) << 32)) * NS + min(extra >> 2, NS - 1))


def device_of(inode: Inode) -> tuple[int, int]:
    if not stat.S_ISCHR(inode.mode) and not stat.S_ISBLK(inode.mode):
        return 0, 0
    old, new = struct.unpack_from("<II", inode.block)
    if old:
        return old >> 8 & 0xFF, old & 0xFF
    return (new & 0xFFF00) >> 8, new & 0xFF | new >> 12 & 0xFFF00


def has_attributes_inside(inode: Inode) -> bool:
    raw = inode.raw
    if len(raw) <= _BASE_BYTES + 4:
        return False
    start = _BASE_BYTES + int.from_bytes(raw[128:130], "little")
    return raw[start : start + 4] == b"\0\0\2\xea"


def attributes_of(
    inode: Inode, read_block: Callable[[int], bytes], read_inode: Callable[[int, int], bytes]
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return the extended attributes as setxattr takes them, and apart from them what is inline data.

    ``read_block`` reads the block of attributes, ``read_inode`` (number, size) the inode of a large value.
    """
    found: list[tuple[bytes, bytes]] = []
    if has_attributes_inside(inode):
        start = _BASE_BYTES + int.from_bytes(inode.raw[128:130], "little") + 4
        found += _entries(inode.raw[start:], 0, read_inode)
    if inode.attribute_block:
        block = read_block(inode.attribute_block)
        if int.from_bytes(block[:4], "little") != _MAGIC:
            raise WrongState("its block of extended attributes is damaged")
        found += _entries(block, 32, read_inode)
    inline = b"".join(value for name, value in found if name == _INLINE_DATA)
    return [
        (name, acl_of_ext(value) if name in _ACLS else value) for name, value in found if name != _INLINE_DATA
    ], inline


def _entries(area: bytes, at: int, read_inode: Callable[[int, int], bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the attributes from ``at`` on; the offsets of their values count from the area's start."""
    while at + 4 <= len(area) and area[at : at + 4] != b"\0\0\0\0":
        name_bytes, index, value_at, value_inode, size, _ = _ENTRY.unpack_from(area, at)
        suffix = area[at + _ENTRY.size : at + _ENTRY.size + name_bytes]
        at += (_ENTRY.size + name_bytes + 3) & ~3
        name = _PREFIXES.get(index, b"") + suffix
        if not name or b"\0" in name or size > 1 << 16:
            raise WrongState("an extended attribute is damaged")
        if index not in _PREFIXES:
            continue  # of encryption, and what nobody outside the kernel sees
        value = read_inode(value_inode, size) if value_inode else area[value_at : value_at + size]
        if len(value) != size:
            raise WrongState(f"the extended attribute {name[:80]!r} is cut short")
        yield name, value
