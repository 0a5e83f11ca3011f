"""One storage unit, self-contained: opened in the right order and closed cleanly.

Owns: the order in which its stores are opened over its backend. Whoever
needs containers, index, images or keys of a unit gets them here; what belongs to the target as a
whole (lock, secrets, logs of transfers, which units there are) is ``store``'s.
Invariants:
  U2 what a crash left half written is swept before anything is read.
  U3 the index is in line with the containers, and the images are loaded, before anything
     is answered.
Callers: ``store`` opens and closes, under the lock of the state directory; the rest as each store says.
Format: docs/formats/unit-v2.md
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from arraylift.durable import Buffer, Files
from arraylift.errors import Corruption, NotFound
from arraylift.ids import ContainerId, TenantId, UnitId
from arraylift.logs import get_logger
from arraylift.segments.fingerprint import FingerprintKey
from dedup_target import container_store, gc_state
from dedup_target.backup_manifest_store import BackupManifestStore
from dedup_target.container_store import ContainerLimits, ContainerStore, SealedContainer
from dedup_target.gc_state import GcState
from dedup_target.index_place import IndexPlace
from dedup_target.key_store import KeyStore
from dedup_target.maintenance import Maintenance
from dedup_target.manifest_store import ManifestStore
from dedup_target.online_rebuild import RebuildProgress, Report, rebuild_index
from dedup_target.pins import PinHolder, Pins
from dedup_target.quarantine import Quarantine
from dedup_target.rebuild import DamageMark, IndexOpener, Progress, ReconcileReport, bring_up_index, without
from dedup_target.replica_view import FOLDER as REPLICAS
from dedup_target.reserve import Reserve
from dedup_target.segment_index import Locator
from dedup_target.superblock import Superblock
from dedup_target.unit_backend import UnitBackend, is_object

_LOG = get_logger("storage_unit")

FOLDERS = ("backups", "keys", "manifests", "quarantine")
"""Those of small files; containers have folders of their own."""


@dataclass(frozen=True, slots=True)
class OpeningReport:
    """What a start found; whatever is not empty is worth telling."""

    swept_files: int
    index: ReconcileReport
    damaged_manifests: int
    roots_missing: int
    """Images whose root is not in the index: damaged, or its container is."""

    @property
    def anything_lost(self) -> bool:
        """Whether the index had to be mended, or something is missing."""
        found = self.index
        changed = found.rebuilt or found.containers_added or found.containers_gone or found.containers_damaged
        return bool(changed or self.damaged_manifests or self.roots_missing)


class StorageUnit:
    """Containers, index, images, keys and quarantine over one backend."""

    def __init__(
        self,
        backend: UnitBackend,
        superblock: Superblock,
        *,
        files: Files,
        index_root: str,
        wrapping_key: bytes,
        limits: ContainerLimits | None = None,
        opener: IndexOpener | None = None,
        progress: Progress | None = None,
        reserve: Reserve | None = None,
        before_rebuilt: Callable[[UnitId], None] = lambda _: None,
    ) -> None:
        """Open the unit that the superblock names; see ``report`` for what was found.

        The index lies on this machine, in ``<index_root>/<unit id>``, wherever the unit does.
        Raises Corruption (keys), WrongState (keys under another wrapping key),
        OutOfSpace, StoreFailed, PeerUnavailable. ``progress`` follows the rebuild of the index.
        The backend is closed with the unit, and where opening fails. ``reserve`` makes room for
        what a full disk must not stop. ``before_rebuilt`` is called when the index is about to be replaced.
        """
        self._before_rebuilt = before_rebuilt
        self._reserve = reserve or Reserve(files, index_root)
        self.backend = backend
        self.superblock = superblock
        self.unit_id: UnitId = superblock.unit_id
        self.name = superblock.name
        with contextlib.ExitStack() as undo:
            undo.callback(backend.close)
            swept = self._sweep()
            self.keys = KeyStore(backend, wrapping_key)
            self.containers = ContainerStore(
                backend, self.unit_id, limits, container_bytes=superblock.container_bytes
            )
            undo.callback(self.containers.close)
            self.quarantine = Quarantine(backend)
            self.quarantine.verify_damaged(self._verify)
            self.quarantine.forget_missing(self.containers.holds)
            self.pins = Pins(self.quarantine)
            self._adding = threading.Lock()
            self.maintenance = Maintenance(f"unit {self.unit_id}")
            self._mark = DamageMark(files, f"{index_root}/{self.unit_id}.damaged")
            self._place = opener or IndexPlace(files, f"{index_root}/{self.unit_id}", self._mark)
            self.gc_state = GcState(files, f"{index_root}/{self.unit_id}{gc_state.SUFFIX}")
            self.index, report = bring_up_index(
                self._place,
                self.containers,
                self.quarantine,
                self._mark,
                progress=progress,
                before_anew=self._before_anew,
            )
            undo.callback(self.index.close)
            self._sealers: dict[TenantId, Callable[[bytes], bytes]] = {}
            self.manifests = ManifestStore(backend, self.seal_manifest)
            self.backups = BackupManifestStore(backend, self.seal_manifest)
            missing, met = self._look_at_roots()
            report = replace(report, rebuilt=report.rebuilt or met)
            self.report = OpeningReport(swept, report, len(self.manifests.damaged), missing)
            if self.report.anything_lost:
                self.gc_state.void("the unit was opened with losses")
            undo.pop_all()
        _LOG.info("unit_opened", unit=self.unit_id, container_count=len(self.containers.containers()))

    def fingerprint_key(self, tenant: TenantId) -> FingerprintKey:
        """Raises NotFound."""
        return FingerprintKey(self.keys.by_id(tenant).key)

    def condemned_bytes(self) -> int:
        """Of the containers that the next cycles of collection will delete."""
        marks, condemned = self.index.marks(), list(self.gc_state.condemned)
        return sum(marks[one].file_bytes for one in condemned if one in marks)

    def seal_manifest(self, tenant: TenantId, body: bytes) -> bytes:
        """Keyed hash of a manifest under its tenant's key (a Sealer). Raises NotFound."""
        sealer = self._sealers.get(tenant)
        if sealer is None:
            sealer = self._sealers[tenant] = self.fingerprint_key(tenant).manifest
        return sealer(body)

    # -- presence ---------------------------------------------------------------------------

    def contains(self, tenant: TenantId, packed: Buffer) -> npt.NDArray[np.bool_]:
        """Which of n fingerprints (32 n bytes) are sealed, indexed and not quarantined; shape (n,).

        Quarantined records have no entry, so nothing else has to be asked. Raises Corruption.
        """
        return self.index.contains_many(tenant, packed)

    def present(self, tenant: TenantId, packed: Buffer, holder: PinHolder) -> npt.NDArray[np.bool_]:
        """The same as a promise: what is answered stays until ``holder`` lets go (law 7)."""
        return self.pins.present(self.index, tenant, packed, holder)

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

    def rebuild_index(self, *, report: Report, cancelled: threading.Event) -> RebuildProgress:
        """Make the index anew from the containers while everything goes on, in the caller's thread.

        Raises Conflict (other maintenance runs), Cancelled, OutOfSpace, StoreFailed: nothing changed then.
        """

        with self.maintenance.begin("rebuild"):
            done = rebuild_index(
                self.index,
                self._place,
                self.containers,
                self.quarantine,
                report=report,
                cancelled=cancelled,
                before_switch=self._before_anew,
            )
            self._mark.clear()
        report(done)
        return done

    def mend_index(self, stopping: threading.Event) -> bool:
        """Make the index anew if a read met damage in it; returns whether. Raises as ``rebuild_index``."""
        is_damaged = self._mark.is_set()
        if is_damaged:
            self.rebuild_index(report=lambda _: None, cancelled=stopping)
        return is_damaged

    def condemn_records(
        self, container: ContainerId, tenant: TenantId, fingerprints: Sequence[bytes], why: str
    ) -> None:
        """Quarantine records of one container: absent from now on, also after a restart."""
        with_room = self._reserve.with_room
        with self.quarantine.changing():
            with_room(lambda: self.quarantine.add(container, tenant, fingerprints, why))
            with_room(lambda: self.index.forget_records(tenant, container, fingerprints))

    def add_sealed(self, sealed: SealedContainer) -> None:
        """Index a sealed container, or one again; its records hide older copies (pins.py P4). Raises
        as the index does."""
        with self._adding:
            found = self.index.find_many(sealed.tenant, sealed.directory["fingerprint"].tobytes())
            others = np.unique(found["container"]).tolist()
            hidden = [ContainerId(one) for one in others if one not in {0, sealed.container_id}]
            if hidden:
                self.pins.note_hidden(sealed.container_id, hidden)
            self.index.add_containers([sealed])

    def remove_container(self, container: ContainerId) -> bool:
        """Take a container away: entries first, then the file (law 1, backwards). False: it was
        spared, as a promise rests on it.

        REQUIRES: every live fingerprint in it resolves to another container already; what promises rest
        on does when this returns (pins.py P4).
        """
        with self.quarantine.lock:
            if self.pins.is_spared(container):
                return False
            for hidden in self.pins.hidden_by(container):
                sealed = without(self.containers.read_directory(hidden), self.quarantine.bad_of(hidden))
                self._reserve.with_room(partial(self.add_sealed, sealed))
            directory = self.containers.read_directory(container).directory
            listed = directory["fingerprint"].tolist()
            with self.quarantine.changing():
                self._reserve.with_room(lambda: self.index.remove_container(container, listed))
            self.containers.remove(container)
            self.quarantine.drop_container(container)
        return True

    def close(self) -> None:
        """REQUIRES no caller left. Idempotent as far as its stores are."""
        self.index.close()
        self.containers.close()
        self.backend.close()

    def forget_here(self) -> None:
        """Remove the index from this machine: the unit was retired. REQUIRES it closed."""
        self._place.destroy()
        self._mark.clear()

    # -- inside -----------------------------------------------------------------------------

    def _before_anew(self) -> None:
        self.gc_state.void("the index was made anew")
        self._before_rebuilt(self.unit_id)

    def _sweep(self) -> int:
        units = [f"{REPLICAS}/{name}" for name in self.backend.list(REPLICAS)]
        below = [f"{unit}/{name}" for unit in units for name in self.backend.list(unit)]
        folders = ("", *FOLDERS, *units, *(name for name in below if not is_object(name)))
        return sum(map(self.backend.sweep, folders)) + container_store.sweep(self.backend)

    def _verify(self, container: ContainerId) -> tuple[TenantId, list[bytes]]:
        try:
            return self.containers.read_directory(container).tenant, self.containers.verify(container)
        except (Corruption, NotFound):
            return TenantId(0), []  # nothing of it can be indexed, so nothing has to be kept out

    def _look_at_roots(self) -> tuple[int, str]:
        """Images whose root is missing, and why the index had to be made anew to tell, if it had."""
        try:
            return self._roots_missing(), ""
        except Corruption as error:
            self.rebuild_index(report=lambda _: None, cancelled=threading.Event())
            return self._roots_missing(), error.message

    def _roots_missing(self) -> int:
        missing = 0
        for image in self.manifests.all():
            if not self.contains(image.tenant, image.root).all():
                _LOG.error("image_root_missing", image=image.image_id, name=image.name)
                missing += 1
        return missing
