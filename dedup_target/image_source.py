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
from arraylift.segments.tree import Leaf, holes_of
from arraylift.sizes import MIB
from dedup_target.image_reader import ImageReader, OpenImage
from dedup_target.segment_index import Locator

SEGMENTS_MESSAGE_BYTES = MIB


class PreparedLeaves:
    """One offer of spans that the store holds."""

    def __init__(
        self,
        images: ImageReader,
        image: OpenImage,
        spans: list[int],
        *,
        offer_as: list[int] | None = None,
    ) -> None:
        """``offer_as`` gives the spans other places, in the image that is offered; then nothing is
        located or read ahead, as a receiver that has the image will want none of it."""
        self._images = images
        self._image = image
        self._spans = spans if offer_as is None else offer_as
        leaves = [leaf for leaf in images.leaves(image, spans) if leaf is not None]
        assert len(leaves) == len(spans), "holes are offered as runs"
        self._leaves: list[Leaf] = leaves
        fingerprints = b"".join(leaf.fingerprints for leaf in leaves)
        self._fingerprints = fingerprints
        self._locators: list[Locator] = []
        if offer_as is None:
            self._locate()
            images.reader.prefetch(self._locators)

    def _locate(self) -> None:
        self._locators = self._images.reader.locate(self._image.tenant, unpack(self._fingerprints))

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
            fingerprints=self._fingerprints,
            hole_runs=NO_RUNS,
        )

    def segments(self, wanted: Wanted) -> Iterator[tuple[Segments, int]]:
        """Wanted segments in their stored form, about 1 MiB a message."""
        if not self._locators:
            self._locate()
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
        locators = [self._locators[index] for index in chosen]
        reader, tenant = self._images.reader, self._image.tenant
        message = Segments(
            batch=batch,
            codecs=np.array([locator.codec for locator in locators], dtype=np.uint8),
            stored_lengths=np.array([locator.stored_bytes for locator in locators], dtype="<u4"),
            payload=[
                reader.stored(tenant, self._fingerprints[32 * index : 32 * index + 32], locator)
                for index, locator in zip(chosen, locators, strict=True)
            ],
        )
        return message, sum(locator.plain_bytes for locator in locators)

    def release(self) -> None:
        self._locators = []


def image_batches(
    images: ImageReader, image: OpenImage, durable: Coverage, spans_per_offer: int
) -> Iterator[PreparedLeaves | HoleBatch]:
    """Yield offers of everything that ``durable`` does not list: holes first, then forward."""
    holes = holes_of(image.leaves)
    yield from hole_batches(holes & ~durable.flags)
    solid = np.flatnonzero(~holes & ~durable.flags).tolist()
    for start in range(0, len(solid), spans_per_offer):
        yield PreparedLeaves(images, image, solid[start : start + spans_per_offer])
