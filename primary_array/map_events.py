"""What can happen to a pool's map, and the bytes of it. Pure.

Owns: the event types of the journal and their encoding.
Invariants:
  E1 an event is complete: applying the same events in the same order to the
     same state gives the same state, without looking at anything else.
  E2 decode(encode(events)) == events; what is unknown or malformed is Corruption.
Bulk mappings are binary runs; all other events are rare and carry canonical JSON.
Callers: map_journal and map_commit. Format: docs/formats/pool-v2.md.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from arraylift.errors import Corruption
from arraylift.ids import GroupId, LineageId, SnapshotId, VolumeId
from primary_array.block_map import NONE_SLOT, U64

RUN = np.dtype([("granule", "<u8"), ("slot", "<u8"), ("count", "<u4")])
"""``count`` granules from ``granule``, in as many consecutive slots; slot 0: all are tombstones."""

Runs = npt.NDArray[np.void]

_EVENT = struct.Struct("<HHI")  # type, reserved 0, body bytes
_MAPPED = struct.Struct("<16sQII")  # owner, birth, runs, reserved 0


@dataclass(frozen=True, slots=True, eq=False)
class GranulesMapped:
    """Granules of a volume or draft got slots, or became tombstones. Not hashable."""

    owner_id: VolumeId
    birth: int
    runs: Runs

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, GranulesMapped)
            and (self.owner_id, self.birth) == (other.owner_id, other.birth)
            and bool(np.array_equal(self.runs, other.runs))
        )

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class VolumeCreated:
    volume_id: VolumeId
    name: str
    size_bytes: int
    lineage_id: LineageId


@dataclass(frozen=True, slots=True)
class VolumeDeleted:
    """With every snapshot that it has at that moment."""

    volume_id: VolumeId


@dataclass(frozen=True, slots=True)
class SnapshotsTaken:
    """One instant: each member is [volume id, snapshot id, birth]; the volume goes on at birth + 1."""

    group_id: GroupId
    label: str
    created_at_ns: int
    members: tuple[tuple[VolumeId, SnapshotId, int], ...]


@dataclass(frozen=True, slots=True)
class SnapshotDeleted:
    snapshot_id: SnapshotId


@dataclass(frozen=True, slots=True)
class TrackerDistrusted:
    """The volume and each of its snapshots go on in lineages that nothing is an ancestor of."""

    volume_id: VolumeId
    lineage_id: LineageId
    snapshots: tuple[tuple[SnapshotId, LineageId], ...]


@dataclass(frozen=True, slots=True)
class DraftBegun:
    draft_id: VolumeId
    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class DraftSaved:
    """Everything mapped so far survives; ``tag_hex`` is the caller's note of how far it is."""

    draft_id: VolumeId
    tag_hex: str


@dataclass(frozen=True, slots=True)
class DraftCommitted:
    """The draft is a volume from now on, under the same id. ``root_hex`` is empty without an origin."""

    draft_id: VolumeId
    lineage_id: LineageId
    root_hex: str


@dataclass(frozen=True, slots=True)
class DraftAborted:
    draft_id: VolumeId


@dataclass(frozen=True, slots=True)
class VolumeResized:
    """What is past a smaller size is gone; up to a larger one all is zero, and counts as changed.
    A cut forks a lineage, which births do not mind: who watches from outside did not see it."""

    volume_id: VolumeId
    size_bytes: int
    lineage_id: str
    """Empty where the volume grows."""


@dataclass(frozen=True, slots=True)
class VolumeCloned:
    """A new volume with a snapshot's content; its lineage forks from the snapshot's."""

    volume_id: VolumeId
    name: str
    snapshot_id: SnapshotId
    lineage_id: LineageId


@dataclass(frozen=True, slots=True)
class VolumeRolledBack:
    """The volume has its snapshot's content and size again; its lineage forks from the snapshot's."""

    volume_id: VolumeId
    snapshot_id: SnapshotId
    lineage_id: LineageId


@dataclass(frozen=True, slots=True)
class DraftCloned:
    """A draft begun with a snapshot's content, cut or filled to ``size_bytes``."""

    draft_id: VolumeId
    name: str
    size_bytes: int
    snapshot_id: SnapshotId


@dataclass(frozen=True, slots=True)
class DraftsSwapped:
    """Each draft is, from now on, the content of a volume: [draft id, volume id, lineage id, root or
    empty]. The volumes keep id, name and snapshots; the drafts are no more."""

    members: tuple[tuple[VolumeId, VolumeId, LineageId, str], ...]


