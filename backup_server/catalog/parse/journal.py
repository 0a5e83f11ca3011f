"""Read a dirty JBD2 journal and say which blocks of the file system it replaces, and by which of its own.

Nothing is written: the answer is an overlay for reads. Invariants: J1 only transactions that end in a
commit block count, in order, up to the first that does not. J2 a block that the same or a later
transaction revokes is not replaced by this copy. J3 no more journal blocks are visited than the journal has.
Used in the parser's process only. Layout: the kernel's documentation, "Journal (jbd2)". Checksums of the
journal are not verified.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from arraylift.errors import WrongState
from backup_server.catalog.parse.fast_commit import FastCommits, read_fast_commits
from backup_server.catalog.parse.space import Replacement, Space
from backup_server.catalog.pieces import Run

REPLACED_BLOCKS_MAX = 1 << 18
"""1 GiB of 4 KiB blocks, the largest journal that mke2fs makes by itself."""

MAGIC = 0xC03B3998
MAGIC_BYTES = MAGIC.to_bytes(4, "big")

_DESCRIPTOR, _COMMIT, _SUPERBLOCK_V1, _SUPERBLOCK_V2, _REVOKE = 1, 2, 3, 4, 5
_64BIT, _CSUM_V2, _CSUM_V3, _FAST_COMMIT = 0x2, 0x8, 0x10, 0x20
_KNOWN = 0x3F
_ESCAPED, _SAME_UUID, _LAST = 1, 2, 8
_FAST_COMMIT_BLOCKS_DEFAULT = 256
_BLOCK_BYTES_MIN, _BLOCK_BYTES_MAX = 1024, 65536


@dataclass(frozen=True, slots=True)
class JournalCopy:
    """Where a block's content is: the number of a journal block; escaped: its first word is MAGIC."""

    journal_block: int
    escaped: bool


