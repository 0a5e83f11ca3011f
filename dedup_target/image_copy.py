"""Copy an image from one unit into another: what the other lacks, each segment verified and re-encoded.

Invariants:
  C1 a segment or node leaves the source verified against its fingerprint (segment_reader V1), and
     enters the other unit in the codec of its role.
  C2 after ``finish`` everything that the image reaches lies in sealed, indexed containers of the
     other unit; the new ones have been read back, record by record.
Limits: two container buffers of the receiving unit, SPANS_AT_ONCE spans in memory.
Callers: one thread, under the maintenance of both units, so that no collection runs in either.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from arraylift.durable import Buffer
from arraylift.errors import Cancelled, Corruption
from arraylift.ids import ContainerId, Fingerprint, KeyId, TenantId
from arraylift.segments.codecs import Codec, compress_lz4, compress_zstandard
from arraylift.segments.fingerprint import unpack
from arraylift.segments.tree import build
from dedup_target.container_buffer import ContainerBuffer
from dedup_target.container_format import Kind, subject_of
from dedup_target.image_reader import ImageReader, OpenImage
from dedup_target.storage_unit import StorageUnit
from dedup_target.superblock import Role

SPANS_AT_ONCE = 16

Encode = Callable[[bytes | memoryview], tuple[Codec, bytes | memoryview]]


@dataclass(slots=True)
class CopyFigures:
    """What was read and written."""

    bytes_read: int = 0
    """Plain bytes of segments that the other unit lacked."""
    bytes_stored: int = 0
    """Of its new containers."""


class _Packer:
    """Fills containers of one kind; what it has taken is known before it is sealed."""

    def __init__(self, unit: StorageUnit, tenant: TenantId, key_id: KeyId, kind: Kind) -> None:
        self._unit = unit
        self._tenant = tenant
        self._key_id = key_id
        self._kind = kind
        self._buffer: ContainerBuffer | None = None
        self._packed: set[bytes] = set()
        self.sealed: list[ContainerId] = []
        self.bytes_stored = 0

    def lacks(self, fingerprints: Sequence[bytes]) -> list[int]:
        """Places of the first of each that neither the unit nor an open container has."""
        if not fingerprints:
            return []
        present = self._unit.contains(self._tenant, b"".join(fingerprints))
        places: dict[bytes, int] = {}
        for place, (fingerprint, here) in enumerate(zip(fingerprints, present.tolist(), strict=True)):
            if not here and fingerprint not in self._packed:
                places.setdefault(fingerprint, place)
        return list(places.values())

    def pack(self, fingerprints: Sequence[bytes], plain: Sequence[Buffer], encode: Encode) -> None:
        """Append records as one frame or more."""
        coded = [encode(one) for one in plain]  # type: ignore[arg-type]
        rows = list(zip(fingerprints, plain, coded, strict=True))
        while rows:
            count = self._room_for(rows)
            self._append(rows[:count])
            rows = rows[count:]

    def _room_for(self, rows: Sequence[tuple[bytes, Buffer, tuple[Codec, Buffer]]]) -> int:
        """How many of the records fit into the buffer, which is a fresh one if none did."""
        for fresh in (False, True):
            if fresh or self._buffer is None:
                self.seal()
                self._buffer = self._unit.containers.acquire(
                    tenant=self._tenant, key_id=self._key_id, kind=self._kind
                )
            count = len(rows)
            while count and not self._buffer.fits(count, sum(len(one[2][1]) for one in rows[:count])):
                count //= 2
            if count:
                return count
        raise AssertionError("a record fits into an empty container")

    def _append(self, rows: Sequence[tuple[bytes, Buffer, tuple[Codec, Buffer]]]) -> None:
        assert self._buffer is not None
        self._buffer.append_frame(
            fingerprints=b"".join(fingerprint for fingerprint, _, _ in rows),
            stored_bytes=np.array([len(stored) for _, _, (_, stored) in rows], dtype=np.uint32),
            plain_bytes=np.array([len(plain) for _, plain, _ in rows], dtype=np.uint32),
            codecs=np.array([codec for _, _, (codec, _) in rows], dtype=np.uint8),
            payload=[stored for _, _, (_, stored) in rows],
        )
        self._packed.update(fingerprint for fingerprint, _, _ in rows)

    def seal(self) -> None:
        """Make what is packed durable and indexed."""
        if self._buffer is None:
            return
        buffer, self._buffer = self._buffer, None
        try:
            if buffer.record_count:
                sealed = self._unit.containers.seal(buffer)
                self._unit.add_sealed(sealed)
                self.sealed.append(sealed.container_id)
                self.bytes_stored += sealed.file_bytes
        finally:
            self._unit.containers.release(buffer)
        self._packed.clear()

    def abandon(self) -> None:
        if self._buffer is not None:
            self._unit.containers.release(self._buffer)
            self._buffer = None


class ImageCopy:
    """One image on its way into ``unit``."""

    def __init__(
        self, images: ImageReader, image: OpenImage, unit: StorageUnit, stopping: threading.Event
    ) -> None:
        self._images = images
        self._image = image
        self._unit = unit
        self._stopping = stopping
        key_id = image.manifest.key_id
        self._data = _Packer(unit, image.tenant, key_id, Kind.DATA)
        self._nodes = _Packer(unit, image.tenant, key_id, Kind.NODES)
        archive = unit.superblock.role is Role.ARCHIVE
        self._encode: Encode = compress_zstandard if archive else compress_lz4
        self._bytes_read = 0

    def run(self, report: Callable[[CopyFigures], None]) -> CopyFigures:
        """Copy, seal, read back (C2). Raises Corruption (either unit), Cancelled, OutOfSpace,
        PeerUnavailable, StoreFailed; then nothing but space was lost."""
        try:
            self._copy(report)
            self._data.seal()
            self._nodes.seal()
        except BaseException:
            self._data.abandon()
            self._nodes.abandon()
            raise
        self._read_back()
        return self._figures()

    def _figures(self) -> CopyFigures:
        return CopyFigures(self._bytes_read, self._data.bytes_stored + self._nodes.bytes_stored)

    def _copy(self, report: Callable[[CopyFigures], None]) -> None:
        image, leaves = self._image, self._image.leaves
        solid = np.flatnonzero(leaves.any(axis=1)).tolist()
        for start in range(0, len(solid), SPANS_AT_ONCE):
            if self._stopping.is_set():
                raise Cancelled("the move was stopped", next_step="repeat it; what was moved stays moved")
            spans = solid[start : start + SPANS_AT_ONCE]
            named = [Fingerprint(leaves[span].tobytes()) for span in spans]
            found = [leaf for leaf in self._images.leaves(image, spans) if leaf is not None]
            self._segments([one for leaf in found for one in unpack(leaf.fingerprints)])
            self._tree_nodes(named, image.reader.nodes(image.tenant, image.key, named))
            report(self._figures())
        manifest = image.manifest
        above = list(
            build(
                leaves,
                image_bytes=manifest.image_bytes,
                segmentation=manifest.segmentation,
                key=image.key,
            )
        )
        self._tree_nodes([one for one, _ in above], [node for _, node in above])

    def _segments(self, fingerprints: list[bytes]) -> None:
        image = self._image
        absent = [fingerprints[place] for place in self._data.lacks(fingerprints)]
        if absent:
            plain = image.reader.plain(
                image.tenant, image.key, absent, image.reader.locate(image.tenant, absent)
            )
            self._data.pack(absent, plain, self._encode)
            self._bytes_read += sum(map(len, plain))

    def _tree_nodes(self, fingerprints: Sequence[bytes], nodes: Sequence[bytes]) -> None:
        absent = self._nodes.lacks(fingerprints)
        self._nodes.pack(
            [fingerprints[place] for place in absent],
            [nodes[place] for place in absent],
            lambda node: (Codec.PLAIN, node),
        )

    def _read_back(self) -> None:
        for container in (*self._data.sealed, *self._nodes.sealed):
            bad: Iterable[bytes] = self._unit.containers.verify(container)
            if bad:
                raise Corruption(
                    f"{subject_of(container)} of unit {self._unit.name} does not read back as it was written",
                    subject=f"unit {self._unit.name}",
                    next_step="check that unit's disk or store; the image stays where it was",
                )
