"""A file as a list of pieces: where in the disks its bytes lie, computed after any journal's overlay.

Invariants: P1 pieces follow each other from file offset 0 to the file's size, without gap or overlap.
P2 a data piece lies inside one disk; no other kind names a disk or an offset. P3 a literal carries
exactly its length in bytes; nothing else carries any. P4 neither the pieces nor the literal bytes of a
file pass their maximum.
Pure: called by the parser's process and by the server alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from operator import itemgetter
from typing import NamedTuple

from arraylift.errors import WrongState
from arraylift.sizes import KIB

PIECES_MAX = 1 << 18
"""A file in fragments of 4 KiB reaches this at 1 GiB."""

LITERALS_OF_FILE_BYTES_MAX = 64 * KIB
"""Content that lies in an inode, and the first words of blocks that a journal escapes."""


class PieceKind(IntEnum):
    DATA = 1
    ZERO = 2
    LITERAL = 3


@dataclass(frozen=True, slots=True)
class Piece:
    """``length`` bytes of a file: at an offset of a disk (by its place in the set), zeros, or given here."""

    kind: PieceKind
    length: int
    disk: int = 0
    offset: int = 0
    literal: bytes = b""


class Run(NamedTuple):
    """What a file system says: bytes of a file that lie together in its volume. No offset: zeros."""

    file_offset: int
    length: int
    offset: int | None


class Place(NamedTuple):
    """Where bytes of a volume are: on a disk, or ``literal`` (``disk`` is then NO_DISK)."""

    disk: int
    offset: int
    length: int
    literal: bytes = b""


NO_DISK = -1

Locate = Callable[[int, int], Iterable[Place]]
"""(volume offset, length) to the places that hold these bytes, in order."""


def pieces_of(runs: Iterable[Run], *, size_bytes: int, locate: Locate) -> list[Piece]:
    """Return the pieces of a file of ``size_bytes`` whose runs are given in any order.

    Runs beyond the size are trimmed. WrongState: the runs leave a gap, overlap, or pass a maximum; a gap is
    never taken for a hole, since that is also how a file system that is damaged shows.
    """
    pieces: list[Piece] = []
    at = 0
    literal_bytes = 0
    for run in sorted(runs, key=itemgetter(0)):
        if at >= size_bytes:
            break
        if run.file_offset != at or run.length <= 0:
            raise WrongState(f"the file system gives no sound list of extents: byte {at} is not in it once")
        length = min(run.length, size_bytes - at)
        at += length
        if run.offset is None:
            _append(pieces, Piece(PieceKind.ZERO, length))
            continue
        for place in locate(run.offset, length):
            if place.disk == NO_DISK:
                literal_bytes += place.length
                if literal_bytes > LITERALS_OF_FILE_BYTES_MAX:
                    raise WrongState(f"more than {LITERALS_OF_FILE_BYTES_MAX} bytes of it are in no block")
                _append(pieces, Piece(PieceKind.LITERAL, place.length, literal=place.literal))
            else:
                _append(pieces, Piece(PieceKind.DATA, place.length, place.disk, place.offset))
    if at != size_bytes:
        raise WrongState(f"the file system gives extents for {at} of the file's {size_bytes} bytes")
    return pieces


def literal_pieces(content: bytes) -> list[Piece]:
    """Return the pieces of a file whose content is not in blocks of its own, i.e. inline."""
    assert len(content) <= LITERALS_OF_FILE_BYTES_MAX, "P4"
    return [Piece(PieceKind.LITERAL, len(content), literal=content)] if content else []


def flaw_of(pieces: Sequence[Piece], *, size_bytes: int, disk_sizes: Sequence[int]) -> str:
    """Return what breaks P1 to P4, or nothing. For pieces that come from a process that is not trusted."""
    at = 0
    literal_bytes = 0
    for piece in pieces:
        if piece.length <= 0:
            return f"a piece of {piece.length} bytes"
        if piece.kind is PieceKind.DATA:
            if not 0 <= piece.disk < len(disk_sizes) or not (
                0 <= piece.offset <= disk_sizes[piece.disk] - piece.length
            ):
                return f"a piece at {piece.offset} of disk {piece.disk}, outside it"
        elif piece.offset or piece.disk:
            return "a place for what is in no image"
        if len(piece.literal) != (piece.length if piece.kind is PieceKind.LITERAL else 0):
            return f"{len(piece.literal)} bytes given for {piece.length}"
        literal_bytes += len(piece.literal)
        at += piece.length
    if at != size_bytes:
        return f"pieces for {at} of {size_bytes} bytes"
    if len(pieces) > PIECES_MAX or literal_bytes > LITERALS_OF_FILE_BYTES_MAX:
        return f"{len(pieces)} pieces with {literal_bytes} literal bytes"
    return ""


def content_of(
    pieces: Iterable[Piece], read: Callable[[int, int, int], bytes], *, step_bytes: int
) -> Iterator[bytes]:
    """Yield the file's bytes in order, at most ``step_bytes`` at once; ``read``: disk, offset, length."""
    zeros = b""
    for piece in pieces:
        for start in range(0, piece.length, step_bytes):
            length = min(step_bytes, piece.length - start)
            if piece.kind is PieceKind.DATA:
                yield read(piece.disk, piece.offset + start, length)
            elif piece.kind is PieceKind.LITERAL:
                yield piece.literal[start : start + length]
            else:
                zeros = zeros if len(zeros) == length else bytes(length)
                yield zeros


def _append(pieces: list[Piece], piece: Piece) -> None:
    """Append, or grow the last piece where both are of one kind and lie together."""
    if pieces and (last := pieces[-1]).kind is piece.kind:
        together = last.disk == piece.disk and last.offset + last.length == piece.offset
        if piece.kind is not PieceKind.DATA or together:
            length, literal = last.length + piece.length, last.literal + piece.literal
            pieces[-1] = Piece(piece.kind, length, last.disk, last.offset, literal)
            return
    if len(pieces) >= PIECES_MAX:
        raise WrongState(f"the file lies in more than {PIECES_MAX} pieces")
    pieces.append(piece)
