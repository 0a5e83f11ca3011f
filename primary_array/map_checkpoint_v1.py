"""Checkpoints of version 1, which had the pages in the same file. Read only.

Owns: the bytes of a version 1 checkpoint-<n>.alc; the next checkpoint of such a pool is of version 2.
Callers: map_checkpoint. Format: docs/formats/pool-v1.md.
"""

from __future__ import annotations

import json
import struct

import numpy as np
import xxhash

from arraylift.ids import PoolId
from primary_array.block_map import NODE_PAGES, PAGE_GRANULES, Node, Page, pages_of
from primary_array.map_state import DRAFT_EPOCH, MapState, granules_of
from primary_array.map_tables import Nodes, Tables, build, map_rows
from primary_array.page_file import PAGE_BYTES, page_of

MAGIC = b"AL-POOLC"
VERSION = 1
ALGORITHM_XXH3_64 = 1

# magic, version, algorithm, reserved 0, pool id, number, sequence, table bytes, refs, pages
_HEADER = struct.Struct("<8sHHI16sQQQQQ")
_CHECKSUM = struct.Struct("<Q")
HEADER_BYTES = _HEADER.size + _CHECKSUM.size


def is_mine(data: bytes) -> bool:
    """Say whether the file calls itself a checkpoint of version 1."""
    return data[:10] == MAGIC + VERSION.to_bytes(2, "little")


def decode(data: bytes, pool_id: PoolId, number: int) -> tuple[MapState, int]:
    """Rebuild (state, sequence), without slot counts. Raises ValueError and its like."""
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
    pages = [
        page_of(np.frombuffer(data, "<u8", 2 * PAGE_GRANULES, pages_at + PAGE_BYTES * index))
        for index in range(page_count)
    ]
    upgrade(tables)
    return build(pool_id, tables, _maps(tables, refs, pages)), sequence


def upgrade(tables: Tables) -> None:
    """Add what version 2 says of volumes and drafts: before it nothing was ever cloned."""
    for row in tables["volumes"]:
        row["family"] = row["id"]
    for row in tables["drafts"]:
        row |= {"family": row["id"], "epoch": DRAFT_EPOCH, "fork": None}


def _maps(tables: Tables, refs: list[int], pages: list[Page]) -> list[Nodes]:
    """Hand each map its pages; maps that share all pages of a node share the node."""
    table: list[Page | None] = [None, *pages]
    nodes: dict[tuple[int, ...], Node] = {}
    maps: list[Nodes] = []
    at = 0
    for row in map_rows(tables):
        count = pages_of(granules_of(row["size_bytes"]))
        mine = refs[at : at + count]
        if len(mine) != count:
            raise ValueError("the page references end early")
        at += count
        found: list[Node | None] = []
        for first in range(0, count, NODE_PAGES):
            part = tuple(mine[first : first + NODE_PAGES])
            part += (0,) * (NODE_PAGES - len(part))
            if any(part) and part not in nodes:
                nodes[part] = Node([table[ref] for ref in part])
            found.append(nodes.get(part))
        maps.append(found)
    if at != len(refs):
        raise ValueError("there are more page references than pages")
    return maps
