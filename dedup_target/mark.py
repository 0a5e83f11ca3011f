"""Mark what is alive in one unit: the first phase of a collection.

Roots are the images of the unit, what its readers hold, and, in the active unit, the logs and the
bases of transfers that have not committed. They are gathered in an order in which nothing slips
through between two of them.
Invariants:
  K1 containers first, then logs, then images, then bases and holds: a transfer that commits
     meanwhile is met as a log or as an image, an image that is deleted as an image, a base or a
     hold; and what was begun later rests on pins, which the whole cycle heeds (pins.py P2).
  K2 any manifest or node that cannot be read ends the mark: nothing may be concluded from it.
Memory: slots.py and tree_walk.py say.
Callers: one thread, under the unit's maintenance.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from arraylift.errors import Corruption, NotFound
from arraylift.ids import Fingerprint, ImageId, TenantId, TransferId
from dedup_target.segment_index import Entries
from dedup_target.slots import Bits, Places, Rows, Slots
from dedup_target.storage_unit import StorageUnit
from dedup_target.tree_walk import TreeWalk


@dataclass(frozen=True, slots=True)
class TreeRoot:
    """A tree that is alive with all that is below it."""

    tenant: TenantId
    root: Fingerprint
    what: str


class LiveLog(Protocol):
    """What a transfer that has not committed made durable, as it was when it was asked."""

    @property
    def tenant(self) -> TenantId: ...

    @property
    def transfer_id(self) -> TransferId: ...

    def segments(self) -> Iterator[bytes]:
        """Packed fingerprints, some at a time. Raises NotFound if the log went meanwhile, Corruption."""
        ...


class LiveTransfers(Protocol):
    """Transfers that have not committed."""

    def live_logs(self) -> list[LiveLog]: ...

    def live_bases(self) -> list[TreeRoot]: ...


class NoTransfers:
    """Of a unit that takes no backups."""

    def live_logs(self) -> list[LiveLog]:
        return []

    def live_bases(self) -> list[TreeRoot]:
        return []


@dataclass(frozen=True, slots=True)
class MarkProgress:
    """Roots walked, of those there are."""

    done: int
    total: int


class Mark:
    """One mark: run it, then ask."""

    def __init__(
        self,
        unit: StorageUnit,
        live: LiveTransfers,
        *,
        check: Callable[[], None] = lambda: None,
        slots: Slots | None = None,
        without: Collection[ImageId] = (),
    ) -> None:
        """Take the snapshot of containers (K1), or that of an earlier mark. ``check`` is called often;
        what it raises ends the mark. ``without``: images that do not count, for who asks "what if"."""
        self._unit = unit
        self._live = live
        self._without = without
        self.slots = slots or Slots(unit.index.marks())
        self.bits = Bits(self.slots.count)
        self.live_bytes: npt.NDArray[np.int64] = np.zeros(len(self.slots), dtype=np.int64)
        """Stored bytes of live records, by container."""
        self.live_plain_bytes: npt.NDArray[np.int64] = np.zeros(len(self.slots), dtype=np.int64)
        """The same before compression."""
        self.live_records: npt.NDArray[np.int64] = np.zeros(len(self.slots), dtype=np.int64)
        self._walk = TreeWalk(unit, self.slots, self.bits, self._count, between=check)

    @property
    def lost(self) -> set[tuple[TenantId, bytes]]:
        """Segments that live images name and that are nowhere."""
        return self._walk.lost

    def run(self, progress: Callable[[MarkProgress], None] = lambda _: None) -> None:
        """Walk everything. Raises Corruption (K2)."""
        logs = self._live.live_logs()
        trees = list(roots_of(self._unit, self._without))
        trees += filter(self._is_base, self._live.live_bases())
        trees += [
            TreeRoot(tenant, root, "an image being read") for tenant, root in self._unit.pins.held_roots()
        ]
        total = len(logs) + len(trees)
        for done, log in enumerate(logs):
            progress(MarkProgress(done, total))
            self._log(log)
        for done, tree in enumerate(trees, start=len(logs)):
            progress(MarkProgress(done, total))
            self._walk.trees(tree.tenant, tree.root, tree.what)
        progress(MarkProgress(total, total))

    def _is_base(self, tree: TreeRoot) -> bool:
        """A base whose root is not in this unit is no base (transfer.py X2)."""
        return bool(self._unit.contains(tree.tenant, tree.root).all())

    def _log(self, log: LiveLog) -> None:
        try:
            for packed in log.segments():
                self._walk.segments(log.tenant, packed)
        except NotFound:  # given up, or committed and forgotten since
            image = self._unit.manifests.by_transfer(log.transfer_id)
            if image is not None:
                self._walk.trees(image.tenant, image.root, f"image {image.image_id}")

    def _count(self, rows: Rows, entries: Entries, _: Places) -> None:
        np.add.at(self.live_bytes, rows, entries["stored_bytes"].astype(np.int64))
        np.add.at(self.live_plain_bytes, rows, entries["plain_bytes"].astype(np.int64))
        np.add.at(self.live_records, rows, 1)


def roots_of(unit: StorageUnit, without: Collection[ImageId] = ()) -> Iterable[TreeRoot]:
    """The images of a unit, but some. Raises Corruption if any manifest cannot be read (K2)."""
    if unit.manifests.damaged:
        first = unit.manifests.damaged[0]
        raise Corruption(
            f"{len(unit.manifests.damaged)} manifests cannot be read, e.g. {first.file_name}: {first.why}",
            subject=f"manifest {first.file_name}",
            next_step="restore those files from a copy or a replica; until then nothing is collected",
        )
    return [
        TreeRoot(image.tenant, image.root, f"image {image.image_id} of {image.name}")
        for image in unit.manifests.all()
        if image.image_id not in without
    ]
