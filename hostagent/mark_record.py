"""Which marks a VM has, and at which states of its disks they began: bytes of one small file. Pure.

Invariants:
  V1 what is decoded has been encoded: envelope and checksum, every field present, of its type.
Callers: vm_store, marks. Format: docs/formats/marks-v1.md
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from arraylift import envelope
from arraylift.errors import Corruption, InvalidRequest
from arraylift.ids import SourceState, VmId, check_id
from hostagent.change_tracking import MarkId
from hostagent.vm_record import state_from_json, state_to_json

MAGIC = b"ALVMMARK"
_KEYS = frozenset({"vm_id", "revision", "marks"})


@dataclass(frozen=True, slots=True)
class Place:
    """A volume, wherever a VM has it among its disks."""

    array_address: str
    volume_name: str


@dataclass(frozen=True, slots=True)
class MarkedState:
    """The state of one disk at whose instant a mark began, a little later than the mark itself."""

    place: Place
    size_bytes: int
    state: SourceState


@dataclass(frozen=True, slots=True)
class Mark:
    """``states`` has the disks of that VM snapshot; the mark itself stands on all disks of the VM."""

    mark_id: MarkId
    states: tuple[MarkedState, ...]

    def of(self, place: Place) -> MarkedState | None:
        return next((one for one in self.states if one.place == place), None)


@dataclass(frozen=True, slots=True)
class VmMarks:
    """A VM's marks, oldest first, all of which began when its record had this ``revision``."""

    vm_id: VmId
    revision: int
    marks: tuple[Mark, ...]


def encode_marks(value: VmMarks) -> bytes:
    """Return the whole file."""
    marks = [
        {
            "mark_id": mark.mark_id,
            "states": [
                {
                    "array_address": one.place.array_address,
                    "volume_name": one.place.volume_name,
                    "size_bytes": one.size_bytes,
                    "state": state_to_json(one.state),
                }
                for one in mark.states
            ],
        }
        for mark in value.marks
    ]
    body = {"vm_id": value.vm_id, "revision": value.revision, "marks": marks}
    return envelope.encode(MAGIC, envelope.canonical_json(body))


def decode_marks(data: bytes, *, what: str) -> VmMarks:
    """Raises Corruption (V1), WrongState (a newer format)."""
    value = envelope.decode_json(MAGIC, data, what=what, keys=_KEYS)
    try:
        vm_id = VmId(check_id(value["vm_id"], "VM id"))
        return VmMarks(vm_id, _whole(value["revision"]), tuple(map(_mark, value["marks"])))
    except (ValueError, TypeError, KeyError, AttributeError, InvalidRequest) as error:
        raise Corruption(
            f"{what} makes no sense: {error}", subject=what, next_step="remove it: the next backups read more"
        ) from error


def _mark(value: dict[str, Any]) -> Mark:
    states = tuple(
        MarkedState(
            Place(_text(one["array_address"]), _text(one["volume_name"])),
            _whole(one["size_bytes"]),
            state_from_json(one["state"]),
        )
        for one in value["states"]
    )
    return Mark(MarkId(check_id(value["mark_id"], "mark id")), states)


def _text(value: object) -> str:
    if type(value) is not str:
        raise TypeError(f"{value!r} where a text belongs")
    return value


def _whole(value: object) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"{value!r} where a count belongs")
    return value
