"""What a large volume costs its pool: snapshots, the tracker's answer, writes, checkpoints, starts.

The map is generated: 1 TiB, of which 100 GiB are mapped, in pieces of 1 MiB strewn over all of it, so that
every page of the map exists. The slots are real bytes of a sparse file. Times are of one thread, on
whatever disk ``--work`` is; those that are bound by memory alone say so.
Callers: main thread.
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from arraylift.durable import RealFiles
from arraylift.sizes import GIB, GRANULE_BYTES, KIB, MIB, TIB
from benchmarks import report
from primary_array.pool import Pool
from primary_array.slot_counts import U64

MAPPED_BYTES = 100 * GIB
PIECE_GRANULES = MIB // GRANULE_BYTES
SNAPSHOTS = 64
OWNED_WRITES = 4000
SMALL_BYTES = 256 * MIB
CHANGED_GRANULES = 20_000
REPEATS = 9
NAME = "large"


@dataclass(frozen=True, slots=True)
class Figure:
    """One row, in milliseconds. The fastest of ``count`` runs is held against the goal, as everything
    that disturbs only adds; the others tell how much it did."""

    what: str
    best_ms: float
    median_ms: float
    worst_ms: float
    count: int
    goal_ms: float | None = None

    @property
    def reached(self) -> str:
        if self.goal_ms is None:
            return ""
        return "reached" if self.best_ms <= self.goal_ms else "MISSED"


def run(console: Console, work: Path, *, seed: int, json_path: Path | None) -> int:
    """Measure and print; 1 if a goal was missed."""
    with _directory(work) as directory:
        figures = _measure(directory, random.Random(seed), console)
    shown = Table("what", "fastest", "median", "worst", "runs", "goal", "", box=None, header_style="bold")
    for one in figures:
        goal = "" if one.goal_ms is None else f"{one.goal_ms:.3g} ms"
        times = [f"{value:,.3f} ms" for value in (one.best_ms, one.median_ms, one.worst_ms)]
        shown.add_row(one.what, *times, str(one.count), goal, one.reached)
    console.print(shown)
    if json_path is not None:
        document = {"machine": report.machine(), "pool": [asdict(one) for one in figures]}
        json_path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return int(any(one.reached == "MISSED" for one in figures))


@contextmanager
def _directory(work: Path) -> Iterator[str]:
    directory = tempfile.mkdtemp(prefix="pool-", dir=work)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def _measure(directory: str, chance: random.Random, console: Console) -> list[Figure]:
    figures = []
    pool = _open(directory)
    granules = _fill(pool, chance)
    figures.append(_timed("first checkpoint, all pages", lambda: _checkpoint(pool), 1))
    console.print(f"map: {pool.stats().map_bytes / MIB:,.0f} MiB in memory, {len(granules):,} granules")
    pool.close()
    reopened: list[Pool] = []
    figures.append(_timed("start", lambda: reopened.append(_open(directory)), 1))
    (pool,) = reopened
    figures += _snapshots(pool, granules, chance)
    figures += _tracker(pool)
    figures += _writes(pool, chance)
    figures.append(_timed("checkpoint after that", lambda: _checkpoint(pool), 1))
    figures.append(_timed("check", lambda: _checked(pool), 1))
    figures.append(_timed("unique bytes of the volume", lambda: pool.volume(NAME, with_space=True), 3))
    ids = iter([info.snapshot_id for info in pool.snapshots(NAME)])
    count = len(pool.snapshots(NAME))
    figures.append(_timed("delete a snapshot", lambda: pool.delete_snapshot(next(ids)), count))
    pool.close()
    return figures


def _open(directory: str) -> Pool:
    return Pool.open(RealFiles(), directory, background=True)


def _timed(what: str, action: Callable[[], object], count: int, goal_ms: float | None = None) -> Figure:
    times = []
    for _ in range(count):
        started = time.perf_counter()
        action()
        times.append((time.perf_counter() - started) * 1000)
    return _figure(what, times, goal_ms)


def _figure(what: str, times: list[float], goal_ms: float | None = None) -> Figure:
    return Figure(what, min(times), statistics.median(times), max(times), len(times), goal_ms)


def _fill(pool: Pool, chance: random.Random) -> U64:
    """Map pieces of the volume to slots that the file is made long enough for."""
    pool.create_volume(NAME, TIB)
    pieces = chance.sample(range(TIB // MIB), MAPPED_BYTES // MIB)
    firsts = np.array(sorted(pieces), np.uint64) * np.uint64(PIECE_GRANULES)
    granules = (firsts[:, None] + np.arange(PIECE_GRANULES, dtype=np.uint64)).ravel().astype(np.uint64)
    slots = pool._slots.allocate(len(granules))
    pool._slots.write_part(int(slots[-1]), GRANULE_BYTES - 1, memoryview(b"\0"))
    with pool._state.lock:
        volume = pool._state.volumes[NAME]
        volume.map.scatter(granules, slots, volume.epoch)
    return granules


def _checkpoint(pool: Pool) -> None:
    pool._checkpointer.write()


def _checked(pool: Pool) -> None:
    assert pool.check(repair=False).findings == ()


def _snapshots(pool: Pool, granules: U64, chance: random.Random) -> list[Figure]:
    """Each after writes all over the volume, which are flushed or not."""

    def touch() -> None:
        for granule in chance.sample(granules.tolist(), CHANGED_GRANULES // 100):
            pool.write(NAME, granule * GRANULE_BYTES, b"x" * 4 * KIB)

    quiet, busy = [], []
    for number in range(REPEATS):
        touch()
        pool.flush(NAME)
        quiet.append(_timed("", partial(pool.snapshot, [NAME], f"quiet{number}"), 1).worst_ms)
        touch()
        busy.append(_timed("", partial(pool.snapshot, [NAME], f"busy{number}"), 1).worst_ms)
    return [
        _figure("snapshot, all flushed", quiet, 50),
        _figure("snapshot, with 12.5 MiB of writes to sync", busy),
    ]


def _tracker(pool: Pool) -> list[Figure]:
    infos = pool.snapshots(NAME)
    first, last = infos[0], infos[-1]
    newest = infos[-2]
    states = {
        f"tracker, since {len(infos) - 1} snapshots": first.state,
        "tracker, since the last": newest.state,
        "tracker, all 100 GiB changed": replace(first.state, birth=0),
    }
    figures = [
        _timed(what, partial(pool.changed_spans, last.snapshot_id, state), REPEATS, 200)
        for what, state in states.items()
    ]
    difference = _timed("diff of the oldest and the newest", lambda: _diff(pool), REPEATS, 200)
    return [*figures, difference]


def _diff(pool: Pool) -> None:
    infos = pool.snapshots(NAME)
    assert pool.diff(infos[-1].snapshot_id, infos[0].snapshot_id) is not None


def _writes(pool: Pool, chance: random.Random) -> list[Figure]:
    """4 KiB into granules of a volume of its own that the current epoch owns; then with snapshots."""
    pool.create_volume("small", SMALL_BYTES)
    block = b"w" * (4 * KIB)

    def own() -> None:
        for offset in range(0, SMALL_BYTES, MIB):
            pool.write("small", offset, b"o" * MIB)
        pool.flush("small")

    def write() -> None:
        pool.write("small", chance.randrange(SMALL_BYTES // (4 * KIB)) * 4 * KIB, block)

    own()
    bare = _timed("4 KiB write to an owned granule, no snapshot", write, OWNED_WRITES)
    for number in range(SNAPSHOTS):
        pool.snapshot(["small"], f"s{number}")
    first = _timed("4 KiB write, the first to its granule after a snapshot", write, OWNED_WRITES // 8)
    own()
    after = _timed(f"4 KiB write to an owned granule, {SNAPSHOTS} snapshots", write, OWNED_WRITES)
    # Of writes the median counts: a fastest one of thousands tells nothing.
    judged = replace(after, best_ms=after.median_ms, goal_ms=2 * bare.median_ms)
    return [bare, first, judged]
