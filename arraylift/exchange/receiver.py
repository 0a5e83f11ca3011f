"""The receiving side of one lane as a sans-I/O machine: requests in, replies out.

Invariants:
  R1 the first request is Open; nothing follows Commit.
  R2 batches are numbered 1, 2, 3, …; at most ``window_batches`` are incomplete.
  R3 an offer is well formed before anyone looks at its content: spans ascending and
     inside the image, the segments of a span add up to it, sizes inside the segmentation.
  R4 segments arrive for the oldest incomplete batch only, never more than were wanted.
  R5 Durable names complete batches only, and never goes back.
A request that breaks one raises InvalidRequest, and the lane ends: every later one raises too.
Callers: one thread at a time, the lane's handler.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arraylift.errors import InvalidRequest
from arraylift.exchange.messages import (
    PROTOCOL_VERSION,
    U32,
    Commit,
    Durable,
    Flags,
    Limits,
    Missing,
    Offer,
    Open,
    Request,
    Segments,
)
from arraylift.segments.segmentation import Policy, Segmentation
from arraylift.sizes import SEGMENTS_PER_SPAN_MAX, SPAN_BYTES, spans_of


@dataclass(frozen=True, slots=True)
class Poll:
    """The sender waits for Durable answers that are due."""


@dataclass(slots=True)
class Batch:
    """One offer on its way to being complete."""

    offer: Offer
    indexes: npt.NDArray[np.intp] | None = None
    """Wanted segments; None until answered."""
    arrived: int = 0

    @property
    def number(self) -> int:
        return self.offer.batch

    @property
    def complete(self) -> bool:
        return self.indexes is not None and self.arrived == len(self.indexes)


@dataclass(frozen=True, slots=True)
class Arrived:
    """Wanted segments came in: ``indexes`` are theirs in ``batch.offer``."""

    batch: Batch
    indexes: npt.NDArray[np.intp]
    message: Segments


class ReceiverLane:
    """One lane's rules; knows nothing of what is stored where."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._open: Open | None = None
        self._ended = ""  # why
        self._last_batch = 0
        self._incomplete: OrderedDict[int, Batch] = OrderedDict()
        self._durable_batch = 0

    def receive(self, request: Request) -> Open | Poll | Batch | Arrived | Commit:
        """Take one request and say what it means. Raises InvalidRequest (R1-R4)."""
        if self._ended:
            raise InvalidRequest(f"the lane has ended with {self._ended}")
        try:
            return self._receive(request)
        except InvalidRequest:
            self._ended = "a request that was refused"
            raise

    def _receive(self, request: Request) -> Open | Poll | Batch | Arrived | Commit:
        if isinstance(request, Open):
            return self._opening(request)
        if self._open is None:
            raise InvalidRequest("a lane begins with Open")
        if isinstance(request, Segments):
            return self._segments(request)
        if isinstance(request, Offer):
            return self._offer(request, self._open)
        if self._incomplete:
            raise InvalidRequest(f"Commit came while {len(self._incomplete)} batches are incomplete")
        self._ended = "Commit"
        return request

    def _opening(self, request: Open) -> Open:
        if self._open is not None:
            raise InvalidRequest("a lane is opened once")
        if request.protocol_version != PROTOCOL_VERSION:
            raise InvalidRequest(
                f"exchange protocol version {request.protocol_version} is not spoken here",
                next_step=f"use a sender that speaks version {PROTOCOL_VERSION}",
            )
        if request.lane >= self._limits.lanes_max:
            raise InvalidRequest(f"lane {request.lane} is over the limit of {self._limits.lanes_max}")
        self._open = request
        return request

    def _offer(self, offer: Offer, opened: Open) -> Poll | Batch:
        if offer.batch == 0 and not any(
            map(len, (offer.spans, offer.counts, offer.lengths, offer.fingerprints, offer.hole_runs))
        ):
            return Poll()
        if offer.batch != self._last_batch + 1:
            raise InvalidRequest(f"batch {offer.batch} came where {self._last_batch + 1} was due")
        if len(self._incomplete) >= self._limits.window_batches:
            raise InvalidRequest(f"more than {self._limits.window_batches} batches are in flight")
        check_offer(offer, opened.image_bytes, opened.segmentation, self._limits.spans_per_offer_max)
        self._last_batch = offer.batch
        batch = Batch(offer)
        self._incomplete[offer.batch] = batch
        return batch

    def answer(self, batch: Batch, wanted: Flags | None, mismatched_spans: U32 | None = None) -> Missing:
        """Say which segments are wanted; None wants nothing. REQUIRES: in the order of the batches."""
        assert batch.indexes is None, "a batch is answered once"
        assert next(b for b in self._incomplete.values() if b.indexes is None) is batch, "E3: in order"
        assert wanted is None or len(wanted) == len(batch.offer.lengths), "one flag a segment"
        batch.indexes = np.empty(0, dtype=np.intp) if wanted is None else np.flatnonzero(wanted)
        if batch.complete:
            del self._incomplete[batch.number]
        return Missing(batch.number, wanted if len(batch.indexes) else None, mismatched_spans)

    def _segments(self, message: Segments) -> Arrived:
        oldest = next(iter(self._incomplete), 0)
        batch = self._incomplete.get(message.batch)
        if batch is None or batch.indexes is None or message.batch != oldest:
            raise InvalidRequest(f"segments of batch {message.batch} came where {oldest} was due")
        count = len(message.codecs)
        payload_bytes = sum(map(len, message.payload))
        if not 0 < count <= len(batch.indexes) - batch.arrived:
            raise InvalidRequest(f"{count} segments came for batch {message.batch}, more than wanted")
        if len(message.stored_lengths) != count or payload_bytes != int(
            message.stored_lengths.sum(dtype=np.uint64)
        ):
            raise InvalidRequest(f"the lengths of batch {message.batch}'s segments do not match")
        indexes = batch.indexes[batch.arrived : batch.arrived + count]
        if (message.stored_lengths > batch.offer.lengths[indexes]).any():
            raise InvalidRequest("a segment's stored form is larger than its plain form")
        batch.arrived += count
        if batch.complete:
            del self._incomplete[batch.number]
        return Arrived(batch, indexes, message)

    def durable(self, batch: int, bytes_stored: int) -> Durable:
        """Say that batches up to ``batch`` survive any crash (R5)."""
        assert self._durable_batch <= batch <= self._last_batch, "R5"
        assert not any(number <= batch for number in self._incomplete), "R5"
        self._durable_batch = batch
        return Durable(batch, bytes_stored)


