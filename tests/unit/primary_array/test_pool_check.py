"""The check finds every kind of damage that is done to it, says nothing of a healthy pool, and mends
what it says it can, without losing what was damaged."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from arraylift.durable import Buffer
from arraylift.errors import Conflict, Corruption
from arraylift.ids import LineageId
from arraylift.sizes import GRANULE_BYTES, MIB
from primary_array.findings import Finding, Severity
from primary_array.map_state import Snapshot, Volume
from primary_array.page_file import PAGE_BYTES
from primary_array.pool import Pool
from primary_array.pool_types import SnapshotSource, VolumeSource
from tests.fakes.disk import FakeFiles
from tests.unit.primary_array.test_pool import read

G = GRANULE_BYTES
A, CLONE = VolumeSource("a"), VolumeSource("clone")


class Rig:
    """A pool with a snapshot, a clone of it, a checkpoint, and frames after that."""

    def __init__(self) -> None:
        self.files = FakeFiles()
        self.pool = Pool.open(self.files, "/pool")
        self.pool.create_volume("a", 4 * MIB)
        self.pool.write("a", 0, b"1" * (4 * G))
        (info,) = self.pool.snapshot(["a"], "old")
        self.snapshot_id = info.snapshot_id
        self.pool.clone_volume(info.snapshot_id, "clone")
        self.pool.write("a", 0, b"2" * G)
        self.pool.write("clone", G, b"3" * G)
        self.checkpoint()
        self.pool.write("a", 2 * G, b"4" * G)
        self.pool.flush("a")

    def checkpoint(self) -> None:
        with self.pool._commit.transaction():
            self.pool._checkpointer.write_inside()

    @property
    def volume(self) -> Volume:
        return self.pool._state.volumes["a"]

    @property
    def snapshot(self) -> Snapshot:
        return self.pool._state.snapshots[self.snapshot_id]

    def found(self, *, repair: bool = False) -> list[Finding]:
        return list(self.pool.check(repair=repair).findings)

    def check_content(self, pool: Pool) -> None:
        assert read(pool, A, 0, 4 * G) == b"2" * G + b"1" * G + b"4" * G + b"1" * G
        assert read(pool, CLONE, 0, 4 * G) == b"1" * G + b"3" * G + b"1" * (2 * G)
        assert read(pool, SnapshotSource(self.snapshot_id), 0, 4 * G) == b"1" * (4 * G)


def newest_file(rig: Rig, prefix: str) -> str:
    return "/pool/" + [name for name in rig.files.list_dir("/pool") if name.startswith(prefix)][-1]


def settled(rig: Rig, path: str) -> str:
    """Sync what the damage is done to."""
    rig.files.random_file(path, label="test").sync()
    return path


# -- one damage each --------------------------------------------------------------------------


def steal_slot(rig: Rig) -> None:
    rig.pool.create_volume("b", MIB)
    stolen = rig.volume.map.lookup(0, 1)
    rig.pool._state.volumes["b"].map.assign(0, stolen[0], np.ones(1, np.uint64))


def move_slot(rig: Rig) -> None:
    rig.volume.map.assign(9, *rig.volume.map.lookup(0, 1))


def double_birth(rig: Rig) -> None:
    page = rig.pool._state.volumes["clone"].map._own_page(0)
    page.births[0] = page.births[0] + np.uint64(1)


def miscount_slot(rig: Rig) -> None:
    rig.pool._state.counts.add(rig.volume.map.lookup(0, 1)[0])


def miscount_node(rig: Rig) -> None:
    node = rig.snapshot.map.nodes()[0]
    assert node is not None
    node.refs += 1


def free_named_slot(rig: Rig) -> None:
    rig.pool._slots._return(rig.volume.map.lookup(0, 1)[0])


def lose_slot(rig: Rig) -> None:
    rig.pool._slots.allocate(3)


def bear_too_young(rig: Rig) -> None:
    page = rig.volume.map._own_page(0)
    page.births[3] = 99
    page.newest_birth = 99


def bear_never(rig: Rig) -> None:
    page = rig.volume.map._own_page(0)
    page.births[0] = 0


def hide_birth(rig: Rig) -> None:
    rig.volume.map._own_page(0).newest_birth = 0


def miscount_mapped(rig: Rig) -> None:
    rig.volume.map.mapped_count += 1


def write_past_end(rig: Rig) -> None:
    page = rig.volume.map._own_page(0)
    page.births[500] = 1


def forget_lineage(rig: Rig) -> None:
    rig.snapshot.lineage_id = LineageId("f" * 32)


def mix_names(rig: Rig) -> None:
    rig.pool._state.volumes["other"] = rig.pool._state.volumes.pop("a")
    rig.pool._state.volumes["a"] = rig.pool._state.volumes["clone"]


def mix_births(rig: Rig) -> None:
    rig.snapshot.birth = 7


def lose_owner(rig: Rig) -> None:
    rig.volume.snapshots.clear()


def resize_record(rig: Rig) -> None:
    rig.volume.size_bytes += MIB


def cut_data(rig: Rig) -> None:
    rig.files.append_file("/pool/slots.data", label="test").truncate(2 * G)


def damage_superblock(rig: Rig) -> None:
    rig.files.corrupt("/pool/pool.json", 30)


def damage_checkpoint(rig: Rig) -> None:
    rig.files.corrupt(newest_file(rig, "checkpoint"), 200)


def remove_checkpoint(rig: Rig) -> None:
    rig.files.remove(newest_file(rig, "checkpoint"), label="test")


def damage_page(rig: Rig) -> None:
    rig.files.corrupt(settled(rig, "/pool/map.pages"), PAGE_BYTES + 9)


def damage_page_in_memory(rig: Rig) -> None:
    page = rig.snapshot.map.page(0)
    assert page is not None
    page.births.flags.writeable = True
    page.births[900] = 1


def damage_journal(rig: Rig) -> None:
    rig.files.corrupt(settled(rig, newest_file(rig, "journal")), 60)


def cut_journal(rig: Rig) -> None:
    log = rig.files.append_file(newest_file(rig, "journal"), label="test")
    log.truncate(log.size - 1)


def forget_last_frame(rig: Rig) -> None:
    before = rig.files.read(newest_file(rig, "journal"))
    rig.pool.write("a", 3 * G, b"1" * G)
    rig.pool.flush("a")
    rig.files.publish(newest_file(rig, "journal"), [before], label="test")


def leave_old_journal(rig: Rig) -> None:
    rig.files.publish("/pool/journal-0000000001.alj", [b"old"], label="test")


def leave_old_checkpoint(rig: Rig) -> None:
    rig.files.publish("/pool/checkpoint-0000000001.alc", [b"old"], label="test")


def leave_file(rig: Rig) -> None:
    rig.files.publish("/pool/notes.txt", [b"x"], label="test")


def lose_reserve(rig: Rig) -> None:
    rig.files.remove("/pool/reserve.bin", label="test")


MENDED: list[tuple[Callable[[Rig], None], str]] = [
    (miscount_slot, "slot_count_wrong"),
    (miscount_node, "share_count_wrong"),
    (free_named_slot, "slot_free_but_named"),
    (lose_slot, "slot_lost"),
    (hide_birth, "newest_birth_wrong"),
    (miscount_mapped, "mapped_count_wrong"),
    (forget_lineage, "lineage_unknown"),
    (damage_superblock, "superblock_damaged"),
    (damage_checkpoint, "checkpoint_damaged"),
    (remove_checkpoint, "checkpoint_damaged"),
    (damage_page, "page_damaged"),
    (damage_journal, "journal_damaged"),
    (cut_journal, "journal_damaged"),
    (forget_last_frame, "journal_damaged"),
    (leave_old_journal, "file_leftover"),
    (leave_old_checkpoint, "file_leftover"),
]
TOLD: list[tuple[Callable[[Rig], None], str]] = [
    (steal_slot, "slot_named_twice"),
    (move_slot, "slot_named_twice"),
    (double_birth, "slot_named_twice"),
    (bear_too_young, "birth_wrong"),
    (bear_never, "birth_wrong"),
    (write_past_end, "entry_past_end"),
    (mix_names, "tables_disagree"),
    (mix_births, "tables_disagree"),
    (lose_owner, "tables_disagree"),
    (resize_record, "tables_disagree"),
    (cut_data, "data_file_short"),
    (damage_page_in_memory, "page_changed_in_memory"),
    (leave_file, "file_unknown"),
    (lose_reserve, "reserve_missing"),
]


def name_of(case: object) -> str:
    return getattr(case, "__name__", str(case))


def test_healthy_pool_has_no_findings() -> None:
    rig = Rig()
    assert rig.found() == []
    assert rig.found(repair=True) == []
    rig.check_content(rig.pool)
    news = rig.pool.check(repair=False)
    assert news.granules_checked == news.granules_total == 3 * 64
    assert news.done


@pytest.mark.parametrize(("damage", "kind"), MENDED + TOLD, ids=name_of)
def test_each_damage_is_told(damage: Callable[[Rig], None], kind: str) -> None:
    rig = Rig()
    damage(rig)
    disk = {
        name: rig.files.read(f"/pool/{name}") for name in rig.files.list_dir("/pool") if name != "damaged"
    }
    found = rig.found()
    assert kind in {finding.kind for finding in found}
    assert [finding.severity for finding in found] == sorted((f.severity for f in found), reverse=True)
    assert not any(finding.repaired for finding in found)
    assert disk == {name: rig.files.read(f"/pool/{name}") for name in disk}
    assert rig.files.list_dir("/pool") == sorted(disk)


@pytest.mark.parametrize(("damage", "kind"), MENDED, ids=name_of)
def test_each_damage_is_mended_and_the_pool_starts_again(damage: Callable[[Rig], None], kind: str) -> None:
    rig = Rig()
    damage(rig)
    found = rig.found(repair=True)
    assert all(finding.repaired for finding in found)
    assert kind in {finding.kind for finding in found}
    assert rig.found() == []
    rig.check_content(rig.pool)
    rig.pool.write("clone", 3 * G, b"5" * G)
    rig.pool.write("a", 6 * G, b"6" * G)
    rig.pool.flush("a")
    again = Pool.open(next(iter(rig.files.post_crash_states(maximum=1))), "/pool")
    assert again.check(repair=False).findings == ()
    assert read(again, CLONE, 0, 4 * G) == b"1" * G + b"3" * G + b"1" * G + b"5" * G
    assert read(again, A, 6 * G, G) == b"6" * G


@pytest.mark.parametrize("damage", [damage_superblock, damage_checkpoint, damage_page, damage_journal])
def test_what_was_damaged_is_kept(damage: Callable[[Rig], None]) -> None:
    rig = Rig()
    damage(rig)
    before = [rig.files.read(f"/pool/{name}") for name in rig.files.list_dir("/pool") if name != "lock"]
    rig.found(repair=True)
    kept = [rig.files.read(f"/pool/damaged/{name}") for name in rig.files.list_dir("/pool/damaged")]
    assert kept
    assert all(any(part in whole for whole in before) for part in kept)


@pytest.mark.parametrize("prefix", ["checkpoint", "journal", "pool"])
def test_what_the_disk_cannot_read_is_written_anew(monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    """The copy in memory is the only one left: a repair that wants to keep the other first does nothing."""
    rig = Rig()
    bad, whole = newest_file(rig, prefix), rig.files.read

    def read_but(path: str, offset: int = 0, length: int | None = None) -> bytes:
        if path == bad and path in unread:
            raise Corruption(f"{path} cannot be read: Input/output error")
        return whole(path, offset, length)

    publish, unread = rig.files.publish, {bad}

    def published(path: str, parts: Sequence[Buffer], *, label: str) -> None:
        publish(path, parts, label=label)
        unread.discard(path)

    monkeypatch.setattr(rig.files, "read", read_but)
    monkeypatch.setattr(rig.files, "publish", published)
    (finding,) = rig.found(repair=True)
    assert finding.repaired
    assert finding.kind == ("superblock" if prefix == "pool" else prefix) + "_damaged"
    assert not unread or bad.rpartition("/")[2] not in rig.files.list_dir("/pool")
    rig.check_content(Pool.open(next(iter(rig.files.post_crash_states(maximum=1))), "/pool"))


def test_wrong_births_are_believed_no_longer() -> None:
    rig = Rig()
    old = rig.pool.get_snapshot(rig.snapshot_id).state
    bear_too_young(rig)
    rig.found(repair=True)
    (new,) = rig.pool.snapshot(["a"])
    assert rig.pool.changed_spans(new.snapshot_id, old) is None


@pytest.mark.parametrize("damage", [damage_page_in_memory, mix_births, steal_slot])
def test_nothing_is_mended_from_a_memory_that_is_wrong_itself(damage: Callable[[Rig], None]) -> None:
    """The disk has the better copy: a start without a clean stop finds it."""
    rig = Rig()
    rig.pool.flush("a")
    damage(rig)
    leave_old_journal(rig)  # which a new checkpoint would take away
    lose_slot(rig)
    before = {name: rig.files.read(f"/pool/{name}") for name in rig.files.list_dir("/pool")}
    found = rig.found(repair=True)
    assert {finding.kind for finding in found} >= {"file_leftover", "slot_lost"}
    assert not any(finding.repaired for finding in found)
    assert before == {name: rig.files.read(f"/pool/{name}") for name in rig.files.list_dir("/pool")}
    again = Pool.open(rig.files.after_kill(), "/pool")
    rig.check_content(again)
    assert again.check(repair=False).findings == ()


def test_lost_slots_are_free_again_and_named_ones_are_not() -> None:
    rig = Rig()
    used = rig.pool.stats().slots_used
    lose_slot(rig)
    assert rig.pool.stats().slots_used == used + 3
    rig.found(repair=True)
    assert rig.pool.stats().slots_used == used
    rig.pool.write("a", 32 * G, b"9" * (8 * G))
    rig.check_content(rig.pool)


def test_one_check_at_a_time() -> None:
    rig = Rig()
    refused: list[type[BaseException]] = []

    def again(_: object) -> None:
        try:
            rig.pool.check(repair=False)
        except Conflict as error:
            refused.append(type(error))

    rig.pool.check(repair=False, report=again)
    assert refused
    assert set(refused) == {Conflict}
    rig.found()


def test_damaged_page_stops_the_next_start_and_says_which() -> None:
    rig = Rig()
    rig.pool.close()
    page = rig.snapshot.map.page(0)
    assert page is not None
    rig.files.corrupt("/pool/map.pages", page.home * PAGE_BYTES + 9)
    with pytest.raises(Corruption, match=f"page {page.home}"):
        Pool.open(rig.files, "/pool")


def test_check_under_writes_finds_nothing() -> None:
    """Writers, snapshots and deletions go on: nothing of them is taken for damage."""
    rig = Rig()
    rig.pool.create_volume("busy", 64 * MIB)
    stop = threading.Event()
    errors: list[Exception] = []

    def write() -> None:
        number = 0
        try:
            while not stop.is_set():
                number += 1
                rig.pool.write("busy", number * 7 % 900 * G, bytes([number % 256]) * (3 * G))
                if number % 5 == 0:
                    rig.pool.trim("busy", number * 13 % 900 * G, 9 * G)
                if number % 11 == 0:
                    (info,) = rig.pool.snapshot(["busy"])
                    if number % 2:
                        rig.pool.clone_volume(info.snapshot_id, f"clone{number}-{threading.get_ident()}")
                        rig.pool.delete_volume(f"clone{number}-{threading.get_ident()}")
                    rig.pool.delete_snapshot(info.snapshot_id)
        except Exception as error:  # noqa: BLE001 - told by the test
            errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    found = [finding for _ in range(25) for finding in rig.found()]
    stop.set()
    for thread in threads:
        thread.join(20)
    assert errors == []
    assert [finding for finding in found if finding.severity is not Severity.NOTE] == []
