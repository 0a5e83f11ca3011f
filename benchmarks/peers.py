"""Other programs that back disks up, each behind the same interface.

Each is run as its own manual says, with its defaults where it has any: restic with compression
"auto", borg with LZ4 and without encryption (it has no other way to be fast), cp with holes.
Restores are measured until the file is on disk, as Arraylift's receipt promises.
Callers: benchmarks.rounds, one thread.
"""

from __future__ import annotations

import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Protocol

from arraylift.config import child_environment
from benchmarks import usage
from benchmarks.disks import Disk, Disks
from benchmarks.usage import Usage


class Work(Enum):
    """What is measured, in the order in which it is done."""

    FIRST_FULL = "first full backup (A0)"
    SECOND_DISK = "second VM with the same OS (B0)"
    DAY_1 = "next day (A1)"
    DAY_2 = "day after (A2)"
    UNCHANGED = "full comparison, nothing changed (A2)"
    RESTORE = "restore of a VM (A2)"
    PIECE = "1 MiB out of a large image"


DISK_OF = {
    Work.FIRST_FULL: "A0",
    Work.SECOND_DISK: "B0",
    Work.DAY_1: "A1",
    Work.DAY_2: "A2",
    Work.UNCHANGED: "A2",
    Work.RESTORE: "A2",
    Work.PIECE: "A2",
}
BACKUPS = (Work.FIRST_FULL, Work.SECOND_DISK, Work.DAY_1, Work.DAY_2)


class Peer(Protocol):
    """One program in one round: ``begin``, then every work in order, then ``end``."""

    name: str

    def begin(self, scratch: Path, disks: Disks) -> None:
        """Make an empty repository below ``scratch``, which exists and is this peer's alone."""
        ...

    def prepare(self, work: Work) -> None:
        """What has to be in place before ``work`` and is not part of it."""
        ...

    def reads(self, work: Work) -> Sequence[Path]:
        """Files and trees that ``work`` reads: they are warmed."""
        ...

    def run(self, work: Work) -> Usage | None:
        """Do it; None where this program has nothing like it."""
        ...

    @property
    def repository(self) -> Path:
        """The tree that grows with each backup."""
        ...

    def restored(self, disk: Disk) -> bool:
        """Whether what ``RESTORE`` brought back is that disk, bit by bit."""
        ...

    def end(self) -> None:
        """Stop everything; safe at any time. The scratch tree is removed by the caller."""
        ...


class _Program(ABC):
    """What restic, borg and cp have in common."""

    name = ""

    def begin(self, scratch: Path, disks: Disks) -> None:
        self._scratch = scratch
        self._disks = disks
        self._out = scratch / "restored"
        self._out.mkdir()
        self.repository = scratch / "repository"
        self._environment = child_environment(**self._variables())
        self._make()

    def _variables(self) -> dict[str, str]:
        return {}

    @abstractmethod
    def _make(self) -> None:
        """Make the empty repository."""

    def prepare(self, work: Work) -> None:  # noqa: B027 - most have nothing to prepare
        """Nothing: these read the disk's file itself."""

    def reads(self, work: Work) -> Sequence[Path]:
        return [self.repository] if work is Work.RESTORE else [self._disks[DISK_OF[work]].path]

    @abstractmethod
    def run(self, work: Work) -> Usage | None:
        """Do one piece of work, timed; None if this program has no such work."""

    def _call(self, *arguments: str) -> Usage:
        return usage.run(arguments, environment=self._environment, folder=self._out)

    def _until_on_disk(self, restoring: Usage) -> Usage:
        (restored,) = self._restored_files()
        return restoring.plus(self._call("sync", str(restored)))

    def _restored_files(self) -> list[Path]:
        return [path for path in self._out.rglob("*.img") if path.is_file()]

    def restored(self, disk: Disk) -> bool:
        (restored,) = self._restored_files()
        return usage.same(restored, disk.path)

    def end(self) -> None:  # noqa: B027 - nothing to stop
        """Nothing runs between two calls."""


class Restic(_Program):
    """restic, local repository."""

    name = "restic"

    def _variables(self) -> dict[str, str]:
        return {
            "RESTIC_REPOSITORY": str(self.repository),
            "RESTIC_PASSWORD": "benchmark",
            "RESTIC_CACHE_DIR": str(self._scratch / "cache"),
        }

    def _make(self) -> None:
        self._call("restic", "init", "--quiet")

    def run(self, work: Work) -> Usage | None:
        path = str(self._disks[DISK_OF[work]].path)
        if work in BACKUPS:
            return self._call("restic", "backup", "--quiet", path)
        if work is Work.UNCHANGED:
            return self._call("restic", "backup", "--quiet", "--force", path)
        if work is Work.RESTORE:
            how = ["restore", "latest", "--quiet", "--path", path, "--target", str(self._out)]
            return self._until_on_disk(self._call("restic", *how))
        return None


class Borg(_Program):
    """borg, LZ4, no encryption."""

    name = "borg"

    def _variables(self) -> dict[str, str]:
        return {
            "BORG_REPO": str(self.repository),
            "BORG_BASE_DIR": str(self._scratch),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }

    def _make(self) -> None:
        self._call("borg", "init", "--encryption", "none")

    def run(self, work: Work) -> Usage | None:
        disk = self._disks[DISK_OF[work]]
        if work in BACKUPS:
            return self._call("borg", "create", "--compression", "lz4", f"::{disk.name}", str(disk.path))
        if work is Work.UNCHANGED:
            how = ["--compression", "lz4", "--files-cache", "disabled", "::again", str(disk.path)]
            return self._call("borg", "create", *how)
        if work is Work.RESTORE:
            return self._until_on_disk(self._call("borg", "extract", "--sparse", f"::{disk.name}"))
        return None


class Copy(_Program):
    """cp with holes, then sync: a backup without any saving of space."""

    name = "cp"

    def _make(self) -> None:
        self.repository.mkdir()

    def run(self, work: Work) -> Usage | None:
        disk = self._disks[DISK_OF[work]]
        there = self.repository / f"{disk.name}.img"
        if work in BACKUPS:
            return self._copy(disk.path, there)
        if work is Work.RESTORE:
            return self._copy(there, self._out / there.name)
        return None

    def _copy(self, source: Path, to: Path) -> Usage:
        copying = self._call("cp", "--sparse=always", "--reflink=never", str(source), str(to))
        return copying.plus(self._call("sync", str(to)))


PROGRAMS: tuple[type[_Program], ...] = (Restic, Borg, Copy)


def version_of(program: str) -> str | None:
    """Return the first line that ``program --version`` says; None where there is none."""
    if shutil.which(program) is None:
        return None
    how = ["restic", "version"] if program == "restic" else [program, "--version"]
    said = subprocess.run(how, capture_output=True, text=True, check=False).stdout
    return said.partition("\n")[0].strip()
