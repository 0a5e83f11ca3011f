"""Sizes and limits that more than one module must agree on, and how people see them."""

from __future__ import annotations

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

SPAN_BYTES = MIB
"""Aligned piece of an image inside which segments are cut. Part of the formats."""

SEGMENT_BYTES_MIN = 4 * KIB
SEGMENT_BYTES_AVERAGE = 16 * KIB
SEGMENT_BYTES_MAX = 64 * KIB
SEGMENTS_PER_SPAN_MAX = SPAN_BYTES // SEGMENT_BYTES_MIN

GRANULE_BYTES = 64 * KIB
"""The array's allocation unit. Part of the pool's format."""

CONTAINER_BYTES = 16 * MIB
"""A container is sealed when the next frame would pass this."""

IMAGE_BYTES_MAX = 16 * TIB
MESSAGE_BYTES_MAX = 4 * MIB
"""Largest gRPC message, both directions, every method."""

EXTENT_BYTES_MAX = MIB
"""Largest piece of plain data in one message."""


def spans_of(image_bytes: int) -> int:
    """Return how many spans an image has; the last may be short."""
    return -(-image_bytes // SPAN_BYTES)


def span_length(span: int, image_bytes: int) -> int:
    """Return the bytes of span number ``span``: SPAN_BYTES, or fewer for the last."""
    return min(SPAN_BYTES, image_bytes - span * SPAN_BYTES)


def human(count_bytes: float) -> str:
    """Return a size as people write it: ``"1.5 GiB"``, ``"12 KiB"``, ``"7 B"``."""
    value = float(count_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def parse_size(text: str) -> int:
    """Return bytes from ``"64K"``, ``"10 GiB"``, ``"512"``; ValueError says what is wrong."""
    number = text.strip().rstrip("iBbI ").upper()
    factor = {"K": KIB, "M": MIB, "G": GIB, "T": TIB}.get(number[-1:], 1)
    digits = number[:-1] if factor != 1 else number
    try:
        return int(float(digits) * factor)
    except ValueError:
        raise ValueError(f"{text!r} is not a size; write 512, 64K, 10G or 1TiB") from None
