"""Records of a transfer's log.

Owns: the byte layout; no I/O here.
Invariants:
  X1 a record's checksum is seeded with its place in the file: a moved record is damaged.
  X2 what decodes is what was encoded, or Corruption.
Callers: any thread. Format: docs/formats/transfer-log-v1.md
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from arraylift.durable import Buffer
from arraylift.envelope import canonical_json
from arraylift.errors import Corruption, InvalidRequest, WrongState
from arraylift.ids import Fingerprint, ImageId, SourceState, TenantId, TransferId, check_id
from arraylift.segments.segmentation import Segmentation
from dedup_target.manifest_format import (
    segmentation_fields,
    segmentation_from,
    source_state_fields,
    source_state_from,
)

MAGIC = b"ALTRLOG1"
VERSION = 1
RECORD_MAGIC = b"ALtr"
RECORD_BYTES_MAX = 8 << 20
"""Far above any batch; a longer length is damage."""

_FILE_HEAD = struct.Struct("<8sHHI")
_CHECKSUM = struct.Struct("<Q")
FILE_HEADER_BYTES = _FILE_HEAD.size + _CHECKSUM.size
_RECORD_HEAD = struct.Struct("<4sB3xIQ")
RECORD_HEADER_BYTES = _RECORD_HEAD.size
_LEAVES_HEAD = struct.Struct("<III")

U32 = npt.NDArray[np.uint32]


class RecordType(IntEnum):
    GRANT = 1
    ATTEMPT = 2
    LEAVES = 3
    VOIDED = 4
    COMMITTED = 5
    SYNCED = 6
    """Written after each sync: whatever stands before it was durable, so damage there is no tear."""


@dataclass(frozen=True, slots=True)
class GrantParameters:
    """What CreateGrant was asked for. The grant itself is derived, never stored."""

    transfer_id: TransferId
    peer: str
    tenant: TenantId
    tenant_name: str
    image_name: str
    base_image_id: ImageId | None
    base_root: Fingerprint | None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of the transfer; size, segmentation and source state are those of the first."""

    attempt: int
    image_bytes: int
    segmentation: Segmentation
    source_state: SourceState | None


@dataclass(frozen=True, slots=True)
class CommittedTransfer:
    """The receipt, to answer a repeated Commit."""

    root: Fingerprint
    image_id: ImageId
    receipt: dict[str, int]


@dataclass(frozen=True, slots=True)
class LoggedLeaves:
    """Leaves of n spans with m segments in all, and k runs of zero spans."""

    spans: U32
    """(n,) span indexes."""
    counts: npt.NDArray[np.uint16]
    """(n,) segments of each span."""
    lengths: U32
    """(m,) plain bytes of each segment."""
    fingerprints: Buffer
    """32 m bytes."""
    leaf_fingerprints: Buffer
    """32 n bytes."""
    hole_runs: U32
    """(k, 2) first span and count."""


class Record(NamedTuple):
    """One whole record of a log."""

    offset: int
    type: RecordType
    body: bytes
    end: int


def encode_file_header() -> bytes:
    """The first 24 bytes of a log."""
    head = _FILE_HEAD.pack(MAGIC, VERSION, 0, 0)
    return head + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(head))


def check_file_header(data: bytes, what: str) -> None:
    """Raises Corruption, WrongState for a newer format."""
    if len(data) < FILE_HEADER_BYTES or data[:8] != MAGIC:
        raise log_damaged(what, "it does not begin like a transfer log")
    if _CHECKSUM.unpack_from(data, _FILE_HEAD.size)[0] != xxhash.xxh3_64_intdigest(data[: _FILE_HEAD.size]):
        raise log_damaged(what, "the checksum of its header does not match")
    _, version, reserved, flags = _FILE_HEAD.unpack_from(data)
    if (version, reserved, flags) != (VERSION, 0, 0):
        raise WrongState(
            f"{what} has format version {version}, feature flags {flags:#x}; this release reads version 1",
            subject=what,
            next_step="use the release that wrote it",
        )


def encode_record(kind: RecordType, body: bytes, offset: int) -> bytes:
    """Return the record as it stands at ``offset`` (X1)."""
    assert len(body) <= RECORD_BYTES_MAX
    return _RECORD_HEAD.pack(RECORD_MAGIC, kind, len(body), _checksum(kind, body, offset)) + body


def record_end(head: bytes, offset: int) -> int | None:
    """Where the record whose header this is would end; None if this is no header."""
    if len(head) < RECORD_HEADER_BYTES:
        return None
    magic, kind, length, _ = _RECORD_HEAD.unpack_from(head)
    known = magic == RECORD_MAGIC and kind in RecordType.__members__.values() and length <= RECORD_BYTES_MAX
    return offset + RECORD_HEADER_BYTES + length if known and head[5:8] == bytes(3) else None


def decode_record(data: bytes, offset: int) -> Record | None:
    """Return the record that ``data``, taken at ``offset``, is; None if it is not whole (X1)."""
    end = record_end(data, offset)
    if end is None or end != offset + len(data):
        return None
    _, kind, _, checksum = _RECORD_HEAD.unpack_from(data)
    body = data[RECORD_HEADER_BYTES:]
    if checksum != _checksum(kind, body, offset):
        return None
    return Record(offset, RecordType(kind), body, end)


