"""Exports: what may be served, what serving it keeps from happening, and changes of snapshots."""

from __future__ import annotations

import itertools
import threading
import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from arraylift.errors import (
    AlreadyExists,
    DeadlineExceeded,
    NotFound,
    NotPermitted,
    Overloaded,
    WrongState,
)
from arraylift.nbd.device import BASE_ALLOCATION
from arraylift.rpc.identity import Peer
from arraylift.sizes import GIB, GRANULE_BYTES, MIB, TIB
from primary_array import exports as module
from primary_array import pool_device
from primary_array.exports import ArrayExports
from primary_array.map_events import TableEvent
from primary_array.pool import Pool
from tests.fakes.disk import FakeFiles

G = GRANULE_BYTES


class Stage:
    def __init__(self) -> None:
        self.files = FakeFiles()
        self.open()
        self.pool.create_volume("v", 64 * G)

    def open(self) -> None:
        self.pool = Pool.open(self.files, "/pool")
        self.exports = ArrayExports(self.pool, self.files, "/pool")

    def reopen(self) -> None:
        self.exports.close()
        self.pool.close()
        self.open()


@pytest.fixture
def stage() -> Stage:
    return Stage()


def nobody() -> None:
    """Nothing to hang up."""


def test_a_volume_is_read_and_written_through_its_device(stage: Stage) -> None:
    stage.exports.create("e", volume_name="v", read_only=False)
    device = stage.exports.open("e", None, nobody)
    device.write(5, b"hello")
    device.write_zeroes(G, 3 * G, allocate=True)
    device.write_zeroes(2 * G, G, allocate=False)
    into = bytearray(10)
    device.read_into(0, memoryview(into))
    assert into == b"\0" * 5 + b"hello"
    extents = list(device.status(BASE_ALLOCATION, 0, 6 * G))
    assert extents == [(2 * G, 0), (G, 3), (G, 0), (2 * G, 3)]
    device.trim(0, G)
    device.cache(0, 64 * G)
    device.flush()
    assert next(device.status(BASE_ALLOCATION, 0, G)) == (G, 3)
    device.close()


@pytest.mark.parametrize(
    ("caller", "read_only"), [(Peer("host", "h"), False), (Peer("target", "t"), True), (None, False)]
)
def test_roles_that_read_get_a_device_that_refuses(
    stage: Stage, caller: Peer | None, read_only: bool
) -> None:
    stage.exports.create("e", volume_name="v", read_only=False)
    device = stage.exports.open("e", caller, nobody)
    assert device.read_only == read_only
    if read_only:
        with pytest.raises(NotPermitted):
            device.write(0, b"x")
        with pytest.raises(NotPermitted):
            device.trim(0, 1)
        with pytest.raises(NotPermitted):
            device.write_zeroes(0, 1, allocate=True)
    device.close()


def test_other_roles_get_no_names_and_no_device(stage: Stage) -> None:
    stage.exports.create("e", volume_name="v", read_only=False)
    for role in ("server", "vcenter"):
        with pytest.raises(NotPermitted):
            stage.exports.listed(Peer(role, "x"))
        with pytest.raises(NotPermitted):
            stage.exports.open("e", Peer(role, "x"), nobody)


def test_exports_survive_and_serve_no_later_volume_of_the_name(stage: Stage) -> None:
    stage.exports.create("e", volume_name="v", read_only=True)
    stage.reopen()
    assert [info.record.name for info in stage.exports.infos()] == ["e"]
    stage.pool.delete_volume("v")  # not through the edge, which would refuse
    stage.pool.create_volume("v", G)
    with pytest.raises(NotFound, match="gone"):
        stage.exports.open("e", None, nobody)
    assert stage.exports.infos()[0].volume_name == ""


def test_making_one_again_is_fine_and_another_of_its_name_is_not(stage: Stage) -> None:
    snapshot = stage.pool.snapshot(["v"])[0].snapshot_id
    first = stage.exports.create("e", volume_name="v", read_only=False)
    assert stage.exports.create("e", volume_name="v", read_only=False) == first
    for other in ({"volume_name": "v", "read_only": True}, {"snapshot_id": snapshot, "read_only": True}):
        with pytest.raises(AlreadyExists):
            stage.exports.create("e", **other)  # type: ignore[arg-type]


