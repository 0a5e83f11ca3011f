"""Publish and remove backups, and delete images: what may go, and in which order (law 1).

Invariants:
  K1 a backup manifest is published over images that exist, all of its tenant.
  K2 an image goes only while no backup manifest names it; a manifest goes before its images.
  K3 while a manifest cannot be read, no image goes: it may be named there.
Callers: any thread; one change at a time.
"""

from __future__ import annotations

import threading
from dataclasses import replace

from arraylift.errors import AlreadyExists, InvalidRequest, NotFound, WrongState
from arraylift.ids import ImageId, TenantId
from arraylift.logs import get_logger
from dedup_target import backup_manifest_format
from dedup_target.backup_manifest_format import BackupId, BackupManifest
from dedup_target.backup_manifest_store import BackupKey, BackupManifestStore
from dedup_target.image_reader import ImageReader
from dedup_target.store import Store

PAGE_BYTES_MAX = 2 << 20
"""A page of manifests ends here, below the limit of a message."""

_log = get_logger("backups")


class Backups:
    """The backups of one target."""

    def __init__(self, store: Store, images: ImageReader) -> None:
        self._store = store
        self._manifests: BackupManifestStore = store.unit.backups
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
        if known != manifest:
            raise AlreadyExists(
                f"backup {manifest.backup_id} exists, with another content",
                subject=f"backup {manifest.backup_id}",
                next_step="make a new id",
            )
        return True

    def page(self, size: int, after: str) -> tuple[list[BackupManifest], str]:
        """Return up to ``size`` manifests, newest first, and the token of the next page.

        Raises InvalidRequest (token), Corruption.
        """
        keys = self._manifests.keys()
        if after:
            stamp, _, last_id = after.partition(".")
            if not stamp.isdigit():
                raise InvalidRequest("the page token is not one of ours", next_step="begin without one")
            keys = [key for key in keys if key.order < (int(stamp), last_id)]
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
        """Remove the manifest, then its images (K2). Raises NotFound, WrongState (locked)."""
        with self._changing:
            image_ids = self._manifests.key(backup_id).image_ids
            for image_id in image_ids:
                self._check_unlocked(image_id)
            self._manifests.remove(backup_id)
            _log.info("backup_removed", backup=backup_id)
            for image_id in image_ids:
                if self._manifests.naming(image_id) is None and not self._manifests.damaged_names:
                    self._remove_image(image_id)

    def delete_image(self, image_id: ImageId) -> None:
        """Raises NotFound, WrongState (a backup names it; it is locked; K3)."""
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

    def _check_unlocked(self, image_id: ImageId) -> None:
        try:
            image = self._store.manifests.get(image_id)
        except NotFound:
            return
        if image.lock_until_ns is not None:  # no clock of this release may judge a lock: it holds
            raise WrongState(f"image {image_id} is locked", subject=f"image {image_id}")

    def _remove_image(self, image_id: ImageId) -> None:
        try:
            self._store.manifests.remove(image_id)
        except NotFound:
            return
        self._images.forget(image_id)
        _log.info("image_deleted", image=image_id)
