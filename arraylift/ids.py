"""One type for each kind of id, and the only place that makes random ones.

Ids that cross the wire are 32 lower-case hex digits (128 random bits), so they
can name files, metadata and log fields without quoting.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import NewType

from arraylift.errors import InvalidRequest

TransferId = NewType("TransferId", str)
ImageId = NewType("ImageId", str)
VolumeId = NewType("VolumeId", str)
SnapshotId = NewType("SnapshotId", str)
GroupId = NewType("GroupId", str)
PoolId = NewType("PoolId", str)
LineageId = NewType("LineageId", str)
UnitId = NewType("UnitId", str)
VmId = NewType("VmId", str)
VmSnapshotId = NewType("VmSnapshotId", str)
MigrationId = NewType("MigrationId", str)

TenantId = NewType("TenantId", int)
"""Random 64-bit number of a tenant on one target; begins every index key."""

ContainerId = NewType("ContainerId", int)
"""Grows by one for each container of a storage unit; never reused."""

KeyId = NewType("KeyId", bytes)
"""8 bytes derived from a tenant's fingerprint key; equal keys have equal ids."""

Fingerprint = NewType("Fingerprint", bytes)
"""32 bytes, keyed BLAKE3 under a type tag (docs/formats/fingerprint-v1.md)."""


@dataclass(frozen=True, slots=True)
class SourceState:
    """One state of one disk in its array's own history.

    Two states compare only within a pool, and only if the older one's lineage is an
    ancestor of the newer one's. ``birth`` is the last epoch that the state contains.
    """

    pool_id: PoolId
    lineage_id: LineageId
    birth: int


FINGERPRINT_BYTES = 32
GRANT_BYTES = 32

_HEX_ID = re.compile(r"[0-9a-f]{32}")


def random_id() -> str:
    """Return 32 hex digits; wrap the result in the NewType that it is."""
    return secrets.token_hex(16)


def random_grant() -> bytes:
    """Return the 32-byte secret that lets one peer run one transfer."""
    return secrets.token_bytes(GRANT_BYTES)


def check_id(value: str, what: str) -> str:
    """Return ``value`` if it is a well-formed id, else raise InvalidRequest naming ``what``."""
    if not _HEX_ID.fullmatch(value):
        raise InvalidRequest(f"{what} must be 32 lower-case hex digits, got {value[:40]!r}")
    return value


def check_name(value: str, what: str, *, slash: bool = False) -> str:
    """Return ``value`` if it may name ``what``: 1..255 bytes of printable UTF-8.

    Names never become paths, so nothing is escaped; ``slash`` permits '/' inside
    (image names), never at either end.
    """
    encoded = value.encode("utf-8", errors="surrogatepass")
    if not 1 <= len(encoded) <= 255:
        raise InvalidRequest(f"{what} must have 1 to 255 bytes, got {len(encoded)}")
    if any(ord(char) < 32 or 0x7F <= ord(char) < 0xA0 or 0xD800 <= ord(char) < 0xE000 for char in value):
        raise InvalidRequest(f"{what} {value!r} has control characters; use printable ones")
    if "/" in value and (not slash or value.startswith("/") or value.endswith("/")):
        raise InvalidRequest(f"{what} {value!r} must not have '/' there")
    if value in {".", ".."} or value != value.strip():
        raise InvalidRequest(f"{what} {value!r} must not be '.' or '..' nor begin or end with a space")
    return value
