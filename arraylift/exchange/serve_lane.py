"""Serve one receiving lane: decode, check by the machine, delegate to a sink, answer.

Shared by every daemon that receives. The loop runs in the call's own thread from the
first byte to the last; what becomes durable while nothing arrives is fetched by the
sender's polls, so no reader thread stands between (measured: it costs more than it gains).
Callers: the daemons' exchange edges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from arraylift.errors import ArrayliftError, Conflict, InvalidRequest, TrackerMismatch
from arraylift.exchange import wire
from arraylift.exchange.messages import (
    U32,
    Commit,
    Committed,
    Durable,
    Flags,
    Limits,
    Open,
    Opened,
    Reply,
    Request,
)
from arraylift.exchange.receiver import Arrived, Batch, Poll, ReceiverLane


class LaneSink(Protocol):
    """What a receiver does with one lane. One thread at a time."""

    def offered(self, batch: Batch) -> tuple[Flags | None, U32 | None]:
        """Return (wanted segments, sampled spans that differ from the base)."""
        ...

    def arrived(self, arrived: Arrived) -> None:
        """Verify and keep segments."""
        ...

    def advance(self, *, now: bool) -> tuple[int, int]:
        """Return (last durable batch, bytes stored so far); ``now`` when the sender waits."""
        ...

    def flush(self) -> tuple[int, int]:
        """Make everything durable and return the same."""
        ...

    def commit(self, message: Commit) -> Committed:
        """End the transfer; called after ``flush``."""
        ...

    def close(self, cause: ArrayliftError | None) -> None:
        """The lane is over; ``cause`` says why, if it did not end as it should."""
        ...


class Receiving(Protocol):
    """A transfer that the sender may open."""

    @property
    def limits(self) -> Limits: ...

    def open(self, message: Open) -> Opened:
        """Begin or join an attempt; an answer with ``committed`` ends the lane."""
        ...

    def lane(self, number: int) -> LaneSink:
        """Enter the lane that ``open`` admitted."""
        ...


def cut_short() -> Conflict:
    """What ends an attempt of which a lane is gone. The end of a request stream proves nothing: where it
    comes in the middle of a batch, the sender died or was cut, and may try again."""
    return Conflict("a lane of this attempt was cut", next_step="open the transfer again")


def serve_lane(requests: Iterator[bytes], find: Callable[[Open], Receiving]) -> Iterator[Reply]:
    """Yield the replies of one lane. Raises what the machine, the sink and ``find`` raise."""
    first = next(requests, None)
    opening = wire.decode_request(first) if first is not None else None
    if not isinstance(opening, Open):
        raise InvalidRequest("a lane begins with Open")
    server = LaneServer(find(opening), opening)
    cause: ArrayliftError | None = cut_short()
    try:
        yield server.opened
        if server.opened.committed is not None:
            return
        for data in requests:
            yield from server.take(wire.decode_request(data))
        yield from server.end()
        cause = None
    except ArrayliftError as error:
        cause = error
        raise
    finally:
        server.close(cause)


class LaneServer:
    """One receiving lane, a request at a time. One thread at a time; ``close`` whatever happens."""

    def __init__(self, transfer: Receiving, opening: Open) -> None:
        """Open the lane; an answer with ``committed`` ends it. Raises what the transfer raises."""
        self._machine = ReceiverLane(transfer.limits)
        self._machine.receive(opening)
        self.opened = transfer.open(opening)
        self._sink = transfer.lane(opening.lane) if self.opened.committed is None else None
        self._told = 0

    def take(self, request: Request) -> Iterator[Reply]:
        """Yield the answers to one request. Raises what the machine and the sink raise."""
        assert self._sink is not None, "nothing follows a receipt"
        event = self._machine.receive(request)
        if isinstance(event, Commit):
            yield from self._durable(*self._sink.flush())
            yield self._sink.commit(event)
            return
        if isinstance(event, Batch):
            wanted, odd = self._sink.offered(event)
            yield self._machine.answer(event, wanted, odd)
            if odd is not None and len(odd):
                raise TrackerMismatch(f"span {int(odd[0])} differs from the base it should equal")
        elif isinstance(event, Arrived):
            self._sink.arrived(event)
        yield from self._durable(*self._sink.advance(now=isinstance(event, Poll)))

    def end(self) -> Iterator[Reply]:
        """The sender has closed its side: make the lane durable, and say so."""
        assert self._sink is not None, "nothing follows a receipt"
        yield from self._durable(*self._sink.flush())

    def close(self, cause: ArrayliftError | None) -> None:
        """The lane is over; ``cause`` says why, if it did not end as it should."""
        if self._sink is not None:
            self._sink.close(cause)

    def _durable(self, batch: int, bytes_stored: int) -> Iterator[Durable]:
        if batch > self._told:
            self._told = batch
            yield self._machine.durable(batch, bytes_stored)
