"""The inventory on disk: one SQLite database, the only module that touches it.

Owns: <state>/inventory.db and its log; nobody else opens them.
Invariants:
  B1 a change is one transaction: after any crash all of it is there, or nothing. When ``save``
     returns it survives a power cut (WAL, synchronous=FULL).
  B2 a failed write or fsync poisons the store: every later change raises StoreFailed until the
     process starts again from the disk. A full disk does not: the change is rolled back.
  B3 a record that does not match its checksum stops the start; nothing is repaired in silence.
  B4 each VM keeps at most HISTORY_PER_VM_MAX entries of history, all VMs together HISTORY_MAX.
One process: flock with a fencing token on the directory.
Failpoints: ``inventory.commit.before|after``. An error armed at ``after`` means that the
transaction is there and nobody was told (B2).
Callers: any thread; one at a time inside (a lock, held over disk I/O and nothing else).
Format: docs/formats/inventory-v2.md. Why SQLite: docs/decisions/0025-inventory-in-sqlite.md
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace

from arraylift.durable import Files
from arraylift.errors import ArrayliftError, Corruption, OutOfSpace, StoreFailed, WrongState
from arraylift.failpoints import FAILPOINTS, Failpoints
from arraylift.ids import MigrationId, VmId, VmSnapshotId
from vcenter import record
from vcenter.inventory import Change, Inventory, rebuild
from vcenter.migration import Migration
from vcenter.record import Past

HISTORY_PER_VM_MAX = 1_000
HISTORY_MAX = 200_000
SNAPSHOTS_MAX = 16_384
PLACEMENTS_MAX = 1_024

APPLICATION_ID = 0x414C5643  # "ALVC"
VERSION = 2
FILE_NAME = "inventory.db"
_CACHE_KIB = 8_192

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE hosts (
  name TEXT PRIMARY KEY, body BLOB NOT NULL, checksum BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE claims (
  vm_id TEXT NOT NULL, host TEXT NOT NULL, body BLOB NOT NULL, checksum BLOB NOT NULL,
  PRIMARY KEY (vm_id, host)) STRICT, WITHOUT ROWID;
CREATE TABLE history (
  number INTEGER PRIMARY KEY AUTOINCREMENT, vm_id TEXT NOT NULL, noted_at_ns INTEGER NOT NULL,
  body BLOB NOT NULL, checksum BLOB NOT NULL) STRICT;
CREATE INDEX history_by_vm ON history (vm_id, number);
CREATE TABLE placements (
  vm_id TEXT PRIMARY KEY, host TEXT NOT NULL, memory_bytes INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE snapshots (
  number INTEGER PRIMARY KEY AUTOINCREMENT, vm_snapshot_id TEXT NOT NULL UNIQUE,
  vm_id TEXT NOT NULL, host TEXT NOT NULL) STRICT;
"""
_SCHEMA_MIGRATIONS = """
CREATE TABLE migrations (
  migration_id TEXT PRIMARY KEY, body BLOB NOT NULL, checksum BLOB NOT NULL) STRICT, WITHOUT ROWID"""
"""What version 2 added."""


_LAST_OF_HISTORY = "SELECT body FROM history WHERE vm_id = ? ORDER BY number DESC LIMIT 1"
NUMBER_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """What a VM was from ``noted_at_ns`` on; ``number`` grows with every entry."""

    number: int
    noted_at_ns: int
    past: Past


@dataclass(frozen=True, slots=True)
class Placement:
    """A host that was asked to make a VM, until it is known whether it did."""

    vm_id: VmId
    host: str
    memory_bytes: int


