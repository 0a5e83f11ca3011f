"""The database: what is kept, what is refused, what a failing disk does, version 1 for ever."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from arraylift.durable import RealFiles
from arraylift.errors import AlreadyExists, Corruption, NotFound, OutOfSpace, StoreFailed, WrongState
from arraylift.ids import MigrationId, VmSnapshotId
from arraylift.vm.types import PowerState
from tests.unit.vcenter.material import FIRST_REVISION, Center, config, make_vm, report, vm_id_of
from vcenter import inventory_store
from vcenter.inventory_store import (
    NUMBER_MAX,
    SNAPSHOTS_MAX,
    InventoryStore,
    Placement,
)
from vcenter.migration import Migration, Phase
from vcenter.record import Past

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
ONE = vm_id_of(1)
MIGRATION = Migration(
    MigrationId("c" * 32),
    ONE,
    "vm1",
    "h1",
    "h2",
    live=True,
    revision=3,
    memory_bytes=1 << 30,
    began_at_ns=1_700_000_100_000_000_000,
    phase=Phase.HAND_OVER,
    address="127.0.0.1:49152",
    firmware_variables=b"\0packed",
)


@pytest.fixture
def center(tmp_path: Path) -> Iterator[Center]:
    center = Center(tmp_path / "state")
    yield center
    center.store.close()


def fill(center: Center) -> None:
    """What the golden file holds."""
    center.add_hosts("h1", "h2")
    center.live.report(report("h1", 1, make_vm(1, power=PowerState.ON), make_vm(2)))
    center.live.report(report("h2", 1, make_vm(1, "h2")))
    center.live.report(report("h1", 2, make_vm(1, power=PowerState.ON), make_vm(2, name="db", revision=2)))
    center.store.note_placement(Placement(vm_id_of(9), "h1", 1 << 30))
    center.store.note_snapshot(VmSnapshotId("5" * 32), ONE, "h1")
    center.store.note_migration(MIGRATION)


def dump(path: Path) -> str:
    """The database as text, with its marks; SQLite's own bookkeeping differs between versions."""
    with sqlite3.connect(path) as db:
        marks = [
            f"PRAGMA {name}={db.execute(f'PRAGMA {name}').fetchone()[0]};"
            for name in ("application_id", "user_version")
        ]
        lines = [*marks, *db.iterdump()]
    db.close()
    return "\n".join(lines) + "\n"


def test_a_reopened_store_has_the_same_inventory(center: Center) -> None:
    fill(center)
    before = center.live.now
    center.reopen()
    assert center.live.now == before
    assert center.live.now.revision > FIRST_REVISION


def test_a_new_store_begins_at_the_revision_given(center: Center) -> None:
    assert center.live.now.revision == FIRST_REVISION


def test_one_process_at_a_time(center: Center) -> None:
    with pytest.raises(WrongState, match=r"(?i)lock|use|held|owner"):
        InventoryStore(RealFiles(), str(center.directory), first_revision=1)


def past_of(center: Center, number: int = 1) -> list[Past]:
    """The newest first."""
    return [entry.past for entry in center.store.history(vm_id_of(number))]


def test_history_is_kept_in_order_and_bounded(center: Center, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory_store, "HISTORY_PER_VM_MAX", 32)
    center.add_hosts("h1")
    for sequence in range(1, 38):
        center.clock.seconds += 1
        vm = make_vm(1, name=f"name{sequence}", revision=sequence)
        center.live.report(report("h1", sequence, vm, make_vm(2)))
    past = center.live.history(ONE, before=NUMBER_MAX, count=100)
    names = [one.past.config.name for one in past]
    assert names == [f"name{sequence}" for sequence in range(37, 5, -1)]
    assert [one.noted_at_ns for one in past] == sorted({one.noted_at_ns for one in past}, reverse=True)
    assert len(past_of(center, 2)) == 1
    assert center.live.history(ONE, before=past[9].number, count=3) == past[10:13]
    assert center.live.history(ONE, before=1, count=3) == []
    with pytest.raises(NotFound):
        center.live.history(vm_id_of(77), before=NUMBER_MAX, count=3)


