"""``python -m benchmarks search``: the catalog's store: files taken in, a month of backups, searches.

Files are made up: names as guests have them, shared by the VMs, some of each VM's own; in each further
backup a share of them changes. Nothing is parsed: ``benchmarks.catalog`` measures that.
Callers: main thread.
"""

from __future__ import annotations

import json
import resource
import shutil
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from arraylift.durable import RealFiles
from backup_server.catalog import batch_format as form
from backup_server.catalog.batch import PIECES, RECORDS, Batch
from backup_server.catalog.entry import Volume
from backup_server.catalog_store import search
from backup_server.catalog_store.rows import CatalogState, StoredBackup
from backup_server.catalog_store.store import CatalogStore

FILES_A_DIRECTORY = 100
BATCH_FILES = 4_000
CHANGED_EVERY = 200
SEARCH_SECONDS_GOAL = 1.0
PATTERNS = ("library_77", "*7777*.so", "own_3_1234", "lib", "none of this name", "/d12*/library_1299*")


def run(
    console: Console, work: Path, *, files: int, vms: int, backups: int, json_path: Path | None = None
) -> int:
    """Fill a catalog with ``files`` in each of ``vms``, then search; returns 0 if all are fast enough."""
    folder = work / "catalog-search"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    store = CatalogStore(RealFiles(), f"{folder}/catalog.db")
    fills: list[float] = []
    searches: dict[str, float] = {}
    found: dict[str, Any] = {"files": files, "vms": vms, "backups": backups}
    found |= {"fill_seconds": fills, "search_seconds": searches}
    try:
        for number in range(backups):
            for vm in range(vms):
                found["fill_seconds"].append(_fill(store, vm, number, files))
                console.print(f"VM {vm}, backup {number}: {found['fill_seconds'][-1]:.1f} s")
        for pattern in PATTERNS:
            began = time.monotonic()
            hits = search.find(store, search.Query(pattern), count=100)
            found["search_seconds"][pattern] = round(time.monotonic() - began, 3)
            console.print(f"{pattern}: {len(hits)} in {found['search_seconds'][pattern]} s")
        began = time.monotonic()
        listed = store.list_directory(f"backup-0-{backups - 1}", "disk0", "/d12")
        found["list_seconds"] = round(time.monotonic() - began, 3)
        assert len(listed) == FILES_A_DIRECTORY
        found["bytes"] = sum(path.stat().st_size for path in folder.iterdir())
        found["peak_kib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    finally:
        store.close()
        shutil.rmtree(folder, ignore_errors=True)
    console.print_json(data=found)
    if json_path:
        json_path.write_text(json.dumps(found, indent=2))
    return 0 if max(found["search_seconds"].values()) < SEARCH_SECONDS_GOAL else 1


def _fill(store: CatalogStore, vm: int, number: int, files: int) -> float:
    began = time.monotonic()
    backup = StoredBackup(
        f"backup-{vm}-{number}",
        f"vm{vm}",
        f"vm{vm}",
        number * 1_000 + vm,
        CatalogState.WAITING,
        "",
        ("disk0",),
    )
    store.begin(backup, [Volume("disk0", "ext4", "", "", 1 << 40, readable=True)])
    for _ in store.add_walk(backup, "disk0", _walk(vm, number, files)):
        pass
    return round(time.monotonic() - began, 2)


def _walk(vm: int, number: int, files: int) -> Any:
    directories = files // FILES_A_DIRECTORY
    names = [b"", *(b"d%d" % each for each in range(directories))]
    for start in range(0, len(names), BATCH_FILES):
        yield _directories(names[start : start + BATCH_FILES], start)
    for start in range(0, files, BATCH_FILES):
        yield _files(vm, number, start, min(BATCH_FILES, files - start))


def _directories(names: list[bytes], start: int) -> Batch:
    records = np.zeros(len(names), RECORDS)
    records["mode"], records["links"] = 0o040755, 2
    records["directory"] = np.arange(start, start + len(names))
    records["inode"] = records["directory"] + 2
    records["parent"] = np.where(records["directory"] == 0, form.NO_DIRECTORY, 0)
    records["name_bytes"] = [len(name) for name in names]
    return Batch(records, np.zeros(0, PIECES), dict.fromkeys(form.HEAPS, b"") | {"name": b"".join(names)})


def _files(vm: int, number: int, start: int, count: int) -> Batch:
    records, pieces = np.zeros(count, RECORDS), np.zeros(count, PIECES)
    indexes = np.arange(start, start + count)
    names = [
        b"own_%d_%d.txt" % (vm, index) if index % 20 == 0 else b"library_%d.so" % index
        for index in indexes.tolist()
    ]
    records["parent"] = 1 + indexes // FILES_A_DIRECTORY
    records["directory"], records["mode"], records["links"] = form.NO_DIRECTORY, 0o100644, 1
    records["inode"] = indexes + 1_000_000
    changes = np.array([zlib.crc32(b"%d" % index) % CHANGED_EVERY for index in indexes.tolist()])
    records["modified"] = np.maximum(0, (number - changes) // CHANGED_EVERY + 1) * 10 + (changes < number)
    records["pieces"], records["size"] = 1, 4096
    records["name_bytes"] = [len(name) for name in names]
    pieces["kind"], pieces["offset"], pieces["length"] = 1, indexes * 4096, 4096
    return Batch(records, pieces, dict.fromkeys(form.HEAPS, b"") | {"name": b"".join(names)})
