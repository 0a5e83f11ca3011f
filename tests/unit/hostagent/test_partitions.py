"""Where the emulated guest looks for its file system."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from hostagent.partitions import find_ext

LINUX = bytes.fromhex("af3dc60f838472478e793d69d8477de4")
EFI = bytes.fromhex("28732ac11ff8d211ba4b00a0c93ec93b")


def reader(disk: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, length: disk[offset : offset + length]


def put_ext(disk: bytearray, offset: int, *, recover: bool = False) -> bytearray:
    struct.pack_into("<H", disk, offset + 1024 + 56, 0xEF53)
    struct.pack_into("<I", disk, offset + 1024 + 96, 4 if recover else 0)
    return disk


def mbr(disk: bytearray, *entries: tuple[int, int]) -> bytearray:
    disk[510:512] = b"\x55\xaa"
    for index, (kind, start) in enumerate(entries):
        disk[446 + index * 16 + 4] = kind
        struct.pack_into("<I", disk, 446 + index * 16 + 8, start)
    return disk


def gpt(disk: bytearray, *entries: tuple[bytes, int]) -> bytearray:
    mbr(disk, (0xEE, 1))
    disk[512:520] = b"EFI PART"
    struct.pack_into("<QII", disk, 512 + 72, 2, len(entries), 128)
    for index, (kind, start) in enumerate(entries):
        disk[1024 + index * 128 : 1024 + index * 128 + 16] = kind
        struct.pack_into("<Q", disk, 1024 + index * 128 + 32, start)
    return disk


def disk() -> bytearray:
    return bytearray(1 << 20)


@pytest.mark.parametrize(
    ("content", "offset"),
    [
        (put_ext(disk(), 0), 0),
        (put_ext(mbr(disk(), (0xEF, 8), (0x83, 100)), 51200), 51200),
        (put_ext(gpt(disk(), (EFI, 64), (LINUX, 200)), 102400), 102400),
        (disk(), None),
        (put_ext(mbr(disk(), (0x07, 100)), 51200), None),
        (mbr(disk(), (0x83, 100)), None),
        (mbr(disk(), (0x83, 0xFFFFFFFF)), None),
        (gpt(disk(), (LINUX, (1 << 64) - 1)), None),
        (gpt(disk()), None),
        (bytearray(100), None),
    ],
)
def test_the_first_linux_partition_or_the_whole_disk(content: bytearray, offset: int | None) -> None:
    found = find_ext(reader(bytes(content)))
    assert (found.offset if found else None) == offset


def test_a_journal_that_waits_is_seen() -> None:
    found = find_ext(reader(bytes(put_ext(disk(), 0, recover=True))))
    assert found is not None
    assert found.needs_recovery
