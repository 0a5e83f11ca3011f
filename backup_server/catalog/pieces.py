"""A file as a list of pieces: where in the image its bytes lie, computed after the journal overlay.

Invariants: P1 pieces follow each other from file offset 0 to the file's size, without gap or overlap.
P2 a data piece lies inside the image; no other kind names an image offset. P3 a literal carries
exactly its length in bytes; nothing else carries any. P4 neither the pieces nor the literal bytes of a
file pass their maximum.
Pure: called by the parser's process and by the server alike.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from arraylift.errors import WrongState
from arraylift.sizes import MIB

PIECES_MAX = 1 << 18
"""A file in fragments of 4 KiB reaches this at 1 GiB."""

LITERAL_BYTES_MAX = MIB
"""One literal piece, and inline data as a whole."""

LITERALS_OF_FILE_BYTES_MAX = 32 * MIB
"""Blocks of one file that lie in the journal: the default size of a journal is 64 MiB or more."""


class PieceKind(IntEnum):
    DATA = 1
    ZERO = 2
    LITERAL = 3


@dataclass(frozen=True, slots=True)
class Piece:
    """``length`` bytes of a file from ``file_offset``: in the image, zeros, or given here."""

    kind: PieceKind
    file_offset: int
    length: int
    image_offset: int = 0
    literal: bytes = b""


@dataclass(frozen=True, slots=True)
class Run:
    """What a file system says: bytes of a file that lie together. No image offset: a hole."""

    file_offset: int
    length: int
    image_offset: int | None


@dataclass(frozen=True, slots=True)
class Overlay:
    """Blocks of a file system whose true content is elsewhere, i.e. in its journal.

    ``blocks`` are sorted numbers of blocks of ``block_bytes``, counted from ``image_offset``;
    ``read`` gives (image offset, length) as it is with the overlay.
    """

    image_offset: int
    block_bytes: int
    blocks: Sequence[int]
    read: Callable[[int, int], bytes]


def pieces_of(runs: Iterable[Run], *, size_bytes: int, overlay: Overlay | None = None) -> list[Piece]:
    """Return the pieces of a file of ``size_bytes`` whose runs are given in any order.

    Runs beyond the size are trimmed. WrongState: the runs leave a gap, overlap, or pass a maximum; a gap is
    never taken for a hole, since that is also how a file system that is damaged shows.
    """
    pieces: list[Piece] = []
    at = 0
    literal_bytes = 0
    for run in sorted(runs, key=lambda run: run.file_offset):
        if at >= size_bytes:
            break
        if run.file_offset != at or run.length <= 0:
            raise WrongState(f"the file system gives no sound list of extents: byte {at} is not in it once")
        length = min(run.length, size_bytes - at)
        for piece in _of_run(Run(at, length, run.image_offset), overlay):
            literal_bytes += len(piece.literal)
            if literal_bytes > LITERALS_OF_FILE_BYTES_MAX:
                raise WrongState(
                    f"more than {LITERALS_OF_FILE_BYTES_MAX} bytes of the file are in the journal"
                )
            _append(pieces, piece)
        at += length
    if at != size_bytes:
        raise WrongState(f"the file system gives extents for {at} of the file's {size_bytes} bytes")
    return pieces


def literal_pieces(content: bytes) -> list[Piece]:
    """Return the pieces of a file whose content is not in blocks of its own, i.e. inline."""
    assert len(content) <= LITERAL_BYTES_MAX, "P4"
    return [Piece(PieceKind.LITERAL, 0, len(content), literal=content)] if content else []


def flaw_of(pieces: Sequence[Piece], *, size_bytes: int, image_bytes: int) -> str:
    """Return what breaks P1 to P4, or nothing. For pieces that come from a process that is not trusted."""
    at = 0
    literal_bytes = 0
    for piece in pieces:
        if piece.file_offset != at or piece.length <= 0:
            return f"a piece at file offset {piece.file_offset} where {at} is due"
        if piece.kind is PieceKind.DATA and not 0 <= piece.image_offset <= image_bytes - piece.length:
            return f"a piece at {piece.image_offset}, outside the image of {image_bytes} bytes"
        if piece.kind is not PieceKind.DATA and piece.image_offset:
            return "an image offset for bytes that are not in the image"
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
    pieces: Iterable[Piece], read: Callable[[int, int], bytes], *, step_bytes: int
) -> Iterator[bytes]:
    """Yield the file's bytes in order, at most ``step_bytes`` at once; ``read`` reads the image."""
    zeros = b""
    for piece in pieces:
        for start in range(0, piece.length, step_bytes):
            length = min(step_bytes, piece.length - start)
            if piece.kind is PieceKind.DATA:
                yield read(piece.image_offset + start, length)
            elif piece.kind is PieceKind.LITERAL:
                yield piece.literal[start : start + length]
            else:
                zeros = zeros if len(zeros) == length else bytes(length)
                yield zeros


def _of_run(run: Run, overlay: Overlay | None) -> Iterator[Piece]:
    """Yield a run's pieces; blocks that the overlay replaces become literals."""
    if run.image_offset is None:
        yield Piece(PieceKind.ZERO, run.file_offset, run.length)
        return
    at, end = run.image_offset, run.image_offset + run.length
    shift = run.file_offset - run.image_offset
    if overlay and overlay.blocks:
        first = bisect_left(overlay.blocks, (at - overlay.image_offset) // overlay.block_bytes)
        for block in overlay.blocks[first:]:
            start = max(at, overlay.image_offset + block * overlay.block_bytes)
            stop = min(end, overlay.image_offset + (block + 1) * overlay.block_bytes)
            if start >= end:
                break
            if start > at:
                yield Piece(PieceKind.DATA, at + shift, start - at, at)
            yield Piece(
                PieceKind.LITERAL, start + shift, stop - start, literal=overlay.read(start, stop - start)
            )
            at = stop
    if at < end:
        yield Piece(PieceKind.DATA, at + shift, end - at, at)


def _append(pieces: list[Piece], piece: Piece) -> None:
    """Append, or grow the last piece where both are of one kind and lie together."""
    if pieces and (last := pieces[-1]).kind is piece.kind:
        assert last.file_offset + last.length == piece.file_offset, "P1"
        length = last.length + piece.length
        together = last.image_offset + last.length == piece.image_offset
        if (
            piece.kind is PieceKind.ZERO
            or (piece.kind is PieceKind.DATA and together)
            or (piece.kind is PieceKind.LITERAL and length <= LITERAL_BYTES_MAX)
        ):
            literal = last.literal + piece.literal
            pieces[-1] = Piece(piece.kind, last.file_offset, length, last.image_offset, literal)
            return
    if len(pieces) >= PIECES_MAX:
        raise WrongState(f"the file lies in more than {PIECES_MAX} pieces")
    pieces.append(piece)
