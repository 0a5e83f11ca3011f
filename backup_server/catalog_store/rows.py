"""Rows of the catalog: packed from a walk's batches, unpacked into entries. Pure.

Invariants: R1 the digest of a row covers all that is told of a file but its name and the time of access:
two rows of one path with the same digest are one version. R2 pieces name disks by the catalog's number of a
disk name, the same whatever the order of disks in a backup.
Format: docs/formats/catalog-db-v1.md
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from backup_server.catalog.batch import Batch, split_attributes
from backup_server.catalog.entry import FileEntry
from backup_server.catalog.frames import printable, to_text
from backup_server.catalog.pieces import Piece, PieceKind

PACKED = np.dtype([("kind", "u1"), ("disk", "<u4"), ("offset", "<u8"), ("length", "<u8")])
_COUNT = struct.Struct("<I")
_EXTRA = struct.Struct("<HH")
DIGEST_BYTES = 16

_INTEGERS = (
    "mode", "uid", "gid", "links", "major", "minor", "size", "inode", "modified", "changed", "accessed",
    "created",
)  # fmt: skip


class CatalogState(IntEnum):
    """Numbers are those of the proto."""

    WAITING = 1
    DONE = 2
    FAILED = 3
    OFF = 4


@dataclass(frozen=True, slots=True)
class StoredBackup:
    """A backup as the catalog knows it; ``disks`` are names in the order of its pieces."""

    backup_id: str
    vm_id: str
    vm_name: str
    at_ns: int
    state: CatalogState
    problem: str
    disks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StoredVolume:
    """A volume in one backup. ``whole``: every file is in the catalog; what is not there was not."""

    name: str
    kind: str
    label: str
    uuid: str
    size_bytes: int
    readable: bool
    remark: str
    file_count: int
    walked: bool
    whole: bool


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file as one backup has it; the disks of ``pieces`` are numbered as that backup lists them.

    ``file_id`` is the same in every backup in which nothing of the file changed (mostly: R1 decides).
    """

    file_id: int
    entry: FileEntry
    pieces: tuple[Piece, ...]
    digest: bytes


def pack(batch: Batch, disk_ids: Sequence[int]) -> Iterator[tuple[object, ...]]:
    """Yield for each record the integers of a row (``_INTEGERS``), digest, extra and pieces."""
    records, pieces = batch.records, batch.pieces
    packed = np.zeros(len(pieces), PACKED)
    for field in ("kind", "offset", "length"):
        packed[field] = pieces[field]
    if len(pieces):
        numbers = np.array(disk_ids, np.uint32)[pieces["disk"]]
        packed["disk"] = np.where(pieces["kind"] == PieceKind.DATA, numbers, 0)  # R2
    lean = records.copy()
    for field in ("parent", "directory", "accessed"):
        lean[field] = 0
    heads, tails = lean.tobytes(), packed.tobytes()
    counts = records["pieces"].tolist()
    ends = pairwise(accumulate(counts, initial=0))
    shares = (batch.split(heap) for heap in ("target", "flaw", "attribute", "literal"))
    size, inode = (records[field].astype(np.int64).tolist() for field in ("size", "inode"))
    columns = [
        size if name == "size" else inode if name == "inode" else records[name].tolist() for name in _INTEGERS
    ]
    width = records.itemsize
    rows = zip(zip(*columns, strict=True), counts, ends, *shares, strict=True)
    for index, (row, count, (start, end), target, flaw, attribute, literal) in enumerate(rows):
        extra = None
        if target or flaw or attribute:
            extra = _EXTRA.pack(len(target), len(flaw)) + target + flaw + attribute
        blob = None
        if count:
            blob = _COUNT.pack(count) + tails[start * PACKED.itemsize : end * PACKED.itemsize] + literal
        digest = hashlib.blake2b(heads[index * width : (index + 1) * width], digest_size=DIGEST_BYTES)
        digest.update((extra or b"") + (blob or b""))  # R1: the record says how long each share is
        yield (*row, digest.digest(), extra, blob)


def unpack_pieces(blob: bytes | None, places: Mapping[int, int]) -> tuple[Piece, ...]:
    """Return a row's pieces; ``places``: catalog's number of a disk to its place in the backup."""
    if not blob:
        return ()
    (count,) = _COUNT.unpack_from(blob)
    at = _COUNT.size + count * PACKED.itemsize
    found = []
    for kind, disk, offset, length in np.frombuffer(blob, PACKED, count, _COUNT.size).tolist():
        if kind == PieceKind.DATA:
            found.append(Piece(PieceKind.DATA, length, places[disk], offset))
        elif kind == PieceKind.LITERAL:
            found.append(Piece(PieceKind.LITERAL, length, literal=blob[at : at + length]))
            at += length
        else:
            found.append(Piece(PieceKind.ZERO, length))
    return tuple(found)


def unpack_entry(path: str, row: Sequence[Any]) -> FileEntry:
    """Make an entry of ``_INTEGERS`` and ``extra``."""
    *integers, extra = row
    mode, uid, gid, links, major, minor, size, inode, modified, changed, accessed, created = integers
    target = flaw = attribute = b""
    if extra is not None:
        target_bytes, flaw_bytes = _EXTRA.unpack_from(extra)
        at = _EXTRA.size
        middle, end = at + target_bytes, at + target_bytes + flaw_bytes
        target, flaw, attribute = extra[at:middle], extra[middle:end], extra[end:]
    return FileEntry(
        path=path,
        name=path.rpartition("/")[2],
        size_bytes=size,
        mode=mode,
        uid=uid,
        gid=gid,
        modified_at_ns=modified,
        link_target=to_text(target),
        changed_at_ns=changed,
        accessed_at_ns=accessed,
        created_at_ns=created,
        inode=inode & ((1 << 64) - 1),
        link_count=links,
        device=(major, minor),
        attributes=tuple(split_attributes(attribute)),
        flaw=printable(flaw),
    )