def test_an_exported_snapshot_stays_until_its_export_goes(stage: Stage) -> None:
    snapshot = stage.pool.snapshot(["v"])[0].snapshot_id
    stage.exports.create("s", snapshot_id=snapshot, read_only=False)
    assert stage.exports.infos()[0].record.read_only
    stage.reopen()
    with pytest.raises(WrongState):
        stage.pool.delete_snapshot(snapshot)
    stage.exports.remove("s")
    stage.pool.delete_snapshot(snapshot)


def test_an_export_whose_snapshot_is_gone_is_shown_and_opens_for_nobody(stage: Stage) -> None:
    snapshot = stage.pool.snapshot(["v"])[0].snapshot_id
    stage.exports.create("s", snapshot_id=snapshot, read_only=False)
    stage.exports.close()  # lets the pin go, as nothing else does
    stage.pool.delete_snapshot(snapshot)
    stage.pool.close()
    stage.open()
    assert [info.record.name for info in stage.exports.infos()] == ["s"]
    with pytest.raises(NotFound):
        stage.exports.open("s", None, nobody)
    stage.exports.remove("s")


def test_removing_hangs_up_and_waits_for_the_last(stage: Stage) -> None:
    stage.exports.create("e", volume_name="v", read_only=False)
    hung_up = threading.Event()
    device = stage.exports.open("e", None, hung_up.set)
    remover = threading.Thread(target=stage.exports.remove, args=("e",))
    remover.start()
    assert hung_up.wait(10)
    with pytest.raises(NotFound):
        stage.exports.open("e", None, nobody)
    with pytest.raises(AlreadyExists):
        stage.exports.create("e", volume_name="v", read_only=False)
    assert stage.exports.infos()[0].connection_count == 1
    device.close()
    remover.join(10)
    assert stage.exports.infos() == []


