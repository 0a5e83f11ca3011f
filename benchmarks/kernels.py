"""What each stage of a backup costs by itself, on spans of a real disk.

A stage is run over all spans, several times; the fastest counts, since everything that disturbs
only adds. Nanoseconds are per plain byte of the stage's own input, so that the stages of a process
can be added up and held against the whole.
Callers: main thread.
"""

from __future__ import annotations

import json
import mmap
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from arraylift.durable import RealFiles
from arraylift.exchange import wire
from arraylift.exchange.cut_batch import is_zero
from arraylift.exchange.messages import Segments
from arraylift.exchange.receiver import Arrived, Batch
from arraylift.exchange.verify import plain_segments
from arraylift.ids import KeyId, TenantId, UnitId
from arraylift.segments import tree
from arraylift.segments.codecs import compress_lz4, decompress
from arraylift.segments.segmentation import DEFAULT_SEGMENTATION, Segmenter
from arraylift.sizes import CONTAINER_BYTES, GRANULE_BYTES, SPAN_BYTES
from benchmarks import loopback
from benchmarks.disks import Disk
from benchmarks.material import KEY, Prepared, load_spans, prepare
from dedup_target.container_format import Kind, SealedContainer
from dedup_target.container_store import ContainerStore
from dedup_target.directory_backend import DirectoryBackend
from dedup_target.rocks_index import RocksSegmentIndex
from primary_array.pool_reader import read_fully

SPANS = 128
REPEATS = 3
TREE_SPANS = 100 << 10
"""Spans of a 100 GiB image: trees are built whole, whatever changed."""

TENANT = TenantId(1)


@dataclass(frozen=True, slots=True)
class Cost:
    """One stage. ``side`` names the process that pays for it."""

    stage: str
    side: str
    nanoseconds_per_byte: float
    microseconds_per_segment: float | None = None


def run(disk: Disk, console: Console, *, json_path: Path | None, spans_count: int = SPANS) -> int:
    """Measure all stages and print them; returns 0."""
    spans = load_spans(disk.path, spans_count)
    batches = prepare(spans)
    plain_bytes = sum(batch.plain_bytes for batch in batches)
    costs = [
        *sending(spans, disk.path),
        *receiving(batches),
        *storing(batches, disk.path.parent),
        *exchanging(batches),
        tree_building(),
    ]
    table = Table(title=f"{len(spans)} spans of {disk.name}, {_ratio(batches):.2f} of the bytes on the wire")
    for title in ("stage", "paid by", "ns/byte", "MB/s", "µs/segment"):
        table.add_column(title, justify="left" if title in {"stage", "paid by"} else "right")
    for cost in costs:
        each = cost.microseconds_per_segment
        rate = 1000 / cost.nanoseconds_per_byte if cost.nanoseconds_per_byte else 0
        cells = (f"{cost.nanoseconds_per_byte:.3f}", f"{rate:,.0f}", "" if each is None else f"{each:.2f}")
        table.add_row(cost.stage, cost.side, *cells)
    console.print(table)
    if json_path:
        found = {"plain_bytes": plain_bytes, "stages": [asdict(cost) for cost in costs]}
        json_path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def _ratio(batches: list[Prepared]) -> float:
    stored = sum(len(piece) for batch in batches for piece in batch.stored)
    return stored / sum(batch.plain_bytes for batch in batches)


