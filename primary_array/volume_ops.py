"""Give a volume another size or another content, or make one of a snapshot: whole, or not at all.

Owns: nothing; it checks, takes locks in their order, and commits one frame.
Invariants:
  V1 what a volume held before ``rollback`` or ``swap`` stays as a snapshot where a name for it was
     given, taken in the same frame.
  V2 a volume that grows reads as zeros there, whatever an earlier cut left in its last granule.
  V3 each fork begins a lineage: no state of one branch is taken for an ancestor of the other.
  V4 what somebody uses is not replaced under him, nor made smaller while it is exported: ``refuse_if_used``
     is asked first, ``kept_unused`` or ``kept_unexported`` again inside the gate, and nobody comes to use
     it before the commit is over.
Callers: pool, any thread. Format: docs/formats/pool-v2.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

from arraylift.clock import Clock
from arraylift.errors import AlreadyExists, InvalidRequest, NotFound, Overloaded, WrongState
from arraylift.ids import GroupId, LineageId, SnapshotId, VolumeId, check_name, random_id
from arraylift.sizes import human
from primary_array import map_state
from primary_array.granule_io import GranuleIo
from primary_array.map_commit import MapCommit
from primary_array.map_events import (
    DraftCloned,
    DraftsSwapped,
    SnapshotDeleted,
    SnapshotsTaken,
    VolumeCloned,
    VolumeResized,
    VolumeRolledBack,
)
from primary_array.map_state import MapState, Snapshot, Volume
from primary_array.pool_types import (
    ROOT_BYTES,
    SECTOR_BYTES,
    SNAPSHOTS_PER_VOLUME_MAX,
    VOLUME_BYTES_MAX,
    VOLUMES_MAX,
    VOLUMES_PER_GROUP_MAX,
)


@dataclass(frozen=True, slots=True)
class Swap:
    """One member of a swap: ``root`` is that of the image in the draft, or empty; ``lineage_id``, never
    used before, is the volume's from then on."""

    draft_id: VolumeId
    volume_name: str
    root: bytes
    lineage_id: LineageId