def test_a_client_that_does_not_end_keeps_the_export(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMOVAL_SECONDS_MAX", 0.05)
    stage.exports.create("e", volume_name="v", read_only=False)
    device = stage.exports.open("e", None, nobody)
    with pytest.raises(DeadlineExceeded):
        stage.exports.remove("e")
    device.close()
    stage.exports.open("e", None, nobody).close()
    stage.exports.remove("e")


def test_a_held_volume_is_neither_exported_nor_opened(stage: Stage) -> None:
    stage.exports.create("e", volume_name="v", read_only=False)
    with pytest.raises(WrongState, match="exported as e"), stage.exports.hold("v"):
        pass
    stage.exports.remove("e")
    with stage.exports.hold("v"):
        with pytest.raises(WrongState):
            stage.exports.create("e", volume_name="v", read_only=False)
        with pytest.raises(WrongState), stage.exports.hold("v"):
            pass
    stage.exports.create("e", volume_name="v", read_only=False)


def _resize(pool: Pool) -> None:
    pool.resize_volume("v", G)


def _rollback(pool: Pool) -> None:
    pool.rollback_volume("v", pool.snapshots("v")[0].snapshot_id)


def test_what_somebody_writes_to_is_not_changed_under_him(stage: Stage) -> None:
    stage.pool.snapshot(["v"])
    stage.exports.create("e", volume_name="v", read_only=False)
    writer = stage.exports.open("e", Peer("host", "h"), nobody)
    for change in (_resize, _rollback):
        with pytest.raises(WrongState, match="open for writing"):
            change(stage.pool)
    writer.close()
    reader = stage.exports.open("e", Peer("array", "a"), nobody)
    _rollback(stage.pool)
    reader.close()


def test_what_is_exported_is_not_made_smaller(stage: Stage) -> None:
    """A client whose connection was cut comes back to its export, and to the size that it knows."""
    snapshot = stage.pool.snapshot(["v"])[0].snapshot_id
    stage.exports.create("s", snapshot_id=snapshot, read_only=True)
    stage.exports.create("e", volume_name="v", read_only=True)
    with pytest.raises(WrongState, match="exported as e"):
        _resize(stage.pool)
    stage.pool.resize_volume("v", 65 * G)
    stage.exports.remove("e")
    _resize(stage.pool)


def _meanwhile(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, change: Callable[[Pool], None], tried: Callable[[], None]
) -> None:
    """Try something in the moment in which a change commits."""
    commit, commits = stage.pool._commit.commit, []

    def committing(*events: TableEvent) -> None:
        tried()
        commits.append(events)
        commit(*events)

    with monkeypatch.context() as patch:
        patch.setattr(stage.pool._commit, "commit", committing)
        change(stage.pool)
    assert commits


def test_nobody_opens_for_writing_what_is_being_rolled_back(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.pool.snapshot(["v"])
    stage.exports.create("e", volume_name="v", read_only=False)

    def tried() -> None:
        stage.exports.open("e", Peer("array", "a"), nobody).close()
        with pytest.raises(WrongState, match="being changed"):
            stage.exports.open("e", Peer("host", "h"), nobody)

    _meanwhile(stage, monkeypatch, _rollback, tried)
    stage.exports.open("e", Peer("host", "h"), nobody).close()


def test_nobody_exports_what_is_being_made_smaller(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = stage.pool.snapshot(["v"])[0].snapshot_id

    def tried() -> None:
        stage.exports.create("s", snapshot_id=snapshot, read_only=True)
        with pytest.raises(WrongState, match="being changed"):
            stage.exports.create("e", volume_name="v", read_only=False)

    _meanwhile(stage, monkeypatch, _resize, tried)
    stage.exports.create("e", volume_name="v", read_only=False)


def test_no_host_takes_all_connections(stage: Stage) -> None:
    exports = ArrayExports(stage.pool, stage.files, "/pool", connections_per_caller=2)
    exports.create("e", volume_name="v", read_only=False)
    mine = [exports.open("e", Peer("host", "h"), nobody) for _ in range(2)]
    with pytest.raises(Overloaded, match="2 connections"):
        exports.open("e", Peer("host", "h"), nobody)
    others = [exports.open("e", caller, nobody) for caller in (Peer("host", "i"), None, None, None)]
    mine.pop().close()
    mine.append(exports.open("e", Peer("host", "h"), nobody))
    for device in mine + others:
        device.close()


# -- changes ------------------------------------------------------------------------------------


def _changed(states: Iterator[tuple[int, int]]) -> list[tuple[int, int]]:
    """(offset, length) of what may differ."""
    found, offset = [], 0
    for length, state in states:
        if state:
            found.append((offset, length))
        offset += length
    return found


def test_a_snapshot_tells_what_changed_since_each_older_one(stage: Stage) -> None:
    stage.pool.write("v", 0, b"a" * G)
    one = stage.pool.snapshot(["v"])[0].snapshot_id
    stage.pool.write("v", 4 * G, b"b")
    two = stage.pool.snapshot(["v"])[0].snapshot_id
    stage.pool.trim("v", 0, G)
    three = stage.pool.snapshot(["v"])[0].snapshot_id
    stage.pool.write("v", 9 * G, b"later")
    stage.exports.create("s", snapshot_id=three, read_only=True)
    device = stage.exports.open("s", None, nobody)
    since_one, since_two = (f"arraylift:changed:{each}" for each in (one, two))
    assert device.contexts() == [BASE_ALLOCATION, since_one, since_two]
    whole = 64 * G
    assert _changed(device.status(since_one, 0, whole)) == [(0, G), (4 * G, G)]
    assert _changed(device.status(since_two, 0, whole)) == [(0, G)]
    inside = list(device.status(since_one, 4 * G + 5, 2 * G))
    assert inside == [(G - 5, 1), (G + 5, 0)]
    assert list(device.status(since_two, 5 * G, G)) == [(G, 0)]
    assert list(device.status(since_one, 5 * G, G)) == [(G, 0)]
    device.close()


@pytest.mark.parametrize("window", [1, 3, 4096])
def test_changes_are_told_window_by_window(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    """As the pool tells them at once, whatever range is asked for, also after a resize."""
    monkeypatch.setattr(pool_device, "STATUS_GRANULES", window)
    older = stage.pool.snapshot(["v"])[0]
    for granule in (0, 1, 2, 7, 8, 20, 21, 40, 63):
        stage.pool.write("v", granule * G + 5, b"x")
    stage.pool.resize_volume("v", 100 * G + 512)
    newer = stage.pool.snapshot(["v"])[0]
    stage.exports.create("s", snapshot_id=newer.snapshot_id, read_only=True)
    device = stage.exports.open("s", None, nobody)
    since = f"arraylift:changed:{older.snapshot_id}"
    ranges = stage.pool.changed_ranges(newer.snapshot_id, older.state, base_bytes=older.size_bytes)
    assert ranges is not None
    told = bytearray(device.size_bytes)
    for offset, length in zip(*(part.tolist() for part in ranges), strict=True):
        told[offset : offset + length] = b"\1" * length
    for start, stop in (
        (0, len(told)),
        (5, 3 * G),
        (2 * G - 1, 2 * G),
        (63 * G, len(told)),
        (90 * G, 91 * G),
    ):
        found = list(device.status(since, start, stop - start))
        assert b"".join(bytes([state]) * length for length, state in found) == told[start:stop]
        assert all(one[1] != other[1] for one, other in itertools.pairwise(found)), "joined"
    device.close()


def test_what_a_client_asks_of_changes_takes_no_memory_by_the_volume(stage: Stage) -> None:
    """A granule in two of a large volume: the array had a list of them all for each that asked."""
    stage.pool.create_volume("large", TIB)
    older = stage.pool.snapshot(["large"])[0]
    with stage.pool._state.lock:
        granules = np.arange(0, 1 << 20, 2, dtype=np.uint64)
        stage.pool._state.volumes["large"].map.scatter(granules, np.zeros(len(granules), np.uint64), 2)
    newer = stage.pool.snapshot(["large"])[0]
    stage.exports.create("s", snapshot_id=newer.snapshot_id, read_only=True)
    device = stage.exports.open("s", None, nobody)
    tracemalloc.start()
    try:
        states = device.status(f"arraylift:changed:{older.snapshot_id}", 0, GIB)
        assert list(itertools.islice(states, 3)) == [(G, 1), (G, 0), (G, 1)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MIB
    device.close()


def test_a_client_that_is_connected_is_told_nothing_after_distrust(stage: Stage) -> None:
    older, newer = (stage.pool.snapshot(["v"])[0].snapshot_id for _ in range(2))
    stage.exports.create("s", snapshot_id=newer, read_only=True)
    device = stage.exports.open("s", None, nobody)
    since = f"arraylift:changed:{older}"
    assert list(device.status(since, 0, 64 * G)) == [(64 * G, 0)]
    stage.pool.distrust("v")
    with pytest.raises(WrongState, match="believed"):
        list(device.status(since, 0, 64 * G))
    later = stage.exports.open("s", None, nobody)
    assert later.contexts() == [BASE_ALLOCATION]
    device.close()
    later.close()


def test_a_volume_and_other_lineages_tell_no_changes(stage: Stage) -> None:
    older = stage.pool.snapshot(["v"])[0].snapshot_id
    stage.pool.rollback_volume("v", older)
    stage.pool.write("v", 0, b"x")
    newer = stage.pool.snapshot(["v"])[0].snapshot_id
    stage.exports.create("v", volume_name="v", read_only=False)
    stage.exports.create("s", snapshot_id=newer, read_only=True)
    for name in ("v", "s"):
        device = stage.exports.open(name, None, nobody)
        assert device.contexts() == [BASE_ALLOCATION]
        device.close()


def test_a_context_whose_snapshot_is_gone_is_an_error(stage: Stage) -> None:
    one, two = (stage.pool.snapshot(["v"])[0].snapshot_id for _ in range(2))
    stage.exports.create("s", snapshot_id=two, read_only=True)
    device = stage.exports.open("s", None, nobody)
    stage.pool.delete_snapshot(one)
    with pytest.raises(NotFound):
        next(device.status(f"arraylift:changed:{one}", 0, G))
    device.close()
