"""Forks, sizes and checkpoints that meet writes half-way: chosen moments first, then many threads."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from arraylift.durable import RealFiles
from arraylift.errors import ArrayliftError, InvalidRequest
from arraylift.ids import LineageId, random_id
from arraylift.sizes import GRANULE_BYTES, MIB
from primary_array.pool import Pool
from primary_array.pool_types import SnapshotSource, VolumeSource
from primary_array.volume_ops import Swap
from tests.fakes.disk import FakeFiles
from tests.property.pool_model import check_slots
from tests.unit.primary_array.test_pool import read
from tests.unit.primary_array.test_pool_races import SECONDS_MAX, just_before, reopened_after_power_cut
from tests.unit.primary_array.test_range_gate import until

G = GRANULE_BYTES
A, B = VolumeSource("a"), VolumeSource("b")


@pytest.fixture
def files() -> FakeFiles:
    return FakeFiles()


@pytest.fixture
def pool(files: FakeFiles) -> Pool:
    made = Pool.open(files, "/pool")
    made.create_volume("a", 16 * G)
    made.write("a", 0, b"1" * (16 * G))
    return made


class Waiting:
    """Calls that begin while the pool appends to its journal, and wait at a volume's gate."""

    def __init__(self, pool: Pool, monkeypatch: pytest.MonkeyPatch, offset: int, data: bytes | None) -> None:
        self.errors: list[ArrayliftError] = []

        def act() -> None:
            try:
                if data is None:
                    pool.trim("a", offset, G)
                else:
                    pool.write("a", offset, data)
            except ArrayliftError as error:
                self.errors.append(error)

        self.thread = threading.Thread(target=act)
        gate = pool._state.volumes["a"].gate

        def start() -> None:
            self.thread.start()
            until(lambda: len(gate._queue) >= 2)

        pool.flush("a")
        just_before(monkeypatch, pool._commit._journal, "append", start)

    def join(self) -> list[ArrayliftError]:
        self.thread.join(SECONDS_MAX)
        return self.errors


@pytest.mark.parametrize("data", [b"2" * G, None])
def test_write_that_waited_for_a_cut_is_refused(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, data: bytes | None
) -> None:
    late = Waiting(pool, monkeypatch, 12 * G, data)
    pool.resize_volume("a", 4 * G)
    assert [type(error) for error in late.join()] == [InvalidRequest]
    assert pool.stats().slots_used == 4
    check_slots(pool)


