"""A disk to send and a receiver to send it to, both kept in plain dicts.

The receiver follows docs/protocols/exchange-v1.md with nothing but the shared machines
(ReceiverLane, Coverage, plain_segments) and dictionaries: what a crash keeps is in the fields
named ``durable_*``, everything else is forgotten by ``crash``.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from arraylift.errors import Conflict, InvalidRequest, LeaseLost
from arraylift.exchange.coverage import Coverage
from arraylift.exchange.messages import (
    NO_RUNS,
    Base,
    Commit,
    Committed,
    Figures,
    Limits,
    Offer,
    Open,
    Opened,
    Reply,
    Request,
    Segments,
)
from arraylift.exchange.receiver import Arrived, Batch, Poll, ReceiverLane
from arraylift.exchange.sender import Wanted
from arraylift.exchange.verify import plain_segments
from arraylift.ids import ImageId, TransferId
from arraylift.segments.codecs import compress_lz4
from arraylift.segments.fingerprint import FingerprintKey, unpack
from arraylift.segments.segmentation import DEFAULT_SEGMENTATION, Segmentation, Segmenter
from arraylift.segments.tree import encode_leaf, no_leaves, root_of
from arraylift.sizes import KIB, SPAN_BYTES, span_length, spans_of

KEY_BYTES = bytes(range(32))
KEY = FingerprintKey(KEY_BYTES)
GRANT = b"g" * 32
TRANSFER = TransferId("0123456789abcdef" * 2)
IMAGE = ImageId("fedcba9876543210" * 2)


@functools.cache
def palette(number: int) -> bytes:
    """One of PALETTE contents of a span: zeros, noise, text, repeats and near copies of others."""
    noise = random.Random(number).randbytes(SPAN_BYTES)
    common = random.Random(-1).randbytes(SPAN_BYTES)
    return (
        bytes(SPAN_BYTES),
        noise,
        (b"arraylift %d sends what is missing. " % number * (SPAN_BYTES // 30))[:SPAN_BYTES],
        noise[: 64 * KIB] * 16,
        bytes(SPAN_BYTES - 1) + b"\1",
        common[: 400 * KIB] + noise[400 * KIB :],
        common[:1000] + bytes([number % 256]) + common[1001:],
    )[number % 7]


PALETTE = 14


@dataclass(slots=True)
class Disk:
    """``spans`` holds the contents by span index; what it lacks is zero."""

    image_bytes: int
    spans: dict[int, bytes] = field(default_factory=dict)

    def span(self, index: int) -> bytes:
        length = span_length(index, self.image_bytes)
        return self.spans.get(index, bytes(SPAN_BYTES))[:length]

    @property
    def span_count(self) -> int:
        return spans_of(self.image_bytes)

    def read(self) -> bytes:
        return b"".join(self.span(index) for index in range(self.span_count))


def is_hole(plain: bytes) -> bool:
    return plain == bytes(len(plain))


@functools.lru_cache(64)
def _cut(plain: bytes, segmentation: Segmentation) -> tuple[tuple[memoryview, ...], bytes]:
    pieces = tuple(Segmenter(segmentation).cut(memoryview(plain)))
    return pieces, KEY.segments(pieces)


@dataclass(slots=True)
class Prepared:
    """A batch of spans; also what a lane takes from its source."""

    disk: Disk
    spans: Sequence[int]
    sample: bool = False
    segmentation: Segmentation = DEFAULT_SEGMENTATION
    pieces: list[memoryview] = field(default_factory=list)
    released: int = 0

    def offer(self, batch: int) -> Offer:
        solid, counts, prints, holes = [], [], [], []
        self.pieces = []
        for index in self.spans:
            plain = self.disk.span(index)
            if is_hole(plain):
                holes.append((index, 1))
                continue
            pieces, packed = _cut(plain, self.segmentation)
            solid.append(index)
            counts.append(len(pieces))
            prints.append(packed)
            self.pieces += pieces
        return Offer(
            batch=batch,
            spans=np.array(solid, dtype="<u4"),
            counts=np.array(counts, dtype="<u2"),
            lengths=np.array([len(piece) for piece in self.pieces], dtype="<u4"),
            fingerprints=b"".join(prints),
            hole_runs=np.array(holes, dtype="<u4") if holes else NO_RUNS,
            sample=self.sample,
        )

    def segments(self, wanted: Wanted, *, per_message: int = 40) -> Iterator[tuple[Segments, int]]:
        """What is wanted, ``per_message`` segments at a time, each with its plain bytes."""
        assert not self.released, "used after its release"
        for start in range(0, len(wanted.indexes), per_message):
            pieces = [self.pieces[index] for index in wanted.indexes[start : start + per_message]]
            yield segments_of(wanted.batch, pieces), sum(map(len, pieces))

    def release(self) -> None:
        self.released += 1


def segments_of(batch: int, pieces: Sequence[bytes | memoryview]) -> Segments:
    stored = [compress_lz4(piece) for piece in pieces]
    return Segments(
        batch=batch,
        codecs=np.array([codec for codec, _ in stored], dtype="u1"),
        stored_lengths=np.array([len(data) for _, data in stored], dtype="<u4"),
        payload=(b"".join(data for _, data in stored),),
    )


def opening(disk: Disk, *, attempt: int = 0, lane: int = 0) -> Open:
    return Open(
        transfer_id=TRANSFER,
        grant=GRANT,
        attempt=attempt,
        lane=lane,
        image_bytes=disk.image_bytes,
        segmentation=DEFAULT_SEGMENTATION,
        source_state=None,
    )


# -- the receiver -------------------------------------------------------------------------------

Known = tuple[bytes, bytes] | None
"""A span as lengths and fingerprints, packed; None is a hole."""


@dataclass(slots=True, eq=False)
class Call:
    """One Exchange call at the receiver."""

    machine: ReceiverLane
    attempt: int = 0
    lane: int = 0
    batches: list[Batch] = field(default_factory=list)
    answered_durable: int = 0


class DictReceiver:
    """One transfer at its receiver."""

    def __init__(self, disk: Disk, limits: Limits, *, base: Disk | None = None) -> None:
        self.image_bytes, self.limits = disk.image_bytes, limits
        self.durable_segments: dict[bytes, bytes] = {}
        self.durable_spans: dict[int, Known] = {}
        self.durable_attempt = 0
        self.durable_receipt: Committed | None = None
        self.base: dict[int, Known] = {}
        if base is not None:
            for index in range(base.span_count):
                self.base[index] = known(base.span(index))
                if not is_hole(base.span(index)):
                    pieces, packed = _cut(base.span(index), DEFAULT_SEGMENTATION)
                    self.durable_segments |= zip(unpack(packed), map(bytes, pieces), strict=True)
        self.crash()

    def crash(self) -> None:
        """Forget what was not durable; calls that were open break off."""
        self.calls: list[Call] = []
        self._forget()

    def _forget(self) -> None:
        self._pending: dict[bytes, bytes | None] = {}  # asked for in this attempt; None: not yet here
        self._coverage = self._durable_coverage()

    def _durable_coverage(self) -> Coverage:
        coverage = Coverage(spans_of(self.image_bytes))
        coverage.flags[list(self.durable_spans)] = True
        return coverage

    def call(self) -> Call:
        """A sender begins a call."""
        return Call(ReceiverLane(self.limits))

    def receive(self, state: Call, request: Request) -> list[Reply]:
        """One request of a call."""
        if state.attempt and (state not in self.calls or state.attempt != self.durable_attempt):
            raise LeaseLost("a newer attempt took over, or the receiver was restarted")
        event = state.machine.receive(request)
        if isinstance(event, Open):
            return [self._open(state, event)]
        if isinstance(event, Batch):
            return [self._answer(state, event), *self._durable(state)]
        if isinstance(event, Arrived):
            plain = plain_segments(event, KEY)
            prints = unpack(bytes(event.batch.offer.fingerprints))
            self._pending |= {prints[i]: bytes(p) for i, p in zip(event.indexes, plain, strict=True)}
            return []
        if isinstance(event, Poll):
            self.seal()
            return self._durable(state)
        assert isinstance(event, Commit)
        return [self._commit(event)]

    def _open(self, state: Call, request: Open) -> Opened:
        if request.attempt == 0:
            self._forget()
            self.calls = []
            self.durable_attempt += 1
        elif request.attempt != self.durable_attempt:
            raise LeaseLost("a newer attempt took over")
        elif any(call.lane == request.lane for call in self.calls):
            raise InvalidRequest(f"lane {request.lane} is taken in this attempt")
        state.attempt, state.lane = self.durable_attempt, request.lane
        self.calls.append(state)
        return Opened(
            attempt=self.durable_attempt,
            limits=self.limits,
            tenant="t",
            key=KEY_BYTES,
            key_id=KEY.key_id,
            lease_seconds=60,
            base=Base(b"b" * 32, self.image_bytes, DEFAULT_SEGMENTATION, None) if self.base else None,
            durable_spans=self._durable_coverage().to_bitmap(),
            committed=self.durable_receipt,
        )

    def _answer(self, state: Call, batch: Batch) -> Reply:
        offer = batch.offer
        self._coverage.claim(offer)
        wanted = np.zeros(len(offer.lengths), dtype=np.bool_)
        for index, fingerprint in enumerate(unpack(bytes(offer.fingerprints))):
            if fingerprint not in self.durable_segments and fingerprint not in self._pending:
                wanted[index] = True
                self._pending[fingerprint] = None
        state.batches.append(batch)
        odd = None
        if offer.sample:
            differing = [span for span, content in contents(offer).items() if self.base.get(span) != content]
            odd = np.array(differing, dtype="<u4")
        return state.machine.answer(batch, wanted, odd)

    def seal(self) -> None:
        """Make durable what has arrived, and the spans whose segments all have."""
        self.durable_segments |= {name: data for name, data in self._pending.items() if data is not None}
        self._pending = {name: None for name, data in self._pending.items() if data is None}
        for state in self.calls:
            for batch in state.batches:
                if self._is_durable(batch):
                    self.durable_spans |= contents(batch.offer)

    def _is_durable(self, batch: Batch) -> bool:
        return batch.complete and self.durable_segments.keys() >= set(unpack(bytes(batch.offer.fingerprints)))

    def _durable(self, state: Call) -> list[Reply]:
        last = 0
        for batch in state.batches:
            if not self._is_durable(batch) or not contents(batch.offer).keys() <= self.durable_spans.keys():
                break
            last = batch.number
        if last <= state.answered_durable:
            return []
        state.answered_durable = last
        return [state.machine.durable(last, sum(map(len, self.durable_segments.values())))]

    def flush(self, state: Call) -> list[Reply]:
        """The sending side closed the lane."""
        self.seal()
        return self._durable(state)

    def lose(self, fingerprint: bytes) -> None:
        """A stored segment turns out damaged."""
        self.durable_segments.pop(fingerprint, None)

    def _commit(self, request: Commit) -> Committed:
        spans = range(spans_of(self.image_bytes))
        image = {**(self.base if request.inherit_base else {}), **self.durable_spans}
        if any(span not in image for span in spans):
            raise InvalidRequest("Commit came before every span")
        lost = {
            span
            for span, content in image.items()
            if content is not None and not self.durable_segments.keys() >= set(unpack(content[1]))
        }
        if lost:
            for span in lost:
                self.durable_spans.pop(span, None)
            if lost & self.base.keys():
                self.base = {}  # it vouches for nothing any more
            raise Conflict("a reused segment was lost")
        leaves = no_leaves(len(spans))
        for span, content in image.items():
            if content is not None:
                leaves[span] = np.frombuffer(KEY.node(encode_leaf(*content)), np.uint8)
        root = root_of(leaves, image_bytes=self.image_bytes, segmentation=DEFAULT_SEGMENTATION, key=KEY)
        self.durable_spans = {span: image[span] for span in spans}
        self.durable_receipt = Committed(root, IMAGE, Figures())
        return self.durable_receipt

    def read(self) -> bytes:
        """The committed image."""
        assert self.durable_receipt is not None
        out = []
        for span in range(spans_of(self.image_bytes)):
            content = self.durable_spans[span]
            if content is None:
                out.append(bytes(span_length(span, self.image_bytes)))
            else:
                out += [self.durable_segments[name] for name in unpack(content[1])]
        return b"".join(out)


def known(plain: bytes) -> Known:
    """What a receiver knows of a span with these bytes."""
    if is_hole(plain):
        return None
    pieces, packed = _cut(plain, DEFAULT_SEGMENTATION)
    return np.array([len(piece) for piece in pieces], dtype="<u4").tobytes(), packed


def contents(offer: Offer) -> dict[int, Known]:
    """The spans of an offer, holes included."""
    found: dict[int, Known] = {}
    at = 0
    packed = bytes(offer.fingerprints)
    for span, count in zip(offer.spans.tolist(), offer.counts.tolist(), strict=True):
        found[span] = (offer.lengths[at : at + count].tobytes(), packed[32 * at : 32 * (at + count)])
        at += count
    for first, count in offer.hole_runs.tolist():
        found |= dict.fromkeys(range(first, first + count))
    return found