def test_history_says_which_host_a_vm_was_on_and_when_none_had_it(center: Center) -> None:
    center.add_hosts("h1", "h2")
    vm = make_vm(1)
    center.live.report(report("h1", 1, vm))
    center.live.report(report("h2", 1, make_vm(1, "h2", power=PowerState.ON)))
    center.live.report(report("h1", 2))
    center.live.report(report("h2", 2))
    center.live.report(report("h1", 3, vm))
    center.live.mark_silent()
    center.reopen()
    center.live.report(report("h1", 4, vm))
    assert [(one.host, one.removed) for one in reversed(past_of(center))] == [
        ("h1", False),
        ("h2", False),
        ("h2", True),
        ("h1", False),
    ]
    center.live.remove_host("h1")
    assert past_of(center)[0] == Past("h1", vm.config, removed=True)


def test_all_histories_together_are_bounded(center: Center, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory_store, "HISTORY_MAX", 10)
    center.add_hosts("h1")
    center.live.report(report("h1", 1, *map(make_vm, range(1, 31))))
    kept = [number for number in range(1, 31) if center.store.history(vm_id_of(number))]
    assert kept == list(range(21, 31))


def test_snapshots_are_remembered_and_bounded(center: Center, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory_store, "SNAPSHOTS_MAX", 3)
    ids = [VmSnapshotId(f"{number:032x}") for number in range(5)]
    for one in ids:
        center.store.note_snapshot(one, ONE, "h1")
    assert [center.store.snapshot_host(one) for one in ids] == [None, None, "h1", "h1", "h1"]
    center.store.forget_snapshot(ids[4])
    assert center.store.snapshot_host(ids[4]) is None
    assert SNAPSHOTS_MAX > 1_000


def test_removing_a_host_removes_what_is_noted_of_it(center: Center) -> None:
    fill(center)
    center.live.remove_host("h1")
    center.reopen()
    assert set(center.live.now.hosts) == {"h2"}
    assert center.store.placements() == []
    assert center.store.snapshot_host(VmSnapshotId("5" * 32)) is None


@pytest.mark.parametrize("point", ["inventory.commit.before", "inventory.commit.after"])
def test_a_failing_commit_poisons_and_leaves_old_or_new(center: Center, point: str) -> None:
    center.add_hosts("h1")
    old = center.live.now
    center.failpoints.arm(f"{point}=eio")
    with pytest.raises(StoreFailed):
        center.live.report(report("h1", 1, make_vm(1)))
    assert center.live.now is old  # nobody sees what was not acknowledged
    with pytest.raises(StoreFailed, match="takes no changes"):
        center.live.report(report("h1", 1, make_vm(1)))
    center.failpoints.arm("")
    center.reopen()
    assert set(center.live.now.shown) == ({ONE} if point.endswith("after") else set())
    center.live.report(report("h1", 2, make_vm(1), make_vm(2)))
    assert len(center.live.now.shown) == 2


def test_a_full_disk_is_rolled_back_and_passes(center: Center) -> None:
    center.add_hosts("h1")
    old = center.live.now
    pages = center.store._db.execute("PRAGMA page_count").fetchone()[0]
    center.store._db.execute(f"PRAGMA max_page_count = {pages}")
    many = [make_vm(number) for number in range(1, 200)]
    with pytest.raises(OutOfSpace):
        center.live.report(report("h1", 1, *many))
    assert center.live.now is old
    center.store._db.execute("PRAGMA max_page_count = 1000000")
    center.live.report(report("h1", 1, *many))
    center.reopen()
    assert len(center.live.now.shown) == 199


@pytest.mark.parametrize("table", ["hosts", "claims"])
def test_a_flipped_byte_in_a_record_stops_the_start(center: Center, table: str) -> None:
    fill(center)
    db = center.store._db
    key, body = db.execute(
        f"SELECT rowid_or, body FROM (SELECT *, {_key(table)} AS rowid_or FROM {table})"
    ).fetchone()
    for position in range(0, len(body), 7):
        flipped = bytearray(body)
        flipped[position] ^= 1
        db.execute(f"UPDATE {table} SET body = ? WHERE {_key(table)} = ?", (bytes(flipped), key))
        with pytest.raises(Corruption, match="checksum"):
            center.store.load()
    db.execute(f"UPDATE {table} SET body = ? WHERE {_key(table)} = ?", (body, key))
    assert center.store.load() == center.live.now


