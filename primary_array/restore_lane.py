"""One lane of a restore: answers which segments the draft lacks, verifies what comes, puts spans together.

Invariants:
  W1 a segment counts as had only if the draft's own bytes, cut and fingerprinted here, have its
     fingerprint, in the same span; they are read again when the span is put together, and checked again:
     a lane of an older attempt may be writing its last span.
  W2 batches become durable in the order of their numbers.
Limits: the window of the exchange; a span on its way is held once. Callers: the lane's handler thread.
Source: US 2016/0170666 [0045].
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from arraylift.errors import ArrayliftError, Conflict
from arraylift.exchange.messages import U32, Commit, Committed, Flags, Offer
from arraylift.exchange.receiver import Arrived, Batch
from arraylift.exchange.serve_lane import cut_short
from arraylift.exchange.verify import plain_segments
from arraylift.segments.fingerprint import FingerprintKey, unpack
from arraylift.segments.tree import encode_leaf
from primary_array.restore_draft import RestoreDraft
from primary_array.span_writer import SpanWriter

Piece = tuple[int, int]
"""(offset in its span, bytes) of a segment that the draft has."""


class RestoreLane:
    """See exchange.serve_lane.LaneSink. ``committed`` and ``left`` tell the registry."""

    def __init__(
        self,
        restore: RestoreDraft,
        attempt: int,
        *,
        committed: Callable[[RestoreDraft, Committed], None],
        left: Callable[[RestoreDraft], None],
    ) -> None:
        self._restore = restore
        self._attempt = attempt
        self._committed = committed
        self._left = left
        self._writer = SpanWriter(restore.write_span)
        self._incomplete: deque[_Spans] = deque()
        self._complete_batch = 0
        self._durable_batch = 0

    def offered(self, batch: Batch) -> tuple[Flags | None, U32 | None]:
        """An empty draft lacks every segment, a clone those that its spans do not have (W1)."""
        self._restore.check(self._attempt)
        self._restore.claim(batch.offer)
        spans = _Spans(batch, self._had(batch.offer))
        self._incomplete.append(spans)
        self._put(spans)
        return (spans.wanted if spans.wanted.any() else None), None

    def _had(self, offer: Offer) -> dict[int, Piece]:
        """Segments of an offer that the draft has, by index."""
        had: dict[int, Piece] = {}
        if not self._restore.has_content:
            return had
        fingerprints, at = unpack(bytes(offer.fingerprints)), 0
        for span, count in zip(offer.spans.tolist(), offer.counts.tolist(), strict=True):
            pieces = self._restore.pieces_of(span)
            for index in range(at, at + count):
                piece = pieces.get(fingerprints[index])
                if piece is not None and piece[1] == int(offer.lengths[index]):
                    had[index] = piece
            at += count
        return had

    def arrived(self, arrived: Arrived) -> None:
        """Verify segments, and write the spans that are whole with them."""
        self._restore.check(self._attempt)
        spans = self._incomplete[0]
        assert spans.batch is arrived.batch, "segments come in batch order"
        spans.add(arrived, plain_segments(arrived, self._restore.key))
        self._put(spans)

    def _put(self, spans: _Spans) -> None:
        for span, plain, leaf in spans.whole(self._restore.read_span, self._restore.key):
            self._writer.put(span, plain, self._restore.key.node(leaf))

    def advance(self, *, now: bool) -> tuple[int, int]:
        """Save progress when it is due, or when the sender waits for it."""
        self._restore.check(self._attempt)
        while self._incomplete and self._incomplete[0].batch.complete:  # W2
            self._complete_batch = self._incomplete.popleft().batch.number
        if self._complete_batch > self._durable_batch and (now or self._restore.progress_due):
            self._writer.drain()
            self._restore.save()
            self._durable_batch = self._complete_batch
        return self._durable_batch, self._restore.bytes_written

    def flush(self) -> tuple[int, int]:
        """Make everything that arrived durable."""
        if any(not spans.batch.complete for spans in self._incomplete):
            raise cut_short()
        return self.advance(now=True)

    def commit(self, message: Commit) -> Committed:
        """Make the volume, or say that it may be swapped in."""
        self._restore.check(self._attempt)
        receipt = self._restore.commit(message)
        self._committed(self._restore, receipt)
        return receipt

    def close(self, cause: ArrayliftError | None) -> None:
        """The draft stays for the lease; a lane that did not end as it should ends its attempt."""
        self._writer.close()
        if cause is not None and self._attempt == self._restore.attempt:
            self._restore.fail(cause)
        self._left(self._restore)


class _Spans:
    """Segments of a batch on their way to being whole spans."""

    def __init__(self, batch: Batch, had: dict[int, Piece]) -> None:
        self.batch = batch
        self.wanted: Flags = np.ones(len(batch.offer.lengths), dtype=np.bool_)
        self.wanted[list(had)] = False
        self._had = had
        self._counts = deque(batch.offer.counts.tolist())
        self._spans = deque(batch.offer.spans.tolist())
        self._arrived: dict[int, bytes | memoryview] = {}
        self._at = 0

    def add(self, arrived: Arrived, pieces: list[bytes | memoryview]) -> None:
        """Take segments in the order of the offer."""
        self._arrived.update(zip(arrived.indexes.tolist(), pieces, strict=True))

    def whole(
        self, read_span: Callable[[int], memoryview], key: FingerprintKey
    ) -> list[tuple[int, bytes, bytes]]:
        """Return (span, plain bytes, encoded leaf) of each span that is whole now. Raises Conflict (W1)."""
        done = []
        offer = self.batch.offer
        lengths, fingerprints = memoryview(offer.lengths.tobytes()), memoryview(offer.fingerprints)
        while self._counts:
            end = self._at + self._counts[0]
            indexes = range(self._at, end)
            if not all(index in self._arrived or index in self._had for index in indexes):
                break
            self._counts.popleft()
            span = self._spans.popleft()
            if not any(index in self._had for index in indexes):
                plain = b"".join(self._arrived.pop(index) for index in indexes)
            else:
                plain = self._joined(indexes, read_span(span), key)
            leaf = encode_leaf(lengths[4 * self._at : 4 * end], fingerprints[32 * self._at : 32 * end])
            done.append((span, plain, leaf))
            self._at = end
        return done

    def _joined(self, indexes: range, content: memoryview, key: FingerprintKey) -> bytes:
        """Put together what arrived and what the draft has, checked once more (W1)."""
        had = [index for index in indexes if index in self._had]
        parts = {
            index: content[start : start + length] for index in had for start, length in [self._had[index]]
        }
        promised = b"".join(self.batch.offer.fingerprints[32 * index : 32 * index + 32] for index in had)
        if key.segments(list(parts.values())) != promised:
            raise Conflict(
                "a span of the draft changed while it was put together",
                next_step="open the transfer again",
            )
        return b"".join(parts[index] if index in parts else self._arrived.pop(index) for index in indexes)
