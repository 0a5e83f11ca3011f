"""Where one unit keeps copies of another's manifests and keys, and how they are read.

``replicas/<unit id>/`` in a unit holds objects under the names that they have in the other; so the
stores that read a unit read its replica too.
Callers: any thread. Format: docs/formats/units-v1.md
"""

from __future__ import annotations

from collections.abc import Sequence

from arraylift.durable import Buffer
from arraylift.ids import UnitId
from dedup_target.backup_manifest_store import BackupManifestStore
from dedup_target.manifest_format import Sealer
from dedup_target.manifest_store import ManifestStore
from dedup_target.unit_backend import ForwardingBackend, UnitBackend

FOLDER = "replicas"
REPLICATED = ("manifests", "backups", "keys")
"""Folders of a unit of which others keep copies; and its superblock."""


class ReplicaBackend(ForwardingBackend):
    """The replica of one unit in another, as if it were that unit."""

    def __init__(self, holder: UnitBackend, unit_id: UnitId) -> None:
        super().__init__(holder)
        self._prefix = f"{FOLDER}/{unit_id}"

    @property
    def location(self) -> str:
        return f"{self.inner.location}/{self._prefix}"

    def put(self, name: str, parts: Sequence[Buffer], *, label: str) -> None:
        self.inner.put(self._of(name), parts, label=label)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        return self.inner.get(self._of(name), offset, length)

    def size(self, name: str) -> int:
        return self.inner.size(self._of(name))

    def exists(self, name: str) -> bool:
        return self.inner.exists(self._of(name))

    def list(self, folder: str) -> list[str]:
        return self.inner.list(self._of(folder) if folder else self._prefix)

    def remove(self, name: str, *, label: str, missing_ok: bool = False) -> None:
        self.inner.remove(self._of(name), label=label, missing_ok=missing_ok)

    def sweep(self, folder: str) -> int:
        return self.inner.sweep(self._of(folder) if folder else self._prefix)

    def close(self) -> None:
        """The holder's business."""

    def _of(self, name: str) -> str:
        return f"{self._prefix}/{name}"


class ReplicaView:
    """What a replica, or a cache, knows of a unit that cannot be opened."""

    def __init__(self, kept: UnitBackend, sealer: Sealer) -> None:
        self.manifests = ManifestStore(kept, sealer)
        self.backups = BackupManifestStore(kept, sealer)
