"""The registry of transfers: grants that stay the same, leases that lapse, commits that a crash hid."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from arraylift.clock import Clock
from arraylift.errors import (
    AlreadyExists,
    Conflict,
    Corruption,
    LeaseLost,
    NotFound,
    OutOfSpace,
    Overloaded,
    WrongState,
)
from arraylift.exchange import wire
from arraylift.exchange.coverage import Coverage
from arraylift.exchange.messages import Commit, Figures, Limits, Open
from arraylift.exchange.receiver import Arrived, Batch, ReceiverLane
from arraylift.exchange.serve_lane import cut_short
from arraylift.ids import Fingerprint, ImageId, TransferId
from arraylift.segments.segmentation import DEFAULT_SEGMENTATION
from arraylift.sizes import IMAGE_BYTES_MAX, MIB, SPAN_BYTES, spans_of
from dedup_target import commit as commit_module
from dedup_target import ingest as ingest_module
from dedup_target import transfer_log
from dedup_target import transfers as transfers_module
from dedup_target.ingest import Ingest, LaneIngest
from dedup_target.transfer import Transfer
from dedup_target.transfer_format import RECORD_BYTES_MAX
from dedup_target.transfers import GrantRequest, Transfers
from tests.fakes.disk import FakeFiles
from tests.fakes.index import MemorySegmentIndex
from tests.property.test_commit_states import FIRST, PEER, SECOND, Backup, Target
from tests.property.test_commit_states import _offer as make_offer
from tests.property.test_commit_states import _segments as make_segments
from tests.property.test_target_storage_crash import IndexDisk

LEASE_SECONDS = 100
ASKED = GrantRequest(TransferId("1" * 32), PEER, "", "disk", None, no_base=True)


class HandClock:
    """Stands still until it is turned."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def wall_ns(self) -> int:
        return 1


@pytest.fixture
def files() -> FakeFiles:
    return FakeFiles()


@pytest.fixture
def index() -> IndexDisk:
    return IndexDisk(MemorySegmentIndex())


@pytest.fixture
def target(files: FakeFiles, index: IndexDisk) -> Iterator[Target]:
    made = Target(files, index)
    yield made
    made.end_threads()


def registry(target: Target, clock: Clock) -> Transfers:
    """A second registry over the same store, as the next start would make it."""
    made = Transfers(target.store, target.images, limits=Limits(), lease_seconds=LEASE_SECONDS, clock=clock)
    made._stop.set()  # the tests reap by hand
    made._reaper.join()
    return made


def test_a_grant_asked_for_twice_is_the_same(target: Target) -> None:
    transfers = registry(target, HandClock())
    grant = transfers.create_grant(ASKED)
    assert transfers.create_grant(ASKED) == grant
    assert transfers.create_grant(replace(ASKED, transfer_id=TransferId("2" * 32)))[0] != grant[0]
    assert registry(target, HandClock()).create_grant(ASKED) == grant, "also after a restart"
    for other in (
        replace(ASKED, peer="array2"),
        replace(ASKED, image_name="other"),
        replace(ASKED, tenant_name="other"),
        replace(ASKED, base_image_id=ImageId("9" * 32), no_base=False),
    ):
        with pytest.raises(AlreadyExists):
            transfers.create_grant(other)


def test_the_base_is_the_newest_image_of_the_name_and_the_tenant(target: Target) -> None:
    first, second = (target.send(Backup(number, disk, None)) for number, disk in ((1, FIRST), (2, SECOND)))
    transfers = registry(target, HandClock())
    asked = replace(ASKED, transfer_id=TransferId("3" * 32), no_base=False)
    assert transfers.create_grant(asked)[1] == second.image_id
    with pytest.raises(AlreadyExists):
        transfers.create_grant(replace(asked, no_base=True))
    named = replace(asked, transfer_id=TransferId("4" * 32), base_image_id=first.image_id)
    assert transfers.create_grant(named)[1] == first.image_id
    elsewhere = replace(named, transfer_id=TransferId("5" * 32), tenant_name="other")
    with pytest.raises(NotFound):
        transfers.create_grant(elsewhere)
    assert transfers.create_grant(replace(elsewhere, base_image_id=None))[1] is None


