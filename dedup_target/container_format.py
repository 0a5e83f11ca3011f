"""Layout of a container: header, frames, directory.

Owns: the byte layout; no I/O here.
Invariants:
  F1 a frame's table and the directory hold the same records, with offsets counted
     from the start of the container, so the frames alone give the directory back.
  F2 header page, frame table, directory and each record's stored bytes have a
     checksum of their own; what does not match is never returned.
  F3 header and frames name container, tenant and key: a misplaced piece is noticed.
Callers: any thread. Format: docs/formats/container-v1.md
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from arraylift.durable import DIRECT_ALIGNMENT, Buffer
from arraylift.errors import Corruption, WrongState
from arraylift.ids import ContainerId, KeyId, TenantId, UnitId

MAGIC = b"ALCONTNR"
FRAME_MAGIC = b"ALfr"
VERSION = 1
CIPHER_NONE = 0

RECORD = np.dtype(
    [
        ("fingerprint", "V32"),
        ("offset", "<u4"),
        ("stored_bytes", "<u4"),
        ("plain_bytes", "<u4"),
        ("codec", "u1"),
        ("pad", "V3"),
        ("checksum", "<u8"),
    ]
)
"""One record, as frame tables and directories hold it: 56 bytes, little-endian."""

Directory = npt.NDArray[Any]
"""Shape (records,), dtype RECORD, offsets ascending; the index in it is the record's slot."""

HEADER_BYTES = 4096
RECORD_BYTES = RECORD.itemsize
RECORDS_MAX = 32 * 1024
"""Bounds the directory to 1.75 MiB, and a slot to 15 bits; only tiny records come near it."""

_HEADER = struct.Struct("<8sHBBIQ16sQ8sIIQQQQ")
_CHECKSUM = struct.Struct("<Q")
_FRAME = struct.Struct("<4sHBBQ8sQIIQQ")
FRAME_HEADER_BYTES = _FRAME.size + _CHECKSUM.size

assert RECORD_BYTES == 56
assert FRAME_HEADER_BYTES == 64


class Kind(IntEnum):
    """What a container holds; data and nodes never mix."""

    DATA = 1
    NODES = 2


@dataclass(frozen=True, slots=True)
class ContainerHeader:
    """The first page of a container. Sizes in bytes, offsets from the start of the file."""

    unit_id: UnitId
    container_id: ContainerId
    kind: Kind
    tenant: TenantId
    key_id: KeyId
    record_count: int
    codecs: int
    """Bit i: codec i occurs."""
    directory_offset: int
    file_bytes: int
    directory_checksum: int


@dataclass(frozen=True, slots=True)
class SealedContainer:
    """What the index must know of a container."""

    container_id: ContainerId
    kind: Kind
    tenant: TenantId
    key_id: KeyId
    directory: Directory
    file_bytes: int
    damage: str = ""
    """Not empty: the directory was rebuilt from frames; says what is wrong."""
    kept: npt.NDArray[np.bool_] | None = None
    """Which slots the directory still has, where rows were left out; None: all."""

    @property
    def slot_count(self) -> int:
        """Records of the container, left out or not."""
        return len(self.directory) if self.kept is None else len(self.kept)

    @property
    def slots(self) -> npt.NDArray[np.intp]:
        """The slot of each row of the directory."""
        return np.arange(len(self.directory)) if self.kept is None else np.flatnonzero(self.kept)


@dataclass(frozen=True, slots=True)
class FrameScan:
    """What the frames of a damaged container still tell."""

    directory: Directory
    kind: Kind
    tenant: TenantId
    key_id: KeyId
    end: int
    """Offset behind the last whole frame."""
    skipped_bytes: int
    """Between whole frames; their records are lost."""


def subject_of(container_id: int) -> str:
    """How errors and logs name a container; its file name without the suffix."""
    return f"container {container_id:016x}"


def damaged(container_id: int, why: str) -> Corruption:
    """The error for any damage inside a container."""
    return Corruption(
        f"{subject_of(container_id)} is damaged: {why}",
        subject=subject_of(container_id),
        next_step="run 'arraylift target scrub'; the next backup of that data sends it again",
    )


