"""Which storage units a target has, durably.

Owns: ``<state>/units.alr``. A target without that file has the one unit that it made itself.
Invariants:
  G1 a unit is in the registry before anything of the target is put into it, and leaves it only after
     its last image: what lies in a unit is always asked for.
Callers: ``units``, under its lock. Format: docs/formats/units-v1.md
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from arraylift import envelope
from arraylift.durable import Files
from arraylift.errors import Corruption, InvalidRequest, NotFound
from arraylift.ids import UnitId, check_id, check_name
from dedup_target.superblock import Role

MAGIC = b"ALUNITRG"
UNITS_MAX = 16

_KEYS = frozenset({"units"})
_ENTRY_KEYS = frozenset({"draining", "endpoint", "location", "name", "role", "unit_id"})


@dataclass(frozen=True, slots=True)
class UnitEntry:
    """One unit as the target knows it."""

    name: str
    unit_id: UnitId
    role: Role
    location: str
    """A directory, below the state directory unless absolute, or s3://bucket/prefix."""
    endpoint: str = ""
    draining: bool = False
    """Its images are being moved away; nothing new comes in."""


class UnitRegistry:
    """The list, oldest first."""

    def __init__(self, files: Files, path: str) -> None:
        """Raises Corruption."""
        self._files = files
        self._path = path
        self.entries: tuple[UnitEntry, ...] = ()
        try:
            self.entries = decode(files.read(path), what=path)
        except NotFound:
            return
        except Corruption as error:
            raise _damaged(path, error.message) from error

    @property
    def exists(self) -> bool:
        """Whether this target ever had a unit."""
        return bool(self.entries)

    @property
    def receiving(self) -> UnitEntry | None:
        """The first active unit that is not draining."""
        return next((one for one in self.entries if one.role is Role.ACTIVE and not one.draining), None)

    def publish(self, entries: tuple[UnitEntry, ...]) -> None:
        """Replace the list. Raises InvalidRequest (UNITS_MAX), OutOfSpace, StoreFailed."""
        if len(entries) > UNITS_MAX:
            raise InvalidRequest(
                f"a target has at most {UNITS_MAX} units", next_step="drain one, and retire it"
            )
        self._files.publish(self._path, [encode(entries)], label="units")
        self.entries = entries


def encode(entries: tuple[UnitEntry, ...]) -> bytes:
    """Return the whole file."""
    body = envelope.canonical_json({"units": [asdict(entry) for entry in entries]})
    return envelope.encode(MAGIC, body)


def decode(data: bytes, *, what: str) -> tuple[UnitEntry, ...]:
    """Raises Corruption, WrongState (newer)."""
    fields = envelope.decode_json(MAGIC, data, what=what, keys=_KEYS)
    try:
        entries = tuple(map(_entry, fields["units"]))
        if len({one.name for one in entries}) != len(entries):
            raise ValueError("two units have one name")
        if len({one.unit_id for one in entries}) != len(entries):
            raise ValueError("a unit is there twice")
    except (ValueError, TypeError, KeyError, AttributeError, InvalidRequest) as error:
        raise _damaged(what, f"{what} makes no sense: {error}") from error
    return entries


def _damaged(what: str, why: str) -> Corruption:
    return Corruption(
        why,
        subject=what,
        next_step="move it away, start the target, and add the units again: they hold their images",
    )


def _entry(fields: dict[str, object]) -> UnitEntry:
    if fields.keys() != _ENTRY_KEYS:
        raise ValueError("an entry does not have the fields of its version")
    if not isinstance(fields["draining"], bool):
        raise TypeError("draining is neither true nor false")
    return UnitEntry(
        name=check_name(str(fields["name"]), "unit name"),
        unit_id=UnitId(check_id(str(fields["unit_id"]), "unit id")),
        role=Role(str(fields["role"])),
        location=str(fields["location"]),
        endpoint=str(fields["endpoint"]),
        draining=fields["draining"],
    )