def test_a_transfer_that_nobody_continues_is_forgotten(target: Target) -> None:
    clock = HandClock()
    transfers = registry(target, clock)
    transfers.create_grant(ASKED)
    clock.now = LEASE_SECONDS - 1
    transfers.reap()
    assert transfers.open_count == 1
    again = registry(target, clock)
    clock.now = LEASE_SECONDS + 1
    again.reap()
    assert again.open_count == 1, "leases restart in full with the target"
    transfers.reap()
    assert transfers.open_count == 0
    assert target.store.transfers.list() == []
    with pytest.raises(NotFound):
        transfers.revoke(ASKED.transfer_id)


def test_a_revoked_transfer_is_gone_and_a_committed_one_stays(target: Target) -> None:
    transfers = registry(target, HandClock())
    transfers.create_grant(ASKED)
    transfers.revoke(ASKED.transfer_id)
    with pytest.raises(NotFound):
        transfers.revoke(ASKED.transfer_id)
    transfers.create_grant(ASKED)  # the id is free again
    done = Backup(7, FIRST, None)
    target.send(done)
    later = registry(target, HandClock())
    with pytest.raises(WrongState, match="committed"):
        later.revoke(done.transfer_id)
    assert later.open_count == 1


def test_more_transfers_than_the_limit(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers_module, "TRANSFERS_MAX", 2)
    transfers = registry(target, HandClock())
    for number in range(2):
        transfers.create_grant(replace(ASKED, transfer_id=TransferId(f"{number:032x}")))
    with pytest.raises(Overloaded):
        transfers.create_grant(ASKED)
    assert transfers.create_grant(replace(ASKED, transfer_id=TransferId(f"{1:032x}")))
    transfers.revoke(TransferId(f"{1:032x}"))
    transfers.create_grant(ASKED)


def test_spans_that_rest_on_a_container_that_is_gone_are_taken_back(target: Target) -> None:
    backup = Backup(1, FIRST, None)
    target.send(backup)
    assert target.transfers is not None
    transfer = target.transfers._transfers[backup.transfer_id]
    assert transfer.void_lost() == 0
    assert transfer.log.state.covered.all()
    for container in target.store.containers.containers():
        target.store.unit.remove_container(container)
    assert transfer.void_lost() == 3
    assert transfer.log.state.covered.tolist() == [True, False, False, False], "a hole needs no segment"
    assert transfer.void_lost() == 0


def test_what_was_lost_between_two_attempts_is_offered_again(target: Target) -> None:
    """A rebuild of the index may lose a container on which nothing but a log rests: no doubt tells of it."""
    transfer, opening = _opened(target)
    lane = _offer_all(transfer, opening)
    assert transfer.open(replace(opening, lane=1, attempt=1)).durable_spans
    lane.close(cut_short())
    for container in target.store.containers.containers():
        target.store.unit.remove_container(container)
    assert target.store.all_healthy
    durable = Coverage.from_bitmap(transfer.open(opening).durable_spans, transfer.log.state.covered.size)
    assert durable.flags.tolist() == [True, False, False, False], "the hole"


