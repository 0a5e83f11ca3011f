"""A pool's tables as the rows of a checkpoint, and back. Pure.

Owns: the JSON of a checkpoint's tables.
Invariants:
  B1 ``build(capture(state))`` is ``state``, but for drafts that the journal does not know: those
     stay out.
  B2 rows that contradict each other raise ValueError, KeyError, TypeError or IndexError.
Callers: map_checkpoint; ``capture`` under the map lock. Format: docs/formats/pool-v2.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from arraylift.ids import GroupId, LineageId, PoolId, SnapshotId, SourceState, VolumeId
from primary_array.block_map import BlockMap, FrozenMap, Node
from primary_array.lineage import Lineage
from primary_array.map_state import Draft, MapState, Snapshot, Volume, granules_of
from primary_array.pool_types import Origin

Row = dict[str, Any]
Tables = dict[str, list[Row]]
Nodes = Sequence[Node | None]


@dataclass(frozen=True, slots=True)
class Capture:
    """One instant of a MapState; immutable. ``maps`` stand in the order in which tables name them."""

    pool_id: PoolId
    tables: Tables
    maps: list[Nodes]


def capture(state: MapState) -> Capture:
    """Freeze ``state`` as it is now. Under the map lock; O(nodes), and pages written lately."""
    state.prune_lineages()
    tables: Tables = {"lineages": [], "volumes": [], "snapshots": [], "drafts": []}
    maps: list[Nodes] = []
    for lineage in state.lineages:
        tables["lineages"].append(
            {"id": lineage.lineage_id, "parent": lineage.parent_id, "fork_birth": lineage.fork_birth}
        )
    for volume in state.volumes.values():
        tables["volumes"].append(_volume_row(volume, len(maps)))
        maps.append(volume.map.still())
        for snapshot in volume.snapshots:
            tables["snapshots"].append(_snapshot_row(snapshot, len(maps)))
            maps.append(snapshot.map.nodes())
    for draft in state.drafts.values():
        if draft.registered:  # B1
            tables["drafts"].append(_draft_row(draft, len(maps)))
            maps.append(draft.map.still())
    return Capture(state.pool_id, tables, maps)


def _volume_row(volume: Volume, map_index: int) -> Row:
    origin = None
    if volume.origin is not None:
        origin = {"root": volume.origin.root.hex(), **_state_row(volume.origin.state)}
    return {
        "id": volume.volume_id,
        "name": volume.name,
        "size_bytes": volume.size_bytes,
        "epoch": volume.epoch,
        "family": volume.family_id,
        "lineage": volume.lineage_id,
        "origin": origin,
        "map": map_index,
    }


def _snapshot_row(snapshot: Snapshot, map_index: int) -> Row:
    return {
        "id": snapshot.snapshot_id,
        "volume": snapshot.volume_id,
        "label": snapshot.label,
        "group": snapshot.group_id,
        "created_at_ns": snapshot.created_at_ns,
        "size_bytes": snapshot.size_bytes,
        "lineage": snapshot.lineage_id,
        "birth": snapshot.birth,
        "map": map_index,
    }


def _draft_row(draft: Draft, map_index: int) -> Row:
    return {
        "id": draft.volume_id,
        "name": draft.name,
        "size_bytes": draft.size_bytes,
        "epoch": draft.epoch,
        "family": draft.family_id,
        "fork": None if draft.fork is None else _state_row(draft.fork),
        "tag": None if draft.tag is None else draft.tag.hex(),
        "map": map_index,
    }


def _state_row(state: SourceState) -> Row:
    return {"lineage": state.lineage_id, "birth": state.birth}


# -- back -----------------------------------------------------------------------------------


def map_rows(tables: Tables) -> list[Row]:
    """The rows that have a map, in the order of the maps."""
    rows = sorted(
        [*tables["volumes"], *tables["snapshots"], *tables["drafts"]], key=lambda row: int(row["map"])
    )
    if [row["map"] for row in rows] != list(range(len(rows))):
        raise ValueError("a map belongs to nobody, or to two")
    return rows


def build(pool_id: PoolId, tables: Tables, maps: Sequence[Nodes]) -> MapState:
    """Make the state anew; slot counts are left to the caller (``slot_audit``)."""
    state = MapState(pool_id)
    for row in tables["lineages"]:
        parent = row["parent"]
        lineage_id = LineageId(row["id"])
        state.lineages.add(Lineage(lineage_id, LineageId(parent) if parent else None, row["fork_birth"]))
    for row in tables["volumes"]:
        state.add(_volume(state, row, maps[row["map"]]))
    for row in tables["snapshots"]:
        snapshot = _snapshot(state, row, maps[row["map"]])
        volume = state.by_id[snapshot.volume_id]
        newest = volume.snapshots[-1].birth if isinstance(volume, Volume) and volume.snapshots else 0
        if not isinstance(volume, Volume) or not newest < snapshot.birth < volume.epoch:
            raise ValueError(f"snapshot {snapshot.snapshot_id} does not fit its volume")
        volume.snapshots.append(snapshot)
        state.snapshots[snapshot.snapshot_id] = snapshot
    for row in tables["drafts"]:
        state.add(_draft(state, row, maps[row["map"]]))
    return state


def _living(state: MapState, row: Row, nodes: Nodes) -> BlockMap:
    return BlockMap(granules_of(row["size_bytes"]), state.counts, list(nodes), _mapped_count(nodes))


def _mapped_count(nodes: Nodes) -> int:
    return sum(
        page.mapped_count() for node in nodes if node is not None for page in node.pages if page is not None
    )


def _source_state(state: MapState, row: Row) -> SourceState:
    return SourceState(state.pool_id, LineageId(row["lineage"]), row["birth"])


def _volume(state: MapState, row: Row, nodes: Nodes) -> Volume:
    origin = row["origin"]
    return Volume(
        volume_id=VolumeId(row["id"]),
        name=row["name"],
        size_bytes=row["size_bytes"],
        epoch=row["epoch"],
        map=_living(state, row, nodes),
        family_id=VolumeId(row["family"]),
        lineage_id=LineageId(row["lineage"]),
        origin=Origin(bytes.fromhex(origin["root"]), _source_state(state, origin)) if origin else None,
    )


def _snapshot(state: MapState, row: Row, nodes: Nodes) -> Snapshot:
    return Snapshot(
        snapshot_id=SnapshotId(row["id"]),
        volume_id=VolumeId(row["volume"]),
        label=row["label"],
        group_id=GroupId(row["group"]),
        created_at_ns=row["created_at_ns"],
        size_bytes=row["size_bytes"],
        lineage_id=LineageId(row["lineage"]),
        birth=row["birth"],
        map=FrozenMap(granules_of(row["size_bytes"]), state.counts, tuple(nodes), _mapped_count(nodes)),
    )


def _draft(state: MapState, row: Row, nodes: Nodes) -> Draft:
    return Draft(
        volume_id=VolumeId(row["id"]),
        name=row["name"],
        size_bytes=row["size_bytes"],
        epoch=row["epoch"],
        map=_living(state, row, nodes),
        family_id=VolumeId(row["family"]),
        fork=_source_state(state, row["fork"]) if row["fork"] else None,
        registered=True,
        tag=None if row["tag"] is None else bytes.fromhex(row["tag"]),
    )
