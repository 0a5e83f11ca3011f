"""Files of a running guest through its agent: pieces by its file commands, names by small shell scripts.

A path is one inside the file system of a disk, as in its backups: the disk is found among the guest's mounts
by its serial number, and the path is looked up below the mount point.
Invariants:
  G1 a guest's path is an argument of a script, never a part of one.
  G2 a put is written beside its place, flushed, and renamed: there is the old file or the new one.
  G3 what comes back is the guest's word: bounded, checked for form, and the size of a put is compared.
Limits: those of agent.py; GUEST_ENTRIES_MAX, LISTING_BYTES_MAX.
Callers: operations, any thread. Needs in the guest: sh, stat, find, mv (coreutils or busybox), guest-exec.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable

from arraylift.durable import Files
from arraylift.errors import ArrayliftError, NotFound, OutOfSpace, Overloaded, WrongState
from arraylift.ids import random_id
from arraylift.logs import get_logger
from arraylift.outcome import attempt
from hostagent.guest_agent.agent import PIECE_BYTES, FileSystem, GuestAgent
from hostagent.guest_agent.channel import AgentRefused
from hostagent.vm_types import GUEST_ENTRIES_MAX, GUEST_FILE_BYTES_MAX, GuestFile

LISTING_BYTES_MAX = 32 << 20
_LABEL = "guest-file"

_FORMAT = "%f %s %u %g %Y %n"
_STAT = re.compile(r"([0-9a-f]{1,8}) (\d{1,19}) (\d{1,10}) (\d{1,10}) (-?\d{1,12}) (/.*)", re.DOTALL)
_MISSING, _NOT_A_FILE, _NO_DIRECTORY, _NOT_A_DIRECTORY = 44, 45, 46, 47

_STAT_SCRIPT = f'[ -e "$1" ] || [ -L "$1" ] || exit {_MISSING}; exec stat -c \'{_FORMAT}\' -- "$1"'
_LIST_SCRIPT = (
    f'[ -e "$1" ] || exit {_MISSING}; [ -d "$1" ] && [ ! -L "$1" ] || exit {_NOT_A_DIRECTORY}; '
    'umask 077; find "$1/" -mindepth 1 -maxdepth 1 ! -name "*$3*" '
    f"-exec stat -c '{_FORMAT}' -- {{}} + >\"$2\""
)
_REMOVE_SCRIPT = (
    f'[ -e "$1" ] || [ -L "$1" ] || exit {_MISSING}; [ -f "$1" ] || [ -L "$1" ] || exit {_NOT_A_FILE}; '
    'exec rm -f -- "$1"'
)
_PLACE_SCRIPT = (
    f'[ -d "$2" ] || exit {_NO_DIRECTORY}; [ ! -L "$1" ] || exit {_NOT_A_FILE}; '
    f'[ ! -e "$1" ] || [ -f "$1" ] || exit {_NOT_A_FILE}'
)
_FINISH_SCRIPT = (
    'if [ -e "$1" ]; then chown "$(stat -c %u:%g -- "$1")" "$2" && old=$(stat -c %a -- "$1"); fi; '
    'chmod "${3:-${old:-644}}" "$2" && { sync "$2" || sync; } && mv -f -- "$2" "$1" && '
    f"exec stat -c '{_FORMAT}' -- \"$1\""
)
_FAILED = {
    _MISSING: "there is no {path} in {subject}",
    _NO_DIRECTORY: "{subject} has no directory for {path}",
    _NOT_A_FILE: "{path} of {subject} is no regular file",
    _NOT_A_DIRECTORY: "{path} of {subject} is no directory",
}

_log = get_logger("agent_files")


class AgentFiles:
    """Files on one disk of one guest. ``serial`` is how the guest sees the disk; empty: its only one."""

    def __init__(self, agent: GuestAgent, files: Files, *, serial: str, subject: str) -> None:
        self._agent, self._files, self._serial, self._subject = agent, files, serial, subject

    def put(self, path: str, *, source: str, mode: int) -> GuestFile:
        """G2. Raises NotFound (directory), WrongState, OutOfSpace."""
        place = self._place(path)
        directory = place.rpartition("/")[0] or "/"
        if path == "/":
            raise self._failed(_NOT_A_FILE, path)
        self._script(_PLACE_SCRIPT, path, place, directory)
        part = f"{directory.rstrip('/')}/.arraylift-{random_id()}.part"
        size_bytes = self._files.size(source)
        try:
            self._send(part, source, size_bytes)
            permissions = f"{stat.S_IMODE(mode):o}" if mode else ""
            made = self._parsed(self._script(_FINISH_SCRIPT, path, place, part, permissions), path, place)
        except BaseException:
            attempt(lambda: self._agent.run(("rm", "-f", "--", part)), "removal of half a guest file")
            raise
        if made.size_bytes != size_bytes:  # G3
            raise WrongState(f"{path} did not come out as it was sent", subject=self._subject)
        _log.info("guest_file_put", vm=self._subject, path=path, bytes=size_bytes)
        return made

    def get(self, path: str, *, into: str) -> GuestFile:
        """Copy a file's content into the local file ``into``. Raises NotFound, WrongState."""
        found, place = self._stat(path)
        if not stat.S_ISREG(found.mode):
            raise self._failed(_NOT_A_FILE, path)
        if found.size_bytes > GUEST_FILE_BYTES_MAX:
            raise WrongState(f"{path} has more than {GUEST_FILE_BYTES_MAX} bytes", subject=self._subject)
        if self._receive(place, into, bytes_max=found.size_bytes) != found.size_bytes:
            raise WrongState(
                f"{path} changed while it was read", subject=self._subject, next_step="repeat it"
            )
        return found

    def listed(self, path: str) -> list[GuestFile]:
        """A directory, by name; names that nobody could ask for are left out. Raises NotFound, WrongState,
        Overloaded (too many)."""
        place = self._place(path)
        listing = f"/tmp/.arraylift-{random_id()}.list"  # noqa: S108 - in the guest; the name is drawn
        chunks: list[bytes] = []
        try:
            self._script(_LIST_SCRIPT, path, place.rstrip("/") or "/", listing, "\n")
            self._read(listing, chunks.append, bytes_max=LISTING_BYTES_MAX)
        finally:
            attempt(lambda: self._agent.run(("rm", "-f", "--", listing)), "removal of a listing in a guest")
        text = b"".join(chunks).decode(errors="surrogateescape")
        found = []
        for line in text.split("\n"):
            entry = _STAT.fullmatch(line)
            name = entry[6].rpartition("/")[2] if entry else ""
            if entry is not None and name.isprintable() and name:
                found.append(_file(entry, f"{path.rstrip('/')}/{name}"))
        if len(found) > GUEST_ENTRIES_MAX:
            raise self._too_many(path)
        return sorted(found, key=lambda file: file.path)

    def remove(self, path: str) -> None:
        """Raises NotFound, WrongState (a directory)."""
        self._script(_REMOVE_SCRIPT, path, self._place(path))

    # -- pieces ---------------------------------------------------------------------------------

    def _send(self, part: str, source: str, size_bytes: int) -> None:
        file = self._files.random_file(source, label=_LABEL)
        try:
            handle = self._agent.open(part, "w")
            try:
                for start in range(0, size_bytes, PIECE_BYTES):
                    data = bytearray(min(PIECE_BYTES, size_bytes - start))
                    file.read_into(start, memoryview(data))
                    self._agent.write(handle, bytes(data))
                self._agent.flush(handle)
            finally:
                attempt(lambda: self._agent.close(handle), "close of a guest file")
        except AgentRefused as error:
            if "No space left" in error.message or "Disk quota" in error.message:
                raise OutOfSpace(
                    error.message, subject=self._subject, next_step="free space in the guest"
                ) from None
            raise
        finally:
            file.close()

    def _receive(self, place: str, into: str, *, bytes_max: int) -> int:
        file = self._files.random_file(into, label=_LABEL)
        at = 0

        def take(data: bytes) -> None:
            nonlocal at
            file.write(at, data)
            at += len(data)

        try:
            self._read(place, take, bytes_max=bytes_max)
        finally:
            file.close()
        return at

    def _read(self, place: str, take: Callable[[bytes], object], *, bytes_max: int) -> None:
        handle, left = self._agent.open(place, "r"), bytes_max
        try:
            ended = False
            while not ended:
                data, ended = self._agent.read(handle)
                left -= len(data)
                if left < 0:
                    raise WrongState(
                        f"{place} of {self._subject} grows while it is read", subject=self._subject
                    )
                if data:
                    take(data)
        finally:
            attempt(lambda: self._agent.close(handle), "close of a guest file")

    # -- names ----------------------------------------------------------------------------------

    def _stat(self, path: str) -> tuple[GuestFile, str]:
        place = self._place(path)
        return self._parsed(self._script(_STAT_SCRIPT, path, place), path, place), place

    def _script(self, script: str, path: str, *arguments: str) -> bytes:
        """Run one of ours (G1); ``path`` is for errors."""
        ran = self._agent.run(("sh", "-c", script, "sh", *arguments))
        if ran.code:
            raise self._failed(ran.code, path)
        return ran.output

    def _failed(self, code: int, path: str) -> ArrayliftError:
        if code in _FAILED:
            kind = NotFound if code in {_MISSING, _NO_DIRECTORY} else WrongState
            return kind(_FAILED[code].format(path=path, subject=self._subject), subject=self._subject)
        return WrongState(
            f"the guest's tools failed on {path} of {self._subject} with exit code {code}",
            subject=self._subject,
            next_step="look whether that file system is writable and not full",
        )

    def _too_many(self, path: str) -> Overloaded:
        return Overloaded(f"{path} has more than {GUEST_ENTRIES_MAX} entries", subject=path)

    def _parsed(self, output: bytes, path: str, place: str) -> GuestFile:
        entry = _STAT.fullmatch(output.decode(errors="surrogateescape").removesuffix("\n"))
        if entry is None or entry[6] != place:
            raise WrongState(f"{self._subject} tells nothing of {path}", subject=self._subject)
        return _file(entry, path)

    def _place(self, path: str) -> str:
        """Where the guest has it."""
        root = self._mount_point().rstrip("/")
        return f"{root}{path}" if path != "/" else root or "/"

    def _mount_point(self) -> str:
        if not self._serial:
            return "/"
        mounted = [one.mount_point for one in self._agent.file_systems() if self._lies_here(one)]
        if not mounted:
            raise WrongState(
                f"no file system of that disk is mounted in {self._subject}",
                subject=self._subject,
                next_step="mount it in the guest, or restore the file elsewhere",
            )
        return min(mounted, key=lambda point: (len(point), point))

    def _lies_here(self, file_system: FileSystem) -> bool:
        if self._serial in file_system.serials:
            return True
        for device in {file_system.name, *(one.rpartition("/")[2] for one in file_system.devices)}:
            if not re.fullmatch(r"[a-z0-9!-]{1,32}", device):
                continue
            for place in ("serial", "../serial"):  # of a whole disk, of a partition
                try:
                    found = self._agent.read_small(f"/sys/class/block/{device}/{place}")
                except AgentRefused:
                    continue
                if found.decode(errors="replace").strip() == self._serial:
                    return True
        return False


def _file(entry: re.Match[str], path: str) -> GuestFile:
    mode, size, uid, gid, modified = int(entry[1], 16), *(int(entry[index]) for index in (2, 3, 4, 5))
    seconds = max(-(1 << 33), min(1 << 33, modified))  # fits into nanoseconds of 64 bits
    return GuestFile(path, size, mode, uid & 0xFFFFFFFF, gid & 0xFFFFFFFF, seconds * 10**9)
