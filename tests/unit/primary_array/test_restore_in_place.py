"""Restores that spare what the array has, and restores in place: whole groups, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from arraylift.errors import (
    AlreadyExists,
    ArrayliftError,
    Conflict,
    InvalidRequest,
    NotFound,
    WrongState,
)
from arraylift.exchange import wire
from arraylift.exchange.messages import Missing, Open
from arraylift.ids import TransferId
from arraylift.sizes import GRANULE_BYTES, MIB
from primary_array.pool_types import SnapshotSource, Source, VolumeSource
from primary_array.restore_draft import RestoreDraft, differing_runs
from tests.property.test_commit_states import _offer, _segments
from tests.unit.primary_array.test_restore_draft import (
    DISK,
    KEY,
    LEASE_SECONDS,
    TARGET,
    Array,
    Lane,
    _root,
)

GROUP = "e" * 32
SPANS = [0, 1, 2]
LIVE = bytearray(DISK)
LIVE[100_000:100_010] = b"0123456789"
LIVE[MIB + 5 : MIB + 9] = b"full"  # the image has a hole there
LIVE_BYTES = bytes(LIVE)


class CountingLane(Lane):
    """Counts the segments that the array wants."""

    wanted = 0

    def end(self) -> None:
        """The sender closes its side."""
        self._requests.append(None)  # type: ignore[arg-type]
        assert list(self._replies) == []

    def deliver(self, spans: list[int], disk: bytes = DISK) -> None:
        for span in spans:
            self.batch += 1
            offer, pieces = _offer(self.batch, span, disk, KEY)
            missing = self.ask(offer, Missing)
            assert isinstance(missing, Missing)
            if missing.wanted is not None:
                self.wanted += int(missing.wanted.sum())
                self._requests.append(wire.encode_request(_segments(missing, pieces)))


@pytest.fixture
def array() -> Iterator[Array]:
    made = Array()
    add(made, "a", LIVE_BYTES)
    yield made
    made.close()


def add(array: Array, name: str, content: bytes) -> None:
    array.pool.create_volume(name, len(content))
    array.pool.write(name, 0, content)
    array.pool.flush(name)


def read(array: Array, source: Source, length: int = len(DISK)) -> bytes:
    into = bytearray(length)
    array.pool.read_into(source, 0, memoryview(into))
    return bytes(into)


def opening(
    array: Array,
    number: int = 1,
    *,
    volume: str = "a",
    reference: Source | None = None,
    group_id: str = "",
    disk: bytes = DISK,
) -> Open:
    transfer_id = TransferId(f"{number:032x}")
    grant = array.restores.prepare(
        transfer_id, target="target1", volume_name=volume, reference=reference, group_id=group_id
    )
    plain = replace(array.opening(99, "unused"), transfer_id=transfer_id, grant=grant)
    array.restores.revoke(TransferId(f"{99:032x}"))
    return replace(plain, image_bytes=len(disk), root=_root(disk))


def arrive(array: Array, message: Open, disk: bytes = DISK) -> CountingLane:
    lane = CountingLane(array, message)
    lane.deliver(list(range(-(-len(disk) // MIB))), disk)
    assert lane.commit().root == _root(disk)
    return lane


# -- references ---------------------------------------------------------------------------------


def test_nothing_travels_that_the_reference_has(array: Array) -> None:
    add(array, "same", DISK)
    (info,) = array.pool.snapshot(["same"])
    used = array.pool.stats().slots_used
    lane = arrive(array, opening(array, volume="back", reference=SnapshotSource(info.snapshot_id)))
    assert lane.wanted == 0
    assert array.content("back") == DISK
    assert array.pool.stats().slots_used == used, "D5: everything is shared"
    assert array.pool.volume("back", with_space=True).unique_bytes == 0
    array.pool.delete_volume("same", cascade=True)
    assert array.content("back") == DISK


def test_only_what_differs_from_a_living_volume_travels_and_is_written(array: Array) -> None:
    lane = arrive(array, opening(array, volume="back", reference=VolumeSource("a")))
    assert 0 < lane.wanted <= 4
    assert array.content("back") == DISK
    assert read(array, VolumeSource("a")) == LIVE_BYTES
    unique = array.pool.volume("back", with_space=True).unique_bytes
    assert unique == GRANULE_BYTES, "D5: one granule differs, the hole is trimmed"
    assert array.pool.snapshots() == [], "the passing snapshot left nothing"
    (taken,) = array.pool.snapshot(["back"])
    spans = array.pool.changed_spans(taken.snapshot_id, _root(DISK))
    assert spans is not None
    assert spans.tolist() == []


def test_moved_content_is_found_inside_its_span(array: Array) -> None:
    moved = bytearray(DISK)
    moved[40_000:900_000] = DISK[39_990:899_990]
    lane = arrive(
        array, opening(array, volume="back", reference=VolumeSource("a"), disk=bytes(moved)), bytes(moved)
    )
    assert lane.wanted < 12
    assert array.content("back") == bytes(moved)


@pytest.mark.parametrize("size", [MIB + 70_144, len(DISK) + MIB + 512])
def test_reference_may_be_larger_or_smaller(array: Array, size: int) -> None:
    disk = (DISK + np.random.default_rng(7).bytes(2 * MIB))[:size]
    add(array, "other", disk)
    arrive(array, opening(array, volume="back", reference=VolumeSource("other")))
    assert array.content("back") == DISK
    array.pool.resize_volume("back", len(DISK) + GRANULE_BYTES)
    assert read(array, VolumeSource("back"), len(DISK) + GRANULE_BYTES) == DISK + bytes(GRANULE_BYTES)


def test_references_are_looked_for(array: Array) -> None:
    with pytest.raises(NotFound):
        opening(array, volume="back", reference=VolumeSource("nobody"))
    with pytest.raises(NotFound):
        opening(array, volume="nobody", group_id=GROUP)
    with pytest.raises(InvalidRequest):
        opening(array, reference=VolumeSource("a"), group_id=GROUP)
    with pytest.raises(AlreadyExists):
        opening(array, volume="a", reference=VolumeSource("a"))


def test_a_span_that_changes_under_the_lane_is_told(array: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    real = RestoreDraft.pieces_of

    def overtaken(restore: RestoreDraft, span: int) -> dict[bytes, tuple[int, int]]:
        found = real(restore, span)
        restore.draft.write(span * MIB, b"late")
        return found

    message = opening(array, volume="back", reference=VolumeSource("a"))
    monkeypatch.setattr(RestoreDraft, "pieces_of", overtaken)
    lane = CountingLane(array, message)
    with pytest.raises(Conflict, match="changed"):
        lane.deliver([2])
    monkeypatch.undo()
    arrive(array, message)
    assert array.content("back") == DISK


# -- in place -----------------------------------------------------------------------------------


def test_a_group_is_swapped_in_together_and_the_old_state_kept(array: Array) -> None:
    add(array, "b", DISK[::-1])
    other = DISK[: MIB + 512]
    first, second = (
        opening(array, 1, group_id=GROUP),
        opening(array, 2, volume="b", group_id=GROUP, disk=other),
    )
    arrive(array, first)
    assert read(array, VolumeSource("a")) == LIVE_BYTES, "S4"
    arrive(array, second, other)
    assert array.volume_names == ["a", "b"]
    array.pool.write("a", 0, b"late")
    transfers = [first.transfer_id, second.transfer_id]
    volumes, safeties = array.restores.commit_group(GROUP, transfers, safety_name="before")
    assert [(one.name, one.size_bytes) for one in volumes] == [("a", len(DISK)), ("b", len(other))]
    assert read(array, VolumeSource("a")) == DISK
    assert read(array, VolumeSource("b"), len(other)) == other
    assert len({one.group_id for one in safeties}) == 1
    assert read(array, SnapshotSource(safeties[0].snapshot_id)) == b"late" + LIVE_BYTES[4:]
    assert read(array, SnapshotSource(safeties[1].snapshot_id)) == DISK[::-1]
    assert array.pool.drafts() == []
    again = array.restores.commit_group(GROUP, transfers, safety_name="before")
    assert again == (volumes, safeties), "idempotent"
    for name, disk in (("a", DISK), ("b", other)):
        (taken,) = array.pool.snapshot([name])
        spans = array.pool.changed_spans(taken.snapshot_id, _root(disk))
        assert spans is not None
        assert spans.tolist() == [], "the next backup is an incremental on the image"
    assert array.pool.check(repair=False).findings == ()
    array.pool.rollback_volume("a", safeties[0].snapshot_id)
    assert read(array, VolumeSource("a")) == b"late" + LIVE_BYTES[4:]


def test_what_the_volume_has_already_does_not_travel(array: Array) -> None:
    lane = arrive(array, opening(array, group_id=GROUP))
    assert 0 < lane.wanted <= 4


def test_a_group_is_not_swapped_in_by_halves(array: Array) -> None:
    add(array, "b", LIVE_BYTES)
    first, second = opening(array, 1, group_id=GROUP), opening(array, 2, volume="b", group_id=GROUP)
    arrive(array, first)
    lane = CountingLane(array, second)
    lane.deliver([0, 1])
    both = [first.transfer_id, second.transfer_id]
    for transfers, group, error, why in (
        (both, GROUP, WrongState, "not arrived whole"),
        ([first.transfer_id], GROUP, InvalidRequest, "all 2"),
        ([first.transfer_id], "d" * 32, InvalidRequest, "not of group"),
        ([TransferId("7" * 32)], GROUP, NotFound, "lapsed"),
        ([first.transfer_id, TransferId("7" * 32)], GROUP, NotFound, "lapsed"),
        ([], GROUP, InvalidRequest, "all 2"),
    ):
        with pytest.raises(error, match=why):
            array.restores.commit_group(group, transfers, safety_name="before")
        assert read(array, VolumeSource("a")) == read(array, VolumeSource("b")) == LIVE_BYTES
        assert array.pool.snapshots() == []
    lane.deliver([2])
    lane.commit()
    array.restores.commit_group(GROUP, both, safety_name="before")
    assert read(array, VolumeSource("a")) == read(array, VolumeSource("b")) == DISK


def test_a_clone_of_what_was_restored_is_not_taken_for_it(array: Array) -> None:
    add(array, "b", LIVE_BYTES)
    message = opening(array, volume="b", group_id=GROUP)
    arrive(array, message)
    done = array.restores.commit_group(GROUP, [message.transfer_id], safety_name="before")
    (taken,) = array.pool.snapshot(["b"])
    array.pool.clone_volume(taken.snapshot_id, "aa")  # listed before it
    again = array.restores.commit_group(GROUP, [message.transfer_id], safety_name="before")
    assert [one.volume_id for one in again[0]] == [one.volume_id for one in done[0]]
    assert again[1] == done[1]
    assert opening(array, volume="b", group_id=GROUP).grant == message.grant, "idempotent"
    array.pool.delete_volume("b", cascade=True)
    with pytest.raises(NotFound, match="lapsed"):
        array.restores.commit_group(GROUP, [message.transfer_id], safety_name="before")


def test_a_volume_in_use_is_not_swapped(array: Array) -> None:
    message = opening(array, group_id=GROUP)
    arrive(array, message)
    used = ["a"]

    def refuse(name: str) -> None:
        if name in used:
            raise WrongState(f"volume {name} is open for writing")

    array.pool.refuse_changes_under(refuse)
    with pytest.raises(WrongState, match="open for writing"):
        array.restores.commit_group(GROUP, [message.transfer_id], safety_name="before")
    assert read(array, VolumeSource("a")) == LIVE_BYTES
    used.clear()
    array.restores.commit_group(GROUP, [message.transfer_id], safety_name="before")
    assert read(array, VolumeSource("a")) == DISK


def test_one_restore_in_place_a_volume(array: Array) -> None:
    message = opening(array, group_id=GROUP)
    with pytest.raises(AlreadyExists, match="being restored"):
        opening(array, 2, group_id="d" * 32)
    assert opening(array, group_id=GROUP).grant == message.grant, "idempotent"
    with pytest.raises(AlreadyExists, match="something else"):
        opening(array, group_id="d" * 32)
    array.restores.revoke(message.transfer_id)
    opening(array, 2, group_id="d" * 32)


def test_one_that_has_arrived_is_kept_by_preparing_it_again(array: Array) -> None:
    """It waits for the others of its group, which may take long."""
    message = opening(array, group_id=GROUP)
    arrive(array, message).cut()
    for _ in range(4):
        array.clock.now += LEASE_SECONDS - 1
        array.restores.reap()
        assert len(array.pool.drafts()) == 1
        assert opening(array, group_id=GROUP).grant == message.grant
    array.clock.now += LEASE_SECONDS + 1
    array.restores.reap()
    assert array.pool.drafts() == []
    assert read(array, VolumeSource("a")) == LIVE_BYTES


def test_a_restore_that_is_whole_outlives_a_kill(array: Array) -> None:
    message = opening(array, group_id=GROUP)
    arrive(array, message)
    later = array.killed()
    found = Lane(later, message).opened.committed
    assert found is not None
    assert found.root == message.root
    assert read(later, VolumeSource("a")) == LIVE_BYTES
    later.restores.commit_group(GROUP, [message.transfer_id], safety_name="before")
    latest = later.killed()
    assert read(latest, VolumeSource("a")) == DISK
    assert Lane(latest, message).opened.committed is not None, "S3"
    volumes, safeties = latest.restores.commit_group(GROUP, [message.transfer_id], safety_name="before")
    assert [one.name for one in volumes] == ["a"]
    assert read(latest, SnapshotSource(safeties[0].snapshot_id)) == LIVE_BYTES
    latest.close()


def test_a_restore_with_a_reference_is_prepared_again_after_a_kill(array: Array) -> None:
    reference = VolumeSource("a")
    message = opening(array, volume="back", reference=reference)
    with pytest.raises(AlreadyExists, match="something else"):
        opening(array, volume="back")
    lane = CountingLane(array, message)
    lane.deliver([0])
    array.clock.now += 10  # the progress note is due
    lane.deliver([1])
    lane.cut()
    later = array.killed()
    assert opening(later, volume="back", reference=reference).grant == message.grant, "idempotent"
    lane = CountingLane(later, message)
    durable = np.unpackbits(np.frombuffer(lane.opened.durable_spans, np.uint8), bitorder="little")
    lane.deliver([span for span in SPANS if not durable[span]])
    lane.commit()
    assert later.content("back") == DISK
    later.close()


def test_a_restore_goes_on_after_a_kill_in_the_middle(array: Array) -> None:
    message = opening(array, group_id=GROUP)
    lane = CountingLane(array, message)
    lane.deliver([0, 1])
    array.clock.now += 10  # the progress note is due
    lane.deliver([2])
    lane.cut()
    later = array.killed()
    lane = CountingLane(later, message)
    durable = np.unpackbits(np.frombuffer(lane.opened.durable_spans, np.uint8), bitorder="little")
    assert durable[:2].tolist() == [1, 1]
    lane.deliver([span for span in SPANS if not durable[span]])
    lane.commit()
    later.restores.commit_group(GROUP, [message.transfer_id], safety_name="before")
    assert read(later, VolumeSource("a")) == DISK
    later.close()


def test_a_restore_that_nobody_swaps_in_lapses_and_leaves_the_volume(array: Array) -> None:
    message = opening(array, group_id=GROUP)
    lane = arrive(array, message)
    lane.end()
    used = array.pool.stats().slots_used
    array.clock.now += LEASE_SECONDS + 1
    array.restores.reap()
    assert array.pool.drafts() == []
    assert read(array, VolumeSource("a")) == LIVE_BYTES
    assert array.pool.stats().slots_used < used
    with pytest.raises(NotFound):
        array.restores.commit_group(GROUP, [message.transfer_id], safety_name="before")
    with pytest.raises(ArrayliftError):
        array.restores.find(message, **TARGET)


def test_differing_runs_are_granules() -> None:
    one = bytes(3 * GRANULE_BYTES + 5)
    other = bytearray(one)
    other[GRANULE_BYTES], other[-1] = 1, 1
    assert differing_runs(one, other) == [
        (GRANULE_BYTES, 2 * GRANULE_BYTES),
        (3 * GRANULE_BYTES, 3 * GRANULE_BYTES + 5),
    ]
    assert differing_runs(one, one) == []
