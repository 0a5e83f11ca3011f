"""Disk contents that tests make, import and compare: the same for the same seed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from arraylift.sizes import KIB, MIB, SPAN_BYTES

SECTOR_BYTES = 512

_WORDS = (
    b"the array sends only segments that its target does not have yet so a second copy costs nothing ".split()
)


def make_disk(size_bytes: int, *, seed: int) -> bytearray:
    """A disk of spans that are random, text-like, repeats of earlier ones, half empty, or zero."""
    assert size_bytes % SECTOR_BYTES == 0, "disks have whole sectors"
    draw = np.random.default_rng(seed)
    disk = bytearray(size_bytes)
    for start in range(0, size_bytes, SPAN_BYTES):
        length = min(SPAN_BYTES, size_bytes - start)
        kind = draw.integers(0, 8) if start else 0  # no disk is all zero by chance
        if kind < 3:
            piece = draw.bytes(length)
        elif kind < 5:
            piece = text(draw, length)
        elif kind == 5:
            earlier = int(draw.integers(0, start // SPAN_BYTES)) * SPAN_BYTES
            piece = bytes(disk[earlier : earlier + length])
        elif kind == 6:
            half = length // 2
            piece = draw.bytes(half) + bytes(length - half)
        else:
            continue
        disk[start : start + length] = piece
    return disk


def random_disk(size_bytes: int, *, seed: int) -> bytearray:
    """A disk without a zero span or a repeat: everything of it has to travel."""
    return bytearray(np.random.default_rng(seed).bytes(size_bytes))


def text(draw: np.random.Generator, length: int) -> bytes:
    """Words in random order: it compresses about as log files do."""
    chosen = draw.integers(0, len(_WORDS), size=length // 4)
    return b" ".join(_WORDS[index] for index in chosen.tolist())[:length].ljust(length, b".")


def solid_pieces(disk: bytes | bytearray, piece_bytes: int = 256 * KIB) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) of the pieces that are not all zero."""
    zeros = bytes(piece_bytes)
    view = memoryview(disk)
    for start in range(0, len(disk), piece_bytes):
        piece = view[start : start + piece_bytes]
        if piece != zeros[: len(piece)]:
            yield start, bytes(piece)


def differing_spans(one: bytes | bytearray, other: bytes | bytearray) -> list[int]:
    """Indexes of the spans that differ: what a failing comparison shows instead of megabytes."""
    assert len(one) == len(other), f"{len(one)} bytes against {len(other)}"
    views = memoryview(one), memoryview(other)
    return [
        start // SPAN_BYTES
        for start in range(0, len(one), SPAN_BYTES)
        if views[0][start : start + SPAN_BYTES] != views[1][start : start + SPAN_BYTES]
    ]


assert SPAN_BYTES == MIB
