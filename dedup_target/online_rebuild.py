"""Make a unit's index anew from its containers, while the old one serves.

A fresh index is filled beside the current one; containers that are sealed meanwhile follow, and in
the end, with every writer held for a moment, the last of them; then it takes the other's place.
Invariants:
  O1 the fresh index takes over only when it has every container that is on disk, none that is not,
     and no quarantined record: the current one's promises hold in it.
  O2 a crash, an error or a cancelled call before that leaves the current index as it is.
  O3 nobody reads an index that is being closed: look-ups wait for the new one and go there.
REQUIRES the unit's maintenance: nobody removes containers meanwhile. Callers: one thread a unit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from arraylift.errors import Cancelled, Conflict
from arraylift.ids import ContainerId
from arraylift.logs import get_logger
from dedup_target.container_format import subject_of
from dedup_target.container_store import ContainerStore
from dedup_target.quarantine import Quarantine
from dedup_target.rebuild import CONTAINERS_AT_ONCE, IndexOpener, reconcile
from dedup_target.segment_index import SegmentIndex

_log = get_logger("online_rebuild")

ROUNDS_MAX = 16
"""Rounds of catching up; a round takes what came during the one before, so few are needed."""


@dataclass(frozen=True, slots=True)
class RebuildProgress:
    """How far it is. Totals grow while backups go on."""

    containers_done: int
    containers_total: int
    records: int
    containers_damaged: int
    done: bool = False


Report = Callable[[RebuildProgress], None]


def rebuild_index(
    current: SegmentIndex,
    place: IndexOpener,
    containers: ContainerStore,
    quarantine: Quarantine,
    *,
    report: Report,
    cancelled: threading.Event,
    before_switch: Callable[[], None],
) -> RebuildProgress:
    """Make the index anew. ``before_switch`` runs when everything is ready, with all writers held.

    Raises Cancelled, Conflict (a container was removed), OutOfSpace, StoreFailed; nothing changed then.
    """
    fresh = place.open_next()
    filling = _Filling(fresh, containers, quarantine, report, cancelled)
    try:
        for _ in range(ROUNDS_MAX):
            filling.catch_up()
            if filling.behind() <= CONTAINERS_AT_ONCE:
                break

        def take_over() -> None:
            filling.catch_up()
            filling.check()  # O1
            before_switch()
            place.switch()

        with quarantine.changing():  # nobody condemns between the last look and the switch
            current.take_over(fresh, take_over)
    except BaseException:
        fresh.close()
        raise
    place.destroy_other()
    progress = filling.progress(done=True)
    _log.info(
        "index_rebuilt",
        containers=progress.containers_done,
        records=progress.records,
        damaged=progress.containers_damaged,
    )
    return progress


class _Filling:
    """The fresh index and what it has yet to learn."""

    def __init__(
        self,
        fresh: SegmentIndex,
        containers: ContainerStore,
        quarantine: Quarantine,
        report: Report,
        cancelled: threading.Event,
    ) -> None:
        self._fresh = fresh
        self._containers = containers
        self._quarantine = quarantine
        self._report = report
        self._cancelled = cancelled
        self._damaged: set[ContainerId] = set()

    def behind(self) -> int:
        """Containers on disk that the fresh index does not have."""
        return len(set(self._containers.containers()) - self._fresh.indexed_containers())

    def catch_up(self) -> None:
        """Add what is missing, oldest first, and forget what was quarantined meanwhile."""
        found = reconcile(self._fresh, self._containers, self._quarantine, progress=self._told)
        self._damaged.update(found.containers_damaged)

    def _told(self, _done: int, _total: int) -> None:
        if self._cancelled.is_set():
            raise Cancelled("the rebuild was cancelled; the index is as it was")
        self._report(self.progress())

    def progress(self, *, done: bool = False) -> RebuildProgress:
        totals, total = self._fresh.totals(), len(self._containers.containers())
        return RebuildProgress(totals.container_count, total, totals.record_count, len(self._damaged), done)

    def check(self) -> None:
        """Raise Conflict if a container was removed that the fresh index has (O1)."""
        gone = self._fresh.indexed_containers() - set(self._containers.containers())
        if gone:
            raise Conflict(
                f"{subject_of(min(gone))} was removed while the index was being rebuilt",
                next_step="repeat the rebuild",
            )
