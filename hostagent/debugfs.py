"""Files of an ext2/3/4 file system inside a local disk image, by e2fsprogs' ``debugfs``.

Owns: how debugfs is called and what its answers mean. Images are hostile (law 13): debugfs runs as
a process of its own with limits on time, memory and file size, and its answers are parsed as text
that anybody may have written.
Invariants:
  B1 a guest path or name never becomes a command: vm_rules refuses quotes and control characters,
     and every one stands in quotes here.
  B2 local files are named relative to one folder of ours, never by a peer.
  B3 anything that debugfs says on stderr, beyond its banner, is a failure: its exit code says nothing.
Callers: emulated, any thread; one process at a time on one image.
"""

from __future__ import annotations

import contextlib
import re
import resource
import shutil
import stat as modes
import subprocess
from dataclasses import dataclass

from arraylift.errors import DeadlineExceeded, NotFound, OutOfSpace, Overloaded, WrongState
from arraylift.sizes import GIB
from hostagent.vm_types import GUEST_ENTRIES_MAX, GuestFile

SECONDS_MAX = 300
"""Longest run of one debugfs."""

MEMORY_BYTES_MAX = 2 * GIB
_STATS_PER_RUN = 2000
_PATHS = ("/usr/sbin", "/sbin", "/usr/local/sbin")

_BANNER = re.compile(r"debugfs \d[^\n]*\n?")
_ENTRY = re.compile(r"/(\d+)/(\d{5,7})/(\d+)/(\d+)/([^/]*)/(\d*)/\n")
_STAT = re.compile(
    r"Inode: (\d+) +Type: [^\n]*?Mode: +(0[0-7]+)[^\n]*\n.*?^User: +(\d+) +Group: +(\d+)[^\n]*?Size: (\d+)$"
    r".*?^ ?mtime: 0x([0-9a-f]+)(?::([0-9a-f]+))?",
    re.DOTALL | re.MULTILINE,
)
_TYPE = re.compile(r"Inode: \d+ +Type: ([a-z ]+?) +Mode:")
_TYPES = {
    "regular": modes.S_IFREG,
    "directory": modes.S_IFDIR,
    "symlink": modes.S_IFLNK,
    "character special": modes.S_IFCHR,
    "block special": modes.S_IFBLK,
    "FIFO": modes.S_IFIFO,
    "socket": modes.S_IFSOCK,
}