class VolumeOps:
    """For one pool."""

    def __init__(self, state: MapState, commit: MapCommit, io: GranuleIo, clock: Clock) -> None:
        self._state = state
        self._commit = commit
        self._io = io
        self._clock = clock
        self.refuse_if_used: Callable[[str], None] = lambda _: None
        """Raises WrongState where a volume of that name has a writable export open (V4)."""
        self.kept_unused: Callable[[str], AbstractContextManager[None]] = self._asked_again
        """The same, and has nobody open one meanwhile."""
        self.kept_unexported: Callable[[str], AbstractContextManager[None]] = self._asked_again
        """Raises WrongState where a volume of that name is exported at all, and has nobody export it
        meanwhile: a client whose connection is cut comes back to the size that it knows (V4)."""

    @contextmanager
    def _asked_again(self, name: str) -> Iterator[None]:
        self.refuse_if_used(name)
        yield

    # -- one volume -------------------------------------------------------------------------

    def resize(self, volume: Volume, size_bytes: int) -> None:
        """See Pool.resize_volume."""
        check_size(size_bytes)
        if size_bytes < volume.size_bytes:
            self.refuse_if_used(volume.name)
        with volume.gate.hold(), self._commit.transaction(), ExitStack() as stack:
            self._check_there(volume)
            if size_bytes == volume.size_bytes:
                return
            lineage_id = ""
            if size_bytes > volume.size_bytes:
                self._io.zero_tail(volume)  # V2
            else:
                stack.enter_context(self.kept_unexported(volume.name))
                lineage_id = random_id()  # V3
            self._commit.commit(VolumeResized(volume.volume_id, size_bytes, lineage_id))

    def clone(self, snapshot_id: SnapshotId, name: str) -> None:
        """See Pool.clone_volume."""
        check_name(name, "a volume name")
        with self._commit.transaction():
            self.check_room_for(name)
            self._snapshot(snapshot_id)
            self._commit.commit(
                VolumeCloned(VolumeId(random_id()), name, snapshot_id, LineageId(random_id()))
            )

    def rollback(self, volume: Volume, snapshot_id: SnapshotId, safety_name: str) -> SnapshotId | None:
        """See Pool.rollback_volume. Returns the safety snapshot, if one was asked for."""
        if safety_name:
            check_name(safety_name, "a snapshot name")
        self.refuse_if_used(volume.name)
        with volume.gate.hold(), self._commit.transaction(), self.kept_unused(volume.name):
            self._check_there(volume)
            if self._snapshot(snapshot_id).volume_id != volume.volume_id:
                raise InvalidRequest(
                    f"snapshot {snapshot_id} is not one of volume {volume.name}",
                    subject=volume.name,
                    next_step="roll back to one of its own, or clone that snapshot",
                )
            back = VolumeRolledBack(volume.volume_id, snapshot_id, LineageId(random_id()))
            if not safety_name:
                self._commit.commit(back)
                return None
            taken = self.snapshot_event([volume], safety_name)
            self._commit.commit(taken, back)
            return taken.members[0][1]

    # -- drafts -----------------------------------------------------------------------------

    def begin_clone(
        self, name: str, reference: SnapshotId, size_bytes: int, draft_id: VolumeId
    ) -> map_state.Draft:
        """See Pool.begin_clone."""
        check_name(name, "a volume name")
        check_size(size_bytes)
        with self._commit.transaction():
            self.check_room_for(name)
            self.check_id_free(draft_id, name)
            self._snapshot(reference)
            self._commit.commit(DraftCloned(draft_id, name, size_bytes, reference))
            with self._state.lock:
                return self._state.drafts[draft_id]

    def begin_clone_of(
        self, volume: Volume, name: str, size_bytes: int, draft_id: VolumeId
    ) -> map_state.Draft:
        """See Pool.begin_clone_of. The snapshot that the draft is cloned from goes in the same frame."""
        check_name(name, "a volume name")
        check_size(size_bytes)
        with volume.gate.hold(), self._commit.transaction():
            self.check_room_for(name)
            self.check_id_free(draft_id, name)
            taken = self.snapshot_event([volume], "")
            passing = taken.members[0][1]
            cloned = DraftCloned(draft_id, name, size_bytes, passing)
            self._commit.commit(taken, cloned, SnapshotDeleted(passing))
            with self._state.lock:
                return self._state.drafts[draft_id]

    def swap(self, members: Sequence[Swap], safety_name: str) -> list[SnapshotId]:
        """See Pool.swap_drafts."""
        check_name(safety_name, "a snapshot name")
        names = [member.volume_name for member in members]
        if not 1 <= len(names) <= VOLUMES_PER_GROUP_MAX or len(set(names)) != len(names):
            raise InvalidRequest(f"swap 1 to {VOLUMES_PER_GROUP_MAX} different volumes, got {len(names)}")
        if any(len(member.root) not in {0, ROOT_BYTES} for member in members):
            raise InvalidRequest(f"a root has {ROOT_BYTES} bytes")
        for name in names:
            self.refuse_if_used(name)
        pairs = [(self._draft(member.draft_id), self._volume(member.volume_name)) for member in members]
        with ExitStack() as stack:
            both = [record for pair in pairs for record in pair]
            for record in sorted(both, key=lambda record: record.volume_id):
                stack.enter_context(record.gate.hold())
            stack.enter_context(self._commit.transaction())
            for (draft, volume), name in zip(pairs, names, strict=True):
                self._check_there(draft)
                self._check_there(volume)
                stack.enter_context(self.kept_unused(name))
                if draft.family_id != volume.family_id or not draft.registered:
                    raise WrongState(f"draft {draft.name} is no clone of volume {name}", subject=name)
            swapped = DraftsSwapped(
                tuple(
                    (draft.volume_id, volume.volume_id, member.lineage_id, member.root.hex())
                    for (draft, volume), member in zip(pairs, members, strict=True)
                )
            )
            taken = self.snapshot_event([volume for _, volume in pairs], safety_name)
            self._commit.commit(taken, swapped)
        return [snapshot_id for _, snapshot_id, _ in taken.members]

    # -- shared with the pool ---------------------------------------------------------------

    def snapshot_event(self, volumes: Sequence[Volume], label: str) -> SnapshotsTaken:
        """The event that takes one snapshot of each; gates and commit lock held. Raises NotFound,
        Overloaded."""
        for volume in volumes:
            self._check_there(volume)
            if len(volume.snapshots) >= SNAPSHOTS_PER_VOLUME_MAX:
                raise Overloaded(
                    f"volume {volume.name} has {SNAPSHOTS_PER_VOLUME_MAX} snapshots",
                    subject=volume.name,
                    next_step="delete some first",
                )
        members = tuple((v.volume_id, SnapshotId(random_id()), v.epoch) for v in volumes)
        return SnapshotsTaken(GroupId(random_id()), label, self._clock.wall_ns(), members)

    def check_room_for(self, name: str) -> None:
        """Raise AlreadyExists or Overloaded; inside a transaction the answer stays true."""
        with self._state.lock:
            if self._state.name_taken(name):
                raise AlreadyExists(f"volume {name} exists already", subject=name)
            if len(self._state.by_id) >= VOLUMES_MAX:
                raise Overloaded(f"a pool has at most {VOLUMES_MAX} volumes", next_step="delete some first")

    def check_id_free(self, volume_id: VolumeId, name: str) -> None:
        """Raise AlreadyExists if something bears this id."""
        if volume_id in self._state.by_id:
            raise AlreadyExists(f"volume {volume_id} exists already", subject=name)

    def _check_there(self, record: map_state.Writable) -> None:
        with self._state.lock:
            if record.gone:
                raise NotFound(f"volume {record.name} is gone", subject=record.name)

    def _volume(self, name: str) -> Volume:
        volume = self._state.volumes.get(name)
        if volume is None:
            raise NotFound(f"there is no volume {name}", subject=name)
        return volume

    def _draft(self, draft_id: VolumeId) -> map_state.Draft:
        draft = self._state.drafts.get(draft_id)
        if draft is None:
            raise NotFound(f"there is no draft {draft_id}", subject=draft_id)
        return draft

    def _snapshot(self, snapshot_id: SnapshotId) -> Snapshot:
        snapshot = self._state.snapshots.get(snapshot_id)
        if snapshot is None:
            raise NotFound(f"there is no snapshot {snapshot_id}", subject=snapshot_id)
        return snapshot


def check_size(size_bytes: int) -> None:
    """Raise InvalidRequest unless a volume may have this size."""
    if not SECTOR_BYTES <= size_bytes <= VOLUME_BYTES_MAX or size_bytes % SECTOR_BYTES:
        raise InvalidRequest(
            f"a volume has {SECTOR_BYTES} bytes to {human(VOLUME_BYTES_MAX)}, "
            f"in multiples of {SECTOR_BYTES}, not {size_bytes}"
        )
