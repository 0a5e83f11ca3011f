"""In which ranges two images may differ: their trees, then the segments of spans that differ ([0056]).

Limits: SPANS_AT_ONCE leaves of each image at once; equal subtrees are not read (tree_diff D2).
Callers: any thread.
"""

from __future__ import annotations

from collections.abc import Iterator

from arraylift.errors import InvalidRequest
from arraylift.ids import ImageId
from arraylift.segments.tree_diff import Range, differing_ranges, differing_spans, joined
from arraylift.sizes import SPAN_BYTES, span_length
from dedup_target.image_reader import ImageReader, OpenImage

SPANS_AT_ONCE = 64


def diff_images(images: ImageReader, one_id: ImageId, other_id: ImageId) -> Iterator[Range]:
    """Yield ascending (start, end) in bytes, never touching each other; outside of them the images are equal.

    All beyond the end of the smaller one is a range. Raises NotFound, InvalidRequest (other tenant),
    Corruption.
    """
    with images.held(one_id) as one, images.held(other_id) as other:
        if one.tenant != other.tenant:
            raise InvalidRequest(
                "the images are of two tenants: nothing of one tells about the other",
                subject=f"image {other_id}",
            )
        yield from joined(_ranges(images, one, other))


def _ranges(images: ImageReader, one: OpenImage, other: OpenImage) -> Iterator[Range]:
    sizes = one.manifest.image_bytes, other.manifest.image_bytes
    for places in differing_spans(one.tree, other.tree):
        for first in range(0, len(places), SPANS_AT_ONCE):
            spans = places[first : first + SPANS_AT_ONCE].tolist()
            pairs = zip(images.leaves(one, spans), images.leaves(other, spans), strict=True)
            for span, (mine, theirs) in zip(spans, pairs, strict=True):
                start = span * SPAN_BYTES
                for low, high in differing_ranges(mine, theirs, span_length(span, min(sizes))):
                    yield start + low, start + high
    if sizes[0] != sizes[1]:
        yield min(sizes), max(sizes)
