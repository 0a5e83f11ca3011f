"""Look through RocksDB's logs for what would make it hang.

Its log reader never comes back from a record that claims to be of a recycled log where none is recycled:
one flipped bit in a record's type, in a manifest or a write-ahead log, and opening spins for ever (found by
the campaign of bit flips, RocksDB as in rocksdict 0.3.29). We recycle no logs, so such a record is damage.
Pure but for reading the files. Callers: rocks_index, before it opens.
Format: RocksDB's log format: blocks of 32 KiB; records of CRC (4 bytes), length (2), type (1), payload; a
header that does not fit ends its block with zeros.
"""

from __future__ import annotations

import struct
from pathlib import Path

BLOCK_BYTES = 32 * 1024
_HEADER = struct.Struct("<IHB")
_RECYCLED = frozenset({5, 6, 7, 8, 11})
_PATTERNS = ("MANIFEST-*", "*.log")


def recycled_record(path: str) -> str:
    """Name the first file of a database that has such a record, and where; empty if there is none.

    A directory that is not there has none.
    """
    for pattern in _PATTERNS:
        for file in sorted(Path(path).glob(pattern)):
            at = find_recycled(file.read_bytes())
            if at is not None:
                return f"{file.name} has a record of a recycled log at byte {at}"
    return ""


def find_recycled(data: bytes) -> int | None:
    """Offset of the first record whose type belongs to recycled logs."""
    for block in range(0, len(data), BLOCK_BYTES):
        at, end = block, min(block + BLOCK_BYTES, len(data))
        while at + _HEADER.size <= end:
            _, length, kind = _HEADER.unpack_from(data, at)
            if kind in _RECYCLED:
                return at
            if kind == 0:
                break  # the rest of the block was never written
            at += _HEADER.size + length
    return None