def check_offer(offer: Offer, image_bytes: int, segmentation: Segmentation, spans_max: int) -> None:
    """Raise InvalidRequest unless the offer is well formed (R3)."""
    count, spans = len(offer.spans), spans_of(image_bytes)
    segments = len(offer.lengths)
    if count > spans_max or len(offer.counts) != count or len(offer.fingerprints) != 32 * segments:
        raise InvalidRequest(f"the arrays of batch {offer.batch} do not match each other or the limits")
    counts = offer.counts.astype(np.int64)
    if int(counts.sum()) != segments or (counts < 1).any() or (counts > SEGMENTS_PER_SPAN_MAX).any():
        raise InvalidRequest(f"the segment counts of batch {offer.batch} do not add up")
    if count:
        _check_spans(offer, counts, image_bytes, segmentation)
    if len(offer.hole_runs):
        first, run = offer.hole_runs[:, 0].astype(np.uint64), offer.hole_runs[:, 1].astype(np.uint64)
        ends = first + run
        if (run < 1).any() or (ends > spans).any() or (ends[:-1] > first[1:]).any():
            raise InvalidRequest(f"the holes of batch {offer.batch} are not ascending runs inside the image")


def _check_spans(
    offer: Offer, counts: npt.NDArray[np.int64], image_bytes: int, segmentation: Segmentation
) -> None:
    spans = offer.spans.astype(np.int64)
    plain = np.minimum(SPAN_BYTES, image_bytes - spans * SPAN_BYTES)
    if (np.diff(spans) < 1).any() or spans[-1] >= spans_of(image_bytes):
        raise InvalidRequest(f"the spans of batch {offer.batch} are not ascending inside the image")
    if not offer.lengths.all() or int(offer.lengths.max()) > segmentation.segment_bytes_max:
        raise InvalidRequest(f"a segment of batch {offer.batch} is empty or over the segmentation's maximum")
    starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
    sums = np.add.reduceat(offer.lengths.astype(np.int64), starts)
    if (sums != plain).any():
        raise InvalidRequest(f"the segments of a span of batch {offer.batch} do not add up to it")
    inner = np.ones(len(offer.lengths), dtype=np.bool_)
    inner[starts + counts - 1] = False  # the last of a span is what is left
    if segmentation.policy is Policy.FIXED:
        size = segmentation.segment_bytes_average
        if (offer.lengths[inner] != size).any() or int(offer.lengths.max()) > size:
            raise InvalidRequest(f"batch {offer.batch} is not cut by the fixed segmentation it names")
    elif (offer.lengths[inner] < segmentation.segment_bytes_min).any():
        raise InvalidRequest(f"a segment of batch {offer.batch} is under the segmentation's minimum")
