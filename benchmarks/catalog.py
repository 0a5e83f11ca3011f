"""``python -m benchmarks catalog``: how fast a whole ext4 image comes out of a parser, in how much memory.

An image of many small files is made by mke2fs. It is walked as the server walks it: a parser in a process of
its own, each batch checked. Memory is that of both processes at their peaks, measured in a process that does
nothing else.
Callers: main thread; ``_measure`` runs in the measured process.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from arraylift.sizes import MIB
from backup_server.catalog import browse
from backup_server.catalog.batch import Batch

FILES = 100_000
FILES_A_DIRECTORY = 200
SECONDS_GOAL = 10.0
MEMORY_GOAL = 512 * MIB


@dataclass(frozen=True, slots=True)
class Walked:
    """What one walk took."""

    entries: int
    pieces: int
    seconds: float
    cpu_seconds: float
    parent_peak_bytes: int
    parser_peak_bytes: int
    reads: int
    bytes_read: int

    @property
    def peak_bytes(self) -> int:
        return self.parent_peak_bytes + self.parser_peak_bytes

    @property
    def reached(self) -> bool:
        return self.seconds < SECONDS_GOAL and self.peak_bytes < MEMORY_GOAL


class _File:
    """An image in a file, which counts what is read."""

    def __init__(self, path: Path) -> None:
        self.size_bytes = path.stat().st_size
        self.reads = self.bytes_read = 0
        self._handle = os.open(path, os.O_RDONLY)

    def read(self, offset: int, length: int) -> bytes:
        self.reads += 1
        self.bytes_read += length
        return os.pread(self._handle, length, offset)


def run(console: Console, work: Path, *, files: int = FILES, json_path: Path | None = None) -> int:
    """Measure; returns 0 if the goals are reached."""
    folder = work / "catalog"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with console.status(f"making an image of {files:,} files"):
            image = _generate(folder, files)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(_measure, (str(image),))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    table = Table("what", "value", title=f"walk of an ext4 image of {files:,} files", box=None)
    table.add_row("entries", f"{found.entries:,} with {found.pieces:,} pieces")
    table.add_row("time", f"{found.seconds:.2f} s of {SECONDS_GOAL:g} ({found.cpu_seconds:.2f} s of CPU)")
    table.add_row("speed", f"{found.entries / found.seconds:,.0f} entries/s")
    peaks = f"parser {found.parser_peak_bytes // MIB} MiB, server {found.parent_peak_bytes // MIB} MiB"
    table.add_row("memory", f"{found.peak_bytes // MIB} MiB of {MEMORY_GOAL // MIB}: {peaks}")
    table.add_row("read", f"{found.reads:,} reads, {found.bytes_read / MIB:.0f} MiB")
    console.print(table)
    if json_path is not None:
        json_path.write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
    return 0 if found.reached else 1


def _generate(folder: Path, files: int) -> Path:
    tree = folder / "tree"
    for number in range(files):
        directory = tree / f"directory-{number // FILES_A_DIRECTORY}"
        if number % FILES_A_DIRECTORY == 0:
            directory.mkdir(parents=True)
        (directory / f"a-file-with-a-name-{number}").write_bytes(b"%d\n" % number * (number % 700))
    image = folder / "image"
    size = (files * 8192 + files * 512 + 64 * MIB) // MIB
    command = ["mke2fs", "-q", "-t", "ext4", "-F", "-N", str(files + files // 50 + 1000), "-d", str(tree)]
    environment = {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
    subprocess.run([*command, str(image), f"{size}M"], env=environment, check=True)
    shutil.rmtree(tree)
    return image


def _measure(image_path: str) -> Walked:
    image = _File(Path(image_path))
    entries = pieces = 0
    begun = time.monotonic()
    for told in browse.walk([browse.Disk("disk0", image)]):
        if isinstance(told, Batch):
            entries += len(told)
            pieces += len(told.pieces)
    seconds = time.monotonic() - begun
    own, parser = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return Walked(
        entries=entries,
        pieces=pieces,
        seconds=seconds,
        cpu_seconds=own.ru_utime + own.ru_stime + parser.ru_utime + parser.ru_stime,
        parent_peak_bytes=own.ru_maxrss * 1024,
        parser_peak_bytes=parser.ru_maxrss * 1024,
        reads=image.reads,
        bytes_read=image.bytes_read,
    )
