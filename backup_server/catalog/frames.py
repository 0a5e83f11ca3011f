"""The frames between the parser's process and its parent. Pure.

A frame is kind (u8), payload length (u32, big-endian), payload. Parent to parser: one ASK, then BYTES
for every READ. Parser to parent: READ, VOLUME, BATCH, UNREAD, and as the last one DONE or FAILED.
Invariants: F1 no frame passes PAYLOAD_BYTES_MAX. F2 decoding raises ValueError for what has no such
shape; it does not judge values, which sandbox and batch do.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from arraylift.sizes import MIB
from backup_server.catalog.entry import Volume

HEADER = struct.Struct(">BI")
PAYLOAD_BYTES_MAX = 9 * MIB
"""A batch of one file in as many pieces as can be."""

READ_BYTES_MAX = MIB
PATH_BYTES_MAX = 4096
NAME_BYTES_MAX = 255 * 3 * 2 + 1
"""255 characters of UTF-16, a colon and the name of a stream; where names are bytes they have 255."""

KEY_BYTES_MAX = 1024
MESSAGE_BYTES_MAX = 2048
DISKS_MAX = 1024
VOLUMES_MAX = 4096


class FrameKind(IntEnum):
    ASK = 1
    BYTES = 2
    READ = 3
    VOLUME = 4
    BATCH = 5
    UNREAD = 6
    DONE = 7
    FAILED = 8


class Operation(IntEnum):
    SURVEY = 1
    WALK = 2
    LIST = 3
    FIND = 4


@dataclass(frozen=True, slots=True)
class Ask:
    """What a parser is to do: the disks by name and size; an empty volume is for the parser to choose."""

    operation: Operation
    disks: Sequence[tuple[str, int]]
    volume: str = ""
    path: bytes = b""


_ASK = struct.Struct(">BHHH")
_ASK_DISK = struct.Struct(">QH")
_READ = struct.Struct(">HQI")
_VOLUME = struct.Struct(">Q?HHHHH")
_UNREAD = struct.Struct(">I")
_REASON = struct.Struct(">B")


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


def encode_ask(ask: Ask) -> bytes:
    volume = to_bytes(ask.volume)
    parts = [_ASK.pack(ask.operation, len(ask.disks), len(volume), len(ask.path)), volume, ask.path]
    for name, size in ask.disks:
        raw = to_bytes(name)
        parts += [_ASK_DISK.pack(size, len(raw)), raw]
    return frame(FrameKind.ASK, b"".join(parts))


def decode_ask(payload: bytes) -> Ask:
    operation, disk_count, volume_bytes, path_bytes = _unpack(_ASK, payload)
    at = _ASK.size + volume_bytes
    volume, path = payload[_ASK.size : at], payload[at : at + path_bytes]
    at += path_bytes
    disks = []
    for _ in range(disk_count):
        size, name_bytes = _unpack(_ASK_DISK, payload[at : at + _ASK_DISK.size])
        at += _ASK_DISK.size
        disks.append((to_text(payload[at : at + name_bytes]), size))
        at += name_bytes
    return Ask(Operation(operation), disks, to_text(volume), path)


def encode_read(disk: int, offset: int, length: int) -> bytes:
    return frame(FrameKind.READ, _READ.pack(disk, offset, length))


def decode_read(payload: bytes) -> tuple[int, int, int]:
    """Return (disk, offset, length in bytes)."""
    disk, offset, length = _unpack(_READ, payload, whole=True)
    return disk, offset, length


def encode_volume(volume: Volume) -> bytes:
    texts = [
        to_bytes(text)[:KEY_BYTES_MAX]
        for text in (volume.key, volume.kind, volume.label, volume.uuid, volume.remark)
    ]
    return frame(
        FrameKind.VOLUME,
        _VOLUME.pack(volume.size_bytes, volume.readable, *map(len, texts)) + b"".join(texts),
    )


def decode_volume(payload: bytes) -> Volume:
    size, readable, *lengths = _unpack(_VOLUME, payload)
    if len(payload) != _VOLUME.size + sum(lengths):
        raise ValueError("a volume that is not whole")
    texts = []
    at = _VOLUME.size
    for length in lengths:
        texts.append(printable(payload[at : at + length]))
        at += length
    key, kind, label, uuid, remark = texts
    return Volume(key, kind, label, uuid, size, bool(readable), remark)


def encode_unread(directory: int, why: str) -> bytes:
    """The walk's directory of this number could not be read whole."""
    return frame(FrameKind.UNREAD, _UNREAD.pack(directory) + to_bytes(why)[:MESSAGE_BYTES_MAX])


def decode_unread(payload: bytes) -> tuple[int, str]:
    (directory,) = _unpack(_UNREAD, payload)
    return directory, printable(payload[_UNREAD.size : _UNREAD.size + MESSAGE_BYTES_MAX])


def encode_failed(reason: int, message: str) -> bytes:
    text = message.encode("utf-8", "backslashreplace")[:MESSAGE_BYTES_MAX]
    return frame(FrameKind.FAILED, _REASON.pack(reason) + text)


def decode_failed(payload: bytes) -> tuple[int, str]:
    """Return the number of the reason, and text that is safe to show."""
    (reason,) = _unpack(_REASON, payload)
    return reason, printable(payload[_REASON.size : _REASON.size + MESSAGE_BYTES_MAX])


def to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def to_text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def printable(raw: bytes) -> str:
    """Return text that is safe to show, of bytes that are not trusted."""
    return "".join(mark if mark.isprintable() else "?" for mark in raw.decode("utf-8", "replace"))


def _unpack(layout: struct.Struct, payload: bytes, *, whole: bool = False) -> tuple[int, ...]:
    if len(payload) < layout.size or (whole and len(payload) != layout.size):
        raise ValueError(f"a payload of {len(payload)} bytes")
    return layout.unpack_from(payload)