def _fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest of REPEATS runs."""
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _cost(stage: str, side: str, seconds: float, count_bytes: int, segments: int | None = None) -> Cost:
    each = None if segments is None else seconds / segments * 1e6
    return Cost(stage, side, seconds / count_bytes * 1e9, each)


# -- stages -------------------------------------------------------------------------------------


def sending(spans: list[memoryview], path: Path) -> Iterator[Cost]:
    """Stages of a worker of the array."""
    total = len(spans) * SPAN_BYTES
    yield _cost("read from slots", "sender", _read_seconds(path, len(spans)), total)
    yield _cost("look for zeros", "sender", _fastest(lambda: [is_zero(span) for span in spans]), total)
    segmenter = Segmenter(DEFAULT_SEGMENTATION)
    cut = [segmenter.cut(span) for span in spans]
    pieces = [piece for one in cut for piece in one]
    count = len(pieces)
    seconds = _fastest(lambda: [segmenter.cut(span) for span in spans])
    yield _cost("segment", "sender", seconds, total, count)
    yield _cost("fingerprint", "sender", _fastest(lambda: KEY.segments(pieces)), total, count)
    seconds = _fastest(lambda: [compress_lz4(piece) for piece in pieces])
    yield _cost("LZ4 compress", "sender", seconds, total, count)


def _read_seconds(path: Path, count: int) -> float:
    """Read ``count`` spans in runs of one span from a warm file of whole slots."""
    buffer = memoryview(mmap.mmap(-1, SPAN_BYTES))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        slots = SPAN_BYTES // GRANULE_BYTES

        def work() -> None:
            for span in range(count):
                read_fully(descriptor, span * slots * GRANULE_BYTES, buffer)

        work()
        return _fastest(work)
    finally:
        os.close(descriptor)


def receiving(batches: list[Prepared]) -> Iterator[Cost]:
    """Codec of the wire, on both sides, and what a receiver checks."""
    total = sum(batch.plain_bytes for batch in batches)
    count = sum(len(batch.stored) for batch in batches)
    messages = [batch.message(1, 0, len(batch.stored)) for batch in batches]
    encoded = [wire.encode_request(message) for message in messages]
    seconds = _fastest(lambda: [wire.encode_request(message) for message in messages])
    yield _cost("encode for the wire", "sender", seconds, total, count)
    seconds = _fastest(lambda: [wire.decode_request(data) for data in encoded])
    yield _cost("decode from the wire", "receiver", seconds, total, count)
    packed = [
        (codec, piece, length)
        for batch in batches
        for codec, piece, length in zip(
            batch.codecs.tolist(), batch.stored, batch.lengths.tolist(), strict=True
        )
    ]
    seconds = _fastest(lambda: [decompress(*one) for one in packed])
    yield _cost("LZ4 decompress", "receiver", seconds, total, count)
    arrived = [_arrived(batch, data) for batch, data in zip(batches, encoded, strict=True)]
    seconds = _fastest(lambda: [plain_segments(one, KEY) for one in arrived])
    yield _cost("verify (with decompress)", "receiver", seconds, total, count)


def _arrived(batch: Prepared, data: bytes) -> Arrived:
    message = wire.decode_request(data)
    assert isinstance(message, Segments)
    indexes = np.arange(len(batch.stored), dtype=np.intp)
    return Arrived(Batch(batch.offer(1), indexes), indexes, message)


@contextmanager
def _storage(parent: Path) -> Iterator[tuple[ContainerStore, RocksSegmentIndex]]:
    with tempfile.TemporaryDirectory(prefix="kernels-", dir=parent) as directory:
        store = ContainerStore(DirectoryBackend(RealFiles(), directory), UnitId("0" * 32))
        index = RocksSegmentIndex(f"{directory}/index")
        try:
            yield store, index
        finally:
            index.close()
            store.close()


def storing(batches: list[Prepared], parent: Path) -> Iterator[Cost]:
    """Containers and index, on the file system of ``parent``."""
    total = sum(batch.plain_bytes for batch in batches)
    count = sum(len(batch.stored) for batch in batches)
    with _storage(parent) as (store, index):
        packing, sealing, indexing = [], [], []
        for _ in range(REPEATS):
            pack_seconds, seal_seconds, sealed = _pack(store, batches)
            packing.append(pack_seconds)
            sealing.append(seal_seconds)
            began = time.perf_counter()
            for one in sealed:
                index.add_containers([one])
            indexing.append(time.perf_counter() - began)
        yield _cost("append to container", "receiver", min(packing), total, count)
        yield _cost("seal containers", "receiver's writer", min(sealing), total, count)
        yield _cost("index put, synced", "receiver's writer", min(indexing), total, count)
        known = [batch.fingerprints for batch in batches]
        absent = [KEY.segments([piece[:32] for piece in batch.stored]) for batch in batches]
        seconds = _fastest(lambda: [index.contains_many(TENANT, packed) for packed in known])
        yield _cost("index get, hits", "receiver", seconds, total, count)
        seconds = _fastest(lambda: [index.contains_many(TENANT, packed) for packed in absent])
        yield _cost("index get, misses", "receiver", seconds, total, count)


def _pack(store: ContainerStore, batches: list[Prepared]) -> tuple[float, float, list[SealedContainer]]:
    """Append all batches to containers and seal them; returns seconds of both, and the containers."""
    packing = sealing = 0.0
    sealed: list[SealedContainer] = []
    left = list(reversed(batches))
    while left:
        buffer = store.acquire(tenant=TENANT, key_id=KeyId(KEY.key_id), kind=Kind.DATA)
        try:
            while left and buffer.fits(len(left[-1].stored), sum(map(len, left[-1].stored))):
                batch = left.pop()
                message = batch.message(1, 0, len(batch.stored))
                joined = memoryview(b"".join(message.payload))  # as it comes from the wire
                began = time.perf_counter()
                buffer.append_frame(
                    fingerprints=batch.fingerprints,
                    stored_bytes=message.stored_lengths,
                    plain_bytes=batch.lengths,
                    codecs=message.codecs,
                    payload=joined,
                )
                packing += time.perf_counter() - began
            assert buffer.used_bytes <= CONTAINER_BYTES
            began = time.perf_counter()
            sealed.append(store.seal(buffer))
            sealing += time.perf_counter() - began
        finally:
            store.release(buffer)
    return packing, sealing, sealed


def exchanging(batches: list[Prepared]) -> Iterator[Cost]:
    """The exchange over loopback with TLS, with nothing done at either end."""
    total = sum(batch.plain_bytes for batch in batches)
    count = sum(len(batch.stored) for batch in batches)
    with loopback.receiver() as (address, pid, directory):
        loopback.send_once(address, pid, directory, batches)
        runs = [loopback.send_once(address, pid, directory, batches) for _ in range(REPEATS)]
    wall, sender, receiver = (min(values) for values in zip(*runs, strict=True))
    yield _cost("exchange, null stages: wall", "both", wall, total, count)
    yield _cost("exchange, null stages: CPU", "sender", sender, total, count)
    yield _cost("exchange, null stages: CPU", "receiver", receiver, total, count)


def tree_building() -> Cost:
    """Inner nodes and root of a 100 GiB image whose leaves are known; per byte of the image."""
    leaves = np.random.default_rng(1).integers(1, 256, (TREE_SPANS, 32), dtype=np.uint8)
    size = TREE_SPANS * SPAN_BYTES

    def work() -> None:
        for _ in tree.build(leaves, image_bytes=size, segmentation=DEFAULT_SEGMENTATION, key=KEY):
            pass

    return _cost("tree of 100 GiB from leaves", "receiver", _fastest(work), size)