def test_trim_of_the_last_granule_that_waited_for_growth_spares_what_was_added(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.resize_volume("a", 15 * G + 512)
    errors: list[ArrayliftError] = []
    gate = pool._state.volumes["a"].gate

    def trim() -> None:
        try:
            pool.trim("a", 15 * G, 512)  # whole, as long as the volume ends there
        except ArrayliftError as error:
            errors.append(error)

    thread = threading.Thread(target=trim)

    def start() -> None:
        thread.start()
        until(lambda: len(gate._queue) >= 2)

    pool.flush("a")
    just_before(monkeypatch, pool._commit._journal, "append", start)
    pool.resize_volume("a", 16 * G)
    thread.join(SECONDS_MAX)
    assert errors == []
    pool.write("a", 15 * G + 512, b"3" * 512)
    assert read(pool, A, 15 * G, 1024) == bytes(512) + b"3" * 512


def test_write_that_waited_for_a_rollback_is_on_top_of_it(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (info,) = pool.snapshot(["a"])
    pool.write("a", 0, b"2" * (2 * G))
    late = Waiting(pool, monkeypatch, G, b"3" * G)
    pool.rollback_volume("a", info.snapshot_id)
    assert late.join() == []
    assert read(pool, A, 0, 3 * G) == b"1" * G + b"3" * G + b"1" * G
    (newer,) = pool.snapshot(["a"])
    spans = pool.changed_ranges(newer.snapshot_id, info.state)
    assert spans is not None
    assert [part.tolist() for part in spans] == [[G], [G]]
    assert read(pool, SnapshotSource(info.snapshot_id), 0, G) == b"1" * G


def test_write_that_waited_for_a_swap_is_on_top_of_it(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    draft = pool.begin_clone_of("a", "restore", 16 * G)
    draft.write(0, b"4" * (2 * G))
    draft.save_progress(b"whole")
    late = Waiting(pool, monkeypatch, G, b"3" * G)
    member = Swap(draft.draft_id, "a", b"", LineageId(random_id()))
    (safety,) = pool.swap_drafts([member], safety_name="before")
    assert late.join() == []
    assert read(pool, A, 0, 3 * G) == b"4" * G + b"3" * G + b"1" * G
    assert read(pool, SnapshotSource(safety.snapshot_id), 0, 2 * G) == b"1" * (2 * G)


def test_reader_of_what_is_cut_off_ends_well(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_and_reuse() -> None:
        pool.resize_volume("a", 4 * G)
        pool.create_volume("b", 16 * G)
        pool.write("b", 0, b"b" * (12 * G))

    just_before(monkeypatch, pool._slots, "read_into", cut_and_reuse)
    assert read(pool, A, 8 * G, G) == b"1" * G
    pool.flush("a")
    assert pool.stats().slots_waiting == 0


def test_two_clones_leave_one_slot_at_once(
    pool: Pool, files: FakeFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last but one leaves in the commit that the last one's write overtakes."""
    (info,) = pool.snapshot(["a"])
    pool.clone_volume(info.snapshot_id, "b")
    pool.delete_snapshot(info.snapshot_id)
    pool.create_volume("c", G)
    pool.write("a", 0, b"2" * G)
    just_before(monkeypatch, pool._commit._journal, "append", lambda: pool.write("b", 0, b"3" * G))
    pool.flush("a")
    pool.write("c", 0, b"4" * G)  # must not get the slot: on the disk b still names it
    pool._slots.sync()
    again = reopened_after_power_cut(files)
    assert read(again, A, 0, G) == b"2" * G
    assert read(again, B, 0, G) == b"1" * G
    pool.flush("a")
    assert read(reopened_after_power_cut(files), B, 0, G) == b"3" * G
    check_slots(pool)


# -- checkpoints in the background --------------------------------------------------------------


def test_flush_does_not_wait_for_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool.open(RealFiles(), str(tmp_path / "pool"), journal_bytes_max=1, background=True)
    pool.create_volume("a", MIB)
    held, go_on = threading.Event(), threading.Event()
    real = pool._checkpointer._publish

    def publish(rotation: object) -> bool:
        held.set()
        assert go_on.wait(SECONDS_MAX)
        return real(rotation)  # type: ignore[arg-type]

    monkeypatch.setattr(pool._checkpointer, "_publish", publish)
    pool.write("a", 0, b"1" * G)
    pool.flush("a")
    pool.write("a", G, b"2" * G)
    pool.flush("a")
    assert held.wait(SECONDS_MAX)
    for value in range(3, 9):
        pool.write("a", value * G, bytes([value]) * G)
        pool.flush("a")  # while the checkpoint is being written
    (info,) = pool.snapshot(["a"])
    pool.delete_snapshot(info.snapshot_id)
    go_on.set()
    pool.close()
    again = Pool.open(RealFiles(), str(tmp_path / "pool"))
    assert read(again, A, 8 * G, 1) == b"\x08"
    assert again.check(repair=False).findings == ()
    again.close()


@pytest.mark.parametrize("seed", [1, 2])
def test_forks_under_writes_on_a_real_disk(tmp_path: Path, seed: int) -> None:
    """Two volumes are written while they are cloned, rolled back, resized, checked and snapshotted as a
    group, with checkpoints beside all that; each clone is what its snapshot was, whatever goes first."""
    pool = Pool.open(RealFiles(), str(tmp_path / "pool"), journal_bytes_max=5000, background=True)
    for name in ("a", "b"):
        pool.create_volume(name, 2 * MIB)
    stop = threading.Event()
    errors: list[BaseException] = []

    def guarded(work: object, number: int) -> threading.Thread:
        def run() -> None:
            try:
                work(random.Random(seed * 100 + number))  # type: ignore[operator]
            except BaseException as error:  # noqa: BLE001 - whatever it is, the test tells it
                errors.append(error)
                stop.set()

        return threading.Thread(target=run)

    def write(chance: random.Random) -> None:
        while not stop.is_set():
            at = chance.randrange(30 * G)
            name = chance.choice("ab")
            try:
                pool.write(name, at, chance.randbytes(chance.choice((512, G, 2 * G))))
            except InvalidRequest:  # it was cut meanwhile
                continue
            if chance.random() < 0.1:
                pool.flush(name)

    def fork(chance: random.Random) -> None:
        for number in range(40):
            one, other = pool.snapshot(["a", "b"])
            expected = read(pool, SnapshotSource(one.snapshot_id), 0, one.size_bytes)
            pool.clone_volume(one.snapshot_id, f"c{number}")
            if chance.random() < 0.5:
                pool.rollback_volume("b", other.snapshot_id, safety_name="safe")
            if chance.random() < 0.5:
                pool.resize_volume("a", chance.choice((MIB, 2 * MIB, 3 * MIB + 512)))
            for info in pool.snapshots():
                if chance.random() < 0.7:
                    pool.delete_snapshot(info.snapshot_id)
            assert read(pool, VolumeSource(f"c{number}"), 0, one.size_bytes) == expected
            pool.write(f"c{number}", 0, b"c" * G)
            if number >= 3:
                pool.delete_volume(f"c{number - 3}", cascade=True)
            assert pool.check(repair=False).findings == ()
        stop.set()

    threads = [guarded(write, 0), guarded(write, 1), guarded(fork, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert not errors, errors
    pool.flush("a")
    check_slots(pool)
    contents = {info.name: read(pool, VolumeSource(info.name), 0, info.size_bytes) for info in pool.volumes()}
    pool.close()
    again = Pool.open(RealFiles(), str(tmp_path / "pool"))
    for name, content in contents.items():
        assert read(again, VolumeSource(name), 0, len(content)) == content
    check_slots(again)
    again.close()


def test_a_close_in_the_moment_of_a_wanted_checkpoint_ends_its_thread(tmp_path: Path) -> None:
    pool = Pool.open(RealFiles(), str(tmp_path / "pool"), background=True)
    wanted = pool._checkpointer._wanted
    want, forget, told = wanted.set, wanted.clear, threading.Event()
    closer = threading.Thread(target=pool.close, daemon=True)

    def want_and_tell() -> None:
        want()
        told.set()

    def close_meanwhile() -> None:
        wanted.clear, wanted.set = forget, want_and_tell  # type: ignore[method-assign]
        closer.start()
        assert told.wait(10)
        forget()

    wanted.clear = close_meanwhile  # type: ignore[method-assign]
    want()
    assert told.wait(10)
    closer.join(10)
    assert not closer.is_alive(), "the thread waits for ever"
