"""The frames between the parser's process and its parent. Pure.

A frame is kind (u8), payload length (u32, big-endian), payload. Parent to parser: one ASK, then BYTES
for every READ. Parser to parent: READ, ENTRY, PIECES, LITERAL, and as the last one DONE or FAILED.
Invariants: F1 no frame passes PAYLOAD_BYTES_MAX. F2 decoding raises ValueError for what has no such
shape; it does not judge values, which sandbox does.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from enum import IntEnum

from arraylift.sizes import KIB, MIB
from backup_server.catalog.entry import FileEntry
from backup_server.catalog.pieces import Piece, PieceKind

HEADER = struct.Struct(">BI")
PAYLOAD_BYTES_MAX = MIB + KIB
"""A literal piece of the largest size, and its place."""

READ_BYTES_MAX = 64 * KIB
PATH_BYTES_MAX = 4096
NAME_BYTES_MAX = 255
MESSAGE_BYTES_MAX = 2048
PIECES_PER_FRAME = 4096


class FrameKind(IntEnum):
    ASK = 1
    BYTES = 2
    READ = 3
    ENTRY = 4
    PIECES = 5
    LITERAL = 6
    DONE = 7
    FAILED = 8


class Operation(IntEnum):
    LIST = 1
    READ_FILE = 2


_ASK = struct.Struct(">BQ")
_READ = struct.Struct(">QI")
_ENTRY = struct.Struct(">QIIIqIH")
_PIECE = struct.Struct(">BQQQ")
_LITERAL = struct.Struct(">Q")
_REASON = struct.Struct(">B")
_NS = 1_000_000_000


def frame(kind: FrameKind, payload: bytes = b"") -> bytes:
    """Return a whole frame."""
    assert len(payload) <= PAYLOAD_BYTES_MAX, "F1"
    return HEADER.pack(kind, len(payload)) + payload


def header(raw: bytes) -> tuple[FrameKind, int]:
    """Return kind and payload length of a header."""
    number, length = HEADER.unpack(raw)
    if length > PAYLOAD_BYTES_MAX:
        raise ValueError(f"a frame of {length} bytes")  # F1
    return FrameKind(number), length


def encode_ask(operation: Operation, image_bytes: int, path: bytes) -> bytes:
    return frame(FrameKind.ASK, _ASK.pack(operation, image_bytes) + path)


def decode_ask(payload: bytes) -> tuple[Operation, int, bytes]:
    operation, image_bytes = _unpack(_ASK, payload)
    return Operation(operation), image_bytes, payload[_ASK.size :]


def encode_read(offset: int, length: int) -> bytes:
    return frame(FrameKind.READ, _READ.pack(offset, length))


def decode_read(payload: bytes) -> tuple[int, int]:
    """Return (offset, length) in bytes."""
    offset, length = _unpack(_READ, payload, whole=True)
    return offset, length


def encode_entry(entry: FileEntry) -> bytes:
    name = entry.name.encode("utf-8", "surrogateescape")
    target = entry.link_target.encode("utf-8", "surrogateescape")
    seconds, nanoseconds = divmod(entry.modified_at_ns, _NS)
    fixed = _ENTRY.pack(entry.size_bytes, entry.mode, entry.uid, entry.gid, seconds, nanoseconds, len(name))
    return frame(FrameKind.ENTRY, fixed + name + target)


def decode_entry(payload: bytes, *, directory: str) -> FileEntry:
    """Return the entry; its path is below ``directory``, which ends in a slash."""
    size, mode, uid, gid, seconds, nanoseconds, name_bytes = _unpack(_ENTRY, payload)
    names = payload[_ENTRY.size :]
    if name_bytes > len(names) or nanoseconds >= _NS:
        raise ValueError("an entry that contradicts itself")
    name = names[:name_bytes].decode("utf-8", "surrogateescape")
    target = names[name_bytes:].decode("utf-8", "surrogateescape")
    return FileEntry(directory + name, name, size, mode, uid, gid, seconds * _NS + nanoseconds, target)


def encode_pieces(pieces: Iterable[Piece]) -> Iterator[bytes]:
    """Yield the frames of a file's pieces, in order."""
    packed = bytearray()
    for piece in pieces:
        if piece.kind is not PieceKind.LITERAL:
            packed += _PIECE.pack(piece.kind, piece.file_offset, piece.image_offset, piece.length)
        if packed and (piece.kind is PieceKind.LITERAL or len(packed) >= PIECES_PER_FRAME * _PIECE.size):
            yield frame(FrameKind.PIECES, bytes(packed))
            packed.clear()
        if piece.kind is PieceKind.LITERAL:
            yield frame(FrameKind.LITERAL, _LITERAL.pack(piece.file_offset) + piece.literal)
    if packed:
        yield frame(FrameKind.PIECES, bytes(packed))


def decode_pieces(payload: bytes) -> list[Piece]:
    if not payload or len(payload) % _PIECE.size:
        raise ValueError("pieces that are not whole")
    pieces = []
    for number, file_offset, image_offset, length in _PIECE.iter_unpack(payload):
        kind = PieceKind(number)
        if kind is PieceKind.LITERAL:
            raise ValueError("a literal without its bytes")
        pieces.append(Piece(kind, file_offset, length, image_offset))
    return pieces


def decode_literal(payload: bytes) -> Piece:
    (file_offset,) = _unpack(_LITERAL, payload)
    content = payload[_LITERAL.size :]
    return Piece(PieceKind.LITERAL, file_offset, len(content), literal=content)


def encode_failed(reason: int, message: str) -> bytes:
    text = message.encode("utf-8", "backslashreplace")[:MESSAGE_BYTES_MAX]
    return frame(FrameKind.FAILED, _REASON.pack(reason) + text)


def decode_failed(payload: bytes) -> tuple[int, str]:
    """Return the number of the reason, and text that is safe to show."""
    (reason,) = _unpack(_REASON, payload)
    text = payload[_REASON.size : _REASON.size + MESSAGE_BYTES_MAX].decode("utf-8", "replace")
    return reason, "".join(mark if mark.isprintable() else "?" for mark in text)


def _unpack(layout: struct.Struct, payload: bytes, *, whole: bool = False) -> tuple[int, ...]:
    if len(payload) < layout.size or (whole and len(payload) != layout.size):
        raise ValueError(f"a payload of {len(payload)} bytes")
    return layout.unpack_from(payload)
