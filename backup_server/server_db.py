"""The server's database: jobs, their steps, backups as last seen on the targets, peers.

Owns: ``<state>/server.db``, by SQLite. Policies have their tables in it, and their own module
(``policy_store``).
Invariants:
  D1 every change is one transaction, durable when it returns (WAL, synchronous=FULL).
  D2 at most one unfinished backup job a VM, kept by an index of the database.
  D3 a change that failed on its disk poisons the database: later ones raise StoreFailed until
     the process starts again (law 3).
  D4 a database of another application or a later version is refused; an earlier one becomes this one in
     one transaction.
  D5 at most one unfinished restore in place a VM.
Callers: any thread; one lock. Format: docs/formats/server-db-v3.md
Decision: docs/decisions/0028-sqlite-for-the-server.md
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from arraylift.errors import (
    ArrayliftError,
    Conflict,
    Corruption,
    NotFound,
    OutOfSpace,
    Overloaded,
    StoreFailed,
    WrongState,
)
from backup_server import documents
from backup_server.job_rules import (
    JOBS_KEPT_MAX,
    JOBS_UNFINISHED_MAX,
    Job,
    JobKind,
    JobState,
    Step,
)
from backup_server.model import Backup, PeerKind, RegisteredPeer
from backup_server.server_schema import APPLICATION_ID, SCHEMA, UPGRADES, VERSION

BUSY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs a listing is of; what is empty asks for nothing."""

    vm: str = ""
    """Name or id."""
    states: tuple[JobState, ...] = ()
    kind: JobKind | None = None
    since_ns: int = 0
    policy: str = ""

    def sql(self) -> tuple[list[str], list[str | int]]:
        """Conditions, and their values."""
        conditions, values = list[str](), list[str | int]()
        if self.vm:
            conditions.append("(vm_id = ? OR vm_name = ?)")
            values += [self.vm, self.vm]
        if self.states:
            conditions.append(f"state IN ({', '.join('?' * len(self.states))})")
            values += self.states
        for name, comparison, value in (
            ("kind", "=", self.kind or 0),
            ("created_at_ns", ">=", self.since_ns),
            ("policy", "=", self.policy),
        ):
            if value:
                conditions.append(f"{name} {comparison} ?")
                values.append(value)
        return conditions, values


