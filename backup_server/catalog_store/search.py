"""Find files by name over all backups, newest first, and the versions of one path.

Two ways to the same answer: names that a pattern's trigrams select, then their rows; or, where too many
names or rows match, rows from the newest on, until a page is full. Invariants: Q1 a hit's ``at`` is the
newest point in which the row is valid; pages go down by (at, file_id) and repeat nothing.
Callers: any thread.
"""

from __future__ import annotations

import heapq
import re
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import translate
from itertools import groupby, islice
from typing import Any

from arraylift.errors import InvalidRequest, NotFound
from backup_server.catalog.entry import FileEntry
from backup_server.catalog.frames import to_text
from backup_server.catalog_store.rows import CatalogState, StoredBackup, unpack_entry
from backup_server.catalog_store.schema import OPEN
from backup_server.catalog_store.store import ENTRY_COLUMNS, CatalogStore, find_directory, join

PATTERN_CHARACTERS_MAX = 1_024
ROWS_LOOKED_AT_MAX = 20_000
"""Rows that are sorted for a page; beyond, they are read newest first."""
CHUNK = 500
NAMES_MAX = 500_000
"""That are remembered while rows are read newest first: 50 MiB."""

After = tuple[int, int]
_Match = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Hit:
    """A version of a file; ``backup_id`` is the newest that has it."""

    entry: FileEntry
    vm_id: str
    vm_name: str
    volume: str
    backup_id: str
    at_ns: int
    backup_count: int
    after: After
    """Where the next page begins."""


@dataclass(frozen=True, slots=True)
class Version:
    """What a path was in some backups that follow each other, newest first; no entry: it was not there."""

    entry: FileEntry | None
    backups: tuple[StoredBackup, ...]


@dataclass(frozen=True, slots=True)
class Query:
    """``pattern``: part of a name; with * or ? a glob over the name, or over the path if it has a '/'."""

    pattern: str
    vm: str = ""
    backup_id: str = ""
    case_sensitive: bool = False

    def matcher(self) -> tuple[_Match, bool]:
        """What decides on a name, or on a path (then True). Raises InvalidRequest."""
        if not self.pattern or len(self.pattern) > PATTERN_CHARACTERS_MAX or "\0" in self.pattern:
            raise InvalidRequest(f"a pattern has 1 to {PATTERN_CHARACTERS_MAX} characters")
        is_path = "/" in self.pattern
        flags = re.DOTALL | (0 if self.case_sensitive else re.IGNORECASE)
        if "*" in self.pattern or "?" in self.pattern:
            # translate() would take [ ] for a class, which nobody is promised.
            found = re.compile(translate(self.pattern.replace("[", "[[]")), flags).match
        else:
            found = re.compile(re.escape(self.pattern), flags).search
        return (lambda text: found(text) is not None), is_path

    def trigrams(self) -> list[str]:
        """Every three characters that a name must hold, in the order of the pattern."""
        name = self.pattern.rpartition("/")[2]
        parts = re.split(r"[*?]", name)
        return sorted({part[at : at + 3] for part in parts for at in range(len(part) - 2)})


def find(store: CatalogStore, query: Query, *, count: int, after: After | None = None) -> list[Hit]:
    """At most so many hits behind a place. Raises InvalidRequest, NotFound (the backup is not catalogued)."""
    with store.reading() as db:
        db.execute("BEGIN")
        return list(islice(_Search(db, query, after).hits(), count))


