"""What arrives is believed only if it is what was promised (law 6)."""

from __future__ import annotations

from dataclasses import replace

import lz4.block
import numpy as np
import pytest
import zstandard

from arraylift.errors import Corruption, InvalidRequest
from arraylift.exchange.messages import Segments
from arraylift.exchange.receiver import Arrived, Batch
from arraylift.exchange.sender import Wanted
from arraylift.exchange.verify import plain_segments
from arraylift.segments.codecs import Codec
from arraylift.segments.fingerprint import FingerprintKey
from arraylift.sizes import MIB
from tests.unit.exchange.stage import KEY, Disk, Prepared, palette, segments_of

DISK = Disk(2 * MIB, {0: palette(1), 1: palette(2)})


def arrive(indexes: list[int] | None = None) -> tuple[Arrived, list[memoryview]]:
    """Some segments of an offer of both spans, and their plain bytes."""
    prepared = Prepared(DISK, [0, 1])
    batch = Batch(prepared.offer(1))
    batch.indexes = np.arange(len(prepared.pieces)) if indexes is None else np.array(indexes)
    ((message, _),) = prepared.segments(Wanted(1, batch.indexes, None), per_message=1000)
    return Arrived(batch, batch.indexes, message), [prepared.pieces[i] for i in batch.indexes]


def one(codec: int, stored: bytes, index: int) -> Arrived:
    arrived, _ = arrive([index])
    message = Segments(1, np.array([codec], "u1"), np.array([len(stored)], "<u4"), (stored,))
    return replace(arrived, message=message)


@pytest.mark.parametrize("indexes", [None, [0], [3, 1_0, 12]])
def test_plain_bytes_come_back_in_order(indexes: list[int] | None) -> None:
    arrived, pieces = arrive(indexes)
    assert [bytes(plain) for plain in plain_segments(arrived, KEY)] == [bytes(piece) for piece in pieces]


def test_every_flipped_byte_is_found() -> None:
    arrived, _ = arrive([0, 1])
    (payload,) = arrived.message.payload
    for at in range(0, len(payload), 997):
        damaged = bytearray(payload)
        damaged[at] ^= 0x10
        message = replace(arrived.message, payload=(bytes(damaged),))
        with pytest.raises(Corruption):
            plain_segments(replace(arrived, message=message), KEY)


def test_the_message_names_the_segment() -> None:
    arrived, pieces = arrive([4, 7, 9])
    other = segments_of(1, [pieces[0], bytes(len(pieces[1])), pieces[2]])
    with pytest.raises(Corruption, match="segment 7 of batch 1 does not match"):
        plain_segments(replace(arrived, message=other), KEY)


def test_segments_that_changed_places_are_found() -> None:
    arrived, pieces = arrive([0, 1])
    with pytest.raises(Corruption):
        plain_segments(replace(arrived, message=segments_of(1, pieces[::-1])), KEY)


def test_another_key_finds_nothing() -> None:
    arrived, _ = arrive([0])
    with pytest.raises(Corruption):
        plain_segments(arrived, FingerprintKey(bytes(32)))


@pytest.mark.parametrize("codec", [3, 255])
def test_unknown_codecs_are_invalid(codec: int) -> None:
    with pytest.raises(InvalidRequest):
        plain_segments(one(codec, b"x", 0), KEY)


def test_bombs_do_not_go_off() -> None:
    huge = bytes(64 * MIB)
    for codec, stored in (
        (Codec.LZ4, lz4.block.compress(huge, store_size=False)),
        (Codec.ZSTANDARD, zstandard.ZstdCompressor().compress(huge)),
    ):
        with pytest.raises(Corruption):
            plain_segments(one(codec, stored, 0), KEY)
