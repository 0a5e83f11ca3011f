"""Where the blocks of an inode of ext lie: an extent tree, or pointers with up to three levels between.

Invariant: X1 no more is visited than RUNS_MAX extents, or than the file's size can need.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from arraylift.errors import WrongState
from backup_server.catalog.parse.filesystem import RUNS_MAX
from backup_server.catalog.pieces import Run

_MAGIC = 0xF30A
_HEADER = struct.Struct("<HHHH4x")
_LEAF = struct.Struct("<IHHI")
_INDEX = struct.Struct("<IIHH")
_DEPTH_MAX = 5
_WRITTEN_MAX = 1 << 15
"""A longer extent is one that is preallocated, by the rest."""

ReadBlock = Callable[[int], bytes]


def extent_runs(root: bytes, block_bytes: int, read_block: ReadBlock) -> list[Run]:
    """Return the runs of an extent tree, without its holes."""
    runs: list[Run] = []
    _, _, _, depth = _HEADER.unpack_from(root)
    if depth > _DEPTH_MAX:
        raise WrongState(f"its extent tree is {depth} levels deep")
    _extents(root, depth, block_bytes, read_block, runs)
    return runs


def _extents(node: bytes, level: int, block_bytes: int, read_block: ReadBlock, runs: list[Run]) -> None:
    magic, count, _, depth = _HEADER.unpack_from(node)
    if magic != _MAGIC or depth != level:
        raise WrongState("its extent tree is damaged")
    if level:
        for index in range(count):
            _, low, high, _ = _INDEX.unpack_from(node, _HEADER.size + 12 * index)
            _extents(read_block(low | high << 32), level - 1, block_bytes, read_block, runs)
        return
    for index in range(count):
        first, length, high, low = _LEAF.unpack_from(node, _HEADER.size + 12 * index)
        start: int | None = (low | high << 32) * block_bytes
        if length > _WRITTEN_MAX:
            length, start = length - _WRITTEN_MAX, None
        if length:
            runs.append(Run(first * block_bytes, length * block_bytes, start))
    if len(runs) > RUNS_MAX:
        raise WrongState(f"it has more than {RUNS_MAX} extents")  # X1


def pointer_runs(pointers: bytes, size_bytes: int, block_bytes: int, read_block: ReadBlock) -> list[Run]:
    """Return the runs of an inode with block pointers, holes among them, up to the file's size."""
    left = -(-size_bytes // block_bytes)
    runs: list[Run] = []
    start, length, at = 0, 0, 0  # the run that grows: first block (0: a hole), blocks, its place in the file
    direct = struct.unpack("<15I", pointers)
    for first, pointed in _pointed(direct, block_bytes, read_block):
        count = min(pointed, left)
        together = first == start + length if first and start else not first and not start
        if length and together:
            length += count
        else:
            if length:
                runs.append(Run(at, length * block_bytes, start * block_bytes if start else None))
                at += length * block_bytes
            start, length = first, count
        left -= count
        if not left or len(runs) > RUNS_MAX:
            break
    if len(runs) > RUNS_MAX:
        raise WrongState(f"it has more than {RUNS_MAX} extents")  # X1
    if length:
        runs.append(Run(at, length * block_bytes, start * block_bytes if start else None))
    return runs


def _pointed(pointers: tuple[int, ...], block_bytes: int, read_block: ReadBlock) -> Iterator[tuple[int, int]]:
    """Yield (block, count): a block and one, or 0 and how many blocks are a hole."""
    for pointer in pointers[:12]:
        yield pointer, 1
    for level, pointer in enumerate(pointers[12:], 1):
        yield from _below(pointer, level, block_bytes, read_block)


def _below(pointer: int, level: int, block_bytes: int, read_block: ReadBlock) -> Iterator[tuple[int, int]]:
    per_block = block_bytes // 4
    if not level or not pointer:
        yield pointer, per_block**level
        return
    for below in struct.unpack(f"<{per_block}I", read_block(pointer)):
        yield from _below(below, level - 1, block_bytes, read_block)