def versions(store: CatalogStore, vm_id: str, volume: str, path: str) -> list[Version]:
    """What a path was in each walk of its volume, newest first; like ones that follow each other are one.

    Raises NotFound: no backup has it.
    """
    with store.reading() as db:
        db.execute("BEGIN")
        found = db.execute(
            "SELECT volume_id FROM volumes WHERE vm_id = ? AND name = ?", (vm_id, volume)
        ).fetchone()
        rows = _rows_of_path(db, found[0], path) if found else []
        if not rows:
            raise NotFound(
                f"no backup of the VM has {path} in {volume}", subject=path, next_step="find it by name"
            )
        points = db.execute(
            "SELECT p.at, p.walked, b.backup_id, b.vm_id, b.vm_name, b.at_ns, b.state, b.problem"
            " FROM points p"
            " JOIN backups b USING (backup_id) WHERE p.volume_id = ? AND p.walked > 0 ORDER BY p.at DESC",
            (found[0],),
        ).fetchall()
    states: list[tuple[bytes, FileEntry | None, StoredBackup]] = []
    for at, walked, backup_id, backup_vm, vm_name, at_ns, state, problem in points:
        backup = StoredBackup(backup_id, backup_vm, vm_name, at_ns, CatalogState(state), problem, ())
        row = next((row for row in rows if row[0] == (walked == 2) and row[1] <= at <= row[2]), None)
        if row is not None:
            states.append((row[3], unpack_entry(path, row[4:]), backup))
        elif walked == 2:  # one that broke off does not say that it was not there
            states.append((b"", None, backup))
    return [
        Version(group[0][1], tuple(backup for _, _, backup in group))
        for group in (list(members) for _, members in groupby(states, key=lambda state: state[0]))
    ]


def _rows_of_path(db: sqlite3.Connection, volume_id: int, path: str) -> list[Any]:
    above, _, name = path.rstrip("/").rpartition("/")
    directory = find_directory(db, volume_id, above) if name else 0
    if directory is None:
        return []
    return db.execute(
        f"SELECT f.whole, f.first, f.last, f.digest, {ENTRY_COLUMNS} FROM files f"
        " JOIN names n USING (name_id) WHERE f.volume_id = ? AND f.directory_id = ? AND n.name = ?",
        (volume_id, directory, name.encode("utf-8", "surrogateescape")),
    ).fetchall()


