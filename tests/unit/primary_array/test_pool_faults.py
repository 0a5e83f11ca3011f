"""Full disks, failing syncs, damaged and missing files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from arraylift.durable import RealFiles
from arraylift.errors import Corruption, OutOfSpace, StoreFailed, WrongState
from arraylift.ids import VolumeId
from arraylift.sizes import GRANULE_BYTES, MIB
from primary_array.pool import Pool
from primary_array.pool_types import SnapshotSource, VolumeSource
from primary_array.reserve import RESERVE_BYTES
from tests.fakes.disk import FakeFiles
from tests.fakes.kernel import UNLIMITED_BYTES
from tests.property.pool_model import used_slots
from tests.unit.primary_array.test_pool import read

G = GRANULE_BYTES
A = VolumeSource("a")


@pytest.fixture
def files() -> FakeFiles:
    return FakeFiles()


def make(files: FakeFiles) -> Pool:
    pool = Pool.open(files, "/pool")
    pool.create_volume("a", 4 * MIB)
    pool.write("a", 0, b"1" * (4 * G))
    pool.snapshot(["a"], "old")
    pool.write("a", 0, b"2" * G)
    pool.flush("a")
    return pool


def check_whole(pool: Pool) -> None:
    (snapshot,) = pool.snapshots("a")
    assert read(pool, SnapshotSource(snapshot.snapshot_id), 0, 4 * G) == b"1" * (4 * G)
    assert read(pool, A, 0, 4 * G) == b"2" * G + b"1" * (3 * G)


# -- full disks -----------------------------------------------------------------------------


def test_full_disk_at_every_change_loses_nothing_and_passes(files: FakeFiles) -> None:
    """ENOSPC at the n-th primitive change of a sequence; it is then repeated."""
    for position in range(40):
        files = FakeFiles()
        pool = Pool.open(files, "/pool", journal_bytes_max=300)
        pool.create_volume("a", 4 * MIB)
        pool.write("a", 0, b"1" * (4 * G))
        pool.flush("a")
        steps = [
            lambda pool=pool: pool.write("a", G, b"2" * (2 * G)),
            lambda pool=pool: pool.flush("a"),
            lambda pool=pool: pool.snapshot(["a"]),
            lambda pool=pool: pool.write("a", 0, b"3" * G),
            lambda pool=pool: pool.flush("a"),
            lambda pool=pool: pool.delete_snapshot(pool.snapshots("a")[0].snapshot_id),
            lambda pool=pool: pool.trim("a", 3 * G, G),
            lambda pool=pool: pool.flush("a"),
        ]
        files.fail_after(position, "enospc")
        failures = 0
        poisoned = False
        for step in steps:
            try:
                step()
            except OutOfSpace:
                failures += 1
                step()
            except StoreFailed:  # a sync that says "full" has lost data: only a restart helps
                poisoned = True
                break
        assert failures <= 1
        if poisoned:
            continue
        expected = b"3" * G + b"2" * (2 * G) + bytes(G)
        assert read(pool, A, 0, 4 * G) == expected
        assert pool.stats().slots_used == len(used_slots(pool._state)) == 3
        again = Pool.open(next(iter(files.post_crash_states(maximum=1))), "/pool")
        assert read(again, A, 0, 4 * G) == expected
        assert again.snapshots() == []


def test_full_pool_still_reads_and_deletes_and_then_writes_again(files: FakeFiles) -> None:
    pool = make(files)
    full = _used_bytes(files)
    files.set_capacity(full)
    with pytest.raises(OutOfSpace):
        pool.write("a", MIB, os.urandom(MIB))

    def use_up_the_journals_last_page() -> None:
        for number in range(1000):
            pool.create_volume(f"v{number}", 512)

    with pytest.raises(OutOfSpace):
        use_up_the_journals_last_page()
    check_whole(pool)
    assert files.exists("/pool/reserve.bin")
    pool.delete_snapshot(pool.snapshots("a")[0].snapshot_id)
    assert pool.snapshots() == []
    assert not files.exists("/pool/reserve.bin")
    assert files.free_bytes("/pool") >= RESERVE_BYTES // 2
    pool.write("a", MIB, b"4" * G)
    pool.flush("a")
    files.set_capacity(full + 4 * RESERVE_BYTES)
    pool.close()
    assert files.exists("/pool/reserve.bin")
    again = Pool.open(files, "/pool")
    assert read(again, A, MIB, G) == b"4" * G


def _used_bytes(files: FakeFiles) -> int:
    return UNLIMITED_BYTES - files.free_bytes("/pool")


def test_pool_opens_on_a_full_disk(files: FakeFiles) -> None:
    make(files)
    files = files.after_kill()
    files.set_capacity(_used_bytes(files))
    check_whole(Pool.open(files, "/pool"))


def test_checkpoint_on_a_full_disk_is_put_off(files: FakeFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make(files)
    pool._commit._rotate_at = 1
    pool._commit._journal_bytes_max = 200
    real = files.publish

    def full(path: str, parts: object, *, label: str) -> None:
        raise OutOfSpace("full", subject=path)

    monkeypatch.setattr(files, "publish", full)
    for value in range(20):
        pool.write("a", value * G, bytes([value]) * G)
        pool.flush("a")
    assert pool._commit._journal.number == 1
    monkeypatch.setattr(
        files,
        "publish",
        lambda path, parts, *, label: (
            full(path, parts, label=label) if "checkpoint" in path else real(path, parts, label=label)
        ),
    )
    for value in range(20, 40):
        pool.write("a", value * G, bytes([value]) * G)
        pool.flush("a")
    assert pool._commit._journal.number > 2
    again = Pool.open(next(iter(files.post_crash_states(maximum=1))), "/pool")
    assert read(again, A, 0, 40 * G) == b"".join(bytes([value]) * G for value in range(40))
    monkeypatch.setattr(files, "publish", real)
    again.close()


# -- failing syncs --------------------------------------------------------------------------


def test_failed_sync_stops_changes_and_reads_go_on(files: FakeFiles) -> None:
    pool = make(files)
    pool.write("a", 8 * G, b"unsure")
    files.fail_after(0, "eio")
    with pytest.raises(StoreFailed):
        pool.flush("a")
    for call in (
        lambda: pool.write("a", 0, b"x"),
        lambda: pool.trim("a", 0, 4 * G),
        lambda: pool.flush("a"),
        lambda: pool.snapshot(["a"]),
        lambda: pool.create_volume("b", 512),
        lambda: pool.delete_volume("a", cascade=True),
        lambda: pool.begin_volume("b", 512),
    ):
        with pytest.raises(StoreFailed):
            call()
        check_whole(pool)
    with pytest.raises(StoreFailed):
        pool.close()
    check_whole(Pool.open(files.after_kill(), "/pool"))


def test_failed_write_of_a_granule_maps_nothing(files: FakeFiles) -> None:
    pool = make(files)
    files.fail_after(0, "enospc")
    with pytest.raises(OutOfSpace):
        pool.write("a", G + 5, b"x" * G)  # moves two granules
    check_whole(pool)
    assert pool.stats().slots_used == len(used_slots(pool._state))


def test_unreadable_data_is_an_error(files: FakeFiles) -> None:
    pool = make(files)
    files.fail_reads("/pool/slots.data")
    with pytest.raises(Corruption):
        read(pool, A, 0, 1)
    with pytest.raises(Corruption):
        pool.write("a", G, b"x")  # would have to copy the rest of the granule
    files.fail_reads("/pool/slots.data", failing=False)
    check_whole(pool)


# -- damaged directories --------------------------------------------------------------------


def test_second_process_is_refused(files: FakeFiles) -> None:
    pool = make(files)
    with pytest.raises(WrongState, match="in use"):
        Pool.open(files, "/pool")
    pool.close()
    check_whole(Pool.open(files, "/pool"))


@pytest.mark.parametrize(
    "name", ["pool.json", "slots.data", "journal-0000000001.alj", "checkpoint-0000000001.alc"]
)
def test_missing_file_is_corruption_and_nothing_is_made_anew(files: FakeFiles, name: str) -> None:
    make(files)
    files = files.after_kill()
    content = files.read(f"/pool/{name}")
    files.remove(f"/pool/{name}", label="test")
    for _ in range(2):
        with pytest.raises(Corruption):
            Pool.open(files, "/pool")
    files.publish(f"/pool/{name}", [content], label="test")
    check_whole(Pool.open(files, "/pool"))


@pytest.mark.parametrize("name", ["pool.json", "checkpoint-0000000002.alc"])
def test_every_flipped_bit_of_what_is_published_is_told(files: FakeFiles, name: str) -> None:
    pool = make(files)
    pool.close()
    path = f"/pool/{name}"
    content = files.read(path)
    step = 1 if len(content) < 3000 else 97  # every bit of a page's 16 KiB would take minutes
    for bit in [*range(1600), *range(1600, len(content) * 8, step)]:
        damaged = bytearray(content)
        if bit // 8 >= len(damaged):
            break
        damaged[bit // 8] ^= 1 << bit % 8
        files.publish(path, [bytes(damaged)], label="test")
        try:
            found = Pool.open(files, "/pool")
        except (Corruption, WrongState):
            continue
        # Blanks of the JSON text carry nothing.
        assert name == "pool.json"
        assert damaged[bit // 8 : bit // 8 + 1].isspace()
        check_whole(found)
        found.close()


def test_damage_in_the_middle_of_the_journal_is_told(files: FakeFiles) -> None:
    make(files)
    files = files.after_kill()
    before = {name: files.read(f"/pool/{name}") for name in files.list_dir("/pool") if name != "lock"}
    files.append_file("/pool/journal-0000000001.alj", label="test").sync()
    files.corrupt("/pool/journal-0000000001.alj", 100)
    with pytest.raises(Corruption, match="damaged at byte"):
        Pool.open(files, "/pool")
    files.corrupt("/pool/journal-0000000001.alj", 100)
    after = {name: files.read(f"/pool/{name}") for name in files.list_dir("/pool") if name != "lock"}
    assert after == before
    check_whole(Pool.open(files, "/pool"))


def test_older_checkpoint_serves_while_its_journals_are_there(files: FakeFiles) -> None:
    """The newest checkpoint is damaged before the older one was removed."""
    pool = make(files)
    number = pool._commit._journal.number
    old = {
        path: files.read(path)
        for path in (f"/pool/checkpoint-{number:010d}.alc", f"/pool/journal-{number:010d}.alj")
    }
    with pool._commit.transaction():
        pool._checkpointer.write_inside()
    pool.write("a", 9 * G, b"9")
    pool.flush("a")
    files = files.after_kill()
    for path, content in old.items():
        files.publish(path, [content], label="test")
    files.corrupt(f"/pool/checkpoint-{number + 1:010d}.alc", 70)
    found = Pool.open(files, "/pool")
    check_whole(found)
    assert read(found, A, 9 * G, 1) == b"9"
    found.close()


def test_older_checkpoint_does_not_stand_in_for_lost_journals(files: FakeFiles) -> None:
    pool = make(files)
    old = {
        path: files.read(path) for path in ("/pool/checkpoint-0000000001.alc", "/pool/journal-0000000001.alj")
    }
    with pool._commit.transaction():
        pool._checkpointer.write_inside()
    files = files.after_kill()
    for path, content in old.items():
        files.publish(path, [content], label="test")
    files.corrupt("/pool/checkpoint-0000000002.alc", 70)
    files.remove("/pool/journal-0000000002.alj", label="test")
    with pytest.raises(Corruption):
        Pool.open(files, "/pool")


def test_one_slot_in_two_volumes_is_corruption(files: FakeFiles) -> None:
    pool = make(files)
    pool.create_volume("b", MIB)
    stolen = pool._state.volumes["a"].map.lookup(0, 1)
    pool._state.volumes["b"].map.assign(0, *stolen)
    with pool._commit.transaction():
        pool._checkpointer.write_inside()
    with pytest.raises(Corruption, match="in two volumes"):
        Pool.open(files.after_kill(), "/pool")


def test_one_slot_at_two_granules_is_corruption(files: FakeFiles) -> None:
    pool = make(files)
    stolen = pool._state.volumes["a"].map.lookup(0, 1)
    pool._state.volumes["a"].map.assign(7, *stolen)
    with pool._commit.transaction():
        pool._checkpointer.write_inside()
    with pytest.raises(Corruption, match="at two places"):
        Pool.open(files.after_kill(), "/pool")


def test_another_version_is_refused(files: FakeFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("primary_array.superblock.VERSION", 3)
    monkeypatch.setattr("primary_array.superblock.VERSIONS_READ", (3,))
    make(files).close()
    monkeypatch.undo()
    with pytest.raises(WrongState, match="another version"):
        Pool.open(files, "/pool")


def test_a_void_drafts_id_may_be_used_again(files: FakeFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    # As a restore's is, that is asked for again after a kill.
    again = VolumeId("d" * 32)
    for reference in (False, True):
        disk = FakeFiles()
        pool = make(disk)
        with monkeypatch.context() as patch:
            patch.setattr("primary_array.map_commit.PENDING_RUNS_MAX", 1)
            void = pool.begin_volume("void", 4 * MIB, volume_id=again)
            for granule in (9, 5, 1):
                void.write(granule * G, b"v" * G)
        pool.flush("a")
        disk = disk.after_kill()
        pool = Pool.open(disk, "/pool")
        pool.write("a", 30 * G, b"3" * (4 * G))  # into the slots that it had
        if reference:
            (snapshot,) = pool.snapshots("a")
            draft = pool.begin_clone("back", snapshot.snapshot_id, 8 * MIB, volume_id=again)
        else:
            draft = pool.begin_volume("back", 8 * MIB, volume_id=again)
        draft.write(6 * MIB, b"b" * G)
        draft.save_progress(b"")
        draft.commit()
        pool = Pool.open(disk.after_kill(), "/pool")
        back = VolumeSource("back")
        assert read(pool, back, 0, 4 * G) == (b"1" if reference else b"\0") * (4 * G)
        assert read(pool, back, 4 * G, 6 * MIB - 4 * G) == bytes(6 * MIB - 4 * G)
        assert read(pool, back, 6 * MIB, G) == b"b" * G
        assert read(pool, A, 30 * G, 4 * G) == b"3" * (4 * G)


def test_a_data_file_that_was_cut_reads_as_an_error_and_not_as_zeros(tmp_path: Path) -> None:
    pool = Pool.open(RealFiles(), str(tmp_path))
    pool.create_volume("v", 4 * G)
    pool.write("v", 0, b"1" * (4 * G))
    (taken,) = pool.snapshot(["v"])
    os.truncate(pool.data_path, 3 * G + 100)
    for source in (VolumeSource("v"), SnapshotSource(taken.snapshot_id)):
        into = bytearray(G)
        pool.read_into(source, 0, memoryview(into))
        assert into == b"1" * G
        with pytest.raises(Corruption, match="ends before"):
            pool.read_into(source, 2 * G, memoryview(bytearray(G)))
    with pytest.raises(Corruption, match="ends before"):
        pool.write("v", 3 * G, b"a part, with what was around it")
    pool.close()
