"""The pool's front door: what it allows, refuses and tells."""

from __future__ import annotations

import os

import pytest

from arraylift.errors import AlreadyExists, InvalidRequest, NotFound, Overloaded, WrongState
from arraylift.ids import SnapshotId, SourceState
from arraylift.sizes import GRANULE_BYTES, MIB, TIB
from primary_array import volume_ops as pool_module
from primary_array.pool import Pool
from primary_array.pool_types import SnapshotSource, Source, VolumeSource
from tests.fakes.disk import FakeFiles

G = GRANULE_BYTES
A = VolumeSource("a")


class FixedClock:
    def monotonic(self) -> float:
        return 1.0

    def wall_ns(self) -> int:
        return 1_700_000_000_000_000_000


@pytest.fixture
def files() -> FakeFiles:
    return FakeFiles()


@pytest.fixture
def pool(files: FakeFiles) -> Pool:
    made = Pool.open(files, "/pool", clock=FixedClock())
    made.create_volume("a", 4 * MIB)
    return made


def read(pool: Pool, source: Source, offset: int, length: int) -> bytes:
    buffer = bytearray(b"?" * length)
    pool.read_into(source, offset, memoryview(buffer))
    return bytes(buffer)


# -- volumes --------------------------------------------------------------------------------


def test_volumes_are_listed_by_name_and_names_are_unique(pool: Pool) -> None:
    pool.create_volume("0", 512)
    assert [info.name for info in pool.volumes()] == ["0", "a"]
    with pytest.raises(AlreadyExists):
        pool.create_volume("a", 512)
    pool.begin_volume("draft", 512)
    with pytest.raises(AlreadyExists):
        pool.create_volume("draft", 512)
    with pytest.raises(AlreadyExists):
        pool.begin_volume("a", 512)


@pytest.mark.parametrize("size_bytes", [0, -512, 511, 513, 16 * TIB + 512])
def test_sizes_are_checked(pool: Pool, size_bytes: int) -> None:
    with pytest.raises(InvalidRequest):
        pool.create_volume("b", size_bytes)
    with pytest.raises(InvalidRequest):
        pool.begin_volume("b", size_bytes)


@pytest.mark.parametrize("name", ["", "x/y", "..", "a\0", " a", "n" * 256])
def test_names_are_checked(pool: Pool, name: str) -> None:
    with pytest.raises(InvalidRequest):
        pool.create_volume(name, 512)
    with pytest.raises(InvalidRequest):
        pool.begin_volume(name, 512)
    if name:
        with pytest.raises(InvalidRequest):
            pool.snapshot(["a"], name)


def test_largest_volume_is_thin(pool: Pool) -> None:
    info = pool.create_volume("huge", 16 * TIB)
    pool.write("huge", 16 * TIB - 3, b"end")
    assert read(pool, VolumeSource("huge"), 16 * TIB - 5, 5) == b"\0\0end"
    assert pool.volume("huge").mapped_bytes == G
    assert info.mapped_bytes == 0


def test_volumes_are_limited(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "VOLUMES_MAX", 2)
    pool.begin_volume("b", 512)
    with pytest.raises(Overloaded):
        pool.create_volume("c", 512)


def test_volume_with_snapshots_is_deleted_only_with_cascade(pool: Pool) -> None:
    pool.write("a", 0, os.urandom(3 * G))
    (snapshot,) = pool.snapshot(["a"])
    pool.write("a", 0, os.urandom(G))
    with pytest.raises(WrongState, match="cascade"):
        pool.delete_volume("a")
    with pool.pin(snapshot.snapshot_id), pytest.raises(WrongState, match="being read"):
        pool.delete_volume("a", cascade=True)
    pool.delete_volume("a", cascade=True)
    assert pool.volumes() == []
    assert pool.snapshots() == []
    assert (pool.stats().slots_used, pool.stats().data_file_bytes) == (0, 0)


