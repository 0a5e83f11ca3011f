"""Which states of which volumes can be compared: lineages, forks, ancestors. Pure.

Owns: the table of lineages and the ancestor rule.
A lineage is one unbroken history of one volume: its epochs count up from 1 and
every epoch's writes carry the epoch as their birth. A rollback or a clone forks:
the new lineage names its parent and the last birth that it took over. A volume
whose tracker is no longer believed starts a lineage without a parent, and so do those that forked
from its lineages or from one that these descend from.
Invariants:
  L1 a lineage id names one history for ever; an id that the table does not know
     is no ancestor of anything.
  L2 births compare only along one line of descent: equal numbers in two
     branches of a fork mean nothing.
  L3 the parent relation has no cycle; a parent is in the table before its child.
Callers: any thread that holds the map lock; the functions keep no state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from arraylift.errors import Corruption
from arraylift.ids import LineageId, PoolId, SourceState


@dataclass(frozen=True, slots=True)
class Lineage:
    """``fork_birth`` is the last birth taken over from ``parent_id``; 0 without a parent."""

    lineage_id: LineageId
    parent_id: LineageId | None = None
    fork_birth: int = 0


class LineageTable:
    """Every lineage that a volume, a snapshot or a descendant still refers to."""

    def __init__(self, pool_id: PoolId, lineages: Iterable[Lineage] = ()) -> None:
        self.pool_id = pool_id
        self._lineages: dict[LineageId, Lineage] = {}
        for lineage in lineages:
            self.add(lineage)

    def __iter__(self) -> Iterator[Lineage]:
        return iter(self._lineages.values())

    def __contains__(self, lineage_id: LineageId) -> bool:
        return lineage_id in self._lineages

    def add(self, lineage: Lineage) -> None:
        """Enter a new lineage. Raises Corruption if it breaks L1 or L3 (a damaged map)."""
        if lineage.lineage_id in self._lineages:
            raise Corruption(f"lineage {lineage.lineage_id} appears twice", subject=lineage.lineage_id)
        if lineage.parent_id is not None and lineage.parent_id not in self._lineages:
            raise Corruption(
                f"lineage {lineage.lineage_id} names an unknown parent {lineage.parent_id}",
                subject=lineage.lineage_id,
            )
        self._lineages[lineage.lineage_id] = lineage

    def orphan(self, parents: Iterable[LineageId]) -> None:
        """Cut the descent from ``parents``: what they took over is no longer believed (distrust)."""
        doubted = set(parents)
        self._lineages = {
            key: Lineage(key) if lineage.parent_id in doubted else lineage
            for key, lineage in self._lineages.items()
        }

    def with_ancestors(self, lineage_ids: Iterable[LineageId]) -> set[LineageId]:
        """Return these lineages and all that they descend from."""
        found: set[LineageId] = set()
        for start in lineage_ids:
            lineage_id: LineageId | None = start
            while lineage_id is not None and lineage_id not in found:
                found.add(lineage_id)
                lineage = self._lineages.get(lineage_id)
                lineage_id = None if lineage is None else lineage.parent_id
        return found

    def prune(self, in_use: Iterable[LineageId]) -> None:
        """Forget lineages that are neither in ``in_use`` nor an ancestor of one that is."""
        keep = self.with_ancestors(in_use)
        self._lineages = {key: value for key, value in self._lineages.items() if key in keep}

    def is_ancestor(self, older: SourceState, newer: SourceState) -> bool:
        """Say whether everything in ``newer`` was either in ``older`` or born after ``older.birth``.

        Equal states are ancestors of each other. Unknown lineages and other pools are not.
        """
        if older.pool_id != self.pool_id or newer.pool_id != self.pool_id:
            return False
        lineage = self._lineages.get(newer.lineage_id)
        birth = newer.birth
        while lineage is not None:
            if lineage.lineage_id == older.lineage_id:
                return older.birth <= birth
            if lineage.parent_id is None:
                return False
            # L2: from here on only what was taken over at the fork counts.
            birth = min(birth, lineage.fork_birth)
            lineage = self._lineages.get(lineage.parent_id)
        return False
