"""``python -m benchmarks restore``: reading an image, beside the plain tools on the same bytes.

The reference is ``cat FILE | lz4 -dc | b3sum`` over an LZ4 frame file of the image's data: read, decode
and fingerprint, in three processes. Ours reads the image through ``ImageReader`` in one process, as the
target does: index, containers, checksums, decoding, fingerprints, joining; the bytes are dropped. A third
row sends the image to an array over the exchange, until the receipt of the volume.
They take turns, from a warm page cache, and the median counts.
Callers: main thread; ``_read`` runs in a process of its own.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from arraylift import logs, tuning
from arraylift.durable import RealFiles
from arraylift.errors import ArrayliftError
from arraylift.sizes import SPAN_BYTES, human
from benchmarks import usage
from benchmarks.arraylift_peer import Arraylift
from benchmarks.disks import Disk, Disks
from benchmarks.peers import Work
from dedup_target.image_reader import ImageReader
from dedup_target.store import Store

GOAL = 0.7
ROUNDS = 5
PROGRAMS = ("cat", "lz4", "b3sum")


@dataclass(frozen=True, slots=True)
class Found:
    """Bytes per second of plain data; medians."""

    data_bytes: int
    reference: float
    read: float
    read_cpu: float
    sent: float

    @property
    def ratio(self) -> float:
        return self.read / self.reference


def run(made: Disks, console: Console, work: Path, *, rounds: int, json_path: Path | None) -> int:
    """Measure and print; returns 1 if reading is slower than the goal. Raises ArrayliftError."""
    for program in PROGRAMS:
        if shutil.which(program) is None:
            raise ArrayliftError(f"{program} is not installed", next_step="apt-get install lz4 b3sum")
    disk, scratch = made["A0"], work / "restore"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        sent_seconds = _back_up_and_restore(scratch, made)
        data_bytes, frames = _frames(disk, scratch)
        state = scratch / "target1"
        usage.warm([frames, state])
        references: list[float] = []
        reads: list[tuple[float, float]] = []
        for _ in range(rounds):
            references.append(_reference(frames))
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                reads.append(pool.apply(_read, (str(state), data_bytes)))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    found = Found(
        data_bytes=data_bytes,
        reference=data_bytes / statistics.median(references),
        read=data_bytes / statistics.median(wall for wall, _ in reads),
        read_cpu=data_bytes / statistics.median(cpu for _, cpu in reads),
        sent=data_bytes / sent_seconds,
    )
    _show(found, console)
    if json_path:
        document = {**asdict(found), "ratio": found.ratio}
        json_path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0 if found.ratio >= GOAL else 1


def _show(found: Found, console: Console) -> None:
    table = Table(title=f"reading an image of {human(found.data_bytes)} of data")
    for title in ("way", "MB/s", "of the reference"):
        table.add_column(title, justify="left" if title == "way" else "right")
    rows = {
        "cat | lz4 -dc | b3sum": found.reference,
        "image read, verified, dropped": found.read,
        "the same, by CPU time": found.read_cpu,
        "image sent to an array, until its receipt": found.sent,
    }
    for name, rate in rows.items():
        table.add_row(name, f"{rate / 1e6:,.0f}", f"{rate / found.reference:.0%}")
    console.print(table)
    console.print(f"goal: at least {GOAL:.0%}: {'reached' if found.ratio >= GOAL else 'missed'}")


def _back_up_and_restore(scratch: Path, made: Disks) -> float:
    """Leave a target with the image; returns the seconds of its restore."""
    peer = Arraylift()
    try:
        peer.begin(scratch, made)
        _timed(peer, Work.FIRST_FULL)
        seconds = _timed(peer, Work.RESTORE)
        if not peer.restored(made["A0"]):
            raise ArrayliftError("the restored volume differs from its disk")
        return seconds
    finally:
        peer.end()


def _timed(peer: Arraylift, work: Work) -> float:
    peer.prepare(work)
    usage.warm(peer.reads(work))
    os.sync()
    used = peer.run(work)
    assert used is not None, "it can do all works"
    return used.wall_seconds


def _frames(disk: Disk, scratch: Path) -> tuple[int, Path]:
    """Write the disk's spans that are not zero as one LZ4 file; returns their bytes and its path."""
    path, zero, size = scratch / "reference.lz4", bytes(SPAN_BYTES), 0
    with path.open("wb") as out, disk.path.open("rb") as source:
        packer = subprocess.Popen(["lz4", "-q", "-c"], stdin=subprocess.PIPE, stdout=out)
        assert packer.stdin is not None
        while span := source.read(SPAN_BYTES):
            if span != zero[: len(span)]:
                packer.stdin.write(span)
                size += len(span)
        packer.stdin.close()
        if packer.wait():
            raise ArrayliftError("lz4 failed")
    return size, path


def _reference(frames: Path) -> float:
    """Seconds of cat | lz4 -dc | b3sum."""
    began = time.perf_counter()
    cat = subprocess.Popen(["cat", str(frames)], stdout=subprocess.PIPE)
    unpack = subprocess.Popen(["lz4", "-dc"], stdin=cat.stdout, stdout=subprocess.PIPE)
    digest = subprocess.Popen(["b3sum"], stdin=unpack.stdout, stdout=subprocess.DEVNULL)
    for ours in (cat.stdout, unpack.stdout):
        assert ours is not None
        ours.close()  # the programs have their own
    if any([digest.wait(), unpack.wait(), cat.wait()]):
        raise ArrayliftError("the reference pipeline failed")
    return time.perf_counter() - began


def _read(state: str, data_bytes: int) -> tuple[float, float]:
    """Read the newest image whole; returns seconds of wall clock and CPU."""
    logs.configure("warning", "console")
    tuning.tune_process()
    store = Store(RealFiles(), state)
    try:
        images = ImageReader(store)
        newest = max(store.manifests.all(), key=lambda one: one.committed_at_ns)
        cpu, began = time.process_time(), time.perf_counter()
        found = sum(len(piece.data) for piece in images.read(images.open(newest.image_id), 0, 0))
        seconds = time.perf_counter() - began, time.process_time() - cpu
    finally:
        store.close()
    if found != data_bytes:
        raise ArrayliftError(f"the image has {found} bytes of data, not {data_bytes}")
    return seconds
