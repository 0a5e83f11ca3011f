"""One walk on its way into the catalog: batches in, rows in ``seen``, then intervals.

Invariants: K2 nothing of a walk is seen before ``finish``: a crash leaves the catalog as it was. K3 an entry
that comes twice under one name counts once, the first time.
Callers: store, under its lock, in one transaction from the first batch to the end.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence

from backup_server.catalog import batch_format as form
from backup_server.catalog.batch import Batch
from backup_server.catalog_store.rows import pack
from backup_server.catalog_store.schema import FILE_COLUMNS

NAMES_CACHED_MAX = 200_000
"""About 20 MiB."""

_SEEN = (
    f"INSERT OR IGNORE INTO seen (directory_id, name_id, {', '.join(FILE_COLUMNS)})"
    f" VALUES ({', '.join('?' * (2 + len(FILE_COLUMNS)))})"
)


class WalkWriter:
    """Interns names and directories, and fills ``seen``."""

    def __init__(self, db: sqlite3.Connection, volume_id: int, disk_ids: Sequence[int]) -> None:
        self._db = db
        self._volume_id = volume_id
        self._disk_ids = disk_ids
        self._names: dict[bytes, int] = {}
        self._directories: list[int] = []
        self.count = 0
        (self._names_before,) = db.execute("SELECT coalesce(max(name_id), 0) FROM names").fetchone()
        db.execute("DELETE FROM seen")

    def add(self, batch: Batch) -> None:
        """Take the next batch of the walk."""
        names = self._intern(batch.split("name"))
        parents = batch.records["parent"].tolist()
        numbers = batch.records["directory"].tolist()
        rows = []
        for name, parent, number, (*integers, digest, extra, pieces) in zip(
            names, parents, numbers, pack(batch, self._disk_ids), strict=True
        ):
            above = 0 if parent == form.NO_DIRECTORY else self._directories[parent]
            child = 0
            if number != form.NO_DIRECTORY:
                child = self._directory(above, name)
                self._directories.append(child)
            rows.append((above, name, *integers, child, digest, extra, pieces))
        before = self._db.total_changes
        self._db.executemany(_SEEN, rows)  # K3
        self.count += self._db.total_changes - before

    def finish(self) -> None:
        """Have the new names found by their parts: in one statement, as each flushes the index."""
        self._db.execute(
            "INSERT INTO name_search (rowid, name) SELECT name_id, CAST(name AS TEXT) FROM names"
            " WHERE name_id > ?",
            (self._names_before,),
        )

    def _intern(self, names: Sequence[bytes]) -> list[int]:
        if len(self._names) > NAMES_CACHED_MAX:
            self._names.clear()
        known = self._names
        for name in names:
            if name not in known:
                known[name] = intern_name(self._db, name)
        return [known[name] for name in names]

    def _directory(self, parent_id: int, name_id: int) -> int:
        key = (self._volume_id, parent_id, name_id)
        found = self._db.execute(
            "SELECT directory_id FROM directories WHERE volume_id = ? AND parent_id = ? AND name_id = ?", key
        ).fetchone()
        if found is None:
            found = self._db.execute(
                "INSERT INTO directories (volume_id, parent_id, name_id) VALUES (?, ?, ?)"
                " RETURNING directory_id",
                key,
            ).fetchone()
        return int(found[0])


def intern_name(db: sqlite3.Connection, name: bytes) -> int:
    """The number of a name."""
    found = db.execute("SELECT name_id FROM names WHERE name = ?", (name,)).fetchone()
    if found is None:
        found = db.execute("INSERT INTO names (name) VALUES (?) RETURNING name_id", (name,)).fetchone()
    return int(found[0])


def intern_disks(db: sqlite3.Connection, vm_id: str, names: Sequence[str]) -> Mapping[str, int]:
    """The catalog's numbers of a VM's disks."""
    db.executemany(
        "INSERT OR IGNORE INTO disks (vm_id, name) VALUES (?, ?)", [(vm_id, name) for name in names]
    )
    return dict(db.execute("SELECT name, disk_id FROM disks WHERE vm_id = ?", (vm_id,)).fetchall())
