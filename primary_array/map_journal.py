"""The journal of a pool's map: one file of framed events.

Owns: the bytes of journal-<n>.alj.
Invariants:
  J1 a frame is appended only when all frames before it are synced. So a valid
     frame behind a damaged one proves that the damaged one was whole once:
     Corruption. Damage with nothing valid behind it is a torn tail.
  J2 sequence numbers of frames rise by one, through all journals of a pool.
  J3 a frame counts whole or not at all.
  J4 the header is published with the file: a journal without one is Corruption.
Callers: map_commit under the commit lock; pool_open before other threads exist.
Format: docs/formats/pool-v2.md. Why: docs/decisions/0003-map-journal.md.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import xxhash

from arraylift.durable import AppendFile, Files
from arraylift.errors import Corruption
from arraylift.ids import PoolId
from arraylift.sizes import MIB
from primary_array.superblock import Layout

LABEL = "journal"
MAGIC = b"AL-POOLJ"
FRAME_MAGIC = b"ALJF"
VERSION = 2
VERSIONS_READ = (1, 2)
"""Version 1 knew fewer events."""
ALGORITHM_XXH3_64 = 1
FRAME_PAYLOAD_BYTES_MAX = 16 * MIB

_HEADER = struct.Struct("<8sHHI16sQ")  # magic, version, algorithm, reserved 0, pool id, number
_FRAME = struct.Struct("<4sIQ")  # magic, payload bytes, sequence
_CHECKSUM = struct.Struct("<Q")
HEADER_BYTES = _HEADER.size + _CHECKSUM.size
FRAME_BYTES = _FRAME.size + _CHECKSUM.size


@dataclass(frozen=True, slots=True)
class Frame:
    """One commit."""

    sequence: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Scan:
    """What a journal file holds: its frames, and where the good part ends."""

    frames: list[Frame]
    good_bytes: int
    torn_bytes: int


class MapJournal:
    """The journal that frames go to now. ``sequence`` is that of the last frame of the pool."""

    def __init__(self, log: AppendFile, number: int, sequence: int) -> None:
        self._log = log
        self.number = number
        self.sequence = sequence

    @classmethod
    def create(
        cls, files: Files, layout: Layout, *, pool_id: PoolId, number: int, sequence: int
    ) -> MapJournal:
        """Make journal ``number``, empty; an empty one that is there already is replaced (J4)."""
        path = layout.journal(number)
        files.publish(path, [encode_header(pool_id, number)], label=LABEL)
        return cls(files.append_file(path, label=LABEL), number, sequence)

    @property
    def size_bytes(self) -> int:
        return self._log.size

    def append(self, payload: bytes) -> None:
        """Add one frame and make it durable (J1). Raises OutOfSpace (nothing changed), StoreFailed."""
        assert 0 < len(payload) <= FRAME_PAYLOAD_BYTES_MAX
        self._log.append(encode_frame(self.sequence + 1, payload))
        self._log.sync()
        self.sequence += 1

    def close(self) -> None:
        self._log.close()


def encode_header(pool_id: PoolId, number: int, version: int = VERSION) -> bytes:
    head = _HEADER.pack(MAGIC, version, ALGORITHM_XXH3_64, 0, bytes.fromhex(pool_id), number)
    return head + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(head))


def encode_frame(sequence: int, payload: bytes) -> bytes:
    head = _FRAME.pack(FRAME_MAGIC, len(payload), sequence)
    return b"".join([head, _CHECKSUM.pack(_frame_checksum(head, payload)), payload])


def scan(data: bytes, *, pool_id: PoolId, number: int, path: str) -> Scan:
    """Parse a whole journal file. Raises Corruption (J1, J2, J4)."""
    if data[:HEADER_BYTES] not in [encode_header(pool_id, number, version) for version in VERSIONS_READ]:
        raise Corruption(
            f"{path} is not journal {number} of pool {pool_id}",
            subject=path,
            next_step="restore the file from a copy of this pool; nothing was changed",
        )
    frames: list[Frame] = []
    at = HEADER_BYTES
    while (frame := _frame_at(data, at)) is not None:
        if frames and frame.sequence != frames[-1].sequence + 1:
            raise Corruption(f"{path} lacks the frame before {frame.sequence}", subject=path)
        frames.append(frame)
        at += FRAME_BYTES + len(frame.payload)
    for position in _magics(data, at + 1):
        if _frame_at(data, position) is not None:
            raise Corruption(
                f"{path} is damaged at byte {at}, before its end",
                subject=path,
                next_step="restore the file from a copy of this pool; nothing was changed",
            )
    return Scan(frames, at, len(data) - at)


def _frame_at(data: bytes, at: int) -> Frame | None:
    """Return the valid frame at ``at``, if there is one."""
    start = at + FRAME_BYTES
    if start > len(data):
        return None
    magic, length, sequence = _FRAME.unpack_from(data, at)
    if magic != FRAME_MAGIC or not 0 < length <= FRAME_PAYLOAD_BYTES_MAX or start + length > len(data):
        return None
    payload = data[start : start + length]
    (checksum,) = _CHECKSUM.unpack_from(data, at + _FRAME.size)
    if checksum != _frame_checksum(data[at : at + _FRAME.size], payload):
        return None
    return Frame(sequence, payload)


def _frame_checksum(head: bytes, payload: bytes) -> int:
    digest = xxhash.xxh3_64(head)
    digest.update(payload)
    return digest.intdigest()


def _magics(data: bytes, at: int) -> Iterator[int]:
    while (at := data.find(FRAME_MAGIC, at)) >= 0:
        yield at
        at += 1
