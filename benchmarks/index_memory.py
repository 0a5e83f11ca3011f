"""``python -m benchmarks index``: memory and speed of the segment index, and what a tebibyte would need.

Each measurement runs in a process of its own, over generated containers of 1,024 records of 16 KiB
(the average segment). What grows with the entries is the difference between two sizes of index, each
freshly opened; what does not is what a process that fills and searches the larger one holds besides.
Callers: main thread; ``_fill`` and ``_search`` run in the measured processes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from rich.console import Console
from rich.table import Table

from arraylift import tuning
from arraylift.ids import ContainerId, KeyId, TenantId
from arraylift.sizes import KIB, MIB, human
from benchmarks.usage import memory_of, peak_memory_of
from dedup_target.container_format import RECORD, Kind, SealedContainer
from dedup_target.rocks_index import RocksSegmentIndex

ENTRIES = 4_000_000
SEGMENT_BYTES = 16 * KIB
RECORDS = 1024
ENTRIES_PER_TIB = (1 << 40) // SEGMENT_BYTES
GOAL_BYTES_PER_TIB = 256 * MIB
LOOKUPS = 200_000
LIST = 256
"""Fingerprints of one look-up: about an offer's."""

TENANT = TenantId(1)


@dataclass(frozen=True, slots=True)
class Filled:
    """A process that built an index."""

    records_per_second: float
    peak_bytes: int
    """Above what the process had before it opened the index."""


@dataclass(frozen=True, slots=True)
class Searched:
    """A process that opened an index and looked things up."""

    open_seconds: float
    open_bytes: int
    """Above what the process had before it opened the index, marks included."""
    searched_bytes: int
    hits_per_second: float
    misses_per_second: float
    entries_per_second: float
    """By the checked iteration."""


@dataclass(frozen=True, slots=True)
class Found:
    """The figures of one run."""

    entries: int
    filled: Filled
    searched: Searched
    disk_bytes: int
    bytes_per_million: float
    fixed_bytes: int
    bytes_per_tib: int


def run(console: Console, work: Path, *, entries: int, json_path: Path | None) -> int:
    """Measure and print; returns 1 if a tebibyte would need more than the goal."""
    few = max(RECORDS, entries // 4)
    folder = work / "index"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        small, large = str(folder / "small"), str(folder / "large")
        _in_process(_fill, small, few)
        at_few = _in_process(_search, small, few)
        filled = _in_process(_fill, large, entries)
        searched = _in_process(_search, large, entries)
        disk = sum(path.stat().st_size for path in Path(large).iterdir())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found = _found(entries, few, filled, at_few, searched, disk)
    _show(found, console)
    if json_path:
        json_path.write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
    return 0 if found.bytes_per_tib <= GOAL_BYTES_PER_TIB else 1


def _found(entries: int, few: int, filled: Filled, at_few: Searched, searched: Searched, disk: int) -> Found:
    each = max(0.0, (searched.open_bytes - at_few.open_bytes) / (entries - few))
    most = max(filled.peak_bytes, searched.searched_bytes)
    fixed = max(0, most - round(each * entries))
    return Found(
        entries=entries,
        filled=filled,
        searched=searched,
        disk_bytes=disk,
        bytes_per_million=each * 1e6,
        fixed_bytes=fixed,
        bytes_per_tib=fixed + round(each * ENTRIES_PER_TIB),
    )


def _show(found: Found, console: Console) -> None:
    table = Table(title=f"segment index of {found.entries:,} entries ({human(found.disk_bytes)} on disk)")
    table.add_column("figure")
    table.add_column("measured", justify="right")
    rows = {
        "added, synced": f"{found.filled.records_per_second:,.0f} records/s",
        "look-ups that hit": f"{found.searched.hits_per_second:,.0f} /s",
        "look-ups that miss": f"{found.searched.misses_per_second:,.0f} /s",
        "checked iteration": f"{found.searched.entries_per_second:,.0f} entries/s",
        "opening": f"{found.searched.open_seconds:.2f} s",
        "memory a million entries": human(round(found.bytes_per_million)),
        "memory that does not grow": human(found.fixed_bytes),
        f"memory a TiB of unique data ({ENTRIES_PER_TIB:,} entries)": human(found.bytes_per_tib),
        "goal": f"at most {human(GOAL_BYTES_PER_TIB)}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)


# -- the measured processes -----------------------------------------------------------------------


T = TypeVar("T")


def _in_process(work: Callable[[str, int], T], path: str, entries: int) -> T:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, (path, entries))


def _container(number: int) -> SealedContainer:
    draw = np.random.default_rng(number)
    directory = np.zeros(RECORDS, dtype=RECORD)
    directory["fingerprint"] = np.frombuffer(draw.bytes(32 * RECORDS), dtype="V32")
    directory["offset"] = np.arange(RECORDS, dtype=np.uint32) * SEGMENT_BYTES + 4096
    directory["stored_bytes"] = directory["plain_bytes"] = SEGMENT_BYTES
    return SealedContainer(ContainerId(number), Kind.DATA, TENANT, KeyId(bytes(8)), directory, 16 * MIB)


def _fill(path: str, entries: int) -> Filled:
    tuning.tune_process()
    before = memory_of(os.getpid())
    index = RocksSegmentIndex(path)
    seconds, containers = 0.0, entries // RECORDS
    for number in range(1, containers + 1):
        sealed = [_container(number)]
        began = time.perf_counter()
        index.add_containers(sealed)
        seconds += time.perf_counter() - began
    peak = peak_memory_of(os.getpid()) - before
    index.close()
    return Filled(containers * RECORDS / seconds, peak)


def _search(path: str, entries: int) -> Searched:
    tuning.tune_process()
    containers = entries // RECORDS
    draw = np.random.default_rng(entries)
    _container(1)  # what numpy keeps is not the index's
    before = memory_of(os.getpid())
    began = time.perf_counter()
    index = RocksSegmentIndex(path)
    open_seconds = time.perf_counter() - began
    open_bytes = memory_of(os.getpid()) - before
    known: list[bytes] = []
    while len(known) < LOOKUPS:
        directory = _container(int(draw.integers(1, containers + 1))).directory
        known += directory["fingerprint"][draw.integers(0, RECORDS, 500)].tolist()
    order = draw.permutation(len(known)).tolist()
    hits = _lookups(index, [known[place] for place in order], found=True)
    raw = draw.bytes(32 * LOOKUPS)
    misses = _lookups(index, [raw[at : at + 32] for at in range(0, len(raw), 32)], found=False)
    searched_bytes = memory_of(os.getpid()) - before
    began = time.perf_counter()
    count = index.count()
    seconds = time.perf_counter() - began
    index.close()
    return Searched(open_seconds, open_bytes, searched_bytes, hits, misses, count / seconds)


def _lookups(index: RocksSegmentIndex, fingerprints: list[bytes], *, found: bool) -> float:
    seconds = 0.0
    for start in range(0, len(fingerprints), LIST):
        packed = b"".join(fingerprints[start : start + LIST])
        began = time.perf_counter()
        present = index.contains_many(TENANT, packed)
        seconds += time.perf_counter() - began
        assert present.all() if found else not present.any()
    return len(fingerprints) / seconds
