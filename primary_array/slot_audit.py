"""Walk all maps of a pool: how often each slot is named, and whether that may be. Pure.

Owns: nothing; it finds out what ``slot_counts`` and the counts in ``block_map`` must be.
Invariant: U1 a slot stands at one granule, with one birth, in the maps of one family (map_state S5);
anything else is a contradiction, and each is reported once a page.
Callers: pool_open, before other threads exist; map_check, over maps that hold still.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arraylift.ids import VolumeId
from primary_array.block_map import NODE_PAGES, NONE_SLOT, PAGE_GRANULES, U64, Node, Page
from primary_array.map_state import MapState, Volume

PAGES_TOGETHER = 128
"""Pages that are looked at by one call of numpy."""

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
    pages = list({id(page): page for _, _, page in distinct_pages(maps)}.values())
    counts = np.zeros(1, np.uint32)
    for start in range(0, len(pages), PAGES_TOGETHER):
        slots = np.concatenate([page.slots for page in pages[start : start + PAGES_TOGETHER]])
        slots = slots[slots != NONE_SLOT]
        if len(slots) and int(slots.max()) >= len(counts):
            grown = np.zeros(max(int(slots.max()) + 1, 2 * len(counts)), np.uint32)
            grown[: len(counts)] = counts
            counts = grown
        np.add.at(counts, slots, np.uint32(1))  # += counts a slot once that stands there twice
    used = np.flatnonzero(counts)
    return counts[: int(used[-1]) + 1 if len(used) else 1]


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
    for one in maps:
        families.setdefault(one.family_id, len(families))
    pages = distinct_pages(maps)
    while batch := list(itertools.islice(pages, PAGES_TOGETHER)):
        every = np.concatenate([page.slots for _, _, page in batch])
        at = np.flatnonzero(every != NONE_SLOT)
        slots, index = every[at], at // PAGE_GRANULES
        births = np.concatenate([page.births for _, _, page in batch])[at]
        firsts = np.array([number * PAGE_GRANULES for _, number, _ in batch], np.uint64)
        granules = firsts[index] + (at % PAGE_GRANULES).astype(np.uint64)
        own = np.array([families[one.family_id] for one, _, _ in batch], np.uint32)[index]
        fresh = granule_of[slots] == _UNSEEN
        granule_of[slots[fresh]] = granules[fresh]
        birth_of[slots[fresh]] = births[fresh]
        family_of[slots[fresh]] = own[fresh]
        # A slot that stands twice in this batch was given the last place: the other is found to differ.
        for wrong, message in (
            (family_of[slots] != own, "in two volumes"),
            (granule_of[slots] != granules, "at two places of a volume"),
            (birth_of[slots] != births, "with two births"),
        ):
            if wrong.any():
                yield Contradiction(batch[int(index[wrong][0])][0].owner, slots[wrong], message)
                break
