"""Publish and remove backups, and delete images: what may go, and in which order (law 1).

Invariants:
  K1 a backup manifest is published over images that exist, all of its tenant.
  K2 an image goes only while no backup manifest names it; a manifest goes before its images.
  K3 while a manifest cannot be read, no image goes: it may be named there.
  K4 what is locked does not go, whoever asks; a lock is durable in the manifest, and only grows (law 16).
     A backup is locked once its images are: a crash in between leaves images that are.
Callers: any thread; one change at a time.
"""

from __future__ import annotations

import threading
from dataclasses import replace

from arraylift.clock import utc_text
from arraylift.errors import AlreadyExists, NotFound, WrongState
from arraylift.ids import ImageId, TenantId
from arraylift.logs import get_logger
from dedup_target import backup_manifest_format
from dedup_target.backup_manifest_format import BackupId, BackupManifest
from dedup_target.backup_manifest_store import BackupKey
from dedup_target.image_reader import ImageReader
from dedup_target.lock_clock import LockClock
from dedup_target.manifest_store import page_key
from dedup_target.storage_unit import StorageUnit
from dedup_target.store import Store

PAGE_BYTES_MAX = 2 << 20
"""A page of manifests ends here, below the limit of a message."""

_log = get_logger("backups")


class Backups:
    """The backups of one target."""

    def __init__(self, store: Store, images: ImageReader, lock_clock: LockClock) -> None:
        self._store = store
        self._lock_clock = lock_clock
        self._with_room = store.reserve.with_room
        self._manifests = store.backups
        self._images = images
        self._changing = threading.Lock()

    def publish(self, manifest: BackupManifest) -> None:
        """Make a backup exist; ``tenant`` is found by ``tenant_name``. Idempotent.

        Raises NotFound (tenant, image), AlreadyExists (another manifest of that id), InvalidRequest.
        """
        tenant = self._store.keys.by_name(manifest.tenant_name)
        manifest = replace(manifest, tenant=TenantId(tenant.tenant), tenant_name=tenant.name)
        backup_manifest_format.check(manifest)
        with self._changing:
            if self._known(manifest):
                return
            for _, image_id in manifest.images:  # K1
                if self._store.manifests.get(image_id).tenant != manifest.tenant:
                    raise NotFound(f"there is no image {image_id}", next_step="list the images")
            self._manifests.publish(manifest)
        _log.info("backup_published", backup=manifest.backup_id, image_count=len(manifest.images))

    def _known(self, manifest: BackupManifest) -> bool:
        try:
            known = self._manifests.read(manifest.backup_id)
        except NotFound:
            return False
        if replace(known, lock_until_ns=None) != manifest:
            raise AlreadyExists(
                f"backup {manifest.backup_id} exists, with another content",
                subject=f"backup {manifest.backup_id}",
                next_step="make a new id",
            )
        return True

    def get(self, backup_id: BackupId) -> BackupManifest:
        """Raises NotFound, Corruption, PeerUnavailable (its unit is absent)."""
        return self._manifests.read(backup_id)

    def page(self, size: int, after: str) -> tuple[list[BackupManifest], str]:
        """Return up to ``size`` manifests, newest first, and the token of the next page.

        Raises InvalidRequest (token), Corruption.
        """
        keys = self._manifests.keys()
        if after:
            last_order = page_key(after)
            keys = [key for key in keys if key.order < last_order]
        found: list[BackupManifest] = []
        page_bytes = 0
        last: BackupKey | None = None
        for key in keys:
            if len(found) == size or page_bytes >= PAGE_BYTES_MAX:
                assert last is not None, "a page has at least one manifest"
                return found, f"{last.snapshot_at_ns}.{last.backup_id}"
            last = key
            try:
                manifest = self._manifests.read(key.backup_id)
            except NotFound:
                continue  # removed since
            found.append(manifest)
            page_bytes += len(manifest.attributes) + 1024
        return found, ""

    def remove(self, backup_id: BackupId) -> None:
        """Remove the manifest, then its images (K2).

        Raises NotFound, WrongState (locked), PeerUnavailable (a unit is absent: nothing was removed).
        """
        with self._changing:
            key = self._manifests.key(backup_id)
            self._lock_clock.check_unlocked(f"backup {backup_id}", key.lock_until_ns)
            image_ids = key.image_ids
            for image_id in image_ids:
                self._check_unlocked(image_id)
                self._store.manifests.check_reachable(image_id)
            self._with_room(lambda: self._manifests.remove(backup_id))
            _log.info("backup_removed", backup=backup_id)
            for image_id in image_ids:
                if self._manifests.naming(image_id) is None and not self._manifests.damaged_names:
                    self._remove_image(image_id)

    def delete_image(self, image_id: ImageId) -> None:
        """Raises NotFound, WrongState (a backup names it; it is locked; K3), PeerUnavailable."""
        with self._changing:
            self._store.manifests.get(image_id)
            naming = self._manifests.naming(image_id)
            if naming is not None:
                raise WrongState(
                    f"backup {naming.backup_id} names image {image_id}",
                    subject=f"image {image_id}",
                    next_step="delete the backup",
                )
            if self._manifests.damaged_names:
                raise WrongState(
                    f"{len(self._manifests.damaged_names)} backup manifests cannot be read, and may name it",
                    subject=f"image {image_id}",
                    next_step="restore those files, or take them out of the unit's backups directory",
                )
            self._check_unlocked(image_id)
            self._remove_image(image_id)

    # -- units --------------------------------------------------------------------------------

    def move_manifests(self, source: StorageUnit, goal: StorageUnit) -> None:
        """Move all backup manifests of a unit that is drained; each is in one unit at least."""
        for key in source.backups.keys():  # noqa: SIM118 - not a dict
            with self._changing:
                if not source.backups.has(key.backup_id):
                    continue
                if not goal.backups.has(key.backup_id):  # else what was changed since, is there
                    goal.backups.publish(source.backups.read(key.backup_id))
                source.backups.remove(key.backup_id)

    # -- locks ------------------------------------------------------------------------------

    def lock_image(self, image_id: ImageId, until_ns: int) -> None:
        """Raises NotFound, InvalidRequest (a past or absurd time), WrongState (shorter than now; K4)."""
        with self._changing:
            self._lock_images([image_id], until_ns)

    def lock_backup(self, backup_id: BackupId, until_ns: int) -> None:
        """Lock its images, then the backup (K4). Raises as ``lock_image``, Corruption."""
        with self._changing:
            manifest = self._manifests.read(backup_id)
            self._lock_clock.check_extension(f"backup {backup_id}", manifest.lock_until_ns, until_ns)
            self._lock_images([image_id for _, image_id in manifest.images], until_ns)
            if manifest.lock_until_ns != until_ns:
                self._manifests.publish(replace(manifest, lock_until_ns=until_ns))
        _log.info("backup_locked", backup=backup_id, until=utc_text(until_ns))

    def _lock_images(self, image_ids: list[ImageId], until_ns: int) -> None:
        # Under the lock of commits and moves: a move takes the manifest, lock and all, or waits.
        with self._store.commit_lock:
            images = [self._store.manifests.get(image_id) for image_id in image_ids]
            for image in images:
                self._lock_clock.check_extension(f"image {image.image_id}", image.lock_until_ns, until_ns)
            for image in images:
                if image.lock_until_ns != until_ns:
                    self._store.manifests.replace(replace(image, lock_until_ns=until_ns))
                    _log.info("image_locked", image=image.image_id, until=utc_text(until_ns))

    def _check_unlocked(self, image_id: ImageId) -> None:
        try:
            image = self._store.manifests.get(image_id)
        except NotFound:
            return
        self._lock_clock.check_unlocked(f"image {image_id}", image.lock_until_ns)

    def _remove_image(self, image_id: ImageId) -> None:
        try:
            self._with_room(lambda: self._store.manifests.remove(image_id))
        except NotFound:
            return
        self._images.forget(image_id)
        _log.info("image_deleted", image=image_id)
