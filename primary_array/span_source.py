"""Read spans from a disk, cut and fingerprint them: the sending half of a worker process.

Owns: a worker's read buffers, one an offer that is not yet answered.
Invariants:
  B1 segments are views into a buffer that is not reused before ``release``.
  B2 what has no place reads as zeros; all else comes from the reader, or nothing is offered.
Limits: buffers_max buffers of one offer each. Callers: the worker's main thread.
Source: US 2016/0170666 [0040].
"""

from __future__ import annotations

import contextlib
import mmap
import queue
from collections import deque
from collections.abc import Callable, Iterator

from arraylift.exchange.cut_batch import CutBatch
from arraylift.segments.fingerprint import FingerprintKey
from arraylift.segments.segmentation import Segmentation, Segmenter
from arraylift.sizes import GRANULE_BYTES, SPAN_BYTES, span_length
from primary_array.send_plan import GRANULES_PER_SPAN, ReadItem
from primary_array.sent_disk import GranuleReader

NextItem = Callable[[bool], ReadItem | None]
"""Takes the next item, None at the end. With False it does not wait: queue.Empty where there is none yet."""

ITEMS_READ_AHEAD = 3
"""Items that the kernel reads while one is worked on."""


class SpanSource:
    """Yields a CutBatch for each of the items that ``next_item`` hands out, reading ahead."""

    def __init__(
        self,
        reader: GranuleReader,
        *,
        key: FingerprintKey,
        segmentation: Segmentation,
        image_bytes: int,
        spans_per_offer: int,
        buffers_max: int,
        next_item: NextItem,
    ) -> None:
        self._reader = reader
        self._key = key
        self._segmenter = Segmenter(segmentation)
        self._image_bytes = image_bytes
        self._next_item = next_item
        self._buffers = [memoryview(mmap.mmap(-1, spans_per_offer * SPAN_BYTES)) for _ in range(buffers_max)]
        self._ahead: deque[ReadItem] = deque()
        self._exhausted = False
        self.bytes_read = 0
        self.spans_read = 0
        self.spans_sampled = 0
        self.spans_hole = 0

    def __iter__(self) -> SpanSource:
        return self

    def __next__(self) -> CutBatch:
        if not self._ahead:
            self._fetch(wait=True)
        if not self._ahead:
            raise StopIteration
        item = self._ahead.popleft()
        self._read_ahead()
        assert self._buffers, "B1: the window bounds unreleased offers"
        buffer = self._buffers.pop()
        self._read(item, buffer)
        prepared = CutBatch(
            self._views(item, buffer),
            segmenter=self._segmenter,
            key=self._key,
            sample=item.sample,
            give_back=lambda: self._buffers.append(buffer),
        )
        self._count(item, prepared)
        return prepared

    def _views(self, item: ReadItem, buffer: memoryview) -> Iterator[tuple[int, memoryview]]:
        for place, span in enumerate(item.spans.tolist()):
            start = place * SPAN_BYTES
            yield span, buffer[start : start + span_length(span, self._image_bytes)]

    def _count(self, item: ReadItem, prepared: CutBatch) -> None:
        if item.sample:
            self.spans_sampled += len(item.spans)
        else:
            self.spans_read += len(item.spans)
            self.spans_hole += prepared.hole_count

    def _read_ahead(self) -> None:
        """Take what is there already; a slow feed holds nothing up."""
        with contextlib.suppress(queue.Empty):
            while len(self._ahead) < ITEMS_READ_AHEAD and not self._exhausted:
                self._fetch(wait=False)

    def _fetch(self, *, wait: bool) -> None:
        """Take one item and have its reading begin."""
        if self._exhausted:
            return
        item = self._next_item(wait)
        if item is None:
            self._exhausted = True
            return
        self._reader.read_ahead(item.slots)
        self._ahead.append(item)

    def _read(self, item: ReadItem, buffer: memoryview) -> None:
        if not item.slots.all():
            buffer[: len(item.slots) * GRANULE_BYTES] = bytes(len(item.slots) * GRANULE_BYTES)
        self.bytes_read += self._reader.read(item.slots, buffer)


assert GRANULES_PER_SPAN * GRANULE_BYTES == SPAN_BYTES
