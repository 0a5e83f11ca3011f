"""The pool: volumes, snapshots and drafts of one directory. The storage layer's front door.

Owns: nothing of its own; it checks requests, takes locks in their order and calls
the modules that own the state.
Invariants:
  A1 a snapshot contains every write that was acknowledged before it, of all its
     volumes at one instant, and birth + 1 is durable before any later write is admitted.
  A2 a pinned snapshot is neither deleted nor are its slots reused.
  A3 ``flush`` answered = every write and trim answered before it survives.
  A4 changes are told only against an ancestor of the snapshot; anything else is None.
Callers: any thread, every method. What makes each pair of operations safe is in
primary_array/__init__.py. Format: docs/formats/pool-v1.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from arraylift.clock import SYSTEM_CLOCK, Clock
from arraylift.durable import Buffer, Files
from arraylift.errors import AlreadyExists, InvalidRequest, NotFound, Overloaded, WrongState
from arraylift.ids import (
    GroupId,
    LineageId,
    PoolId,
    SnapshotId,
    SourceState,
    VolumeId,
    check_name,
    random_id,
)
from arraylift.sizes import GRANULE_BYTES, human
from primary_array import map_state
from primary_array.block_map import U64
from primary_array.draft import Draft
from primary_array.granule_io import GranuleIo
from primary_array.map_commit import JOURNAL_BYTES_MAX
from primary_array.map_events import (
    SnapshotDeleted,
    SnapshotsTaken,
    TrackerDistrusted,
    VolumeCreated,
    VolumeDeleted,
)
from primary_array.map_state import Snapshot
from primary_array.pin import Pin
from primary_array.pool_open import OpenedPool, open_pool
from primary_array.pool_types import (
    SECTOR_BYTES,
    SNAPSHOTS_PER_VOLUME_MAX,
    VOLUME_BYTES_MAX,
    VOLUMES_MAX,
    VOLUMES_PER_GROUP_MAX,
    DraftInfo,
    PoolStats,
    SnapshotInfo,
    Source,
    VolumeInfo,
)
from primary_array.pool_view import PoolView


class Pool:
    """One open pool; ``close`` it, or it recovers at its next start."""

    def __init__(self, parts: OpenedPool, files: Files, directory: str, clock: Clock) -> None:
        self._lock_file = parts.lock
        self._state = parts.state
        self._slots = parts.slots
        self._commit = parts.commit
        self._io = GranuleIo(parts.state, parts.slots, parts.commit)
        self._view = PoolView(parts.state)
        self._files = files
        self._directory = directory
        self._clock = clock

    @classmethod
    def open(
        cls,
        files: Files,
        directory: str,
        *,
        clock: Clock = SYSTEM_CLOCK,
        journal_bytes_max: int = JOURNAL_BYTES_MAX,
    ) -> Pool:
        """Open the pool in ``directory`` (absolute), made if the directory is empty or missing.

        Raises WrongState (in use, or another version's), Corruption (nothing was changed).
        """
        return cls(open_pool(files, directory, journal_bytes_max=journal_bytes_max), files, directory, clock)

    def close(self) -> None:
        """Make everything durable and give the directory back. No other call may be running.
        Raises OutOfSpace, StoreFailed: what was not flushed may be lost; the pool is closed anyway."""
        try:
            self._commit.close()
        finally:
            self._lock_file.close()

    @property
    def pool_id(self) -> PoolId:
        return self._state.pool_id

    @property
    def data_path(self) -> str:
        """The file of slots, for workers that open it read-only."""
        return self._slots.path

    # -- volumes ----------------------------------------------------------------------------

    def create_volume(self, name: str, size_bytes: int) -> VolumeInfo:
        """Make an empty volume, durably. Raises AlreadyExists, InvalidRequest, OutOfSpace, Overloaded."""
        check_name(name, "a volume name")
        check_size(size_bytes)
        with self._commit.transaction():
            self._check_room_for(name)
            event = VolumeCreated(VolumeId(random_id()), name, size_bytes, LineageId(random_id()))
            self._commit.commit(event)
            return self.volume(name)

    def delete_volume(self, name: str, *, cascade: bool = False) -> None:
        """Remove a volume; with ``cascade`` its snapshots too. Raises NotFound, WrongState (has
        snapshots; one is pinned). Waits for writes that are on their way."""
        volume = self._view.volume(name)
        with volume.gate.hold(), self._commit.transaction():
            with self._state.lock:
                if volume.gone:
                    raise NotFound(f"volume {name} is gone", subject=name)
                if volume.snapshots and not cascade:
                    raise WrongState(
                        f"volume {name} has {len(volume.snapshots)} snapshots",
                        subject=name,
                        next_step="delete them first, or delete with cascade",
                    )
                ending = list(volume.snapshots)
                _begin_ending(ending)
            try:
                self._commit.commit(VolumeDeleted(volume.volume_id))
            finally:
                _stop_ending(ending)

    def volumes(self) -> list[VolumeInfo]:
        """All volumes, by name."""
        return self._view.volume_infos()

    def volume(self, name: str) -> VolumeInfo:
        """Raises NotFound."""
        return self._view.volume_info(name)

    def distrust(self, name: str) -> None:
        """Stop believing the births of a volume, durably: from now on no earlier state of it or of
        its snapshots is an ancestor of anything. Raises NotFound, OutOfSpace."""
        with self._commit.transaction():
            volume = self._view.volume(name)
            renewed = tuple((s.snapshot_id, LineageId(random_id())) for s in volume.snapshots)
            self._commit.commit(TrackerDistrusted(volume.volume_id, LineageId(random_id()), renewed))

    # -- data -------------------------------------------------------------------------------

    def write(self, name: str, offset: int, data: Buffer) -> None:
        """Write to a volume; kept once ``flush`` answered. Raises NotFound, InvalidRequest, OutOfSpace
        (the range may hold old or new bytes, nothing else is touched), StoreFailed."""
        self._io.write(self._view.volume(name), offset, data)

    def trim(self, name: str, offset: int, length: int) -> None:
        """Make a range of a volume zero and free its space. Errors as ``write``."""
        self._io.trim(self._view.volume(name), offset, length)

    def flush(self, name: str) -> None:
        """Make everything acknowledged durable (A3), of this volume and, as it happens, of all.
        Raises NotFound, OutOfSpace (nothing lost; repeat), StoreFailed."""
        self._view.volume(name)
        self._commit.flush()

    def read_into(self, source: Source, offset: int, into: memoryview) -> None:
        """Fill ``into`` from a volume or snapshot. Raises NotFound, InvalidRequest, Corruption."""
        with self._slots.reading():
            view = self._view.mapped(source, offset, into.nbytes)
            self._io.read_into(view, offset, into)

    def extents(self, source: Source, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """Iterate over (offset, length, is_hole) of a range, ascending, neighbours of one kind joined.

        Of a volume that is being written, each stretch of 4 GiB is as of one instant.
        Raises NotFound, InvalidRequest.
        """
        view = self._view.mapped(source, offset, length)
        return self._view.extents(view, offset, length)

    # -- snapshots --------------------------------------------------------------------------

    def snapshot(self, names: Sequence[str], label: str = "") -> list[SnapshotInfo]:
        """Take one snapshot of each volume, all at one instant, durable on return (A1).

        Holds back writes to these volumes while it commits: two syncs of what was written since
        the flush with which it begins. Raises NotFound, InvalidRequest, Overloaded (too many
        snapshots), OutOfSpace (none was taken).
        """
        if not 1 <= len(names) <= VOLUMES_PER_GROUP_MAX or len(set(names)) != len(names):
            raise InvalidRequest(f"name 1 to {VOLUMES_PER_GROUP_MAX} different volumes, got {len(names)}")
        if label:
            check_name(label, "a snapshot name")
        volumes = [self._view.volume(name) for name in names]
        self._commit.flush()  # so that little is left to sync while writers wait
        with ExitStack() as stack:
            for volume in sorted(volumes, key=lambda volume: volume.volume_id):
                stack.enter_context(volume.gate.hold())
            stack.enter_context(self._commit.transaction())
            for volume in volumes:
                self._check_snapshottable(volume)
            members = tuple((v.volume_id, SnapshotId(random_id()), v.epoch) for v in volumes)
            now_ns = self._clock.wall_ns()
            self._commit.commit(SnapshotsTaken(GroupId(random_id()), label, now_ns, members))
            return [self._view.snapshot_info(snapshot_id) for _, snapshot_id, _ in members]

    def snapshots(self, name: str | None = None) -> list[SnapshotInfo]:
        """Snapshots of one volume, oldest first, or of all by volume name. Raises NotFound."""
        return self._view.snapshot_infos(name)

    def get_snapshot(self, snapshot_id: SnapshotId) -> SnapshotInfo:
        """Raises NotFound."""
        return self._view.snapshot_info(snapshot_id)

    def delete_snapshot(self, snapshot_id: SnapshotId) -> None:
        """Remove a snapshot and free what only it named. Raises NotFound, WrongState (pinned)."""
        with self._commit.transaction():
            with self._state.lock:
                snapshot = self._view.snapshot(snapshot_id)
                _begin_ending([snapshot])
            try:
                self._commit.commit(SnapshotDeleted(snapshot_id))
            finally:
                _stop_ending([snapshot])

    def pin(self, snapshot_id: SnapshotId) -> Pin:
        """Hold a snapshot still (A2). Raises NotFound, WrongState (is being deleted)."""
        with self._state.lock:
            snapshot = self._view.snapshot(snapshot_id)
            if snapshot.ending:
                raise WrongState(f"snapshot {snapshot_id} is being deleted", subject=snapshot_id)
            snapshot.pins += 1

        def release() -> None:
            with self._state.lock:
                snapshot.pins -= 1

        info = self._view.snapshot_info(snapshot_id)
        return Pin(info, snapshot.map, data_path=self.data_path, release=release)

    # -- changes ----------------------------------------------------------------------------

    def changed_spans(
        self, snapshot_id: SnapshotId, since: SourceState | bytes, *, base_bytes: int | None = None
    ) -> U64 | None:
        """Return the indexes of the spans that may differ from ``since``, or None if nobody can tell.

        ``since`` is a state (A4) or the root of the image that the volume was restored from;
        ``base_bytes`` is the size of that base, if it may differ. Raises NotFound.
        """
        return self._view.changed_spans(snapshot_id, since, base_bytes)

    def changed_ranges(
        self, snapshot_id: SnapshotId, since: SourceState | bytes, *, base_bytes: int | None = None
    ) -> tuple[U64, U64] | None:
        """Like ``changed_spans``, in (offsets, lengths) of bytes, cut at granules."""
        return self._view.changed_ranges(snapshot_id, since, base_bytes)

    # -- drafts -----------------------------------------------------------------------------

    def begin_volume(self, name: str, size_bytes: int, *, volume_id: VolumeId | None = None) -> Draft:
        """Begin a volume that appears at its commit; the name is taken from now on.

        ``volume_id``: an id of the caller's making, by which it finds the volume again. Raises
        AlreadyExists, InvalidRequest, Overloaded.
        """
        check_name(name, "a volume name")
        check_size(size_bytes)
        with self._commit.transaction():
            self._check_room_for(name)
            record = map_state.new_draft(volume_id or VolumeId(random_id()), name, size_bytes)
            if record.volume_id in self._state.by_id:
                raise AlreadyExists(f"volume {record.volume_id} exists already", subject=name)
            with self._state.lock:
                self._state.add(record)
        return self._draft(record)

    def drafts(self) -> list[DraftInfo]:
        """Drafts that are being written, and those that a stop of the array left with saved progress."""
        return self._view.draft_infos()

    def resume_draft(self, draft_id: VolumeId) -> Draft:
        """Go on with a draft. The caller sees to it that only one does. Raises NotFound."""
        with self._state.lock:
            record = self._state.drafts.get(draft_id)
        if record is None:
            raise NotFound(f"there is no draft {draft_id}", subject=draft_id)
        return self._draft(record)

    def _draft(self, record: map_state.Draft) -> Draft:
        return Draft(record, state=self._state, slots=self._slots, commit=self._commit, io=self._io)

    # -- the whole --------------------------------------------------------------------------

    def stats(self) -> PoolStats:
        """Figures of this moment."""
        used, waiting = self._slots.counts()
        counts = self._view.counts()
        return PoolStats(
            pool_id=self.pool_id,
            granule_bytes=GRANULE_BYTES,
            slots_used=used,
            slots_waiting=waiting,
            data_file_bytes=self._slots.allocated_bytes(),
            free_bytes=self._files.free_bytes(self._directory),
            volume_count=counts.volumes,
            snapshot_count=counts.snapshots,
            draft_count=counts.drafts,
            map_bytes=counts.map_bytes,
            journal_bytes=self._commit.journal_bytes,
        )

    # -- helpers ----------------------------------------------------------------------------

    def _check_room_for(self, name: str) -> None:
        """Raise AlreadyExists or Overloaded; inside a transaction the answer stays true."""
        with self._state.lock:
            if self._state.name_taken(name):
                raise AlreadyExists(f"volume {name} exists already", subject=name)
            if len(self._state.by_id) >= VOLUMES_MAX:
                raise Overloaded(f"a pool has at most {VOLUMES_MAX} volumes", next_step="delete some first")

    def _check_snapshottable(self, volume: map_state.Volume) -> None:
        with self._state.lock:
            if volume.gone:
                raise NotFound(f"volume {volume.name} is gone", subject=volume.name)
            if len(volume.snapshots) >= SNAPSHOTS_PER_VOLUME_MAX:
                raise Overloaded(
                    f"volume {volume.name} has {SNAPSHOTS_PER_VOLUME_MAX} snapshots",
                    subject=volume.name,
                    next_step="delete some first",
                )


def check_size(size_bytes: int) -> None:
    """Raise InvalidRequest unless a volume may have this size."""
    if not SECTOR_BYTES <= size_bytes <= VOLUME_BYTES_MAX or size_bytes % SECTOR_BYTES:
        raise InvalidRequest(
            f"a volume has {SECTOR_BYTES} bytes to {human(VOLUME_BYTES_MAX)}, "
            f"in multiples of {SECTOR_BYTES}, not {size_bytes}"
        )


def _begin_ending(snapshots: Sequence[Snapshot]) -> None:
    """Admit no more pins; raises WrongState if there is one (A2). Map lock held."""
    for snapshot in snapshots:
        if snapshot.pins:
            raise WrongState(
                f"snapshot {snapshot.snapshot_id} is being read by {snapshot.pins} transfers",
                subject=snapshot.snapshot_id,
                next_step="wait for them or cancel them",
            )
    for snapshot in snapshots:
        snapshot.ending = True


def _stop_ending(snapshots: Sequence[Snapshot]) -> None:
    """Admit pins again, where the deletion failed; the deleted ones nobody finds any more."""
    for snapshot in snapshots:
        snapshot.ending = False
