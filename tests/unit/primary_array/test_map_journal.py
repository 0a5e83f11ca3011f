"""Torn tails are cut, damage before them is an error; every bit counts."""

from __future__ import annotations

import pytest

from arraylift.errors import Corruption, OutOfSpace
from arraylift.ids import PoolId
from primary_array.map_journal import (
    FRAME_BYTES,
    HEADER_BYTES,
    MapJournal,
    Scan,
    encode_frame,
    encode_header,
    scan,
)
from primary_array.superblock import Layout
from tests.fakes.disk import FakeFiles

POOL = PoolId("ab" * 16)
PATH = "/p/journal-0000000007.alj"
PAYLOADS = [b"first", b"second" * 40, b"third"]
DATA = encode_header(POOL, 7) + b"".join(encode_frame(5 + n, payload) for n, payload in enumerate(PAYLOADS))
LAST = len(DATA) - FRAME_BYTES - len(PAYLOADS[-1])


def read(data: bytes) -> Scan:
    return scan(data, pool_id=POOL, number=7, path=PATH)


def test_frames_come_back_in_order() -> None:
    found = read(DATA)
    assert [frame.payload for frame in found.frames] == PAYLOADS
    assert [frame.sequence for frame in found.frames] == [5, 6, 7]
    assert (found.good_bytes, found.torn_bytes) == (len(DATA), 0)


def test_every_cut_of_the_last_frame_is_a_torn_tail() -> None:
    for length in range(LAST, len(DATA)):
        for tail in (DATA[LAST:length], DATA[LAST:length] + bytes(len(DATA) - length)):
            if DATA[:LAST] + tail == DATA:
                continue
            found = read(DATA[:LAST] + tail)
            assert len(found.frames) == 2
            assert (found.good_bytes, found.torn_bytes) == (LAST, len(tail))


def test_every_flipped_bit_before_the_last_frame_is_corruption() -> None:
    for bit in range(LAST * 8):
        data = bytearray(DATA)
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Corruption):
            read(bytes(data))


def test_every_flipped_bit_of_the_last_frame_drops_it_alone() -> None:
    for bit in range(LAST * 8, len(DATA) * 8):
        data = bytearray(DATA)
        data[bit // 8] ^= 1 << bit % 8
        assert [frame.payload for frame in read(bytes(data)).frames] == PAYLOADS[:2]


def test_a_missing_frame_is_corruption() -> None:
    with pytest.raises(Corruption, match="lacks the frame"):
        read(encode_header(POOL, 7) + encode_frame(1, b"a") + encode_frame(3, b"c"))


@pytest.mark.parametrize("header", [encode_header(PoolId("cd" * 16), 7), encode_header(POOL, 8), b""])
def test_another_journal_is_refused(header: bytes) -> None:
    with pytest.raises(Corruption, match="is not journal 7"):
        read(header + DATA[HEADER_BYTES:])


def test_full_disk_leaves_the_journal_as_it_was() -> None:
    files = FakeFiles()
    files.make_dirs("/p")
    journal = MapJournal.create(files, Layout("/p"), pool_id=POOL, number=7, sequence=4)
    journal.append(PAYLOADS[0])
    files.fail_after(0, "enospc")
    with pytest.raises(OutOfSpace):
        journal.append(PAYLOADS[1])
    journal.append(PAYLOADS[1])
    journal.append(PAYLOADS[2])
    assert files.read(PATH) == DATA
    assert journal.sequence == 7
