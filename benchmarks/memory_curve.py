"""``python -m benchmarks memory``: the target daemon's memory while much more passes through it.

A real daemon takes generated images in over the real exchange. A tenth of every image is new, the
rest repeats what any image had before, so offers are mostly present. Segments are 16 KiB, half of
each compressible. Its resident memory is sampled all along, and told at each mark of logical bytes;
at the end one image is read back whole.
Callers: main thread; a thread of its own samples.
"""

from __future__ import annotations

import importlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from arraylift import pki
from arraylift.errors import ArrayliftError, OutOfSpace
from arraylift.exchange.lane import commit_lane, open_lane, send_batches, settle
from arraylift.exchange.messages import NO_RUNS, Commit, Figures, Offer, Open, Segments
from arraylift.exchange.peers import ExchangePeers
from arraylift.exchange.sender import SenderLane, Wanted
from arraylift.ids import TransferId, random_id
from arraylift.segments.codecs import compress_lz4
from arraylift.segments.fingerprint import FingerprintKey
from arraylift.segments.segmentation import DEFAULT_SEGMENTATION
from arraylift.sizes import GIB, KIB, MIB, SPAN_BYTES, human
from arraylift.v1 import image_pb2, target_admin_pb2
from benchmarks import daemons, usage

MARKS_GIB = (1, 10, 100)
GOAL_BYTES = 512 * MIB
IMAGE_BYTES_MAX = 10 * GIB
NEW_EVERY = 10
"""One span of so many is new."""
SEGMENT_BYTES = 16 * KIB
SEGMENTS = SPAN_BYTES // SEGMENT_BYTES
SPANS_PER_OFFER = 4
SAMPLE_SECONDS = 0.05
ROOM = 2
"""Free bytes needed, in times the bytes that are new."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What the daemon had when so much had passed."""

    what: str
    logical_bytes: int
    unique_bytes: int
    seconds: float
    memory_bytes: int
    peak_bytes: int


@dataclass
class Curve:
    """Everything that was sampled."""

    marks: list[Mark] = field(default_factory=list)
    samples: list[tuple[int, int]] = field(default_factory=list)
    """(logical bytes so far, resident bytes)."""


def run(console: Console, work: Path, *, marks_gib: Sequence[int], json_path: Path | None, seed: int) -> int:
    """Measure and print; returns 1 if the daemon ever had more than the goal."""
    needed = max(marks_gib) * GIB // NEW_EVERY * ROOM
    if shutil.disk_usage(work).free < needed:
        raise OutOfSpace(
            f"{work} has less than the {human(needed)} free that this needs",
            subject=str(work),
            next_step="give another --work, or fewer --logical",
        )
    scratch = work / "memory"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        curve = _measure(scratch, sorted(marks_gib), np.random.default_rng(seed), console)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    _show(curve, console)
    picture = _plot(curve, work / "memory.png")
    if picture:
        console.print(f"curve: {picture}")
    if json_path:
        document = {"marks": [asdict(mark) for mark in curve.marks], "samples": curve.samples[::20]}
        json_path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0 if max(mark.peak_bytes for mark in curve.marks) < GOAL_BYTES else 1


def _measure(scratch: Path, marks_gib: Sequence[int], draw: np.random.Generator, console: Console) -> Curve:
    pki_directory = daemons.make_pki(scratch)
    target = daemons.start("target", "dedup_target", "target1", scratch=scratch, pki_directory=pki_directory)
    try:
        daemons.wait_until_ready(target, scratch=scratch)
        run_ = _Run(target, ExchangePeers(pki.load(str(pki_directory), "array", "array1"), "target"), draw)
        with Progress(console=console, transient=True) as progress:
            bar = progress.add_task("images pass", total=marks_gib[-1] * GIB)
            run_.advanced = lambda: progress.update(bar, completed=run_.logical_bytes)
            return run_.measure(marks_gib)
    finally:
        daemons.stop(target)