@dataclass(frozen=True, slots=True)
class ExtFiles:
    """The file system at ``offset`` of ``image``, a name within ``folder``."""

    folder: str
    image: str
    offset: int

    def stat(self, path: str) -> GuestFile | None:
        """None if there is nothing; does not follow a link. Raises WrongState."""
        try:
            text = self._run(f'stat "{path}"')
        except NotFound:
            return None
        found, kind = _STAT.search(text), _TYPE.search(text)
        if found is None or kind is None:
            raise _broken(f"debugfs tells nothing of {path}: {text[:80]!r}")
        _, mode, uid, gid, size, _, _ = found.groups()
        full = _TYPES.get(kind[1], 0) | int(mode, 8)
        return GuestFile(path, int(size), full, int(uid), int(gid), _mtime_ns(found))

    def entries(self, path: str) -> list[GuestFile]:
        """What is in a directory, by name. Raises NotFound, WrongState, Overloaded."""
        text = self._run(f'ls -p "{path}"')
        rows = [row for row in _ENTRY.findall(text) if row[0] != "0" and row[4] not in {".", "..", ""}]
        if len(rows) > GUEST_ENTRIES_MAX:
            raise Overloaded(f"{path} has more than {GUEST_ENTRIES_MAX} entries", subject=path)
        times = self._times([row[0] for row in rows])
        base = path.rstrip("/")
        files = [
            GuestFile(f"{base}/{name}", int(size or 0), int(mode, 8), int(uid), int(gid), times.get(inode, 0))
            for inode, mode, uid, gid, name, size in rows
        ]
        return sorted(files, key=lambda file: file.path)

    def _times(self, inodes: list[str]) -> dict[str, int]:
        times: dict[str, int] = {}
        for start in range(0, len(inodes), _STATS_PER_RUN):
            script = [f"stat <{inode}>" for inode in inodes[start : start + _STATS_PER_RUN]]
            for found in _STAT.finditer(self._script(script, write=False)):
                times.setdefault(found[1], _mtime_ns(found))
        return times

    def dump(self, path: str, into: str) -> None:
        """Copy a file's content to the local file ``into`` of the folder. Raises WrongState."""
        self._run(f'dump "{path}" "{into}"')

    def write(self, path: str, source: str, *, file: GuestFile, replaces: bool) -> None:
        """Make ``path`` from the local file ``source``, with mode and owner of ``file``.

        Raises WrongState, OutOfSpace: the image is then of no use.
        """
        directory, _, name = path.rpartition("/")
        script = [f'rm "{path}"'] if replaces else []
        script += [
            f'cd "{directory or "/"}"',  # `write` takes its target for a name, not for a path
            f'write "{source}" "{name}"',
            f'sif "{path}" mode 0{modes.S_IFREG | modes.S_IMODE(file.mode):o}',
            f'sif "{path}" uid {file.uid}',
            f'sif "{path}" gid {file.gid}',
        ]
        self._script(script, write=True)

    def remove(self, path: str) -> None:
        """Raises WrongState."""
        self._script([f'rm "{path}"'], write=True)

    def _run(self, command: str) -> str:
        return self._call(["-R", command])

    def _script(self, commands: list[str], *, write: bool) -> str:
        assert not any("\n" in command for command in commands), "B1"
        return self._call([*(["-w"] if write else []), "-f", "-"], "\n".join(commands) + "\n")

    def _call(self, arguments: list[str], script: str = "") -> str:
        device = f"{self.image}?offset={self.offset}" if self.offset else self.image
        process = subprocess.Popen(
            [find_program("debugfs"), *arguments, device],
            cwd=self.folder,
            env={"LC_ALL": "C", "TZ": "UTC", "PAGER": "cat", "DEBUGFS_PAGER": "__none__"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            with contextlib.suppress(ProcessLookupError):  # it may have ended already
                for limit, most in (
                    (resource.RLIMIT_CPU, SECONDS_MAX),
                    (resource.RLIMIT_AS, MEMORY_BYTES_MAX),
                    (resource.RLIMIT_CORE, 0),
                ):
                    resource.prlimit(process.pid, limit, (most, most))
            out, err = process.communicate(script.encode(), timeout=SECONDS_MAX)
        except subprocess.TimeoutExpired:
            raise DeadlineExceeded(
                f"debugfs took more than {SECONDS_MAX} s", next_step="look at the guest's file system"
            ) from None
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
        _check(_BANNER.sub("", err.decode(errors="replace"), count=1).strip(), process.returncode)
        return out.decode(errors="replace")


def find_program(name: str) -> str:
    """Full path of a program of e2fsprogs, also where only the administrator's path has it."""
    found = shutil.which(name) or shutil.which(name, path=":".join(_PATHS))
    if found is None:
        raise WrongState(
            f"this host has no {name}, with which an emulated guest's files are read and written",
            subject=name,
            next_step="install the package e2fsprogs on the host",
        )
    return found


def _check(said: str, code: int) -> None:
    """B3."""
    if not said and code == 0:
        return
    if "File not found" in said:
        raise NotFound(f"the guest has no such file: {said[:200]}")
    if "allocate block" in said or "No space" in said or "allocate inode" in said:
        raise OutOfSpace(
            f"the guest's file system is full: {said[:200]}", next_step="free space in the guest"
        )
    raise _broken(f"debugfs failed ({code}): {said[:300]}")


def _broken(why: str) -> WrongState:
    return WrongState(why, next_step="check the guest's file system with e2fsck")


def _mtime_ns(found: re.Match[str]) -> int:
    seconds, extra = int(found[6], 16), int(found[7] or "0", 16)
    signed = seconds - (1 << 32) if seconds & 0x80000000 else seconds
    return (signed + ((extra & 3) << 32)) * 1_000_000_000 + (extra >> 2)
