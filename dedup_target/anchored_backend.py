"""Tell a missing object from a missing unit.

Where a disk is not mounted, or a bucket is gone, every object is "not found". Believing that would
condemn records that are whole, so whoever misses an object looks whether the unit's superblock is there.
Invariants:
  A1 once the superblock was read or written, NotFound is raised only while it is there.
  A2 nothing is put into a place where the unit is not, e.g. below an empty mount point.
Callers: any thread.
"""

from __future__ import annotations

from collections.abc import Sequence

from arraylift.durable import Buffer
from arraylift.errors import NotFound, PeerUnavailable
from dedup_target import superblock
from dedup_target.unit_backend import ForwardingBackend, UnitBackend


class AnchoredBackend(ForwardingBackend):
    """See the module's invariants."""

    def __init__(self, inner: UnitBackend, *, is_local: bool, is_anchored: bool = False) -> None:
        """``is_local``: looking costs next to nothing, so it is done before each put (A2).
        ``is_anchored``: it is known that there is a superblock."""
        super().__init__(inner)
        self._is_local = is_local
        self._is_anchored = is_anchored

    def check_place(self) -> None:
        """Raises PeerUnavailable if the unit is not there."""
        if self._is_anchored and not self.inner.exists(superblock.NAME):
            raise PeerUnavailable(
                f"there is no storage unit at {self.location} any more",
                subject=f"unit at {self.location}",
                next_step="mount that place, or make the bucket reachable; the unit is then taken back",
            )

    def put(self, name: str, parts: Sequence[Buffer], *, label: str) -> None:
        if self._is_local:
            self.check_place()
        try:
            self.inner.put(name, parts, label=label)
        except NotFound:
            self.check_place()
            raise
        self._is_anchored |= name == superblock.NAME

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        try:
            data = self.inner.get(name, offset, length)
        except NotFound:
            self.check_place()
            raise
        self._is_anchored |= name == superblock.NAME
        return data

    def size(self, name: str) -> int:
        try:
            return self.inner.size(name)
        except NotFound:
            self.check_place()
            raise

    def remove(self, name: str, *, label: str, missing_ok: bool = False) -> None:
        try:
            self.inner.remove(name, label=label)
        except NotFound:
            self.check_place()
            if not missing_ok:
                raise