def test_a_full_disk_stops_no_start_that_has_to_take_spans_back(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfer, opening = _opened(target)
    lane = _offer_all(transfer, opening)
    lane.close(cut_short())
    for container in target.store.containers.containers():
        target.store.unit.remove_container(container)
    target.store.begin_doubt("of what was removed")

    def full(*_: object) -> None:
        raise OutOfSpace("the disk is full")

    monkeypatch.setattr(transfer_log.TransferLog, "append_voided", full)
    again = registry(target, HandClock())
    assert again.open_count == 0
    assert target.store.transfers.list() == []


def test_more_lost_spans_than_one_record_holds(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    transfer, opening = _opened(target)
    _offer_all(transfer, opening)
    monkeypatch.setattr(transfer_log, "VOIDED_SPANS_MAX", 2)
    transfer.log.append_voided(np.arange(3, dtype=np.uint32))
    assert transfer.log.state.covered.tolist() == [False, False, False, True]
    transfer.close()
    state = target.store.transfers.open(transfer.transfer_id).state
    assert state.covered.tolist() == [False, False, False, True]


def test_an_image_of_16_tib_may_lose_all_its_spans() -> None:
    whole = spans_of(IMAGE_BYTES_MAX)
    assert 4 * transfer_log.VOIDED_SPANS_MAX <= RECORD_BYTES_MAX < 4 * whole


def test_a_reaper_that_fails_once_comes_again(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers_module, "REAP_SECONDS", 0.01)
    clock, failures, reaped = HandClock(), [OSError("no more file handles")], threading.Event()
    transfers = Transfers(
        target.store, target.images, limits=Limits(), lease_seconds=LEASE_SECONDS, clock=clock
    )
    reap = transfers.reap

    def fail_once() -> None:
        if failures:
            raise failures.pop()
        reap()
        reaped.set()

    monkeypatch.setattr(transfers, "reap", fail_once)
    assert reaped.wait(10)
    transfers.close()


def test_a_transfer_whose_log_cannot_be_removed_is_over_and_counts_until_it_is(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next process would believe the log, so collection must heed it for so long."""
    clock = HandClock()
    transfers = registry(target, clock)
    transfers.create_grant(ASKED)
    held = transfers._transfers[ASKED.transfer_id]
    remove = target.store.transfers.remove

    def refuse(_: TransferId) -> None:
        raise Overloaded("no more file handles")

    monkeypatch.setattr(target.store.transfers, "remove", refuse)
    with pytest.raises(Overloaded):
        transfers.revoke(ASKED.transfer_id)
    assert len(transfers.live_logs()) == 1
    with pytest.raises(LeaseLost):
        held.open(_opening(ASKED.transfer_id))
    transfers.reap()
    assert transfers.open_count == 1
    monkeypatch.setattr(target.store.transfers, "remove", remove)
    transfers.reap()
    assert transfers.open_count == 0
    assert target.store.transfers.list() == []


def test_a_lane_of_an_attempt_that_was_fenced_before_it_entered_stays_out(target: Target) -> None:
    transfer, opening = _opened(target)
    slow, quick = Ingest(transfer, target.clock), Ingest(transfer, target.clock)
    slow.open(opening)
    quick.open(opening)
    quick.lane(0)
    with pytest.raises(LeaseLost, match="attempt 1 of"):
        slow.lane(0)


def test_a_transfer_asked_for_again_when_it_is_long_forgotten_has_its_image(target: Target) -> None:
    """Wherever the image lies by now: there is no second one of its id."""
    done = Backup(7, FIRST, None)
    receipt = target.send(done)
    assert target.transfers is not None
    target.transfers._forget(target.transfers._transfers[done.transfer_id])
    assert target.send(done) == receipt
    target.transfers._forget(target.transfers._transfers[done.transfer_id])
    based = replace(ASKED, transfer_id=done.transfer_id, base_image_id=ImageId("e" * 32), no_base=False)
    grant = target.transfers.create_grant(based)
    assert target.transfers.create_grant(based) == grant, "also where its base is gone by now"
    target.transfers._forget(target.transfers._transfers[done.transfer_id])
    with pytest.raises(AlreadyExists):
        target.transfers.create_grant(replace(ASKED, transfer_id=done.transfer_id, image_name="other"))
    assert len(target.store.manifests.all()) == 1


def test_a_commit_that_fails_keeps_no_buffer(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    transfer, opening = _opened(target)
    lane = _offer_all(transfer, opening)

    def damaged(*_: object, **__: object) -> None:
        raise Corruption("a node of the base is damaged")

    monkeypatch.setattr(commit_module, "build", damaged)
    with pytest.raises(Conflict, match="is damaged"):
        lane.commit(Commit(inherit_base=False, figures=Figures()))
    lane.close(cut_short())
    assert target.store.containers.stats().buffers_in_use == 0


def test_a_node_lost_right_after_it_was_written_is_written_again(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfer, opening = _opened(target)
    lane, unit = _offer_all(transfer, opening), target.store.unit
    write = commit_module._write_nodes
    roots: list[Fingerprint] = []

    def lose_first(*arguments: object, **how: object) -> Fingerprint:
        root = write(*arguments, **how)  # type: ignore[arg-type]
        if not roots:
            (found,) = unit.locate(transfer.tenant, [root])
            unit.condemn_records(found.container, transfer.tenant, [root], "a test")
        roots.append(root)
        return root

    monkeypatch.setattr(commit_module, "_write_nodes", lose_first)
    lane.commit(Commit(inherit_base=False, figures=Figures()))
    assert len(roots) == 2
    assert target.read(Backup(1, FIRST, None)) == FIRST


def test_a_sender_that_never_sends_what_is_asked_of_it_holds_little(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its other offers want nothing, so they do not count in the window, and cannot be logged either."""
    transfer, opening = _opened(target)
    opening = replace(opening, image_bytes=200 * SPAN_BYTES)
    ingest = Ingest(transfer, target.clock)
    ingest.open(opening)
    machine, lane = ReceiverLane(transfer.limits), ingest.lane(0)
    machine.receive(opening)
    block = FIRST[MIB : 2 * MIB] * 200
    monkeypatch.setattr(ingest_module, "OFFERS_BYTES_MAX", 64 * ingest_module.OFFER_BYTES)

    def offer_all() -> None:
        for number in range(200):
            offer, _ = make_offer(number + 1, number, block, transfer.key)
            batch = machine.receive(offer)
            assert isinstance(batch, Batch)
            machine.answer(batch, lane.offered(batch)[0])
            lane.advance(now=True)

    with pytest.raises(Overloaded, match="segments of batch 1"):
        offer_all()
    lane.close(cut_short())


def _opening(transfer_id: TransferId) -> Open:
    return Open(
        transfer_id=transfer_id,
        grant=b"",
        attempt=0,
        lane=0,
        image_bytes=len(FIRST),
        segmentation=DEFAULT_SEGMENTATION,
        source_state=None,
    )


def _opened(target: Target) -> tuple[Transfer, Open]:
    """A transfer of FIRST that was granted, and the message that opens it."""
    assert target.transfers is not None
    opening = _opening(Backup(1, FIRST, None).transfer_id)
    target.transfers.create_grant(replace(ASKED, transfer_id=opening.transfer_id))
    return target.transfers._transfers[opening.transfer_id], opening


def _offer_all(transfer: Transfer, opening: Open) -> LaneIngest:
    """Open a lane, and have all of FIRST durable."""
    ingest = Ingest(transfer, transfer._clock)
    ingest.open(opening)
    machine, lane = ReceiverLane(transfer.limits), ingest.lane(0)
    machine.receive(opening)
    for number in range(spans_of(len(FIRST))):
        offer, pieces = make_offer(number + 1, number, FIRST, transfer.key)
        batch = machine.receive(offer)
        assert isinstance(batch, Batch)
        wanted, _ = lane.offered(batch)
        missing = machine.answer(batch, wanted)
        if missing.wanted is not None:
            segments = wire.decode_request(wire.encode_request(make_segments(missing, pieces)))
            arrived = machine.receive(segments)
            assert isinstance(arrived, Arrived)
            lane.arrived(arrived)
    lane.flush()
    return lane
