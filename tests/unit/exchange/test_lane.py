"""The lane's loop over a stream that is a DictReceiver in the same thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from arraylift.errors import Cancelled, Conflict, InvalidRequest, PeerUnavailable, TrackerMismatch
from arraylift.exchange import lane as lanes
from arraylift.exchange.lane import commit_lane, end_lane, open_lane, run_lane, send_batches, settle
from arraylift.exchange.messages import (
    Commit,
    Committed,
    Durable,
    Figures,
    Limits,
    Missing,
    Offer,
    Opened,
    Reply,
    Request,
    Segments,
)
from arraylift.exchange.sender import SenderLane, Wanted
from arraylift.sizes import MIB
from tests.unit.exchange.stage import IMAGE, DictReceiver, Disk, Prepared, opening, palette

LIMITS = Limits(window_batches=3, spans_per_offer_max=2, undurable_bytes_max=16 * MIB, lanes_max=2)
COMMIT = Commit(False, Figures())


class Stream:
    """A LaneStream whose receiver answers at once; ``twist`` bends each reply."""

    def __init__(self, receiver: DictReceiver) -> None:
        self.receiver = receiver
        self.call = receiver.call()
        self.sent: list[Request] = []
        self.replies: deque[Reply | Exception] = deque()
        self.closed = False
        self.silent_after: int | None = None
        self.waited = 0.0
        self.twist: Callable[[Reply], list[Reply | Exception]] = lambda reply: [reply]

    def send(self, request: Request) -> None:
        assert not self.closed
        self.sent.append(request)
        if self.silent_after is not None and len(self.sent) > self.silent_after:
            return
        try:
            for reply in self.receiver.receive(self.call, request):
                self.replies += self.twist(reply)
        except (Conflict, InvalidRequest) as error:
            self.replies.append(error)

    def receive(self, timeout: float) -> Reply | None:
        if self.replies:
            reply = self.replies[0]
            if isinstance(reply, Exception):
                raise reply
            self.replies.popleft()
            return reply
        self.waited += timeout
        return None

    def close_sending(self) -> None:
        self.closed = True
        if self.silent_after is None:
            for reply in self.receiver.flush(self.call):
                self.replies += self.twist(reply)
            self.replies.append(EOFError())

    def cancel(self) -> None:
        self.replies.append(Cancelled("cancelled"))

    @property
    def polls(self) -> int:
        return sum(isinstance(request, Offer) and request.batch == 0 for request in self.sent)


class Scene:
    """A disk of eight spans, its receiver, and a lane between them."""

    def __init__(self, base: Disk | None = None, limits: Limits = LIMITS) -> None:
        self.disk = Disk(8 * MIB - 5, {index: palette(1 + 7 * (index % 6)) for index in range(7)})
        self.receiver = DictReceiver(self.disk, limits, base=base)
        self.connect()
        self.cancelled = threading.Event()
        self.batches = [Prepared(self.disk, [at, at + 1]) for at in range(0, 8, 2)]
        self.answered: list[Wanted] = []
        self.held_max = 0

    def connect(self) -> None:
        self.stream = Stream(self.receiver)
        self.lane = SenderLane()

    def source(self) -> Iterator[Prepared]:
        for batch in self.batches:
            yield batch
            held = sum(not one.released for one in self.batches[: self.batches.index(batch) + 1])
            self.held_max = max(self.held_max, held)

    def open(self) -> Opened:
        return open_lane(self.stream, self.lane, opening(self.disk))

    def send(self) -> None:
        send_batches(
            self.stream,
            self.lane,
            self.source(),
            cancelled=self.cancelled,
            on_answered=self.answered.append,
        )

    def run(self) -> None:
        run_lane(
            self.stream,
            self.lane,
            self.source(),
            cancelled=self.cancelled,
            on_answered=self.answered.append,
        )

    def open_and_run(self) -> None:
        self.open()
        self.run()

    def all_released(self) -> bool:
        return all(batch.released == 1 for batch in self.batches if batch.pieces)


def test_a_lane_sends_settles_and_commits() -> None:
    scene = Scene()
    scene.open()
    scene.send()
    settle(scene.stream, scene.lane)
    receipt = commit_lane(scene.stream, scene.lane, COMMIT)
    end_lane(scene.stream, scene.lane)
    assert scene.receiver.durable_receipt == receipt
    assert scene.receiver.read() == scene.disk.read()
    assert [wanted.batch for wanted in scene.answered] == [1, 2, 3, 4]
    assert scene.held_max <= LIMITS.window_batches
    assert scene.all_released()


def test_a_worker_lane_ends_durably_and_another_commits() -> None:
    scene = Scene()
    attempt = scene.open().attempt
    control, scene.stream, scene.lane = (scene.stream, scene.lane), Stream(scene.receiver), SenderLane()
    open_lane(scene.stream, scene.lane, opening(scene.disk, attempt=attempt, lane=0 + 1))
    scene.run()
    assert scene.stream.closed
    assert scene.lane.durable
    commit_lane(*control, COMMIT)
    assert scene.receiver.read() == scene.disk.read()


def test_a_lane_without_room_polls() -> None:
    scene = Scene(limits=replace(LIMITS, undurable_bytes_max=1))
    scene.open()
    scene.run()
    assert scene.stream.polls >= 3
    assert scene.lane.durable


def test_buffers_are_released_only_when_everything_wanted_is_queued() -> None:
    """Prepared.segments asserts that it is not used after its release."""
    scene = Scene()
    scene.open()
    scene.send()
    assert all(batch.released == 1 for batch in scene.batches)


@pytest.mark.parametrize("after", [0, 1, 2, 5])
def test_a_silent_receiver_is_given_up_and_buffers_are_returned(after: int) -> None:
    scene = Scene()
    scene.stream.silent_after = after
    with pytest.raises(PeerUnavailable, match="said nothing for 120 s"):
        scene.open_and_run()
    assert scene.stream.waited == pytest.approx(lanes.SILENCE_SECONDS_MAX)
    assert scene.all_released()


def test_polling_does_not_wait_for_ever() -> None:
    """A receiver whose disk hangs takes polls and never says Durable."""
    for wait in (Scene.send, lambda scene: settle(scene.stream, scene.lane)):
        scene = Scene(limits=replace(LIMITS, undurable_bytes_max=1 if wait is Scene.send else 64 * MIB))
        scene.stream.twist = lambda reply: [] if isinstance(reply, Durable) else [reply]
        scene.open()
        if wait is not Scene.send:
            scene.send()
        with pytest.raises(PeerUnavailable, match="said nothing"):
            wait(scene)
        assert scene.stream.waited <= lanes.SILENCE_SECONDS_MAX + 1
        assert scene.all_released()


@pytest.mark.parametrize("kind", [Missing, Durable])
def test_an_early_end_is_an_error_of_ours(kind: type) -> None:
    """The receiver ends the call as if all were well: EOFError must not leak."""
    scene = Scene(limits=replace(LIMITS, undurable_bytes_max=1))
    scene.stream.twist = lambda reply: [EOFError()] if isinstance(reply, kind) else [reply]
    scene.open()
    with pytest.raises(PeerUnavailable, match="ended a lane"):
        scene.run()
    assert scene.all_released()


def test_an_early_end_of_open_and_commit_is_an_error_of_ours() -> None:
    scene = Scene()
    scene.stream.twist = lambda reply: [EOFError()]
    with pytest.raises(PeerUnavailable):
        scene.open()
    scene = Scene()
    scene.open()
    scene.send()
    settle(scene.stream, scene.lane)
    scene.stream.twist = lambda reply: [EOFError()]
    with pytest.raises(PeerUnavailable):
        commit_lane(scene.stream, scene.lane, COMMIT)


def test_a_lane_that_ends_before_all_is_durable_has_failed() -> None:
    scene = Scene()
    scene.stream.twist = lambda reply: [] if isinstance(reply, Durable) else [reply]
    scene.open()
    with pytest.raises(PeerUnavailable, match="before all of it was durable"):
        scene.run()


def test_the_first_reply_must_be_opened() -> None:
    for odd in (Durable(0, 0), Missing(0, None), Committed(b"r" * 32, IMAGE, Figures())):
        scene = Scene()
        scene.stream.twist = lambda reply, odd=odd: [odd]  # type: ignore[misc]
        with pytest.raises(InvalidRequest):
            scene.open()


def test_a_late_durable_does_not_spoil_commit() -> None:
    """A poll that crossed the last Durable may be answered by the same Durable again."""
    scene = Scene()
    scene.open()
    scene.send()
    settle(scene.stream, scene.lane)
    scene.stream.twist = lambda reply: [Durable(4, 0), Durable(4, 0), reply]
    assert commit_lane(scene.stream, scene.lane, COMMIT) == scene.receiver.durable_receipt


def test_commit_passes_the_receivers_conflict_on() -> None:
    scene = Scene()
    scene.open()
    scene.send()
    settle(scene.stream, scene.lane)
    scene.receiver.lose(next(iter(scene.receiver.durable_segments)))
    with pytest.raises(Conflict):
        commit_lane(scene.stream, scene.lane, COMMIT)
    scene.connect()
    listed = scene.open().durable_spans
    assert listed not in {b"", b"\xff"}, "some spans are voided, the others are not offered again"
    scene.batches = [Prepared(scene.disk, [index]) for index in range(8) if not listed[0] >> index & 1]
    scene.send()
    settle(scene.stream, scene.lane)
    commit_lane(scene.stream, scene.lane, COMMIT)
    assert scene.receiver.read() == scene.disk.read()


def test_a_lying_tracker_is_caught_and_nothing_stays_held() -> None:
    before = Disk(8 * MIB - 5, {index: palette(2) for index in range(8)})
    scene = Scene(before)
    for batch in scene.batches:
        batch.sample = True
    scene.open()
    with pytest.raises(TrackerMismatch, match="span 0 changed"):
        scene.run()
    assert scene.all_released()
    assert not any(isinstance(request, Segments) for request in scene.stream.sent)


def test_cancel_is_seen_while_offering_and_while_waiting() -> None:
    scene = Scene()
    scene.open()
    scene.cancelled.set()
    with pytest.raises(Cancelled):
        scene.run()

    scene = Scene()
    scene.open()
    scene.stream.silent_after = 2
    waiting = scene.stream.receive

    def receive(timeout: float) -> Reply | None:
        if scene.stream.waited > 1:
            scene.cancelled.set()
        return waiting(timeout)

    scene.stream.receive = receive  # type: ignore[method-assign]
    with pytest.raises(Cancelled):
        scene.run()
    assert scene.stream.waited < 1.2
    assert scene.all_released()

    scene = Scene()
    scene.open()
    scene.send()
    scene.cancelled.set()
    with pytest.raises(Cancelled):
        settle(scene.stream, scene.lane, cancelled=scene.cancelled)


def test_a_source_that_fails_leaves_nothing_held() -> None:
    scene = Scene()
    scene.open()

    def source() -> Iterator[Prepared]:
        yield scene.batches[0]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        run_lane(
            scene.stream, scene.lane, source(), cancelled=scene.cancelled, on_answered=scene.answered.append
        )
    assert scene.all_released()


def test_a_hostile_answer_ends_the_lane() -> None:
    scene = Scene()
    scene.stream.twist = lambda reply: (
        [replace(reply, wanted=np.ones(99_999, dtype=np.bool_))] if isinstance(reply, Missing) else [reply]
    )
    scene.open()
    with pytest.raises(InvalidRequest):
        scene.run()
    assert scene.all_released()
