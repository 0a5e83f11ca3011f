"""The images of a storage unit: the commit point of every backup (law 1).

Owns: every byte below ``<unit>/manifests``; one file an image, named by the image's id.
Invariants:
  N1 an image exists exactly while its manifest is on disk, whole and sealed.
  N2 a manifest that cannot be read is reported, blocks nothing, and is never removed here.
Callers: any thread. Format: docs/formats/manifest-v1.md
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from arraylift.errors import AlreadyExists, ArrayliftError, Corruption, InvalidRequest, NotFound
from arraylift.ids import ImageId, TenantId, check_id
from arraylift.logs import get_logger
from dedup_target import manifest_format
from dedup_target.manifest_format import ImageManifest, Sealer
from dedup_target.unit_backend import UnitBackend

_LOG = get_logger("manifest_store")

FOLDER = "manifests"
SUFFIX = ".alm"
STAMP_DIGITS_MAX = 20
"""Of a time in nanoseconds, in a page token."""


@dataclass(frozen=True, slots=True)
class DamagedManifest:
    """A file that ought to be a manifest."""

    file_name: str
    why: str


class ManifestStore:
    """All manifests, in memory (about 1 KiB each) and on disk."""

    def __init__(self, backend: UnitBackend, sealer: Sealer) -> None:
        """Load all manifests; see ``damaged`` for those that cannot be read."""
        self._backend = backend
        self._sealer = sealer
        self._changing = threading.Lock()
        self._lock = threading.Lock()  # short: lookups never wait for the disk
        self._images: dict[ImageId, ImageManifest] = {}
        self._damaged: list[DamagedManifest] = []
        for name in backend.list(FOLDER):
            self._load(name)

    @property
    def damaged(self) -> list[DamagedManifest]:
        """What could not be read at start (N2). GC must not run while this is not empty."""
        return list(self._damaged)

    def publish(self, manifest: ImageManifest) -> None:
        """Make the image exist. Raises AlreadyExists, OutOfSpace, StoreFailed.

        REQUIRES: every record that the root reaches is sealed and indexed, and the caller
        holds the quarantine's lock since it checked the reused ones.
        """
        data = manifest_format.encode(manifest, self._sealer)
        if manifest_format.decode(data, self._sealer, what="new manifest") != manifest:
            raise AssertionError("a manifest must survive its own encoding")
        with self._changing:
            if manifest.image_id in self._images:
                raise AlreadyExists(f"image {manifest.image_id} exists", subject=f"image {manifest.image_id}")
            self._publish(manifest, data)

    def restore(self, manifest: ImageManifest) -> bool:
        """Publish an image that was lost, also over a file that cannot be read; False if it is there."""
        with self._changing:
            if self.has(manifest.image_id):
                return False
            self._publish(manifest, manifest_format.encode(manifest, self._sealer))
            file_name = _name_of(manifest.image_id).rpartition("/")[2]
            self._damaged = [one for one in self._damaged if one.file_name != file_name]
        return True

    def replace(self, manifest: ImageManifest) -> None:
        """Publish a changed manifest of an image that exists, e.g. a longer lock. Raises NotFound."""
        with self._changing:
            self.get(manifest.image_id)
            self._publish(manifest, manifest_format.encode(manifest, self._sealer))

    def remove(self, image_id: ImageId) -> None:
        """Make the image not exist; its space comes back with the next GC. Raises NotFound."""
        with self._changing:
            self.get(image_id)
            self._backend.remove(_name_of(image_id), label="manifest-remove")
            with self._lock:
                del self._images[image_id]

    def get(self, image_id: ImageId) -> ImageManifest:
        """Raises NotFound."""
        with self._lock:
            found = self._images.get(image_id)
        if found is None:
            raise unknown_image(image_id)
        return found

    def has(self, image_id: ImageId) -> bool:
        with self._lock:
            return image_id in self._images

    def all(self) -> list[ImageManifest]:
        """Every image, newest first."""
        with self._lock:
            return newest_first(self._images.values())

    def by_name(self, tenant: TenantId, name: str) -> list[ImageManifest]:
        """A tenant's images of that name, newest first."""
        return [image for image in self.all() if image.tenant == tenant and image.name == name]

    def newest(self, tenant: TenantId, name: str) -> ImageManifest | None:
        """The newest of them, if any."""
        return next(iter(self.by_name(tenant, name)), None)

    def by_transfer(self, transfer_id: str) -> ImageManifest | None:
        """The image that a transfer committed, if it did."""
        with self._lock:
            return next((one for one in self._images.values() if one.transfer_id == transfer_id), None)

    def _publish(self, manifest: ImageManifest, data: bytes) -> None:
        self._backend.put(_name_of(manifest.image_id), [data], label="manifest")
        with self._lock:
            self._images[manifest.image_id] = manifest

    def _load(self, name: str) -> None:
        what = f"manifest {name}"
        try:
            image_id = ImageId(check_id(name.removesuffix(SUFFIX), "the name of a manifest's file"))
            data = self._backend.get(f"{FOLDER}/{name}")
            manifest = manifest_format.decode(data, self._sealer, what=what)
            if manifest.image_id != image_id or not name.endswith(SUFFIX):
                raise Corruption(f"{what} is about image {manifest.image_id}")
        except (ArrayliftError, InvalidRequest) as error:
            _LOG.error("manifest_unreadable", name=name, why=str(error))
            self._damaged.append(DamagedManifest(name, str(error)))
            return
        self._images[image_id] = manifest


def _name_of(image_id: ImageId) -> str:
    return f"{FOLDER}/{image_id}{SUFFIX}"


def unknown_image(image_id: ImageId) -> NotFound:
    """What is raised where an image is not."""
    return NotFound(f"there is no image {image_id}", subject=f"image {image_id}", next_step="list the images")


def page_key(token: str) -> tuple[int, str]:
    """Time and id behind which a page begins, of a token "time.id". Raises InvalidRequest."""
    stamp, _, last_id = token.partition(".")
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) <= STAMP_DIGITS_MAX):
        raise InvalidRequest("the page token is not one of ours", next_step="start from the first page")
    return int(stamp), last_id


def newest_first(images: Iterable[ImageManifest]) -> list[ImageManifest]:
    """By time of commit, then id."""
    return sorted(images, key=lambda image: (image.committed_at_ns, image.image_id), reverse=True)
