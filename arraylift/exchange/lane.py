"""Drive one sending lane over a stream: offer, send what is wanted, wait for Durable.

Owns: the lane's loop and its waits. What is offered comes from a BatchSource
(an array's snapshot reader, a target's image reader); rules and limits are the
SenderLane's.
Limits: REQUEST_QUEUE_MAX messages wait for the wire; a receiver that is silent for
SILENCE_SECONDS_MAX ends the lane with PeerUnavailable, polled or not.
Threads: ``run_lane`` is the lane's thread; the stream has its own for gRPC.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from arraylift.errors import Cancelled, PeerUnavailable, TrackerMismatch
from arraylift.exchange.messages import (
    NO_RUNS,
    Commit,
    Committed,
    Durable,
    Offer,
    Open,
    Opened,
    Reply,
    Request,
    Segments,
)
from arraylift.exchange.sender import SenderLane, Wanted

SILENCE_SECONDS_MAX = 120.0
POLL_SECONDS = 0.05
"""How often a lane that may not offer asks for Durable answers, and looks whether it is cancelled."""


class LaneStream(Protocol):
    """One Exchange call, seen by its sender."""

    def send(self, request: Request) -> None:
        """Queue a request; blocks while REQUEST_QUEUE_MAX wait. The request's buffers may be
        used again when it returns. Raises the call's error."""
        ...

    def receive(self, timeout: float) -> Reply | None:
        """Next reply, or None after ``timeout`` seconds. Raises the call's error; EOFError when
        the receiver has ended the call."""
        ...

    def close_sending(self) -> None:
        """No more requests: the receiver flushes the lane and ends the call."""
        ...

    def cancel(self) -> None:
        """Give the call up; idempotent."""
        ...


class Prepared(Protocol):
    """A batch that can be offered and, until released, sent."""

    def offer(self, batch: int) -> Offer: ...

    def segments(self, wanted: Wanted) -> Iterator[tuple[Segments, int]]:
        """Messages of the wanted segments in order, each with their plain bytes."""
        ...

    def release(self) -> None:
        """Its buffers may be used again."""
        ...


BatchSource = Iterator[Prepared]
"""Yields batches in the order of the disk; may block while reading. At most
``Limits.window_batches`` are held unreleased."""


def open_lane(stream: LaneStream, lane: SenderLane, message: Open) -> Opened:
    """Send Open and wait for Opened."""
    with _ending_is_failure():
        stream.send(lane.open(message))
        reply = lane.receive(_next_reply(stream))
    assert isinstance(reply, Opened), "the machine admits only Opened here"
    return reply


def run_lane(
    stream: LaneStream,
    lane: SenderLane,
    source: BatchSource,
    *,
    cancelled: threading.Event,
    on_answered: Callable[[Wanted], None],
) -> None:
    """Offer everything of ``source``, send what is wanted, end the lane durably.

    Arguments and errors are those of ``send_batches``.
    """
    send_batches(stream, lane, source, cancelled=cancelled, on_answered=on_answered)
    end_lane(stream, lane)


def send_batches(
    stream: LaneStream,
    lane: SenderLane,
    source: BatchSource,
    *,
    cancelled: threading.Event,
    on_answered: Callable[[Wanted], None],
) -> None:
    """Offer everything of ``source`` and send what is wanted; the lane stays open.

    ``on_answered`` is told of every answered batch. Raises TrackerMismatch when a sampled
    span differs, Cancelled, and the stream's errors. Whatever happens, no batch stays held.
    """
    held: dict[int, Prepared] = {}
    try:
        with _ending_is_failure():
            _offer_all(stream, lane, source, held, cancelled, on_answered)
    finally:
        for prepared in held.values():
            prepared.release()


