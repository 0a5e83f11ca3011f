"""What the catalog says of one file. Pure."""

from __future__ import annotations

import stat
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One name in a directory of an image.

    ``path`` is absolute; path, name and ``link_target`` hold bytes that are not UTF-8 as surrogate escapes.
    ``mode`` is a whole st_mode, with the type. ``link_target`` is empty unless it is a symbolic link.
    """

    path: str
    name: str
    size_bytes: int
    mode: int
    uid: int
    gid: int
    modified_at_ns: int
    link_target: str

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)