def page_up(size: int) -> int:
    """Round up to what O_DIRECT wants."""
    return -(-size // DIRECT_ALIGNMENT) * DIRECT_ALIGNMENT


# -- header -------------------------------------------------------------------------------------


def encode_header(header: ContainerHeader) -> bytes:
    """Return the 4096-byte header page, checksum included (F2)."""
    page = bytearray(HEADER_BYTES)
    _HEADER.pack_into(
        page,
        0,
        MAGIC,
        VERSION,
        header.kind,
        CIPHER_NONE,
        0,
        header.container_id,
        bytes.fromhex(header.unit_id),
        header.tenant,
        header.key_id,
        header.record_count,
        header.codecs,
        header.directory_offset,
        header.record_count * RECORD_BYTES,
        header.file_bytes,
        header.directory_checksum,
    )
    body = memoryview(page)[: HEADER_BYTES - _CHECKSUM.size]
    _CHECKSUM.pack_into(page, len(body), xxhash.xxh3_64_intdigest(body))
    return bytes(page)


def decode_header(page: Buffer, container_id: ContainerId) -> ContainerHeader:
    """Decode the header page of the container that ought to be ``container_id``.

    Raises Corruption (F2, F3), WrongState for a format that this release does not read.
    """
    if len(page) < HEADER_BYTES or bytes(page[: len(MAGIC)]) != MAGIC:
        raise damaged(container_id, "its header does not begin like one")
    head = _HEADER.unpack_from(page)
    version, kind, cipher, flags, number, unit, tenant, key_id = head[1:9]
    count, codecs, at, length, total, directory_checksum = head[9:]
    (checksum,) = _CHECKSUM.unpack_from(page, HEADER_BYTES - _CHECKSUM.size)
    whole = checksum == xxhash.xxh3_64_intdigest(page[: HEADER_BYTES - _CHECKSUM.size])
    if not whole:
        raise damaged(container_id, "the checksum of its header does not match")
    if version != VERSION or flags or cipher != CIPHER_NONE or kind not in (Kind.DATA, Kind.NODES):
        raise WrongState(
            f"{subject_of(container_id)} has version {version}, flags {flags:#x}, cipher {cipher}, "
            f"kind {kind}; this release reads version 1 without flags or cipher",
            subject=subject_of(container_id),
            next_step="use the release that wrote it",
        )
    if number != container_id:
        raise damaged(container_id, f"its header says {number:016x}")
    if length != count * RECORD_BYTES or total != page_up(at + length) or count > RECORDS_MAX:
        raise damaged(container_id, "its header contradicts itself")
    return ContainerHeader(
        unit_id=UnitId(unit.hex()),
        container_id=container_id,
        kind=Kind(kind),
        tenant=TenantId(tenant),
        key_id=KeyId(key_id),
        record_count=count,
        codecs=codecs,
        directory_offset=at,
        file_bytes=total,
        directory_checksum=directory_checksum,
    )


# -- directory ----------------------------------------------------------------------------------


def decode_directory(data: Buffer, header: ContainerHeader) -> Directory:
    """Return a read-only directory. Raises Corruption (F2)."""
    if len(data) != header.record_count * RECORD_BYTES:
        raise damaged(header.container_id, "its directory is cut short")
    if xxhash.xxh3_64_intdigest(data) != header.directory_checksum:
        raise damaged(header.container_id, "the checksum of its directory does not match")
    directory = np.frombuffer(bytes(data), dtype=RECORD)
    ends = directory["offset"].astype(np.uint64) + directory["stored_bytes"]
    outside = (directory["offset"] < HEADER_BYTES) | (ends > header.directory_offset)
    if outside.any():
        raise damaged(header.container_id, "its directory points outside its frames")
    return directory


# -- frames -------------------------------------------------------------------------------------


def encode_frame_header(
    *,
    container_id: int,
    kind: Kind,
    tenant: int,
    key_id: bytes,
    offset: int,
    table: Buffer,
    payload_bytes: int,
) -> bytes:
    """Return the 64 bytes before ``table``; ``offset`` is where the frame begins (F1, F3)."""
    count = len(table) // RECORD_BYTES
    head = _FRAME.pack(
        FRAME_MAGIC, VERSION, kind, 0, tenant, key_id, container_id, count, payload_bytes, offset, 0
    )
    state = xxhash.xxh3_64(head)
    state.update(table)
    return head + _CHECKSUM.pack(state.intdigest())


def scan_frames(data: memoryview, container_id: ContainerId) -> FrameScan:
    """Rebuild the directory of a container whose header or directory is damaged (F1).

    Frames that are themselves damaged are skipped. Raises Corruption if none is whole.
    """
    tables: list[Directory] = []
    at = end = HEADER_BYTES
    skipped = 0
    found: tuple[Kind, TenantId, KeyId] | None = None
    raw = data.obj if isinstance(data.obj, bytes) and len(data.obj) == len(data) else bytes(data)
    while True:
        frame = _frame_at(data, at, container_id)
        if frame is None:
            at = raw.find(FRAME_MAGIC, at + 1)
            if at < 0:
                break
            continue
        identity, table, behind = frame
        if found not in (None, identity):
            raise damaged(container_id, "its frames belong to different tenants")
        found = identity
        tables.append(table)
        skipped += at - end
        at = end = behind
    if found is None:
        raise damaged(container_id, "neither its directory nor any frame is whole")
    return FrameScan(np.concatenate(tables), *found, end, skipped)


def _frame_at(
    data: memoryview, at: int, container_id: ContainerId
) -> tuple[tuple[Kind, TenantId, KeyId], Directory, int] | None:
    """Decode the frame at ``at``: (identity, table, end), or None if there is no whole one."""
    if at + FRAME_HEADER_BYTES > len(data):
        return None
    magic, version, kind, flags, tenant, key_id, number, count, payload, offset, _ = _FRAME.unpack_from(
        data, at
    )
    table_at = at + FRAME_HEADER_BYTES
    payload_at = table_at + count * RECORD_BYTES
    if (magic, version, flags, number, offset) != (FRAME_MAGIC, VERSION, 0, container_id, at):
        return None
    if kind not in (Kind.DATA, Kind.NODES) or count > RECORDS_MAX or payload_at + payload > len(data):
        return None
    state = xxhash.xxh3_64(data[at : at + _FRAME.size])
    state.update(data[table_at:payload_at])
    if _CHECKSUM.unpack_from(data, at + _FRAME.size)[0] != state.intdigest():
        return None
    table = np.frombuffer(bytes(data[table_at:payload_at]), dtype=RECORD)
    return (Kind(kind), TenantId(tenant), KeyId(key_id)), table, payload_at + payload