def _checksum(kind: int, body: bytes, offset: int) -> int:
    state = xxhash.xxh3_64(struct.pack("<BI", kind, len(body)), seed=offset)
    state.update(body)
    return state.intdigest()


def log_damaged(what: str, why: str) -> Corruption:
    """The error for a log that cannot be trusted."""
    return Corruption(
        f"{what} is damaged: {why}",
        subject=what,
        next_step="revoke that transfer and back the image up again; committed images are not affected",
    )


# -- leaves -------------------------------------------------------------------------------------


def encode_leaves(leaves: LoggedLeaves) -> bytes:
    """Return the body of a LEAVES record."""
    spans, segments, runs = len(leaves.spans), len(leaves.lengths), leaves.hole_runs.size // 2
    assert len(leaves.leaf_fingerprints) == 32 * spans
    assert len(leaves.fingerprints) == 32 * segments
    assert int(leaves.counts.sum(dtype=np.uint64)) == segments
    return b"".join(
        (
            _LEAVES_HEAD.pack(spans, segments, runs),
            leaves.spans.astype("<u4").tobytes(),
            leaves.leaf_fingerprints,
            leaves.counts.astype("<u2").tobytes(),
            leaves.lengths.astype("<u4").tobytes(),
            leaves.fingerprints,
            leaves.hole_runs.astype("<u4").tobytes(),
        )
    )


def decode_leaves(body: bytes, what: str) -> LoggedLeaves:
    """Decode the body of a LEAVES record; the parts are views of it. Raises Corruption (X2)."""
    if len(body) < _LEAVES_HEAD.size:
        raise log_damaged(what, "a record of leaves is shorter than its head")
    spans, segments, runs = _LEAVES_HEAD.unpack_from(body)
    view, at, parts = memoryview(body), _LEAVES_HEAD.size, []
    for size in (4 * spans, 32 * spans, 2 * spans, 4 * segments, 32 * segments, 8 * runs):
        parts.append(view[at : at + size])
        at += size
    if at != len(body):
        raise log_damaged(what, "a record of leaves does not have the length of its parts")
    leaves = LoggedLeaves(
        spans=np.frombuffer(parts[0], dtype="<u4"),
        counts=np.frombuffer(parts[2], dtype="<u2"),
        lengths=np.frombuffer(parts[3], dtype="<u4"),
        fingerprints=parts[4],
        leaf_fingerprints=parts[1],
        hole_runs=np.frombuffer(parts[5], dtype="<u4").reshape(-1, 2),
    )
    if int(leaves.counts.sum(dtype=np.uint64)) != segments:
        raise log_damaged(what, "a record of leaves does not add up")
    return leaves


# -- the rest is JSON ---------------------------------------------------------------------------


def encode_grant(grant: GrantParameters) -> bytes:
    """Return the body of a GRANT record."""
    return canonical_json(
        {
            "base_image_id": grant.base_image_id,
            "base_root": None if grant.base_root is None else grant.base_root.hex(),
            "image_name": grant.image_name,
            "peer": grant.peer,
            "tenant": f"{grant.tenant:016x}",
            "tenant_name": grant.tenant_name,
            "transfer_id": grant.transfer_id,
        }
    )


def encode_attempt(attempt: Attempt) -> bytes:
    """Return the body of an ATTEMPT record."""
    state = attempt.source_state
    return canonical_json(
        {
            "attempt": attempt.attempt,
            "image_bytes": attempt.image_bytes,
            "segmentation": segmentation_fields(attempt.segmentation),
            "source_state": None if state is None else source_state_fields(state),
        }
    )


def encode_committed(committed: CommittedTransfer) -> bytes:
    """Return the body of a COMMITTED record."""
    return canonical_json(
        {"image_id": committed.image_id, "receipt": committed.receipt, "root": committed.root.hex()}
    )


def decode_json(record: Record, what: str) -> GrantParameters | Attempt | CommittedTransfer:
    """Decode a GRANT, ATTEMPT or COMMITTED record. Raises Corruption (X2)."""
    try:
        fields = json.loads(record.body)
        if record.type is RecordType.GRANT:
            return _grant(fields)
        if record.type is RecordType.ATTEMPT:
            return _attempt(fields)
        assert record.type is RecordType.COMMITTED
        return CommittedTransfer(
            Fingerprint(bytes.fromhex(fields["root"])),
            ImageId(check_id(fields["image_id"], "image id")),
            {str(name): int(value) for name, value in fields["receipt"].items()},
        )
    except (ValueError, TypeError, KeyError, AttributeError, InvalidRequest) as error:
        raise log_damaged(what, f"a record of type {record.type} makes no sense: {error}") from error


def _grant(fields: dict[str, Any]) -> GrantParameters:
    base, root = fields["base_image_id"], fields["base_root"]
    return GrantParameters(
        TransferId(check_id(fields["transfer_id"], "transfer id")),
        str(fields["peer"]),
        TenantId(int(fields["tenant"], 16)),
        str(fields["tenant_name"]),
        str(fields["image_name"]),
        None if base is None else ImageId(check_id(base, "base image id")),
        None if root is None else Fingerprint(bytes.fromhex(root)),
    )


def _attempt(fields: dict[str, Any]) -> Attempt:
    state = fields["source_state"]
    return Attempt(
        int(fields["attempt"]),
        int(fields["image_bytes"]),
        segmentation_from(fields["segmentation"]),
        None if state is None else source_state_from(state),
    )
