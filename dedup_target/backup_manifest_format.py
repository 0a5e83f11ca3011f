"""What is said of a backup on disk; its manifest is what makes the backup exist (law 1).

Invariants:
  B1 a manifest is decoded only if checksum and seal match; the seal is keyed by the tenant and
     covers the magic too, so that no image manifest passes for one.
  B2 one manifest, one spelling: encoding what was decoded gives the same bytes.
Limits: IMAGES_MAX images, ATTRIBUTES_BYTES_MAX of attributes, which are opaque here.
Callers: any thread. Format: docs/formats/backup-manifest-v1.md
"""

from __future__ import annotations

import base64
import hmac
from dataclasses import dataclass
from typing import Any, NewType

from arraylift import envelope
from arraylift.errors import Corruption, InvalidRequest
from arraylift.ids import ImageId, TenantId, check_id, check_name
from arraylift.sizes import MIB
from dedup_target.manifest_format import Sealer

MAGIC = b"ALBACKUP"
IMAGES_MAX = 64
ATTRIBUTES_BYTES_MAX = MIB

BackupId = NewType("BackupId", str)

_KEYS = frozenset(
    {
        "attributes",
        "backup_id",
        "images",
        "snapshot_at_ns",
        "tenant",
        "tenant_name",
        "vm_id",
        "vm_name",
    }
)
_OPTIONAL = frozenset({"lock_until_ns"})
"""There only while it says something: an older release refuses a locked manifest, and so keeps it."""


@dataclass(frozen=True, slots=True)
class BackupManifest:
    """One VM at one instant: images by disk name. Time in UTC nanoseconds."""

    backup_id: BackupId
    tenant: TenantId
    tenant_name: str
    vm_id: str
    vm_name: str
    snapshot_at_ns: int
    images: tuple[tuple[str, ImageId], ...]
    attributes: bytes
    lock_until_ns: int | None = None


def check(manifest: BackupManifest) -> None:
    """Raise InvalidRequest unless every field is within its limits."""
    check_id(manifest.backup_id, "backup id")
    check_id(manifest.vm_id, "VM id")
    check_name(manifest.vm_name, "VM name")
    check_name(manifest.tenant_name, "tenant")
    if not 1 <= len(manifest.images) <= IMAGES_MAX:
        raise InvalidRequest(f"a backup has 1 to {IMAGES_MAX} images, not {len(manifest.images)}")
    for disk_name, image_id in manifest.images:
        check_name(disk_name, "disk name")
        check_id(image_id, "image id")
    for what, found in zip(("disk", "image"), zip(*manifest.images, strict=True), strict=True):
        if len(set(found)) != len(found):
            raise InvalidRequest(f"the backup names one {what} twice")
    if len(manifest.attributes) > ATTRIBUTES_BYTES_MAX:
        raise InvalidRequest(f"a backup has at most {ATTRIBUTES_BYTES_MAX} bytes of attributes")
    if not 0 <= manifest.snapshot_at_ns < 1 << 63:
        raise InvalidRequest(f"{manifest.snapshot_at_ns} is no time of a snapshot")
    if manifest.lock_until_ns is not None and not 0 < manifest.lock_until_ns < 1 << 63:
        raise InvalidRequest(f"{manifest.lock_until_ns} is no time of a lock")


def encode(manifest: BackupManifest, sealer: Sealer) -> bytes:
    """Return the whole file. REQUIRES ``check``."""
    body = envelope.canonical_json(_to_fields(manifest))
    return envelope.encode(MAGIC, body, sealer(manifest.tenant, MAGIC + body))


def decode(data: bytes, sealer: Sealer, *, what: str) -> BackupManifest:
    """Decode a whole file; ``what`` names it in errors.

    Raises Corruption (B1), WrongState for a newer format, NotFound for an unknown tenant.
    """
    body, seal = envelope.decode(MAGIC, data, what=what)
    fields = envelope.parse_json(body, what=what, keys=_KEYS, optional=_OPTIONAL)
    try:
        manifest = _from_fields(fields)
        check(manifest)
    except (ValueError, TypeError, KeyError, AttributeError, InvalidRequest) as error:
        raise _damaged(what, f"its fields make no sense: {error}") from error
    if envelope.canonical_json(_to_fields(manifest)) != body:
        raise _damaged(what, "its spelling is not the canonical one")  # B2
    if not hmac.compare_digest(sealer(manifest.tenant, MAGIC + body), seal):
        raise _damaged(what, "its seal was not made with the tenant's key")
    return manifest


def _damaged(what: str, why: str) -> Corruption:
    return Corruption(
        f"{what} is damaged: {why}", subject=what, next_step="restore that file from a copy or a replica"
    )


def _to_fields(manifest: BackupManifest) -> dict[str, Any]:
    lock = {} if manifest.lock_until_ns is None else {"lock_until_ns": manifest.lock_until_ns}
    return {
        **lock,
        "attributes": base64.b64encode(manifest.attributes).decode(),
        "backup_id": manifest.backup_id,
        "images": [list(pair) for pair in manifest.images],
        "snapshot_at_ns": manifest.snapshot_at_ns,
        "tenant": f"{manifest.tenant:016x}",
        "tenant_name": manifest.tenant_name,
        "vm_id": manifest.vm_id,
        "vm_name": manifest.vm_name,
    }


def _from_fields(fields: dict[str, Any]) -> BackupManifest:
    times = [fields["snapshot_at_ns"], fields.get("lock_until_ns", 1)]
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in times):
        raise TypeError("a time is not a whole number")
    return BackupManifest(
        backup_id=BackupId(fields["backup_id"]),
        tenant=TenantId(int(fields["tenant"], 16)),
        tenant_name=fields["tenant_name"],
        vm_id=fields["vm_id"],
        vm_name=fields["vm_name"],
        snapshot_at_ns=fields["snapshot_at_ns"],
        images=tuple((disk_name, ImageId(image_id)) for disk_name, image_id in fields["images"]),
        attributes=base64.b64decode(fields["attributes"], validate=True),
        lock_until_ns=fields.get("lock_until_ns"),
    )
