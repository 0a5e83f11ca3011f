"""Say whether the log of an XFS holds what was not yet written in its place.

The last record of a log that was ended properly is one operation that says so. Where the log ends is found
by halving, as the kernel does: each of its blocks begins with the number of the cycle in which it was
written. What is in doubt counts as dirty: this makes a remark, nothing more.
"""

from __future__ import annotations

import struct

from backup_server.catalog.parse.space import Space

BLOCK = 512
_MAGIC = 0xFEEDBABE
_RECORD_BLOCKS_MAX = 1024
"""Header and body of the longest record: 256 KiB and its headers, with room."""
_UNMOUNT = 0x20
_HEADER_STEP = 32 * 1024


def is_log_dirty(space: Space, start: int, size_bytes: int) -> bool:
    blocks = size_bytes // BLOCK
    if blocks < 2:
        return True

    def cycle(number: int) -> int:
        magic, second = struct.unpack(">II", space.read(start + number * BLOCK, 8))
        return int(second if magic == _MAGIC else magic)

    first = cycle(0)
    if not first:
        return False  # never written
    low, high = 0, blocks  # the last block of this cycle is at or behind low, and before high
    while low + 1 < high:
        middle = (low + high) // 2
        if cycle(middle) == first:
            low = middle
        else:
            high = middle
    return not _ends_properly(space, start, blocks, high)


def _ends_properly(space: Space, start: int, blocks: int, head: int) -> bool:
    """Look for the last record before ``head``, and into it."""
    for back in range(1, min(_RECORD_BLOCKS_MAX, blocks) + 1):
        number = (head - back) % blocks
        header = space.read(start + number * BLOCK, BLOCK)
        if int.from_bytes(header[:4], "big") != _MAGIC:
            continue
        version, length = struct.unpack_from(">II", header, 8)
        operations = struct.unpack_from(">I", header, 40)[0]
        record_size = struct.unpack_from(">I", header, 320)[0] if version & 2 else 0
        headers = max(1, -(-record_size // _HEADER_STEP))
        if operations != 1 or (number + headers + -(-length // BLOCK)) % blocks != head % blocks:
            return False
        operation = space.read(start + (number + headers) % blocks * BLOCK, 12)
        return bool(operation[9] & _UNMOUNT)
    return False