class ServerDb:
    """One open database."""

    def __init__(self, path: str) -> None:
        """Open, or make at first start. Raises Corruption, WrongState (D4), OutOfSpace."""
        self._path = path
        self._lock = threading.RLock()
        self._failed: str | None = None
        with self._mapped():
            self._db = sqlite3.connect(
                path, isolation_level=None, check_same_thread=False, timeout=BUSY_SECONDS
            )
            try:
                self._open()
            except BaseException:
                self._db.close()
                raise

    def _open(self) -> None:
        found = (self._pragma("application_id"), self._pragma("user_version"))
        empty = found == (0, 0) and not self._db.execute("SELECT 1 FROM sqlite_schema").fetchone()
        if not empty and (found[0] != APPLICATION_ID or not 1 <= found[1] <= VERSION):
            raise WrongState(
                f"{self._path} is no server database of version 1 to {VERSION}: it says {found}",
                subject=self._path,
                next_step="use the release that wrote it, or another state directory",
            )
        if self._db.execute("PRAGMA journal_mode=WAL").fetchone()[0] != "wal":
            raise WrongState(f"the file system of {self._path} does not bear a write-ahead log")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("PRAGMA foreign_keys=ON")
        if not empty and (problem := self._db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise _damaged(self._path, problem)
        missing = [UPGRADES[version] for version in range(found[1] or 1, VERSION)]
        if empty:
            missing.insert(0, f"{SCHEMA} PRAGMA application_id={APPLICATION_ID};")
        if missing:
            steps = " ".join(missing)
            self._db.executescript(f"BEGIN IMMEDIATE; {steps} PRAGMA user_version={VERSION}; COMMIT;")

    def _pragma(self, name: str) -> int:
        value: int = self._db.execute(f"PRAGMA {name}").fetchone()[0]
        return value

    def close(self) -> None:
        """Twice is fine."""
        with self._lock:
            self._db.close()

    # -- jobs -------------------------------------------------------------------------------

    def add_jobs(self, jobs: Sequence[Job]) -> None:
        """Keep new jobs, all or none.

        Raises Conflict with job_id (a VM is being backed up, D2), Overloaded.
        """
        with self.change() as db:
            count = db.execute("SELECT count(*) FROM jobs WHERE state < 3").fetchone()[0]
            if count + len(jobs) > JOBS_UNFINISHED_MAX:
                raise Overloaded(
                    f"{count} jobs have not ended; at most {JOBS_UNFINISHED_MAX} may wait",
                    next_step="wait for some to end",
                )
            for job in jobs:
                self._check_free(db, job)
                db.execute(
                    "INSERT INTO jobs (job_id, kind, state, vm_id, document) VALUES (?, ?, ?, ?, ?)",
                    (job.job_id, job.kind, job.state, job.vm_id, documents.dump(job)),
                )
            db.execute(
                "DELETE FROM jobs WHERE state >= 3 AND serial <= (SELECT max(serial) FROM jobs) - ?"
                " AND sweeps_left = 0",
                (JOBS_KEPT_MAX,),
            )

    def _check_free(self, db: sqlite3.Connection, job: Job) -> None:
        """D2, D5. A restore as a new VM is in nobody's way."""
        if job.kind is JobKind.BACKUP:
            found = db.execute(
                "SELECT job_id FROM jobs WHERE vm_id = ? AND kind = 1 AND state < 3", (job.vm_id,)
            ).fetchone()
            what = "backed up"
        elif job.restore is not None and job.restore.in_place:
            found = db.execute(
                "SELECT job_id FROM jobs WHERE vm_id = ? AND kind = 2 AND state < 3"
                " AND json_extract(document, '$.restore.in_place')",
                (job.vm_id,),
            ).fetchone()
            what = "restored in place"
        else:
            return
        if found is not None:
            raise Conflict(
                f"VM {job.vm_name} is being {what} by job {found[0]}",
                subject=f"VM {job.vm_name}",
                next_step="wait for that job, or cancel it",
                job_id=found[0],
            )

    def job(self, job_id: str) -> Job:
        """Raises NotFound."""
        with self.read() as db:
            row = db.execute("SELECT document FROM jobs WHERE job_id = ?", (job_id,)).fetchone()
        if row is None:
            raise NotFound(f"there is no job {job_id}", subject=f"job {job_id}", next_step="list the jobs")
        return documents.load(Job, row[0], what=f"job {job_id}")

    def last_backup_job(self, vm_id: str) -> Job | None:
        """The VM's newest that is remembered."""
        with self.read() as db:
            row = db.execute(
                "SELECT document FROM jobs WHERE vm_id = ? AND kind = 1 ORDER BY serial DESC LIMIT 1",
                (vm_id,),
            ).fetchone()
        return documents.load(Job, row[0], what="a job") if row is not None else None

    def jobs(
        self, *, unfinished: bool = False, limit: int, behind: str = "", only: JobFilter | None = None
    ) -> list[Job]:
        """Newest first; ``behind``: only those older than this job, none if it is forgotten."""
        conditions, values = (only or JobFilter()).sql()
        if unfinished:
            conditions.append("state < 3")
        if behind:
            conditions.append("serial < (SELECT serial FROM jobs WHERE job_id = ?)")
            values.append(behind)
        where = " AND ".join(conditions) or "1"
        with self.read() as db:
            rows = db.execute(
                f"SELECT document FROM jobs WHERE {where} ORDER BY serial DESC LIMIT ?",  # noqa: S608 - constants
                (*values, limit),
            ).fetchall()
        return [documents.load(Job, row[0], what="a job") for row in rows]

    def user_of_backup(self, backup_id: str) -> str:
        """An unfinished job that makes the backup, or restores it; empty: there is none."""
        with self.read() as db:
            row = db.execute(
                "SELECT job_id FROM jobs WHERE backup_id = ? AND state < 3 LIMIT 1", (backup_id,)
            ).fetchone()
        return row[0] if row is not None else ""

    def jobs_to_sweep(self) -> list[Job]:
        """Jobs that ended badly and are to be cleaned up after again."""
        with self.read() as db:
            rows = db.execute("SELECT document FROM jobs WHERE state >= 3 AND sweeps_left > 0").fetchall()
        return [documents.load(Job, row[0], what="a job") for row in rows]

    def save_job(self, job: Job) -> None:
        """Replace a job. Raises NotFound."""
        with self.change() as db:
            changed = db.execute(
                "UPDATE jobs SET state = ?, vm_id = ?, document = ? WHERE job_id = ?",
                (job.state, job.vm_id, documents.dump(job), job.job_id),
            )
            if not changed.rowcount:
                raise NotFound(f"there is no job {job.job_id}", subject=f"job {job.job_id}")

    def update_job(self, job_id: str, **changes: object) -> Job:
        """Change fields of a job in one transaction; returns it. Raises NotFound."""
        with self.change():
            job = replace(self.job(job_id), **changes)  # type: ignore[arg-type]
            self.save_job(job)
        return job

    def end_job(self, job_id: str, then: Sequence[Job], **changes: object) -> Job:
        """Likewise, and keep the jobs that follow it, in the same transaction."""
        with self.change():
            job = self.update_job(job_id, **changes)
            if then:
                self.add_jobs(then)
        return job

    # -- steps ------------------------------------------------------------------------------

    def steps(self, job_id: str) -> list[Step]:
        """In the order in which they began."""
        with self.read() as db:
            rows = db.execute(
                "SELECT document FROM steps WHERE job_id = ? ORDER BY position", (job_id,)
            ).fetchall()
        return [documents.load(Step, row[0], what=f"a step of job {job_id}") for row in rows]

    def save_step(self, job_id: str, step: Step) -> None:
        """Keep a step that began or ended."""
        with self.change() as db:
            db.execute(
                "INSERT INTO steps (job_id, name, position, document) VALUES (?1, ?2,"
                " (SELECT coalesce(max(position), 0) + 1 FROM steps WHERE job_id = ?1), ?3)"
                " ON CONFLICT (job_id, name) DO UPDATE SET document = excluded.document",
                (job_id, step.name, documents.dump(step)),
            )

    # -- backups ----------------------------------------------------------------------------

    def save_backup(self, backup: Backup) -> None:
        """Keep what a target's manifest says, without firmware variables; a backup that is being deleted
        stays so."""
        self.save_backups([backup])

    def save_backups(self, backups: Iterable[Backup], *, found: bool = False) -> None:
        """Likewise, all of them in one transaction. ``found``: on a target, where a job of ours that has not
        succeeded may have put it and may take it away: such are left to their jobs."""
        with self.change() as db:
            for backup in backups:
                if (
                    found
                    and db.execute(
                        "SELECT 1 FROM jobs WHERE job_id = ? AND state <> ?",
                        (backup.backup_id, JobState.SUCCEEDED),
                    ).fetchone()
                ):
                    continue
                document = documents.dump(replace(backup, firmware_variables=b""))
                row = db.execute("SELECT document FROM backups WHERE backup_id = ?", (backup.backup_id,))
                if (row.fetchone() or [None])[0] != document:
                    self._write_backup(db, backup, document)

    def _write_backup(self, db: sqlite3.Connection, backup: Backup, document: str) -> None:
        columns = {
            "backup_id": backup.backup_id,
            "vm_id": backup.vm_id,
            "vm_name": backup.vm_name,
            "target": backup.target,
            "snapshot_at_ns": backup.snapshot_at_ns,
            "document": document,
            "policy": backup.policy,
            "lock_until_ns": backup.lock_until_ns,
            "incremental": backup.incremental,
            "bytes_protected": sum(disk.size_bytes for disk in backup.disks),
            "bytes_sent": sum(disk.figures.bytes_sent for disk in backup.disks),
            "bytes_stored": sum(disk.figures.bytes_stored for disk in backup.disks),
        }
        names, marks = ", ".join(columns), ", ".join("?" * len(columns))
        changes = ", ".join(f"{name} = excluded.{name}" for name in columns)
        db.execute(
            f"INSERT INTO backups ({names}) VALUES ({marks})"  # noqa: S608 - constants
            f" ON CONFLICT (backup_id) DO UPDATE SET {changes}",
            tuple(columns.values()),
        )

    def backup(self, backup_id: str) -> Backup:
        """Raises NotFound, also for one that is being deleted."""
        with self.read() as db:
            row = db.execute(
                "SELECT document FROM backups WHERE backup_id = ? AND NOT deleting", (backup_id,)
            ).fetchone()
        if row is None:
            raise NotFound(
                f"there is no backup {backup_id}", subject=f"backup {backup_id}", next_step="list the backups"
            )
        return documents.load(Backup, row[0], what=f"backup {backup_id}")

    def backups(self, *, vm: str = "", deleting: bool = False) -> list[Backup]:
        """Newest first; ``vm`` is a name or an id, empty: all."""
        return self.backups_behind(None, vm=vm, deleting=deleting, count_max=-1)

    def backups_behind(
        self, behind: tuple[int, str] | None, *, vm: str = "", deleting: bool = False, count_max: int
    ) -> list[Backup]:
        """At most so many of ``backups`` (-1: all), older than one of that time and id."""
        conditions, values = ["deleting"] if deleting else ["NOT deleting"], list[str | int]()
        if vm:
            conditions.append("(vm_id = ? OR vm_name = ?)")
            values += [vm, vm]
        if behind is not None:
            conditions.append("(snapshot_at_ns, backup_id) < (?, ?)")
            values += behind
        where = " AND ".join(conditions)
        with self.read() as db:
            rows = db.execute(
                f"SELECT document FROM backups WHERE {where}"  # noqa: S608 - constants
                " ORDER BY snapshot_at_ns DESC, backup_id DESC LIMIT ?",
                (*values, count_max),
            ).fetchall()
        return [documents.load(Backup, row[0], what="a backup") for row in rows]

    def backup_ids(self) -> list[str]:
        """Newest first."""
        with self.read() as db:
            rows = db.execute(
                "SELECT backup_id FROM backups WHERE NOT deleting"
                " ORDER BY snapshot_at_ns DESC, backup_id DESC"
            ).fetchall()
        return [backup_id for (backup_id,) in rows]

    def last_backup(self, vm_id: str, *, target: str) -> Backup | None:
        """The VM's newest on that target."""
        with self.read() as db:
            row = db.execute(
                "SELECT document FROM backups WHERE vm_id = ? AND target = ? AND NOT deleting"
                " ORDER BY snapshot_at_ns DESC, backup_id DESC LIMIT 1",
                (vm_id, target),
            ).fetchone()
        return documents.load(Backup, row[0], what="a backup") if row is not None else None

    def begin_delete(self, backup_id: str) -> None:
        """From now on the backup is not listed; its deletion is finished even after a crash."""
        with self.change() as db:
            db.execute("UPDATE backups SET deleting = 1 WHERE backup_id = ?", (backup_id,))

    def cancel_delete(self, backup_id: str) -> None:
        """The target refuses to delete it: it is listed as before."""
        with self.change() as db:
            db.execute("UPDATE backups SET deleting = 0 WHERE backup_id = ?", (backup_id,))

    def forget_backup(self, backup_id: str) -> None:
        """No target has it any more. Idempotent."""
        with self.change() as db:
            db.execute("DELETE FROM backups WHERE backup_id = ?", (backup_id,))

    # -- peers ------------------------------------------------------------------------------

    def save_peer(self, peer: RegisteredPeer) -> None:
        """Add, or change the address."""
        with self.change() as db:
            db.execute(
                "INSERT INTO peers (kind, name, address) VALUES (?, ?, ?)"
                " ON CONFLICT (kind, name) DO UPDATE SET address = excluded.address",
                (peer.kind, peer.name, peer.address),
            )

    def peers(self) -> list[RegisteredPeer]:
        """By kind and name."""
        with self.read() as db:
            rows = db.execute("SELECT kind, name, address FROM peers ORDER BY kind, name").fetchall()
        return [RegisteredPeer(PeerKind(kind), name, address) for kind, name, address in rows]

    def remove_peer(self, kind: PeerKind, name: str) -> None:
        """Idempotent."""
        with self.change() as db:
            db.execute("DELETE FROM peers WHERE kind = ? AND name = ?", (kind, name))

    # -- SQLite -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """One transaction; joins the one that this thread is in (D1). For modules with tables in here."""
        with self._lock, self._mapped():
            if self._failed is not None:
                raise StoreFailed(self._failed, subject=self._path, next_step="restart the backup server")
            if self._db.in_transaction:
                yield self._db
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """For what changes nothing. Fetch all before leaving."""
        with self._lock, self._mapped():
            yield self._db

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._error_of(error) from error

    def _error_of(self, error: sqlite3.Error) -> ArrayliftError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            return OutOfSpace(f"no room for {self._path}", subject=self._path, next_step="free some space")
        if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
            return _damaged(self._path, str(error))
        if code == sqlite3.SQLITE_CANTOPEN:
            return WrongState(f"cannot open {self._path}: {error}", subject=self._path)
        self._failed = f"{self._path} failed: {error}"  # D3
        return StoreFailed(self._failed, subject=self._path, next_step="restart the backup server")


def _damaged(path: str, why: str) -> Corruption:
    return Corruption(
        f"{path} is damaged: {why}",
        subject=path,
        next_step="put it back from a copy, or take it away: backups are read again from their targets",
    )
