"""Frames, container, directory and records say the same; damage never yields wrong bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arraylift.errors import ArrayliftError, Corruption
from arraylift.ids import ContainerId, KeyId, TenantId
from dedup_target.container_buffer import ContainerBuffer
from dedup_target.container_format import (
    HEADER_BYTES,
    RECORD_BYTES,
    Kind,
    decode_directory,
    decode_header,
    page_up,
    scan_frames,
)
from dedup_target.container_store import ContainerLimits, ContainerStore
from dedup_target.directory_backend import DirectoryBackend
from dedup_target.segment_index import Locator
from tests.fakes.disk import FakeFiles
from tests.unit.dedup_target.material import UNIT, Segment, append, make_segments, whole_container

BUFFER = ContainerBuffer(UNIT)
"""Used again and again, as in the product: what one example leaves must not show in the next."""

records = st.builds(
    Segment,
    fingerprint=st.binary(min_size=32, max_size=32),
    stored=st.binary(min_size=1, max_size=300),
    plain_bytes=st.integers(1, (1 << 32) - 1),
    codec=st.integers(0, 31),
)
frames = st.lists(st.lists(records, min_size=1, max_size=8), min_size=1, max_size=6)
headers = st.tuples(
    st.integers(0, (1 << 64) - 1),
    st.integers(0, (1 << 64) - 1),
    st.binary(min_size=8, max_size=8),
    st.sampled_from(Kind),
)


@settings(max_examples=150, deadline=None)
@given(frames, headers)
def test_what_goes_in_comes_out(written: list[list[Segment]], header: tuple[int, int, bytes, Kind]) -> None:
    number, tenant, key_id, kind = header
    container = ContainerId(number)
    BUFFER.begin(container, TenantId(tenant), KeyId(key_id), kind)
    offsets = [offset for frame in written for offset in append(BUFFER, frame)]
    flat = [segment for frame in written for segment in frame]
    pending = [BUFFER.record_at(place) for place in range(len(flat))]
    assert [(bytes(one.data), one.plain_bytes, one.codec) for one in pending] == [
        (segment.stored, segment.plain_bytes, segment.codec) for segment in flat
    ]
    data = memoryview(bytes(BUFFER.finish()))
    assert bytes(BUFFER.finish()) == data
    found = decode_header(data, container)
    assert (found.tenant, found.key_id, found.kind, found.unit_id) == (tenant, key_id, kind, UNIT)
    assert found.file_bytes == len(data) == page_up(len(data))
    assert found.codecs == sum({1 << segment.codec for segment in flat})
    end = found.directory_offset + found.record_count * RECORD_BYTES
    assert not any(data[end:])
    directory = decode_directory(data[found.directory_offset : end], found)
    assert directory["offset"].tolist() == offsets
    for record, segment in zip(directory, flat, strict=True):
        assert record["fingerprint"].tobytes() == segment.fingerprint
        start = int(record["offset"])
        assert data[start : start + int(record["stored_bytes"])] == segment.stored
        assert (record["plain_bytes"], record["codec"]) == (segment.plain_bytes, segment.codec)
    scan = scan_frames(data, container)
    assert scan.directory.tobytes() == directory.tobytes()
    assert (scan.kind, scan.tenant, scan.key_id) == (kind, tenant, key_id)
    assert (scan.end, scan.skipped_bytes) == (found.directory_offset, 0)


@settings(max_examples=100, deadline=None)
@given(frames, st.integers(0, 5), st.integers(0, 7), st.integers(0))
def test_a_damaged_frame_costs_only_its_own_records(
    written: list[list[Segment]], victim: int, bit: int, place: int
) -> None:
    victim %= len(written)
    data = bytearray(whole_container(written))
    start = HEADER_BYTES
    for frame in written[:victim]:
        start += 64 + sum(RECORD_BYTES + len(segment.stored) for segment in frame)
    table_bytes = 64 + RECORD_BYTES * len(written[victim])
    data[start + place % table_bytes] ^= 1 << bit
    kept = [segment for frame in written[:victim] + written[victim + 1 :] for segment in frame]
    try:
        scan = scan_frames(memoryview(bytes(data)), ContainerId(5))
    except Corruption:
        assert not kept
        return
    assert scan.directory["fingerprint"].tolist() == [segment.fingerprint for segment in kept]


class _OneContainer(FakeFiles):
    """A disk with one container, whose bytes a test can exchange."""

    PATH = "/unit/containers/00000000/0000000000000005.alc"

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.content = content
        self.make_dirs("/unit/containers/00000000")
        self.publish(self.PATH, [content], label="test")

    def size(self, path: str) -> int:
        return len(self.content) if path == self.PATH else super().size(path)

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        if path != self.PATH:
            return super().read(path, offset, length)
        return self.content[offset:] if length is None else self.content[offset : offset + length]


def _store_over(files: _OneContainer) -> ContainerStore:
    limits = ContainerLimits(cache_bytes_max=0, directory_cache_bytes_max=0)
    return ContainerStore(DirectoryBackend(files, "/unit"), UNIT, limits)


def test_every_flipped_bit_of_a_small_container_is_an_error_or_harmless() -> None:
    """Header page and padding are sampled (their zeros are all alike); the rest is exhausted."""
    written = [make_segments(3, seed=1, bytes_max=60), make_segments(2, seed=2, bytes_max=60)]
    flat = [segment for frame in written for segment in frame]
    data = whole_container(written)
    end = HEADER_BYTES + 2 * 64 + 2 * len(flat) * RECORD_BYTES + sum(len(segment.stored) for segment in flat)
    header_bits = [*range(100 * 8), *range(800, 4088 * 8, 997), *range(4088 * 8, 4096 * 8)]
    clean = scan_frames(memoryview(data), ContainerId(5)).directory
    locators = [
        Locator(
            ContainerId(5),
            int(row["offset"]),
            int(row["stored_bytes"]),
            int(row["plain_bytes"]),
            int(row["codec"]),
        )
        for row in clean
    ]
    files = _OneContainer(data)
    store, errors = _store_over(files), 0
    for place in [*header_bits, *range(HEADER_BYTES * 8, end * 8), *range(end * 8, len(data) * 8, 997)]:
        content = bytearray(data)
        content[place // 8] ^= 1 << place % 8
        files.content = bytes(content)
        errors += _read_all(store, locators, flat, place)
    payload_bits = 8 * sum(len(segment.stored) for segment in flat)
    assert errors >= payload_bits


def _read_all(store: ContainerStore, locators: list[Locator], flat: list[Segment], place: int) -> int:
    """Read every record both ways; returns how many reads failed, asserts the rest is right."""
    errors = 0
    for locator, segment in zip(locators, flat, strict=True):
        for whole in (False, True):
            try:
                if whole:
                    found = store.read_container(ContainerId(5)).view(locator.offset, locator.stored_bytes)
                else:
                    found = store.read_record(locator).data
            except ArrayliftError:
                errors += 1
                continue
            assert bytes(found) == segment.stored, place
    return errors


def test_a_container_under_another_name_is_refused() -> None:
    store = _store_over(_OneContainer(whole_container([make_segments(1)], container_id=6)))
    with pytest.raises(Corruption, match="container 0000000000000005"):
        store.read_directory(ContainerId(5))


def test_numpy_rows_are_little_endian_and_packed() -> None:
    data = whole_container([[Segment(b"f" * 32, b"abc", 9, 1)]])
    row = data[HEADER_BYTES + 64 : HEADER_BYTES + 64 + RECORD_BYTES]
    assert row[:32] == b"f" * 32
    assert row[32:48] == np.array([HEADER_BYTES + 64 + 56, 3, 9, 1], dtype="<u4").tobytes()
