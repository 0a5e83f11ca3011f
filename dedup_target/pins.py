"""Which containers live promises rest on, so that nobody deletes them (law 7).

"Already present" is said of records, and kept by container: whoever says it pins the
containers in which the answer found them, and the containers that he fills himself, until his
attempt ends.
Invariants:
  P1 a pin is added under the quarantine's lock, and only if nothing was condemned or removed
     since the look-up that it rests on; whoever removes a container looks here first, under
     the same lock.
  P2 ``is_spared`` remembers: a container that was pinned at any moment since the watch began is
     spared to its end, as the promise may have become an image that the mark did not see.
  P3 a holder that was released pins nothing any more, whoever still uses it.
  P4 where content lies twice, the index names the container that was added last, and a promise may
     rest on the other, which it *hides*. Before a container goes, what it hides is indexed again
     if somebody rests on it (storage_unit.remove_container).
Who reads an image to its end holds its root, which then counts like an image's own: deleting the
image meanwhile does not take the bytes away under the reader.
Limits: about 100 bytes a pinned container and holder: 6 MiB for 1 TiB that one attempt rests on.
Callers: any thread.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt

from arraylift.durable import Buffer
from arraylift.ids import ContainerId, Fingerprint, TenantId
from dedup_target.quarantine import Quarantine
from dedup_target.segment_index import SegmentIndex

LOOK_UPS_MAX = 3
"""Without the lock; then once more with it, so that a busy collector cannot starve a backup."""


class Pins:
    """All pins of one storage unit."""

    def __init__(self, quarantine: Quarantine) -> None:
        self._quarantine = quarantine
        self._counts: dict[ContainerId, int] = {}
        self._watched: set[ContainerId] | None = None
        self._hidden: dict[ContainerId, set[ContainerId]] = {}
        self._hiding = threading.Lock()  # a leaf: whoever seals notes, under no other lock of this module
        self._roots: Counter[tuple[TenantId, Fingerprint]] = Counter()

    def holder(self) -> PinHolder:
        """Somebody who is about to make promises."""
        return PinHolder(self)

    def present(
        self, index: SegmentIndex, tenant: TenantId, packed: Buffer, holder: PinHolder
    ) -> npt.NDArray[np.bool_]:
        """Which of n fingerprints (32 n bytes) are in the index; shape (n,). They stay, while
        ``holder`` is not released (P1). Raises Corruption."""
        for _ in range(LOOK_UPS_MAX):
            generation = self._quarantine.generation
            found, fresh = _look_up(index, tenant, packed, holder)
            if not fresh:
                return found
            with self._quarantine.lock:
                if self._quarantine.generation == generation:
                    holder.add(fresh)
                    return found
        with self._quarantine.lock:
            found, fresh = _look_up(index, tenant, packed, holder)
            holder.add(fresh)
            return found

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Remember every pin while inside (P2). One at a time: the unit's maintenance."""
        with self._quarantine.lock:
            assert self._watched is None, "one maintenance at a time"
            self._watched = set(self._counts)
        try:
            yield
        finally:
            with self._quarantine.lock:
                self._watched = None

    def is_spared(self, container: ContainerId) -> bool:
        """Whether it is pinned, or was since the watch began (P2). To act on the answer REQUIRES the
        quarantine's lock."""
        return container in self._counts or (self._watched is not None and container in self._watched)

    # -- content that lies twice ------------------------------------------------------------

    def note_hidden(self, by: ContainerId, hidden: Iterable[ContainerId]) -> None:
        """Entries that named ``hidden`` name ``by`` now (P4)."""
        with self._hiding:
            self._hidden.setdefault(by, set()).update(hidden)

    def hidden_by(self, container: ContainerId) -> list[ContainerId]:
        """What a container hides and somebody rests on, oldest first. REQUIRES the quarantine's lock."""
        with self._hiding:
            hidden = sorted(self._hidden.get(container, ()))
        return [one for one in hidden if self.is_spared(one)]

    def forget_hidden(self, containers: Callable[[], Iterable[ContainerId]]) -> None:
        """Drop what is no longer true of containers that are gone; asks which there are when nobody notes."""
        with self._hiding:
            there = set(containers())
            left = {by: hidden & there for by, hidden in self._hidden.items() if by in there}
            self._hidden = {by: hidden for by, hidden in left.items() if hidden}

    # -- roots ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def hold_root(self, tenant: TenantId, root: Fingerprint) -> Iterator[None]:
        """Let a root count while inside. REQUIRES that its image is looked up once more inside:
        if it is there, every mark from now on meets the image or the hold."""
        key = (tenant, root)
        with self._quarantine.lock:
            self._roots[key] += 1
        try:
            yield
        finally:
            with self._quarantine.lock:
                self._roots[key] -= 1
                if not self._roots[key]:
                    del self._roots[key]

    def held_roots(self) -> list[tuple[TenantId, Fingerprint]]:
        with self._quarantine.lock:
            return list(self._roots)

    # -- inside -----------------------------------------------------------------------------

    def _add(self, container: ContainerId) -> None:
        self._counts[container] = self._counts.get(container, 0) + 1
        if self._watched is not None:
            self._watched.add(container)

    def _remove(self, container: ContainerId) -> None:
        count = self._counts.pop(container) - 1
        if count:
            self._counts[container] = count


class PinHolder:
    """The pins of one attempt, or of whoever else promises."""

    def __init__(self, pins: Pins) -> None:
        self._pins = pins
        self._containers: set[ContainerId] = set()
        self._released = False

    @property
    def containers(self) -> frozenset[ContainerId]:
        return frozenset(self._containers)

    def has(self, container: ContainerId) -> bool:
        return container in self._containers

    def add(self, containers: Iterable[ContainerId]) -> None:
        """Pin containers: those of a look-up (P1), or one that the holder is about to fill."""
        with self._pins._quarantine.lock:
            if self._released:
                return  # P3
            for container in containers:
                if container not in self._containers:
                    self._containers.add(container)
                    self._pins._add(container)

    def release(self) -> None:
        """Let go of everything, for good (P3). Idempotent."""
        with self._pins._quarantine.lock:
            self._released = True
            for container in self._containers:
                self._pins._remove(container)
            self._containers = set()


def _look_up(
    index: SegmentIndex, tenant: TenantId, packed: Buffer, holder: PinHolder
) -> tuple[npt.NDArray[np.bool_], list[ContainerId]]:
    """Return what was found, and the containers of it that the holder does not pin yet."""
    containers = index.find_many(tenant, packed)["container"]
    fresh = [ContainerId(one) for one in np.unique(containers).tolist() if one and not holder.has(one)]
    return containers != 0, fresh
