"""What of a unit's manifests and keys has changed, and which of them were removed on purpose.

Owns: ``<state>/replicas/<unit id>/``: one empty file for each object that is about to be removed.
Invariants:
  J1 a removal is marked durably before it happens, until no replica has the object any more. So a
     replica drops only what was removed on purpose, never what was lost. The mark goes when an
     object of that name is put again.
Callers: any thread. Format: docs/formats/units-v1.md
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from arraylift.durable import Buffer, Files
from arraylift.ids import UnitId
from dedup_target.replica_view import REPLICATED
from dedup_target.unit_backend import ForwardingBackend, UnitBackend


class ReplicaJournal:
    """Of all units of a target."""

    def __init__(self, files: Files, state_path: str) -> None:
        self._files = files
        self._root = f"{state_path}/replicas"
        self._lock = threading.Lock()
        self._changed: dict[UnitId, set[str]] = {}
        self.is_kept = False
        """Whether there is more than one unit; with one there are no replicas."""
        self.wake: Callable[[], None] = lambda: None
        """Called after each change, to have the replicas caught up soon."""

    def put(self, unit_id: UnitId, name: str) -> None:
        """An object is there, whatever was removed before."""
        if self.is_kept and self._files.exists(f"{self._root}/{unit_id}/{_flat(name)}"):
            self.forget(unit_id, name)
        self.changed(unit_id, name)

    def changed(self, unit_id: UnitId, name: str) -> None:
        """An object was put or removed."""
        with self._lock:
            self._changed.setdefault(unit_id, set()).add(name)
        self.wake()

    def take_changes(self, unit_id: UnitId) -> set[str]:
        """What has changed since this was asked."""
        with self._lock:
            return self._changed.pop(unit_id, set())

    def removing(self, unit_id: UnitId, name: str) -> None:
        """An object is about to be removed (J1)."""
        if self.is_kept:
            folder = f"{self._root}/{unit_id}"
            self._files.make_dirs(folder)
            self._files.publish(f"{folder}/{_flat(name)}", [b""], label="replica-mark")

    def removed(self, unit_id: UnitId) -> set[str]:
        """Objects that were removed on purpose, or were about to be."""
        return {name.replace("--", "/", 1) for name in self._files.list_dir(f"{self._root}/{unit_id}")}

    def forget(self, unit_id: UnitId, name: str) -> None:
        """No replica has it any more; or it was not removed after all."""
        self._files.remove(f"{self._root}/{unit_id}/{_flat(name)}", label="replica-mark", missing_ok=True)


def _flat(name: str) -> str:
    return name.replace("/", "--", 1)


class WatchedBackend(ForwardingBackend):
    """A unit's backend that tells the journal."""

    def __init__(self, inner: UnitBackend, journal: ReplicaJournal, unit_id: UnitId) -> None:
        super().__init__(inner)
        self._journal = journal
        self._unit_id = unit_id

    def put(self, name: str, parts: Sequence[Buffer], *, label: str) -> None:
        self.inner.put(name, parts, label=label)
        if _is_replicated(name):
            self._journal.put(self._unit_id, name)

    def remove(self, name: str, *, label: str, missing_ok: bool = False) -> None:
        if not _is_replicated(name):
            self.inner.remove(name, label=label, missing_ok=missing_ok)
            return
        self._journal.removing(self._unit_id, name)
        self.inner.remove(name, label=label, missing_ok=missing_ok)
        self._journal.changed(self._unit_id, name)


def _is_replicated(name: str) -> bool:
    return name.partition("/")[0] in REPLICATED
