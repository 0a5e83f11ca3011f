"""Volumes, snapshots, drafts and lineages of one pool, in memory.

Owns: the records and the one function that changes the tables, ``apply``: the
living pool and the replay of the journal run the same code.
Invariants:
  S1 ``apply`` is called live only with events that are durable in the journal.
  S2 a name belongs to one volume or draft; an id is never used again.
  S3 a volume's snapshots ascend by birth, all below the volume's epoch; no entry of its map is
     born after the epoch, so that one born in it is named by no other map.
  S4 a mapping carries the current epoch of its owner as birth.
  S5 a family is a volume and all that was cloned of it, for ever; only maps of one family
     share slots, each at one granule, with one birth.
Callers: all methods and fields under ``lock`` (the map lock), except those of
frozen maps. Journal replay runs before any other thread exists.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from arraylift.errors import Corruption
from arraylift.ids import GroupId, LineageId, PoolId, SnapshotId, SourceState, VolumeId
from arraylift.sizes import GRANULE_BYTES
from primary_array.block_map import NO_SLOTS, U64, BlockMap, FrozenMap, MapView
from primary_array.lineage import Lineage, LineageTable
from primary_array.map_events import (
    DraftAborted,
    DraftBegun,
    DraftCloned,
    DraftCommitted,
    DraftSaved,
    DraftsSwapped,
    Event,
    GranulesMapped,
    SnapshotDeleted,
    SnapshotsTaken,
    TrackerDistrusted,
    VolumeCloned,
    VolumeCreated,
    VolumeDeleted,
    VolumeResized,
    VolumeRolledBack,
    expand_runs,
)
from primary_array.pool_types import Origin
from primary_array.range_gate import RangeGate
from primary_array.run_log import RunLog
from primary_array.slot_counts import SlotCounts

FIRST_EPOCH = 1
DRAFT_EPOCH = 1
"""What a restore or import of a new volume wrote is born here; the volume goes on one later."""


@dataclass(slots=True, eq=False, kw_only=True)
class Writable:
    """What volumes and drafts share. ``gone`` is set, under the whole gate, when it ends."""

    volume_id: VolumeId
    name: str
    size_bytes: int
    epoch: int
    map: BlockMap
    family_id: VolumeId
    """The first volume of those that may share slots (S5)."""
    gate: RangeGate = field(default_factory=RangeGate)
    gone: bool = False


@dataclass(slots=True, eq=False, kw_only=True)
class Snapshot:
    snapshot_id: SnapshotId
    volume_id: VolumeId
    label: str
    group_id: GroupId
    created_at_ns: int
    size_bytes: int
    lineage_id: LineageId
    birth: int
    map: FrozenMap
    pins: int = 0
    ending: bool = False
    """A deletion is on its way: no more pins."""


@dataclass(slots=True, eq=False, kw_only=True)
class Volume(Writable):
    lineage_id: LineageId
    origin: Origin | None = None
    snapshots: list[Snapshot] = field(default_factory=list)

    @property
    def newest_snapshot_birth(self) -> int:
        return self.snapshots[-1].birth if self.snapshots else 0


@dataclass(slots=True, eq=False, kw_only=True)
class Draft(Writable):
    """``runs`` and ``freed`` wait until the journal knows the draft (``registered``). ``tag`` is None
    until progress was saved, and such a draft does not survive a start. ``fork``: the state of the
    snapshot that it was cloned from."""

    fork: SourceState | None = None
    runs: RunLog = field(default_factory=RunLog)
    freed: list[U64] = field(default_factory=list)
    registered: bool = False
    tag: bytes | None = None


class MapState:
    """All tables of one pool. See the module for locking."""

    def __init__(self, pool_id: PoolId) -> None:
        self.pool_id = pool_id
        self.lock = threading.Lock()
        self.lineages = LineageTable(pool_id)
        self.counts = SlotCounts()
        self.volumes: dict[str, Volume] = {}
        self.drafts: dict[VolumeId, Draft] = {}
        self.snapshots: dict[SnapshotId, Snapshot] = {}
        self.by_id: dict[VolumeId, Volume | Draft] = {}
        self._appliers: dict[type[Any], Callable[[Any], U64]] = {
            GranulesMapped: self._granules_mapped,
            VolumeCreated: self._volume_created,
            VolumeDeleted: self._volume_deleted,
            SnapshotsTaken: self._snapshots_taken,
            SnapshotDeleted: self._snapshot_deleted,
            TrackerDistrusted: self._tracker_distrusted,
            DraftBegun: self._draft_begun,
            DraftSaved: self._draft_saved,
            DraftCommitted: self._draft_committed,
            DraftAborted: self._draft_aborted,
            VolumeResized: self._volume_resized,
            VolumeCloned: self._volume_cloned,
            VolumeRolledBack: self._volume_rolled_back,
            DraftCloned: self._draft_cloned,
            DraftsSwapped: self._drafts_swapped,
        }

    # -- reading ----------------------------------------------------------------------------

    def name_taken(self, name: str) -> bool:
        return name in self.volumes or any(draft.name == name for draft in self.drafts.values())

    def state_of(self, record: Volume | Snapshot) -> SourceState:
        birth = record.epoch if isinstance(record, Volume) else record.birth
        return SourceState(self.pool_id, record.lineage_id, birth)

    def maps(self) -> Iterator[tuple[Volume | Draft, MapView]]:
        """Yield every map with the record that owns it."""
        for record in self.by_id.values():
            yield record, record.map
            if isinstance(record, Volume):
                for snapshot in record.snapshots:
                    yield record, snapshot.map

    def add(self, record: Volume | Draft) -> None:
        """Enter a record into the tables. Raises Corruption if S2 would break."""
        if record.volume_id in self.by_id or self.name_taken(record.name):
            raise Corruption(f"volume {record.name} appears twice in the map", subject=record.name)
        self.by_id[record.volume_id] = record
        if isinstance(record, Volume):
            self.volumes[record.name] = record
        else:
            self.drafts[record.volume_id] = record

    def drop_draft(self, draft: Draft) -> U64:
        """Forget a draft; returns the slots that only it named."""
        self._forget(draft)
        return draft.map.release()

    def _forget(self, draft: Draft) -> None:
        draft.gone = True
        del self.drafts[draft.volume_id], self.by_id[draft.volume_id]

    def prune_lineages(self) -> None:
        in_use = [volume.lineage_id for volume in self.volumes.values()]
        in_use += [snapshot.lineage_id for snapshot in self.snapshots.values()]
        in_use += [draft.fork.lineage_id for draft in self.drafts.values() if draft.fork]
        self.lineages.prune(in_use)

    # -- changing ---------------------------------------------------------------------------

    def apply(self, event: Event) -> U64:
        """Change the tables; returns the slots that nobody names any more. Raises Corruption if
        the event contradicts the state: then the journal is not this state's journal."""
        return self._appliers[type(event)](event)

    def _owner(self, volume_id: VolumeId) -> Volume | Draft:
        record = self.by_id.get(volume_id)
        if record is None:
            raise Corruption(f"the journal speaks of volume {volume_id}, which the map does not have")
        return record

    def _volume(self, volume_id: VolumeId) -> Volume:
        record = self._owner(volume_id)
        if not isinstance(record, Volume):
            raise Corruption(f"the journal takes the draft {record.name} for a volume", subject=record.name)
        return record

    def _draft(self, draft_id: VolumeId) -> Draft:
        record = self._owner(draft_id)
        if not isinstance(record, Draft):
            raise Corruption(f"the journal takes the volume {record.name} for a draft", subject=record.name)
        return record

    def _granules_mapped(self, event: GranulesMapped) -> U64:
        owner = self._owner(event.owner_id)
        granules, slots = expand_runs(event.runs)
        outside = len(granules) and int(granules.max()) >= owner.map.granule_count
        if event.birth != owner.epoch or outside:  # S4
            raise Corruption(f"a mapping of volume {owner.name} does not fit it", subject=owner.name)
        return owner.map.scatter(granules, slots, event.birth)

    def _forget_void_draft(self, name: str, draft_id: VolumeId | None = None) -> None:
        """In replay: a name or id that is taken again proves that the draft which had it, and never
        saved progress, was void: a start dropped it, of which the journal says nothing (pool_open O5)."""
        for draft in list(self.drafts.values()):
            if draft.tag is None and (draft.name == name or draft.volume_id == draft_id):
                self.drop_draft(draft)

    def _volume_created(self, event: VolumeCreated) -> U64:
        self._forget_void_draft(event.name)
        self.lineages.add(Lineage(event.lineage_id))
        self.add(
            Volume(
                volume_id=event.volume_id,
                name=event.name,
                size_bytes=event.size_bytes,
                epoch=FIRST_EPOCH,
                map=self.empty_map(event.size_bytes),
                family_id=event.volume_id,
                lineage_id=event.lineage_id,
            )
        )
        return NO_SLOTS

    def _volume_deleted(self, event: VolumeDeleted) -> U64:
        volume = self._volume(event.volume_id)
        volume.gone = True
        del self.volumes[volume.name], self.by_id[volume.volume_id]
        freed = [volume.map.release()]
        for snapshot in volume.snapshots:
            del self.snapshots[snapshot.snapshot_id]
            freed.append(snapshot.map.release())
        return np.concatenate(freed)

    def _snapshots_taken(self, event: SnapshotsTaken) -> U64:
        for volume_id, snapshot_id, birth in event.members:
            volume = self._volume(volume_id)
            if volume.epoch != birth or snapshot_id in self.snapshots:
                raise Corruption(f"a snapshot of volume {volume.name} does not fit it", subject=volume.name)
            snapshot = Snapshot(
                snapshot_id=snapshot_id,
                volume_id=volume_id,
                label=event.label,
                group_id=event.group_id,
                created_at_ns=event.created_at_ns,
                size_bytes=volume.size_bytes,
                lineage_id=volume.lineage_id,
                birth=birth,
                map=volume.map.freeze(),
            )
            volume.snapshots.append(snapshot)
            self.snapshots[snapshot_id] = snapshot
            volume.epoch = birth + 1
        return NO_SLOTS

    def _snapshot_deleted(self, event: SnapshotDeleted) -> U64:
        snapshot = self.snapshots.pop(event.snapshot_id, None)
        if snapshot is None:
            raise Corruption(f"the journal deletes snapshot {event.snapshot_id}, which the map does not have")
        assert snapshot.pins == 0
        volume = self._volume(snapshot.volume_id)
        volume.snapshots.remove(snapshot)
        return snapshot.map.release()

    def _tracker_distrusted(self, event: TrackerDistrusted) -> U64:
        volume = self._volume(event.volume_id)
        renewed = dict(event.snapshots)
        if set(renewed) != {snapshot.snapshot_id for snapshot in volume.snapshots}:
            raise Corruption(f"the journal distrusts other snapshots of {volume.name}", subject=volume.name)
        own = [volume.lineage_id, *(snapshot.lineage_id for snapshot in volume.snapshots)]
        doubted = self.lineages.with_ancestors(own)
        for snapshot in volume.snapshots:
            snapshot.lineage_id = renewed[snapshot.snapshot_id]
            self.lineages.add(Lineage(snapshot.lineage_id))
        volume.lineage_id = event.lineage_id
        self.lineages.add(Lineage(event.lineage_id))
        self.lineages.orphan(doubted)
        for draft in self.drafts.values():
            if draft.fork and draft.fork.lineage_id in doubted:
                draft.fork = None
        return NO_SLOTS

    def _draft_begun(self, event: DraftBegun) -> U64:
        draft = self.drafts.get(event.draft_id)
        if draft is None or draft.registered:  # else it is the living draft that introduces itself
            self._forget_void_draft(event.name, event.draft_id)
            draft = self.new_draft(event.draft_id, event.name, event.size_bytes)
            draft.registered = True
            self.add(draft)
        return NO_SLOTS

    def _draft_saved(self, event: DraftSaved) -> U64:
        self._draft(event.draft_id).tag = bytes.fromhex(event.tag_hex)
        return NO_SLOTS

    def _draft_committed(self, event: DraftCommitted) -> U64:
        draft = self._draft(event.draft_id)
        assert not draft.runs
        self._forget(draft)
        restored = self._fork(event.lineage_id, draft)
        self.add(
            Volume(
                volume_id=draft.volume_id,
                name=draft.name,
                size_bytes=draft.size_bytes,
                epoch=draft.epoch + 1,
                map=draft.map,
                family_id=draft.family_id,
                lineage_id=event.lineage_id,
                origin=Origin(bytes.fromhex(event.root_hex), restored) if event.root_hex else None,
            )
        )
        return NO_SLOTS

    def _fork(self, lineage_id: LineageId, draft: Draft) -> SourceState:
        """Begin the lineage of what a draft holds; returns the state that it is in."""
        parent = draft.fork
        if parent is None:
            self.lineages.add(Lineage(lineage_id))
        else:
            self.lineages.add(Lineage(lineage_id, parent.lineage_id, parent.birth))
        return SourceState(self.pool_id, lineage_id, draft.epoch)

    def _draft_aborted(self, event: DraftAborted) -> U64:
        return self.drop_draft(self._draft(event.draft_id))

    # -- resize, clone, rollback, swap --------------------------------------------------------

    def _volume_resized(self, event: VolumeResized) -> U64:
        volume = self._volume(event.volume_id)
        # A new map object: who is reading the old one goes on to.
        old, volume.map = volume.map, volume.map.fork()
        freed = [volume.map.resize(granules_of(event.size_bytes), volume.epoch), old.release()]
        volume.size_bytes = event.size_bytes
        if event.lineage_id:
            # Snapshots so far are ancestors; what the current epoch wrote is of the new lineage.
            lineage_id = LineageId(event.lineage_id)
            self.lineages.add(Lineage(lineage_id, volume.lineage_id, volume.epoch - 1))
            volume.lineage_id = lineage_id
        return np.concatenate(freed)

    def _snapshot(self, snapshot_id: SnapshotId) -> Snapshot:
        snapshot = self.snapshots.get(snapshot_id)
        if snapshot is None:
            raise Corruption(f"the journal speaks of snapshot {snapshot_id}, which the map does not have")
        return snapshot

    def _volume_cloned(self, event: VolumeCloned) -> U64:
        snapshot = self._snapshot(event.snapshot_id)
        self._forget_void_draft(event.name)
        self.lineages.add(Lineage(event.lineage_id, snapshot.lineage_id, snapshot.birth))
        self.add(
            Volume(
                volume_id=event.volume_id,
                name=event.name,
                size_bytes=snapshot.size_bytes,
                epoch=snapshot.birth + 1,
                map=snapshot.map.fork(),
                family_id=self._volume(snapshot.volume_id).family_id,
                lineage_id=event.lineage_id,  # no origin: by that a restore finds the volume that it made
            )
        )
        return NO_SLOTS

    def _volume_rolled_back(self, event: VolumeRolledBack) -> U64:
        volume, snapshot = self._volume(event.volume_id), self._snapshot(event.snapshot_id)
        if snapshot.volume_id != volume.volume_id:
            raise Corruption(f"the journal rolls {volume.name} back to another's snapshot")
        self.lineages.add(Lineage(event.lineage_id, snapshot.lineage_id, snapshot.birth))
        old, volume.map = volume.map, snapshot.map.fork()
        volume.size_bytes = snapshot.size_bytes
        volume.lineage_id = event.lineage_id
        volume.epoch += 1  # above every birth of the volume and its snapshots (S3)
        return old.release()

    def _draft_cloned(self, event: DraftCloned) -> U64:
        snapshot = self._snapshot(event.snapshot_id)
        self._forget_void_draft(event.name, event.draft_id)
        draft = Draft(
            volume_id=event.draft_id,
            name=event.name,
            size_bytes=event.size_bytes,
            epoch=snapshot.birth + 1,
            map=snapshot.map.fork(),
            family_id=self._volume(snapshot.volume_id).family_id,
            fork=self.state_of(snapshot),
            registered=True,
        )
        self.add(draft)
        return draft.map.resize(granules_of(event.size_bytes), draft.epoch)

    def _drafts_swapped(self, event: DraftsSwapped) -> U64:
        freed = []
        for draft_id, volume_id, lineage_id, root_hex in event.members:
            draft, volume = self._draft(draft_id), self._volume(volume_id)
            self._forget(draft)
            restored = self._fork(lineage_id, draft)
            freed.append(volume.map.release())
            volume.map, volume.size_bytes = draft.map, draft.size_bytes
            volume.lineage_id = lineage_id
            volume.epoch = max(volume.epoch, draft.epoch) + 1  # S3
            volume.origin = Origin(bytes.fromhex(root_hex), restored) if root_hex else None
        return np.concatenate(freed)

    # -- making -------------------------------------------------------------------------------

    def empty_map(self, size_bytes: int) -> BlockMap:
        """A map of ``size_bytes`` in which nothing was written."""
        return BlockMap(granules_of(size_bytes), self.counts)

    def new_draft(self, draft_id: VolumeId, name: str, size_bytes: int) -> Draft:
        """Return an empty draft that no table knows yet."""
        return Draft(
            volume_id=draft_id,
            name=name,
            size_bytes=size_bytes,
            epoch=DRAFT_EPOCH,
            map=self.empty_map(size_bytes),
            family_id=draft_id,
        )


def granules_of(size_bytes: int) -> int:
    """Return how many granules hold ``size_bytes``; the last may be used in part."""
    return -(-size_bytes // GRANULE_BYTES)
