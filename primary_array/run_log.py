"""Mappings that are in memory and not yet in the journal. Pure.

Invariant: G1 the runs, in order, say what happened to one owner in one epoch.
Callers: under the map lock.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from primary_array.block_map import NONE_SLOT
from primary_array.map_events import RUN, Runs

RUN_GRANULES_MAX = 1 << 31


class RunLog:
    """Grows by runs; a run that continues the last one is joined with it, so a sequential
    import of any size is a handful of runs."""

    __slots__ = ("_runs",)

    def __init__(self) -> None:
        self._runs: list[tuple[int, int, int]] = []

    def __len__(self) -> int:
        return len(self._runs)

    def extend(self, runs: Iterable[tuple[int, int, int]]) -> None:
        """Add (granule, slot, count) runs in order."""
        for granule, slot, count in runs:
            if self._runs:
                last_granule, last_slot, last_count = self._runs[-1]
                next_slot = NONE_SLOT if last_slot == NONE_SLOT else last_slot + last_count
                joined = last_count + count
                if granule == last_granule + last_count and slot == next_slot and joined < RUN_GRANULES_MAX:
                    self._runs[-1] = (last_granule, last_slot, joined)
                    continue
            self._runs.append((granule, slot, count))

    def take(self) -> Runs:
        """Return everything as an array and become empty."""
        runs = np.array(self._runs, RUN)
        self._runs = []
        return runs

    def take_list(self) -> list[tuple[int, int, int]]:
        """Like ``take``, for another log."""
        runs, self._runs = self._runs, []
        return runs

    def put_back(self, runs: Runs) -> None:
        """Undo a ``take`` whose commit failed: ``runs`` happened before what is here (G1)."""
        self._runs[:0] = [(int(run["granule"]), int(run["slot"]), int(run["count"])) for run in runs]
