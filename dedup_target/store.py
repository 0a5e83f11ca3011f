"""One target's storage: the state directory, its units, the writer thread, and whether to trust it all.

Owns: the lock of the state directory, the target's secrets, the logs of transfers, and which units
there are. The active unit takes the backups.
Invariants:
  U1 one process at a time; everything below waits for the lock (law 9).
  H1 ``all_healthy`` is False from the moment anything of the active unit may be lost, over
     restarts, until every image was looked up and found whole. While it is True a
     committed root promises everything below it without looking (REF).
  H2 a look that began before a doubt did does not end it.
Transfer logs are opened by their ids, which are known from the start.
Callers: the composition root opens and closes; use cases, any thread. Format: docs/formats/unit-v2.md
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from arraylift import envelope
from arraylift.durable import Buffer, Files
from arraylift.grants import grant_for, load_grant_secret
from arraylift.ids import TenantId, TransferId, UnitId
from arraylift.logs import get_logger
from dedup_target import rocks_index
from dedup_target.all_manifests import AllBackups, AllManifests
from dedup_target.container_store import ContainerLimits, ContainerStore
from dedup_target.key_store import KeyStore, load_wrapping_key
from dedup_target.pins import PinHolder
from dedup_target.quotas import Quotas
from dedup_target.rebuild import IndexOpener, Progress
from dedup_target.replica_journal import ReplicaJournal
from dedup_target.replicas import Replicas
from dedup_target.reserve import Reserve
from dedup_target.seal_queue import SealQueue
from dedup_target.segment_index import SegmentIndex
from dedup_target.space import Space
from dedup_target.storage_unit import StorageUnit
from dedup_target.transfer_log import TransferLogs
from dedup_target.unit_place import Places
from dedup_target.unit_registry import UnitRegistry
from dedup_target.units import Units, UnitSettings

DOUBT_MAGIC = b"ALDOUBT1"

_log = get_logger("store")


class Store:
    """One target's storage."""

    def __init__(
        self,
        files: Files,
        state_path: str,
        *,
        limits: ContainerLimits | None = None,
        opener_of: Callable[[UnitId], IndexOpener] | None = None,
        files_for: Callable[[], Files] | None = None,
        progress: Progress | None = None,
        reserve: Reserve | None = None,
    ) -> None:
        """Open, or make on first start. ``files_for`` makes the Files of a unit; default: all share one.

        Raises WrongState (in use; wrapping key missing), PeerUnavailable (the receiving unit is absent),
        Corruption (superblock, keys), OutOfSpace, StoreFailed. ``progress`` follows rebuilds of indexes.
        """
        self._files = files
        self._doubt_path = f"{state_path}/doubt.ald"
        self._doubting = threading.Lock()
        self._doubt_number = 0
        self._is_open = False
        self.reserve = reserve or Reserve(files, state_path)
        files.make_dirs(state_path)
        with contextlib.ExitStack() as undo:
            self._lock = files.lock(state_path)
            undo.callback(self._lock.close)
            index_root = self._index_root(files, state_path)
            for folder in (state_path, f"{state_path}/transfers", index_root):
                files.sweep(folder)
            registry = self._registry = UnitRegistry(files, f"{state_path}/units.alr")
            self.wrapping_key = load_wrapping_key(files, state_path, holds_keys=registry.exists)
            journal = ReplicaJournal(files, state_path)
            settings = UnitSettings(
                index_root=index_root,
                wrapping_key=self.wrapping_key,
                reserve=self.reserve,
                journal=journal,
                limits=limits,
                opener_of=opener_of,
                progress=progress,
                before_rebuilt=self._before_rebuilt,
            )
            places = Places(state_path, files_for or (lambda: files))
            self.units = Units(files, state_path, registry, places, settings)
            undo.callback(self.units.close)
            self._grant_secret = load_grant_secret(files, state_path)
            self.transfers = TransferLogs(files, f"{state_path}/transfers")
            self.replicas = Replicas(self.units, journal, self.wrapping_key)
            self.replica_journal = journal
            self.replicas.begin()
            self._doubt = self._find_doubt()
            undo.pop_all()
        self.manifests = AllManifests(self.units)
        self.backups = AllBackups(self.units)
        self.space = Space(
            self.reserve,
            Quotas(files, state_path),
            stored_bytes=self._stored_bytes,
            name_of=lambda tenant: self.keys.by_id(tenant).name,
        )
        unit = self.unit
        self.seal_queue = SealQueue(unit.containers, unit.add_sealed, self.space.check_container)
        self._is_open = True

    @staticmethod
    def _index_root(files: Files, state_path: str) -> str:
        """Directory of the units' indexes. One that was there before units had their own is dropped."""
        root = f"{state_path}/index"
        if files.exists(f"{root}/CURRENT"):
            _log.warning("index_of_older_release_dropped", path=root)
            rocks_index.destroy(root)
        files.make_dirs(root)
        return root

    # -- the target -----------------------------------------------------------------------------

    @property
    def lock_token(self) -> int:
        """Grows with every process that held the state directory (law 9)."""
        return self._lock.token

    def grant_for(self, transfer_id: TransferId) -> bytes:
        """The 32-byte grant of a transfer, always the same."""
        return grant_for(self._grant_secret, transfer_id)

    def receive_elsewhere(self, name: str) -> None:
        """Have the next active unit take backups instead of ``name``, which drains from now on.

        REQUIRES that no attempt changes anything meanwhile. What the roots of the new unit promise
        is in doubt until every image was looked up.
        """
        why = f"unit {name} is drained"
        self.begin_doubt(why)
        self.units.mark_draining(name)
        self.begin_doubt(why)  # once more: somebody may have begun to look the other unit's images up (H2)
        queue, unit = self.seal_queue, self.unit
        self.seal_queue = SealQueue(unit.containers, unit.add_sealed, self.space.check_container)
        queue.close()

    # -- doubt ----------------------------------------------------------------------------------

    def _find_doubt(self) -> bool:
        report = self.unit.report.index
        if (
            report.rebuilt
            or report.containers_added
            or report.containers_gone
            or report.containers_damaged
            or self.unit.report.roots_missing
        ):
            self.begin_doubt(report.rebuilt or "the index did not match the containers")
        return self._files.exists(self._doubt_path)

    def begin_doubt(self, why: str) -> None:
        """From now on, over restarts, roots promise nothing (H1)."""
        body = envelope.canonical_json({"why": why})
        with self._doubting:
            self._files.publish(self._doubt_path, [envelope.encode(DOUBT_MAGIC, body)], label="doubt")
            self._doubt = True
            self._doubt_number += 1

    def _before_rebuilt(self, unit_id: UnitId) -> None:
        """The index of a unit is about to be replaced by one that may lack what the old one had: also in
        a start, which may be killed before it has looked at what it found."""
        receiving = self.unit if self._is_open else self._registry.receiving
        if receiving is not None and unit_id == receiving.unit_id:
            self.begin_doubt("the index was made anew")

    @property
    def in_doubt(self) -> bool:
        """True until every image was looked up after a loss or a rebuild (H1)."""
        return self._doubt

    @property
    def doubt_number(self) -> int:
        """Which doubt is the present one: to be asked before images are looked up."""
        return self._doubt_number

    def end_doubt(self, number: int) -> None:
        """Every image was found whole, since doubt ``number`` was the present one (H2)."""
        with self._doubting:
            if number != self._doubt_number:
                return
            self._files.remove(self._doubt_path, label="doubt", missing_ok=True)
            self._doubt = False
        _log.info("doubt_ended")

    @property
    def all_healthy(self) -> bool:
        """See H1."""
        return self.unit.quarantine.is_empty and not self._doubt

    def _stored_bytes(self, tenant: TenantId) -> int:
        return sum(unit.index.totals().tenant_bytes.get(tenant, 0) for unit in self.units.open_units())

    # -- the unit that takes backups ------------------------------------------------------------

    @property
    def unit(self) -> StorageUnit:
        """The receiving one."""
        return self.units.receiving

    def unit_named(self, name: str) -> StorageUnit:
        """A unit that can be reached; without a name the receiving one. Raises NotFound, PeerUnavailable."""
        return self.units.member(name).opened() if name else self.unit

    @property
    def containers(self) -> ContainerStore:
        return self.unit.containers

    @property
    def index(self) -> SegmentIndex:
        return self.unit.index

    @property
    def keys(self) -> KeyStore:
        """The tenants: the receiving unit has all keys (units.py N3)."""
        return self.unit.keys

    def free_bytes(self) -> int:
        """Free space where the unit lies; 0 where nobody can tell."""
        return self.unit.backend.free_bytes() or 0

    def contains(self, tenant: TenantId, packed: Buffer) -> npt.NDArray[np.bool_]:
        """Which of n fingerprints (32 n bytes) count as present; shape (n,)."""
        return self.unit.contains(tenant, packed)

    def present(self, tenant: TenantId, packed: Buffer, holder: PinHolder) -> npt.NDArray[np.bool_]:
        """The same as a promise: what is answered stays until ``holder`` lets go (law 7)."""
        return self.unit.present(tenant, packed, holder)

    @property
    def generation(self) -> int:
        """Grows whenever something present may have become absent."""
        return self.unit.quarantine.generation

    @property
    def commit_lock(self) -> threading.RLock:
        """Held while anything is condemned, and while a manifest is published (law 7)."""
        return self.unit.quarantine.lock

    def close(self) -> None:
        """Seal what is queued, then close all units. No lane may be open."""
        self.seal_queue.close()
        self.units.close()
        self._lock.close()