class _Search:
    """One query over one state of the catalog."""

    def __init__(self, db: sqlite3.Connection, query: Query, after: After | None) -> None:
        self._db = db
        self._query = query
        self._after = after or (OPEN, OPEN)
        self._matches, self._is_path = query.matcher()
        self._paths: dict[int, str] = {}
        self._names: set[int] | None = None
        self._volumes = self._chosen()

    def _chosen(self) -> dict[int, tuple[str, str, int | None, int]]:
        """Volume to VM, name, the backup's point (if one is asked for), the newest whole point."""
        where, values = "1", {"vm": self._query.vm, "backup": self._query.backup_id}
        if self._query.backup_id:
            known = self._db.execute("SELECT 1 FROM backups WHERE backup_id = :backup", values).fetchone()
            if known is None:
                raise NotFound(f"backup {self._query.backup_id} is not in the catalog")
            where = "p.backup_id = :backup"
        rows = self._db.execute(
            "SELECT v.volume_id, v.vm_id, v.name, min(p.at),"
            " (SELECT max(at) FROM points w WHERE w.volume_id = v.volume_id AND w.walked = 2)"
            f" FROM volumes v JOIN points p USING (volume_id) WHERE p.walked > 0 AND {where}"
            " AND (:vm = '' OR v.vm_id = :vm) GROUP BY v.volume_id",
            values,
        ).fetchall()
        asked = bool(self._query.backup_id)
        return {row[0]: (row[1], row[2], row[3] if asked else None, row[4] or 0) for row in rows}

    def hits(self) -> Iterator[Hit]:
        found = self._selected()
        for at, file_id in self._newest_first() if found is None else found:
            hit = self._hit(at, file_id)
            if hit is not None:
                yield hit

    def _selected(self) -> list[After] | None:
        """Rows by name, sorted; None: too many to sort, or the pattern is too short to select by."""
        trigrams = self._query.trigrams()
        if not trigrams or not self._volumes:
            return None if self._volumes else []
        words = " AND ".join('"' + word.replace('"', '""') + '"' for word in trigrams)
        rows = self._db.execute("SELECT rowid FROM name_search WHERE name_search MATCH ?", (words,))
        found = [name for (name,) in rows.fetchmany(NAMES_MAX)]
        if len(found) < NAMES_MAX:
            self._names = set(found)
        kept: list[After] = []
        looked = 0
        for start in range(0, len(found), CHUNK):
            chunk = found[start : start + CHUNK]
            for file_id, volume, whole, first, last in self._db.execute(
                "SELECT file_id, volume_id, whole, first, last FROM files WHERE name_id IN"
                f" ({','.join('?' * len(chunk))}) LIMIT {ROWS_LOOKED_AT_MAX + 1}",
                chunk,
            ):
                looked += 1
                at = self._at(volume, whole, first, last)
                if at is not None and (at, file_id) < self._after:
                    kept.append((at, file_id))
            if looked > ROWS_LOOKED_AT_MAX:
                return None
        return sorted(kept, reverse=True)

    def _at(self, volume: int, whole: int, first: int, last: int) -> int | None:
        """The newest point of a row (Q1), unless it is not asked for."""
        if volume not in self._volumes:
            return None
        _, _, point, newest = self._volumes[volume]
        if point is not None and not first <= point <= last:
            return None
        return newest if last == OPEN and whole else last

    def _newest_first(self) -> Iterator[After]:
        streams = [self._rows(volume, whole) for volume in self._volumes for whole in (1, 0)]
        yield from heapq.merge(*streams, reverse=True)

    def _rows(self, volume: int, whole: int) -> Iterator[After]:
        """Rows of a volume, newest first; the open ones come first anyway (V2)."""
        newest = self._volumes[volume][3]
        if whole and (newest, -1) < self._after:
            yield from self._page(volume, whole, OPEN, newest)
        yield from self._page(volume, whole, None, 0)

    def _page(self, volume: int, whole: int, last: int | None, newest: int) -> Iterator[After]:
        at, file_id = self._after
        if last is not None:
            place: After = (OPEN, file_id if at == newest else OPEN)
        else:
            place = min((at, file_id), (OPEN - 1, OPEN))
        low = OPEN if last is not None else 0
        while True:
            rows = self._db.execute(
                "SELECT last, file_id, first, name_id FROM files"
                " WHERE volume_id = ? AND whole = ? AND last >= ?"
                f" AND (last, file_id) < (?, ?) ORDER BY last DESC, file_id DESC LIMIT {CHUNK}",
                (volume, whole, low, *place),
            ).fetchall()
            for ends, number, first, name in rows:
                if self._names is not None and name not in self._names:
                    continue
                found = self._at(volume, whole, first, ends)
                if found is not None:
                    yield found, number
            if len(rows) < CHUNK:
                return
            place = (rows[-1][0], rows[-1][1])

    def _hit(self, at: int, file_id: int) -> Hit | None:
        """The row as a hit, if the pattern matches."""
        volume, directory, whole, first, last, name, *row = self._db.execute(
            f"SELECT f.volume_id, f.directory_id, f.whole, f.first, f.last, n.name, {ENTRY_COLUMNS}"
            " FROM files f JOIN names n USING (name_id) WHERE file_id = ?",
            (file_id,),
        ).fetchone()
        text = to_text(name)
        if not text or (not self._is_path and not self._matches(text)):
            return None
        path = join(self._directory(directory), text)
        if self._is_path and not self._matches(path):
            return None
        vm_id, key, _, _ = self._volumes[volume]
        count, backup_id, vm_name, at_ns = self._db.execute(
            "SELECT count(*) OVER (), p.backup_id, b.vm_name, b.at_ns FROM points p"
            " JOIN backups b USING (backup_id)"
            " WHERE p.volume_id = ? AND p.at BETWEEN ? AND ? AND p.walked = ? ORDER BY p.at DESC LIMIT 1",
            (volume, first, last, 2 if whole else 1),
        ).fetchone()
        return Hit(
            unpack_entry(path, row), vm_id, vm_name, key, backup_id, at_ns, count, (at, file_id)
        )  # fmt: skip

    def _directory(self, number: int) -> str:
        if number not in self._paths:
            parts: list[str] = []
            at = number
            while at:
                at, name = self._db.execute(
                    "SELECT parent_id, name FROM directories JOIN names USING (name_id)"
                    " WHERE directory_id = ?",
                    (at,),
                ).fetchone()
                parts.append(to_text(name))
            self._paths[number] = "/".join(reversed(parts)) or "/"
        return self._paths[number]
