"""Operations that meet half-way: chosen moments first, then many threads at once."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arraylift.durable import RealFiles
from arraylift.errors import ArrayliftError, NotFound, WrongState
from arraylift.sizes import GRANULE_BYTES, MIB
from primary_array.block_map import U64
from primary_array.map_events import Event
from primary_array.pool import Pool
from primary_array.pool_types import SnapshotSource, VolumeSource
from tests.fakes.disk import FakeFiles
from tests.property.pool_model import used_slots
from tests.unit.primary_array.test_pool import read
from tests.unit.primary_array.test_range_gate import until

G = GRANULE_BYTES
A, B = VolumeSource("a"), VolumeSource("b")
SECONDS_MAX = 20


def just_before(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, act: Callable[[], None]) -> None:
    """Run ``act`` once, in the moment before the next call of ``owner.name``."""
    real = getattr(owner, name)

    def wrapped(*args: Any, **named: Any) -> Any:
        monkeypatch.setattr(owner, name, real)
        act()
        return real(*args, **named)

    monkeypatch.setattr(owner, name, wrapped)


@pytest.fixture
def files() -> FakeFiles:
    return FakeFiles()


@pytest.fixture
def pool(files: FakeFiles) -> Pool:
    made = Pool.open(files, "/pool")
    made.create_volume("a", 16 * G)
    made.create_volume("b", 16 * G)
    return made


def reopened_after_power_cut(files: FakeFiles) -> Pool:
    """On the disk that lost everything that was not synced."""
    return Pool.open(next(iter(files.post_crash_states(maximum=1))), "/pool")


def test_slot_of_a_deleted_snapshot_waits_for_the_write_that_left_it(
    pool: Pool, files: FakeFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the deletion is appended, a write leaves the slot that the snapshot held. The write's
    mapping is not durable with the deletion: after a power cut the old map names the slot again."""
    pool.write("a", 0, b"1" * G)
    (snapshot,) = pool.snapshot(["a"])

    def overtake() -> None:
        pool.write("a", 0, b"2" * G)

    just_before(monkeypatch, pool._commit._journal, "append", overtake)
    real = pool._state.apply

    def apply(event: Event) -> U64:
        files.fail_after(1, "enospc")  # the second commit of the deletion, which carries the write
        return real(event)

    monkeypatch.setattr(pool._state, "apply", apply)
    pool.delete_snapshot(snapshot.snapshot_id)
    monkeypatch.setattr(pool._state, "apply", real)
    pool.write("b", 0, b"3" * G)  # must not get slot 1
    assert read(reopened_after_power_cut(files), A, 0, G) == b"1" * G
    assert read(pool, A, 0, G) == b"2" * G
    pool.flush("a")
    assert pool.stats().slots_used == len(used_slots(pool._state)) == 2


