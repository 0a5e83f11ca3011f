"""Make offers of an image out of patches that arrive in ascending order ([0048], [0054]).

An image is a background, zeros or a base image, and patches laid over it: bytes, zeros, or
ranges of other images. Only spans that a patch touches are assembled and cut.
Invariants:
  A1 patches ascend, do not overlap and lie within the image; one that does not raises
     InvalidRequest before anything of it is taken.
  A2 every span that is not inherited is offered once; one that is all zero, as a hole.
  A3 a whole span of an image that is cut alike is offered by its leaf: none of its bytes is
     read. Every other byte that comes from an image was verified (segment_reader V1).
Limits: BUFFERS buffers of ``spans_per_offer`` spans. Callers: one thread, the call's.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from arraylift.errors import InvalidRequest
from arraylift.exchange.cut_batch import CutBatch
from arraylift.exchange.hole_batch import HoleBatch, hole_batches
from arraylift.exchange.messages import Figures, Flags
from arraylift.segments.fingerprint import FingerprintKey
from arraylift.segments.segmentation import Segmentation, Segmenter
from arraylift.sizes import SPAN_BYTES, span_length, spans_of
from dedup_target.image_reader import ImageReader, OpenImage
from dedup_target.image_source import PreparedLeaves, kept_spans

BUFFERS = 2

Batch = CutBatch | HoleBatch | PreparedLeaves


@dataclass(frozen=True, slots=True)
class Patch:
    """``length`` bytes at ``offset`` of the new image: ``data``, or those of an image, or zeros."""

    offset: int
    length: int
    data: bytes | None = None
    image: OpenImage | None = None
    image_offset: int = 0


class Assembly:
    """One image in the making."""

    def __init__(
        self,
        images: ImageReader,
        image_bytes: int,
        *,
        base: OpenImage | None,
        inherit: bool,
        segmentation: Segmentation,
        key: FingerprintKey,
        spans_per_offer: int,
    ) -> None:
        """``base`` is the background; with ``inherit`` its untouched spans need no offer."""
        assert base is not None or not inherit, "nothing to inherit"
        self._images = images
        self._image_bytes = image_bytes
        self._base = base
        self._inherit = inherit
        self._segmenter = Segmenter(segmentation)
        self._key = key
        self._spans_per_offer = spans_per_offer
        self._offered: Flags = np.zeros(spans_of(image_bytes), dtype=np.bool_)
        self._zeroed: Flags = np.zeros_like(self._offered)
        self._end = 0
        self._buffers = [memoryview(mmap.mmap(-1, spans_per_offer * SPAN_BYTES)) for _ in range(BUFFERS)]
        self._buffer: memoryview | None = None
        self._spans: list[int] = []
        self.figures = Figures(spans_total=len(self._offered))

    @property
    def spans_done(self) -> int:
        """Spans that lie before the end of the last patch."""
        return self._end // SPAN_BYTES

    def batches(self, patches: Iterator[Patch]) -> Iterator[Batch]:
        """Yield offers of everything that is not inherited (A2). Raises InvalidRequest (A1), Corruption."""
        for patch in patches:
            self._check(patch)
            yield from self._lay(patch)
        yield from self._rest()

    def _check(self, patch: Patch) -> None:
        if patch.length < 1 or patch.offset + patch.length > self._image_bytes:
            raise InvalidRequest(
                f"bytes {patch.offset:,}+{patch.length:,} are not within {self._image_bytes:,}"
            )
        if patch.offset < self._end:
            raise InvalidRequest(f"the bytes at {patch.offset:,} come after ones that end at {self._end:,}")
        self._end = patch.offset + patch.length

    # -- laying ---------------------------------------------------------------------------------

    def _lay(self, patch: Patch) -> Iterator[Batch]:
        if patch.data is None and patch.image is None:
            yield from self._lay_zeros(patch)
            return
        first, end = self._whole_spans(patch) if patch.image is not None else (0, 0)
        if first >= end:
            yield from self._lay_bytes(patch, patch.offset, patch.offset + patch.length)
            return
        yield from self._lay_bytes(patch, patch.offset, first * SPAN_BYTES)
        yield from self._take(patch, first, end)
        yield from self._lay_bytes(patch, end * SPAN_BYTES, patch.offset + patch.length)

    def _lay_zeros(self, patch: Patch) -> Iterator[Batch]:
        """Whole spans become holes at once, however many; over zeros there is nothing to do."""
        if self._base is None:
            return
        start, stop = patch.offset, patch.offset + patch.length
        first = -(-start // SPAN_BYTES)
        end = len(self._zeroed) if stop == self._image_bytes else stop // SPAN_BYTES
        if first >= end:
            yield from self._lay_bytes(patch, start, stop)
            return
        yield from self._lay_bytes(patch, start, first * SPAN_BYTES)
        self._zeroed[first:end] = True
        yield from self._lay_bytes(patch, end * SPAN_BYTES, stop)

    def _lay_bytes(self, patch: Patch, start: int, stop: int) -> Iterator[Batch]:
        """Lay bytes start .. stop of the image, which lie in the patch, span by span."""
        while start < stop:
            span = start // SPAN_BYTES
            end = min(stop, (span + 1) * SPAN_BYTES)
            if not (self._spans and self._spans[-1] == span):
                if len(self._spans) == self._spans_per_offer:
                    yield self._cut()
                self._begin(span, covered=end - start)
            low = start - span * SPAN_BYTES
            self._copy(patch, start, self._view(len(self._spans) - 1)[low : low + end - start])
            start = end

    def _copy(self, patch: Patch, start: int, into: memoryview) -> None:
        at = start - patch.offset
        if patch.data is not None:
            into[:] = memoryview(patch.data)[at : at + len(into)]
        elif patch.image is not None:
            self._images.read_into(patch.image, patch.image_offset + at, into)
        else:
            into[:] = bytes(len(into))
            return
        self.figures.bytes_read += len(into)

    # -- whole spans of other images -------------------------------------------------------------

    def _whole_spans(self, patch: Patch) -> tuple[int, int]:
        """Spans first .. end - 1 of the new image are whole spans of the patch's image, cut alike (A3)."""
        image, shift = patch.image, patch.offset - patch.image_offset
        assert image is not None
        if image.manifest.segmentation != self._segmenter.segmentation or shift % SPAN_BYTES:
            return 0, 0
        stop = patch.offset + patch.length
        end = stop // SPAN_BYTES
        if stop == self._image_bytes and stop - shift == image.manifest.image_bytes:
            end = len(self._offered)  # the short last span of both
        return -(-patch.offset // SPAN_BYTES), end

    def _take(self, patch: Patch, first: int, end: int) -> Iterator[Batch]:
        """Offer spans by their leaves; holes among them are holes."""
        image, shift = patch.image, (patch.offset - patch.image_offset) // SPAN_BYTES
        assert image is not None
        if self._spans:
            yield self._cut()
        solid = first + np.flatnonzero(image.tree.leaves_of(first - shift, end - shift).any(axis=1))
        self._zeroed[first:end] = True
        self._zeroed[solid] = False
        self._offered[solid] = True
        for start in range(0, len(solid), self._spans_per_offer):
            chosen = solid[start : start + self._spans_per_offer].tolist()
            taken = [span - shift for span in chosen]
            yield kept_spans(self._images, image, taken, offer_as=chosen)

    # -- spans in the making ----------------------------------------------------------------------

    def _begin(self, span: int, *, covered: int) -> None:
        """Add a span to the offer in the making, with its background unless all of it is covered."""
        if self._buffer is None:
            assert self._buffers, "a lane of this process holds one offer at a time"
            self._buffer = self._buffers.pop()
        self._spans.append(span)
        view = self._view(len(self._spans) - 1)
        if covered < len(view):
            self._fill(span, view)

    def _fill(self, span: int, view: memoryview) -> None:
        known = 0
        if self._base is not None:
            known = max(0, min(len(view), self._base.manifest.image_bytes - span * SPAN_BYTES))
            self._images.read_into(self._base, span * SPAN_BYTES, view[:known])
            self.figures.bytes_read += known
        view[known:] = bytes(len(view) - known)

    def _view(self, place: int) -> memoryview:
        assert self._buffer is not None
        start = place * SPAN_BYTES
        return self._buffer[start : start + span_length(self._spans[place], self._image_bytes)]

    def _cut(self) -> CutBatch:
        """Close the offer in the making."""
        buffer, spans = self._buffer, self._spans
        assert buffer is not None
        views = [(span, self._view(place)) for place, span in enumerate(spans)]
        self._buffer, self._spans = None, []
        batch = CutBatch(
            views,
            segmenter=self._segmenter,
            key=self._key,
            give_back=lambda: self._buffers.append(buffer),
        )
        self._offered[spans] = True
        self.figures.spans_read += len(spans)
        self.figures.spans_hole += batch.hole_count
        return batch

    # -- what no patch touched --------------------------------------------------------------------

    def _rest(self) -> Iterator[Batch]:
        if self._spans:
            yield self._cut()
        for span in self._untouched().tolist():
            if len(self._spans) == self._spans_per_offer:
                yield self._cut()
            self._begin(span, covered=0)
        if self._spans:
            yield self._cut()
        holes = ~self._offered
        if self._inherit and self._base is not None:
            inherited = spans_of(self._base.manifest.image_bytes)
            holes[:inherited] &= self._zeroed[:inherited]
        self.figures.spans_hole += int(holes.sum())
        yield from hole_batches(holes)

    def _untouched(self) -> np.ndarray:
        """Spans of the base that must be read although no patch touched them."""
        if self._base is None:
            return np.empty(0, dtype=np.int64)
        base_bytes = self._base.manifest.image_bytes
        shared = spans_of(min(base_bytes, self._image_bytes))
        left = ~self._offered[:shared] & ~self._zeroed[:shared]
        if self._inherit:
            left[: shared - 1] = False
            left[shared - 1] &= base_bytes != self._image_bytes  # its length may differ
        else:
            left &= self._base.tree.leaves_of(0, shared).any(axis=1)
        return np.flatnonzero(left)