def test_missing_things_are_not_found(pool: Pool) -> None:
    nobody = SnapshotId("0" * 32)
    for call in (
        lambda: pool.volume("x"),
        lambda: pool.delete_volume("x"),
        lambda: pool.write("x", 0, b""),
        lambda: pool.trim("x", 0, 0),
        lambda: pool.flush("x"),
        lambda: pool.snapshot(["a", "x"]),
        lambda: pool.snapshots("x"),
        lambda: pool.distrust("x"),
        lambda: pool.extents(VolumeSource("x"), 0, 0),
        lambda: pool.read_into(SnapshotSource(nobody), 0, memoryview(bytearray(1))),
        lambda: pool.get_snapshot(nobody),
        lambda: pool.delete_snapshot(nobody),
        lambda: pool.pin(nobody),
        lambda: pool.changed_spans(nobody, b""),
        lambda: pool.resume_draft(pool.volume("a").volume_id),
    ):
        with pytest.raises(NotFound):
            call()
    assert pool.snapshots() == []


# -- data -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, 1),
        (0, G),
        (1, G),
        (G - 1, 2),
        (G, 2 * G),
        (5, 3 * G),
        (3 * G + 7, G - 7),
        (4 * MIB - 9, 9),
        (9, 0),
    ],
)
def test_writes_land_and_leave_their_neighbours(pool: Pool, offset: int, length: int) -> None:
    before = bytearray(os.urandom(4 * MIB))
    pool.write("a", 0, before)
    pool.snapshot(["a"])  # so that the write has to move granules
    for _ in range(2):  # the second time in place
        data = os.urandom(length)
        pool.write("a", offset, data)
        before[offset : offset + length] = data
        assert read(pool, A, 0, 4 * MIB) == before


def test_write_to_a_reused_slot_shows_nothing_of_the_old_owner(pool: Pool) -> None:
    pool.create_volume("secret", G)
    pool.write("secret", 0, b"s" * G)
    pool.flush("secret")
    pool.snapshot(["secret"])
    pool.write("secret", 0, b"t" * G)
    pool.delete_snapshot(pool.snapshots("secret")[0].snapshot_id)
    pool.delete_volume("secret")
    pool.write("a", 100, b"x")
    assert read(pool, A, 0, G) == bytes(100) + b"x" + bytes(G - 101)


@pytest.mark.parametrize(("offset", "length"), [(-1, 2), (4 * MIB, 1), (4 * MIB - 1, 2), (0, 4 * MIB + 1)])
def test_ranges_outside_are_refused(pool: Pool, offset: int, length: int) -> None:
    with pytest.raises(InvalidRequest):
        pool.write("a", offset, bytes(length))
    with pytest.raises(InvalidRequest):
        pool.trim("a", offset, length)
    with pytest.raises(InvalidRequest):
        read(pool, A, offset, length)
    with pytest.raises(InvalidRequest):
        pool.extents(A, offset, length)


@pytest.mark.parametrize(
    ("offset", "length", "mapped"),
    [(0, 4 * G, 0), (1, 4 * G - 1, 1), (10, 20, 4), (G - 5, 10, 4), (G, G, 3), (G + 1, 2 * G, 3), (5, 0, 4)],
)
def test_trims_free_whole_granules_and_zero_the_rest(
    pool: Pool, offset: int, length: int, mapped: int
) -> None:
    pool.create_volume("t", 4 * G)
    expected = bytearray(os.urandom(4 * G))
    pool.write("t", 0, expected)
    pool.trim("t", offset, length)
    expected[offset : offset + length] = bytes(length)
    assert read(pool, VolumeSource("t"), 0, 4 * G) == expected
    assert pool.volume("t").mapped_bytes == mapped * G
    pool.flush("t")
    assert pool.stats().slots_used == mapped


def test_trim_to_the_end_frees_a_last_granule_used_in_part(pool: Pool) -> None:
    pool.create_volume("t", G + 512)
    pool.write("t", 0, b"x" * (G + 512))
    pool.trim("t", G, 512)
    assert pool.volume("t").mapped_bytes == G


