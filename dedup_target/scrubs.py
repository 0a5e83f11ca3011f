"""The scrub of each unit of a target, made when it is first asked for.

Callers: any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import partial

from arraylift.ids import UnitId
from arraylift.logs import get_logger
from arraylift.outcome import attempt
from dedup_target.scrub import Scrub
from dedup_target.storage_unit import StorageUnit

_log = get_logger("scrubs")


class Scrubs:
    """One for each unit, as long as that one is open."""

    def __init__(self, make: Callable[[StorageUnit], Scrub]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._known: dict[UnitId, tuple[StorageUnit, Scrub]] = {}

    def run_in_background(
        self, units: Iterable[StorageUnit], stopping: threading.Event, *, period_days: float
    ) -> None:
        """Give each unit its turn; one that goes away keeps no other from its own."""
        for unit in units:
            if stopping.is_set():
                return
            run = partial(self.of(unit).run_in_background, stopping, period_days=period_days)
            _, error = attempt(run, f"scrub of unit {unit.name}")
            if error is not None:
                _log.warning("scrub_broke_off", unit=unit.name, error=str(error))

    def of(self, unit: StorageUnit) -> Scrub:
        """The scrub of a unit; another one once the unit was taken back after an absence."""
        with self._lock:
            known = self._known.get(unit.unit_id)
            if known is None or known[0] is not unit:
                known = self._known[unit.unit_id] = unit, self._make(unit)
            return known[1]
