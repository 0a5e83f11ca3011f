"""What lies on a guest's disk: this machine's programs, and data that is made from a seed.

A *package* here is one directory of /usr, or a part of a large one: programs come and go by those.
Callers: benchmarks.disks and benchmarks.churn, one thread.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from benchmarks.ext4 import FAKE_TIME

OS_SHARE, DATABASE_SHARE, LOG_SHARE, MEDIA_SHARE = 0.60, 0.15, 0.10, 0.15
"""Of the bytes of a guest's files."""

DATABASES = 3
LOGS = 4
FILE_BYTES_MAX = 32 << 20
"""Larger files are left out, or one of them could be half of a small disk."""
PACKAGE_BYTES = 4 << 20
"""Where a large directory is cut."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9._+,@=~/-]+")
_ROW_BYTES = 440
_WORDS = [
    "volume",
    "snapshot",
    "array",
    "target",
    "segment",
    "request",
    "answer",
    "customer",
    "order",
    "invoice",
    "total",
    "paid",
    "open",
    "closed",
    "session",
    "token",
    "user",
    "agent",
    "browser",
    "page",
    "image",
    "upload",
    "download",
    "error",
    "retry",
    "timeout",
    "queue",
    "worker",
    "cache",
]


@dataclass(frozen=True, slots=True)
class Package:
    """Files of one directory."""

    directory: str
    """Absolute, on this machine and in the guest alike."""
    names: tuple[str, ...]
    total_bytes: int

    @property
    def paths(self) -> Iterator[str]:
        return (f"{self.directory}/{name}" for name in self.names)


def packages(seed: int, root: str = "/usr") -> list[Package]:
    """Return all files of ``root`` as packages, in an order drawn from the seed."""
    found: list[Package] = []
    for directory, folders, names in os.walk(root):
        folders[:] = sorted(folder for folder in folders if folder != "__pycache__")
        found += _packages(directory, sorted(names))

    def drawn(one: Package) -> bytes:
        return hashlib.sha256(f"{seed}:{one.directory}/{one.names[0]}".encode()).digest()

    return sorted(found, key=drawn)


def _packages(directory: str, names: list[str]) -> Iterator[Package]:
    taken: list[str] = []
    total = 0
    for name in names:
        path = f"{directory}/{name}"
        if not _PLAIN_NAME.fullmatch(path) or os.path.islink(path) or not os.access(path, os.R_OK):
            continue
        if not os.path.isfile(path):
            continue
        size = os.path.getsize(path)
        if 0 < size <= FILE_BYTES_MAX:
            taken.append(name)
            total += size
        if total >= PACKAGE_BYTES:
            yield Package(directory, tuple(taken), total)
            taken, total = [], 0
    if taken:
        yield Package(directory, tuple(taken), total)


def take(spare: list[Package], count_bytes: int) -> list[Package]:
    """Take packages of about ``count_bytes`` from the front of ``spare``."""
    taken: list[Package] = []
    total = 0
    while spare and total < count_bytes:
        taken.append(spare.pop(0))
        total += taken[-1].total_bytes
    return taken


def install(chosen: list[Package], staging: Path) -> None:
    """Copy packages into a staging tree."""
    for package in chosen:
        folder = staging / package.directory.lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        for name in package.names:
            shutil.copyfile(f"{package.directory}/{name}", folder / name)


def settle_times(staging: Path) -> None:
    """Give every file the same times, whenever it was copied."""
    for directory, folders, names in os.walk(staging):
        for name in [*folders, *names]:
            os.utime(f"{directory}/{name}", (FAKE_TIME, FAKE_TIME))


def fill_data(staging: Path, *, count_bytes: int, host: str, seed: int) -> None:
    """Make host files, databases, logs and media of about ``count_bytes`` times their shares."""
    for folder in ("etc", "var/lib/app", "var/log", "srv/media"):
        (staging / folder).mkdir(parents=True, exist_ok=True)
    (staging / "etc/hostname").write_text(f"{host}\n", encoding="ascii")
    (staging / "etc/machine-id").write_text(
        f"{random.Random(seed).getrandbits(128):032x}\n", encoding="ascii"
    )
    for number in range(DATABASES):
        rows = int(count_bytes * DATABASE_SHARE / DATABASES / _ROW_BYTES)
        make_database(staging / f"var/lib/app/{number}.sqlite", rows, random.Random(f"{seed}-db{number}"))
    for number in range(LOGS):
        size = int(count_bytes * LOG_SHARE / LOGS)
        text = log_lines(size, random.Random(f"{seed}-log{number}"), host)
        (staging / f"var/log/{number}.log").write_bytes(text)
    make_media(staging / "srv/media", int(count_bytes * MEDIA_SHARE), random.Random(f"{seed}-media"))


def make_database(path: Path, rows: int, rng: random.Random) -> None:
    """Make a database with a table of ``rows`` orders and an index."""
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA page_size=4096")
        database.execute("PRAGMA journal_mode=OFF")
        database.execute("PRAGMA synchronous=OFF")
        database.execute("BEGIN")
        database.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, customer TEXT, note TEXT)")
        made = ((number, f"{rng.getrandbits(64):016x}", note(rng)) for number in range(rows))
        database.executemany("INSERT INTO orders VALUES (?, ?, ?)", made)
        database.execute("CREATE INDEX by_customer ON orders (customer)")
        database.execute("COMMIT")


def update_database(path: Path, rng: random.Random) -> None:
    """One day's updates of rows in place: a hot range of 1 % and 0.1 % anywhere; the size stays."""
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode=OFF")
        database.execute("PRAGMA synchronous=OFF")
        (rows,) = database.execute("SELECT count(*) FROM orders").fetchone()
        hot = rng.randrange(max(1, rows - rows // 100))
        touched = [*range(hot, hot + rows // 100), *(rng.randrange(rows) for _ in range(rows // 1000))]
        database.execute("BEGIN")
        database.executemany("UPDATE orders SET note=? WHERE id=?", ((note(rng), one) for one in touched))
        database.execute("COMMIT")


def note(rng: random.Random) -> str:
    """Return 360 characters: words, and a share that does not compress."""
    text = " ".join(rng.choices(_WORDS, k=50))[:280]
    return f"{text:<280}{rng.getrandbits(320):080x}"


def log_lines(count_bytes: int, rng: random.Random, host: str) -> bytes:
    """Return log lines of exactly ``count_bytes``."""
    lines, total, moment = [], 0, 0.0
    while total < count_bytes:
        moment += rng.random()
        message = " ".join([*rng.choices(_WORDS, k=6), f"id={rng.getrandbits(48):012x}"])
        line = f"{FAKE_TIME + moment:.3f} {host} app[{rng.randrange(32768)}]: {message}\n"
        lines.append(line)
        total += len(line)
    return "".join(lines).encode("ascii")[:count_bytes]


def make_media(folder: Path, count_bytes: int, rng: random.Random, prefix: str = "clip") -> None:
    """Make incompressible files of 1 to 8 MiB."""
    number = 0
    while count_bytes > 0:
        size = min(count_bytes, rng.randrange(1 << 20, 8 << 20))
        (folder / f"{prefix}{number:04}.bin").write_bytes(rng.randbytes(size))
        count_bytes -= size
        number += 1