@dataclass(frozen=True, slots=True)
class _Header:
    block_bytes: int
    first: int
    last: int
    sequence: int
    start: int
    features: int
    length: int


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a journal replaces, by block, and what its fast commits change after that."""

    blocks: dict[int, Replacement]
    fast: FastCommits


@dataclass(slots=True)
class _Transaction:
    sequence: int
    copies: list[tuple[int, JournalCopy]] = field(default_factory=list)
    revoked: list[int] = field(default_factory=list)


def replay_in(space: Space, runs: Sequence[Run], block_bytes: int, block_count: int) -> Replayed:
    """Return what the journal in these runs of a space replaces in it, as places in the same space."""
    starts = [run.file_offset for run in runs]

    def place(block: int) -> int:
        offset = block * block_bytes
        run = runs[bisect_right(starts, offset) - 1]
        if run.offset is None or offset + block_bytes > run.file_offset + run.length:
            raise WrongState("the file system's journal has a hole")
        return run.offset + offset - run.file_offset

    def read_block(block: int) -> bytes:
        return space.read(place(block), block_bytes)

    copies = replay(read_block, block_bytes=block_bytes, block_count=block_count)
    blocks = {
        block: Replacement(place(copy.journal_block), MAGIC_BYTES if copy.escaped else b"")
        for block, copy in copies.items()
    }
    header = _header(read_block(0), block_bytes, block_count)
    if not header.features & _FAST_COMMIT or not header.start:
        return Replayed(blocks, FastCommits())
    sequence = (header.sequence + sum(1 for _ in _transactions(header, read_block))) & 0xFFFFFFFF
    fast = read_fast_commits(
        read_block, first=header.last + 1, last=header.length, sequence=sequence, block_bytes=block_bytes
    )
    return Replayed(blocks, fast)


def replay(
    read_block: Callable[[int], bytes], *, block_bytes: int, block_count: int
) -> dict[int, JournalCopy]:
    """Return the blocks that the journal replaces, by number.

    ``read_block`` reads one of the journal's ``block_count`` blocks of ``block_bytes``. WrongState:
    this is no journal, or one whose features are unknown here.
    """
    header = _header(read_block(0), block_bytes, block_count)
    if header.start == 0:
        return {}
    transactions = list(_transactions(header, read_block))
    revoked_at: dict[int, int] = {}
    for number, transaction in enumerate(transactions):
        revoked_at.update(dict.fromkeys(transaction.revoked, number))
    return {
        block: copy
        for number, transaction in enumerate(transactions)
        for block, copy in transaction.copies
        if revoked_at.get(block, -1) < number  # J2
    }


def _header(block: bytes, block_bytes: int, block_count: int) -> _Header:
    magic, kind = struct.unpack_from(">II", block, 0)
    if magic != MAGIC or kind not in {_SUPERBLOCK_V1, _SUPERBLOCK_V2}:
        raise WrongState("the file system's journal has no header")
    size, length, first, sequence, start = struct.unpack_from(">IIIII", block, 12)
    features = struct.unpack_from(">I", block, 0x28)[0] if kind == _SUPERBLOCK_V2 else 0
    if features & ~_KNOWN:
        raise WrongState(f"the file system's journal has features unknown here: {features & ~_KNOWN:#x}")
    last = length
    if features & _FAST_COMMIT:
        last -= struct.unpack_from(">I", block, 0x54)[0] or _FAST_COMMIT_BLOCKS_DEFAULT
    sound = size == block_bytes and _BLOCK_BYTES_MIN <= size <= _BLOCK_BYTES_MAX
    if (
        not sound
        or not 0 < first < last <= length <= block_count
        or not (start == 0 or first <= start < last)
    ):
        raise WrongState("the header of the file system's journal contradicts itself")
    return _Header(size, first, last, sequence, start, features, length)


def _transactions(header: _Header, read_block: Callable[[int], bytes]) -> Iterator[_Transaction]:
    """Yield the committed transactions in order (J1)."""
    at = header.start
    current = _Transaction(header.sequence)
    visited = 0
    while visited < header.last - header.first:  # J3
        block = read_block(at)
        magic, kind, sequence = struct.unpack_from(">III", block, 0)
        if magic != MAGIC or sequence != current.sequence:
            return
        visited += 1
        if kind == _DESCRIPTOR:
            for target, escaped in _tags(block, header):
                at = _next(at, header)
                visited += 1
                current.copies.append((target, JournalCopy(at, escaped)))
            if visited > REPLACED_BLOCKS_MAX:
                raise WrongState(f"the file system's journal replaces more than {REPLACED_BLOCKS_MAX} blocks")
        elif kind == _REVOKE:
            current.revoked += _revocations(block, header)
        elif kind == _COMMIT:
            yield current
            current = _Transaction((current.sequence + 1) & 0xFFFFFFFF)
        else:
            return
        at = _next(at, header)


def _next(at: int, header: _Header) -> int:
    return at + 1 if at + 1 < header.last else header.first


def _tags(block: bytes, header: _Header) -> Iterator[tuple[int, bool]]:
    """Yield (block number, escaped) of a descriptor's tags."""
    wide = header.features & _64BIT
    v3 = header.features & _CSUM_V3
    v2 = header.features & _CSUM_V2
    tag_bytes = 16 if v3 else 8 + (2 if v2 else 0) + (4 if wide else 0)
    end = header.block_bytes - (4 if v2 or v3 else 0)
    at = 12
    while at + tag_bytes <= end:
        if v3:
            low, flags, high = struct.unpack_from(">III", block, at)
        else:
            low, _, flags = struct.unpack_from(">IHH", block, at)
            high = struct.unpack_from(">I", block, at + 8)[0] if wide else 0
        yield low | (high << 32 if wide else 0), bool(flags & _ESCAPED)
        if flags & _LAST:
            return
        at += tag_bytes + (0 if flags & _SAME_UUID else 16)


def _revocations(block: bytes, header: _Header) -> list[int]:
    wide = header.features & _64BIT
    used = min(struct.unpack_from(">I", block, 12)[0], header.block_bytes)
    count = max(0, used - 16) // (8 if wide else 4)
    return list(struct.unpack_from(f">{count}{'Q' if wide else 'I'}", block, 16))