TableEvent = (
    VolumeCreated
    | VolumeDeleted
    | SnapshotsTaken
    | SnapshotDeleted
    | TrackerDistrusted
    | DraftBegun
    | DraftSaved
    | DraftCommitted
    | DraftAborted
    | VolumeResized
    | VolumeCloned
    | VolumeRolledBack
    | DraftCloned
    | DraftsSwapped
)
Event = GranulesMapped | TableEvent

TYPE_MAPPED = 1
TYPES: dict[int, type[Any]] = {
    2: VolumeCreated,
    3: VolumeDeleted,
    4: SnapshotsTaken,
    5: SnapshotDeleted,
    6: TrackerDistrusted,
    7: DraftBegun,
    8: DraftSaved,
    9: DraftCommitted,
    10: DraftAborted,
    11: VolumeResized,
    12: VolumeCloned,
    13: VolumeRolledBack,
    14: DraftCloned,
    15: DraftsSwapped,
}
_NUMBERS = {kind: number for number, kind in TYPES.items()}


# -- runs -----------------------------------------------------------------------------------


def make_runs(granules: U64, slots: U64) -> list[tuple[int, int, int]]:
    """Pack parallel arrays (granules ascending) into (granule, slot, count) runs."""
    if not len(granules):
        return []
    slot_step = np.where(slots[:-1] == NONE_SLOT, 0, 1).astype(np.uint64)
    joined = (granules[1:] == granules[:-1] + np.uint64(1)) & (slots[1:] == slots[:-1] + slot_step)
    starts = np.concatenate(([0], np.flatnonzero(~joined) + 1))
    counts = np.diff(np.concatenate((starts, [len(granules)])))
    return list(zip(granules[starts].tolist(), slots[starts].tolist(), counts.tolist(), strict=True))


def expand_runs(runs: Runs) -> tuple[U64, U64]:
    """Unpack runs into parallel arrays (granules, slots), in the order of the runs."""
    counts = runs["count"].astype(np.int64)
    inside = (np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)).astype(np.uint64)
    granules = np.repeat(runs["granule"], counts).astype(np.uint64) + inside
    firsts = np.repeat(runs["slot"], counts).astype(np.uint64)
    return granules, np.where(firsts == NONE_SLOT, np.uint64(0), firsts + inside)


# -- encoding -------------------------------------------------------------------------------


def encode(events: Sequence[Event]) -> bytes:
    """Return the payload of one journal frame."""
    parts = []
    for event in events:
        if isinstance(event, GranulesMapped):
            number = TYPE_MAPPED
            head = _MAPPED.pack(bytes.fromhex(event.owner_id), event.birth, len(event.runs), 0)
            body = head + event.runs.tobytes()
        else:
            number = _NUMBERS[type(event)]
            body = json.dumps(dataclasses.asdict(event), sort_keys=True, separators=(",", ":")).encode()
        parts += [_EVENT.pack(number, 0, len(body)), body]
    return b"".join(parts)


def decode(payload: bytes) -> list[Event]:
    """Rebuild the events of a frame whose checksum is right. Raises Corruption (E2)."""
    events: list[Event] = []
    at = 0
    try:
        while at < len(payload):
            number, reserved, length = _EVENT.unpack_from(payload, at)
            at += _EVENT.size
            body = payload[at : at + length]
            if reserved or len(body) != length:
                raise ValueError(f"event of type {number} is cut")
            events.append(_decode_mapped(body) if number == TYPE_MAPPED else _decode_table(number, body))
            at += length
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise Corruption(
            f"the pool's journal holds an event that this version cannot read: {error}",
            next_step="run the version that wrote the pool, or restore its metadata",
        ) from error
    return events


def _decode_mapped(body: bytes) -> GranulesMapped:
    owner, birth, count, reserved = _MAPPED.unpack_from(body)
    runs = np.frombuffer(body, RUN, offset=_MAPPED.size)
    if reserved or len(runs) != count or birth == 0:
        raise ValueError("a mapping event contradicts its own header")
    return GranulesMapped(VolumeId(owner.hex()), birth, runs)


def _decode_table(number: int, body: bytes) -> TableEvent:
    kind = TYPES.get(number)
    if kind is None:
        raise ValueError(f"event type {number} is unknown")
    fields = json.loads(body)
    if set(fields) != {field.name for field in dataclasses.fields(kind)}:
        raise ValueError(f"{kind.__name__} has the fields {sorted(fields)}")
    for name in ("members", "snapshots"):
        if name in fields:
            fields[name] = tuple(tuple(member) for member in fields[name])
    event: TableEvent = kind(**fields)
    return event
