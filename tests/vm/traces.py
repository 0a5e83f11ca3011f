"""What the guest's writer left on copies of its disks, and what that says of the copies.

The writer (``arraylift/guest/files/writer``) puts each round's record on three disks in turn, first where it
is synced, then where the kernel writes it when it likes.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from arraylift.guest.disks import ROOT_BYTES, ROOT_START
from hostagent.debugfs import find_program

_FOLDERS = ("/var/lib/writer", "/writer", "/writer")
_RECORD_BYTES = 9
_SECONDS = 60
_MENDED = 1  # e2fsck's exit status: errors, or a journal, dealt with


@dataclass(frozen=True, slots=True)
class Traces:
    """The last round of each disk, and whether its file system had been left in order."""

    synced: tuple[int, ...]
    lazy: tuple[int, ...]
    clean: tuple[bool, ...]

    @property
    def of_one_instant(self) -> bool:
        """No disk is ahead of one that was written before it, nor a round behind."""
        first, second, third = self.synced
        return first >= second >= third >= first - 1

    @property
    def frozen(self) -> bool:
        """Journals are empty, and what was not synced is there as well."""
        return all(self.clean) and all(
            synced - 1 <= lazy <= synced for synced, lazy in zip(self.synced, self.lazy, strict=True)
        )

    @property
    def quiesced(self) -> bool:
        """The writer had been told: all stand at the same round, in every file."""
        return self.frozen and len({*self.synced, *self.lazy}) == 1


def read_traces(disks: Sequence[bytes | bytearray], scratch: Path) -> Traces:
    """Look into copies of the boot disk and both data disks."""
    found = []
    for number, (disk, folder) in enumerate(zip(disks, _FOLDERS, strict=True)):
        image = scratch / f"traces{number}.img"
        write_sparse(image, memoryview(disk)[ROOT_START : ROOT_START + ROOT_BYTES] if number == 0 else disk)
        clean = "needs_recovery" not in _run("dumpe2fs", "-h", image)
        if not clean:  # as a kernel would when it mounts it
            _run("e2fsck", "-fy", image, accepted=(0, _MENDED))
        _run("e2fsck", "-fn", image)
        synced, begun = _rounds(image, f"{folder}/synced")
        assert begun <= 1, f"{begun} records of disk {number} were on it, and are not in its copy"
        found.append((synced, _rounds(image, f"{folder}/lazy")[0], clean))
        image.unlink()
    rounds, lazies, cleans = zip(*found, strict=True)
    return Traces(rounds, lazies, cleans)


def write_sparse(image: Path, data: bytes | bytearray | memoryview) -> None:
    """Zeros become holes."""
    piece = 1 << 20
    with image.open("wb") as file:
        file.truncate(len(data))
        for start in range(0, len(data), piece):
            part = bytes(data[start : start + piece])
            if part.count(0) != len(part):
                file.seek(start)
                file.write(part)


def _rounds(image: Path, path: str) -> tuple[int, int]:
    """The last round of a file of records, which has all before it; and how many more there seem to be, whose
    content had not reached the disk."""
    data = _run("debugfs", "-R", f"cat {path}", image).encode()
    whole = 0
    while data[whole * _RECORD_BYTES :].startswith(b"%08d\n" % (whole + 1)):
        whole += 1
    return whole, -(-(len(data) - whole * _RECORD_BYTES) // _RECORD_BYTES)


def _run(program: str, *arguments: object, accepted: Sequence[int] = (0,)) -> str:
    ended = subprocess.run(
        [find_program(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    assert ended.returncode in accepted, f"{program}: {ended.stdout}{ended.stderr}"
    return ended.stdout
