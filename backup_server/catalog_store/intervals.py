"""Which row of a file is valid in which backup: intervals over the whole walks of a volume, by time.

A *point* is a walk of a volume of one VM, at the instant of the backup's snapshot. Invariants:
  V1 a row with ``whole`` is valid in the whole points from ``first`` to ``last``, both of which are such
     points, and in no other; at each whole point a path has at most one.
  V2 ``last`` is OPEN if and only if the row is valid in the newest whole point.
  V3 a walk that broke off has rows of its own (``whole`` 0, ``first`` = ``last`` = the point): true of what
     it reached, without a word on the rest. It neither ends nor lengthens a row of a whole walk.
  V4 points come and go in any order; adding one and removing it again changes no answer on another.
Callers: store, inside the writer's transaction. Pure SQL over the tables of ``schema``.
"""

from __future__ import annotations

import sqlite3

from backup_server.catalog_store.schema import FILE_COLUMNS, OPEN

WHOLE, BROKEN = 2, 1
"""``points.walked``; 0: not walked."""

_COLUMNS = ", ".join(FILE_COLUMNS)
_SAME = "s.directory_id = files.directory_id AND s.name_id = files.name_id AND s.digest = files.digest"
_INSERT = (
    f"INSERT INTO files (volume_id, directory_id, name_id, whole, first, last, {_COLUMNS})"
    f" SELECT ?1, directory_id, name_id, ?2, ?3, ?4, {_COLUMNS} FROM seen"
)


def add_broken(db: sqlite3.Connection, volume: int, at: int) -> None:
    """Take what ``seen`` holds as a walk that broke off (V3)."""
    db.execute(_INSERT, (volume, 0, at, at))


def add_whole(db: sqlite3.Connection, volume: int, at: int) -> None:
    """Take what ``seen`` holds as the whole volume at an instant that is not yet a point."""
    before, after = neighbours(db, volume, at)
    if after is None:
        _append(db, volume, at, before)
    else:
        _insert(db, volume, at, before, after)


def remove(db: sqlite3.Connection, volume: int, at: int, *, whole: bool) -> None:
    """Forget a point's share of the rows; its own row in ``points`` is the caller's."""
    if not whole:
        db.execute("DELETE FROM files WHERE volume_id = ? AND whole = 0 AND last = ?", (volume, at))
        return
    before, after = neighbours(db, volume, at)
    db.execute(
        "DELETE FROM files WHERE volume_id = ?1 AND whole = 1 AND first = ?2 AND (last = ?2 OR last = ?3)",
        (volume, at, at if after is not None else OPEN),
    )
    if after is not None:
        db.execute(
            "UPDATE files SET first = ?3 WHERE volume_id = ?1 AND whole = 1 AND first = ?2",
            (volume, at, after),
        )
    if before is not None:
        ends = at if after is not None else before  # V2: the one before is the newest now
        db.execute(
            "UPDATE files SET last = ?3 WHERE volume_id = ?1 AND whole = 1 AND last = ?2",
            (volume, ends, before if after is not None else OPEN),
        )


def neighbours(db: sqlite3.Connection, volume: int, at: int) -> tuple[int | None, int | None]:
    """The nearest whole points before and after."""
    found = db.execute(
        "SELECT max(at) FILTER (WHERE at < ?2), min(at) FILTER (WHERE at > ?2) FROM points"
        " WHERE volume_id = ?1 AND walked = ?3",
        (volume, at, WHOLE),
    ).fetchone()
    return found[0], found[1]


def _append(db: sqlite3.Connection, volume: int, at: int, before: int | None) -> None:
    if before is not None:
        db.execute(
            "UPDATE files SET last = ?2 WHERE volume_id = ?1 AND whole = 1 AND last = ?3"
            f" AND NOT EXISTS (SELECT 1 FROM seen s WHERE {_SAME})",
            (volume, before, OPEN),
        )
        _forget_seen(db, volume, "files.last = ?2", OPEN)
    db.execute(_INSERT, (volume, 1, at, OPEN))


def _insert(db: sqlite3.Connection, volume: int, at: int, before: int | None, after: int) -> None:
    if before is not None:
        spans = "volume_id = ?1 AND whole = 1 AND first <= ?2 AND last >= ?3"
        # What spans the instant and is not there then becomes two rows.
        db.execute(
            f"INSERT INTO files (volume_id, directory_id, name_id, whole, first, last, {_COLUMNS})"
            f" SELECT volume_id, directory_id, name_id, 1, ?3, last, {_COLUMNS} FROM files WHERE {spans}"
            f" AND NOT EXISTS (SELECT 1 FROM seen s WHERE {_SAME})",
            (volume, before, after),
        )
        db.execute(
            f"UPDATE files SET last = ?2 WHERE {spans} AND first <> ?3"
            f" AND NOT EXISTS (SELECT 1 FROM seen s WHERE {_SAME})",
            (volume, before, after),
        )
        _forget_seen(db, volume, "files.first <= ?2 AND files.last >= ?3", before, after)
        # What ended just before, or begins just after, and is there too, is lengthened.
        db.execute(
            "UPDATE files SET last = ?2 WHERE volume_id = ?1 AND whole = 1 AND last = ?3"
            f" AND EXISTS (SELECT 1 FROM seen s WHERE {_SAME})",
            (volume, at, before),
        )
        _forget_seen(db, volume, "files.last = ?2", at)
    db.execute(
        "UPDATE files SET first = ?2 WHERE volume_id = ?1 AND whole = 1 AND first = ?3"
        f" AND EXISTS (SELECT 1 FROM seen s WHERE {_SAME})",
        (volume, at, after),
    )
    _forget_seen(db, volume, "files.first = ?2", at)
    db.execute(_INSERT, (volume, 1, at, at))


def _forget_seen(db: sqlite3.Connection, volume: int, where: str, *values: int) -> None:
    """Leave in ``seen`` only what no such row says already."""
    db.execute(
        "DELETE FROM seen WHERE EXISTS (SELECT 1 FROM files WHERE files.volume_id = ?1"
        " AND files.directory_id = seen.directory_id AND files.name_id = seen.name_id AND files.whole = 1"
        f" AND {where} AND files.digest = seen.digest)",
        (volume, *values),
    )
