"""Hostile receivers: each sentence of E1-E4."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from arraylift.errors import InvalidRequest
from arraylift.exchange.messages import (
    Commit,
    Committed,
    Durable,
    Figures,
    Limits,
    Missing,
    Opened,
    Reply,
)
from arraylift.exchange.sender import Phase, SenderLane, Wanted
from arraylift.sizes import MIB
from tests.unit.exchange.stage import IMAGE, KEY, KEY_BYTES, Disk, Prepared, opening, palette

DISK = Disk(40 * MIB, {index: palette(1 + 7 * index) for index in range(40)})
RECEIPT = Committed(b"r" * 32, IMAGE, Figures())


def opened(**limits: int) -> Opened:
    return Opened(
        attempt=1,
        limits=replace(Limits(lanes_max=1), **limits),
        tenant="t",
        key=KEY_BYTES,
        key_id=KEY.key_id,
        lease_seconds=60,
    )


def open_lane(**limits: int) -> SenderLane:
    lane = SenderLane()
    lane.open(opening(DISK))
    lane.receive(opened(**limits))
    return lane


def may(lane: SenderLane) -> bool:
    """Ask anew; a type checker believes that an attribute stays as it was."""
    return lane.may_offer


def offer(lane: SenderLane, *spans: int, sample: bool = False) -> Prepared:
    prepared = Prepared(DISK, spans, sample)
    lane.offer(prepared.offer(lane.next_batch))
    return prepared


def want_all(lane: SenderLane, prepared: Prepared, batch: int) -> Wanted:
    event = lane.receive(Missing(batch, np.ones(len(prepared.pieces), dtype=np.bool_)))
    assert isinstance(event, Wanted)
    return event


def send(lane: SenderLane, prepared: Prepared, wanted: Wanted) -> None:
    for message, plain_bytes in prepared.segments(wanted):
        lane.segments(message, plain_bytes)


def refuses(lane: SenderLane, reply: Reply, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        lane.receive(reply)
    assert lane.phase is Phase.BROKEN
    assert not may(lane)
    for later in (opened(), Durable(0, 0), RECEIPT, Missing(1, None)):
        with pytest.raises(InvalidRequest, match="after a reply that was refused"):
            lane.receive(later)


# -- E1 -----------------------------------------------------------------------------------------


def test_the_window_bounds_unanswered_offers() -> None:
    lane = open_lane(window_batches=2)
    offer(lane, 0)
    assert may(lane)
    second = offer(lane, 1)
    assert not may(lane)
    lane.receive(Missing(1, None))
    assert may(lane)
    wanted = want_all(lane, second, 2)
    offer(lane, 2)
    assert not may(lane), "what is wanted and not sent is still in the window"
    send(lane, second, wanted)
    assert may(lane)


def test_what_may_still_be_asked_for_counts() -> None:
    """Eight offers in flight could each be wanted whole: that is what a cut would cost."""
    lane = open_lane(window_batches=16, spans_per_offer_max=4, undurable_bytes_max=16 * MIB)
    sent: list[Prepared] = []
    while lane.may_offer:
        at = 4 * len(sent)
        sent.append(offer(lane, *range(at, at + 4)))
    assert len(sent) == 4
    for batch, prepared in enumerate(sent, 1):
        send(lane, prepared, want_all(lane, prepared, batch))
    assert lane.undurable_bytes == 16 * MIB
    assert not may(lane)
    lane.receive(Durable(1, 0))
    assert may(lane)
    offer(lane, 20, 21, 22, 23)
    assert not may(lane)


def test_what_is_not_wanted_makes_room() -> None:
    lane = open_lane(spans_per_offer_max=1, undurable_bytes_max=2 * MIB)
    offer(lane, 0)
    offer(lane, 1)
    assert not may(lane)
    lane.receive(Missing(1, None))
    assert may(lane)


def test_a_share_below_one_offer_still_moves() -> None:
    lane = open_lane(undurable_bytes_max=0)
    prepared = offer(lane, 0, 1, 2, 3)
    assert not may(lane)
    send(lane, prepared, want_all(lane, prepared, 1))
    assert not may(lane)
    lane.receive(Durable(1, 0))
    assert may(lane)


def test_lanes_share_what_may_be_undurable() -> None:
    lane = open_lane(lanes_max=4, spans_per_offer_max=1, undurable_bytes_max=8 * MIB)

    def room() -> int:
        before = lane.next_batch
        while lane.may_offer:
            offer(lane, 0)
        return lane.next_batch - before

    assert room() == 2
    lane.use_lanes(2)
    assert room() == 2
    lane.use_lanes(1)
    assert room() == 4


def test_offers_keep_the_limit_of_spans() -> None:
    lane = open_lane(spans_per_offer_max=2)
    with pytest.raises(AssertionError, match="E1"):
        offer(lane, 0, 1, 2)


# -- E2 -----------------------------------------------------------------------------------------


def test_segments_go_in_batch_order_each_once() -> None:
    lane = open_lane()
    first, second = offer(lane, 0), offer(lane, 1)
    one, two = want_all(lane, first, 1), want_all(lane, second, 2)
    with pytest.raises(AssertionError, match="E2"):
        send(lane, second, two)
    send(lane, first, one)
    with pytest.raises(AssertionError, match="E2"):
        send(lane, first, one)
    send(lane, second, two)
    assert lane.answered
    assert not lane.durable


def test_padding_is_not_wanted() -> None:
    lane = open_lane()
    prepared = offer(lane, 0)
    count = len(prepared.pieces)
    flags = np.zeros(-(-count // 8) * 8, dtype=np.bool_)
    flags[[0, count - 1]] = True
    event = lane.receive(Missing(1, flags))
    assert isinstance(event, Wanted)
    assert event.indexes.tolist() == [0, count - 1]


# -- E3 -----------------------------------------------------------------------------------------


def test_no_reply_comes_before_opened() -> None:
    for reply in (Missing(1, None), Missing(0, None), Durable(0, 0), Durable(1, 0), RECEIPT):
        lane = SenderLane()
        lane.open(opening(DISK))
        refuses(lane, reply, "receiver")


def test_no_reply_comes_before_open() -> None:
    for reply in (opened(), Missing(1, None), Durable(0, 0), RECEIPT):
        refuses(SenderLane(), reply, "receiver")


def test_opened_comes_once() -> None:
    refuses(open_lane(), opened(), "twice")


@pytest.mark.parametrize("batch", [0, 2, 3, 2**64 - 1])
def test_unknown_batches_are_not_answered(batch: int) -> None:
    lane = open_lane()
    offer(lane, 0)
    offer(lane, 1)
    refuses(lane, Missing(batch, None), "where 1 was due")


def test_batches_are_answered_once() -> None:
    lane = open_lane()
    offer(lane, 0)
    lane.receive(Missing(1, None))
    refuses(lane, Missing(1, None), "where None was due")


def test_segments_that_were_not_offered_are_not_wanted() -> None:
    lane = open_lane()
    prepared = offer(lane, 0)
    count = len(prepared.pieces)
    flags = np.zeros(count + 1, dtype=np.bool_)
    flags[count] = True
    refuses(lane, Missing(1, flags), f"wants segment {count} of {count}")


@pytest.mark.parametrize("off", [-1, -8, 8, 100_000])
@pytest.mark.parametrize("set_bit", [True, False])
def test_bitmaps_have_the_offers_length(off: int, set_bit: bool) -> None:
    lane = open_lane()
    prepared = offer(lane, 0)
    flags = np.zeros(max(0, len(prepared.pieces) + off), dtype=np.bool_)
    flags[:1] = set_bit
    refuses(lane, Missing(1, flags), "were offered")


@pytest.mark.parametrize(("sample", "odd"), [(False, 3), (True, 4)])
def test_only_sampled_spans_mismatch(sample: bool, odd: int) -> None:
    lane = open_lane()
    offer(lane, 3, sample=sample)
    refuses(lane, Missing(1, None, np.array([odd], "<u4")), "did not sample")


def test_sampled_spans_may_mismatch() -> None:
    lane = open_lane()
    offer(lane, 3, sample=True)
    event = lane.receive(Missing(1, None, np.array([3], "<u4")))
    assert isinstance(event, Wanted)
    assert event.mismatched_spans is not None


def test_durable_does_not_come_early() -> None:
    lane = open_lane()
    prepared = offer(lane, 0)
    refuses(lane, Durable(1, 0), "before it has it")

    lane = open_lane()
    prepared = offer(lane, 0)
    want_all(lane, prepared, 1)
    refuses(lane, Durable(1, 0), "before it has it")

    refuses(open_lane(), Durable(1, 0), "before it has it")


def test_durable_is_not_taken_back() -> None:
    lane = open_lane()
    for _ in range(2):
        offer(lane, 0)
    for batch in (1, 2):
        lane.receive(Missing(batch, None))
    lane.receive(Durable(2, 5))
    lane.receive(Durable(2, 5))
    refuses(lane, Durable(1, 5), "takes back")


def test_committed_is_not_believed_unasked() -> None:
    refuses(open_lane(), RECEIPT, "not ready")


def test_committed_comes_once() -> None:
    lane = open_lane()
    lane.commit(Commit(False, Figures()))
    assert lane.receive(RECEIPT) is RECEIPT
    refuses(lane, RECEIPT, "not ready")


# -- E4 -----------------------------------------------------------------------------------------


def test_commit_waits_until_everything_is_durable() -> None:
    lane = open_lane()
    commit = Commit(False, Figures())

    def refused() -> None:
        with pytest.raises(AssertionError, match="E4"):
            lane.commit(commit)

    prepared = offer(lane, 0)
    refused()
    wanted = want_all(lane, prepared, 1)
    refused()
    send(lane, prepared, wanted)
    refused()
    lane.receive(Durable(1, 0))
    assert lane.commit(commit) is commit
    with pytest.raises(AssertionError, match="follows open"):
        lane.commit(commit)
    assert not may(lane)


def test_a_committed_transfer_answers_open_with_its_receipt() -> None:
    lane = SenderLane()
    lane.open(opening(DISK))
    lane.receive(replace(opened(), committed=RECEIPT))
    assert lane.phase is Phase.COMMITTED
    assert not may(lane)


def test_figures_count_what_was_said() -> None:
    lane = open_lane()
    prepared = offer(lane, 0, 1)
    send(lane, prepared, want_all(lane, prepared, 1))
    lane.receive(Durable(1, 77))
    found = lane.figures
    assert found.segments_offered == found.segments_sent == len(prepared.pieces)
    assert found.bytes_offered == found.bytes_sent == 2 * MIB
    assert 0 < found.bytes_sent_wire <= found.bytes_sent
    assert found.bytes_stored == 77