def _offer_all(
    stream: LaneStream,
    lane: SenderLane,
    source: BatchSource,
    held: dict[int, Prepared],
    cancelled: threading.Event,
    on_answered: Callable[[Wanted], None],
) -> None:
    exhausted = False
    while not (exhausted and lane.answered):
        _check_cancelled(cancelled)
        if lane.may_offer and not exhausted:
            prepared = next(source, None)
            if prepared is None:
                exhausted = True
            else:
                held[lane.next_batch] = prepared
                stream.send(lane.offer(prepared.offer(lane.next_batch)))
            reply = stream.receive(0)
        else:
            reply = _next_reply(stream, cancelled, poll=lane.answered)
        while reply is not None:
            event = lane.receive(reply)
            if isinstance(event, Wanted):
                _send_wanted(stream, lane, held[event.batch], event)
                held.pop(event.batch).release()
                on_answered(event)
            reply = stream.receive(0)


def _send_wanted(stream: LaneStream, lane: SenderLane, prepared: Prepared, wanted: Wanted) -> None:
    if wanted.mismatched_spans is not None and len(wanted.mismatched_spans):
        raise TrackerMismatch(
            f"span {int(wanted.mismatched_spans[0])} changed although the change tracker says it did not",
            next_step="the next run reads and compares the whole disk; look at the array's log for the cause",
        )
    if len(wanted.indexes):
        for message, plain_bytes in prepared.segments(wanted):
            stream.send(lane.segments(message, plain_bytes))


def end_lane(stream: LaneStream, lane: SenderLane) -> None:
    """Close the sending side and take the last Durable answers."""
    stream.close_sending()
    while True:
        try:
            lane.receive(_next_reply(stream))
        except EOFError:
            break
    if not lane.durable:
        raise PeerUnavailable("the receiver ended a lane before all of it was durable", next_step="retry")


def settle(stream: LaneStream, lane: SenderLane, *, cancelled: threading.Event | None = None) -> None:
    """Wait until every batch of this lane is durable, without ending it. Raises Cancelled."""
    with _ending_is_failure():
        while not lane.durable:
            lane.receive(_next_reply(stream, cancelled, poll=lane.answered))


def commit_lane(stream: LaneStream, lane: SenderLane, message: Commit) -> Committed:
    """Commit the transfer and return the receipt."""
    with _ending_is_failure():
        stream.send(lane.commit(message))
        reply = lane.receive(_next_reply(stream))
        while isinstance(reply, Durable):  # the answer to a poll that crossed the last one
            reply = lane.receive(_next_reply(stream))
    assert isinstance(reply, Committed), "the machine admits only Durable and Committed here"
    return reply


def _next_reply(stream: LaneStream, cancelled: threading.Event | None = None, *, poll: bool = False) -> Reply:
    """Wait for a reply, bounded; with ``poll``, when only Durable can come, ask for it meanwhile."""
    for _ in range(round(SILENCE_SECONDS_MAX / POLL_SECONDS)):
        _check_cancelled(cancelled)
        if poll:
            stream.send(POLL)
        reply = stream.receive(POLL_SECONDS)
        if reply is not None:
            return reply
    raise PeerUnavailable(
        f"the receiver said nothing for {SILENCE_SECONDS_MAX:.0f} s",
        next_step="see whether it is overloaded or its disk hangs; the transfer can be resumed",
    )


def _check_cancelled(cancelled: threading.Event | None) -> None:
    if cancelled is not None and cancelled.is_set():
        raise Cancelled("the transfer was cancelled")


@contextmanager
def _ending_is_failure() -> Iterator[None]:
    """Before the lane is closed, a receiver that ends the call has broken it off."""
    try:
        yield
    except EOFError as error:
        raise PeerUnavailable("the receiver ended a lane that was not done", next_step="retry") from error


POLL = Offer(
    batch=0,
    spans=NO_RUNS[:, 0],
    counts=NO_RUNS[:, 0].astype("<u2"),
    lengths=NO_RUNS[:, 0],
    fingerprints=b"",
    hole_runs=NO_RUNS,
)
