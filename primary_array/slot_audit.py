"""Walk all maps of a pool: how often each slot is named, and whether that may be. Pure.

Owns: nothing; it finds out what ``slot_counts`` and the counts in ``block_map`` must be.
Invariant: U1 a slot stands at one granule, with one birth, in the maps of one family (map_state S5);
anything else is a contradiction, and each is reported once a page.
Callers: pool_open, before other threads exist; map_check, over maps that hold still.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arraylift.ids import VolumeId
from primary_array.block_map import NODE_PAGES, NONE_SLOT, PAGE_GRANULES, U64, Node, Page
from primary_array.map_state import MapState, Volume

_UNSEEN = np.uint64(2**64 - 1)


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Slots that a map names although another use of them rules that out (U1)."""

    owner: str
    slots: U64
    message: str


@dataclass(frozen=True, slots=True)
class Holder:
    """One map: whose, and its nodes at one instant."""

    owner: str
    family_id: VolumeId
    nodes: Sequence[Node | None]


def holders(state: MapState) -> list[Holder]:
    """All maps as they are now, for ever. Under the map lock; O(nodes)."""
    found = []
    for record in state.by_id.values():
        found.append(Holder(f"volume {record.name}", record.family_id, record.map.still()))
        for snapshot in record.snapshots if isinstance(record, Volume) else []:
            owner = f"snapshot {snapshot.snapshot_id}"
            found.append(Holder(owner, record.family_id, snapshot.map.nodes()))
    return found


def distinct_pages(maps: Sequence[Holder]) -> Iterator[tuple[Holder, int, Page]]:
    """Yield (a holder, page number, page): each page once a place."""
    seen: set[tuple[int, int]] = set()
    for owner in maps:
        for index, node in enumerate(owner.nodes):
            if node is None or (id(node), index) in seen:
                continue
            seen.add((id(node), index))
            for place, page in enumerate(node.pages):
                number = index * NODE_PAGES + place
                if page is not None and (id(page), number) not in seen:
                    seen.add((id(page), number))
                    yield owner, number, page


def count_slots(maps: Sequence[Holder]) -> npt.NDArray[np.uint32]:
    """Return how many distinct pages name each slot (slot_counts R1)."""
    pages = {id(page): page for _, _, page in distinct_pages(maps)}
    highest = max((int(page.slots.max()) for page in pages.values()), default=0)
    counts = np.zeros(highest + 1, np.uint32)
    for page in pages.values():
        # Not += with fancy indexes: a damaged page may name one slot twice.
        np.add.at(counts, page.slots[page.slots != NONE_SLOT], np.uint32(1))
    return counts


def count_holders(maps: Sequence[Holder]) -> tuple[dict[int, tuple[Node, int]], dict[int, tuple[Page, int]]]:
    """Return, by id, (node, maps that hold it) and (page, places that hold it)."""
    nodes: dict[int, tuple[Node, int]] = {}
    for owner in maps:
        for node in owner.nodes:
            if node is not None:
                nodes[id(node)] = (node, nodes.get(id(node), (node, 0))[1] + 1)
    pages: dict[int, tuple[Page, int]] = {}
    for node, _ in nodes.values():
        for page in node.pages:
            if page is not None:
                pages[id(page)] = (page, pages.get(id(page), (page, 0))[1] + 1)
    return nodes, pages


def contradictions(maps: Sequence[Holder], highest: int) -> Iterator[Contradiction]:
    """Yield what breaks U1; ``highest`` slot that a map names."""
    granule_of = np.full(highest + 1, _UNSEEN)
    birth_of = np.zeros(highest + 1, np.uint64)
    family_of = np.zeros(highest + 1, np.uint32)
    families: dict[VolumeId, int] = {}
    for owner, number, page in distinct_pages(maps):
        family = np.uint32(families.setdefault(owner.family_id, len(families)))
        inside = np.flatnonzero(page.slots != NONE_SLOT)
        slots, births = page.slots[inside], page.births[inside]
        granules = inside.astype(np.uint64) + np.uint64(number * PAGE_GRANULES)
        fresh = granule_of[slots] == _UNSEEN
        granule_of[slots[fresh]] = granules[fresh]
        birth_of[slots[fresh]] = births[fresh]
        family_of[slots[fresh]] = family
        for wrong, message in (
            (family_of[slots] != family, "in two volumes"),
            (granule_of[slots] != granules, "at two places of a volume"),
            (birth_of[slots] != births, "with two births"),
        ):
            if wrong.any():
                yield Contradiction(owner.owner, slots[wrong], message)
                break
