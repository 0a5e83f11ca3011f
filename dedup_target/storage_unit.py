"""One storage unit, opened in the right order and closed cleanly.

Owns: the lock of the state directory, the unit's superblock, and the order in which the
stores are opened. Whoever needs containers, index, images, keys or transfers gets them here.
Invariants:
  U1 one process at a time; everything below waits for the lock (law 9).
  U2 what a crash left half written is swept before anything is read.
  U3 the index is in line with the containers, and the images are loaded, before anything
     is answered. Transfer logs are opened by their ids, which are known from the start.
Callers: ``open`` and ``close`` from the composition root; the rest as each store says.
Format: docs/formats/unit-v1.md
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arraylift import envelope
from arraylift.durable import Buffer, Files
from arraylift.errors import Corruption, NotFound
from arraylift.grants import grant_for, load_grant_secret
from arraylift.ids import ContainerId, TenantId, TransferId, UnitId, check_id, random_id
from arraylift.logs import get_logger
from arraylift.segments.fingerprint import FingerprintKey
from dedup_target import container_store, rocks_index
from dedup_target.backup_manifest_store import BackupManifestStore
from dedup_target.container_store import ContainerLimits, ContainerStore
from dedup_target.key_store import KeyStore, load_wrapping_key
from dedup_target.manifest_store import ManifestStore
from dedup_target.quarantine import Quarantine
from dedup_target.rebuild import DamageMark, IndexOpener, Progress, ReconcileReport, bring_up_index
from dedup_target.segment_index import Locator, SegmentIndex
from dedup_target.transfer_log import TransferLogs

_LOG = get_logger("storage_unit")

SUPERBLOCK_MAGIC = b"ALUNITSB"
ACTIVE_ROLE = "active"

_SUPERBLOCK_KEYS = frozenset({"role", "unit_id"})


@dataclass(frozen=True, slots=True)
class OpeningReport:
    """What a start found; whatever is not empty is worth telling."""

    swept_files: int
    index: ReconcileReport
    damaged_manifests: int
    roots_missing: int
    """Images whose root is not in the index: damaged, or its container is."""


class RocksOpener:
    """IndexOpener for the index on disk."""

    def __init__(self, path: str, mark: DamageMark) -> None:
        self._path = path
        self._mark = mark

    def open(self) -> SegmentIndex:
        return rocks_index.RocksSegmentIndex(self._path, on_damage=self._mark.set)

    def destroy(self) -> None:
        rocks_index.destroy(self._path)


class StorageUnit:
    """The active unit of a target and what belongs to it."""

    def __init__(
        self,
        files: Files,
        state_path: str,
        *,
        limits: ContainerLimits | None = None,
        opener: IndexOpener | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Open, or make on first start; see ``report`` for what was found.

        Raises WrongState (in use; wrapping key missing), Corruption (superblock, keys),
        OutOfSpace, StoreFailed. ``progress`` follows the rebuild of the index.
        """
        self._state = state_path
        unit_path = self._unit = f"{state_path}/units/{ACTIVE_ROLE}"
        files.make_dirs(state_path)
        with contextlib.ExitStack() as undo:
            self._lock = files.lock(state_path)
            undo.callback(self._lock.close)
            files.make_dirs(unit_path)
            swept = self._sweep(files)
            self.unit_id = self._superblock(files)
            self.keys = KeyStore(files, unit_path, load_wrapping_key(files, state_path, unit_path))
            self._grant_secret = load_grant_secret(files, state_path)
            self.containers = ContainerStore(files, unit_path, self.unit_id, limits)
            undo.callback(self.containers.close)
            self.quarantine = Quarantine(files, unit_path)
            self.quarantine.verify_damaged(self._verify)
            mark = DamageMark(files, f"{state_path}/index.damaged")
            self.index, report = bring_up_index(
                opener or RocksOpener(f"{state_path}/index", mark),
                self.containers,
                self.quarantine,
                mark,
                progress=progress,
            )
            undo.callback(self.index.close)
            self._sealers: dict[TenantId, Callable[[bytes], bytes]] = {}
            self.manifests = ManifestStore(files, unit_path, self._seal_manifest)
            self.backups = BackupManifestStore(files, unit_path, self._seal_manifest)
            self.transfers = TransferLogs(files, f"{state_path}/transfers")
            self.report = OpeningReport(swept, report, len(self.manifests.damaged), self._roots_missing())
            undo.pop_all()
        _LOG.info("unit_opened", unit=self.unit_id, container_count=len(self.containers.containers()))

    @property
    def lock_token(self) -> int:
        """Grows with every process that held the state directory (law 9)."""
        return self._lock.token

    def grant_for(self, transfer_id: TransferId) -> bytes:
        """The 32-byte grant of a transfer, always the same."""
        return grant_for(self._grant_secret, transfer_id)

    def fingerprint_key(self, tenant: TenantId) -> FingerprintKey:
        """Raises NotFound."""
        return FingerprintKey(self.keys.by_id(tenant).key)

    # -- presence ---------------------------------------------------------------------------

    def contains(self, tenant: TenantId, packed: Buffer) -> npt.NDArray[np.bool_]:
        """Which of n fingerprints (32 n bytes) are sealed, indexed and not quarantined; shape (n,).

        Quarantined records have no entry, so nothing else has to be asked. Raises Corruption.
        """
        return self.index.contains_many(tenant, packed)

    def locate(self, tenant: TenantId, fingerprints: Sequence[bytes]) -> list[Locator]:
        """Where records lie. Raises Corruption naming the first that is nowhere."""
        found = self.index.get_many(tenant, fingerprints)
        locators = [locator for locator in found if locator is not None]
        if len(locators) == len(found):
            return locators
        lost = fingerprints[found.index(None)]
        why = self.quarantine.reason(tenant, lost) or "no container holds it"
        raise Corruption(
            f"record {lost.hex()[:16]} cannot be read: {why}",
            subject=f"record {lost.hex()}",
            next_step="back the same data up again: the record is then asked for, and old images heal",
        )

    def condemn_records(
        self, container: ContainerId, tenant: TenantId, fingerprints: Sequence[bytes], why: str
    ) -> None:
        """Quarantine records of one container: absent from now on, also after a restart."""
        with self.quarantine.lock:
            self.quarantine.add(container, tenant, fingerprints, why)
            self.index.forget_records(tenant, container, fingerprints)

    def remove_container(self, container: ContainerId) -> None:
        """Take a container away: entries first, then the file (law 1, backwards).

        REQUIRES: every live fingerprint in it resolves to another container already.
        """
        with self.quarantine.lock:
            self.quarantine.raise_generation()
            directory = self.containers.read_directory(container).directory
            self.index.remove_container(container, directory["fingerprint"].tolist())
            self.containers.remove(container)
            self.quarantine.drop_container(container)

    def close(self) -> None:
        """REQUIRES no caller left. Idempotent as far as its stores are."""
        self.index.close()
        self.containers.close()
        self._lock.close()

    # -- inside -----------------------------------------------------------------------------

    def _sweep(self, files: Files) -> int:
        flat = (self._state, f"{self._state}/transfers", self._unit)
        folders = [
            *flat,
            *(f"{self._unit}/{name}" for name in ("backups", "keys", "manifests", "quarantine")),
        ]
        return sum(map(files.sweep, folders)) + container_store.sweep(files, self._unit)

    def _superblock(self, files: Files) -> UnitId:
        path = f"{self._unit}/unit.alu"
        try:
            data = files.read(path)
        except NotFound:
            if files.list_dir(f"{self._unit}/containers"):
                raise Corruption(
                    f"{path} is missing, but the unit has containers",
                    subject=path,
                    next_step="restore that file from a copy or a replica; every container names the unit",
                ) from None
            return self._make_superblock(files, path)
        fields = envelope.decode_json(SUPERBLOCK_MAGIC, data, what=path, keys=_SUPERBLOCK_KEYS)
        return UnitId(check_id(fields["unit_id"], "unit id"))

    def _make_superblock(self, files: Files, path: str) -> UnitId:
        unit_id = UnitId(random_id())
        body = envelope.canonical_json({"role": ACTIVE_ROLE, "unit_id": unit_id})
        files.publish(path, [envelope.encode(SUPERBLOCK_MAGIC, body)], label="superblock")
        return unit_id

    def _verify(self, container: ContainerId) -> tuple[TenantId, list[bytes]]:
        try:
            return self.containers.read_directory(container).tenant, self.containers.verify(container)
        except (Corruption, NotFound):
            return TenantId(0), []  # nothing of it can be indexed, so nothing has to be kept out

    def _seal_manifest(self, tenant: TenantId, body: bytes) -> bytes:
        sealer = self._sealers.get(tenant)
        if sealer is None:
            sealer = self._sealers[tenant] = self.fingerprint_key(tenant).manifest
        return sealer(body)

    def _roots_missing(self) -> int:
        missing = 0
        for image in self.manifests.all():
            if not self.contains(image.tenant, image.root).all():
                _LOG.error("image_root_missing", image=image.image_id, name=image.name)
                missing += 1
        return missing
