"""Extended attributes of XFS: in the inode, in a leaf, or in a tree of leaves."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from arraylift.errors import WrongState
from backup_server.catalog.parse.acl import acl_of_xfs

LEAVES_MAX = 4096
VALUE_BYTES_MAX = 1 << 16
_LOCAL, _ROOT, _SECURE, _PARENT, _INCOMPLETE = 0x1, 0x2, 0x4, 0x8, 0x80
_LEAF, _LEAF3, _NODE, _NODE3 = 0xFBEE, 0x3BEE, 0xFEBE, 0x3EBE
_ACLS = {
    b"trusted.SGI_ACL_FILE": b"system.posix_acl_access",
    b"trusted.SGI_ACL_DEFAULT": b"system.posix_acl_default",
}
_LEVELS_MAX = 6

Attribute = tuple[bytes, bytes]


class AttributeFork:
    """Attributes outside the inode; it is given how to read a block of the fork, and a value in blocks."""

    def __init__(self, read_block: Callable[[int], bytes], read_value: Callable[[int, int], bytes]) -> None:
        self._read_block, self._read_value = read_block, read_value

    @staticmethod
    def short(fork: bytes) -> list[Attribute]:
        """Return the attributes that lie in the inode."""
        found = []
        size, count = struct.unpack_from(">HB", fork)
        at = 4
        for _ in range(count):
            name_bytes, value_bytes, flags = fork[at : at + 3]
            name_at = at + 3
            at = name_at + name_bytes + value_bytes
            if at > min(size, len(fork)):
                raise WrongState("attributes in the inode contradict themselves")
            if not flags & (_INCOMPLETE | _PARENT):
                found.append(
                    _named(fork[name_at : name_at + name_bytes], flags, fork[name_at + name_bytes : at])
                )
        return found

    def all(self) -> list[Attribute]:
        """Return the attributes of all leaves."""
        number = 0
        for _ in range(_LEVELS_MAX):  # down to the first leaf
            block = self._read_block(number)
            magic = int.from_bytes(block[8:10], "big")
            if magic not in {_NODE, _NODE3}:
                break
            number = struct.unpack_from(">I", block, (64 if magic == _NODE3 else 16) + 4)[0]
        found: list[Attribute] = []
        for _ in range(LEAVES_MAX):
            block = self._read_block(number)
            found += self._leaf(block)
            number = int.from_bytes(block[:4], "big")
            if not number:
                return found
        raise WrongState("leaves of attributes without end")

    def _leaf(self, block: bytes) -> Iterator[Attribute]:
        magic = int.from_bytes(block[8:10], "big")
        if magic not in {_LEAF, _LEAF3}:
            raise WrongState("a leaf of attributes is damaged")
        count_at, entries_at = (56, 80) if magic == _LEAF3 else (12, 32)
        (count,) = struct.unpack_from(">H", block, count_at)
        for index in range(count):
            _, at, flags = struct.unpack_from(">IHB", block, entries_at + 8 * index)
            if flags & (_INCOMPLETE | _PARENT):
                continue
            if flags & _LOCAL:
                value_bytes, name_bytes = struct.unpack_from(">HB", block, at)
                end = at + 3 + name_bytes
                name, value = block[at + 3 : end], block[end : end + value_bytes]
            else:
                value_block, value_bytes, name_bytes = struct.unpack_from(">IIB", block, at)
                name = block[at + 9 : at + 9 + name_bytes]
                if value_bytes > VALUE_BYTES_MAX:
                    raise WrongState(f"an attribute of {value_bytes} bytes")
                value = self._read_value(value_block, value_bytes)
            if len(value) != value_bytes or len(name) != name_bytes:
                raise WrongState("an attribute is cut short")
            yield _named(name, flags, value)


def _named(name: bytes, flags: int, value: bytes) -> Attribute:
    space = b"trusted." if flags & _ROOT else b"security." if flags & _SECURE else b"user."
    full = space + name
    if not name or b"\0" in name:
        raise WrongState("an attribute without a name")
    if full in _ACLS:
        return _ACLS[full], acl_of_xfs(value)
    return full, value
