"""Make and change ext4 images without root: mke2fs and debugfs.

Invariants:
  X1 a file that is changed in place keeps its blocks, as it would under a running guest: only
     the pages that differ are written.
  X2 what a tool reports as an error raises; an image is never left half changed unnoticed.
Callers: benchmarks.disks and benchmarks.churn, one thread.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from arraylift.config import child_environment
from arraylift.errors import ArrayliftError, NotFound

BLOCK_BYTES = 4096
FAKE_TIME = 1_750_000_000
"""The time that stands in superblocks and new inodes, so that a seed gives the same image."""

_EXTENT_HEADER_WORDS = _EXTENT_WORDS = 3
_LAST_WORDS = {12: "IND", 13: "DIND", 14: "TIND"}
"""What debugfs calls the last words of an inode's 60 bytes of extents."""

_SBIN = "/usr/sbin:/sbin"
_BANNER = re.compile(r"(debugfs|e2fsck) \d|^$|Allocated inode")
_LEAF = re.compile(r"^\s*(\d+)/\s*(\d+)\s+\d+/\s*\d+\s+(\d+)\s+-\s+(\d+)\s+(\d+)\s+-\s+(\d+)")


def tool(name: str) -> str:
    """Return the path of an e2fsprogs program. Raises NotFound."""
    found = shutil.which(name) or shutil.which(name, path=_SBIN)
    if found is None:
        raise NotFound(f"there is no {name} on this machine", next_step="apt-get install e2fsprogs")
    return found


def _run(arguments: Sequence[str]) -> str:
    done = subprocess.run(
        arguments,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env=child_environment(E2FSPROGS_FAKE_TIME=str(FAKE_TIME)),
    )
    complaints = [line for line in done.stderr.splitlines() if not _BANNER.match(line)]
    if done.returncode or complaints:
        raise ArrayliftError(f"{arguments[0]} failed: {'; '.join(complaints[:3]) or done.returncode}")
    return done.stdout


def make(image: Path, staging: Path, *, size_bytes: int, uuid: str) -> None:
    """Make a sparse image of ``size_bytes`` that holds the tree below ``staging``."""
    with image.open("wb") as file:
        file.truncate(size_bytes)
    options = f"hash_seed={uuid},root_owner=0:0,lazy_itable_init=1"
    how = ["-q", "-F", "-t", "ext4", "-b", str(BLOCK_BYTES), "-m", "0", "-U", uuid, "-E", options]
    _run([tool("mke2fs"), *how, "-d", str(staging), str(image)])


def check(image: Path) -> None:
    """Raise unless the file system is consistent."""
    _run([tool("e2fsck"), "-f", "-n", str(image)])


def copy(image: Path, to: Path) -> None:
    """Copy an image, sparse."""
    subprocess.run(["cp", "--sparse=always", str(image), str(to)], check=True)


@dataclass(slots=True)
class Batch:
    """Changes of names and sizes, carried out by one run of debugfs."""

    image: Path
    lines: list[str] = field(default_factory=list)

    def mkdir(self, path: str) -> None:
        self.lines.append(f'mkdir "{path}"')

    def write(self, source: Path, path: str) -> None:
        self.lines.append(f'write "{source}" "{path}"')

    def remove(self, path: str) -> None:
        self.lines.append(f'rm "{path}"')

    def grow(self, path: str, *, old_bytes: int, new_bytes: int) -> None:
        """Give a file more blocks behind its last, and its new size; then ``mark_written``
        and ``overwrite`` fill them."""
        first, last = -(-old_bytes // BLOCK_BYTES), -(-new_bytes // BLOCK_BYTES) - 1
        if last >= first:
            self.lines.append(f'fallocate "{path}" {first} {last}')
        self.lines.append(f'sif "{path}" size {new_bytes}')

    def run(self, scratch: Path) -> None:
        """Carry out all of it (X2)."""
        script = scratch / "debugfs.txt"
        script.write_text("\n".join([*self.lines, ""]), encoding="utf-8")
        _run([tool("debugfs"), "-w", "-f", str(script), str(self.image)])
        script.unlink()


@dataclass(frozen=True, slots=True)
class _Extent:
    """A run of blocks of a file; ``unwritten`` ones read as zeros in the guest."""

    first: int
    last: int
    physical: int
    unwritten: bool
    in_inode: bool


def _extents(image: Path, path: str) -> list[_Extent]:
    found = []
    for line in _run([tool("debugfs"), "-R", f'ex "{path}"', str(image)]).splitlines():
        match = _LEAF.match(line)
        if match:
            level, depth, first, last, physical, _ = map(int, match.groups())
            if level == depth:
                found.append(_Extent(first, last, physical, "Uninit" in line, depth == 0))
    return found


def mark_written(image: Path, path: str, scratch: Path) -> bool:
    """Call blocks that ``grow`` added written, as a guest's kernel does when it fills them.

    Returns False, with nothing done, where the file's extents do not all lie in its inode.
    """
    extents = _extents(image, path)
    if not all(extent.in_inode for extent in extents):
        return False
    batch = Batch(image)
    for number, extent in enumerate(extents):
        if extent.unwritten:  # the length stands, without the flag, in the second word of an extent
            word = _EXTENT_HEADER_WORDS + _EXTENT_WORDS * number + 1
            name = _LAST_WORDS.get(word, str(word))
            batch.lines.append(f'sif "{path}" block[{name}] {extent.last + 1 - extent.first}')
    batch.run(scratch)
    return True


def block_map(image: Path, path: str) -> dict[int, int]:
    """Return file block -> image block of a file's mapped blocks."""
    return {
        block: extent.physical + block - extent.first
        for extent in _extents(image, path)
        for block in range(extent.first, extent.last + 1)
    }


def overwrite(image: Path, path: str, old: bytes, new: bytes) -> int:
    """Write the blocks of ``new`` that differ from ``old`` into the file's own blocks (X1).

    Returns how many. Blocks that the file system left as a hole stay holes.
    """
    blocks, written = block_map(image, path), 0
    descriptor = os.open(image, os.O_WRONLY)
    try:
        for block in range(-(-len(new) // BLOCK_BYTES)):
            piece = new[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
            if piece != old[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES] and block in blocks:
                os.pwrite(descriptor, piece.ljust(BLOCK_BYTES, b"\0"), blocks[block] * BLOCK_BYTES)
                written += 1
    finally:
        os.close(descriptor)
    return written
