"""The whole state of a pool's map at one instant: tables, and the names of nodes and pages.

Owns: the bytes of checkpoint-<n>.alc, version 2; the pages themselves lie in map.pages.
Invariants:
  K1 a checkpoint holds exactly what the journals before number n led to, up to
     ``sequence``; journals from n on are applied to it.
  K2 nodes and pages that maps share are named once and shared again when read.
  K3 a damaged checkpoint, or one whose pages are not what it says, is Corruption, never a smaller state.
Callers: checkpointer, pool_open, pool_check. Format: docs/formats/pool-v2.md.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

from arraylift.durable import Files
from arraylift.errors import Corruption
from arraylift.ids import PoolId
from primary_array import map_checkpoint_v1
from primary_array.block_map import NODE_PAGES, Node, Page, nodes_of
from primary_array.map_state import MapState, granules_of
from primary_array.map_tables import Capture, Nodes, Tables, build, map_rows
from primary_array.page_file import Home, load_pages

LABEL = "checkpoint"
MAGIC = b"AL-POOLC"
VERSION = 2
ALGORITHM_XXH3_64 = 1

# magic, version, algorithm, reserved 0, pool id, number, sequence, table bytes, maps' nodes, nodes, pages
_HEADER = struct.Struct("<8sHHI16sQQQQQQ")
_CHECKSUM = struct.Struct("<Q")
HEADER_BYTES = _HEADER.size + _CHECKSUM.size

_HOME = np.dtype([("place", "<u8"), ("checksum", "<u8")])
_NODE_BYTES = 4 * NODE_PAGES
_PART_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Content:
    """What a checkpoint file says. References count from 1; 0 is what nobody wrote."""

    sequence: int
    tables: Tables
    map_refs: npt.NDArray[np.uint32]
    """Nodes of all maps, one map after the other."""
    node_refs: npt.NDArray[np.uint32]
    """(nodes, NODE_PAGES) pages."""
    homes: list[Home]


class Shared:
    """The distinct nodes and pages of maps, numbered from 1 (K2)."""

    def __init__(self, maps: Iterable[Nodes]) -> None:
        self.pages: list[Page] = []
        self._page_numbers: dict[int, int] = {}
        node_numbers: dict[int, int] = {}
        node_rows: list[list[int]] = []
        map_refs: list[int] = []
        for nodes in maps:
            for node in nodes:
                if node is None:
                    map_refs.append(0)
                    continue
                number = node_numbers.get(id(node))
                if number is None:
                    node_rows.append([self._page_number(page) for page in node.pages])
                    number = node_numbers[id(node)] = len(node_rows)
                map_refs.append(number)
        self.map_refs = np.array(map_refs, "<u4")
        self.node_refs = np.array(node_rows, "<u4").reshape(-1, NODE_PAGES)

    def _page_number(self, page: Page | None) -> int:
        if page is None:
            return 0
        number = self._page_numbers.get(id(page))
        if number is None:
            self.pages.append(page)
            number = self._page_numbers[id(page)] = len(self.pages)
        return number


# -- writing --------------------------------------------------------------------------------


def encode(
    captured: Capture, shared: Shared, homes: Sequence[Home], *, number: int, sequence: int
) -> Iterator[bytes]:
    """Yield the parts of the file, each of about 1 MiB at most but for the tables."""
    tables = json.dumps(captured.tables, sort_keys=True, separators=(",", ":")).encode()
    counts = (len(tables), len(shared.map_refs), len(shared.node_refs), len(homes))
    pool = bytes.fromhex(captured.pool_id)
    head = _HEADER.pack(MAGIC, VERSION, ALGORITHM_XXH3_64, 0, pool, number, sequence, *counts)
    yield head + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(head))
    digest = xxhash.xxh3_64()
    columns = (shared.map_refs, shared.node_refs, np.array(homes, _HOME))
    for body in (tables, *(column.tobytes() for column in columns)):
        for start in range(0, len(body), _PART_BYTES):
            part = body[start : start + _PART_BYTES]
            digest.update(part)
            yield part
    yield _CHECKSUM.pack(digest.intdigest())


# -- reading --------------------------------------------------------------------------------


def read(
    files: Files, path: str, pages_path: str, *, pool_id: PoolId, number: int
) -> tuple[MapState, int, list[int]]:
    """Return (state, sequence, places of its pages) of a checkpoint of any version, without slot
    counts. Raises NotFound, Corruption (K3)."""
    data = files.read(path)
    with _told(path):
        if map_checkpoint_v1.is_mine(data):
            state, sequence = map_checkpoint_v1.decode(data, pool_id, number)
            return state, sequence, []
        content = parse(data, pool_id=pool_id, number=number)
        pages = load_pages(files, pages_path, content.homes)
        state = build(pool_id, content.tables, _maps(content, pages))
        return state, content.sequence, [place for place, _ in content.homes]


class _told:  # noqa: N801 - used like a function
    """Turn what damaged bytes raise into Corruption."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ValueError | KeyError | TypeError | IndexError | struct.error):
            raise Corruption(
                f"{self._path} is damaged: {error}",
                subject=self._path,
                next_step="restore the file from a copy of this pool; nothing was changed",
            ) from error


