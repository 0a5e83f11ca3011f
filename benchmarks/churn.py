"""One day in the life of a guest, done inside its file system.

Databases are updated in place, logs grow behind their ends, one log is rotated, packages come and
go, media is added. Deterministic by seed and day.
Callers: benchmarks.disks, one thread.
"""

from __future__ import annotations

import gzip
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import guest
from benchmarks.ext4 import Batch, mark_written, overwrite
from benchmarks.guest import Package

LOG_GROWTH = 0.05
"""Of a log's size, a day."""
PACKAGE_SHARE = 0.01
"""Of the guest's bytes: as much is installed as removed, a day."""
MEDIA_SHARE = 0.005


@dataclass(slots=True)
class Guest:
    """What the host remembers of a guest from one day to the next."""

    image: Path
    data: Path
    """The staging tree's etc, var and srv, as they are in the guest."""
    host: str
    count_bytes: int
    installed: list[Package]
    spare: list[Package]
    directories: set[str]
    """Every directory below /usr in the guest; they stay when packages go."""


def next_day(one: Guest, image: Path, *, day: int, seed: int, scratch: Path) -> None:
    """Change ``image``, which is a copy of the guest's, to the next day's; the guest has it then."""
    rng = random.Random(f"{seed}-{one.host}-day{day}")
    one.image = image
    batch = Batch(image)
    growing = _logs(one, batch, rng, day)
    _packages(one, batch, rng)
    _media(one, batch, rng, day)
    batch.run(scratch)
    for path, old, new in growing:
        if mark_written(image, path, scratch):
            overwrite(image, path, old, new)
        else:
            rewriting = Batch(image)
            rewriting.remove(path)
            rewriting.write(one.data / path.lstrip("/"), path)
            rewriting.run(scratch)
    for number in range(guest.DATABASES):
        database = one.data / f"var/lib/app/{number}.sqlite"
        old = database.read_bytes()
        guest.update_database(database, rng)
        new = database.read_bytes()
        assert len(new) == len(old), "updates of equal length keep a database's size"
        overwrite(image, f"/var/lib/app/{number}.sqlite", old, new)


def _logs(one: Guest, batch: Batch, rng: random.Random, day: int) -> list[tuple[str, bytes, bytes]]:
    """Rotate one log, let the others grow; returns (path, old bytes, new bytes) of those."""
    rotated, growing = day % guest.LOGS, []
    for number in range(guest.LOGS):
        log = one.data / f"var/log/{number}.log"
        old = log.read_bytes()
        added = guest.log_lines(
            int(one.count_bytes * guest.LOG_SHARE / guest.LOGS * LOG_GROWTH), rng, one.host
        )
        path = f"/var/log/{number}.log"
        if number == rotated:
            packed = one.data / f"var/log/{number}.log.{day}.gz"
            packed.write_bytes(gzip.compress(old, 6, mtime=0))
            log.write_bytes(added)
            batch.write(packed, f"{path}.{day}.gz")
            batch.remove(path)
            batch.write(log, path)
        else:
            batch.grow(path, old_bytes=len(old), new_bytes=len(old) + len(added))
            log.write_bytes(old + added)
            growing.append((path, old, old + added))
    return growing


def _packages(one: Guest, batch: Batch, rng: random.Random) -> None:
    rng.shuffle(one.installed)
    gone = guest.take(one.installed, int(one.count_bytes * PACKAGE_SHARE))
    new = guest.take(one.spare, int(one.count_bytes * PACKAGE_SHARE))
    for path in (path for package in gone for path in package.paths):
        batch.remove(path)
    for package in new:
        for directory in directories_of([package]):
            if directory not in one.directories:
                batch.mkdir(directory)
                one.directories.add(directory)
        for path in package.paths:
            batch.write(Path(path), path)
    one.installed += new


def directories_of(chosen: Iterable[Package]) -> list[str]:
    """Return the directories of packages and all above, parents first."""
    found: dict[str, None] = {}
    for package in chosen:
        parts = package.directory.strip("/").split("/")
        for depth in range(1, len(parts) + 1):
            found["/" + "/".join(parts[:depth])] = None
    return list(found)


def _media(one: Guest, batch: Batch, rng: random.Random, day: int) -> None:
    folder = one.data / "srv/media"
    guest.make_media(folder, int(one.count_bytes * MEDIA_SHARE), rng, f"day{day}-")
    for path in sorted(folder.glob(f"day{day}-*")):
        batch.write(path, f"/srv/media/{path.name}")
