"""The backup manifests of a storage unit.

Owns: every byte below ``<unit>/backups``; one file a backup, named by the backup's id.
Invariants:
  C1 a backup exists exactly while its manifest is on disk, whole and sealed.
  C2 a manifest that cannot be read is reported, blocks nothing, and is never removed here.
  C3 memory holds who, when and of what, about 600 bytes a backup; attributes are read
     from the disk, seal and all, each time they are asked for.
Callers: any thread; changes come from ``backups`` alone, under its lock.
Format: docs/formats/backup-manifest-v1.md
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from arraylift.errors import ArrayliftError, Corruption, NotFound
from arraylift.ids import ImageId, TenantId, check_id
from arraylift.logs import get_logger
from dedup_target import backup_manifest_format
from dedup_target.backup_manifest_format import BackupId, BackupManifest
from dedup_target.manifest_format import Sealer
from dedup_target.unit_backend import UnitBackend

_log = get_logger("backup_manifest_store")

FOLDER = "backups"
SUFFIX = ".alb"


@dataclass(frozen=True, slots=True)
class BackupKey:
    """What memory holds of a backup."""

    backup_id: BackupId
    snapshot_at_ns: int
    tenant: TenantId
    vm_id: str
    vm_name: str
    images: tuple[tuple[str, ImageId], ...]
    """By disk name."""
    lock_until_ns: int | None = None

    @property
    def image_ids(self) -> tuple[ImageId, ...]:
        return tuple(image_id for _, image_id in self.images)

    @property
    def order(self) -> tuple[int, str]:
        """Newest last."""
        return self.snapshot_at_ns, self.backup_id


class BackupManifestStore:
    """All backups of one unit."""

    def __init__(self, backend: UnitBackend, sealer: Sealer) -> None:
        """Load all manifests; see ``damaged_names`` for those that cannot be read (C2)."""
        self._backend = backend
        self._sealer = sealer
        self._lock = threading.Lock()  # short: look-ups never wait for the disk
        self._keys: dict[BackupId, BackupKey] = {}
        self.damaged_names: list[str] = []
        for name in backend.list(FOLDER):
            self._load(name)

    def publish(self, manifest: BackupManifest) -> None:
        """Make the backup exist, or replace its manifest. Raises OutOfSpace, StoreFailed.

        REQUIRES: every image of it exists, and none can be deleted meanwhile.
        """
        data = backup_manifest_format.encode(manifest, self._sealer)
        again = backup_manifest_format.decode(data, self._sealer, what="new backup manifest")
        assert again == manifest, "a manifest must survive its own encoding"
        self._backend.put(_name_of(manifest.backup_id), [data], label="backup-manifest")
        with self._lock:
            self._keys[manifest.backup_id] = _key(manifest)

    def restore(self, manifest: BackupManifest) -> bool:
        """Publish a backup that was lost, also over a file that cannot be read; False if it is there."""
        if self.has(manifest.backup_id):
            return False
        self.publish(manifest)
        file_name = _name_of(manifest.backup_id).rpartition("/")[2]
        self.damaged_names = [name for name in self.damaged_names if name != file_name]
        return True

    def remove(self, backup_id: BackupId) -> None:
        """Make the backup not exist; its images stay. Raises NotFound."""
        self.key(backup_id)
        self._backend.remove(_name_of(backup_id), label="backup-manifest-remove")
        with self._lock:
            self._keys.pop(backup_id, None)

    def has(self, backup_id: BackupId) -> bool:
        with self._lock:
            return backup_id in self._keys

    def key(self, backup_id: BackupId) -> BackupKey:
        """Raises NotFound."""
        with self._lock:
            found = self._keys.get(backup_id)
        if found is None:
            raise NotFound(
                f"there is no backup {backup_id}",
                subject=f"backup {backup_id}",
                next_step="list the backups",
            )
        return found

    def read(self, backup_id: BackupId) -> BackupManifest:
        """Read it from the disk (C3). Raises NotFound, Corruption."""
        self.key(backup_id)
        data = self._backend.get(_name_of(backup_id))
        return backup_manifest_format.decode(data, self._sealer, what=f"backup manifest {backup_id}")

    def keys(self) -> list[BackupKey]:
        """Every backup, newest first."""
        with self._lock:
            return sorted(self._keys.values(), key=lambda key: key.order, reverse=True)

    def naming(self, image_id: ImageId) -> BackupKey | None:
        """A backup that names this image, if one does."""
        with self._lock:
            return next((key for key in self._keys.values() if image_id in key.image_ids), None)

    def _load(self, name: str) -> None:
        what = f"backup manifest {name}"
        try:
            backup_id = BackupId(check_id(name.removesuffix(SUFFIX), "the name of a backup manifest"))
            data = self._backend.get(f"{FOLDER}/{name}")
            manifest = backup_manifest_format.decode(data, self._sealer, what=what)
            if manifest.backup_id != backup_id or not name.endswith(SUFFIX):
                raise Corruption(f"{what} is about backup {manifest.backup_id}")
        except ArrayliftError as error:
            _log.error("backup_manifest_unreadable", name=name, why=str(error))
            self.damaged_names.append(name)
            return
        self._keys[backup_id] = _key(manifest)


def _name_of(backup_id: BackupId) -> str:
    return f"{FOLDER}/{backup_id}{SUFFIX}"


def _key(manifest: BackupManifest) -> BackupKey:
    return BackupKey(
        manifest.backup_id,
        manifest.snapshot_at_ns,
        manifest.tenant,
        manifest.vm_id,
        manifest.vm_name,
        manifest.images,
        manifest.lock_until_ns,
    )
