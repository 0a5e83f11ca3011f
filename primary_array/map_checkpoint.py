"""The whole state of a pool's map in one published file.

Owns: the bytes of checkpoint-<n>.alc.
Invariants:
  K1 a checkpoint holds exactly what the journals before number n led to, up to
     ``sequence``; journals from n on are applied to it.
  K2 pages that maps share are written once and shared again when read.
  K3 a damaged checkpoint is Corruption, never a smaller state.
  K4 drafts that the journal does not know stay out.
``capture`` runs under the map lock and takes O(pages) pointers; ``encode`` runs
without it, over frozen pages. Callers: map_commit under the commit lock, pool_open.
Format: docs/formats/pool-v1.md.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from arraylift.errors import Corruption
from arraylift.ids import GroupId, LineageId, PoolId, SnapshotId, SourceState, VolumeId
from primary_array.block_map import PAGE_GRANULES, BlockMap, FrozenMap, Page, pages_of
from primary_array.lineage import Lineage
from primary_array.map_state import MapState, Snapshot, Volume, granules_of, new_draft
from primary_array.pool_types import Origin

LABEL = "checkpoint"
MAGIC = b"AL-POOLC"
VERSION = 1
ALGORITHM_XXH3_64 = 1

PAGE_BYTES = PAGE_GRANULES * 16
"""Slots, then births, of one page."""

_PAGES_PER_PART = 64

# magic, version, algorithm, reserved 0, pool id, number, sequence, table bytes, refs, pages
_HEADER = struct.Struct("<8sHHI16sQQQQQ")
_CHECKSUM = struct.Struct("<Q")
HEADER_BYTES = _HEADER.size + _CHECKSUM.size

Tables = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Capture:
    """One instant of a MapState; immutable. ``maps`` stand in the order in which tables name them."""

    pool_id: PoolId
    tables: Tables
    maps: list[FrozenMap]


def capture(state: MapState) -> Capture:
    """Freeze ``state`` as it is now. Under the map lock."""
    state.prune_lineages()
    tables: Tables = {"lineages": [], "volumes": [], "snapshots": [], "drafts": []}
    maps: list[FrozenMap] = []
    for lineage in state.lineages:
        tables["lineages"].append(
            {"id": lineage.lineage_id, "parent": lineage.parent_id, "fork_birth": lineage.fork_birth}
        )
    for volume in state.volumes.values():
        tables["volumes"].append(_volume_row(volume, len(maps)))
        maps.append(volume.map.freeze())
        for snapshot in volume.snapshots:
            tables["snapshots"].append(_snapshot_row(snapshot, len(maps)))
            maps.append(snapshot.map)
    for draft in state.drafts.values():
        if draft.registered:  # K4
            tag = None if draft.tag is None else draft.tag.hex()
            row = {"id": draft.volume_id, "name": draft.name, "size_bytes": draft.size_bytes, "tag": tag}
            tables["drafts"].append(row | {"map": len(maps)})
            maps.append(draft.map.freeze())
    return Capture(state.pool_id, tables, maps)


def _volume_row(volume: Volume, map_index: int) -> dict[str, Any]:
    origin = None
    if volume.origin is not None:
        state = volume.origin.state
        origin = {"root": volume.origin.root.hex(), "lineage": state.lineage_id, "birth": state.birth}
    return {
        "id": volume.volume_id,
        "name": volume.name,
        "size_bytes": volume.size_bytes,
        "epoch": volume.epoch,
        "lineage": volume.lineage_id,
        "origin": origin,
        "map": map_index,
    }


def _snapshot_row(snapshot: Snapshot, map_index: int) -> dict[str, Any]:
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


# -- writing --------------------------------------------------------------------------------


def encode(captured: Capture, *, number: int, sequence: int) -> Iterator[bytes]:
    """Yield the parts of the file, each of about 1 MiB at most but for the tables."""
    refs, pages = _share(captured.maps)
    tables = json.dumps(captured.tables, sort_keys=True, separators=(",", ":")).encode()
    counts = (len(tables), len(refs), len(pages))
    pool = bytes.fromhex(captured.pool_id)
    head = _HEADER.pack(MAGIC, VERSION, ALGORITHM_XXH3_64, 0, pool, number, sequence, *counts)
    yield head + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(head))
    digest = xxhash.xxh3_64()
    for part in _body(tables, refs, pages):
        digest.update(part)
        yield part
    yield _CHECKSUM.pack(digest.intdigest())


def _body(tables: bytes, refs: list[int], pages: list[Page]) -> Iterator[bytes]:
    yield tables
    yield np.array(refs, "<u4").tobytes()
    for start in range(0, len(pages), _PAGES_PER_PART):
        chosen = pages[start : start + _PAGES_PER_PART]
        yield b"".join(column.tobytes() for page in chosen for column in (page.slots, page.births))


def _share(maps: Iterable[FrozenMap]) -> tuple[list[int], list[Page]]:
    """Number the distinct pages from 1 (K2); reference 0 is a page that nobody wrote."""
    numbers: dict[int, int] = {}
    refs: list[int] = []
    pages: list[Page] = []
    for frozen in maps:
        for page in frozen.pages():
            if page is None:
                refs.append(0)
                continue
            number = numbers.get(id(page))
            if number is None:
                pages.append(page)
                number = numbers[id(page)] = len(pages)
            refs.append(number)
    return refs, pages


# -- reading --------------------------------------------------------------------------------


def decode(data: bytes, *, pool_id: PoolId, number: int, path: str) -> tuple[MapState, int]:
    """Rebuild (state, sequence). Raises Corruption (K3)."""
    try:
        return _decode(data, pool_id, number)
    except (ValueError, KeyError, TypeError, IndexError, struct.error) as error:
        raise Corruption(
            f"{path} is damaged: {error}",
            subject=path,
            next_step="restore the file from a copy of this pool; nothing was changed",
        ) from error


def _decode(data: bytes, pool_id: PoolId, number: int) -> tuple[MapState, int]:
    view = memoryview(data)
    magic, version, algorithm, _, pool, found, sequence, *counts = _HEADER.unpack_from(view)
    (checksum,) = _CHECKSUM.unpack_from(view, _HEADER.size)
    if magic != MAGIC or checksum != xxhash.xxh3_64_intdigest(view[: _HEADER.size]):
        raise ValueError("the header is wrong")
    if (version, algorithm, pool.hex(), found) != (VERSION, ALGORITHM_XXH3_64, pool_id, number):
        raise ValueError("it belongs to another pool, number or version")
    table_bytes, ref_count, page_count = counts
    refs_at = HEADER_BYTES + table_bytes
    pages_at = refs_at + 4 * ref_count
    end = pages_at + PAGE_BYTES * page_count
    if len(data) != end + _CHECKSUM.size:
        raise ValueError(f"it has {len(data)} bytes")
    if _CHECKSUM.unpack_from(view, end)[0] != xxhash.xxh3_64_intdigest(view[HEADER_BYTES:end]):
        raise ValueError("the checksum is wrong")
    tables: Tables = json.loads(data[HEADER_BYTES:refs_at])
    refs = np.frombuffer(data, "<u4", ref_count, refs_at).tolist()
    pages = [_page(data, pages_at + PAGE_BYTES * index) for index in range(page_count)]
    return _build(pool_id, tables, refs, pages), sequence


def _page(data: bytes, at: int) -> Page:
    both = np.frombuffer(data, "<u8", 2 * PAGE_GRANULES, at).astype(np.uint64)  # a copy: lets data go
    page = Page(both[:PAGE_GRANULES], both[PAGE_GRANULES:])
    page.freeze()
    return page


def _build(pool_id: PoolId, tables: Tables, refs: list[int], pages: list[Page]) -> MapState:
    state = MapState(pool_id)
    for row in tables["lineages"]:
        parent = row["parent"]
        lineage_id = LineageId(row["id"])
        state.lineages.add(Lineage(lineage_id, LineageId(parent) if parent else None, row["fork_birth"]))
    rows = [*tables["volumes"], *tables["snapshots"], *tables["drafts"]]
    shared = _cut_maps(rows, refs, pages)
    for row in tables["volumes"]:
        state.add(_volume(pool_id, row, shared[row["map"]]))
    for row in tables["snapshots"]:
        snapshot = _snapshot(row, shared[row["map"]])
        volume = state.by_id[snapshot.volume_id]
        if not isinstance(volume, Volume) or not volume.newest_snapshot_birth < snapshot.birth < volume.epoch:
            raise ValueError(f"snapshot {snapshot.snapshot_id} does not fit its volume")
        volume.snapshots.append(snapshot)
        state.snapshots[snapshot.snapshot_id] = snapshot
    for row in tables["drafts"]:
        draft = new_draft(VolumeId(row["id"]), row["name"], row["size_bytes"])
        draft.map = BlockMap(granules_of(draft.size_bytes), shared[row["map"]])
        draft.registered = True
        draft.tag = None if row["tag"] is None else bytes.fromhex(row["tag"])
        state.add(draft)
    return state


def _cut_maps(rows: list[dict[str, Any]], refs: list[int], pages: list[Page]) -> list[list[Page | None]]:
    """Hand each map its pages, in the order of the maps' numbers."""
    table: list[Page | None] = [None, *pages]
    maps: list[list[Page | None]] = []
    at = 0
    for expected, row in enumerate(sorted(rows, key=lambda row: int(row["map"]))):
        if row["map"] != expected:
            raise ValueError(f"map {expected} belongs to nobody")
        count = pages_of(granules_of(row["size_bytes"]))
        maps.append([table[ref] for ref in refs[at : at + count]])
        if len(maps[-1]) != count:
            raise ValueError("the page references end early")
        at += count
    if at != len(refs):
        raise ValueError("there are more page references than pages")
    return maps


def _volume(pool_id: PoolId, row: dict[str, Any], pages: list[Page | None]) -> Volume:
    origin = None
    if row["origin"] is not None:
        state = SourceState(pool_id, LineageId(row["origin"]["lineage"]), row["origin"]["birth"])
        origin = Origin(bytes.fromhex(row["origin"]["root"]), state)
    return Volume(
        volume_id=VolumeId(row["id"]),
        name=row["name"],
        size_bytes=row["size_bytes"],
        epoch=row["epoch"],
        map=BlockMap(granules_of(row["size_bytes"]), pages),
        lineage_id=LineageId(row["lineage"]),
        origin=origin,
    )


def _snapshot(row: dict[str, Any], pages: list[Page | None]) -> Snapshot:
    return Snapshot(
        snapshot_id=SnapshotId(row["id"]),
        volume_id=VolumeId(row["volume"]),
        label=row["label"],
        group_id=GroupId(row["group"]),
        created_at_ns=row["created_at_ns"],
        size_bytes=row["size_bytes"],
        lineage_id=LineageId(row["lineage"]),
        birth=row["birth"],
        map=FrozenMap(granules_of(row["size_bytes"]), tuple(pages)),
    )
