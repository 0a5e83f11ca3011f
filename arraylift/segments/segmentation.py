"""Cut spans into segments ([0040], [0054]; FastCDC: Xia et al., USENIX ATC 2016 and 2020).

Invariants:
  C1 the pieces of a span, in order, are the span.
  C2 boundaries depend on the span's bytes and the Segmentation alone.
Callers: any thread; a Segmenter belongs to one thread at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from pyfastcdc import FastCDC

from arraylift.errors import InvalidRequest
from arraylift.sizes import (
    SEGMENT_BYTES_AVERAGE,
    SEGMENT_BYTES_MAX,
    SEGMENT_BYTES_MIN,
    SPAN_BYTES,
)


class Policy(IntEnum):
    """How boundaries are chosen; the numbers are part of formats and protos."""

    CONTENT_DEFINED = 1
    FIXED = 2


@dataclass(frozen=True, slots=True)
class Segmentation:
    """Images share segments only if their segmentations are equal."""

    policy: Policy = Policy.CONTENT_DEFINED
    segment_bytes_min: int = SEGMENT_BYTES_MIN
    segment_bytes_average: int = SEGMENT_BYTES_AVERAGE
    segment_bytes_max: int = SEGMENT_BYTES_MAX
    span_bytes: int = SPAN_BYTES

    def __post_init__(self) -> None:
        """Raises InvalidRequest outside the limits that every receiver relies on."""
        low, middle, high = self.segment_bytes_min, self.segment_bytes_average, self.segment_bytes_max
        if not SEGMENT_BYTES_MIN <= low <= middle <= high <= SEGMENT_BYTES_MAX:
            raise InvalidRequest(
                f"segment sizes {low}/{middle}/{high} are outside "
                f"{SEGMENT_BYTES_MIN} <= min <= average <= max <= {SEGMENT_BYTES_MAX}"
            )
        if self.span_bytes != SPAN_BYTES:
            raise InvalidRequest(f"spans are {SPAN_BYTES} bytes in this version, not {self.span_bytes}")


DEFAULT_SEGMENTATION = Segmentation()


class Segmenter:
    """Cuts spans by one Segmentation."""

    def __init__(self, segmentation: Segmentation) -> None:
        self.segmentation = segmentation
        self._fastcdc = FastCDC(
            avg_size=segmentation.segment_bytes_average,
            min_size=segmentation.segment_bytes_min,
            max_size=segmentation.segment_bytes_max,
        )

    def cut(self, span: memoryview) -> list[memoryview]:
        """Return the segments of one span (1 B .. SPAN_BYTES) as views into it (C1, C2)."""
        if self.segmentation.policy is Policy.FIXED:
            return list(_fixed(span, self.segmentation.segment_bytes_average))
        return [chunk.data for chunk in self._fastcdc.cut_buf(span)]


def _fixed(span: memoryview, size: int) -> Iterator[memoryview]:
    for start in range(0, len(span), size):
        yield span[start : start + size]
