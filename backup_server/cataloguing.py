"""Fill the catalog: after each backup, when asked, and anew from what the targets hold.

There is no queue to lose: what the server lists and the catalog does not know is to be done, newest
first; what the catalog knows and nobody lists is forgotten. Invariants: L1 one backup is parsed at a time.
L2 parsing holds no backup back from deletion, and fails no backup: what goes wrong is noted in the catalog or
the log. L3 the present catalog answers until one that is made anew is whole.
Callers: its own thread, and edges; ``stop`` from the main thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Protocol

from arraylift.durable import Files
from arraylift.errors import ArrayliftError, Conflict, PeerUnavailable
from arraylift.logs import get_logger
from backup_server.backup_disks import BackupDisks
from backup_server.backups import Backups
from backup_server.catalog.batch import Batch, Unread
from backup_server.catalog.entry import DiskSet, Volume
from backup_server.catalog_store import schema
from backup_server.catalog_store.rows import CatalogState, StoredBackup
from backup_server.catalog_store.store import CatalogStore
from backup_server.model import Backup

ROUND_SECONDS = 5.0
AFTER_FAILURE_SECONDS = 60.0
JOIN_SECONDS = 30.0
PROBLEMS_MAX = 100
"""Of a rebuild, that are told."""

_log = get_logger("catalog")


class Parser(Protocol):
    """``backup_server.catalog.browse``."""

    def survey(self, disks: DiskSet) -> Sequence[Volume]: ...
    def walk(self, disks: DiskSet, volume: str) -> Iterator[Volume | Batch | Unread]: ...


@dataclass(frozen=True, slots=True)
class Progress:
    """Of one backup: files of the volume so far."""

    volume: str
    files: int


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """Progress of a rebuild."""

    backups_done: int
    backups_total: int
    files: int
    vm_name: str
    problems: tuple[str, ...] = ()
    done: bool = False


class Cataloguing:
    """The use case, with a thread that keeps the catalog in line with the backups."""

    def __init__(
        self, store: CatalogStore, backups: Backups, disks: BackupDisks, parser: Parser, files: Files,
        *, enabled: bool = True, seconds: float = ROUND_SECONDS,
    ) -> None:  # fmt: skip
        self.store = store
        self.enabled = enabled
        self._backups = backups
        self._disks = disks
        self._parser = parser
        self._files = files
        self._seconds = seconds
        self._stop = threading.Event()
        self._working = threading.Lock()  # L1
        self._thread = threading.Thread(target=self._run, name="cataloguing", daemon=True)

    # -- the thread -------------------------------------------------------------------------

    def start(self) -> None:
        """Go on with what is lacking."""
        if self.enabled:
            self._thread.start()

    def stop(self) -> None:
        """No further volume; what is being walked is left out."""
        self._stop.set()

    def join(self) -> None:
        if self._thread.ident is not None:
            self._thread.join(JOIN_SECONDS)

    def _run(self) -> None:
        pause = self._seconds
        while not self._stop.wait(pause):
            pause = self._seconds if self.round() else AFTER_FAILURE_SECONDS

    def round(self) -> bool:
        """Bring the catalog in line with the server's backups; whether nothing was in the way."""
        try:
            return self._bring_in_line()
        except ArrayliftError as error:
            _log.warning("catalog_round_failed", error=str(error))
            if schema.is_damage(error):
                self.store.begin_anew()
            return False

    def _bring_in_line(self) -> bool:
        states = self.store.states()
        listed = self._backups.ids_newest_first()
        for gone in states.keys() - set(listed):
            self.store.forget(gone)
        away: set[str] = set()
        for backup_id in listed:
            if self._stop.is_set():
                break
            if states.get(backup_id, CatalogState.WAITING) is not CatalogState.WAITING:
                continue
            backup = self._backups.find(backup_id)
            if backup is None or backup.target in away or self.store.knows(backup_id):
                continue
            try:
                for _ in self.catalog(backup):
                    pass
            except PeerUnavailable as error:
                away.add(backup.target)
                _log.warning("not_catalogued", backup=backup_id, error=str(error))
        return not away

    # -- one backup -------------------------------------------------------------------------

    def catalog(self, backup: Backup, store: CatalogStore | None = None) -> Generator[Progress, None, None]:
        """Parse a backup into the catalog, in place of what was there.

        Raises PeerUnavailable, StoreFailed.
        """
        with self._working:
            yield from self._catalog(backup, store or self.store)

    def _catalog(self, backup: Backup, store: CatalogStore) -> Generator[Progress, None, None]:
        names = tuple(disk.disk_name for disk in backup.disks)
        known = StoredBackup(
            backup.backup_id,
            backup.vm_id,
            backup.vm_name,
            backup.snapshot_at_ns,
            CatalogState.WAITING,
            "",
            names,
        )
        began = time.monotonic()
        disks = self._disks.of(backup)
        try:
            volumes = self._parser.survey(disks)
        except PeerUnavailable:
            raise
        except ArrayliftError as error:
            store.begin(replace(known, state=CatalogState.FAILED, problem=str(error)), [])
            _log.warning("backup_not_parsed", backup=backup.backup_id, error=str(error))
            return
        store.begin(known, volumes)
        count = 0
        for volume in volumes:
            if not volume.readable:
                continue
            walk = self._parser.walk(disks, volume.key)
            with closing(store.add_walk(known, volume.key, walk)) as counts:
                walked = 0
                for walked in counts:
                    yield Progress(volume.key, walked)
                    if self._stop.is_set():  # the walk is left out: the next process does it
                        return
            count += walked
        store.finish(replace(known, state=CatalogState.DONE))
        if self._backups.find(backup.backup_id) is None:  # L2: deleted meanwhile
            store.forget(backup.backup_id)
        seconds = round(time.monotonic() - began, 3)
        _log.info(
            "backup_catalogued", backup=backup.backup_id, vm=backup.vm_name, files=count, seconds=seconds
        )

    # -- anew -------------------------------------------------------------------------------

    def rebuild(self, target: str = "") -> Generator[Rebuilt, None, None]:
        """Read the targets' manifests, then parse all backups of one or of all anew (L3).

        Raises Conflict (it runs), PeerUnavailable, StoreFailed; the present catalog then stays.
        """
        if not self._working.acquire(blocking=False):
            raise Conflict("the catalog is being written", next_step="repeat it when that has ended")
        try:
            self._backups.sync(target)
            chosen = [one for one in self._backups.all() if target in {"", one.target}]
            if target:
                yield from self._parse_all(chosen, self.store)
                return
            path = f"{self.store.path}.new"
            schema.remove(self._files, path)
            fresh = CatalogStore(self._files, path)
            try:
                for news in self._parse_all(chosen, fresh):
                    if news.done:
                        fresh.close()
                        self.store.become(path)
                    yield news
            finally:
                fresh.close()
                schema.remove(self._files, path)
        finally:
            self._working.release()

    def _parse_all(self, chosen: Sequence[Backup], store: CatalogStore) -> Generator[Rebuilt, None, None]:
        problems: list[str] = []
        files = 0
        # In order of time, each volume's newest walk is appended: the cheapest way.
        for done, backup in enumerate(sorted(chosen, key=lambda one: one.snapshot_at_ns)):
            now: dict[str, int] = {}
            try:
                for progress in self._catalog(backup, store):
                    now[progress.volume] = progress.files
                    yield Rebuilt(done, len(chosen), files + sum(now.values()), backup.vm_name)
            except PeerUnavailable as error:
                problems.append(f"backup {backup.backup_id} of {backup.vm_name}: {error}")
            files += sum(now.values())
            if self._stop.is_set():
                raise PeerUnavailable("the server stops", next_step="repeat it")
        told = tuple(problems[:PROBLEMS_MAX])
        yield Rebuilt(len(chosen), len(chosen), files, "", told, done=True)
