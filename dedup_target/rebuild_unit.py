"""Make a unit's metadata anew: its index from its containers, what else it lost from the other units.

Callers: a thread a call; the unit's maintenance keeps others out of the index's part.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from dedup_target.doubt import settle_doubt
from dedup_target.image_reader import ImageReader
from dedup_target.online_rebuild import RebuildProgress
from dedup_target.storage_unit import StorageUnit
from dedup_target.store import Store


@dataclass(frozen=True, slots=True)
class RebuildNews:
    """How far it is."""

    index: RebuildProgress
    manifests_restored: int = 0
    done: bool = False


class UnitRebuilder:
    """Rebuilds units of one target."""

    def __init__(self, store: Store, images: ImageReader) -> None:
        self._store = store
        self._images = images

    def rebuild(
        self, unit: StorageUnit, *, report: Callable[[RebuildNews], None], cancelled: threading.Event
    ) -> RebuildNews:
        """Rebuild; what was restored is looked up before it is trusted.

        Raises Conflict (maintenance runs), Cancelled, OutOfSpace, StoreFailed, PeerUnavailable.
        """
        index = unit.rebuild_index(report=lambda one: report(RebuildNews(one)), cancelled=cancelled)
        with unit.maintenance.begin("rebuild"):
            if unit is self._store.unit:
                self._store.begin_doubt("its metadata were made anew")
            restored = self._store.replicas.restore(unit)
        if unit is self._store.unit:
            settle_doubt(self._store, self._images, cancelled)
        return RebuildNews(index, restored, done=True)

    def mend(self, unit: StorageUnit, stopping: threading.Event) -> None:
        """Make the unit's index anew if a read met damage in it. Raises as ``rebuild``."""
        if unit.mend_index(stopping) and unit is self._store.unit:
            settle_doubt(self._store, self._images, stopping)
