"""The backup server put together: what its composition root and its tests both build.

Invariants:
  S1 one process works on a state directory (law 9).
  S2 stopping first lets jobs go, then cuts calls, then waits: nothing is recorded of a cut call.
Callers: the composition root, main thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from arraylift.clock import Clock
from arraylift.durable import Files
from arraylift.failpoints import FAILPOINTS
from backup_server.backup_disks import BackupDisks
from backup_server.backup_job import BackupJob
from backup_server.backups import Backups
from backup_server.catalog import browse
from backup_server.catalog_store.store import CatalogStore
from backup_server.cataloguing import Cataloguing
from backup_server.disk_restore_job import DiskRestoreJob
from backup_server.engine import Engine
from backup_server.guest_restore_job import GuestRestoreJob
from backup_server.in_place_job import ByPlace, InPlaceJob
from backup_server.inventory import Inventory
from backup_server.job_rules import JobKind, Pacing
from backup_server.job_turns import Limits
from backup_server.orders import Orders
from backup_server.policy_reports import Reports
from backup_server.policy_runs import PolicyRuns
from backup_server.policy_store import PolicyStore
from backup_server.ports import Peers
from backup_server.reaper import Reaper
from backup_server.registry import Registry
from backup_server.restore_disk_job import RestoreDiskJob
from backup_server.restore_job import RestoreJob
from backup_server.server_db import ServerDb

DB_NAME = "server.db"
CATALOG_NAME = "catalog.db"


class BackupServer:
    """All use cases over one state directory and one set of connections."""

    def __init__(
        self,
        files: Files,
        state_path: str,
        peers: Peers,
        *,
        center_address: str,
        clock: Clock,
        pacing: Pacing | None = None,
        limits: Limits | None = None,
        cataloguing: bool = False,
        hook: Callable[[str], None] = FAILPOINTS.hit,
    ) -> None:
        """Open the database; nothing runs before ``start``. Raises WrongState (in use), Corruption."""
        pacing = pacing or Pacing()
        files.make_dirs(state_path)
        with contextlib.ExitStack() as undo:
            self._lock = files.lock(state_path)  # S1
            undo.callback(self._lock.close)
            self.db = ServerDb(f"{state_path}/{DB_NAME}")
            undo.pop_all()
        self.peers = peers
        self.registry = Registry(self.db, peers, center_address=center_address)
        self.inventory = Inventory(self.registry, peers)
        self.backups = Backups(self.db, self.registry, peers, clock)
        self.disks = BackupDisks(self.backups, self.registry, peers)
        parts = (self.db, self.registry, self.inventory, peers)
        self.engine = Engine(
            self.db,
            {
                JobKind.BACKUP: BackupJob(*parts),
                JobKind.RESTORE: ByPlace(
                    anew=RestoreJob(*parts),
                    in_place=InPlaceJob(*parts),
                    disks=DiskRestoreJob(*parts),
                    guest=GuestRestoreJob(self.disks, browse, self.inventory, peers),
                    on_disk=RestoreDiskJob(*parts, self.disks, browse),
                ),
            },
            clock=clock,
            pacing=pacing,
            limits=limits,
            hook=hook,
        )
        self.orders = Orders(self.engine, self.registry, self.inventory, self.backups, clock)
        self.policies = PolicyStore(self.db)
        self.policy_runs = PolicyRuns(self.policies, self.orders, self.inventory, self.backups, clock)
        self.engine.opens = self.policy_runs.opens
        self.reports = Reports(self.db, self.policies, self.policy_runs, self.backups, clock)
        self.cataloguing = Cataloguing(
            CatalogStore(files, f"{state_path}/{CATALOG_NAME}"),
            self.backups,
            self.disks,
            browse,
            files,
            enabled=cataloguing,
        )
        self.reaper = Reaper(self.engine, self.backups, seconds=pacing.sweep_seconds)

    def start(self) -> None:
        """Go on with jobs and deletions, and take new ones."""
        self.engine.start()
        self.reaper.start()
        self.policy_runs.start()
        self.cataloguing.start()

    def close(self, cut_calls: Callable[[], None]) -> None:
        """Stop (S2); ``cut_calls`` ends every call to other daemons."""
        self.cataloguing.stop()
        self.policy_runs.stop()
        self.reaper.stop()
        self.engine.stop()
        cut_calls()
        self.engine.join()
        self.reaper.join()
        self.policy_runs.join()
        self.cataloguing.join()
        self.cataloguing.store.close()
        self.db.close()
        self._lock.close()
