"""The storage that use cases work on: the open unit, its writer thread, and whether to trust it.

Invariants:
  H1 ``all_healthy`` is False from the moment anything of the unit may be lost, over
     restarts, until every image was looked up and found whole. While it is True a
     committed root promises everything below it without looking (REF).
Callers: use cases, any thread.
"""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from arraylift import envelope
from arraylift.durable import Buffer, Files
from arraylift.ids import TenantId
from arraylift.logs import get_logger
from dedup_target.seal_queue import SealQueue
from dedup_target.storage_unit import StorageUnit

DOUBT_MAGIC = b"ALDOUBT1"

_log = get_logger("store")


class Store:
    """One target's storage."""

    def __init__(self, files: Files, state_path: str, unit: StorageUnit) -> None:
        self.unit = unit
        self.containers = unit.containers
        self.index = unit.index
        self.manifests = unit.manifests
        self.keys = unit.keys
        self.seal_queue = SealQueue(unit.containers, unit.index)
        self._files = files
        self._state_path = state_path
        self._doubt_path = f"{state_path}/doubt.ald"
        report = unit.report.index
        if (
            report.rebuilt
            or report.containers_added
            or report.containers_gone
            or report.containers_damaged
            or unit.report.roots_missing
        ):
            self._begin_doubt(report.rebuilt or "the index did not match the containers")
        self._doubt = files.exists(self._doubt_path)

    def _begin_doubt(self, why: str) -> None:
        body = envelope.canonical_json({"why": why})
        self._files.publish(self._doubt_path, [envelope.encode(DOUBT_MAGIC, body)], label="doubt")

    @property
    def in_doubt(self) -> bool:
        """True until every image was looked up after a loss or a rebuild (H1)."""
        return self._doubt

    def end_doubt(self) -> None:
        """Every image was found whole."""
        self._files.remove(self._doubt_path, label="doubt", missing_ok=True)
        self._doubt = False
        _log.info("doubt_ended")

    @property
    def all_healthy(self) -> bool:
        """See H1."""
        return self.unit.quarantine.is_empty and not self._doubt

    def free_bytes(self) -> int:
        """Free space where the unit lies."""
        return self._files.free_bytes(self._state_path)

    def contains(self, tenant: TenantId, packed: Buffer) -> npt.NDArray[np.bool_]:
        """Which of n fingerprints (32 n bytes) count as present; shape (n,)."""
        return self.unit.contains(tenant, packed)

    @property
    def generation(self) -> int:
        """Grows whenever something present may have become absent."""
        return self.unit.quarantine.generation

    @property
    def commit_lock(self) -> threading.RLock:
        """Held while anything is condemned, and while a manifest is published (law 7)."""
        return self.unit.quarantine.lock

    def close(self) -> None:
        """Seal what is queued, then close the unit. No lane may be open."""
        self.seal_queue.close()
        self.unit.close()