def _key(table: str) -> str:
    return "name" if table == "hosts" else "vm_id || host"


def test_a_record_under_another_key_and_a_missing_host_are_damage(center: Center) -> None:
    fill(center)
    db = center.store._db
    db.execute("UPDATE claims SET host = 'h3' WHERE host = 'h2'")
    with pytest.raises(Corruption):
        center.store.load()
    db.execute("UPDATE claims SET host = 'h2' WHERE host = 'h3'")
    db.execute("DELETE FROM hosts WHERE name = 'h2'")
    with pytest.raises(Corruption, match="host is missing") as caught:
        center.store.load()
    assert "move it" in caught.value.next_step


def test_a_file_that_is_no_database_is_damage(tmp_path: Path) -> None:
    (tmp_path / "inventory.db").write_bytes(b"not a database, but long enough to be one" * 100)
    with pytest.raises(Corruption):
        InventoryStore(RealFiles(), str(tmp_path), first_revision=1)


@pytest.mark.parametrize("mark", ["application_id", "user_version"])
def test_another_format_is_refused(center: Center, mark: str) -> None:
    center.store._db.execute(f"PRAGMA {mark} = 77")
    center.store.close()
    with pytest.raises(WrongState, match="this release"):
        InventoryStore(RealFiles(), str(center.directory), first_revision=1)
    with sqlite3.connect(center.directory / "inventory.db") as db:
        good = inventory_store.APPLICATION_ID if mark == "application_id" else inventory_store.VERSION
        db.execute(f"PRAGMA {mark} = {good}")
    db.close()
    center.__post_init__()


# -- versions -----------------------------------------------------------------------------------


def test_version_2_is_written_as_ever(center: Center) -> None:
    fill(center)
    center.store.close()
    assert dump(center.directory / "inventory.db") == (GOLDEN / "inventory-v2.sql").read_text()
    center.__post_init__()


@pytest.mark.parametrize("version", [1, 2])
def test_every_version_reads(tmp_path: Path, version: int) -> None:
    shutil.copy(GOLDEN / f"inventory-v{version}.ali", tmp_path / "inventory.db")
    for _ in range(2):  # as it was written, and after its upgrade
        store = InventoryStore(RealFiles(), str(tmp_path), first_revision=1)
        try:
            found = store.load()
            assert found.revision == FIRST_REVISION + 5
            assert found.vm_named("vm1").host == "h1"
            assert found.vm(ONE).power is PowerState.ON
            assert found.vm_named("db").config == config("db")
            assert {claim.vm.host for claim in found.claims[ONE]} == {"h1", "h2"}
            past = [one.past for one in store.history(vm_id_of(2))]
            host = "h1" if version == 2 else ""
            assert past == [Past(host, config("db")), Past(host, config("vm2"))]
            assert store.placements() == [Placement(vm_id_of(9), "h1", 1 << 30)]
            assert store.snapshot_host(VmSnapshotId("5" * 32)) == "h1"
            assert store.migrations() == ([MIGRATION] if version == 2 else [])
        finally:
            store.close()


def test_an_older_inventory_goes_on_in_the_new_version(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    shutil.copy(GOLDEN / "inventory-v1.ali", tmp_path / "state" / "inventory.db")
    center = Center(tmp_path / "state")
    center.store.note_migration(MIGRATION)
    center.live.report(report("h1", 9, make_vm(2, name="db", revision=3)))
    center.live.report(report("h2", 9))
    assert [(one.host, one.removed) for one in past_of(center)] == [
        ("h2", True),
        ("h2", False),
        ("", False),
    ]
    center.reopen()
    assert center.store.migrations() == [MIGRATION]
    center.store.forget_migration(MIGRATION.migration_id)
    assert center.store.migrations() == []
    center.store.close()


def test_a_damaged_migration_stops_the_start(center: Center) -> None:
    fill(center)
    db = center.store._db
    changed = "CAST(replace(CAST(body AS TEXT), 'hand over', 'accept') AS BLOB)"
    db.execute(f"UPDATE migrations SET body = {changed}")
    with pytest.raises(Corruption, match="checksum"):
        center.store.migrations()


def test_a_store_needs_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AlreadyExists):
        InventoryStore(RealFiles(), str(tmp_path / "file"), first_revision=1)
