"""What a storage unit says of itself. Pure.

Invariants:
  P1 a unit's id never changes, and never is another unit's: containers, index and replicas go by it.
Callers: any thread. Format: docs/formats/unit-v2.md; version 1 is read as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from arraylift import envelope
from arraylift.errors import Corruption, InvalidRequest
from arraylift.ids import UnitId, check_id, check_name
from arraylift.sizes import CONTAINER_BYTES, MIB

MAGIC_V1 = b"ALUNITSB"
MAGIC = b"ALUNITS2"
NAME = "unit.alu"
"""Of the object in the unit."""

FIRST_UNIT = "active"
"""Name of the unit that a new target makes, and of every unit of version 1."""
ARCHIVE_CONTAINER_BYTES = 32 * MIB
"""An object store counts requests, and Zstandard's units are read by whole images."""

_KEYS_V1 = frozenset({"role", "unit_id"})
_KEYS = frozenset({"container_bytes", "name", "role", "unit_id"})


class Role(StrEnum):
    """What a unit is for; the words are part of the format."""

    ACTIVE = "active"
    """Takes backups: segments as they were sent, or LZ4."""
    ARCHIVE = "archive"
    """Takes images that are moved: Zstandard, larger containers."""


@dataclass(frozen=True, slots=True)
class Superblock:
    """One unit."""

    unit_id: UnitId
    name: str
    role: Role
    container_bytes: int
    """A container is sealed before it grows beyond this."""


def container_bytes_of(role: Role) -> int:
    """What a new unit of that role has."""
    return ARCHIVE_CONTAINER_BYTES if role is Role.ARCHIVE else CONTAINER_BYTES


def encode(superblock: Superblock) -> bytes:
    """Return the whole object."""
    body = envelope.canonical_json(
        {
            "container_bytes": superblock.container_bytes,
            "name": superblock.name,
            "role": superblock.role.value,
            "unit_id": superblock.unit_id,
        }
    )
    return envelope.encode(MAGIC, body)


def decode(data: bytes, *, what: str) -> Superblock:
    """Decode either version; ``what`` names it in errors. Raises Corruption, WrongState (newer)."""
    try:
        if data[: len(MAGIC_V1)] == MAGIC_V1:
            fields = envelope.decode_json(MAGIC_V1, data, what=what, keys=_KEYS_V1)
            unit_id = UnitId(check_id(fields["unit_id"], "unit id"))
            return Superblock(unit_id, FIRST_UNIT, Role(fields["role"]), CONTAINER_BYTES)
        fields = envelope.decode_json(MAGIC, data, what=what, keys=_KEYS)
        container_bytes = fields["container_bytes"]
        if not isinstance(container_bytes, int) or not MIB <= container_bytes <= 1 << 30:
            raise ValueError(f"containers of {container_bytes!r} bytes")
        return Superblock(
            UnitId(check_id(fields["unit_id"], "unit id")),
            check_name(fields["name"], "unit name"),
            Role(fields["role"]),
            container_bytes,
        )
    except (ValueError, TypeError, InvalidRequest) as error:
        raise Corruption(
            f"{what} makes no sense: {error}",
            subject=what,
            next_step="restore that file from a copy or a replica",
        ) from error
