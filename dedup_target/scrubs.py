"""The scrub of each unit of a target, made when it is first asked for.

Callers: any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from arraylift.ids import UnitId
from dedup_target.scrub import Scrub
from dedup_target.storage_unit import StorageUnit


class Scrubs:
    """One for each unit, as long as that one is open."""

    def __init__(self, make: Callable[[StorageUnit], Scrub]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._known: dict[UnitId, tuple[StorageUnit, Scrub]] = {}

    def of(self, unit: StorageUnit) -> Scrub:
        """The scrub of a unit; another one once the unit was taken back after an absence."""
        with self._lock:
            known = self._known.get(unit.unit_id)
            if known is None or known[0] is not unit:
                known = self._known[unit.unit_id] = unit, self._make(unit)
            return known[1]
