"""The catalog's tables, and how its file is opened.

Owns: the shape of ``catalog.db``. Invariants: K1 the file is a cache: one that is damaged, of another
version or of another application is taken away and begun anew, never repaired (backups do not need it).
Callers: store. Format: docs/formats/catalog-db-v1.md
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator

from arraylift.durable import Files
from arraylift.errors import ArrayliftError, OutOfSpace, StoreFailed, WrongState
from arraylift.logs import get_logger

APPLICATION_ID = 0x414C4354  # "ALCT"
VERSION = 1
BUSY_SECONDS = 30.0
CACHE_KIB = 32 * 1024
"""Of the writer; a reader has SQLite's 2 MiB."""

OPEN = (1 << 63) - 1
"""``last`` of a row that is valid in the newest whole walk of its volume."""

_log = get_logger("catalog")

FILE_COLUMNS = (
    "mode", "uid", "gid", "links", "major", "minor", "size", "inode", "modified", "changed", "accessed",
    "created", "child", "digest", "extra", "pieces",
)  # fmt: skip

_FILE_TYPES = (
    "mode INTEGER NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL, links INTEGER NOT NULL,"
    " major INTEGER NOT NULL, minor INTEGER NOT NULL, size INTEGER NOT NULL, inode INTEGER NOT NULL,"
    " modified INTEGER NOT NULL, changed INTEGER NOT NULL, accessed INTEGER NOT NULL,"
    " created INTEGER NOT NULL, child INTEGER NOT NULL, digest BLOB NOT NULL, extra BLOB, pieces BLOB"
)

_SCHEMA = f"""
CREATE TABLE backups (
    backup_id TEXT PRIMARY KEY,
    vm_id TEXT NOT NULL,
    vm_name TEXT NOT NULL,
    at_ns INTEGER NOT NULL,
    state INTEGER NOT NULL,
    problem TEXT NOT NULL,
    disks TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX backups_of_vm ON backups (vm_id, at_ns);
CREATE TABLE volumes (
    volume_id INTEGER PRIMARY KEY, vm_id TEXT NOT NULL, name TEXT NOT NULL, UNIQUE (vm_id, name)
) STRICT;
CREATE TABLE disks (
    disk_id INTEGER PRIMARY KEY, vm_id TEXT NOT NULL, name TEXT NOT NULL, UNIQUE (vm_id, name)
) STRICT;
CREATE TABLE points (
    volume_id INTEGER NOT NULL,
    at INTEGER NOT NULL,
    backup_id TEXT NOT NULL,
    position INTEGER NOT NULL,
    walked INTEGER NOT NULL,
    kind TEXT NOT NULL,
    label TEXT NOT NULL,
    uuid TEXT NOT NULL,
    size INTEGER NOT NULL,
    readable INTEGER NOT NULL,
    remark TEXT NOT NULL,
    file_count INTEGER NOT NULL,
    PRIMARY KEY (volume_id, at)
) STRICT, WITHOUT ROWID;
CREATE INDEX points_of_backup ON points (backup_id);
CREATE TABLE names (name_id INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE) STRICT;
CREATE VIRTUAL TABLE name_search USING fts5 (
    name, content='', columnsize=0, detail=none, tokenize='trigram'
);
CREATE TABLE directories (
    directory_id INTEGER PRIMARY KEY,
    volume_id INTEGER NOT NULL,
    parent_id INTEGER NOT NULL,
    name_id INTEGER NOT NULL,
    UNIQUE (volume_id, parent_id, name_id)
) STRICT;
CREATE TABLE files (
    file_id INTEGER PRIMARY KEY,
    volume_id INTEGER NOT NULL,
    directory_id INTEGER NOT NULL,
    name_id INTEGER NOT NULL,
    whole INTEGER NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    {_FILE_TYPES}
) STRICT;
CREATE INDEX files_by_path ON files (volume_id, directory_id, name_id, whole, last);
CREATE INDEX files_by_last ON files (volume_id, whole, last);
CREATE INDEX files_by_first ON files (volume_id, whole, first);
CREATE INDEX files_by_name ON files (name_id);
"""

SEEN = f"""
CREATE TEMP TABLE IF NOT EXISTS seen (
    directory_id INTEGER NOT NULL, name_id INTEGER NOT NULL, {_FILE_TYPES},
    PRIMARY KEY (directory_id, name_id)
) WITHOUT ROWID;
"""
"""What a walk has brought so far; of the writer's connection alone."""


def open_writer(files: Files, path: str) -> sqlite3.Connection:
    """Open the catalog, or begin it (anew: K1). Raises WrongState, OutOfSpace, StoreFailed."""
    with mapped(path):
        try:
            return _open(path)
        except (sqlite3.DatabaseError, WrongState) as error:
            if isinstance(error, sqlite3.OperationalError) and not _is_damage(error):
                raise
            _log.warning("catalog_begun_anew", path=path, error=str(error))
    remove(files, path)
    with mapped(path):
        return _open(path)


def open_reader(path: str) -> sqlite3.Connection:
    """A connection of its own, for one use; sees one state as long as one statement or transaction runs."""
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None, check_same_thread=False)
    try:
        db.execute(f"PRAGMA busy_timeout={int(BUSY_SECONDS * 1000)}")
        db.execute("SELECT 1 FROM sqlite_schema").fetchone()  # opens the file, whose name may change hands
    except BaseException:
        db.close()
        raise
    return db


def remove(files: Files, path: str) -> None:
    """Take the file and what SQLite keeps beside it away."""
    for suffix in ("-wal", "-shm", ""):
        files.remove(path + suffix, label="catalog_removed", missing_ok=True)


@contextlib.contextmanager
def mapped(path: str) -> Iterator[None]:
    """Make ours of SQLite's errors."""
    try:
        yield
    except sqlite3.Error as error:
        raise _error_of(path, error) from error


def _open(path: str) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_SECONDS)
    try:
        found = tuple(
            db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
        )
        empty = found == (0, 0) and not db.execute("SELECT 1 FROM sqlite_schema").fetchone()
        if not empty and found != (APPLICATION_ID, VERSION):
            raise WrongState(f"{path} is no catalog of version {VERSION}: it says {found}")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")  # a cache may lose its last rows, never its order
        db.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
        if empty:
            db.executescript(
                f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA application_id={APPLICATION_ID};"
                f" PRAGMA user_version={VERSION}; COMMIT;"
            )
        db.executescript(SEEN)
    except BaseException:
        db.close()
        raise
    return db


def _is_damage(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def is_damage(error: ArrayliftError) -> bool:
    """Whether an error of ``mapped`` means that the file is to be begun anew."""
    return isinstance(error.__cause__, sqlite3.Error) and _is_damage(error.__cause__)


def _error_of(path: str, error: sqlite3.Error) -> ArrayliftError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return OutOfSpace(f"no room for {path}", subject=path, next_step="free some space")
    if code == sqlite3.SQLITE_CANTOPEN:
        return WrongState(f"cannot open {path}: {error}", subject=path)
    return StoreFailed(
        f"the catalog {path} failed: {error}",
        subject=path,
        next_step="make it anew: arraylift catalog rebuild; backups and restores do not need it",
    )
