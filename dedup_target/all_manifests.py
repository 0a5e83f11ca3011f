"""The images and backups of a target, wherever they lie.

An image lies in one unit. While it is moved, and after a move that broke off, it lies in two, whole in
both: then the first that holds it answers, and a change reaches every copy.
Invariants:
  L1 what an absent unit holds is known from its replica, and can be listed, not read or changed.
  L2 a backup manifest lies in an active unit; new ones go into the receiving one.
  L3 of two copies of an image the one that is locked longer says for how long: a lock that came while
     the image was copied is in the older copy alone, until the move carries it over.
  L4 a second copy is made, and all copies of an image are removed, under ``placing``: nothing that was
     deleted is published again by a move that had read it before.
Callers: any thread; images and backups are changed under the locks of ``backups``.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from arraylift.errors import NotFound
from arraylift.ids import ImageId
from dedup_target.backup_manifest_format import BackupId, BackupManifest
from dedup_target.backup_manifest_store import BackupKey, BackupManifestStore
from dedup_target.manifest_format import ImageManifest
from dedup_target.manifest_store import DamagedManifest, newest_first, unknown_image
from dedup_target.storage_unit import StorageUnit
from dedup_target.units import Member, Units


def _in_order(units: Units) -> list[Member]:
    """The receiving unit first, absent ones last."""
    receiving = units.receiving
    return sorted(units.members, key=lambda one: (one.unit is not receiving, bool(one.problem)))


class AllManifests:
    """Images of all units."""

    def __init__(self, units: Units) -> None:
        self._units = units
        self.placing = threading.Lock()

    def holders(self, image_id: ImageId) -> list[Member]:
        """Units that have the image; the first is the one to ask. Raises NotFound."""
        found = [member for member in _in_order(self._units) if member.manifests.has(image_id)]
        if not found:
            raise unknown_image(image_id)
        return found

    def is_elsewhere(self, image_id: ImageId) -> bool:
        """Whether it exists, but not in the unit that takes backups."""
        if self._units.receiving.manifests.has(image_id):
            return False
        return any(member.manifests.has(image_id) for member in self._units.members)

    def unit_of(self, image_id: ImageId) -> StorageUnit:
        """Where it is to be read. Raises NotFound, PeerUnavailable (only absent units have it)."""
        return self.holders(image_id)[0].opened()

    def get(self, image_id: ImageId) -> ImageManifest:
        """Raises NotFound."""
        found = []
        for member in self.holders(image_id):
            with contextlib.suppress(NotFound):  # a move took it away meanwhile
                found.append(member.manifests.get(image_id))
        if not found:
            return self.holders(image_id)[0].manifests.get(image_id)
        return max(found, key=lambda one: one.lock_until_ns or 0)  # L3

    def all(self) -> list[ImageManifest]:
        """Every image once, newest first."""
        return newest_first({image.image_id: image for _, image in self.placed()}.values())

    def placed(self) -> Iterator[tuple[Member, ImageManifest]]:
        """Every image with the unit that answers for it."""
        seen: set[ImageId] = set()
        for member in _in_order(self._units):
            for image in member.manifests.all():
                if image.image_id not in seen:
                    seen.add(image.image_id)
                    yield member, image

    def by_transfer(self, transfer_id: str) -> ImageManifest | None:
        """The image that a transfer committed, if it did."""
        found = (member.manifests.by_transfer(transfer_id) for member in _in_order(self._units))
        return next((image for image in found if image is not None), None)

    @property
    def damaged(self) -> list[DamagedManifest]:
        """Manifests in all units that cannot be read."""
        return [one for member in self._units.members for one in member.manifests.damaged]

    def replace(self, manifest: ImageManifest) -> None:
        """Publish a changed manifest, e.g. a longer lock, to every copy.

        Raises NotFound, PeerUnavailable (a unit that has it is absent: nothing was changed).
        """
        for unit in self._reachable(manifest.image_id):
            unit.manifests.replace(manifest)

    def remove(self, image_id: ImageId) -> None:
        """Make the image not exist. Raises NotFound, PeerUnavailable (as ``replace``)."""
        with self.placing:
            for unit in self._reachable(image_id):
                with contextlib.suppress(NotFound):  # a move took it away meanwhile
                    unit.manifests.remove(image_id)

    def check_reachable(self, image_id: ImageId) -> None:
        """Raises PeerUnavailable if it cannot be removed now; nothing if there is no such image."""
        try:
            self._reachable(image_id)
        except NotFound:
            return

    def _reachable(self, image_id: ImageId) -> list[StorageUnit]:
        return [member.opened() for member in self.holders(image_id)]


class AllBackups:
    """Backup manifests of all units; the shape is BackupManifestStore's."""

    def __init__(self, units: Units) -> None:
        self._units = units

    def _stores(self) -> list[BackupManifestStore]:
        return [member.backups for member in _in_order(self._units)]

    @property
    def damaged_names(self) -> list[str]:
        return [name for store in self._stores() for name in store.damaged_names]

    def publish(self, manifest: BackupManifest) -> None:
        """Make the backup exist (L2), or replace its manifest where it lies."""
        self._place_of(manifest.backup_id).publish(manifest)

    def _place_of(self, backup_id: BackupId) -> BackupManifestStore:
        for member in _in_order(self._units):
            if member.backups.has(backup_id):
                return member.opened().backups
        return self._units.receiving.backups

    def remove(self, backup_id: BackupId) -> None:
        """Make the backup not exist. Raises NotFound, PeerUnavailable (its unit is absent)."""
        self.key(backup_id)
        for member in _in_order(self._units):
            if member.backups.has(backup_id):
                member.opened().backups.remove(backup_id)

    def key(self, backup_id: BackupId) -> BackupKey:
        """Raises NotFound."""
        return self._holding(backup_id).key(backup_id)

    def read(self, backup_id: BackupId) -> BackupManifest:
        """Raises NotFound, Corruption, PeerUnavailable."""
        return self._holding(backup_id).read(backup_id)

    def _holding(self, backup_id: BackupId) -> BackupManifestStore:
        stores = self._stores()
        return next((store for store in stores if store.has(backup_id)), stores[0])

    def keys(self) -> list[BackupKey]:
        """Every backup once, newest first."""
        listed = [store.keys() for store in self._stores()]
        found = {key.backup_id: key for keys in listed for key in keys}
        return sorted(found.values(), key=lambda key: key.order, reverse=True)

    def naming(self, image_id: ImageId) -> BackupKey | None:
        """A backup that names this image, if one does."""
        found = (store.naming(image_id) for store in self._stores())
        return next((key for key in found if key is not None), None)
