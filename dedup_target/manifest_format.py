"""What is said of an image on disk; its manifest is what makes it exist.

Invariants:
  M1 a manifest is decoded only if checksum and seal match: nobody without the tenant's
     key can make one.
  M2 one manifest, one spelling: encoding what was decoded gives the same bytes.
Callers: any thread. Format: docs/formats/manifest-v1.md
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from arraylift import envelope
from arraylift.errors import ArrayliftError, Corruption, InvalidRequest
from arraylift.ids import (
    Fingerprint,
    ImageId,
    KeyId,
    LineageId,
    PoolId,
    SourceState,
    TenantId,
    check_id,
    check_name,
)
from arraylift.segments.segmentation import Policy, Segmentation
from arraylift.sizes import IMAGE_BYTES_MAX

MAGIC = b"ALMANIFS"

Sealer = Callable[[TenantId, bytes], bytes]
"""Keyed hash of a manifest body under its tenant's key: 32 bytes. Raises NotFound without that key."""

_KEYS = frozenset(
    {
        "base_image_id",
        "committed_at_ns",
        "figures",
        "image_bytes",
        "image_id",
        "key_id",
        "lock_until_ns",
        "name",
        "root",
        "segmentation",
        "source_state",
        "tenant",
        "tenant_name",
        "transfer_id",
    }
)


@dataclass(frozen=True, slots=True)
class ImageManifest:
    """One image. Sizes in bytes, times in UTC nanoseconds."""

    image_id: ImageId
    name: str
    tenant: TenantId
    tenant_name: str
    root: Fingerprint
    image_bytes: int
    segmentation: Segmentation
    key_id: KeyId
    source_state: SourceState | None
    base_image_id: ImageId | None
    committed_at_ns: int
    transfer_id: str = ""
    """The transfer that committed it; finds the receipt again when its log was lost."""
    figures: Mapping[str, int] = field(default_factory=dict)
    lock_until_ns: int | None = None


def encode(manifest: ImageManifest, sealer: Sealer) -> bytes:
    """Return the whole file."""
    body = envelope.canonical_json(_to_fields(manifest))
    seal = sealer(manifest.tenant, body)
    assert len(seal) == envelope.SEAL_BYTES
    return envelope.encode(MAGIC, body, seal)


def decode(data: bytes, sealer: Sealer, *, what: str) -> ImageManifest:
    """Decode a whole file; ``what`` names it in errors.

    Raises Corruption (M1), WrongState for a newer format, NotFound for an unknown tenant.
    """
    body, seal = envelope.decode(MAGIC, data, what=what)
    fields = envelope.parse_json(body, what=what, keys=_KEYS)
    try:
        manifest = _from_fields(fields)
    except (ValueError, TypeError, KeyError, AttributeError, InvalidRequest) as error:
        raise _damaged(what, f"its fields make no sense: {error}") from error
    if envelope.canonical_json(_to_fields(manifest)) != body:
        raise _damaged(what, "its spelling is not the canonical one")  # M2
    if not hmac.compare_digest(sealer(manifest.tenant, body), seal):
        raise _damaged(what, "its seal was not made with the tenant's key")
    return manifest


def _damaged(what: str, why: str) -> ArrayliftError:
    return Corruption(
        f"{what} is damaged: {why}", subject=what, next_step="restore that file from a copy or a replica"
    )


def _to_fields(manifest: ImageManifest) -> dict[str, Any]:
    state, how = manifest.source_state, manifest.segmentation
    return {
        "base_image_id": manifest.base_image_id,
        "committed_at_ns": manifest.committed_at_ns,
        "figures": dict(manifest.figures),
        "image_bytes": manifest.image_bytes,
        "image_id": manifest.image_id,
        "key_id": manifest.key_id.hex(),
        "lock_until_ns": manifest.lock_until_ns,
        "name": manifest.name,
        "root": manifest.root.hex(),
        "segmentation": segmentation_fields(how),
        "source_state": None if state is None else source_state_fields(state),
        "tenant": f"{manifest.tenant:016x}",
        "tenant_name": manifest.tenant_name,
        "transfer_id": manifest.transfer_id,
    }


def _from_fields(fields: dict[str, Any]) -> ImageManifest:
    base = fields["base_image_id"]
    return ImageManifest(
        image_id=ImageId(check_id(fields["image_id"], "image id")),
        name=check_name(fields["name"], "image name", slash=True),
        tenant=TenantId(int(fields["tenant"], 16)),
        tenant_name=check_name(fields["tenant_name"], "tenant"),
        root=Fingerprint(_bytes_of(fields["root"], 32)),
        image_bytes=_count_of(fields["image_bytes"], IMAGE_BYTES_MAX),
        segmentation=segmentation_from(fields["segmentation"]),
        key_id=KeyId(_bytes_of(fields["key_id"], 8)),
        source_state=None if fields["source_state"] is None else source_state_from(fields["source_state"]),
        base_image_id=None if base is None else ImageId(check_id(base, "base image id")),
        committed_at_ns=_count_of(fields["committed_at_ns"]),
        transfer_id=fields["transfer_id"] and check_id(fields["transfer_id"], "transfer id"),
        figures={str(name): _count_of(value) for name, value in fields["figures"].items()},
        lock_until_ns=None if fields["lock_until_ns"] is None else _count_of(fields["lock_until_ns"]),
    )


def segmentation_fields(how: Segmentation) -> dict[str, int]:
    """Segmentation as JSON."""
    return {
        "policy": int(how.policy),
        "segment_bytes_average": how.segment_bytes_average,
        "segment_bytes_max": how.segment_bytes_max,
        "segment_bytes_min": how.segment_bytes_min,
        "span_bytes": how.span_bytes,
    }


def segmentation_from(fields: Mapping[str, int]) -> Segmentation:
    """Segmentation from JSON. Raises ValueError, TypeError, KeyError, InvalidRequest."""
    return Segmentation(
        Policy(fields["policy"]),
        fields["segment_bytes_min"],
        fields["segment_bytes_average"],
        fields["segment_bytes_max"],
        fields["span_bytes"],
    )


def source_state_fields(state: SourceState) -> dict[str, Any]:
    """SourceState as JSON."""
    return {"birth": state.birth, "lineage_id": state.lineage_id, "pool_id": state.pool_id}


def source_state_from(fields: Mapping[str, Any]) -> SourceState:
    """SourceState from JSON. Raises ValueError, TypeError, KeyError, InvalidRequest."""
    return SourceState(
        PoolId(check_id(fields["pool_id"], "pool id")),
        LineageId(check_id(fields["lineage_id"], "lineage id")),
        _count_of(fields["birth"]),
    )


def _count_of(value: object, maximum: int = (1 << 64) - 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= maximum:
        raise ValueError(f"{value!r} is not a count up to {maximum}")
    return value


def _bytes_of(text: str, length: int) -> bytes:
    data = bytes.fromhex(text)
    if len(data) != length:
        raise ValueError(f"{length} bytes expected, {len(data)} found")
    return data
