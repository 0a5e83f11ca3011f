"""Resize, clone, rollback and swap: what they do, refuse, and give back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from arraylift.errors import (
    AlreadyExists,
    InvalidRequest,
    NotFound,
    OutOfSpace,
    Overloaded,
    StoreFailed,
    WrongState,
)
from arraylift.ids import LineageId, SnapshotId, VolumeId, random_id
from arraylift.sizes import GRANULE_BYTES, MIB
from primary_array import volume_ops
from primary_array.block_map import BlockMap
from primary_array.pool import Pool
from primary_array.pool_types import SnapshotSource, VolumeSource
from primary_array.volume_ops import Swap
from tests.fakes.disk import FakeFiles
from tests.unit.primary_array.test_pool import read

G = GRANULE_BYTES
A = VolumeSource("a")


@pytest.fixture
def files() -> FakeFiles:
    return FakeFiles()


@pytest.fixture
def pool(files: FakeFiles) -> Pool:
    made = Pool.open(files, "/pool")
    made.create_volume("a", 4 * MIB)
    return made


def test_space_is_told_for_each_volume_and_snapshot(pool: Pool) -> None:
    def unique(name: str) -> tuple[int, list[int]]:
        volume = pool.volume(name, with_space=True)
        snapshots = pool.snapshots(name, with_space=True)
        return volume.unique_bytes // G, [info.unique_bytes // G for info in snapshots]

    pool.write("a", 0, b"1" * (4 * G))
    assert unique("a") == (4, [])
    (one,) = pool.snapshot(["a"])
    assert unique("a") == (0, [0])
    pool.write("a", 0, b"2" * G)
    assert unique("a") == (1, [1])
    pool.clone_volume(one.snapshot_id, "b")
    assert (unique("a"), unique("b")) == ((1, [0]), (0, []))
    pool.write("b", 0, b"3" * (2 * G))
    assert (unique("a"), unique("b")) == ((1, [1]), (2, []))
    before = pool.stats().slots_used
    pool.delete_snapshot(one.snapshot_id)
    assert pool.stats().slots_used == before - 1, "as was told"
    assert (unique("a"), unique("b")) == ((2, []), (2, []))
    assert [info.unique_bytes // G for info in pool.volumes(with_space=True)] == [2, 2]
    assert pool.volume("a").unique_bytes == 0, "only where it is asked for"


def test_a_cut_gives_space_back_and_growth_takes_none(pool: Pool) -> None:
    pool.write("a", 0, b"1" * (4 * MIB))
    pool.resize_volume("a", MIB + 512)
    assert pool.stats().slots_used == 17
    assert pool.stats().data_file_bytes <= 17 * G
    info = pool.resize_volume("a", 16 << 40)
    assert (info.size_bytes, info.mapped_bytes) == (16 << 40, 17 * G)
    assert pool.stats().map_bytes < MIB, "sixteen tebibytes of tombstones are a page and a few nodes"
    assert read(pool, A, MIB, 1024) == b"1" * 512 + bytes(512)
    assert pool.resize_volume("a", 16 << 40) == info, "idempotent"
    pool.resize_volume("a", 512)
    assert pool.stats().slots_used == 1


def test_snapshots_keep_what_is_cut_off(pool: Pool) -> None:
    pool.write("a", 3 * MIB, b"1" * MIB)
    (info,) = pool.snapshot(["a"])
    pool.resize_volume("a", MIB)
    assert read(pool, SnapshotSource(info.snapshot_id), 3 * MIB, 3) == b"111"
    with pytest.raises(InvalidRequest):
        pool.write("a", MIB, b"x")
    back, safety = pool.rollback_volume("a", info.snapshot_id)
    assert (back.size_bytes, safety) == (4 * MIB, None)
    assert read(pool, A, 3 * MIB, 3) == b"111"


def test_clones_and_snapshots_go_in_any_order(pool: Pool) -> None:
    pool.write("a", 0, b"1" * MIB)
    (one,) = pool.snapshot(["a"])
    pool.clone_volume(one.snapshot_id, "b")
    (two,) = pool.snapshot(["b"])
    pool.clone_volume(two.snapshot_id, "c")
    pool.write("c", 0, b"3" * G)
    pool.delete_volume("a", cascade=True)
    pool.delete_volume("b", cascade=True)
    assert read(pool, VolumeSource("c"), 0, 2 * G) == b"3" * G + b"1" * G
    assert pool.stats().slots_used == 16
    pool.delete_volume("c")
    assert (pool.stats().slots_used, pool.stats().data_file_bytes) == (0, 0)


def test_refusals_change_nothing(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = pool.snapshot(["a"])
    pool.create_volume("b", MIB)
    nobody = SnapshotId("0" * 32)
    draft = pool.begin_volume("draft", MIB)
    line = LineageId(random_id())
    for error, call in (
        (NotFound, lambda: pool.resize_volume("x", MIB)),
        (InvalidRequest, lambda: pool.resize_volume("a", 5)),
        (NotFound, lambda: pool.clone_volume(nobody, "c")),
        (AlreadyExists, lambda: pool.clone_volume(one.snapshot_id, "b")),
        (AlreadyExists, lambda: pool.clone_volume(one.snapshot_id, "draft")),
        (InvalidRequest, lambda: pool.clone_volume(one.snapshot_id, "x/y")),
        (NotFound, lambda: pool.rollback_volume("a", nobody)),
        (NotFound, lambda: pool.rollback_volume("x", one.snapshot_id)),
        (InvalidRequest, lambda: pool.rollback_volume("b", one.snapshot_id)),
        (NotFound, lambda: pool.begin_clone("c", nobody, MIB)),
        (AlreadyExists, lambda: pool.begin_clone("a", one.snapshot_id, MIB)),
        (NotFound, lambda: pool.begin_clone_of("x", "c", MIB)),
        (InvalidRequest, lambda: pool.swap_drafts([], safety_name="s")),
        (InvalidRequest, lambda: pool.swap_drafts([Swap(draft.draft_id, "a", b"r", line)], safety_name="s")),
        (NotFound, lambda: pool.swap_drafts([Swap(VolumeId("0" * 32), "a", b"", line)], safety_name="s")),
        (NotFound, lambda: pool.swap_drafts([Swap(draft.draft_id, "x", b"", line)], safety_name="s")),
        (WrongState, lambda: pool.swap_drafts([Swap(draft.draft_id, "a", b"", line)], safety_name="s")),
    ):
        with pytest.raises(error):
            call()
    monkeypatch.setattr(volume_ops, "SNAPSHOTS_PER_VOLUME_MAX", 1)
    with pytest.raises(Overloaded):
        pool.rollback_volume("a", one.snapshot_id, safety_name="safe")
    assert [info.name for info in pool.volumes()] == ["a", "b"]
    assert pool.snapshots() == [one]
    assert pool.volume("a").state.lineage_id == one.state.lineage_id


def test_what_is_used_is_not_replaced(pool: Pool) -> None:
    (one,) = pool.snapshot(["a"])

    def refuse(name: str) -> None:
        raise WrongState(f"volume {name} is open")

    pool.refuse_changes_under(refuse)
    for call in (
        lambda: pool.resize_volume("a", MIB),
        lambda: pool.rollback_volume("a", one.snapshot_id),
        lambda: pool.delete_volume("a", cascade=True),
    ):
        with pytest.raises(WrongState, match="open"):
            call()
    assert pool.resize_volume("a", 8 * MIB).size_bytes == 8 * MIB, "nobody minds more"
    pool.clone_volume(one.snapshot_id, "b")


def test_full_disk_leaves_all_as_it_was(files: FakeFiles) -> None:
    for position in range(12):
        files = FakeFiles()
        pool = Pool.open(files, "/pool")
        pool.create_volume("a", 4 * MIB)
        pool.write("a", 0, b"1" * (2 * G))
        (one,) = pool.snapshot(["a"])
        pool.write("a", 0, b"2" * G)
        pool.flush("a")
        files.fail_after(position, "enospc")
        steps: list[Callable[[], object]] = [
            partial(pool.resize_volume, "a", 2 * G),
            partial(pool.clone_volume, one.snapshot_id, "c"),
            partial(pool.rollback_volume, "a", one.snapshot_id, safety_name="safe"),
        ]
        for step in steps:
            try:
                step()
            except OutOfSpace:
                assert pool.check(repair=False).findings == ()
                step()
            except StoreFailed:  # a sync that says "full" has lost data: only a restart helps
                break
        else:
            assert read(pool, A, 0, 2 * G) == read(pool, VolumeSource("c"), 0, 2 * G) == b"1" * (2 * G)
            assert [info.label for info in pool.snapshots("a")] == ["", "safe"]


def test_a_long_trim_looks_up_little_at_once(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    # A restore's hole may be a whole disk: looked up at once it would be gigabytes, under the map lock.
    monkeypatch.setattr("primary_array.granule_io.TRIM_GRANULES_MAX", 4)
    pool.create_volume("long", 64 * G + 512)
    for granule in (0, 3, 4, 21, 63, 64):
        pool.write("long", granule * G, b"x" * 512)
    looked: list[int] = []
    lookup = BlockMap.lookup

    def watched(self: BlockMap, first: int, count: int) -> object:
        looked.append(count)
        return lookup(self, first, count)

    with monkeypatch.context() as patch:
        patch.setattr(BlockMap, "lookup", watched)
        pool.trim("long", 100, 64 * G + 412)
    assert max(looked) <= 4
    into = bytearray(64 * G + 512)
    pool.read_into(VolumeSource("long"), 0, memoryview(into))
    assert into == b"x" * 100 + bytes(len(into) - 100)
    assert pool.volume("long").mapped_bytes == G
