"""POSIX ACLs as file systems store them, made into what getxattr gives and setxattr takes. Pure.

The kernel's own form is version 2 (u32), then tag, permissions (u16 each) and id (u32), little-endian.
"""

from __future__ import annotations

import struct

from arraylift.errors import WrongState

_VERSION = struct.pack("<I", 2)
_USER, _GROUP = 2, 8
_NO_ID = 0xFFFFFFFF


def acl_of_ext(stored: bytes) -> bytes:
    """Ext: version 1, then entries that have an id only where they need one."""
    if len(stored) < 4 or stored[:4] != b"\1\0\0\0":
        raise WrongState("an ACL of an unknown version")
    entries, at = [_VERSION], 4
    while at < len(stored):
        tag, permissions = struct.unpack_from("<HH", stored, at)
        at += 4
        number = _NO_ID
        if tag in {_USER, _GROUP}:
            (number,) = struct.unpack_from("<I", stored, at)
            at += 4
        entries.append(struct.pack("<HHI", tag, permissions, number))
    return b"".join(entries)


def acl_of_xfs(stored: bytes) -> bytes:
    """XFS: a count (u32), then tag, id (u32 each), permissions (u16) and padding, big-endian."""
    (count,) = struct.unpack_from(">I", stored)
    if 4 + 12 * count > len(stored):
        raise WrongState("an ACL that is cut short")
    entries = [_VERSION]
    for tag, number, permissions in struct.iter_unpack(">IIH2x", stored[4 : 4 + 12 * count]):
        entries.append(
            struct.pack("<HHI", tag & 0xFFFF, permissions, number if tag in {_USER, _GROUP} else _NO_ID)
        )
    return b"".join(entries)