def test_extents_join_neighbours_and_cut_at_the_range(pool: Pool) -> None:
    pool.write("a", G, b"x" * (2 * G))
    pool.write("a", 5 * G, b"x")
    assert list(pool.extents(A, 0, 4 * MIB)) == [
        (0, G, True),
        (G, 2 * G, False),
        (3 * G, 2 * G, True),
        (5 * G, G, False),
        (6 * G, 4 * MIB - 6 * G, True),
    ]
    assert list(pool.extents(A, G + 5, G)) == [(G + 5, G, False)]
    assert list(pool.extents(A, G - 5, 10)) == [(G - 5, 5, True), (G, 5, False)]
    assert list(pool.extents(A, 7, 0)) == []


def test_extents_join_across_look_ups(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.write("a", 2 * G, b"x" * (3 * G))
    whole = list(pool.extents(A, 0, 4 * MIB))
    monkeypatch.setattr("primary_array.pool_view.EXTENT_GRANULES", 3)
    assert list(pool.extents(A, 0, 4 * MIB)) == whole


def test_large_writes_take_consecutive_slots_in_large_calls(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    data = pool._slots._data
    real = data.write

    def write(at: int, piece: memoryview) -> None:
        sizes.append(piece.nbytes)
        real(at, piece)

    monkeypatch.setattr(data, "write", write)
    for offset in range(0, 4 * MIB, MIB):
        pool.write("a", offset, b"z" * MIB)
    assert sizes == [MIB] * 4
    assert len(pool._commit._pending[pool.volume("a").volume_id]) == 1


def test_long_writes_are_cut(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("primary_array.granule_io.WRITE_BYTES_MAX", 3 * G)
    data = os.urandom(10 * G)
    pool.write("a", 77, data)
    assert read(pool, A, 77, 10 * G) == data


def test_many_scattered_writes_commit_by_themselves(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("primary_array.map_commit.PENDING_RUNS_MAX", 4)
    before = pool.stats().journal_bytes
    for granule in range(0, 40, 2):
        pool.write("a", granule * G, b"x")
        assert pool._commit._pending_runs <= 4
    assert pool.stats().journal_bytes > before


# -- snapshots ------------------------------------------------------------------------------


def test_snapshot_keeps_content_while_the_volume_goes_on(pool: Pool) -> None:
    first, second = os.urandom(3 * G), os.urandom(3 * G)
    pool.write("a", 0, first)
    (snapshot,) = pool.snapshot(["a"], "nightly")
    pool.write("a", 0, second)
    pool.trim("a", G, G)
    assert read(pool, SnapshotSource(snapshot.snapshot_id), 0, 3 * G) == first
    assert (snapshot.label, snapshot.volume_name, snapshot.mapped_bytes) == ("nightly", "a", 3 * G)
    assert snapshot.created_at_ns == 1_700_000_000_000_000_000
    assert snapshot.state.birth == 1
    assert pool.volume("a").state.birth == 2
    assert pool.volume("a").snapshot_count == 1


def test_group_shares_its_id_and_order_is_the_callers(pool: Pool) -> None:
    pool.create_volume("b", MIB)
    infos = pool.snapshot(["b", "a"])
    assert [info.volume_name for info in infos] == ["b", "a"]
    assert infos[0].group_id == infos[1].group_id
    assert [info.volume_name for info in pool.snapshots()] == ["a", "b"]
    assert [info.snapshot_id for info in pool.snapshots("b")] == [infos[0].snapshot_id]


@pytest.mark.parametrize("names", [[], ["a", "a"], ["a"] * 65])
def test_odd_groups_are_refused(pool: Pool, names: list[str]) -> None:
    with pytest.raises(InvalidRequest):
        pool.snapshot(names)


def test_snapshots_of_a_volume_are_limited(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "SNAPSHOTS_PER_VOLUME_MAX", 1)
    pool.snapshot(["a"])
    pool.create_volume("b", 512)
    with pytest.raises(Overloaded):
        pool.snapshot(["b", "a"])
    assert pool.snapshots("b") == []


def test_pin_gives_slots_and_holds_the_snapshot(pool: Pool) -> None:
    pool.write("a", G, b"p" * G)
    (info,) = pool.snapshot(["a"])
    pin = pool.pin(info.snapshot_id)
    with pool.pin(info.snapshot_id) as second:
        assert second.info.pinned
    assert pool.get_snapshot(info.snapshot_id).pinned
    with pytest.raises(WrongState):
        pool.delete_snapshot(info.snapshot_id)
    slots = pin.slots(0, pin.granule_count)
    assert (len(slots), int(slots[0])) == (64, 0)
    content = pool._files.read(pin.data_path, int(slots[1]) * G, G)
    assert content == b"p" * G
    pin.release()
    pin.release()
    pool.delete_snapshot(info.snapshot_id)
    with pytest.raises(AssertionError):
        pin.slots(0, 1)


# -- changes --------------------------------------------------------------------------------


def test_changes_between_snapshots(pool: Pool) -> None:
    pool.write("a", 0, b"x" * (20 * G))
    (older,) = pool.snapshot(["a"])
    pool.write("a", 3 * G + 1, b"y")
    pool.trim("a", 17 * G, G)
    (newer,) = pool.snapshot(["a"])
    ranges = pool.changed_ranges(newer.snapshot_id, older.state)
    assert ranges is not None
    assert [part.tolist() for part in ranges] == [[3 * G, 17 * G], [G, G]]
    spans = pool.changed_spans(newer.snapshot_id, older.state)
    assert spans is not None
    assert spans.tolist() == [0, 1]
    resized = pool.changed_spans(newer.snapshot_id, older.state, base_bytes=3 * MIB)
    assert resized is not None
    assert resized.tolist() == [0, 1, 2, 3]


def test_nobody_tells_changes_since_what_is_no_ancestor(pool: Pool) -> None:
    (older,) = pool.snapshot(["a"])
    (newer,) = pool.snapshot(["a"])
    pool.create_volume("b", MIB)
    (other,) = pool.snapshot(["b"])
    assert pool.changed_spans(older.snapshot_id, newer.state) is None
    assert pool.changed_spans(newer.snapshot_id, other.state) is None
    copied = SourceState(type(pool.pool_id)("f" * 32), older.state.lineage_id, 1)
    assert pool.changed_ranges(newer.snapshot_id, copied) is None
    assert pool.changed_spans(newer.snapshot_id, b"r" * 32) is None
    assert pool.changed_spans(newer.snapshot_id, older.state) is not None


def test_distrust_makes_every_earlier_state_a_stranger_for_ever(pool: Pool, files: FakeFiles) -> None:
    (first,) = pool.snapshot(["a"])
    (second,) = pool.snapshot(["a"])
    pool.distrust("a")
    (third,) = pool.snapshot(["a"])
    for _ in range(2):
        for newer in (first, second, third):
            assert pool.changed_spans(newer.snapshot_id, first.state) is None
        now = pool.get_snapshot(second.snapshot_id)
        assert pool.changed_spans(third.snapshot_id, now.state) is None
        (fourth,) = pool.snapshot(["a"])
        assert pool.changed_spans(fourth.snapshot_id, third.state) is not None
        pool.close()
        pool = Pool.open(files, "/pool")


# -- drafts ---------------------------------------------------------------------------------


def test_draft_is_no_volume_until_its_commit(pool: Pool) -> None:
    draft = pool.begin_volume("new", 3 * G)
    draft.write(G, b"d" * G)
    with pytest.raises(NotFound):
        pool.volume("new")
    assert [(info.name, info.mapped_bytes, info.tag) for info in pool.drafts()] == [("new", G, None)]
    assert (draft.name, draft.size_bytes, draft.tag) == ("new", 3 * G, None)
    volume_id = draft.commit(root=b"r" * 32)
    info = pool.volume("new")
    assert info.volume_id == volume_id == draft.draft_id
    assert info.state.birth == 2
    assert pool.drafts() == []
    assert read(pool, VolumeSource("new"), 0, 3 * G) == bytes(G) + b"d" * G + bytes(G)
    for call in (
        lambda: draft.write(0, b"x"),
        lambda: draft.trim(0, G),
        draft.commit,
        lambda: draft.save_progress(b""),
        lambda: draft.read_into(0, memoryview(bytearray(1))),
    ):
        with pytest.raises(NotFound):
            call()
    draft.abort()
    assert pool.volume("new").volume_id == volume_id


def test_first_backup_of_a_restored_volume_is_an_incremental(pool: Pool, files: FakeFiles) -> None:
    draft = pool.begin_volume("new", 4 * MIB)
    draft.write(0, b"d" * (4 * MIB))
    draft.commit(root=b"r" * 32)
    pool.write("new", 2 * MIB + 5, b"changed")
    pool.close()
    pool = Pool.open(files, "/pool")
    (snapshot,) = pool.snapshot(["new"])
    spans = pool.changed_spans(snapshot.snapshot_id, b"r" * 32)
    assert spans is not None
    assert spans.tolist() == [2]
    assert pool.changed_spans(snapshot.snapshot_id, b"q" * 32) is None
    pool.distrust("new")
    assert pool.changed_spans(snapshot.snapshot_id, b"r" * 32) is None


def test_volume_without_a_root_has_no_origin(pool: Pool) -> None:
    draft = pool.begin_volume("new", G)
    draft.commit()
    assert pool.volume("new").origin is None
    (snapshot,) = pool.snapshot(["new"])
    assert pool.changed_spans(snapshot.snapshot_id, b"") is None
    with pytest.raises(InvalidRequest):
        pool.begin_volume("other", G).commit(root=b"short")


@pytest.mark.parametrize("saved", [False, True])
def test_aborted_draft_leaves_nothing(pool: Pool, saved: bool) -> None:
    draft = pool.begin_volume("new", 4 * G)
    draft.write(0, b"d" * (4 * G))
    draft.trim(G, G)
    if saved:
        draft.save_progress(b"half")
    draft.abort()
    draft.abort()
    assert pool.drafts() == []
    assert (pool.stats().slots_used, pool.stats().data_file_bytes) == (0, 0)
    pool.create_volume("new", G)


def test_saved_draft_goes_on_after_a_kill(pool: Pool, files: FakeFiles) -> None:
    draft = pool.begin_volume("new", 4 * G)
    draft.write(0, b"1" * G)
    draft.save_progress(b"one granule")
    lost = pool.begin_volume("lost", G)
    lost.write(0, b"2" * G)
    pool = Pool.open(files.after_kill(), "/pool")
    (info,) = pool.drafts()
    assert (info.name, info.tag, info.draft_id) == ("new", b"one granule", draft.draft_id)
    again = pool.resume_draft(info.draft_id)
    again.write(G, b"3" * G)
    again.commit()
    assert read(pool, VolumeSource("new"), 0, 2 * G) == b"1" * G + b"3" * G
    assert pool.stats().slots_used == 2


def test_oversize_tags_are_refused(pool: Pool) -> None:
    draft = pool.begin_volume("new", G)
    with pytest.raises(InvalidRequest):
        draft.save_progress(bytes((1 << 20) + 1))
    draft.save_progress(bytes(1 << 20))


def test_scattered_draft_is_journaled_on_the_way(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("primary_array.map_commit.PENDING_RUNS_MAX", 4)
    monkeypatch.setattr("primary_array.map_commit.RUNS_PER_FRAME_MAX", 3)
    draft = pool.begin_volume("new", 4 * MIB)
    for granule in reversed(range(64)):
        draft.write(granule * G, bytes([granule + 1]) * G)
    draft.commit()
    assert read(pool, VolumeSource("new"), 0, 4 * MIB)[::G] == bytes(range(1, 65))


# -- stats ----------------------------------------------------------------------------------


def test_stats(pool: Pool) -> None:
    pool.write("a", 0, b"x" * (3 * G))
    pool.snapshot(["a"])
    pool.begin_volume("d", 512)
    stats = pool.stats()
    assert stats.pool_id == pool.pool_id
    assert (stats.slots_used, stats.slots_waiting, stats.granule_bytes) == (3, 0, G)
    assert (stats.volume_count, stats.snapshot_count, stats.draft_count) == (1, 1, 1)
    assert stats.data_file_bytes == 3 * G
    assert stats.map_bytes == 16384
    assert stats.free_bytes > 0
    assert stats.journal_bytes > 0
