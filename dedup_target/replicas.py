"""Keep a copy of each unit's manifests and keys in every other unit, and restore from it.

Invariants:
  C1 what a unit has is copied to all others that can be reached, soon after it changed, and compared in
     full once a process; an absent unit is compared when it is back.
  C2 a copy is dropped only for an object that was removed on purpose (replica_journal.py J1): what a
     unit lost, its replicas keep.
  C3 restoring replaces nothing that can be read, and makes no image whose root is nowhere in the unit.
  C4 of several copies the one that is locked longest is restored: locks only grow, and a copy in a unit
     that was away may be older than one in another.
Callers: ``catch_up`` from housekeeping, ``restore`` under the unit's maintenance. Decision:
docs/decisions/0044-replicas-of-metadata.md
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

from arraylift.errors import ArrayliftError, Corruption, NotFound
from arraylift.ids import UnitId
from arraylift.logs import get_logger
from dedup_target import backup_manifest_format, key_store, manifest_format, superblock
from dedup_target.backup_manifest_format import BackupManifest
from dedup_target.key_store import TenantKey
from dedup_target.manifest_format import ImageManifest
from dedup_target.replica_journal import ReplicaJournal
from dedup_target.replica_view import FOLDER, REPLICATED, ReplicaBackend
from dedup_target.storage_unit import StorageUnit
from dedup_target.unit_backend import UnitBackend, walk
from dedup_target.units import Units

Copy = TenantKey | ImageManifest | BackupManifest

_log = get_logger("replicas")


class Replicas:
    """Those of one target."""

    def __init__(self, units: Units, journal: ReplicaJournal, wrapping_key: bytes) -> None:
        self._units = units
        self._journal = journal
        self._wrapping_key = wrapping_key
        self._level: set[tuple[UnitId, UnitId]] = set()
        """Pairs of (unit, holder) that were compared in full and have not failed since."""

    def begin(self) -> None:
        """At start, before anything is removed: drop the marks of removals that never happened."""
        for unit in self._units.open_units():
            for name in self._journal.removed(unit.unit_id):
                if unit.backend.exists(name):
                    self._journal.forget(unit.unit_id, name)

    # -- keeping --------------------------------------------------------------------------------

    def catch_up(self, stopping: threading.Event) -> None:
        """Bring every replica up to date (C1)."""
        reachable = self._units.reachable()
        everybody = len(reachable) == len(self._units.members)
        here = {unit.unit_id for unit in reachable}
        self._level = {pair for pair in self._level if here.issuperset(pair)}  # others miss what comes now
        for unit in reachable:
            changed, removed = self._journal.take_changes(unit.unit_id), self._journal.removed(unit.unit_id)
            level = True
            for holder in reachable:
                if stopping.is_set():
                    return
                if holder is not unit:
                    level &= self._catch_up_pair(unit, holder, changed, removed)
            if level and everybody:
                for name in removed:
                    if not unit.backend.exists(name):  # else the removal is still under way
                        self._journal.forget(unit.unit_id, name)

    def _catch_up_pair(
        self, unit: StorageUnit, holder: StorageUnit, changed: set[str], removed: set[str]
    ) -> bool:
        """Returns whether the holder has everything now."""
        pair = unit.unit_id, holder.unit_id
        replica = ReplicaBackend(holder.backend, unit.unit_id)
        whole = pair not in self._level
        try:
            self._copy(unit.backend, replica, set(_names(unit.backend)) if whole else changed)
            for name in removed:
                if not unit.backend.exists(name):
                    replica.remove(name, label="replica-remove", missing_ok=True)  # C2
        except ArrayliftError as error:
            self._level.discard(pair)
            _log.warning("replica_behind", unit=unit.name, holder=holder.name, why=str(error))
            return False
        self._level.add(pair)
        return True

    @staticmethod
    def _copy(source: UnitBackend, replica: UnitBackend, names: set[str]) -> None:
        for name in sorted(names):
            try:
                data = source.get(name)
            except NotFound:
                continue  # removed; its mark says whether on purpose
            try:
                known = replica.get(name)
            except NotFound:
                known = None
            if data != known:
                replica.put(name, [data], label="replica")

    def leave(self, unit: StorageUnit) -> None:
        """A unit is about to be retired: drop what it keeps of the others. If it is added again later, it
        would know images that were deleted in between, and nothing says that they were."""
        self._level = {pair for pair in self._level if pair[1] != unit.unit_id}
        try:
            for name in list(walk(unit.backend, FOLDER)):
                unit.backend.remove(name, label="replica-remove", missing_ok=True)
        except ArrayliftError as error:
            _log.warning("replica_not_dropped", holder=unit.name, why=str(error))

    def forget(self, unit_id: UnitId) -> None:
        """A unit was retired: drop what the others keep of it, where they can be reached."""
        for holder in self._units.reachable():
            replica = ReplicaBackend(holder.backend, unit_id)
            try:
                for name in list(walk(replica)):
                    replica.remove(name, label="replica-remove", missing_ok=True)
            except ArrayliftError as error:
                _log.warning("replica_not_dropped", holder=holder.name, why=str(error))
        for name in self._journal.removed(unit_id):
            self._journal.forget(unit_id, name)

    # -- restoring ------------------------------------------------------------------------------

    def restore(self, unit: StorageUnit) -> int:
        """Put back what the unit has lost of its keys and manifests (C3); returns how many.

        Raises OutOfSpace, StoreFailed, PeerUnavailable (the unit).
        """
        removed = self._journal.removed(unit.unit_id)
        replicas = [
            ReplicaBackend(holder.backend, unit.unit_id)
            for holder in self._units.reachable()
            if holder is not unit
        ]
        restored = 0
        for folder in ("keys", "manifests", "backups"):
            names = {f"{folder}/{name}" for replica in replicas for name in replica.list(folder)}
            restored += sum(self._restore_one(unit, path, replicas) for path in sorted(names - removed))
        if restored:
            _log.warning("metadata_restored", unit=unit.name, count=restored)
        return restored

    def _restore_one(self, unit: StorageUnit, path: str, replicas: list[ReplicaBackend]) -> bool:
        """Whether the object was missing, and is there now."""
        copies: list[Copy] = []
        for replica in replicas:
            try:
                if replica.exists(path):
                    copies.append(self._decode(unit, path, replica.get(path)))
            except (Corruption, NotFound) as error:
                _log.error("replica_unreadable", unit=unit.name, name=path, why=str(error))
        if not copies:
            return False
        copy = max(copies, key=lambda one: 0 if isinstance(one, TenantKey) else one.lock_until_ns or 0)  # C4
        if isinstance(copy, TenantKey):
            return unit.keys.restore(copy)
        return (
            self._restore_image(unit, copy) if isinstance(copy, ImageManifest) else unit.backups.restore(copy)
        )

    def _decode(self, unit: StorageUnit, path: str, data: bytes) -> Copy:
        if path.startswith("keys/"):
            return key_store.decode_key(data, self._wrapping_key, what=path)
        if path.startswith("manifests/"):
            return manifest_format.decode(data, unit.seal_manifest, what=path)
        return backup_manifest_format.decode(data, unit.seal_manifest, what=path)

    @staticmethod
    def _restore_image(unit: StorageUnit, image: ImageManifest) -> bool:
        if unit.manifests.has(image.image_id):
            return False
        if not unit.contains(image.tenant, image.root).all():
            _log.error("image_not_restored", image=image.image_id, why="its root is in no container")
            return False
        return unit.manifests.restore(image)


def _names(unit: UnitBackend) -> Iterator[str]:
    yield superblock.NAME
    for folder in REPLICATED:
        yield from (f"{folder}/{name}" for name in unit.list(folder))
