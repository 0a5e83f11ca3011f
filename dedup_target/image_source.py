"""Offer an image's spans and send their segments as they are stored: the sending half of a
restore or a replication. Nothing is decoded here; the receiver verifies every segment.

Limits: ``spans_per_offer`` spans of locators a batch, ``window`` batches.
Callers: the thread of one SendImage.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from arraylift.exchange.coverage import Coverage
from arraylift.exchange.hole_batch import HoleBatch, hole_batches
from arraylift.exchange.messages import NO_RUNS, Offer, Segments
from arraylift.exchange.sender import Wanted
from arraylift.segments.fingerprint import unpack
from arraylift.segments.tree import holes_of
from arraylift.sizes import MIB
from dedup_target.image_reader import ImageReader, OpenImage
from dedup_target.read_ahead import Located

SEGMENTS_MESSAGE_BYTES = MIB


class PreparedLeaves:
    """One offer of spans that the store holds."""

    def __init__(self, images: ImageReader, image: OpenImage, located: Located) -> None:
        """Without locators the segments are looked up when one of them is wanted."""
        self._images = images
        self._image = image
        self._spans = located.spans
        self._leaves = [leaf for leaf in located.leaves if leaf is not None]
        assert len(self._leaves) == len(self._spans), "holes are offered as runs"
        self._fingerprints = located.fingerprints
        self._locators = located.locators

    @property
    def span_count(self) -> int:
        """Spans that this offer accounts for."""
        return len(self._spans)

    def offer(self, batch: int) -> Offer:
        return Offer(
            batch=batch,
            spans=np.array(self._spans, dtype="<u4"),
            counts=np.array([len(leaf.lengths) for leaf in self._leaves], dtype="<u2"),
            lengths=np.concatenate([leaf.lengths for leaf in self._leaves]),
            fingerprints=b"".join(self._fingerprints),
            hole_runs=NO_RUNS,
        )

    def segments(self, wanted: Wanted) -> Iterator[tuple[Segments, int]]:
        """Wanted segments in their stored form, about 1 MiB a message."""
        if not self._locators:
            self._locators = self._image.reader.locate(self._image.tenant, self._fingerprints)
        chosen: list[int] = []
        stored_bytes = 0
        for index in wanted.indexes.tolist():
            chosen.append(index)
            stored_bytes += self._locators[index].stored_bytes
            if stored_bytes >= SEGMENTS_MESSAGE_BYTES:
                yield self._message(wanted.batch, chosen)
                chosen, stored_bytes = [], 0
        if chosen:
            yield self._message(wanted.batch, chosen)

    def _message(self, batch: int, chosen: list[int]) -> tuple[Segments, int]:
        fingerprints = [self._fingerprints[index] for index in chosen]
        locators = [self._locators[index] for index in chosen]
        records = self._image.reader.stored(self._image.tenant, fingerprints, locators)
        message = Segments(
            batch=batch,
            codecs=np.array([record.codec for record in records], dtype=np.uint8),
            stored_lengths=np.array([len(record.data) for record in records], dtype="<u4"),
            payload=[record.data for record in records],
        )
        return message, sum(record.plain_bytes for record in records)

    def release(self) -> None:
        self._locators, self._fingerprints = [], []


def kept_spans(
    images: ImageReader, image: OpenImage, spans: list[int], *, offer_as: list[int]
) -> PreparedLeaves:
    """Offer spans in other places of another image: a receiver that has this one will want none of
    them, so nothing is located or read ahead."""
    leaves = images.leaves(image, spans)
    fingerprints = [one for leaf in leaves if leaf is not None for one in unpack(leaf.fingerprints)]
    return PreparedLeaves(images, image, Located(offer_as, leaves, fingerprints, []))


def image_batches(
    images: ImageReader, image: OpenImage, durable: Coverage, spans_per_offer: int
) -> Iterator[PreparedLeaves | HoleBatch]:
    """Yield offers of everything that ``durable`` does not list: holes first, then forward."""
    holes = holes_of(image.leaves)
    yield from hole_batches(holes & ~durable.flags)
    solid = np.flatnonzero(~holes & ~durable.flags).tolist()
    starts = range(0, len(solid), spans_per_offer)
    for located in images.located(image, (solid[start : start + spans_per_offer] for start in starts)):
        yield PreparedLeaves(images, image, located)
