"""What the pool tells its callers, and the limits that it keeps.

Callers: every module of the array; values only, no behaviour.
"""

from __future__ import annotations

from dataclasses import dataclass

from arraylift.ids import GroupId, PoolId, SnapshotId, SourceState, VolumeId
from arraylift.sizes import IMAGE_BYTES_MAX

SECTOR_BYTES = 512
VOLUME_BYTES_MAX = IMAGE_BYTES_MAX
VOLUMES_MAX = 4096
"""Volumes and drafts of one pool."""
SNAPSHOTS_PER_VOLUME_MAX = 1024
VOLUMES_PER_GROUP_MAX = 64
TAG_BYTES_MAX = 1 << 20
"""Largest progress note of a draft."""
ROOT_BYTES = 32


@dataclass(frozen=True, slots=True)
class VolumeSource:
    """The living content of a volume."""

    name: str


@dataclass(frozen=True, slots=True)
class SnapshotSource:
    """The content of a snapshot."""

    snapshot_id: SnapshotId


Source = VolumeSource | SnapshotSource


@dataclass(frozen=True, slots=True)
class Origin:
    """A restored volume was, at ``state``, the image whose root is ``root`` (32 bytes)."""

    root: bytes
    state: SourceState


@dataclass(frozen=True, slots=True)
class VolumeInfo:
    """``state.birth`` is the current epoch, still being written. ``unique_bytes`` are of slots that
    nothing else names; 0 unless asked for."""

    volume_id: VolumeId
    name: str
    size_bytes: int
    mapped_bytes: int
    state: SourceState
    snapshot_count: int
    origin: Origin | None
    unique_bytes: int = 0


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """``state.birth`` is the last epoch that the snapshot contains. ``unique_bytes`` would be freed
    with it; 0 unless asked for."""

    snapshot_id: SnapshotId
    volume_id: VolumeId
    volume_name: str
    label: str
    group_id: GroupId
    size_bytes: int
    mapped_bytes: int
    state: SourceState
    created_at_ns: int
    pinned: bool
    unique_bytes: int = 0


@dataclass(frozen=True, slots=True)
class DraftInfo:
    """A volume that is being restored or imported. ``tag``: the last saved progress note, if any."""

    draft_id: VolumeId
    name: str
    size_bytes: int
    mapped_bytes: int
    tag: bytes | None


@dataclass(frozen=True, slots=True)
class PoolStats:
    """``free_bytes`` is of the file system; ``slots_waiting`` are freed but not yet reusable."""

    pool_id: PoolId
    granule_bytes: int
    slots_used: int
    slots_waiting: int
    data_file_bytes: int
    free_bytes: int
    volume_count: int
    snapshot_count: int
    draft_count: int
    map_bytes: int
    journal_bytes: int
