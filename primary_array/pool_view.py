"""Look things up in a pool's state: records, figures, extents, changes.

Owns: nothing; it never changes the state.
Invariant: Q1 what is answered about one record is as of one instant.
Callers: pool, any thread; methods that say so want the map lock held, the others take it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from arraylift.errors import InvalidRequest, NotFound
from arraylift.ids import SnapshotId, SourceState
from arraylift.sizes import GRANULE_BYTES
from primary_array import changes
from primary_array.block_map import NONE_SLOT, U64, FrozenMap, MapView
from primary_array.map_state import MapState, Snapshot, Volume
from primary_array.page_file import PAGE_BYTES
from primary_array.pool_types import DraftInfo, SnapshotInfo, Source, VolumeInfo, VolumeSource

EXTENT_GRANULES = 1 << 16
"""Granules that ``extents`` looks up at once: 4 GiB of a volume."""


@dataclass(frozen=True, slots=True)
class Counts:
    volumes: int
    snapshots: int
    drafts: int
    map_bytes: int


class PoolView:
    """Read access to one MapState."""

    def __init__(self, state: MapState) -> None:
        self._state = state

    # -- records ----------------------------------------------------------------------------

    def volume(self, name: str) -> Volume:
        """Raises NotFound. One dictionary look-up: with or without the map lock."""
        volume = self._state.volumes.get(name)
        if volume is None:
            raise NotFound(f"there is no volume {name}", subject=name)
        return volume

    def snapshot(self, snapshot_id: SnapshotId) -> Snapshot:
        """Raises NotFound. One dictionary look-up: with or without the map lock."""
        snapshot = self._state.snapshots.get(snapshot_id)
        if snapshot is None:
            raise NotFound(f"there is no snapshot {snapshot_id}", subject=snapshot_id)
        return snapshot

    def mapped(self, source: Source, offset: int, length: int) -> MapView:
        """Return the map of a source. Raises NotFound, InvalidRequest (range outside)."""
        found: Volume | Snapshot
        with self._state.lock:  # size and map change together
            if isinstance(source, VolumeSource):
                found = self.volume(source.name)
            else:
                found = self.snapshot(source.snapshot_id)
            view, size_bytes = found.map, found.size_bytes
        if offset < 0 or length < 0 or offset + length > size_bytes:
            raise InvalidRequest(
                f"bytes {offset} to {offset + length} are outside {source} of {size_bytes} bytes"
            )
        return view

    # -- figures ----------------------------------------------------------------------------

    def volume_info(self, name: str, *, with_space: bool = False) -> VolumeInfo:
        """Raises NotFound."""
        with self._state.lock:
            volume = self.volume(name)
            info, view = self._volume_info(volume), volume.map
        # Outside the lock: it takes milliseconds for each 8 GiB.
        return replace(info, unique_bytes=view.unique_count() * GRANULE_BYTES) if with_space else info

    def volume_infos(self, *, with_space: bool = False) -> list[VolumeInfo]:
        with self._state.lock:
            names = sorted(self._state.volumes)
        found = []
        for name in names:
            with suppress(NotFound):
                found.append(self.volume_info(name, with_space=with_space))
        return found

    def snapshot_info(self, snapshot_id: SnapshotId) -> SnapshotInfo:
        """Raises NotFound."""
        with self._state.lock:
            return self._snapshot_info(self.snapshot(snapshot_id))

    def snapshot_infos(self, name: str | None, *, with_space: bool = False) -> list[SnapshotInfo]:
        """Of one volume, oldest first, or of all by volume name. Raises NotFound."""
        with self._state.lock:
            if name is not None:
                volumes = [self.volume(name)]
            else:
                volumes = [volume for _, volume in sorted(self._state.volumes.items())]
            found = [
                (self._snapshot_info(snapshot), snapshot.map)
                for volume in volumes
                for snapshot in volume.snapshots
            ]
        if not with_space:
            return [info for info, _ in found]
        return [replace(info, unique_bytes=view.unique_count() * GRANULE_BYTES) for info, view in found]

    def draft_infos(self) -> list[DraftInfo]:
        with self._state.lock:
            return [
                DraftInfo(
                    draft_id=draft.volume_id,
                    name=draft.name,
                    size_bytes=draft.size_bytes,
                    mapped_bytes=draft.map.mapped_count * GRANULE_BYTES,
                    tag=draft.tag,
                )
                for draft in self._state.drafts.values()
            ]

    def counts(self) -> Counts:
        with self._state.lock:
            views = [view for _, view in self._state.maps()]
            numbers = len(self._state.volumes), len(self._state.snapshots), len(self._state.drafts)
        # Outside the lock, as a pool may have a million pages; one that is
        # replaced meanwhile may be counted as the old one or as the new one.
        nodes = {id(node): node for view in views for node in view.nodes() if node is not None}
        pages = {id(page) for node in nodes.values() for page in node.pages if page is not None}
        return Counts(*numbers, map_bytes=len(pages) * PAGE_BYTES)

    def _volume_info(self, volume: Volume) -> VolumeInfo:
        return VolumeInfo(
            volume_id=volume.volume_id,
            name=volume.name,
            size_bytes=volume.size_bytes,
            mapped_bytes=volume.map.mapped_count * GRANULE_BYTES,
            state=self._state.state_of(volume),
            snapshot_count=len(volume.snapshots),
            origin=volume.origin,
        )

    def _snapshot_info(self, snapshot: Snapshot) -> SnapshotInfo:
        return SnapshotInfo(
            snapshot_id=snapshot.snapshot_id,
            volume_id=snapshot.volume_id,
            volume_name=self._state.by_id[snapshot.volume_id].name,
            label=snapshot.label,
            group_id=snapshot.group_id,
            size_bytes=snapshot.size_bytes,
            mapped_bytes=snapshot.map.mapped_count * GRANULE_BYTES,
            state=self._state.state_of(snapshot),
            created_at_ns=snapshot.created_at_ns,
            pinned=snapshot.pins > 0,
        )

    # -- extents and changes ----------------------------------------------------------------

    def extents(self, view: MapView, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """Yield (offset, length, is_hole), ascending, neighbours of one kind joined."""
        stop = offset + length
        granule, end = offset // GRANULE_BYTES, -(-stop // GRANULE_BYTES)
        start, hole = offset, False
        while granule < end:
            count = min(EXTENT_GRANULES, end - granule)
            with self._state.lock:
                slots, _ = view.lookup(granule, count)
            holes = slots == NONE_SLOT
            for index in [0, *(np.flatnonzero(holes[1:] != holes[:-1]) + 1).tolist()]:
                at = max(offset, (granule + index) * GRANULE_BYTES)
                if bool(holes[index]) != hole:
                    if at > start:
                        yield start, at - start, hole
                    start, hole = at, not hole
            granule += count
        if stop > start:
            yield start, stop - start, hole

    def changed_spans(
        self, snapshot_id: SnapshotId, since: SourceState | bytes, base_bytes: int | None
    ) -> U64 | None:
        """See Pool.changed_spans."""
        found = self._since(snapshot_id, since)
        if found is None:
            return None
        frozen, birth, size_bytes = found
        base = size_bytes if base_bytes is None else base_bytes
        granules = changes.changed_granules(frozen, birth)
        return changes.spans_of_granules(granules, size_bytes=size_bytes, base_bytes=base)

    def changed_ranges(
        self, snapshot_id: SnapshotId, since: SourceState | bytes, base_bytes: int | None
    ) -> tuple[U64, U64] | None:
        """See Pool.changed_ranges."""
        found = self._since(snapshot_id, since)
        if found is None:
            return None
        frozen, birth, size_bytes = found
        base = size_bytes if base_bytes is None else base_bytes
        granules = changes.changed_granules(frozen, birth)
        return changes.ranges_of_granules(granules, size_bytes=size_bytes, base_bytes=base)

    def changed_flags(
        self, snapshot_id: SnapshotId, since: SourceState, first: int, count: int, base_bytes: int
    ) -> npt.NDArray[np.bool_] | None:
        """See Pool.changed_flags."""
        found = self._since(snapshot_id, since)
        if found is None:
            return None
        frozen, birth, size_bytes = found
        return changes.changed_flags(
            frozen, birth, first, count, size_bytes=size_bytes, base_bytes=base_bytes
        )

    def differing_granules(self, snapshot_id: SnapshotId, base_id: SnapshotId) -> U64 | None:
        """See Pool.diff."""
        with self._state.lock:
            snapshot, base = self.snapshot(snapshot_id), self.snapshot(base_id)
            families = {self._state.by_id[found.volume_id].family_id for found in (snapshot, base)}
            if len(families) > 1:
                return None
            view, older = snapshot.map, base.map
        return changes.differing_granules(view, older)  # frozen: needs no lock

    def _since(
        self, snapshot_id: SnapshotId, since: SourceState | bytes
    ) -> tuple[FrozenMap, int, int] | None:
        """Return (map, birth, size) to compare, or None if ``since`` is no ancestor."""
        with self._state.lock:
            snapshot = self.snapshot(snapshot_id)
            if isinstance(since, bytes):
                owner = self._state.by_id[snapshot.volume_id]
                if not isinstance(owner, Volume) or owner.origin is None or owner.origin.root != since:
                    return None
                since = owner.origin.state
            if not self._state.lineages.is_ancestor(since, self._state.state_of(snapshot)):
                return None
            return snapshot.map, since.birth, snapshot.size_bytes
