"""Read spans from slots, cut and fingerprint them: the sending half of a worker process.

Owns: a worker's read buffers, one an offer that is not yet answered.
Invariants:
  B1 segments are views into a buffer that is not reused before ``release``.
  B2 a span that is all zero is offered as a hole, whatever the map says (tree T1).
Limits: buffers_max buffers of one offer each. Callers: the worker's main thread.
Source: US 2016/0170666 [0040].
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator

import numpy as np

from arraylift.errors import Corruption
from arraylift.exchange.messages import NO_RUNS, Offer, Segments
from arraylift.exchange.sender import Wanted
from arraylift.segments.codecs import compress_lz4
from arraylift.segments.fingerprint import FingerprintKey
from arraylift.segments.segmentation import Segmentation, Segmenter
from arraylift.sizes import GRANULE_BYTES, MIB, SPAN_BYTES, span_length
from primary_array.send_plan import GRANULES_PER_SPAN, ReadItem

SEGMENTS_MESSAGE_BYTES = MIB
"""A Segments message is closed when its payload passes this."""

NextItem = Callable[[], ReadItem | None]


class PreparedSpans:
    """One offer of spans and the buffer its segments lie in."""

    def __init__(self, item: ReadItem, buffer: memoryview, give_back: Callable[[memoryview], None]) -> None:
        self._item = item
        self._buffer: memoryview | None = buffer
        self._give_back = give_back
        self._pieces: list[memoryview] = []
        self._spans: list[int] = []
        self._counts: list[int] = []
        self._holes: list[int] = []
        self._fingerprints = b""

    def cut(self, segmenter: Segmenter, key: FingerprintKey, image_bytes: int) -> None:
        """Find the segments of each span; zero spans become holes (B2)."""
        assert self._buffer is not None
        for place, span in enumerate(self._item.spans.tolist()):
            start = place * SPAN_BYTES
            view = self._buffer[start : start + span_length(span, image_bytes)]
            if is_zero(view):
                self._holes.append(span)
                continue
            pieces = segmenter.cut(view)
            self._spans.append(span)
            self._counts.append(len(pieces))
            self._pieces.extend(pieces)
        self._fingerprints = key.segments(self._pieces)

    def offer(self, batch: int) -> Offer:
        holes = np.array([(span, 1) for span in self._holes], dtype="<u4").reshape(-1, 2)
        return Offer(
            batch=batch,
            spans=np.array(self._spans, dtype="<u4"),
            counts=np.array(self._counts, dtype="<u2"),
            lengths=np.array([len(piece) for piece in self._pieces], dtype="<u4"),
            fingerprints=self._fingerprints,
            hole_runs=holes if self._holes else NO_RUNS,
            sample=self._item.sample,
        )

    @property
    def hole_count(self) -> int:
        """Spans that turned out to be zero."""
        return len(self._holes)

    def segments(self, wanted: Wanted) -> Iterator[tuple[Segments, int]]:
        """Compress what is wanted, about 1 MiB a message."""
        codecs, lengths, payload, plain_bytes = bytearray(), [], [], 0
        stored_bytes = 0
        for index in wanted.indexes.tolist():
            piece = self._pieces[index]
            codec, stored = compress_lz4(piece)
            codecs.append(codec)
            lengths.append(len(stored))
            payload.append(stored)
            stored_bytes += len(stored)
            plain_bytes += len(piece)
            if stored_bytes >= SEGMENTS_MESSAGE_BYTES:
                yield _message(wanted.batch, codecs, lengths, payload), plain_bytes
                codecs, lengths, payload, plain_bytes = bytearray(), [], [], 0
                stored_bytes = 0
        if payload:
            yield _message(wanted.batch, codecs, lengths, payload), plain_bytes

    def release(self) -> None:
        if self._buffer is not None:
            buffer, self._buffer, self._pieces = self._buffer, None, []
            self._give_back(buffer)


def _message(
    batch: int, codecs: bytearray, lengths: list[int], payload: list[bytes | memoryview]
) -> Segments:
    return Segments(batch, np.frombuffer(bytes(codecs), np.uint8), np.array(lengths, dtype="<u4"), payload)


def is_zero(view: memoryview) -> bool:
    """True if every byte of ``view`` is zero."""
    whole = len(view) // 8 * 8
    return not np.frombuffer(view[:whole], np.uint64).any() and not any(view[whole:])


class SpanSource:
    """Yields PreparedSpans for the items that ``next_item`` hands out, reading one ahead."""

    def __init__(
        self,
        descriptor: int,
        *,
        key: FingerprintKey,
        segmentation: Segmentation,
        image_bytes: int,
        spans_per_offer: int,
        buffers_max: int,
        next_item: NextItem,
    ) -> None:
        self._descriptor = descriptor
        self._key = key
        self._segmenter = Segmenter(segmentation)
        self._image_bytes = image_bytes
        self._next_item = next_item
        self._buffers = [memoryview(mmap.mmap(-1, spans_per_offer * SPAN_BYTES)) for _ in range(buffers_max)]
        self._ahead: ReadItem | None = None
        self._started = False
        self.bytes_read = 0
        self.spans_read = 0
        self.spans_sampled = 0
        self.spans_hole = 0

    def __iter__(self) -> SpanSource:
        return self

    def __next__(self) -> PreparedSpans:
        if not self._started:
            self._started, self._ahead = True, self._fetch_ahead()
        item = self._ahead
        if item is None:
            raise StopIteration
        self._ahead = self._fetch_ahead()
        assert self._buffers, "B1: the window bounds unreleased offers"
        buffer = self._buffers.pop()
        self._read(item, buffer)
        prepared = PreparedSpans(item, buffer, self._buffers.append)
        prepared.cut(self._segmenter, self._key, self._image_bytes)
        self._count(item, prepared)
        return prepared

    def _count(self, item: ReadItem, prepared: PreparedSpans) -> None:
        if item.sample:
            self.spans_sampled += len(item.spans)
        else:
            self.spans_read += len(item.spans)
            self.spans_hole += prepared.hole_count

    def _fetch_ahead(self) -> ReadItem | None:
        """Take the next item and have the kernel read it while this one is worked on."""
        item = self._next_item()
        if item is not None:
            for _, slot, count in slot_runs(item.slots):
                os.posix_fadvise(
                    self._descriptor, slot * GRANULE_BYTES, count * GRANULE_BYTES, os.POSIX_FADV_WILLNEED
                )
        return item

    def _read(self, item: ReadItem, buffer: memoryview) -> None:
        if not item.slots.all():
            buffer[: len(item.slots) * GRANULE_BYTES] = bytes(len(item.slots) * GRANULE_BYTES)
        for place, slot, count in slot_runs(item.slots):
            view = buffer[place * GRANULE_BYTES : (place + count) * GRANULE_BYTES]
            read_fully(self._descriptor, slot * GRANULE_BYTES, view)
            self.bytes_read += len(view)


def slot_runs(slots: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Yield (place, first slot, count) of each run of consecutive mapped slots."""
    mapped = np.flatnonzero(slots)
    if not len(mapped):
        return
    values = slots[mapped].astype(np.int64)
    breaks = np.flatnonzero((np.diff(values) != 1) | (np.diff(mapped) != 1)) + 1
    starts = np.concatenate(([0], breaks))
    counts = np.diff(np.concatenate((starts, [len(mapped)])))
    yield from zip(mapped[starts].tolist(), values[starts].tolist(), counts.tolist(), strict=True)


def read_fully(descriptor: int, offset: int, into: memoryview) -> None:
    """Fill ``into`` from the pool's data file. Raises Corruption if the disk cannot, or if the file
    ends before the slot does: a mapped slot was written whole, so nothing is zero-filled."""
    while len(into):
        try:
            count = os.preadv(descriptor, [into], offset)
        except OSError as error:
            raise Corruption(
                f"the pool's data cannot be read at {offset}: {error.strerror}",
                next_step="check the array's disk; the backup stopped, earlier images are not affected",
            ) from error
        if count == 0:
            raise Corruption(
                f"the pool's data file ends before {offset}",
                next_step="check the pool; the backup stopped, earlier images are not affected",
            )
        offset, into = offset + count, into[count:]


assert GRANULES_PER_SPAN * GRANULE_BYTES == SPAN_BYTES
