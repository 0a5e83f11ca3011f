"""Look for contradictions in a pool's maps, tables and counts, as they are in memory.

Owns: nothing. ``take`` freezes what there is under the map lock, in O(nodes + pages); ``check`` goes
through it without a lock.
Invariants:
  X1 every finding follows from one instant: what is being written meanwhile is never taken for damage.
  X2 slots that are neither named nor free are told only if they are so while no write and no commit is
     on its way, which may have some that nobody names yet, or any more.
Callers: pool_check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arraylift.sizes import GRANULE_BYTES
from primary_array import slot_audit
from primary_array.block_map import NONE_SLOT, PAGE_GRANULES, U64, MapView, Node, Page
from primary_array.findings import Finding, Remedy, Severity
from primary_array.map_state import Draft, MapState, Snapshot, Volume
from primary_array.page_file import checksum_of, page_bytes

READ_ALL = "let its next backup read everything: repair sees to it"
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class TakenMap:
    """One map: ``birth_max`` is the youngest birth that it may hold."""

    holder: slot_audit.Holder
    volume: str
    birth_max: int
    granule_count: int
    mapped_count: int

    @property
    def owner(self) -> str:
        return self.holder.owner


@dataclass(frozen=True, slots=True)
class Taken:
    """One instant of a state (X1)."""

    maps: list[TakenMap]
    node_refs: dict[int, tuple[Node, int]]
    page_refs: dict[int, tuple[Page, int]]
    held_nodes: dict[int, tuple[Node, int]]
    held_pages: dict[int, tuple[Page, int]]
    counts: npt.NDArray[np.uint32]
    tables: list[Finding]


def take(state: MapState) -> Taken:
    """Freeze everything. Under the map lock."""
    maps = []
    holders = iter(slot_audit.holders(state))
    for record in state.by_id.values():
        maps.append(_taken(next(holders), record.name, record.epoch, record.map))
        for snapshot in record.snapshots if isinstance(record, Volume) else []:
            maps.append(_taken(next(holders), record.name, snapshot.birth, snapshot.map))
    held_nodes, held_pages = slot_audit.count_holders([one.holder for one in maps])
    return Taken(
        maps=maps,
        node_refs={key: (node, node.refs) for key, (node, _) in held_nodes.items()},
        page_refs={key: (page, page.refs) for key, (page, _) in held_pages.items()},
        held_nodes=held_nodes,
        held_pages=held_pages,
        counts=state.counts.as_array(),
        tables=list(_tables(state)),
    )


def _taken(holder: slot_audit.Holder, volume: str, birth_max: int, view: MapView) -> TakenMap:
    return TakenMap(holder, volume, birth_max, view.granule_count, view.mapped_count)


# -- tables -----------------------------------------------------------------------------------


def _tables(state: MapState) -> Iterator[Finding]:
    for record in state.by_id.values():
        yield from _names(state, record)
        if isinstance(record, Volume):
            yield from _history(state, record)
    for snapshot in state.snapshots.values():
        owner = state.by_id.get(snapshot.volume_id)
        if not isinstance(owner, Volume) or snapshot not in owner.snapshots:
            yield _disagree(f"snapshot {snapshot.snapshot_id}", "it belongs to no volume")


def _names(state: MapState, record: Volume | Draft) -> Iterator[Finding]:
    table = (
        state.volumes.get(record.name) if isinstance(record, Volume) else state.drafts.get(record.volume_id)
    )
    if table is not record:
        yield _disagree(f"volume {record.name}", "its name and its id lead to different records")
    if -(-record.size_bytes // GRANULE_BYTES) != record.map.granule_count:
        yield _disagree(f"volume {record.name}", "its map has another size than it")


def _history(state: MapState, volume: Volume) -> Iterator[Finding]:
    births = [snapshot.birth for snapshot in volume.snapshots]
    if births != sorted(set(births)) or (births and births[-1] >= volume.epoch):
        yield _disagree(f"volume {volume.name}", f"its snapshots' births {births} do not ascend to its epoch")
    found: list[tuple[str, Volume | Snapshot]] = [(f"volume {volume.name}", volume)]
    found += [(f"snapshot {snapshot.snapshot_id}", snapshot) for snapshot in volume.snapshots]
    for subject, record in found:
        if record.lineage_id not in state.lineages:
            yield Finding(
                Severity.ERROR,
                "lineage_unknown",
                subject,
                f"{subject} is of lineage {record.lineage_id}, which the pool does not know",
                READ_ALL,
                Remedy.DISTRUST,
                volume.name,
            )


def _disagree(subject: str, why: str) -> Finding:
    step = "restore the pool's metadata from a copy"
    return Finding(Severity.ERROR, "tables_disagree", subject, f"{subject}: {why}", step)


# -- maps -------------------------------------------------------------------------------------


def check(taken: Taken, *, progress: Progress) -> Iterator[Finding]:
    """Yield what is wrong. No lock."""
    yield from taken.tables
    holders = [one.holder for one in taken.maps]
    right_counts = slot_audit.count_slots(holders)
    for wrong in slot_audit.contradictions(holders, len(right_counts) - 1):
        yield Finding(
            Severity.ERROR,
            "slot_named_twice",
            wrong.owner,
            f"{len(wrong.slots)} slots are named {wrong.message}, the first is {int(wrong.slots[0])}",
            "restore the volume from a backup into a new one",
        )
    yield from _counts(taken, right_counts)
    seen: set[int] = set()
    done = 0
    for one in taken.maps:
        yield from _map(one, seen)
        done += one.granule_count
        progress(done)
    for page, _ in taken.held_pages.values():
        if page.home and checksum_of(page_bytes(page)) != page.checksum:
            yield Finding(
                Severity.ERROR,
                "page_changed_in_memory",
                f"page {page.home}",
                f"page {page.home} is not in memory what was written to the disk",
                "stop the array without a clean stop, check the machine's memory, start it again",
            )


def _counts(taken: Taken, right: npt.NDArray[np.uint32]) -> Iterator[Finding]:
    length = max(len(taken.counts), len(right))
    have = np.zeros(length, np.int64)
    want = np.zeros(length, np.int64)
    have[: len(taken.counts)] = taken.counts
    want[: len(right)] = right
    wrong = np.flatnonzero(have != want)
    if len(wrong):
        first = int(wrong[0])
        yield Finding(
            Severity.ERROR,
            "slot_count_wrong",
            f"slot {first}",
            f"{len(wrong)} slots have a wrong count of pages that name them: "
            f"slot {first} has {have[first]}, named by {want[first]}",
            "repair counts anew",
            Remedy.RECOUNT,
        )
    refs = [(held, taken.node_refs[key][1]) for key, (_, held) in taken.held_nodes.items()] + [
        (held, taken.page_refs[key][1]) for key, (_, held) in taken.held_pages.items()
    ]
    off = sum(1 for held, counted in refs if held != counted)
    if off:
        yield Finding(
            Severity.ERROR,
            "share_count_wrong",
            "maps",
            f"{off} nodes or pages of maps have a wrong count of their holders",
            "repair counts anew",
            Remedy.RECOUNT,
        )


def _map(one: TakenMap, seen: set[int]) -> Iterator[Finding]:
    mapped = 0
    young = past = nameless = 0
    for index, node in enumerate(one.holder.nodes):
        if node is None:
            continue
        for place, page in enumerate(node.pages):
            if page is None:
                continue
            first = (index * len(node.pages) + place) * PAGE_GRANULES
            mapped += page.mapped_count()
            if page.newest_birth > one.birth_max or id(page) not in seen:
                young += int(np.count_nonzero(page.births > one.birth_max))
            if first + PAGE_GRANULES > one.granule_count:
                rest = slice(max(0, one.granule_count - first), None)
                past += int(np.count_nonzero(page.slots[rest]) + np.count_nonzero(page.births[rest]))
            if id(page) in seen:
                continue
            seen.add(id(page))
            nameless += int(np.count_nonzero((page.slots != NONE_SLOT) & (page.births == 0)))
            if int(page.births.max()) > page.newest_birth:
                yield _measure(one, "newest_birth_wrong", "a page hides young births from the tracker")
    if young or nameless:
        yield Finding(
            Severity.ERROR,
            "birth_wrong",
            one.owner,
            f"{one.owner} has {young} granules born after its epoch, {nameless} that were never born",
            READ_ALL,
            Remedy.DISTRUST,
            one.volume,
        )
    if past:
        yield Finding(
            Severity.ERROR,
            "entry_past_end",
            one.owner,
            f"{one.owner} has {past} entries past its end",
            "clone its newest snapshot, or restore it, and delete this one",
        )
    if mapped != one.mapped_count:
        message = f"it counts {one.mapped_count} mapped granules, and has {mapped}"
        yield _measure(one, "mapped_count_wrong", message, Severity.WARNING)


def _measure(one: TakenMap, kind: str, why: str, severity: Severity = Severity.ERROR) -> Finding:
    return Finding(severity, kind, one.owner, f"{one.owner}: {why}", "repair measures anew", Remedy.REMEASURE)


def remeasure(state: MapState) -> None:
    """Make figures anew from entries (Remedy.REMEASURE). Under the map lock."""
    for _, view in state.maps():
        view.mapped_count = 0
        for _, page in view.pages():
            page.newest_birth = max(page.newest_birth, int(page.births.max()))
            view.mapped_count += page.mapped_count()


def recount(state: MapState) -> None:
    """Make all counts anew from the maps (Remedy.RECOUNT). Under the map lock."""
    maps = slot_audit.holders(state)
    nodes, pages = slot_audit.count_holders(maps)
    for node, held in nodes.values():
        node.refs = held
    for page, held in pages.values():
        page.refs = held
    state.counts.replace(slot_audit.count_slots(maps))


# -- slots --------------------------------------------------------------------------------------


def lost_and_stolen(named: U64, waiting: U64, allocated: npt.NDArray[np.bool_]) -> tuple[U64, U64]:
    """Return slots that are allocated although nobody names them and none waits to be freed, and those
    that are free although somebody does. ``allocated`` is indexed by slot."""
    length = max(len(allocated), int(named.max()) + 1 if len(named) else 0)
    held = np.zeros(length, np.bool_)
    held[: len(allocated)] = allocated
    expected = np.zeros(length, np.bool_)
    expected[named] = True
    stolen = np.flatnonzero(expected & ~held)
    expected[waiting] = True
    expected[NONE_SLOT] = True
    lost = np.flatnonzero(held & ~expected)
    return lost.astype(np.uint64), stolen.astype(np.uint64)
