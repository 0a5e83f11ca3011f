"""Two similar ext4 disks and a small one out of this machine's own files, and a change to come.

Owns: everything below the directory it is given. Uses e2fsprogs: no mount, no root.
Callers: the demo, main thread.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from arraylift.config import child_environment
from arraylift.errors import ArrayliftError, Corruption, NotFound, OutOfSpace, WrongState
from arraylift.sizes import MIB, human

FILES_BYTES = 336 * MIB
"""Real files taken in all, unless told otherwise; fewer where the machine has not so many."""

FILES_BYTES_MIN = 4 * MIB
FILE_BYTES_MAX = 8 * MIB
_SHARES = {"fresh": 2, "one": 6, "two": 6, "data": 5, "common": 81}  # per cent of what was taken
_FILES_MIN = 4  # of each set
_BLOCK_BYTES = 4096
_SPARE_BYTES = 48 * MIB
_ROOM_FACTOR = 10  # stage, three disks, exports, a guest's copies, pool and target
_PROGRAM_SECONDS = 120.0
_SYSTEM_PATH = "/usr/sbin:/sbin"
_DAMAGED = 4  # e2fsck's exit status bit: errors left uncorrected

Sets = dict[str, list[tuple[Path, int]]]


@dataclass(frozen=True, slots=True)
class Put:
    """A local file that goes into a guest."""

    disk: str
    path: str
    source: Path


@dataclass(frozen=True, slots=True)
class Change:
    """What happens inside the first VM: the first put replaces a file, the others add one each."""

    put: tuple[Put, ...]
    removed: str
    removed_source: Path  # what it was made of


@dataclass(frozen=True, slots=True)
class DemoDisks:
    """Two disk images that share most of their files, a smaller one beside the first, and a change."""

    directory: Path
    one: Path
    data: Path
    two: Path
    change: Change
    files_bytes: int


def find_programs() -> None:
    """Raise NotFound unless e2fsprogs is installed; asked before any work."""
    for program in ("mkfs.ext4", "debugfs", "e2fsck"):
        _program(program)


def build(directory: Path, source: Path = Path("/usr"), *, files_bytes: int = FILES_BYTES) -> DemoDisks:
    """Make the disks in ``directory``. Raises OutOfSpace, WrongState (too few files), NotFound."""
    sets = choose_files(source, files_bytes)
    total = sum(size for chosen in sets.values() for _, size in chosen)
    free = shutil.disk_usage(directory).free
    if free < total * _ROOM_FACTOR:
        raise OutOfSpace(
            f"{directory} has {human(free)} free, the demo needs {human(total * _ROOM_FACTOR)}",
            subject=str(directory),
            next_step="set TMPDIR to a larger file system",
        )
    stage = directory / "stage"
    for path, _ in sets["common"]:
        _copy(path, stage / "usr" / path.relative_to(source))
    for name in ("one", "two", "data", "fresh"):
        for number, (path, _) in enumerate(sets[name]):
            _copy(path, directory / name / f"{number:04d}")
    data = directory / "disk-data.img"
    _make_ext4(data, directory / "data", sets["data"], 3)
    shutil.rmtree(directory / "data")
    # Both disks are made of one tree in which only srv/ differs.
    (stage / "srv").mkdir()
    disks = []
    for number, name in enumerate(("one", "two"), start=1):
        shutil.move(directory / name, stage / "srv" / name)
        image = directory / f"disk-{name}.img"
        _make_ext4(image, stage, [*sets["common"], *sets[name]], number)
        shutil.rmtree(stage / "srv" / name)
        disks.append(image)
    shutil.rmtree(stage)
    fresh = sorted((directory / "fresh").iterdir())
    change = Change(
        put=(
            Put("disk0", "/srv/one/0000", fresh[0]),
            Put("disk0", "/srv/one/added", fresh[1]),
            Put("disk1", "/added", fresh[2]),
        ),
        removed="/srv/one/0001",
        removed_source=sets["one"][1][0],
    )
    return DemoDisks(
        directory=directory, one=disks[0], data=data, two=disks[1], change=change, files_bytes=total
    )


def choose_files(source: Path, files_bytes: int = FILES_BYTES) -> Sets:
    """Return disjoint sets of readable files, the same ones on every run; see _SHARES."""
    taken: list[tuple[Path, int]] = []
    total = 0
    for path, size in _candidates(source):
        taken.append((path, size))
        total += size
        if total >= files_bytes:
            break
    sets: Sets = {name: [] for name in _SHARES}
    walk = iter(taken)
    for name, share in _SHARES.items():
        filled = 0
        for path, size in walk:
            sets[name].append((path, size))
            filled += size
            if filled >= total * share // 100 and len(sets[name]) >= _FILES_MIN and name != "common":
                break
    if total < FILES_BYTES_MIN or min(map(len, sets.values())) < _FILES_MIN:
        raise WrongState(
            f"{source} has too few files to make disks of: {len(taken)} readable ones, {human(total)}",
            subject=str(source),
        )
    return sets


def check_file_system(image: Path) -> None:
    """Raise Corruption unless e2fsck finds the file system in ``image`` whole; changes nothing."""
    ended = _run(["e2fsck", "-fn", str(image)], accepted=range(256))
    if ended.returncode:
        lines = (ended.stdout + ended.stderr).strip().splitlines() or ["no word"]
        what = "damaged" if ended.returncode & _DAMAGED else f"refused with exit status {ended.returncode}"
        raise Corruption(f"e2fsck finds {image} {what}: {lines[-1]}", subject=str(image))


def _candidates(source: Path) -> Iterator[tuple[Path, int]]:
    """Yield regular, readable files in the order of their paths."""
    for directory, names, files in os.walk(source):
        names.sort()
        for name in sorted(files):
            path = Path(directory, name)
            try:
                found = path.lstat()
            except OSError:
                continue
            fits = stat.S_ISREG(found.st_mode) and 0 < found.st_size <= FILE_BYTES_MAX
            if fits and os.access(path, os.R_OK):
                yield path, found.st_size


def _copy(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(path, to)
    except OSError as error:
        raise ArrayliftError(f"cannot copy {path} to {to}: {error.strerror}") from None


def _make_ext4(image: Path, stage: Path, files: Sequence[tuple[Path, int]], number: int) -> None:
    content = sum(-(-size // _BLOCK_BYTES) * _BLOCK_BYTES for _, size in files)
    size = (content + content // 8 + _SPARE_BYTES) // MIB * MIB
    identity = f"{number:08d}-0000-4000-8000-000000000000"  # disks of two machines have two
    inodes = 2 * len(files) + 2000
    options = ["-q", "-F", "-b", str(_BLOCK_BYTES), "-N", str(inodes), "-U", identity]
    options += ["-E", f"hash_seed={identity}", "-d", str(stage)]
    _run(["mkfs.ext4", *options, str(image), f"{size // 1024}k"])


def _run(
    command: Sequence[str], *, text: str = "", accepted: Sequence[int] = (0,)
) -> subprocess.CompletedProcess[str]:
    """Run a program of e2fsprogs to its end."""
    program = _program(command[0])
    try:
        ended = subprocess.run(
            [program, *command[1:]],
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROGRAM_SECONDS,
            env=child_environment(LC_ALL="C", E2FSPROGS_FAKE_TIME="1700000000"),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ArrayliftError(f"{command[0]} did not end within {_PROGRAM_SECONDS:.0f} s") from None
    if ended.returncode not in accepted:
        said = ended.stderr.strip().splitlines() or ["no word"]
        raise ArrayliftError(f"{command[0]} failed with exit status {ended.returncode}: {said[-1]}")
    return ended


def _program(name: str) -> str:
    """Return a program's path; system programs are often not on a user's PATH."""
    found = shutil.which(name) or shutil.which(name, path=_SYSTEM_PATH)
    if found is None:
        raise NotFound(f"there is no {name} on this machine", subject=name, next_step="apt install e2fsprogs")
    return found
