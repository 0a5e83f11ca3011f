"""Records, containers and units that the tests of the target's storage share."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from blake3 import blake3

from arraylift.durable import Files
from arraylift.ids import ContainerId, Fingerprint, KeyId, SourceState, TenantId, UnitId
from arraylift.segments.segmentation import Segmentation
from dedup_target.backup_manifest_format import BackupManifest
from dedup_target.container_buffer import ContainerBuffer
from dedup_target.container_format import Kind, SealedContainer
from dedup_target.container_store import ContainerStore
from dedup_target.directory_backend import DirectoryBackend
from dedup_target.key_store import load_wrapping_key
from dedup_target.manifest_format import ImageManifest
from dedup_target.rebuild import IndexOpener
from dedup_target.storage_unit import StorageUnit
from dedup_target.superblock import FIRST_UNIT, Role
from dedup_target.transfer_format import Attempt, GrantParameters
from dedup_target.unit_place import find_or_make

UNIT = UnitId("0123456789abcdef" * 2)
TENANT = TenantId(0x1122334455667788)
KEY_ID = KeyId(b"keyid-01")
STATE = SourceState("a" * 32, "b" * 32, 7)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Segment:
    """One stored record as a test knows it."""

    fingerprint: bytes
    stored: bytes
    plain_bytes: int
    codec: int


def make_segments(count: int, *, seed: int = 0, bytes_max: int = 900) -> list[Segment]:
    """Distinct records; the same for the same arguments."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        stored = draw.randbytes(draw.randrange(1, bytes_max))
        fingerprint = blake3(b"%d %d" % (seed, number)).digest()
        made.append(Segment(fingerprint, stored, draw.randrange(1, 65536), draw.randrange(3)))
    return made


def append(buffer: ContainerBuffer, segments: Sequence[Segment]) -> list[int]:
    """Append one frame; returns the offsets."""
    offsets = buffer.append_frame(
        fingerprints=b"".join(segment.fingerprint for segment in segments),
        stored_bytes=np.array([len(segment.stored) for segment in segments], dtype=np.uint32),
        plain_bytes=np.array([segment.plain_bytes for segment in segments], dtype=np.uint32),
        codecs=np.array([segment.codec for segment in segments], dtype=np.uint8),
        payload=[segment.stored for segment in segments],
    )
    listed: list[int] = offsets.tolist()
    return listed


def fill(
    store: ContainerStore, frames: Sequence[Sequence[Segment]], kind: Kind = Kind.DATA
) -> SealedContainer:
    """Seal one container of these frames."""
    buffer = store.acquire(tenant=TENANT, key_id=KEY_ID, kind=kind)
    try:
        for frame in frames:
            append(buffer, frame)
        return store.seal(buffer)
    finally:
        store.release(buffer)


def open_unit(files: Files, state: str, *, opener: IndexOpener | None = None) -> StorageUnit:
    """The active unit of a state directory, without the rest of the target."""
    for folder in (state, f"{state}/index"):
        files.make_dirs(folder)
        files.sweep(folder)
    backend = DirectoryBackend(files, f"{state}/units/active")
    wrapping_key = load_wrapping_key(files, state, holds_keys=False)
    superblock = find_or_make(backend, FIRST_UNIT, Role.ACTIVE)
    return StorageUnit(
        backend,
        superblock,
        files=files,
        index_root=f"{state}/index",
        wrapping_key=wrapping_key,
        opener=opener,
    )


def whole_container(frames: Sequence[Sequence[Segment]], container_id: int = 5) -> bytes:
    """The bytes of a container, without a store."""
    buffer = ContainerBuffer(UNIT)
    buffer.begin(ContainerId(container_id), TENANT, KEY_ID, Kind.DATA)
    for frame in frames:
        append(buffer, frame)
    return bytes(buffer.finish())


def manifest(
    number: int, *, root: bytes = b"r" * 32, name: str = "web1/disk0", at_ns: int | None = None
) -> ImageManifest:
    """A manifest of image ``number``."""
    return ImageManifest(
        image_id=f"{number:032x}",  # type: ignore[arg-type]
        name=name,
        tenant=TENANT,
        tenant_name="default",
        root=Fingerprint(root),
        image_bytes=3 << 20,
        segmentation=Segmentation(),
        key_id=KEY_ID,
        source_state=STATE,
        base_image_id=None,
        committed_at_ns=number if at_ns is None else at_ns,
        transfer_id="c" * 32,
        figures={"spans_total": 3, "bytes_read": 3 << 20},
    )


def backup(number: int, *, images: Sequence[int] = (1, 2), at_ns: int | None = None) -> BackupManifest:
    """A manifest of backup ``number``, over images by their numbers."""
    return BackupManifest(
        backup_id=f"{number:032x}",  # type: ignore[arg-type]
        tenant=TENANT,
        tenant_name="default",
        vm_id="e" * 32,
        vm_name="web1",
        snapshot_at_ns=number if at_ns is None else at_ns,
        images=tuple((f"disk{at}", f"{image:032x}") for at, image in enumerate(images)),  # type: ignore[misc]
        attributes=b"\x00attributes\xff",
    )


def toy_sealer(tenant: TenantId, body: bytes) -> bytes:
    """A keyed hash whose key is the tenant's number."""
    return blake3(body, key=tenant.to_bytes(32, "big")).digest()


def grant(number: int = 1) -> GrantParameters:
    """Parameters of transfer ``number``."""
    return GrantParameters(
        f"{number:032x}",  # type: ignore[arg-type]
        "array1",
        TENANT,
        "default",
        "web1/disk0",
        None,
        None,
    )


def attempt(number: int = 1, image_bytes: int = 10 << 20) -> Attempt:
    """Attempt ``number`` at an image."""
    return Attempt(number, image_bytes, Segmentation(), STATE)
