"""Images that cost next to nothing, of segments from pools so small that all share most.

Holes, spans of sixteen segments of 64 KiB that compress to little, and a short last span of six small
segments; containers hold 8 KiB.
"""

from __future__ import annotations

import random
from functools import lru_cache

from arraylift.segments.codecs import compress_lz4
from arraylift.sizes import KIB, MIB, SPAN_BYTES

CONTAINER_BYTES = 12 * KIB
SMALL_BYTES, SMALL_COUNT = 150, 6
BIG_BYTES, BIG_COUNT = 64 * KIB, 16
SPANS_MAX = 3
SMALL_POOL, BIG_POOL = 24, 8

_draw = random.Random(1)
SMALL = [_draw.randbytes(SMALL_BYTES) for _ in range(SMALL_POOL)]
BIG = [_draw.randbytes(64) * (BIG_BYTES // 64) for _ in range(BIG_POOL)]
POOL = SMALL + BIG
STORED = [compress_lz4(plain) for plain in POOL]
"""(codec, stored form) of each segment of the pool; the first SMALL_POOL are the small ones."""

Span = tuple[int, ...]
"""Indexes into POOL; () for a hole."""
Content = tuple[Span, ...]


def draw_content(draw: random.Random, base: Content | None = None) -> Content:
    """A new image, or one that differs from ``base`` in one span."""
    if base is None:
        spans = [_draw_big(draw) if draw.random() < 0.15 else () for _ in range(draw.randrange(SPANS_MAX))]
        return (*spans, _draw_small(draw))
    spans = list(base)
    place = draw.randrange(len(spans))
    spans[place] = _draw_small(draw) if place == len(spans) - 1 else _draw_big(draw)
    return tuple(spans)


def _draw_small(draw: random.Random) -> Span:
    return tuple(draw.randrange(SMALL_POOL) for _ in range(SMALL_COUNT))


def _draw_big(draw: random.Random) -> Span:
    pair = draw.randrange(SMALL_POOL, len(POOL)), draw.randrange(SMALL_POOL, len(POOL))
    return pair * (BIG_COUNT // 2)


def image_bytes_of(content: Content) -> int:
    return (len(content) - 1) * SPAN_BYTES + SMALL_COUNT * SMALL_BYTES


@lru_cache(512)
def bytes_of(content: Content) -> bytes:
    """The image, plain."""
    return b"".join(
        b"".join(POOL[one] for one in span) or bytes(MIB if place < len(content) - 1 else 900)
        for place, span in enumerate(content)
    )
