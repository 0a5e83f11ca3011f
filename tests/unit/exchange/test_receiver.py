"""Hostile senders: each sentence of R1-R5, and every array of an offer bent out of shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from arraylift.errors import InvalidRequest
from arraylift.exchange.lane import POLL
from arraylift.exchange.messages import Commit, Figures, Limits, Offer, Open, Segments
from arraylift.exchange.receiver import Arrived, Batch, Poll, ReceiverLane, check_offer
from arraylift.exchange.sender import Wanted
from arraylift.segments.segmentation import DEFAULT_SEGMENTATION, Policy, Segmentation
from arraylift.sizes import KIB, MIB
from tests.unit.exchange.stage import Disk, Prepared, opening, palette

LIMITS = Limits(window_batches=2, spans_per_offer_max=3, undurable_bytes_max=64 * MIB, lanes_max=4)
DISK = Disk(6 * MIB - 1000, {index: palette(index + 1) for index in range(6)})
FIXED = Segmentation(Policy.FIXED)


def offer(batch: int = 1, *spans: int) -> Offer:
    return Prepared(DISK, spans or (0, 1)).offer(batch)


def opened() -> ReceiverLane:
    lane = ReceiverLane(LIMITS)
    assert isinstance(lane.receive(opening(DISK)), Open)
    return lane


def take(lane: ReceiverLane, message: Offer) -> Batch:
    event = lane.receive(message)
    assert isinstance(event, Batch)
    return event


def everything(lane: ReceiverLane, batch: Batch) -> list[Segments]:
    """Ask for the whole batch and return the messages that would bring it."""
    lane.answer(batch, np.ones(len(batch.offer.lengths), dtype=np.bool_))
    prepared = Prepared(DISK, batch.offer.spans.tolist())
    prepared.offer(batch.number)
    indexes = np.arange(len(batch.offer.lengths))
    return [message for message, _ in prepared.segments(Wanted(batch.number, indexes, None))]


def refuses(lane: ReceiverLane, request: Open | Offer | Segments | Commit, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        lane.receive(request)
    with pytest.raises(InvalidRequest, match="ended"):
        lane.receive(POLL)


# -- R1 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first",
    [offer(), POLL, Commit(False, Figures()), Segments(1, np.ones(1, "u1"), np.ones(1, "<u4"), (b"x",))],
)
def test_nothing_comes_before_open(first: Offer | Commit | Segments) -> None:
    refuses(ReceiverLane(LIMITS), first, "begins with Open")


def test_open_comes_once() -> None:
    refuses(opened(), opening(DISK), "opened once")


@pytest.mark.parametrize(
    ("change", "why"),
    [({"protocol_version": 2}, "version 2"), ({"protocol_version": 0}, "version 0"), ({"lane": 4}, "lane 4")],
)
def test_open_must_suit(change: dict[str, Any], why: str) -> None:
    refuses(ReceiverLane(LIMITS), replace(opening(DISK), **change), why)


def test_nothing_follows_commit() -> None:
    lane = opened()
    assert isinstance(lane.receive(Commit(False, Figures())), Commit)
    for request in (POLL, offer(), Commit(False, Figures()), opening(DISK)):
        refuses(lane, request, "ended with Commit")


def test_commit_waits_for_what_was_asked_for() -> None:
    lane = opened()
    take(lane, offer())
    refuses(lane, Commit(False, Figures()), "1 batches are incomplete")


# -- R2 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 2, 3, 2**64 - 1])
def test_batches_are_numbered_from_one(number: int) -> None:
    refuses(opened(), offer(number), "where 1 was due")


@pytest.mark.parametrize("number", [0, 1, 3])
def test_batches_are_numbered_without_gaps(number: int) -> None:
    lane = opened()
    take(lane, offer(1))
    refuses(lane, offer(number, 2), "where 2 was due")


def test_the_window_counts_answered_batches_until_they_are_complete() -> None:
    lane = opened()
    first = take(lane, offer(1, 0))
    take(lane, offer(2, 1))
    messages = everything(lane, first)
    for message in messages[:-1]:
        lane.receive(message)
    refuses(lane, offer(3, 2), "more than 2 batches")


def test_the_window_opens_when_a_batch_is_complete() -> None:
    lane = opened()
    first = take(lane, offer(1, 0))
    take(lane, offer(2, 1))
    lane.answer(first, None)
    assert first.complete
    take(lane, offer(3, 2))


def test_a_poll_is_empty() -> None:
    lane = opened()
    assert isinstance(lane.receive(POLL), Poll)
    refuses(lane, replace(POLL, fingerprints=bytes(32), lengths=np.ones(1, "<u4")), "batch 0")


# -- R3 -----------------------------------------------------------------------------------------


def cut(spans: list[int], *lengths: list[int]) -> Offer:
    """An offer of these spans, with these lengths in each."""
    joined = [length for one in lengths for length in one]
    return Offer(
        batch=1,
        spans=np.array(spans, "<u4"),
        counts=np.array([len(one) for one in lengths], "<u2"),
        lengths=np.array(joined, "<u4"),
        fingerprints=bytes(32 * len(joined)),
        hole_runs=np.empty((0, 2), "<u4"),
    )


SIXTEEN = [64 * KIB] * 16
LAST = [64 * KIB] * 15 + [64 * KIB - 1000]


def holes(*runs: tuple[int, int]) -> Offer:
    return replace(cut([]), hole_runs=np.array(runs, "<u4").reshape(-1, 2))


def check(message: Offer, how: Segmentation = DEFAULT_SEGMENTATION) -> None:
    check_offer(message, DISK.image_bytes, how, LIMITS.spans_per_offer_max)


@pytest.mark.parametrize(
    "message",
    [
        cut([]),
        cut([0], SIXTEEN),
        cut([0, 5], SIXTEEN, LAST),
        cut([0], [4 * KIB] * 256),
        cut([0], [4097, *[4 * KIB] * 254, 4 * KIB - 1]),
        cut([5], [4 * KIB] * 255 + [4 * KIB - 1000]),
        holes((0, 6)),
        holes((0, 1), (1, 1), (5, 1)),
    ],
)
def test_good_offers_pass(message: Offer) -> None:
    check(message)


BAD: dict[str, Offer] = {
    "more spans than allowed": cut([0, 1, 2, 3], SIXTEEN, SIXTEEN, SIXTEEN, SIXTEEN),
    "span past the end": cut([6], SIXTEEN),
    "span far past the end": cut([2**32 - 1], SIXTEEN),
    "spans descend": cut([1, 0], SIXTEEN, SIXTEEN),
    "span twice": cut([1, 1], SIXTEEN, SIXTEEN),
    "span too long": cut([0], [*SIXTEEN, 4 * KIB]),
    "span too short": cut([0], SIXTEEN[1:]),
    "last span as if it were whole": cut([5], SIXTEEN),
    "two spans add up together only": cut([0, 1], SIXTEEN[1:], [*SIXTEEN, 64 * KIB]),
    "empty segment": cut([0], [*SIXTEEN, 0]),
    "segment over the maximum": cut([0], [64 * KIB + 1, *SIXTEEN[1:-1], 64 * KIB - 1]),
    "segment of all the bytes there are": cut([0], [2**32 - 1, *SIXTEEN]),
    "segment under the minimum": cut([0], [64 * KIB - 1, *SIXTEEN[1:-1], 1, 64 * KIB]),
    "too many segments": cut([0], [4 * KIB] * 255 + [2 * KIB] * 2),
    "a span of no segments": cut([0, 1], SIXTEEN, []),
    "counts without spans": replace(cut([0], SIXTEEN), spans=np.empty(0, "<u4")),
    "spans without counts": replace(cut([0], SIXTEEN), counts=np.empty(0, "<u2")),
    "counts that are short": replace(cut([0], SIXTEEN), counts=np.array([15], "<u2")),
    "counts that are long": replace(cut([0], SIXTEEN), counts=np.array([65535], "<u2")),
    "lengths without spans": replace(cut([]), lengths=np.ones(1, "<u4"), fingerprints=bytes(32)),
    "too few fingerprints": replace(cut([0], SIXTEEN), fingerprints=bytes(32 * 15)),
    "half a fingerprint": replace(cut([0], SIXTEEN), fingerprints=bytes(32 * 16 - 1)),
    "too many fingerprints": replace(cut([0], SIXTEEN), fingerprints=bytes(32 * 17)),
    "fingerprints alone": replace(cut([]), fingerprints=bytes(32)),
    "hole past the end": holes((6, 1)),
    "hole to past the end": holes((5, 2)),
    "hole that wraps around": holes((2**32 - 1, 2)),
    "hole of all there is and more": holes((0, 2**32 - 1)),
    "hole of nothing": holes((0, 0)),
    "holes overlap": holes((0, 2), (1, 1)),
    "holes descend": holes((2, 1), (0, 1)),
    "hole twice": holes((1, 1), (1, 1)),
}


@pytest.mark.parametrize("message", BAD.values(), ids=BAD)
def test_bad_offers_are_refused(message: Offer) -> None:
    refuses(opened(), message, "batch 1")


def test_offers_longer_than_an_array_are_refused_by_type_not_by_luck() -> None:
    """Sums are taken wide: lengths that add up to a span modulo 2^32 are refused."""
    wraps = cut([0], [*[2**31] * 2, *SIXTEEN])
    refuses(opened(), wraps, "batch 1")


SIXTY_FOUR = [16 * KIB] * 64


@pytest.mark.parametrize(
    ("lengths", "good"),
    [
        (SIXTY_FOUR, True),
        ([16 * KIB - 1, 16 * KIB + 1, *SIXTY_FOUR[2:]], False),
        ([*SIXTY_FOUR[2:], 32 * KIB], False),
        (SIXTEEN, False),
    ],
)
def test_fixed_offers_are_cut_at_the_average(lengths: list[int], good: bool) -> None:
    if good:
        check(cut([0], lengths), FIXED)
    else:
        with pytest.raises(InvalidRequest, match="fixed segmentation"):
            check(cut([0], lengths), FIXED)


def test_the_last_of_a_fixed_cut_is_what_is_left() -> None:
    check(cut([0, 5], SIXTY_FOUR, [*SIXTY_FOUR[:-1], 16 * KIB - 1000]), FIXED)


# -- R4 -----------------------------------------------------------------------------------------


def test_segments_are_taken_in_order() -> None:
    lane = opened()
    batch = take(lane, offer())
    seen: list[int] = []
    for message in everything(lane, batch):
        event = lane.receive(message)
        assert isinstance(event, Arrived)
        assert event.batch is batch
        seen += event.indexes.tolist()
    assert seen == list(range(len(batch.offer.lengths)))
    assert batch.complete


def bend(field: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Segments], Segments]:
    def bent(message: Segments) -> Segments:
        changes: dict[str, Any] = {field: change(getattr(message, field))}
        return replace(message, **changes)

    return bent


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda m: replace(m, batch=0), "segments of batch 0"),
        (lambda m: replace(m, batch=9), "segments of batch 9"),
        (
            lambda m: replace(m, codecs=m.codecs[:0], stored_lengths=m.stored_lengths[:0], payload=(b"",)),
            "0 segments",
        ),
        (bend("codecs", lambda a: np.tile(a, 9)), "more than wanted"),
        (bend("codecs", lambda a: a[1:]), "do not match"),
        (bend("stored_lengths", lambda a: a[1:]), "do not match"),
        (bend("stored_lengths", lambda a: a + np.uint32(1)), "do not match"),
        (lambda m: replace(m, payload=(bytes(m.payload[0]) + b"x",)), "do not match"),
        (lambda m: replace(m, payload=(bytes(m.payload[0])[:-1],)), "do not match"),
        (bend("stored_lengths", lambda a: a * 0), "do not match"),
    ],
)
def test_segments_must_be_the_wanted_ones(change: Callable[[Segments], Segments], why: str) -> None:
    lane = opened()
    batch = take(lane, offer())
    first, *_ = everything(lane, batch)
    refuses(lane, change(first), why)
    assert batch.arrived == 0


def test_a_stored_form_is_never_larger_than_the_plain_one() -> None:
    lane = opened()
    batch = take(lane, offer())
    everything(lane, batch)
    long = int(batch.offer.lengths[0]) + 1
    message = Segments(1, np.zeros(1, "u1"), np.array([long], "<u4"), (bytes(long),))
    refuses(lane, message, "larger than its plain form")


def test_stored_lengths_are_added_wide() -> None:
    lane = opened()
    batch = take(lane, offer())
    everything(lane, batch)
    lengths = np.array([2**31, 2**31], "<u4")
    refuses(lane, Segments(1, np.zeros(2, "u1"), lengths, (b"",)), "do not match")


def test_segments_do_not_come_before_the_answer() -> None:
    lane = opened()
    take(lane, offer())
    refuses(lane, Segments(1, np.zeros(1, "u1"), np.ones(1, "<u4"), (b"x",)), "batch 1")


def test_segments_do_not_overtake_an_older_batch() -> None:
    lane = opened()
    first, second = take(lane, offer(1, 0)), take(lane, offer(2, 1))
    everything(lane, first)
    message, *_ = everything(lane, second)
    refuses(lane, message, "where 1 was due")


def test_segments_do_not_come_twice() -> None:
    lane = opened()
    *_, last = messages = everything(lane, take(lane, offer()))
    for message in messages:
        lane.receive(message)
    refuses(lane, last, "batch 1 came where 0 was due")


# -- R5 and our own side ------------------------------------------------------------------------


def test_durable_names_complete_batches_and_never_goes_back() -> None:
    lane = opened()
    first, second = take(lane, offer(1, 0)), take(lane, offer(2, 1))
    with pytest.raises(AssertionError):
        lane.durable(1, 0)
    lane.answer(first, None)
    lane.durable(1, 0)
    with pytest.raises(AssertionError):
        lane.durable(2, 0)
    lane.answer(second, None)
    lane.durable(2, 0)
    for wrong in (1, 3):
        with pytest.raises(AssertionError):
            lane.durable(wrong, 0)


def test_answers_are_given_once_in_order_for_every_segment() -> None:
    lane = opened()
    first, second = take(lane, offer(1, 0)), take(lane, offer(2, 1))
    with pytest.raises(AssertionError, match="in order"):
        lane.answer(second, None)
    with pytest.raises(AssertionError, match="one flag"):
        lane.answer(first, np.ones(len(first.offer.lengths) - 1, dtype=np.bool_))
    assert lane.answer(first, np.zeros(len(first.offer.lengths), dtype=np.bool_)).wanted is None
    with pytest.raises(AssertionError, match="once"):
        lane.answer(first, None)
