"""What the catalog says of disks, volumes and files. Pure.

Times are nanoseconds since 1970, within what 64 bits hold (1677 to 2262); NO_TIME: the file system keeps
none. Text holds bytes that are not UTF-8 as surrogate escapes.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

NO_TIME = -(1 << 63)


class ImageAccess(Protocol):
    """An image of a backup; ``read`` returns exactly ``length`` bytes or raises."""

    @property
    def size_bytes(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Disk:
    """One disk of a backup, by the name that it has in the VM; the first part of its volumes' keys."""

    name: str
    image: ImageAccess


DiskSet = Sequence[Disk]
"""All disks of one backup in the VM's order: a logical volume may lie over several."""


@dataclass(frozen=True, slots=True)
class Volume:
    """A place where a file system may lie.

    ``key`` is the same in every backup of the VM: ``disk0/p1`` (a partition, numbered as Linux does),
    ``disk0`` (a disk without a table) or ``lvm/<group>/<volume>``. ``kind`` is what lies there: ext4, xfs,
    ntfs, fat32, swap, LVM2_member, ...; empty: unknown. ``remark`` says why it is not readable; of a readable
    one, what to know before trusting it.
    """

    key: str
    kind: str
    label: str
    uuid: str
    size_bytes: int
    readable: bool
    remark: str = ""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One name in a directory of a volume.

    ``path`` is absolute within the volume. ``mode`` is a whole st_mode, with the type. ``link_target`` is
    empty unless it is a symbolic link. ``attributes`` are extended attributes by name, with the values that
    setxattr takes; POSIX ACLs and NTFS's security descriptor (``system.ntfs_acl``) are among them. ``flaw``
    says what of it cannot be read; its content then cannot, or is whole all the same. An alternate stream of
    NTFS is an entry of its own, ``file:stream``.
    """

    path: str
    name: str
    size_bytes: int
    mode: int
    uid: int
    gid: int
    modified_at_ns: int
    link_target: str = ""
    changed_at_ns: int = NO_TIME
    accessed_at_ns: int = NO_TIME
    created_at_ns: int = NO_TIME
    inode: int = 0
    link_count: int = 1
    device: tuple[int, int] = (0, 0)
    attributes: tuple[tuple[bytes, bytes], ...] = ()
    flaw: str = ""

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)