class InventoryStore:
    """One open database. ``load`` once, then ``save`` each change."""

    def __init__(
        self, files: Files, directory: str, *, first_revision: int, failpoints: Failpoints = FAILPOINTS
    ) -> None:
        """Open or make the database below ``directory``. ``first_revision`` begins a new one.

        Raises WrongState (another process has it; another version's), Corruption, StoreFailed.
        """
        self.path = os.path.join(directory, FILE_NAME)
        self._failpoints = failpoints
        self._lock = threading.Lock()
        self._poison = ""
        files.make_dirs(directory)
        self._store_lock = files.lock(directory)
        try:
            # Autocommit: transactions are begun and ended here, and nowhere by themselves.
            self._db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            try:
                with self._mapped():
                    self._prepare(first_revision)
                files.sweep(directory)  # the names of the database's files are durable, too
            except BaseException:
                self._db.close()
                raise
        except BaseException:
            self._store_lock.close()
            raise

    # -- reading --------------------------------------------------------------------------------

    def load(self) -> Inventory:
        """Return what was saved last. Raises Corruption (B3)."""
        with self._lock, self._mapped():
            revision = self._db.execute("SELECT value FROM meta WHERE key = 'revision'").fetchone()[0]
            hosts = []
            for name, body, found in self._db.execute("SELECT name, body, checksum FROM hosts"):
                host = record.decode_host(self._checked(found, body, name))
                self._same(host.name, name)
                hosts.append(host)
            claims = []
            rows = self._db.execute("SELECT vm_id, host, body, checksum FROM claims")
            for vm_id, host_name, body, found in rows:
                claim = record.decode_claim(self._checked(found, body, vm_id, host_name))
                self._same((claim.vm.vm_id, claim.vm.host), (vm_id, host_name))
                claims.append(claim)
        names = {host.name for host in hosts}
        if any(claim.vm.host not in names for claim in claims):
            raise self._damaged("a VM's host is missing")
        return rebuild(revision, hosts, claims)

    def history(self, vm_id: VmId, *, before: int = NUMBER_MAX, count: int = -1) -> list[HistoryEntry]:
        """Return what a VM was, the newest first, below an entry's number; also of one that is gone."""
        query = (
            "SELECT number, noted_at_ns, body, checksum FROM history WHERE vm_id = ? AND number < ? "
            "ORDER BY number DESC LIMIT ?"
        )
        with self._lock, self._mapped():
            rows = self._db.execute(query, (vm_id, before, count)).fetchall()
            return [
                HistoryEntry(number, noted, record.decode_past(self._checked(found, body, vm_id, str(noted))))
                for number, noted, body, found in rows
            ]

    def migrations(self) -> list[Migration]:
        """Return the migrations whose end was not noted. Raises Corruption (B3)."""
        with self._lock, self._mapped():
            found = []
            for migration_id, body, check in self._db.execute("SELECT * FROM migrations"):
                found.append(record.decode_migration(self._checked(check, body, migration_id)))
                self._same(found[-1].migration_id, migration_id)
        return found

    def placements(self) -> list[Placement]:
        """Return the placements whose end was not noted."""
        with self._lock, self._mapped():
            rows = self._db.execute("SELECT vm_id, host, memory_bytes FROM placements").fetchall()
        return [Placement(VmId(vm_id), host, memory_bytes) for vm_id, host, memory_bytes in rows]

    def snapshot_host(self, vm_snapshot_id: VmSnapshotId) -> str | None:
        """Return the host that made a VM snapshot through this center, if it is remembered."""
        query = "SELECT host FROM snapshots WHERE vm_snapshot_id = ?"
        with self._lock, self._mapped():
            row = self._db.execute(query, (vm_snapshot_id,)).fetchone()
        return None if row is None else str(row[0])

    # -- changing -------------------------------------------------------------------------------

    def save(self, change: Change, *, noted_at_ns: int) -> None:
        """Make a change durable (B1). Raises OutOfSpace, StoreFailed; nothing is changed then."""
        with self._transaction() as db:
            for name in change.removed_hosts:
                for table, column in (("hosts", "name"), ("placements", "host"), ("snapshots", "host")):
                    db.execute(f"DELETE FROM {table} WHERE {column} = ?", (name,))  # noqa: S608  # our own words
            db.executemany("DELETE FROM claims WHERE vm_id = ? AND host = ?", change.removed_claims)
            for host in change.hosts:
                body = record.encode_host(host)
                row = (host.name, body, record.checksum(body, host.name.encode()))
                db.execute("INSERT OR REPLACE INTO hosts VALUES (?, ?, ?)", row)
            db.executemany("INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?)", _claim_rows(change))
            for vm in change.noted:
                self._note(vm.vm_id, Past(vm.host, vm.config), noted_at_ns)
            for vm_id in change.gone:
                self._note_gone(vm_id, noted_at_ns)
            if change.noted or change.gone:
                self._trim("history", HISTORY_MAX)
            db.execute("UPDATE meta SET value = ? WHERE key = 'revision'", (change.inventory.revision,))

    def note_placement(self, placement: Placement) -> None:
        """Remember whom we ask to make a VM, before we ask. Raises OutOfSpace, StoreFailed."""
        row = (placement.vm_id, placement.host, placement.memory_bytes)
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO placements VALUES (?, ?, ?)", row)

    def forget_placements(self, vm_ids: list[VmId]) -> None:
        """It is known what became of them. Raises OutOfSpace, StoreFailed."""
        with self._transaction() as db:
            db.executemany("DELETE FROM placements WHERE vm_id = ?", [(vm_id,) for vm_id in vm_ids])

    def note_migration(self, migration: Migration) -> None:
        """Remember how far a migration is, before a host is asked. Raises OutOfSpace, StoreFailed."""
        body = record.encode_migration(migration)
        row = (migration.migration_id, body, record.checksum(body, migration.migration_id.encode()))
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO migrations VALUES (?, ?, ?)", row)

    def forget_migration(self, migration_id: MigrationId) -> None:
        """It has ended. Raises OutOfSpace, StoreFailed."""
        with self._transaction() as db:
            db.execute("DELETE FROM migrations WHERE migration_id = ?", (migration_id,))

    def note_snapshot(self, vm_snapshot_id: VmSnapshotId, vm_id: VmId, host: str) -> None:
        """Remember who has a VM snapshot; the oldest beyond SNAPSHOTS_MAX are forgotten."""
        if self.snapshot_host(vm_snapshot_id) == host:
            return
        insert = "INSERT OR REPLACE INTO snapshots (vm_snapshot_id, vm_id, host) VALUES (?, ?, ?)"
        with self._transaction() as db:
            db.execute(insert, (vm_snapshot_id, vm_id, host))
            self._trim("snapshots", SNAPSHOTS_MAX)

    def forget_snapshot(self, vm_snapshot_id: VmSnapshotId) -> None:
        """It was deleted."""
        if self.snapshot_host(vm_snapshot_id) is not None:
            with self._transaction() as db:
                db.execute("DELETE FROM snapshots WHERE vm_snapshot_id = ?", (vm_snapshot_id,))

    def close(self) -> None:
        """Let the next process in. Nobody may be inside any more."""
        with self._lock:
            self._db.close()
            self._store_lock.close()

    # -- inside ---------------------------------------------------------------------------------

    def _prepare(self, first_revision: int) -> None:
        db = self._db
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        assert mode == "wal", f"SQLite answered {mode}; only WAL is tried and tested"
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        application, version = (
            db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
        )
        tables = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if (application, version, tables) == (0, 0, 0):
            self._make(first_revision)
            return
        if application != APPLICATION_ID or version not in (1, VERSION):
            raise WrongState(
                f"{self.path} is of application {application:#x}, version {version}; this release "
                f"reads versions 1 and {VERSION} of {APPLICATION_ID:#x}",
                subject=self.path,
                next_step="run the release that wrote it, or set another state directory",
            )
        if (answer := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise self._damaged(answer)
        if version == 1:
            self._upgrade()

    def _make(self, first_revision: int) -> None:
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        for statement in (*_SCHEMA.split(";\n"), _SCHEMA_MIGRATIONS):
            db.execute(statement)
        db.execute("INSERT INTO meta VALUES ('revision', ?)", (first_revision,))
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {VERSION}")
        db.execute("COMMIT")

    def _upgrade(self) -> None:
        """Version 1 to 2: records of both are read, new ones are of version 2."""
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute(_SCHEMA_MIGRATIONS)
        self._db.execute(f"PRAGMA user_version = {VERSION}")
        self._db.execute("COMMIT")

    def _note_gone(self, vm_id: VmId, noted_at_ns: int) -> None:
        row = self._db.execute(_LAST_OF_HISTORY, (vm_id,)).fetchone()
        if row is not None:  # its history may have been trimmed away
            self._note(vm_id, replace(record.decode_past(row[0]), removed=True), noted_at_ns)

    def _note(self, vm_id: VmId, past: Past, noted_at_ns: int) -> None:
        body = record.encode_past(past)
        row = self._db.execute(_LAST_OF_HISTORY, (vm_id,)).fetchone()
        if row is not None and row[0] == body:
            return  # back again: nothing is new
        check = record.checksum(body, vm_id.encode(), str(noted_at_ns).encode())
        self._db.execute(
            "INSERT INTO history (vm_id, noted_at_ns, body, checksum) VALUES (?, ?, ?, ?)",
            (vm_id, noted_at_ns, body, check),
        )
        self._db.execute(
            "DELETE FROM history WHERE vm_id = ?1 AND number <= (SELECT number FROM history "
            "WHERE vm_id = ?1 ORDER BY number DESC LIMIT 1 OFFSET ?2)",
            (vm_id, HISTORY_PER_VM_MAX),
        )

    def _trim(self, table: str, rows_max: int) -> None:
        """Numbers have gaps, so fewer may be left than allowed; never more."""
        self._db.execute(
            f"DELETE FROM {table} WHERE number <= (SELECT max(number) FROM {table}) - ?",  # noqa: S608
            (rows_max,),
        )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._poison:
                raise StoreFailed(
                    f"the inventory takes no changes: {self._poison}",
                    subject=self.path,
                    next_step="look at the disk, then restart the virtual center",
                )
            with self._mapped():
                try:
                    self._db.execute("BEGIN IMMEDIATE")
                    yield self._db
                    self._failpoints.hit("inventory.commit.before")
                    self._db.execute("COMMIT")
                    self._failpoints.hit("inventory.commit.after")
                except BaseException:
                    if self._db.in_transaction:
                        with contextlib.suppress(sqlite3.Error):
                            self._db.execute("ROLLBACK")
                    raise

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise self._meaning(error) from error

    def _meaning(self, error: sqlite3.Error | OSError) -> ArrayliftError:
        """Say what an error of SQLite means to a caller (B2)."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            return OutOfSpace(
                f"no room to write {self.path}", subject=self.path, next_step="free space, then repeat"
            )
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            self._poison = str(error)
            return self._damaged(str(error))
        self._poison = str(error)
        return StoreFailed(
            f"{self.path} failed: {error}",
            subject=self.path,
            next_step="look at the disk, then restart the virtual center",
        )

    def _checked(self, found: bytes, body: bytes, *key: str) -> bytes:
        if found != record.checksum(body, *(part.encode() for part in key)):
            raise self._damaged(f"the checksum of {' '.join(key)} does not match")
        return body

    def _same(self, found: object, wanted: object) -> None:
        if found != wanted:
            raise self._damaged(f"the record of {wanted} is that of {found}")

    def _damaged(self, why: str) -> Corruption:
        return Corruption(
            f"{self.path} is damaged: {why}",
            subject=self.path,
            next_step="move it and its -wal away: every host registers and reports again within "
            "seconds; lost are the history of VMs and the migrations under way, which see in the manual",
        )


def _claim_rows(change: Change) -> Iterator[tuple[str, str, bytes, bytes]]:
    for claim in change.claims:
        body = record.encode_claim(claim)
        vm_id, host = claim.vm.vm_id, claim.vm.host
        yield vm_id, host, body, record.checksum(body, vm_id.encode(), host.encode())