class _Run:
    """One daemon, and everything that passes through it."""

    def __init__(self, target: daemons.Daemon, peers: ExchangePeers, draw: np.random.Generator) -> None:
        self._target = target
        self._peers = peers
        self._draw = draw
        self._pid = target.process.pid
        self._content: _Content | None = None
        self._began = time.monotonic()
        self._curve = Curve()
        self.logical_bytes = 0
        self.advanced: Callable[[], None] = lambda: None

    def measure(self, marks_gib: Sequence[int]) -> Curve:
        """Send images up to each mark, then read the last one."""
        stopping = threading.Event()
        sampler = threading.Thread(target=self._sample, args=(stopping,), name="sampler")
        sampler.start()
        try:
            self._mark("started")
            image_id = ""
            for gib in marks_gib:
                while self.logical_bytes < gib * GIB:
                    image_id = self._send(min(IMAGE_BYTES_MAX, gib * GIB - self.logical_bytes))
                self._mark(f"{gib} GiB passed")
            self._read_back(image_id)
            self._mark("the last image read back")
        finally:
            stopping.set()
            sampler.join()
            self._peers.close()
        return self._curve

    def _sample(self, stopping: threading.Event) -> None:
        while not stopping.wait(SAMPLE_SECONDS):
            self._curve.samples.append((self.logical_bytes, usage.memory_of(self._pid)))

    def _mark(self, what: str) -> None:
        unique = 0 if self._content is None else self._content.span_count * SPAN_BYTES
        now = usage.memory_of(self._pid), usage.peak_memory_of(self._pid)
        seconds = time.monotonic() - self._began
        self._curve.marks.append(Mark(what, self.logical_bytes, unique, seconds, *now))

    def _send(self, image_bytes: int) -> str:
        connection, transfer_id = self._target.connection, TransferId(random_id())
        request = target_admin_pb2.CreateGrantRequest(
            transfer_id=transfer_id, array="array1", image_name=f"vm/{transfer_id[:8]}", no_base=True
        )
        grant = connection.call(connection.admin.CreateGrant, request).grant
        stream, lane = self._peers.open_stream(connection.address), SenderLane()
        opening = Open(
            transfer_id=transfer_id,
            grant=grant,
            attempt=0,
            lane=0,
            image_bytes=image_bytes,
            segmentation=DEFAULT_SEGMENTATION,
            source_state=None,
        )
        try:
            opened = open_lane(stream, lane, opening)
            lane.use_lanes(1)
            self._content = self._content or _Content(FingerprintKey(opened.key), self._draw)
            send_batches(
                stream,
                lane,
                self._batches(self._content, image_bytes // SPAN_BYTES),
                cancelled=threading.Event(),
                on_answered=lambda _: self.advanced(),
            )
            settle(stream, lane)
            return commit_lane(stream, lane, Commit(inherit_base=False, figures=Figures())).image_id
        finally:
            stream.cancel()

    def _batches(self, content: _Content, span_count: int) -> Iterator[_Batch]:
        for first in range(0, span_count, SPANS_PER_OFFER):
            spans = range(first, min(first + SPANS_PER_OFFER, span_count))
            yield _Batch(content, spans, [content.pick(span) for span in spans])
            self.logical_bytes += len(spans) * SPAN_BYTES

    def _read_back(self, image_id: str) -> None:
        connection = self._target.connection
        request, found = image_pb2.ReadRangeRequest(image_id=image_id), 0
        with connection.stream(connection.images.ReadRange, request) as responses:
            for response in responses:
                found += len(response.data) + response.zero_bytes
        image = connection.call(
            connection.images.GetImage, image_pb2.GetImageRequest(image_id=image_id)
        ).image
        if found != image.image_bytes:
            raise ArrayliftError(f"{found} of {image.image_bytes} bytes came back")


class _Content:
    """Spans by number: what they hold follows from the number, what they hash to is remembered."""

    def __init__(self, key: FingerprintKey, draw: np.random.Generator) -> None:
        self._key = key
        self._draw = draw
        self._base = draw.bytes(SEGMENT_BYTES // 2 - 16) + bytes(SEGMENT_BYTES // 2)
        self._fingerprints: list[bytes] = []

    @property
    def span_count(self) -> int:
        return len(self._fingerprints)

    def pick(self, span: int) -> int:
        """A new span now and then, else one that was there before."""
        if span % NEW_EVERY == 0:
            number = len(self._fingerprints)
            self._fingerprints.append(self._key.segments(self.plain(number)))
            return number
        return int(self._draw.integers(len(self._fingerprints)))

    def plain(self, number: int) -> list[bytes]:
        """The segments of a span: no two are alike, and each half is of another kind."""
        return [
            number.to_bytes(8, "little") + place.to_bytes(8, "little") + self._base
            for place in range(SEGMENTS)
        ]

    def fingerprints(self, number: int) -> bytes:
        return self._fingerprints[number]


class _Batch:
    """One offer of spans; a ``Prepared``."""

    def __init__(self, content: _Content, spans: range, numbers: list[int]) -> None:
        self._content = content
        self._spans = spans
        self._numbers = numbers

    def offer(self, batch: int) -> Offer:
        count = len(self._numbers)
        return Offer(
            batch=batch,
            spans=np.array(self._spans, dtype="<u4"),
            counts=np.full(count, SEGMENTS, dtype="<u2"),
            lengths=np.full(count * SEGMENTS, SEGMENT_BYTES, dtype="<u4"),
            fingerprints=b"".join(map(self._content.fingerprints, self._numbers)),
            hole_runs=NO_RUNS,
        )

    def segments(self, wanted: Wanted) -> Iterator[tuple[Segments, int]]:
        """A message a span, of what is wanted of it."""
        for place, number in enumerate(self._numbers):
            mine = wanted.indexes[wanted.indexes // SEGMENTS == place] % SEGMENTS
            if len(mine):
                plain = self._content.plain(number)
                packed = [compress_lz4(plain[index]) for index in mine.tolist()]
                stored = [data for _, data in packed]
                sizes = np.array([len(data) for data in stored], dtype="<u4")
                codecs = np.array([codec for codec, _ in packed], dtype="u1")
                yield Segments(wanted.batch, codecs, sizes, stored), len(mine) * SEGMENT_BYTES

    def release(self) -> None:
        """Nothing is held."""


# -- telling ------------------------------------------------------------------------------------


def _show(curve: Curve, console: Console) -> None:
    table = Table(title="memory of the target daemon")
    for title in ("when", "logical", "unique", "seconds", "resident", "peak so far"):
        table.add_column(title, justify="left" if title == "when" else "right")
    for mark in curve.marks:
        sizes = (human(mark.logical_bytes), human(mark.unique_bytes))
        memory = (human(mark.memory_bytes), human(mark.peak_bytes))
        table.add_row(mark.what, *sizes, f"{mark.seconds:,.0f}", *memory)
    console.print(table)
    most = max(mark.peak_bytes for mark in curve.marks)
    console.print(f"goal: below {human(GOAL_BYTES)}: {'reached' if most < GOAL_BYTES else 'missed'}")


def _plot(curve: Curve, path: Path) -> Path | None:
    """Draw the curve, where matplotlib is installed."""
    try:
        importlib.import_module("matplotlib").use("Agg")
        pyplot = importlib.import_module("matplotlib.pyplot")
    except ImportError:
        return None
    figure, axes = pyplot.subplots(figsize=(8, 4))
    axes.plot([at / GIB for at, _ in curve.samples], [size / MIB for _, size in curve.samples], lw=0.8)
    axes.axhline(GOAL_BYTES / MIB, color="grey", ls="--", lw=0.8)
    axes.set(xlabel="GiB logical passed", ylabel="MiB resident", ylim=(0, None), title="dedup target")
    axes.set_xscale("symlog", linthresh=1)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    return path
