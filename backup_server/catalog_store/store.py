"""The catalog of files: what was found in which backup. One writer, any number of readers.

Owns: ``catalog.db``. Invariants: V1-V4 (``intervals``), K1 (``schema``), K2 and K3 (``walk_writer``).
  K4 what is forgotten of a backup is forgotten at once, in one transaction.
Callers: any thread; writers wait for each other, readers for nobody.
Format: docs/formats/catalog-db-v1.md
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence

from arraylift.durable import Files
from arraylift.errors import ArrayliftError, NotFound, PeerUnavailable
from backup_server.catalog.batch import Batch, Unread
from backup_server.catalog.entry import Volume
from backup_server.catalog.frames import to_text
from backup_server.catalog_store import intervals, schema
from backup_server.catalog_store.rows import (
    CatalogState,
    StoredBackup,
    StoredFile,
    StoredVolume,
    unpack_entry,
    unpack_pieces,
)
from backup_server.catalog_store.walk_writer import WalkWriter, intern_disks

ROWS_AT_ONCE = 1_000

ENTRY_COLUMNS = ", ".join(
    f"f.{name}" for name in schema.FILE_COLUMNS if name not in {"child", "digest", "pieces"}
)
VALID = "f.whole = :whole AND f.first <= :at AND f.last >= :at"


class CatalogStore:
    """One open catalog."""

    def __init__(self, files: Files, path: str) -> None:
        """Open or begin it. Raises WrongState, OutOfSpace, StoreFailed."""
        self._files = files
        self.path = path
        self._lock = threading.RLock()
        self._opening = threading.Lock()
        self._db = schema.open_writer(files, path)

    def close(self) -> None:
        """Twice is fine."""
        with self._lock:
            self._db.close()

    # -- what is written --------------------------------------------------------------------

    def begin(self, backup: StoredBackup, volumes: Sequence[Volume]) -> None:
        """Note a backup and what its survey found; what was known of it is forgotten (K4)."""
        with self._change() as db:
            self._forget(db, backup.backup_id)
            _save_backup(db, backup)
            for position, volume in enumerate(volumes):
                at, volume_id = _new_point(db, backup, volume.key)
                db.execute(
                    "INSERT INTO points (volume_id, at, backup_id, position, walked, kind, label, uuid, size,"
                    " readable, remark, file_count) VALUES (?, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?, 0)",
                    (
                        volume_id, at, backup.backup_id, position, volume.kind, volume.label, volume.uuid,
                        volume.size_bytes, volume.readable, volume.remark,
                    ),
                )  # fmt: skip

    def add_walk(
        self, backup: StoredBackup, volume: str, walk: Iterable[Volume | Batch | Unread]
    ) -> Generator[int, None, None]:
        """Take a walk of one of the volumes that ``begin`` noted; yields the count of files so far.

        One that ends with an error of ours but PeerUnavailable, or could not read a directory, counts as
        broken off (V3), and is kept; the error is then noted with the volume, and raised by nobody. Any
        other end leaves it out.
        """
        with self._change() as db:
            volume_id, at = db.execute(
                "SELECT p.volume_id, p.at FROM points p JOIN volumes USING (volume_id)"
                " WHERE p.backup_id = ? AND name = ? AND walked = 0",
                (backup.backup_id, volume),
            ).fetchone()
            numbers = intern_disks(db, backup.vm_id, backup.disks)
            writer = WalkWriter(db, volume_id, [numbers[name] for name in backup.disks])
            flaws: list[str] = []
            try:
                for part in walk:
                    if isinstance(part, Batch):
                        writer.add(part)
                        yield writer.count
                    elif isinstance(part, Unread):
                        flaws.append(f"a directory could not be read: {part.why}")
            except PeerUnavailable:  # it says nothing of the volume
                raise
            except ArrayliftError as error:
                if isinstance(error.__cause__, sqlite3.Error):
                    raise
                flaws.append(str(error))
            writer.finish()
            if flaws:
                intervals.add_broken(db, volume_id, at)
            else:
                intervals.add_whole(db, volume_id, at)
            db.execute(
                "UPDATE points SET walked = ?3, file_count = ?4, remark = trim(remark || ?5, '; ')"
                " WHERE volume_id = ?1 AND at = ?2",
                (
                    volume_id, at, intervals.BROKEN if flaws else intervals.WHOLE, writer.count,
                    f"; {flaws[0]} ({len(flaws)} such)" if flaws else "",
                ),
            )  # fmt: skip
            db.execute("DELETE FROM seen")

    def finish(self, backup: StoredBackup) -> None:
        """Note what became of a backup: its state and problem; the rest stays."""
        with self._change() as db:
            _save_backup(db, backup)

    def forget(self, backup_id: str) -> None:
        """Nobody has the backup any more (K4). Idempotent."""
        with self._change() as db:
            self._forget(db, backup_id)

    def _forget(self, db: sqlite3.Connection, backup_id: str) -> None:
        points = db.execute(
            "SELECT volume_id, at, walked FROM points WHERE backup_id = ?", (backup_id,)
        ).fetchall()
        for volume_id, at, walked in points:
            if walked:
                intervals.remove(db, volume_id, at, whole=walked == intervals.WHOLE)
            db.execute("DELETE FROM points WHERE volume_id = ? AND at = ?", (volume_id, at))
        db.execute("DELETE FROM backups WHERE backup_id = ?", (backup_id,))

    # -- what is asked ----------------------------------------------------------------------

    def states(self) -> dict[str, CatalogState]:
        """Every backup that is known, by id."""
        with self.reading() as db:
            return {
                key: CatalogState(state) for key, state in db.execute("SELECT backup_id, state FROM backups")
            }

    def knows(self, backup_id: str) -> bool:
        """Whether nothing is left to do for a backup."""
        with self.reading() as db:
            row = db.execute("SELECT state FROM backups WHERE backup_id = ?", (backup_id,)).fetchone()
        return row is not None and row[0] != CatalogState.WAITING

    def knows_whole(self, backup_id: str) -> bool:
        """Whether parsing it again could tell nothing more."""
        try:
            done = self.backup(backup_id).state is CatalogState.DONE
        except NotFound:
            return False
        return done and all(volume.whole or not volume.readable for volume in self.volumes(backup_id))

    def vm_id(self, vm: str) -> str:
        """The id of a VM by its name or id; of several, that with the newest backup. Raises NotFound."""
        with self.reading() as db:
            row = db.execute(
                "SELECT vm_id FROM backups WHERE vm_id = ?1 OR vm_name = ?1 ORDER BY at_ns DESC LIMIT 1",
                (vm,),
            ).fetchone()
        if row is None:
            raise NotFound(
                f"the catalog has no backup of a VM {vm!r}", subject=f"VM {vm}", next_step="list the backups"
            )
        return str(row[0])

    def backup(self, backup_id: str) -> StoredBackup:
        """Raises NotFound: nothing is known of it."""
        with self.reading() as db:
            return stored_backup(db, backup_id)

    def volumes(self, backup_id: str) -> list[StoredVolume]:
        """As the survey gave them; none if the backup is not known."""
        with self.reading() as db:
            rows = db.execute(
                "SELECT name, kind, label, uuid, size, readable, remark, file_count, walked FROM points"
                " JOIN volumes USING (volume_id) WHERE backup_id = ? ORDER BY position",
                (backup_id,),
            ).fetchall()
        return [
            StoredVolume(
                name,
                kind,
                label,
                uuid,
                size,
                bool(readable),
                remark,
                count,
                walked > 0,
                walked == intervals.WHOLE,
            )
            for name, kind, label, uuid, size, readable, remark, count, walked in rows
        ]

    def list_directory(self, backup_id: str, volume: str, path: str) -> list[StoredFile]:
        """What a directory holds, by the bytes of names. Raises NotFound (also: it was not walked)."""
        with self.reading() as db:
            point = Point.of(db, backup_id, volume)
            directory = find_directory(db, point.volume_id, path)
            known = (
                directory is not None
                and db.execute(
                    "SELECT 1 FROM files f WHERE f.volume_id = :volume AND f.child = :child"
                    f" AND {VALID} LIMIT 1",
                    {**point.values, "child": directory},
                ).fetchone()
            )
            if not known:
                raise NotFound(f"there is no directory {path}", subject=path)
            assert directory is not None
            return list(point.files_in(db, directory, "/" + path.strip("/")))

    def files(
        self, backup_id: str, volume: str, directory: str = "/", *, by_inode: bool = False
    ) -> Iterator[StoredFile]:
        """All files of a volume in one backup, with their pieces: directories by their path's bytes, in
        each the names by their bytes (the root, as '/', is first); or all by inode.

        ``directory``: only what lies below it, and not by inode. Memory: the volume's directories. Raises
        NotFound: not catalogued.
        """
        with self.reading() as db:
            db.execute("BEGIN")
            point = Point.of(db, backup_id, volume)
            paths = directory_paths(db, point.volume_id)
            if by_inode:
                yield from point.all_files(db, paths)
                return
            top = "/" + directory.strip("/")
            if top == "/":
                yield from point.files_in(db, 0, "/")
            below = top.rstrip("/") + "/"
            order = sorted(
                (key, number) for number, key in paths.items()
                if to_text(key) == top or to_text(key).startswith(below)
            )  # fmt: skip
            for key, number in order:
                yield from point.files_in(db, number, to_text(key))

    # -- connections ------------------------------------------------------------------------

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection for reading, which is closed afterwards."""
        with schema.mapped(self.path):
            with self._opening:
                db = schema.open_reader(self.path)
            with contextlib.closing(db):
                yield db

    def begin_anew(self) -> None:
        """Take the file away, which is damaged, and begin another (K1)."""
        with self._lock, self._opening:
            self._db.close()
            schema.remove(self._files, self.path)
            self._db = schema.open_writer(self._files, self.path)

    def become(self, path: str) -> None:
        """Take the place of this catalog's file by another that is whole and closed."""
        with self._lock, self._opening:
            self._db.close()
            schema.remove(self._files, self.path)
            self._files.move(path, self.path, label="catalog_replaced")
            self._db = schema.open_writer(self._files, self.path)

    @contextlib.contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        with self._lock, schema.mapped(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise


class Point:
    """A walked volume of a backup: what its rows are asked with."""

    def __init__(self, volume_id: int, at: int, walked: int, places: dict[int, int]) -> None:
        self.volume_id = volume_id
        self.values = {"volume": volume_id, "at": at, "whole": int(walked == intervals.WHOLE)}
        self._places = places

    @classmethod
    def of(cls, db: sqlite3.Connection, backup_id: str, volume: str) -> Point:
        """Raises NotFound: not catalogued."""
        backup = stored_backup(db, backup_id)
        row = db.execute(
            "SELECT p.volume_id, p.at, p.walked FROM points p JOIN volumes USING (volume_id)"
            " WHERE p.backup_id = ? AND name = ? AND walked > 0",
            (backup_id, volume),
        ).fetchone()
        if row is None:
            raise NotFound(
                f"the catalog has no files of volume {volume!r} of backup {backup_id}",
                subject=f"backup {backup_id}",
                next_step="see `arraylift files volumes`; catalogue it by `arraylift backups catalog`",
            )
        ids = db.execute("SELECT disk_id, name FROM disks WHERE vm_id = ?", (backup.vm_id,)).fetchall()
        places = {number: backup.disks.index(name) for number, name in ids if name in backup.disks}
        return cls(row[0], row[1], row[2], places)

    def files_in(self, db: sqlite3.Connection, directory_id: int, path: str) -> Iterator[StoredFile]:
        """What one directory holds; of directory 0: the root itself."""
        rows = db.execute(
            f"SELECT f.file_id, n.name, f.pieces, f.digest, {ENTRY_COLUMNS} FROM files f"
            " JOIN names n USING (name_id) WHERE f.volume_id = :volume AND f.directory_id = :directory"
            f" AND {VALID} ORDER BY n.name",
            {**self.values, "directory": directory_id},
        )
        for file_id, name, pieces, digest, *row in rows:
            yield self._file(file_id, join(path, to_text(name)), row, pieces, digest)

    def all_files(self, db: sqlite3.Connection, paths: dict[int, bytes]) -> Iterator[StoredFile]:
        """Every one, by inode."""
        rows = db.execute(
            f"SELECT f.file_id, f.directory_id, n.name, f.pieces, f.digest, {ENTRY_COLUMNS} FROM files f"
            f" JOIN names n USING (name_id) WHERE f.volume_id = :volume AND {VALID}"
            " ORDER BY f.inode, f.directory_id, f.name_id",
            self.values,
        )
        for file_id, directory, name, pieces, digest, *row in rows:
            path = join(to_text(paths.get(directory, b"/")), to_text(name))
            yield self._file(file_id, path, row, pieces, digest)

    def _file(
        self, file_id: int, path: str, row: Sequence[object], pieces: bytes | None, digest: bytes
    ) -> StoredFile:
        return StoredFile(file_id, unpack_entry(path, row), unpack_pieces(pieces, self._places), digest)


def join(directory: str, name: str) -> str:
    """A path; the root's own name is empty."""
    return directory.rstrip("/") + "/" + name


def stored_backup(db: sqlite3.Connection, backup_id: str) -> StoredBackup:
    """Raises NotFound."""
    row = db.execute(
        "SELECT backup_id, vm_id, vm_name, at_ns, state, problem, disks FROM backups WHERE backup_id = ?",
        (backup_id,),
    ).fetchone()
    if row is None:
        raise NotFound(
            f"backup {backup_id} is not in the catalog",
            subject=f"backup {backup_id}",
            next_step="catalogue it: arraylift backups catalog",
        )
    known_id, vm_id, vm_name, at_ns, state, problem, disks = row
    names = tuple(json.loads(disks))
    return StoredBackup(known_id, vm_id, vm_name, at_ns, CatalogState(state), problem, names)


def find_directory(db: sqlite3.Connection, volume_id: int, path: str) -> int | None:
    """The number of a directory that some walk met."""
    number = 0
    for part in ["", *(part for part in path.split("/") if part)]:
        row = db.execute(
            "SELECT directory_id FROM directories JOIN names USING (name_id)"
            " WHERE volume_id = ? AND parent_id = ? AND name = ?",
            (volume_id, number, part.encode("utf-8", "surrogateescape")),
        ).fetchone()
        if row is None:
            return None
        number = int(row[0])
    return number


def directory_paths(db: sqlite3.Connection, volume_id: int) -> dict[int, bytes]:
    """The paths of all directories of a volume, of any backup; a parent's number is below its children's."""
    paths: dict[int, bytes] = {}
    rows = db.execute(
        "SELECT directory_id, parent_id, name FROM directories JOIN names USING (name_id)"
        " WHERE volume_id = ? ORDER BY directory_id",
        (volume_id,),
    )
    for number, parent, name in rows:
        paths[number] = paths[parent].rstrip(b"/") + b"/" + name if parent else b"/" + name
    return paths


def _save_backup(db: sqlite3.Connection, backup: StoredBackup) -> None:
    db.execute(
        "INSERT OR REPLACE INTO backups (backup_id, vm_id, vm_name, at_ns, state, problem, disks)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            backup.backup_id, backup.vm_id, backup.vm_name, backup.at_ns, backup.state, backup.problem,
            json.dumps(backup.disks),
        ),
    )  # fmt: skip


def _new_point(db: sqlite3.Connection, backup: StoredBackup, volume: str) -> tuple[int, int]:
    """An instant that no other point of the volume has, and the volume's number."""
    db.execute("INSERT OR IGNORE INTO volumes (vm_id, name) VALUES (?, ?)", (backup.vm_id, volume))
    volume_id = db.execute(
        "SELECT volume_id FROM volumes WHERE vm_id = ? AND name = ?", (backup.vm_id, volume)
    ).fetchone()[0]
    at = backup.at_ns
    while db.execute("SELECT 1 FROM points WHERE volume_id = ? AND at = ?", (volume_id, at)).fetchone():
        at += 1
    return at, volume_id
