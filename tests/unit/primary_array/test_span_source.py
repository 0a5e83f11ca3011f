"""Spans read from slots: the right bytes, zeros as holes, buffers lent and given back, damage told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from arraylift.errors import Corruption
from arraylift.exchange.cut_batch import SEGMENTS_MESSAGE_BYTES, is_zero
from arraylift.exchange.sender import Wanted
from arraylift.segments.codecs import decompress
from arraylift.segments.fingerprint import FingerprintKey
from arraylift.segments.segmentation import DEFAULT_SEGMENTATION
from arraylift.sizes import GRANULE_BYTES, SPAN_BYTES
from primary_array.pool_reader import PoolReader
from primary_array.send_plan import GRANULES_PER_SPAN, ReadItem, place_runs
from primary_array.span_source import SpanSource

KEY = FingerprintKey(bytes(range(32)))
SLOTS = 64
IMAGE_BYTES = 3 * SPAN_BYTES - 512


@pytest.fixture
def data() -> bytes:
    """The pool's file: slot 0 is never used, slot 5 holds zeros."""
    content = bytearray(np.random.default_rng(1).bytes(SLOTS * GRANULE_BYTES))
    content[5 * GRANULE_BYTES : 6 * GRANULE_BYTES] = bytes(GRANULE_BYTES)
    return bytes(content)


@pytest.fixture
def descriptor(tmp_path: Path, data: bytes) -> Iterator[int]:
    path = tmp_path / "slots.data"
    path.write_bytes(data)
    opened = os.open(path, os.O_RDONLY)
    yield opened
    os.close(opened)


def item(spans: list[int], slots: list[int], *, sample: bool = False) -> ReadItem:
    packed = np.zeros(len(spans) * GRANULES_PER_SPAN, np.uint64)
    packed[: len(slots)] = slots
    return ReadItem(np.array(spans, dtype="<u4"), packed, sample)


def source(descriptor: int, items: list[ReadItem], *, buffers: int = 2) -> SpanSource:
    left = iter(items)
    return SpanSource(
        PoolReader(descriptor),
        key=KEY,
        segmentation=DEFAULT_SEGMENTATION,
        image_bytes=IMAGE_BYTES,
        spans_per_offer=2,
        buffers_max=buffers,
        next_item=lambda _: next(left, None),
    )


def content(data: bytes, slots: list[int]) -> bytes:
    parts = [
        data[slot * GRANULE_BYTES : (slot + 1) * GRANULE_BYTES] if slot else bytes(GRANULE_BYTES)
        for slot in slots
    ]
    return b"".join(parts).ljust(SPAN_BYTES, b"\0")


def test_segments_are_the_bytes_of_the_slots_in_order(descriptor: int, data: bytes) -> None:
    slots = [9, 10, 11, 3, 0, 0, 2, 1, *range(20, 28), 40, 41]
    reader = source(descriptor, [item([0, 2], slots)])
    prepared = next(reader)
    offer = prepared.offer(1)
    plain = content(data, slots[:16]) + content(data, slots[16:])[: SPAN_BYTES - 512]
    assert offer.spans.tolist() == [0, 2]
    assert int(offer.lengths.sum()) == len(plain), "the last span of the image is short"
    everything = Wanted(1, np.arange(len(offer.lengths)), None)
    got, told, at = b"", 0, 0
    for message, plain_bytes in prepared.segments(everything):
        assert (
            sum(map(len, message.payload)) < SEGMENTS_MESSAGE_BYTES + DEFAULT_SEGMENTATION.segment_bytes_max
        )
        told += plain_bytes
        for codec, stored in zip(message.codecs.tolist(), message.payload, strict=True):
            got += bytes(decompress(codec, bytes(stored), int(offer.lengths[at])))
            at += 1
    assert got == plain
    assert told == len(plain)
    pieces, start = [], 0
    for length in offer.lengths.tolist():
        pieces.append(memoryview(plain)[start : start + length])
        start += length
    assert bytes(offer.fingerprints) == KEY.segments(pieces)
    assert reader.bytes_read == (len(slots) - 2) * GRANULE_BYTES, "unmapped granules cost no read"
    assert (reader.spans_read, reader.spans_sampled, reader.spans_hole) == (2, 0, 0)
    assert next(reader, None) is None


def test_only_wanted_segments_are_sent(descriptor: int) -> None:
    prepared = next(source(descriptor, [item([0], list(range(1, 17)))]))
    lengths = prepared.offer(1).lengths
    wanted = Wanted(1, np.array([1, len(lengths) - 1]), None)
    sent = [plain_bytes for _, plain_bytes in prepared.segments(wanted)]
    assert sum(sent) == int(lengths[1]) + int(lengths[-1])
    assert list(prepared.segments(Wanted(1, np.empty(0, np.intp), None))) == []


def test_a_span_of_zeros_is_a_hole_whatever_the_map_says(descriptor: int) -> None:
    reader = source(descriptor, [item([0, 1], [5] * 16 + [5, 7])])
    offer = next(reader).offer(1)
    assert offer.spans.tolist() == [1]
    assert offer.hole_runs.tolist() == [[0, 1]]
    assert (reader.spans_read, reader.spans_hole) == (2, 1)


def test_a_sample_is_counted_apart(descriptor: int) -> None:
    reader = source(descriptor, [item([1], [7], sample=True)])
    assert next(reader).offer(1).sample
    assert (reader.spans_read, reader.spans_sampled) == (0, 1)


def test_what_an_earlier_offer_left_in_a_buffer_never_shows(descriptor: int, data: bytes) -> None:
    reader = source(descriptor, [item([0], list(range(1, 17))), item([0], [0, 7])], buffers=1)
    first = next(reader)
    first.release()
    first.release()  # harmless
    prepared = next(reader)
    offer = prepared.offer(2)
    everything = Wanted(2, np.arange(len(offer.lengths)), None)
    at, got = 0, b""
    for message, _ in prepared.segments(everything):
        for codec, stored in zip(message.codecs.tolist(), message.payload, strict=True):
            got += bytes(decompress(codec, bytes(stored), int(offer.lengths[at])))
            at += 1
    assert got == content(data, [0, 7])


def test_a_slot_past_the_end_of_the_file_is_damage_and_no_zeros(descriptor: int) -> None:
    for slots in ([SLOTS], [SLOTS - 1, SLOTS]):
        with pytest.raises(Corruption, match="ends before"):
            next(source(descriptor, [item([0], slots)]))


def test_runs_of_slots() -> None:
    assert list(place_runs(np.array([0, 0], np.uint64))) == []
    assert list(place_runs(np.array([3, 4, 5, 0, 6, 9, 8], np.uint64))) == [
        (0, 3, 3),
        (4, 6, 1),
        (5, 9, 1),
        (6, 8, 1),
    ]


@pytest.mark.parametrize("length", [1, 7, 8, 9, 512, 4096])
def test_zero_is_zero_to_the_last_byte(length: int) -> None:
    assert is_zero(memoryview(bytes(length)))
    for place in {0, length // 2, length - 1}:
        content = bytearray(length)
        content[place] = 1
        assert not is_zero(memoryview(content))
