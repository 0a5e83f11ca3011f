"""Plan reads of a few records of a container: neighbours in one piece, nothing read twice.

Pure. Callers: container_store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dedup_target.container_format import Directory
from dedup_target.segment_index import Locator

GAP_BYTES_MAX = 64 * 1024
"""What lies between two records is read along, up to this: frame tables, mostly."""

Check = tuple[int, int]
"""Stored bytes and checksum of a record."""


@dataclass(slots=True)
class Run:
    """One read: [start, end) of the file, and which of the wanted records it brings."""

    start: int
    end: int
    places: list[int] = field(default_factory=list)


def plan(locators: Sequence[Locator]) -> list[Run]:
    """Runs that bring all records of one container, ascending."""
    runs: list[Run] = []
    for place in sorted(range(len(locators)), key=lambda place: locators[place].offset):
        start = locators[place].offset
        end = start + locators[place].stored_bytes
        if not runs or start > runs[-1].end + GAP_BYTES_MAX:
            runs.append(Run(start, end))
        runs[-1].end = max(runs[-1].end, end)
        runs[-1].places.append(place)
    return runs


def checks(directory: Directory, locators: Sequence[Locator]) -> list[Check | None]:
    """What the directory says of each record; None where it has no record at that offset."""
    offsets = np.array([locator.offset for locator in locators], dtype=np.uint32)
    slots = np.searchsorted(directory["offset"], offsets)
    inside = np.minimum(slots, max(0, len(directory) - 1))
    if not len(directory):
        return [None] * len(locators)
    found = directory["offset"][inside] == offsets
    rows = zip(
        found.tolist(),
        directory["stored_bytes"][inside].tolist(),
        directory["checksum"][inside].tolist(),
        strict=True,
    )
    return [(size, checksum) if there else None for there, size, checksum in rows]
