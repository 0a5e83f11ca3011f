"""``python -m benchmarks mark``: how fast a collection marks, and what it holds in memory meanwhile.

A unit is generated: containers of records with random fingerprints and next to no bytes, and images over
them, each sharing half of its spans with the one before. What is measured runs in a process of its own:
the mark of a freshly opened unit, and a dry run after half of the images are gone.
Callers: main thread; ``_measure`` runs in the measured process.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from arraylift import tuning
from arraylift.durable import RealFiles
from arraylift.ids import Fingerprint, ImageId
from arraylift.segments.segmentation import DEFAULT_SEGMENTATION
from arraylift.segments.tree import Leaves, build, encode_leaf
from arraylift.sizes import SPAN_BYTES
from benchmarks.usage import memory_of, peak_memory_of
from dedup_target.container_format import Kind
from dedup_target.key_store import TenantKey
from dedup_target.manifest_format import ImageManifest
from dedup_target.mark import Mark, NoTransfers
from dedup_target.store import Store

SEGMENTS = 2_000_000
SEGMENTS_A_SPAN = 64
IMAGES = 4
RECORDS = 2048
"""In a container: as many as 16 MiB have at 8 KiB a record."""
STORED_BYTES = 16


@dataclass(frozen=True, slots=True)
class Marked:
    """What one mark took."""

    records: int
    containers: int
    seconds: float
    cpu_seconds: float
    records_per_second: float
    peak_bytes: int
    """Above what the open unit had."""
    bits_bytes: int
    bits_per_tib: int
    """Of 1 TiB of records of 10 KiB."""


def run(console: Console, work: Path, *, segments: int, json_path: Path | None) -> int:
    """Measure; returns 0."""
    folder = work / "mark"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with console.status("generating a unit"):
            _generate(folder, segments)
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            found = pool.apply(_measure, (str(folder),))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    table = Table("what", "value", title="mark of one unit", box=None)
    table.add_row("records", f"{found.records:,} in {found.containers:,} containers")
    table.add_row("speed", f"{found.records_per_second:,.0f} records/s ({found.seconds:.1f} s)")
    table.add_row("CPU", f"{found.cpu_seconds / found.records * 1e6:.2f} µs a record")
    table.add_row("memory", f"{found.peak_bytes / found.records:.1f} bytes a record at the peak")
    table.add_row("bits", f"{found.bits_bytes:,} bytes; {found.bits_per_tib / 2**20:.1f} MiB for 1 TiB")
    console.print(table)
    if json_path is not None:
        json_path.write_text(json.dumps(asdict(found), indent=2) + "\n", encoding="utf-8")
    return 0


# -- the unit -------------------------------------------------------------------------------------


def _generate(folder: Path, segments: int) -> None:
    store = Store(RealFiles(), str(folder))
    tenant, draw = store.keys.get_or_create(""), np.random.default_rng(1)
    key = store.unit.fingerprint_key(tenant.tenant)
    spans = max(2, segments // SEGMENTS_A_SPAN * 2 // (IMAGES + 1))
    leaves: list[bytes] = []
    lengths = np.full(SEGMENTS_A_SPAN, SPAN_BYTES // SEGMENTS_A_SPAN, dtype="<u4").tobytes()
    for number in range(IMAGES):
        kept = leaves[: spans // 2]
        fresh = spans - len(kept)
        names = draw.bytes(32 * fresh * SEGMENTS_A_SPAN)
        stored = bytes(STORED_BYTES)
        _store(store, tenant, Kind.DATA, ((names[at : at + 32], stored) for at in range(0, len(names), 32)))
        size = 32 * SEGMENTS_A_SPAN
        nodes = [encode_leaf(lengths, names[at : at + size]) for at in range(0, len(names), size)]
        made = [key.node(node) for node in nodes]
        leaves = [*made, *kept]
        rows: Leaves = np.frombuffer(b"".join(leaves), dtype=np.uint8).reshape(-1, 32)
        image_bytes = spans * SPAN_BYTES
        inner = list(build(rows, image_bytes=image_bytes, segmentation=DEFAULT_SEGMENTATION, key=key))
        _store(store, tenant, Kind.NODES, iter([*zip(made, nodes, strict=True), *inner]))
        store.unit.manifests.publish(_image(tenant, number, inner[-1][0], image_bytes))
    store.close()


def _store(store: Store, tenant: TenantKey, kind: Kind, records: Iterator[tuple[bytes, bytes]]) -> None:
    """Fill containers with (fingerprint, stored bytes)."""
    containers = store.containers
    while True:
        chunk = [record for _, record in zip(range(RECORDS), records, strict=False)]
        if not chunk:
            return
        sizes = np.array([len(stored) for _, stored in chunk], dtype=np.uint32)
        buffer = containers.acquire(tenant=tenant.tenant, key_id=tenant.key_id, kind=kind)
        buffer.append_frame(
            fingerprints=b"".join(name for name, _ in chunk),
            stored_bytes=sizes,
            plain_bytes=sizes,
            codecs=np.zeros(len(chunk), dtype=np.uint8),
            payload=[stored for _, stored in chunk],
        )
        store.seal_queue.seal_now(buffer)


def _image(tenant: TenantKey, number: int, root: Fingerprint, image_bytes: int) -> ImageManifest:
    return ImageManifest(
        image_id=ImageId(f"{number:032x}"),
        name="disk",
        tenant=tenant.tenant,
        tenant_name=tenant.name,
        root=root,
        image_bytes=image_bytes,
        segmentation=DEFAULT_SEGMENTATION,
        key_id=tenant.key_id,
        source_state=None,
        base_image_id=None,
        committed_at_ns=number,
    )


# -- measuring --------------------------------------------------------------------------------------


def _measure(folder: str) -> Marked:
    tuning.tune_process()
    store = Store(RealFiles(), folder)
    before = memory_of(os.getpid())
    started, cpu_started = time.perf_counter(), time.process_time()
    mark = Mark(store.unit, NoTransfers())
    mark.run()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    records, peak = int(mark.live_records.sum()), peak_memory_of(os.getpid()) - before
    assert records == mark.slots.count, "all is alive"
    made = Marked(
        records=records,
        containers=len(mark.slots),
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        records_per_second=records / seconds,
        peak_bytes=peak,
        bits_bytes=mark.bits.nbytes,
        bits_per_tib=(1 << 40) // (10 << 10) // 8,
    )
    store.close()
    return made
