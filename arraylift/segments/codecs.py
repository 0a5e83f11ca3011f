"""Stored forms of a segment: as is, LZ4 block, Zstandard frame.

Decoding is bounded by the plain length that was promised, before any byte is
written (law 6): a bomb raises Corruption. Callers: any thread.
"""

from __future__ import annotations

from enum import IntEnum

import lz4.block
import zstandard

from arraylift.errors import Corruption, InvalidRequest


class Codec(IntEnum):
    """The numbers are part of formats and protos."""

    PLAIN = 0
    LZ4 = 1
    ZSTANDARD = 2


KEEP_BELOW = 15 / 16
"""A compressed form is kept only if it is smaller than this share of the plain one:
below that, the CPU of every later read buys nothing."""

_ZSTANDARD_LEVEL = 3


def compress_lz4(plain: bytes | memoryview) -> tuple[Codec, bytes | memoryview]:
    """Return LZ4 of ``plain``, or ``plain`` itself where that saves less than a sixteenth."""
    packed = lz4.block.compress(plain, store_size=False)
    if len(packed) < len(plain) * KEEP_BELOW:
        return Codec.LZ4, packed
    return Codec.PLAIN, plain


def compress_zstandard(plain: bytes | memoryview) -> tuple[Codec, bytes | memoryview]:
    """The same with Zstandard, for units whose reads are rare."""
    packed = zstandard.ZstdCompressor(level=_ZSTANDARD_LEVEL, write_content_size=True).compress(plain)
    if len(packed) < len(plain) * KEEP_BELOW:
        return Codec.ZSTANDARD, packed
    return Codec.PLAIN, plain


def decompress(codec: int, stored: bytes | memoryview, plain_bytes: int) -> bytes | memoryview:
    """Return exactly ``plain_bytes`` bytes. Raises Corruption if ``stored`` yields anything else,
    InvalidRequest for an unknown codec."""
    plain: bytes | memoryview
    if codec == Codec.LZ4:
        try:
            plain = lz4.block.decompress(stored, uncompressed_size=plain_bytes)
        except lz4.block.LZ4BlockError as error:
            raise Corruption(f"an LZ4 segment of {len(stored)} bytes does not decode") from error
    elif codec == Codec.PLAIN:
        plain = stored
    elif codec == Codec.ZSTANDARD:
        plain = _unzstd(stored, plain_bytes)
    else:
        raise InvalidRequest(f"codec {codec} is unknown; this version knows 0, 1 and 2")
    if len(plain) != plain_bytes:
        raise Corruption(f"a segment has {len(plain)} plain bytes where {plain_bytes} were promised")
    return plain


def _unzstd(stored: bytes | memoryview, plain_bytes: int) -> bytes:
    try:
        size = zstandard.frame_content_size(stored)
        if size != plain_bytes:
            raise Corruption(f"a Zstandard segment claims {size} plain bytes, not {plain_bytes}")
        unpacker = zstandard.ZstdDecompressor()
        return bytes(unpacker.decompress(stored, max_output_size=plain_bytes, allow_extra_data=False))
    except zstandard.ZstdError as error:
        raise Corruption(f"a Zstandard segment of {len(stored)} bytes does not decode") from error
