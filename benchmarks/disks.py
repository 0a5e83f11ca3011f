"""The disks that are backed up: A0 and B0, two similar guests; A1 and A2, the next days of A.

Owns: ``<work>/disks-*``; a set that is there whole is used again.
Invariants:
  K1 a set is renamed into place when it is whole: what was interrupted is made anew.
  K2 files, layout and changes follow from (size, seed) and this machine's /usr; only the change
     times in inodes are those of the copying.
Callers: one thread.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from arraylift.sizes import GRANULE_BYTES, MIB
from benchmarks import churn, ext4, guest

FORMAT = 4
"""Part of the directory's name; raise it when disks come out differently."""

ROOM = 3
"""Size of a disk in times the bytes of its files."""

PREVIOUS = {"A1": "A0", "A2": "A1"}
Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Disk:
    """One raw image; ``changed`` are (offset, end) of granules that differ from the day before."""

    name: str
    path: Path
    size_bytes: int
    data_bytes: int
    changed: tuple[tuple[int, int], ...]

    @property
    def changed_bytes(self) -> int:
        return sum(end - start for start, end in self.changed)


Disks = dict[str, Disk]


def get(work: Path, *, count_bytes: int, seed: int, note: Note) -> Disks:
    """Return the disks for guests of about ``count_bytes`` of files, making them if need be."""
    place = work / f"disks-v{FORMAT}-{count_bytes // MIB}m-{seed}"
    facts = place / "disks.json"
    if not facts.exists():
        making = work / f"{place.name}.making"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        try:
            _make(making, count_bytes, seed, note)
            shutil.rmtree(place, ignore_errors=True)
            making.rename(place)  # K1
        finally:
            shutil.rmtree(making, ignore_errors=True)
    listed = json.loads(facts.read_text(encoding="utf-8"))
    return {
        one["name"]: Disk(
            one["name"],
            place / one["path"],
            one["size_bytes"],
            one["data_bytes"],
            tuple((start, end) for start, end in one["changed"]),
        )
        for one in listed
    }


def _make(place: Path, count_bytes: int, seed: int, note: Note) -> None:
    all_packages = guest.packages(seed)
    note("making disk A0")
    first = _guest(place, "A0", "alpha", list(all_packages), count_bytes=count_bytes, seed=seed)
    note("making disk B0")
    second = _guest(place, "B0", "beta", all_packages, count_bytes=count_bytes, seed=seed + 1)
    shutil.rmtree(second.data)
    for day, name in enumerate(PREVIOUS, start=1):
        note(f"making disk {name}")
        ext4.copy(first.image, place / f"{name}.img")
        churn.next_day(first, place / f"{name}.img", day=day, seed=seed, scratch=place)
        ext4.check(first.image)
    shutil.rmtree(first.data)
    made = [_describe(place, name) for name in ("A0", "B0", *PREVIOUS)]
    documents = [{**asdict(one), "path": one.path.name} for one in made]
    (place / "disks.json").write_text(json.dumps(documents), encoding="utf-8")


def _guest(
    place: Path, name: str, host: str, spare: list[guest.Package], *, count_bytes: int, seed: int
) -> churn.Guest:
    staging, image = place / f"{name}.tree", place / f"{name}.img"
    installed = guest.take(spare, int(count_bytes * guest.OS_SHARE))
    if host != "alpha":  # the same system, but not the very same packages
        installed = installed[len(installed) // 50 :] + guest.take(spare, count_bytes // 100)
    guest.install(installed, staging)
    guest.fill_data(staging, count_bytes=count_bytes, host=host, seed=seed)
    guest.settle_times(staging)
    identity = str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{host}-{seed}"))
    raw = place / f"{name}.raw"
    ext4.make(raw, staging, size_bytes=count_bytes * ROOM // MIB * MIB, uuid=identity)
    ext4.copy(raw, image)  # blocks of zeros, as in the journal, become holes in every disk alike
    raw.unlink()
    shutil.rmtree(staging / "usr")
    directories = set(churn.directories_of(installed))
    return churn.Guest(image, staging, host, count_bytes, installed, spare, directories)


def _describe(place: Path, name: str) -> Disk:
    path = place / f"{name}.img"
    before = PREVIOUS.get(name)
    changed = tuple(changed_granules(place / f"{before}.img", path)) if before else ()
    facts = path.stat()
    return Disk(name, path, facts.st_size, facts.st_blocks * 512, changed)


def changed_granules(one: Path, other: Path) -> list[tuple[int, int]]:
    """Return the (offset, end) ranges of granules in which two images of one size differ."""
    ranges: list[tuple[int, int]] = []
    with one.open("rb") as left, other.open("rb") as right:
        size = os.fstat(left.fileno()).st_size
        assert size == os.fstat(right.fileno()).st_size
        assert size % MIB == 0, "disks are whole spans"
        for offset in range(0, size, MIB):
            a, b = left.read(MIB), right.read(MIB)
            if a == b:
                continue
            differ = (np.frombuffer(a, np.uint64) != np.frombuffer(b, np.uint64)).reshape(
                -1, GRANULE_BYTES // 8
            )
            for number in np.flatnonzero(differ.any(axis=1)).tolist():
                start = offset + number * GRANULE_BYTES
                if ranges and ranges[-1][1] == start:
                    ranges[-1] = ranges[-1][0], start + GRANULE_BYTES
                else:
                    ranges.append((start, start + GRANULE_BYTES))
    return ranges