def is_version_1(data: bytes) -> bool:
    """Say whether a checkpoint is of version 1, which has its pages inside."""
    return map_checkpoint_v1.is_mine(data)


def parse(data: bytes, *, pool_id: PoolId, number: int) -> Content:
    """Split a version 2 file. Raises ValueError and its like."""
    view = memoryview(data)
    magic, version, algorithm, _, pool, found, sequence, *counts = _HEADER.unpack_from(view)
    (checksum,) = _CHECKSUM.unpack_from(view, _HEADER.size)
    if magic != MAGIC or checksum != xxhash.xxh3_64_intdigest(view[: _HEADER.size]):
        raise ValueError("the header is wrong")
    if (version, algorithm, pool.hex(), found) != (VERSION, ALGORITHM_XXH3_64, pool_id, number):
        raise ValueError("it belongs to another pool, number or version")
    table_bytes, map_ref_count, node_count, page_count = counts
    refs_at = HEADER_BYTES + table_bytes
    nodes_at = refs_at + 4 * map_ref_count
    homes_at = nodes_at + _NODE_BYTES * node_count
    end = homes_at + _HOME.itemsize * page_count
    if len(data) != end + _CHECKSUM.size:
        raise ValueError(f"it has {len(data)} bytes")
    if _CHECKSUM.unpack_from(view, end)[0] != xxhash.xxh3_64_intdigest(view[HEADER_BYTES:end]):
        raise ValueError("the checksum is wrong")
    homes = np.frombuffer(data, _HOME, page_count, homes_at)
    return Content(
        sequence=sequence,
        tables=json.loads(data[HEADER_BYTES:refs_at]),
        map_refs=np.frombuffer(data, "<u4", map_ref_count, refs_at),
        node_refs=np.frombuffer(data, "<u4", node_count * NODE_PAGES, nodes_at).reshape(-1, NODE_PAGES),
        homes=list(zip(homes["place"].tolist(), homes["checksum"].tolist(), strict=True)),
    )


def _maps(content: Content, pages: list[Page]) -> list[Nodes]:
    """Hand each map its nodes, in the order of the maps."""
    page_table: list[Page | None] = [None, *pages]
    node_table: list[Node | None] = [None]
    for refs in content.node_refs.tolist():
        node_table.append(Node([page_table[ref] for ref in refs]))
    maps: list[Nodes] = []
    at = 0
    refs = content.map_refs.tolist()
    for row in map_rows(content.tables):
        count = nodes_of(granules_of(row["size_bytes"]))
        maps.append([node_table[ref] for ref in refs[at : at + count]])
        if len(maps[-1]) != count:
            raise ValueError("the nodes of the maps end early")
        at += count
    if at != len(refs):
        raise ValueError("there are more nodes than maps have")
    return maps
