"""Spans of a real disk, and what each stage makes of them, as the next stage's input.

Callers: benchmarks.kernels and benchmarks.loopback.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from arraylift.exchange.cut_batch import is_zero
from arraylift.exchange.messages import NO_RUNS, Offer, Segments
from arraylift.exchange.sender import Wanted
from arraylift.segments.codecs import compress_lz4
from arraylift.segments.fingerprint import FingerprintKey
from arraylift.segments.segmentation import DEFAULT_SEGMENTATION, Segmenter
from arraylift.sizes import SPAN_BYTES

KEY_BYTES = bytes(range(32))
KEY = FingerprintKey(KEY_BYTES)
SPANS_PER_OFFER = 4


@dataclass(frozen=True, slots=True)
class Prepared:
    """One offer with all its segments compressed beforehand: a batch whose stages cost nothing."""

    spans: tuple[int, ...]
    counts: tuple[int, ...]
    lengths: np.ndarray
    fingerprints: bytes
    codecs: np.ndarray
    stored: tuple[bytes | memoryview, ...]

    @property
    def plain_bytes(self) -> int:
        return int(self.lengths.sum(dtype=np.uint64))

    def offer(self, batch: int) -> Offer:
        return Offer(
            batch=batch,
            spans=np.array(self.spans, dtype="<u4"),
            counts=np.array(self.counts, dtype="<u2"),
            lengths=self.lengths,
            fingerprints=self.fingerprints,
            hole_runs=NO_RUNS,
        )

    def segments(self, wanted: Wanted) -> Iterator[tuple[Segments, int]]:
        """Messages of about 1 MiB, of all segments; this receiver wants them all."""
        assert len(wanted.indexes) == len(self.stored)
        start, size = 0, 0
        for index, piece in enumerate(self.stored, start=1):
            size += len(piece)
            if size >= SPAN_BYTES or index == len(self.stored):
                yield self.message(wanted.batch, start, index), int(self.lengths[start:index].sum())
                start, size = index, 0

    def message(self, batch: int, start: int, end: int) -> Segments:
        pieces = self.stored[start:end]
        sizes = np.array([len(piece) for piece in pieces], dtype="<u4")
        return Segments(batch, self.codecs[start:end], sizes, pieces)

    def release(self) -> None:
        """Nothing is held."""


def load_spans(path: Path, count: int) -> list[memoryview]:
    """Read ``count`` spans, or as many as there are, spread evenly over those that are not zero."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        total = os.fstat(descriptor).st_size // SPAN_BYTES
        views = []
        buffer = memoryview(mmap.mmap(-1, SPAN_BYTES))
        solid = []
        for span in range(total):
            os.preadv(descriptor, [buffer], span * SPAN_BYTES)
            if not is_zero(buffer):
                solid.append(span)
        count = min(count, len(solid))
        for place in range(count):
            view = memoryview(mmap.mmap(-1, SPAN_BYTES))
            os.preadv(descriptor, [view], solid[place * len(solid) // count] * SPAN_BYTES)
            views.append(view)
    finally:
        os.close(descriptor)
    return views


def prepare(spans: list[memoryview]) -> list[Prepared]:
    """Cut, fingerprint and compress all spans, SPANS_PER_OFFER an offer, numbered from 0."""
    segmenter = Segmenter(DEFAULT_SEGMENTATION)
    made = []
    for first in range(0, len(spans), SPANS_PER_OFFER):
        cut = [segmenter.cut(span) for span in spans[first : first + SPANS_PER_OFFER]]
        pieces = [piece for one in cut for piece in one]
        packed = [compress_lz4(piece) for piece in pieces]
        made.append(
            Prepared(
                spans=tuple(range(first, first + len(cut))),
                counts=tuple(map(len, cut)),
                lengths=np.array([len(piece) for piece in pieces], dtype="<u4"),
                fingerprints=KEY.segments(pieces),
                codecs=np.array([codec for codec, _ in packed], dtype="u1"),
                stored=tuple(stored for _, stored in packed),
            )
        )
    return made
