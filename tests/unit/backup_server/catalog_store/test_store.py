"""The catalog's store: its file, what it says of volumes and directories, search, versions."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from arraylift.durable import RealFiles
from arraylift.errors import InvalidRequest, NotFound
from backup_server.catalog.batch import Unread
from backup_server.catalog.entry import Volume
from backup_server.catalog_store import search
from backup_server.catalog_store.rows import CatalogState, StoredBackup
from backup_server.catalog_store.search import Query
from backup_server.catalog_store.store import CatalogStore
from tests.unit.backup_server.catalog_store.walks import Tree, batch_of

GOLDEN = Path(__file__).parents[3] / "golden" / "catalog-db-v1.sql"
TABLES = ("backups", "volumes", "disks", "points", "names", "directories", "files")
KEY = "disk0"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CatalogStore]:
    found = CatalogStore(RealFiles(), f"{tmp_path}/catalog.db")
    yield found
    found.close()


def fill(
    store: CatalogStore, number: int, tree: Tree, *, vm: str = "vm", disks: tuple[str, ...] = (KEY,),
    unread: bool = False,
) -> StoredBackup:  # fmt: skip
    backup = StoredBackup(f"backup{number}", vm, f"{vm}-name", number * 10, CatalogState.DONE, "", disks)
    store.begin(backup, [Volume(KEY, "ext4", "root", "1-2", 1 << 20, readable=True, remark="old")])
    list(store.add_walk(backup, KEY, [batch_of(tree), *[Unread(0, "torn")] * unread]))
    store.finish(backup)
    return backup


def dump(path: str) -> str:
    with closing(sqlite3.connect(path)) as db:
        lines = []
        for table in TABLES:
            for row in db.execute(f"SELECT * FROM {table} ORDER BY 1, 2"):
                values = [
                    f"x'{value.hex()}'"
                    if isinstance(value, bytes)
                    else "NULL"
                    if value is None
                    else repr(value)
                    for value in row
                ]
                lines.append(f"INSERT INTO {table} VALUES ({', '.join(values)});\n")
    return "".join(lines)


def test_the_file_is_as_the_format_page_says(store: CatalogStore, tmp_path: Path) -> None:
    fill(store, 1, {"/etc/hosts": 8, "/etc/old": 1})
    fill(store, 3, {"/etc/hosts": 9})
    fill(store, 2, {"/etc/hosts": 8, "/etc/old": 1})
    fill(store, 4, {"/etc/new": 1}, unread=True)
    assert dump(store.path) == GOLDEN.read_text()

    again = CatalogStore(RealFiles(), f"{tmp_path}/again.db")
    with closing(sqlite3.connect(again.path)) as db:
        db.executescript(GOLDEN.read_text())
    for number in (1, 2, 3, 4):
        assert [*again.files(f"backup{number}", KEY)] == [*store.files(f"backup{number}", KEY)] != []
    again.close()


@pytest.mark.parametrize("damage", [b"no database", b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_damaged_catalog_is_begun_anew(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "catalog.db"
    path.write_bytes(damage)
    store = CatalogStore(RealFiles(), str(path))
    assert store.states() == {}
    fill(store, 1, {"/a": 1})
    store.close()
    with closing(CatalogStore(RealFiles(), str(path))) as again:
        assert again.states() == {"backup1": CatalogState.DONE}
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version=77")
    with closing(CatalogStore(RealFiles(), str(path))) as anew:
        assert anew.states() == {}


def test_a_directory_that_could_not_be_read_makes_a_walk_broken(store: CatalogStore) -> None:
    fill(store, 1, {"/a": 1, "/b": 1})
    fill(store, 2, {"/a": 1}, unread=True)
    fill(store, 3, {"/a": 1, "/b": 1})
    (volume,) = store.volumes("backup2")
    assert (volume.whole, volume.walked, volume.remark) == (
        False, True, "old; a directory could not be read: torn (1 such)",
    )  # fmt: skip
    (version,) = search.versions(store, "vm", KEY, "/b")
    assert [backup.backup_id for backup in version.backups] == ["backup3", "backup1"]


def test_disks_are_numbered_as_each_backup_lists_them(store: CatalogStore) -> None:
    fill(store, 1, {"/a": 1})
    other = StoredBackup("other", "vm", "vm", 50, CatalogState.DONE, "", ("disk1", KEY))
    store.begin(other, [Volume(KEY, "ext4", "", "", 1 << 20, readable=True)])
    batch = batch_of({"/a": 1})
    batch.pieces["disk"] = 1
    list(store.add_walk(other, KEY, [batch]))
    first, second = ([*store.files(one, KEY)][1] for one in ("backup1", "other"))
    assert first.file_id == second.file_id
    assert (first.pieces[0].disk, second.pieces[0].disk) == (0, 1)


def test_directories_are_listed_as_they_were(store: CatalogStore) -> None:
    fill(store, 1, {"/d/a": 1, "/d/e/f": 2})
    fill(store, 2, {"/g": 1})
    assert [one.entry.path for one in store.list_directory("backup1", KEY, "/d")] == ["/d/a", "/d/e"]
    assert [one.entry.path for one in store.list_directory("backup2", KEY, "/")] == ["/g"]
    assert [one.entry.path for one in store.files("backup1", KEY, "/d/e")] == ["/d/e/f"]
    for path in ("/d", "/none"):
        with pytest.raises(NotFound):
            store.list_directory("backup2", KEY, path)
    with pytest.raises(NotFound):
        store.list_directory("backup9", KEY, "/")


def found(store: CatalogStore, pattern: str, **choice: str | bool) -> list[tuple[str, str, str, int]]:
    query = Query(pattern, **choice)  # type: ignore[arg-type]
    pages, after = [], None
    while hits := search.find(store, query, count=2, after=after):
        pages += hits
        after = hits[-1].after
    return [(hit.vm_id, hit.entry.path, hit.backup_id, hit.backup_count) for hit in pages]


@pytest.mark.parametrize("sorted_rows", [0, search.ROWS_LOOKED_AT_MAX])
def test_files_are_found_newest_first(
    store: CatalogStore, monkeypatch: pytest.MonkeyPatch, sorted_rows: int
) -> None:
    monkeypatch.setattr(search, "ROWS_LOOKED_AT_MAX", sorted_rows)  # both ways give one answer
    fill(store, 1, {"/etc/hosts": 1, "/etc/Hosts.old": 1, "/x[1]": 1})
    fill(store, 2, {"/etc/hosts": 1, "/etc/ghosts": 1})
    fill(store, 3, {"/etc/hosts": 2}, vm="other")
    fill(store, 5, {"/etc/hosts": 3}, unread=True)
    assert found(store, "hosts") == [
        ("vm", "/etc/hosts", "backup5", 1),
        ("other", "/etc/hosts", "backup3", 1),
        ("vm", "/etc/ghosts", "backup2", 1),
        ("vm", "/etc/hosts", "backup2", 2),
        ("vm", "/etc/Hosts.old", "backup1", 1),
    ]
    assert len(found(store, "hosts", case_sensitive=True)) == 4
    assert [hit[1] for hit in found(store, "*.old")] == ["/etc/Hosts.old"]
    assert [hit[1] for hit in found(store, "/etc/g*")] == ["/etc/ghosts"]
    assert [hit[1] for hit in found(store, "x[?]")] == ["/x[1]"]
    assert [hit[0] for hit in found(store, "ho", vm="other")] == ["other"]
    assert [hit[1] for hit in found(store, "hosts", backup_id="backup1")].count("/etc/ghosts") == 0
    assert found(store, "none at all") == []
    with pytest.raises(InvalidRequest):
        found(store, "")
    with pytest.raises(NotFound):
        found(store, "a", backup_id="backup9")


def test_versions_of_a_path_are_joined_and_say_when_it_was_absent(store: CatalogStore) -> None:
    for number, tree in enumerate([{"/a": 1}, {"/a": 2}, {"/a": 1}, {}, {"/a": 1}], 1):
        fill(store, number, tree)
    store.forget("backup2")
    versions = search.versions(store, "vm", KEY, "/a")
    assert [
        (one.entry and one.entry.modified_at_ns, [backup.backup_id for backup in one.backups])
        for one in versions
    ] == [(1, ["backup5"]), (None, ["backup4"]), (1, ["backup3", "backup1"])]
    with pytest.raises(NotFound):
        search.versions(store, "vm", KEY, "/b")


def test_paths_may_be_as_deep_as_they_can(store: CatalogStore) -> None:
    path = "/" + "/".join("d" * 1 for _ in range(1_500)) + "/needle"
    fill(store, 1, {path: 1})
    assert [hit[1] for hit in found(store, "needle")] == [path]
