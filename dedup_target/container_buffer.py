"""Build one container in memory, in a page-aligned buffer that is used again and again.

Owns: the buffers. A frame costs one copy of its payload, one checksum a record and a few
vector operations; the file is written from the buffer itself, past the page cache.
Invariants:
  B1 what has been appended never moves or changes until ``begin``: records that are not
     on disk yet can be read back from here.
  B2 ``finish`` writes every byte of the container; nothing of the buffer's last use shows.
Callers: one thread at a time appends and finishes; any thread may call ``record_at`` for
records whose ``append_frame`` has returned.
Format: docs/formats/container-v1.md
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from arraylift.durable import Buffer
from arraylift.ids import ContainerId, KeyId, TenantId, UnitId
from arraylift.sizes import CONTAINER_BYTES
from dedup_target.container_format import (
    FRAME_HEADER_BYTES,
    HEADER_BYTES,
    RECORD,
    RECORD_BYTES,
    RECORDS_MAX,
    ContainerHeader,
    Directory,
    Kind,
    encode_frame_header,
    encode_header,
    page_up,
)

DIRECTORY_BYTES_MAX = page_up(RECORDS_MAX * RECORD_BYTES)

U32 = npt.NDArray[np.uint32]
Integers = npt.NDArray[Any]


class StoredRecord(NamedTuple):
    """One record as it is stored. A tuple because restores make one a segment."""

    data: memoryview
    plain_bytes: int
    codec: int


class ContainerBuffer:
    """One container in the making; ``begin`` starts the next."""

    def __init__(self, unit_id: UnitId, container_bytes: int = CONTAINER_BYTES) -> None:
        """``container_bytes`` bounds header and frames; the directory comes on top."""
        self._unit_id = unit_id
        self._container_bytes = container_bytes
        self._map = mmap.mmap(-1, container_bytes + DIRECTORY_BYTES_MAX)
        self._view = memoryview(self._map)
        self._readable = self._view.toreadonly()
        self.begin(ContainerId(0), TenantId(0), KeyId(bytes(8)), Kind.DATA)

    def begin(self, container_id: ContainerId, tenant: TenantId, key_id: KeyId, kind: Kind) -> None:
        """Start an empty container; whatever the buffer held is gone."""
        assert len(key_id) == 8
        self.container_id, self.tenant, self.key_id, self.kind = container_id, tenant, key_id, kind
        self._used = HEADER_BYTES
        self._tables: list[Directory] = []
        self._records: list[tuple[int, int, int, int]] = []
        self._codecs = 0

    @property
    def record_count(self) -> int:
        return len(self._records)

    @property
    def used_bytes(self) -> int:
        """Header and frames so far."""
        return self._used

    @property
    def file_bytes(self) -> int:
        """What the container will have when it is sealed now."""
        return page_up(self._used + len(self._records) * RECORD_BYTES)

    def fits(self, count: int, payload_bytes: int) -> bool:
        """Whether a frame of ``count`` records can still be appended."""
        frame_bytes = FRAME_HEADER_BYTES + count * RECORD_BYTES + payload_bytes
        return self._used + frame_bytes <= self._container_bytes and len(self._records) + count <= RECORDS_MAX

    def append_frame(
        self,
        *,
        fingerprints: Buffer,
        stored_bytes: Integers,
        plain_bytes: Integers,
        codecs: Integers,
        payload: Buffer | Sequence[Buffer],
    ) -> U32:
        """Append n >= 1 records and return their absolute offsets, u32 of shape (n,).

        ``fingerprints`` has 32 n bytes; ``stored_bytes``, ``plain_bytes`` and ``codecs`` shape
        (n,); ``payload`` the stored bytes one after the other, in any number of pieces. The
        caller has checked sizes, and ``fits``.
        """
        count = len(stored_bytes)
        pieces = [payload] if isinstance(payload, (bytes, bytearray, memoryview)) else payload
        payload_bytes = sum(map(len, pieces))
        assert count
        assert len(fingerprints) == 32 * count, "one fingerprint a record"
        assert int(stored_bytes.sum(dtype=np.uint64)) == payload_bytes, "lengths add up to the payload"
        assert self.fits(count, payload_bytes), "ask fits() first"
        frame_at, table_at = self._used, self._used + FRAME_HEADER_BYTES
        at = payload_at = table_at + count * RECORD_BYTES
        view = self._view
        for piece in pieces:
            view[at : at + len(piece)] = piece
            at += len(piece)
        table = np.frombuffer(self._map, dtype=RECORD, count=count, offset=table_at)
        ends = np.cumsum(stored_bytes, dtype=np.uint32) + np.uint32(payload_at)
        offsets: U32 = (ends - stored_bytes).astype(np.uint32)
        table["fingerprint"] = np.frombuffer(fingerprints, dtype="V32")
        table["offset"], table["stored_bytes"] = offsets, stored_bytes
        table["plain_bytes"], table["codec"] = plain_bytes, codecs
        table["pad"] = b""
        digest = xxhash.xxh3_64_intdigest
        starts, stops = offsets.tolist(), ends.tolist()
        table["checksum"] = [digest(view[start:stop]) for start, stop in zip(starts, stops, strict=True)]
        view[frame_at:table_at] = encode_frame_header(
            container_id=self.container_id,
            kind=self.kind,
            tenant=self.tenant,
            key_id=self.key_id,
            offset=frame_at,
            table=view[table_at:payload_at],
            payload_bytes=payload_bytes,
        )
        self._codecs |= int(np.bitwise_or.reduce(np.uint32(1) << codecs.astype(np.uint32)))
        self._used = at
        self._tables.append(table)
        self._records.extend(zip(starts, stops, table["plain_bytes"].tolist(), codecs.tolist(), strict=True))
        return offsets

    def record_at(self, number: int) -> StoredRecord:
        """Return record ``number``, counted over all frames, as a read-only view (B1)."""
        start, stop, plain_bytes, codec = self._records[number]
        return StoredRecord(self._readable[start:stop], plain_bytes, codec)

    def directory(self) -> Directory:
        """Return a copy of the records appended so far."""
        return np.concatenate(self._tables) if self._tables else np.empty(0, dtype=RECORD)

    def finish(self) -> memoryview:
        """Add directory, padding and header; return the whole container, page aligned.

        May be called again, e.g. after a write that met a full disk.
        """
        directory = self.directory().tobytes()
        end = self._used + len(directory)
        total = page_up(end)
        self._view[self._used : end] = directory
        self._view[end:total] = bytes(total - end)
        header = ContainerHeader(
            unit_id=self._unit_id,
            container_id=self.container_id,
            kind=self.kind,
            tenant=self.tenant,
            key_id=self.key_id,
            record_count=len(self._records),
            codecs=self._codecs,
            directory_offset=self._used,
            file_bytes=total,
            directory_checksum=xxhash.xxh3_64_intdigest(directory),
        )
        self._view[:HEADER_BYTES] = encode_header(header)
        return self._view[:total]
