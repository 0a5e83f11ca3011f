"""What arrays may serve for one VM, and where its disks sit in the guest's machine. Pure.

Invariants:
  O1 what is decoded has been encoded: envelope and checksum, every field present, of its type.
  O2 places are distinct, below DISKS_MAX; no export of ``disks`` is stale.
Callers: guest_folder, any thread. Format: docs/formats/vm-record-v1.md
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from arraylift import envelope
from arraylift.errors import ArrayliftError, Corruption
from arraylift.ids import check_id, check_name
from arraylift.vm.types import DISKS_MAX, Disk

MAGIC = b"ALQEMURN"


@dataclass(frozen=True, slots=True)
class PlacedDisk:
    """A disk of a guest, the export that serves it, and its place, from which its PCI address follows."""

    name: str
    array_address: str
    volume_name: str
    export: str
    place: int

    def serves(self, disk: Disk) -> bool:
        """It is that disk, of the VM's configuration."""
        return (self.name, self.array_address, self.volume_name) == (
            disk.name,
            disk.array_address,
            disk.volume_name,
        )


@dataclass(frozen=True, slots=True)
class RunRecord:
    """``disks``: of the guest that runs, or is being started. ``stale``: (array, export) that shall go.
    Between them they name every export that an array may have for this VM on this host.

    ``incoming``: the migration whose guest is waited for; ``outgoing``: the one that sends this guest;
    ``sent``: and it is whole elsewhere.
    """

    disks: tuple[PlacedDisk, ...] = ()
    stale: tuple[tuple[str, str], ...] = ()
    incoming: str = ""
    outgoing: str = ""
    sent: bool = False
    downtime_ns: int = 0

    def retired(self) -> RunRecord:
        """As it is when the guest has ended: nothing but exports that shall go."""
        served = tuple((disk.array_address, disk.export) for disk in self.disks)
        return RunRecord(stale=(*self.stale, *served))


_KEYS = frozenset(RunRecord.__slots__)
_DISK_KEYS = frozenset(PlacedDisk.__slots__)


def encode(record: RunRecord) -> bytes:
    """Return the whole file."""
    return envelope.encode(MAGIC, envelope.canonical_json(asdict(record)))


def decode(data: bytes, *, what: str) -> RunRecord:
    """Raises Corruption (O1, O2), WrongState (a newer format)."""
    value = envelope.decode_json(MAGIC, data, what=what, keys=_KEYS)
    try:
        record = RunRecord(
            disks=tuple(_disk(one) for one in value["disks"]),
            stale=tuple((_of(address, str), _of(export, str)) for address, export in value["stale"]),
            incoming=_id(value["incoming"]),
            outgoing=_id(value["outgoing"]),
            sent=_of(value["sent"], bool),
            downtime_ns=_of(value["downtime_ns"], int),
        )
        places = [disk.place for disk in record.disks]
        if len(set(places)) != len(places) or not all(0 <= place < DISKS_MAX for place in places):
            raise ValueError("two disks in one place, or one in none")
        if {(disk.array_address, disk.export) for disk in record.disks} & set(record.stale):
            raise ValueError("an export is used and stale")
    except (ArrayliftError, TypeError, ValueError, AttributeError, KeyError) as error:
        raise Corruption(f"{what} makes no sense: {error}", subject=what) from error
    return record


def _disk(value: dict[str, Any]) -> PlacedDisk:
    if value.keys() != _DISK_KEYS:
        raise ValueError("a disk with other fields")
    return PlacedDisk(
        name=check_name(_of(value["name"], str), "a disk name"),
        array_address=_of(value["array_address"], str),
        volume_name=check_name(_of(value["volume_name"], str), "a volume name"),
        export=check_name(_of(value["export"], str), "an export name"),
        place=_of(value["place"], int),
    )


def _id(value: object) -> str:
    return check_id(_of(value, str), "migration id") if value else _of(value, str)


def _of(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r} where a {kind.__name__} belongs")
    return value


def place_for(wanted: int, taken: Iterable[int]) -> int:
    """The place of a disk that is added: ``wanted``, its index among the VM's disks, else the lowest free."""
    used = set(taken)
    if wanted not in used:
        return wanted
    return next(place for place in range(DISKS_MAX) if place not in used)