def test_write_during_a_checkpoint_is_not_in_it(files: FakeFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint must not name a slot whose data no sync covered."""
    pool = Pool.open(files, "/pool", journal_bytes_max=1)
    pool.create_volume("a", 16 * G)
    pool.write("a", 0, b"1" * G)
    just_before(monkeypatch, pool._commit._journal, "append", lambda: pool.write("a", G, b"2" * G))
    with pool._commit.transaction():
        pool._checkpointer.write_inside()
    assert read(reopened_after_power_cut(files), A, 0, 2 * G) == b"1" * G + bytes(G)
    pool.flush("a")
    assert read(reopened_after_power_cut(files), A, 0, 2 * G) == b"1" * G + b"2" * G


def test_write_during_a_flush_waits_for_the_next(
    pool: Pool, files: FakeFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.write("a", 0, b"1" * G)
    just_before(monkeypatch, pool._commit._journal, "append", lambda: pool.write("a", G, b"2" * G))
    pool.flush("a")
    assert read(reopened_after_power_cut(files), A, 0, 2 * G) == b"1" * G + bytes(G)
    pool.flush("a")
    assert read(reopened_after_power_cut(files), A, 0, 2 * G) == b"1" * G + b"2" * G


def test_in_place_write_during_a_sync_is_kept_by_the_next_flush(
    pool: Pool, files: FakeFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.write("a", 0, b"1" * G)
    pool.flush("a")
    pool.write("a", 0, b"2")
    real = pool._slots.sync

    def sync() -> None:
        real()
        monkeypatch.setattr(pool._slots, "sync", real)
        pool.write("a", 0, b"3")  # after the sync, before the flush is answered

    monkeypatch.setattr(pool._slots, "sync", sync)
    pool.flush("a")
    pool.flush("a")
    assert read(reopened_after_power_cut(files), A, 0, 1) == b"3"


def test_flush_without_news_does_no_io(pool: Pool, files: FakeFiles) -> None:
    pool.write("a", 0, b"1")
    pool.flush("a")
    before = files.op_count
    pool.flush("a")
    pool.flush("b")
    assert files.op_count == before


def test_flushes_that_wait_share_one_commit(
    pool: Pool, files: FakeFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.write("a", 0, b"1")
    syncs: list[int] = []
    real = pool._slots.sync

    def sync() -> None:
        syncs.append(1)
        real()

    monkeypatch.setattr(pool._slots, "sync", sync)
    with pool._commit._commit_lock:
        threads = [threading.Thread(target=pool.flush, args=("a",)) for _ in range(4)]
        for thread in threads:
            thread.start()
        pool.write("a", 0, b"2")
    for thread in threads:
        thread.join(SECONDS_MAX)
    assert 1 <= len(syncs) <= 2


def test_slot_is_not_reused_under_a_slow_reader(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.write("a", 0, b"old" + bytes(G - 3))
    pool.flush("a")

    def reuse() -> None:
        pool.trim("a", 0, G)
        pool.flush("a")
        for granule in range(4):
            pool.write("b", granule * G, b"b" * G)

    just_before(monkeypatch, pool._slots, "read_into", reuse)
    assert read(pool, A, 0, 3) == b"old"
    pool.flush("a")
    assert pool.stats().slots_waiting == 0


def test_reader_of_a_deleted_snapshot_ends_well(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.write("a", 0, b"snap" + bytes(G - 4))
    (snapshot,) = pool.snapshot(["a"])
    pool.trim("a", 0, G)

    def delete() -> None:
        pool.delete_snapshot(snapshot.snapshot_id)
        pool.write("b", 0, b"b" * (4 * G))

    just_before(monkeypatch, pool._slots, "read_into", delete)
    assert read(pool, SnapshotSource(snapshot.snapshot_id), 0, 4) == b"snap"


def test_pin_is_refused_while_the_deletion_commits(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    (snapshot,) = pool.snapshot(["a"])

    def pin() -> None:
        with pytest.raises(WrongState):
            pool.pin(snapshot.snapshot_id)

    just_before(monkeypatch, pool._commit._journal, "append", pin)
    pool.delete_snapshot(snapshot.snapshot_id)
    with pytest.raises(NotFound):
        pool.pin(snapshot.snapshot_id)


def test_write_waits_for_a_snapshot_and_falls_into_the_next_epoch(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.write("a", 0, b"1" * G)
    writer = threading.Thread(target=pool.write, args=("a", 0, b"2" * G))
    gate = pool._state.volumes["a"].gate

    def start() -> None:
        writer.start()
        until(lambda: len(gate._queue) == 2)
        assert read(pool, A, 0, 1) == b"1"

    pool.flush("a")
    just_before(monkeypatch, pool._commit._journal, "append", start)
    (snapshot,) = pool.snapshot(["a"])
    writer.join(SECONDS_MAX)
    assert read(pool, SnapshotSource(snapshot.snapshot_id), 0, G) == b"1" * G
    assert read(pool, A, 0, G) == b"2" * G
    (newer,) = pool.snapshot(["a"])
    spans = pool.changed_spans(newer.snapshot_id, snapshot.state)
    assert spans is not None
    assert spans.tolist() == [0]


def test_write_that_waited_for_a_deletion_finds_the_volume_gone(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[ArrayliftError] = []
    gate = pool._state.volumes["a"].gate

    def write() -> None:
        try:
            pool.write("a", 0, b"late")
        except ArrayliftError as error:
            errors.append(error)

    writer = threading.Thread(target=write)

    def start() -> None:
        writer.start()
        until(lambda: len(gate._queue) == 2)

    just_before(monkeypatch, pool._commit._journal, "append", start)
    pool.delete_volume("a")
    writer.join(SECONDS_MAX)
    assert [type(error) for error in errors] == [NotFound]
    assert pool.stats().slots_used == 0


def test_partial_writes_of_one_granule_do_not_lose_each_other(pool: Pool) -> None:
    pieces = 16
    for _ in range(20):
        pool.snapshot(["a"])
        for info in pool.snapshots("a")[:-1]:
            pool.delete_snapshot(info.snapshot_id)
        start = threading.Barrier(4)

        def write(worker: int, start: threading.Barrier = start) -> None:
            start.wait(SECONDS_MAX)
            for piece in range(worker, pieces, 4):
                pool.write("a", piece * 4096, bytes([piece + 1]) * 4096)

        threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS_MAX)
        assert read(pool, A, 0, G)[::4096] == bytes(range(1, pieces + 1))
        pool.write("a", 0, bytes(G))


@pytest.mark.parametrize("seed", [1, 2])
def test_many_threads_on_a_real_disk(tmp_path: Path, seed: int) -> None:
    """Writers in their own regions, a taker and deleter of snapshots, readers, flushes; then a restart."""
    pool = Pool.open(RealFiles(), str(tmp_path / "pool"), journal_bytes_max=20_000)
    size, regions = 2 * MIB, 4
    pool.create_volume("a", size)
    stop = threading.Event()
    errors: list[BaseException] = []
    content = [bytearray(size // regions) for _ in range(regions)]

    def guarded(work: Callable[[random.Random], None], number: int) -> threading.Thread:
        def run() -> None:
            try:
                work(random.Random(seed * 100 + number))
            except BaseException as error:  # noqa: BLE001 - whatever it is, the test tells it
                errors.append(error)
                stop.set()

        return threading.Thread(target=run)

    def writer(region: int) -> Callable[[random.Random], None]:
        def work(chance: random.Random) -> None:
            mine, base = content[region], region * size // regions
            for _ in range(150):
                at = chance.randrange(len(mine))
                data = chance.randbytes(chance.randint(1, min(3 * G, len(mine) - at)))
                if chance.random() < 0.2:
                    data = bytes(len(data))
                    pool.trim("a", base + at, len(data))
                else:
                    pool.write("a", base + at, data)
                mine[at : at + len(data)] = data
                assert read(pool, A, base, len(mine)) == mine
                if chance.random() < 0.2:
                    pool.flush("a")

        return work

    def snapshotter(chance: random.Random) -> None:
        held: list[tuple[SnapshotSource, bytes]] = []
        while not stop.is_set():
            (info,) = pool.snapshot(["a"])
            source = SnapshotSource(info.snapshot_id)
            held.append((source, read(pool, source, 0, size)))
            if len(held) > 3:
                source, expected = held.pop(chance.randrange(4))
                assert read(pool, source, 0, size) == expected
                pool.delete_snapshot(source.snapshot_id)

    writers = [guarded(writer(region), region) for region in range(regions)]
    other = guarded(snapshotter, 50)
    for thread in [*writers, other]:
        thread.start()
    for thread in writers:
        thread.join(60)
    stop.set()
    other.join(60)
    assert not errors, errors
    pool.flush("a")
    used = len(used_slots(pool._state))
    assert pool.stats().slots_used == used
    pool.close()
    pool = Pool.open(RealFiles(), str(tmp_path / "pool"))
    assert read(pool, A, 0, size) == b"".join(content)
    assert pool.stats().slots_used == used
    pool.close()
