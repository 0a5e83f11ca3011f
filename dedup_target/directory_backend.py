"""A storage unit in a directory: UnitBackend over the one seam to the disk.

Owns: the directory; a name of an object is the path of its file below it.
Invariants:
  B1 a folder is durable before the first object that is put into it.
Callers: any thread. Crash safety is that of ``arraylift.durable`` (D1, D5).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from arraylift.durable import Buffer, Files


class DirectoryBackend:
    """UnitBackend on a file system of this machine."""

    def __init__(self, files: Files, path: str, *, make: bool = True) -> None:
        """``make`` the directory if it is not there. Raises AlreadyExists (a file is), OutOfSpace."""
        self._files = files
        self._path = path
        self._folders: set[str] = set()  # known to be durable (B1)
        if make:
            files.make_dirs(path)

    @property
    def location(self) -> str:
        return self._path

    def path_of(self, name: str) -> str:
        """Path of an object's file."""
        return f"{self._path}/{name}"

    def put(self, name: str, parts: Sequence[Buffer], *, label: str) -> None:
        folder = os.path.dirname(name)
        if folder and folder not in self._folders:
            self._files.make_dirs(self.path_of(folder))
            self._folders.add(folder)
        self._files.publish(self.path_of(name), parts, label=label)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        return self._files.read(self.path_of(name), offset, length)

    def size(self, name: str) -> int:
        return self._files.size(self.path_of(name))

    def exists(self, name: str) -> bool:
        return self._files.exists(self.path_of(name))

    def list(self, folder: str) -> list[str]:
        return self._files.list_dir(self.path_of(folder) if folder else self._path)

    def remove(self, name: str, *, label: str, missing_ok: bool = False) -> None:
        self._files.remove(self.path_of(name), label=label, missing_ok=missing_ok)

    def sweep(self, folder: str) -> int:
        return self._files.sweep(self.path_of(folder) if folder else self._path)

    def free_bytes(self) -> int | None:
        return self._files.free_bytes(self._path)

    def close(self) -> None:
        pass
