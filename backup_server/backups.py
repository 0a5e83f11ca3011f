"""Backups: what the targets hold, as this server's database remembers it.

Invariants:
  Y1 a target's manifest is what makes a backup exist; our row is a cache of it, brought in line
     at start, with every round of the reaper, and when a backup is asked for that we do not know.
  Y2 a deletion that was begun is finished, over restarts: manifest first, then images (law 1).
  Y3 what is being read (restored, verified, browsed) is not deleted, and the other way round.
Callers: any thread.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from arraylift.clock import Clock
from arraylift.errors import ArrayliftError, Corruption, NotFound, WrongState
from arraylift.logs import get_logger
from backup_server.backup_index import BackupIndex
from backup_server.model import Backup, BackupDisk, PeerKind, RegisteredPeer, Verdict
from backup_server.ports import Peers
from backup_server.registry import Registry
from backup_server.server_db import ServerDb

SPANS_TOLD_MAX = 8
"""Damaged spans that an error names."""

CHUNK_BACKUPS = 200
"""Backups that are read from the database, or written there, at once."""

_log = get_logger("backups")


@dataclass(frozen=True, slots=True)
class Verified:
    """Progress of a verification."""

    disk_name: str
    bytes_verified: int
    bytes_total: int
    oldest_check_at_ns: int = 0
    """With the last of a disk: nothing of it was checked earlier."""
    bytes_read: int = 0
    """Likewise: at the target."""


class Backups:
    """All backups that this server knows."""

    def __init__(self, db: ServerDb, registry: Registry, peers: Peers, clock: Clock) -> None:
        self._db = db
        self.index = BackupIndex(db)
        self._clock = clock
        self._registry = registry
        self._peers = peers
        self.guard = threading.RLock()
        """Held while a backup begins to be read by a job, or to be deleted (Y3)."""
        self._readers: Counter[str] = Counter()
        self._syncing = threading.Lock()

    def all(self, vm: str = "") -> list[Backup]:
        """Newest first; ``vm`` is a name or an id."""
        return self._db.backups(vm=vm)

    def newest_first(self, vm: str = "", *, behind: tuple[int, str] | None = None) -> Iterator[Backup]:
        """Likewise, older than one of that time and id; read as they are taken."""
        while chunk := self._db.backups_behind(behind, vm=vm, count_max=CHUNK_BACKUPS):
            yield from chunk
            behind = (chunk[-1].snapshot_at_ns, chunk[-1].backup_id)

    def ids_newest_first(self) -> list[str]:
        """Of all that are listed."""
        return self._db.backup_ids()

    def find(self, backup_id: str) -> Backup | None:
        """As the database has it; None if it is not listed (any more)."""
        try:
            return self._db.backup(backup_id)
        except NotFound:
            return None

    def get(self, backup_id: str) -> Backup:
        """Raises NotFound, once the targets have been asked too (Y1)."""
        try:
            return self._db.backup(backup_id)
        except NotFound:
            self.sync()
            return self._db.backup(backup_id)

    @contextlib.contextmanager
    def reading(self, backup_id: str) -> Iterator[Backup]:
        """The backup, which nobody deletes meanwhile (Y3). Raises NotFound."""
        self.get(backup_id)
        with self.guard:
            backup = self._db.backup(backup_id)
            self._readers[backup_id] += 1
        try:
            yield backup
        finally:
            with self.guard:
                self._readers[backup_id] -= 1
                self._readers += Counter()  # forget those at zero

    # -- deletion ---------------------------------------------------------------------------

    def delete(self, backup_id: str) -> None:
        """Remove manifest and images. Raises NotFound, WrongState (being read, locked), PeerUnavailable;
        then the deletion goes on when the target is back (Y2)."""
        backup = self.get(backup_id)
        with self.guard:
            user = self._db.user_of_backup(backup_id)
            users = [f"job {user}"] * bool(user)
            users += ["a verification or a restore of files"] * bool(self._readers[backup_id])
            if users:
                raise WrongState(
                    f"{users[0]} needs backup {backup_id}",
                    subject=f"backup {backup_id}",
                    next_step="wait for it, or cancel it",
                )
            self._db.begin_delete(backup_id)
        self._delete(backup)

    def _delete(self, backup: Backup) -> None:
        target = self._peers.target(self._registry.target(backup.target))
        try:
            target.delete_backup(backup.backup_id)
        except WrongState:  # locked: a refusal is no promise to do it once the lock has ended
            self._db.cancel_delete(backup.backup_id)
            raise
        for disk in backup.disks:  # what a crash of the target left of them
            target.delete_image(disk.image_id)
        self._db.forget_backup(backup.backup_id)
        _log.info("backup_deleted", backup=backup.backup_id, vm=backup.vm_name)

    def finish_deletes(self) -> None:
        """Go on with deletions that were begun (Y2)."""
        for backup in self._db.backups(deleting=True):
            try:
                self._delete(backup)
            except ArrayliftError as error:
                _log.warning("deletion_incomplete", backup=backup.backup_id, error=str(error))

    # -- the cache --------------------------------------------------------------------------

    def sync(self, only: str = "") -> None:
        """Bring our rows in line with every target that answers, or with one (Y1)."""
        for peer in self._registry.all(PeerKind.TARGET):
            if only not in ("", peer.name):
                continue
            try:
                self.sync_target(peer)
            except ArrayliftError as error:
                _log.warning("target_not_read", target=peer.name, error=str(error))

    def sync_target(self, peer: RegisteredPeer) -> None:
        """Likewise, for one. Raises PeerUnavailable."""
        with self._syncing:
            before = self.index.on_target(peer.name)
            seen: set[str] = set()
            listing = self._peers.target(peer).backups()
            while chunk := list(itertools.islice(listing, CHUNK_BACKUPS)):
                seen.update(backup.backup_id for backup in chunk)
                self._db.save_backups(chunk, found=True)
            # Only rows that were there before the listing began: it may have missed a newer one.
            for gone in before - seen:
                _log.warning("backup_gone", backup=gone, target=peer.name)
                self._db.forget_backup(gone)

    # -- locks ------------------------------------------------------------------------------

    def lock(self, backup_id: str, until_ns: int) -> None:
        """Have the target lock it, with its images. Raises NotFound, WrongState (shorter than its
        present lock), InvalidRequest, PeerUnavailable."""
        with self.reading(backup_id) as backup:
            self._peers.target(self._registry.target(backup.target)).lock_backup(backup_id, until_ns)
            self._db.save_backup(dataclasses.replace(backup, lock_until_ns=until_ns))
        _log.info("backup_locked", backup=backup_id, vm=backup.vm_name)

    def confirm_times(self) -> None:
        """Be the second clock for targets whose clock of locks lags."""
        for peer in self._registry.all(PeerKind.TARGET):
            try:
                if self._peers.target(peer).confirm_time(self._clock.wall_ns()):
                    _log.info("time_confirmed", target=peer.name)
            except ArrayliftError as error:
                _log.warning("time_not_confirmed", target=peer.name, error=str(error))

    # -- verification -----------------------------------------------------------------------

    def verify(self, backup_id: str, max_age_seconds: int) -> Generator[Verified, None, None]:
        """Have the target say whether every image is whole, by what its scrub saw at most so long
        ago; 0: read all now. Yields progress. Raises NotFound, Corruption."""
        with self.reading(backup_id) as backup:
            target = self._peers.target(self._registry.target(backup.target))
            for disk in backup.disks:
                yield Verified(disk.disk_name, 0, disk.size_bytes)
                with target.verify_image(disk.image_id, max_age_seconds) as verdicts:
                    for verdict in verdicts:
                        if verdict.done:
                            yield _verified(disk, verdict)
                            break
                        share = verdict.containers_done / max(1, verdict.containers_total)
                        yield Verified(disk.disk_name, int(disk.size_bytes * share), disk.size_bytes)
                    else:
                        raise Corruption(
                            f"target {backup.target} gave no verdict on image {disk.image_id}",
                            subject=f"image {disk.image_id}",
                            next_step="repeat it; look at the target's log",
                        )


def _verified(disk: BackupDisk, verdict: Verdict) -> Verified:
    """Raises Corruption unless the verdict is that the image is whole."""
    if not verdict.whole:
        spans = ", ".join(map(str, verdict.damaged_spans[:SPANS_TOLD_MAX]))
        raise Corruption(
            f"{verdict.damaged_span_count} spans (MiB) of {disk.disk_name} are damaged: {spans}"
            + ", ..." * (verdict.damaged_span_count > SPANS_TOLD_MAX),
            subject=f"image {disk.image_id}",
            next_step="back the VM up again, which sends what is lacking, "
            "or heal it from a snapshot of its array: arraylift target heal",
            damaged_span_count=verdict.damaged_span_count,
        )
    return Verified(
        disk.disk_name, disk.size_bytes, disk.size_bytes, verdict.oldest_check_at_ns, verdict.bytes_read
    )
