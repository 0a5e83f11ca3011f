"""The index is made anew while the unit serves: nothing that was promised is missed meanwhile."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from arraylift.errors import Cancelled, Conflict, Corruption, OutOfSpace, StoreFailed, WrongState
from arraylift.failpoints import FAILPOINTS
from dedup_target.container_store import name_of
from dedup_target.online_rebuild import RebuildProgress
from tests.unit.dedup_target.material import make_segments
from tests.unit.dedup_target.test_storage_unit import RECORDS, Stage

NEVER = threading.Event()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path / "state")
    made.some(40)
    yield made
    FAILPOINTS.arm("")
    made.close()


def rebuild(stage: Stage) -> list[RebuildProgress]:
    told: list[RebuildProgress] = []
    stage.unit.rebuild_index(report=told.append, cancelled=NEVER)
    return told


def indexes(stage: Stage) -> list[str]:
    """What lies where indexes lie."""
    return sorted(path.name for path in (stage.path / "index").iterdir() if path.is_dir())


def test_it_takes_the_old_ones_place_again_and_again(stage: Stage) -> None:
    unit_id = stage.unit.unit_id
    for expected in ([f"{unit_id}.next"], [unit_id], [f"{unit_id}.next"]):
        told = rebuild(stage)
        assert (told[-1].containers_done, told[-1].records, told[-1].done) == (40, 40 * RECORDS, True)
        assert [one.containers_done for one in told] == sorted(one.containers_done for one in told)
        assert indexes(stage) == expected
        stage.check()
    stage.some(2)
    assert stage.reopen().report.index.containers_added == 0
    stage.check()


def test_readers_writers_and_condemnation_go_on(stage: Stage) -> None:
    """Every look-up of what is promised says "there", through any number of rebuilds."""
    stop, failures = threading.Event(), list[BaseException]()
    first = {one.fingerprint: one.stored for _, segments in stage.stored[:30] for one in segments}
    sealed, segments = stage.stored[39]
    bad = segments[3].fingerprint

    def read() -> None:
        while not stop.is_set():
            assert stage.unit.contains(stage.key.tenant, b"".join(first)).all()

    def write() -> None:
        for seed in range(100, 160):
            stage.store(make_segments(RECORDS, seed=seed))

    def condemn() -> None:
        stage.unit.condemn_records(sealed.container_id, stage.key.tenant, [bad], "its bytes are wrong")

    def guarded(work: threading.Thread | object) -> None:
        try:
            work()  # type: ignore[operator]
        except BaseException as error:  # noqa: BLE001 - told to the test
            failures.append(error)

    readers = [threading.Thread(target=guarded, args=(read,)) for _ in range(2)]
    others = [threading.Thread(target=guarded, args=(work,)) for work in (write, condemn)]
    for thread in (*readers, *others):
        thread.start()
    while any(thread.is_alive() for thread in others):
        rebuild(stage)
    rebuild(stage)
    stop.set()
    for thread in readers:
        thread.join()
    assert failures == []
    assert not stage.unit.contains(stage.key.tenant, bad).any()
    assert stage.unit.index.count() == 100 * RECORDS - 1
    assert stage.unit.index.indexed_containers() == set(stage.unit.containers.containers())


def test_an_older_copy_comes_back_where_the_newer_was_condemned(stage: Stage) -> None:
    segments = stage.stored[0][1]
    newer = stage.store(segments)
    stage.stored.pop()
    victim = segments[0].fingerprint
    stage.unit.condemn_records(newer.container_id, stage.key.tenant, [victim], "bad")
    assert not stage.unit.contains(stage.key.tenant, victim).any()
    rebuild(stage)
    assert stage.unit.contains(stage.key.tenant, victim).all()
    stage.check()


def test_a_container_that_vanished_stops_no_rebuild(stage: Stage) -> None:
    sealed, segments = stage.stored.pop(7)
    stage.unit.backend.remove(name_of(sealed.container_id), label="t")
    stage.unit.containers._directories.clear()
    done = rebuild(stage)[-1]
    assert (done.containers_done, done.containers_damaged, done.done) == (39, 1, True)
    assert stage.unit.index.count() == 39 * RECORDS
    assert not stage.unit.contains(stage.key.tenant, segments[0].fingerprint).any()
    assert stage.reopen().report.index.containers_gone == (), "nothing is left to find"
    stage.check()


def test_a_cancelled_one_changes_nothing(stage: Stage) -> None:
    cancelled = threading.Event()
    with pytest.raises(Cancelled):
        stage.unit.rebuild_index(report=lambda _: cancelled.set(), cancelled=cancelled)
    stage.check()
    assert stage.unit.maintenance.running == ""
    stage.reopen()
    assert indexes(stage) == [stage.unit.unit_id], "what was begun is gone"
    stage.check()


@pytest.mark.parametrize("step", ["write.before", "rename.before"])
def test_a_switch_that_fails_changes_nothing(stage: Stage, step: str) -> None:
    FAILPOINTS.arm(f"index-place.{step}=enospc")
    with pytest.raises(OutOfSpace):
        rebuild(stage)
    stage.check()
    stage.some(1)
    rebuild(stage)
    stage.check()


def test_a_container_that_goes_meanwhile_ends_it(stage: Stage) -> None:
    """Nobody may, under maintenance; whoever does it all the same does not get a wrong index."""

    def remove(progress: RebuildProgress) -> None:
        if len(stage.stored) == 40:
            sealed, _ = stage.stored.pop(0)
            assert progress.containers_done > 1
            stage.unit.remove_container(sealed.container_id)

    with pytest.raises(Conflict, match="was removed"):
        stage.unit.rebuild_index(report=remove, cancelled=NEVER)
    stage.check()
    rebuild(stage)
    stage.check()


def test_one_maintenance_at_a_time(stage: Stage) -> None:
    with stage.unit.maintenance.begin("collect"), pytest.raises(Conflict, match="collect"):
        rebuild(stage)


def test_condemnations_are_void_and_the_mark_of_damage_goes(stage: Stage) -> None:
    stage.unit.gc_state.condemn(stage.stored[0][0].container_id)
    generation = stage.unit.quarantine.generation
    stage.unit._mark.set("a read met damage")
    rebuild(stage)
    assert stage.unit.gc_state.count == 0
    assert stage.unit.quarantine.generation > generation
    assert stage.reopen().report.index.rebuilt == ""


# -- crashes ------------------------------------------------------------------------------------


def test_every_start_opens_the_old_one_or_the_new_one(stage: Stage, tmp_path: Path) -> None:
    """What a crash leaves: half of the new one; the new one named and the old one not yet gone."""
    crashed = tmp_path / "crashed"
    old = tmp_path / "old"

    def copy(progress: RebuildProgress) -> None:
        if not progress.done and not crashed.exists():
            shutil.copytree(stage.path / "index", crashed)

    stage.unit.rebuild_index(report=copy, cancelled=NEVER)
    unit_id = stage.unit.unit_id
    shutil.copytree(crashed / unit_id, old)
    stage.close()
    shutil.copytree(old, stage.path / "index" / unit_id)  # the old one, whole, beside the new one
    stage.open()
    assert indexes(stage) == [f"{unit_id}.next"]
    assert stage.unit.report.index.rebuilt == ""
    stage.check()
    stage.close()
    shutil.rmtree(stage.path / "index")
    crashed.rename(stage.path / "index")
    stage.open()
    assert indexes(stage) == [unit_id]
    assert stage.unit.report.index.rebuilt == ""
    stage.check()


@pytest.mark.parametrize("damage", ["flipped", "missing", "short", "names-nothing"])
def test_a_lost_place_costs_a_rebuild_and_no_more(stage: Stage, damage: str) -> None:
    rebuild(stage)
    stage.close()
    place = stage.path / "index" / f"{stage.unit.unit_id}.place"
    content = bytearray(place.read_bytes())
    if damage == "flipped":
        content[-1] ^= 4
    elif damage == "short":
        content = content[:9]
    elif damage == "names-nothing":
        content = bytearray(b"rubbish")
    place.write_bytes(content)
    if damage == "missing":
        place.unlink()
    stage.open()
    assert stage.unit.report.index.rebuilt or stage.unit.report.index.containers_added == 40
    stage.check()
    assert stage.reopen().report.index.rebuilt == "", "once"
    stage.check()


def test_damage_that_a_read_meets_is_mended_without_a_restart(stage: Stage) -> None:
    rebuild(stage)
    stage.reopen()
    sound = stage.unit.index.indexed_containers()
    stage.unit.mend_index(NEVER)
    assert indexes(stage) == [f"{stage.unit.unit_id}.next"], "nothing is mended that is whole"
    assert stage.unit.index.indexed_containers() == sound
    stage.close()
    for table in (stage.path / "index" / f"{stage.unit.unit_id}.next").glob("*.sst"):
        content = bytearray(table.read_bytes())
        if len(content) > 8000:  # the table of entries
            content[300] ^= 1
            table.write_bytes(content)
    stage.open()
    if not stage.unit.report.index.rebuilt:  # not met at start: a read meets it
        with pytest.raises(Corruption):
            stage.check()
        stage.unit.mend_index(NEVER)
        assert indexes(stage) == [stage.unit.unit_id]
    stage.check()


def test_an_index_whose_disk_failed_is_not_replaced(stage: Stage) -> None:
    """A failed sync is answered by a restart, not by another try."""
    stage.unit.index._failed = "IO error: While fdatasync"  # type: ignore[attr-defined]
    with pytest.raises(StoreFailed, match="restart"):
        rebuild(stage)


def test_a_closed_index_is_not_taken_over(stage: Stage) -> None:
    stage.unit.index.close()
    with pytest.raises(WrongState):
        rebuild(stage)
