"""GrpcLaneStream over a channel that is two queues: what it promises whoever drives a lane."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from arraylift.errors import Cancelled, Conflict, InvalidRequest
from arraylift.exchange import grpc_stream
from arraylift.exchange.grpc_stream import GrpcLaneStream
from arraylift.exchange.lane import POLL
from arraylift.exchange.messages import Durable, Segments
from arraylift.exchange.wire import decode_request, encode_reply


class Broken(grpc.RpcError, grpc.Call):
    """A failed call, as gRPC raises it at the client."""

    def __init__(self, code: grpc.StatusCode) -> None:
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "broken"

    def trailing_metadata(self) -> tuple[()]:
        return ()

    def initial_metadata(self) -> tuple[()]:
        return ()

    def is_active(self) -> bool:
        return False

    def time_remaining(self) -> float:
        return 0.0

    def cancel(self) -> bool:
        return False

    def add_callback(self, callback: object) -> bool:
        return False


class Channel:
    """Only what the stream uses of a grpc.Channel; the test is gRPC."""

    def __init__(self) -> None:
        self.requests: Iterator[bytes] = iter(())
        self.replies: queue.Queue[bytes | Exception | None] = queue.Queue()
        self.cancelled = threading.Event()

    def stream_stream(self, method: str) -> Channel:
        assert method == "/arraylift.v1.SegmentExchangeService/Exchange"
        return self

    def __call__(self, requests: Iterator[bytes], timeout: float) -> Channel:
        self.requests = requests
        return self

    def cancel(self) -> None:
        self.cancelled.set()
        self.replies.put(Broken(grpc.StatusCode.CANCELLED))

    def __iter__(self) -> Iterator[bytes]:
        while True:
            reply = self.replies.get(timeout=10)
            if reply is None:
                return
            if isinstance(reply, Exception):
                raise reply
            yield reply


@pytest.fixture
def channel() -> Channel:
    return Channel()


@pytest.fixture
def stream(channel: Channel) -> Iterator[GrpcLaneStream]:
    stream = GrpcLaneStream(channel, "target t")  # type: ignore[arg-type]
    yield stream
    channel.replies.put(None)
    stream.close_sending()


def wait_for(condition: object) -> None:
    deadline = time.monotonic() + 10
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_buffers_may_be_used_again_when_send_returns(channel: Channel, stream: GrpcLaneStream) -> None:
    """G1. Requests wait in a queue; what they point at is the reader's reusable buffer."""
    buffer = bytearray(b"segment of the batch")
    view = memoryview(buffer)
    stream.send(Segments(1, np.zeros(1, "u1"), np.array([len(buffer)], "<u4"), (view,)))
    buffer[:] = b"X" * len(buffer)
    found = decode_request(next(channel.requests))
    assert isinstance(found, Segments)
    assert bytes(found.payload[0]) == b"segment of the batch"


def test_requests_come_in_order_and_end(channel: Channel, stream: GrpcLaneStream) -> None:
    for _ in range(3):
        stream.send(POLL)
    stream.close_sending()
    assert list(channel.requests) == [b"\x12\x00"] * 3


def test_a_full_request_queue_holds_the_sender_back(channel: Channel, stream: GrpcLaneStream) -> None:
    for _ in range(grpc_stream.REQUEST_QUEUE_MAX):
        stream.send(POLL)
    late = threading.Thread(target=stream.send, args=(POLL,))
    late.start()
    assert late.is_alive()
    next(channel.requests)
    late.join(10)
    assert not late.is_alive()


def test_replies_come_in_order_or_not_at_all(channel: Channel, stream: GrpcLaneStream) -> None:
    assert stream.receive(0) is None
    assert stream.receive(0.01) is None
    for batch in (1, 2, 3):
        channel.replies.put(encode_reply(Durable(batch, 0)))
    assert [stream.receive(10) for _ in range(3)] == [Durable(batch, 0) for batch in (1, 2, 3)]


def test_the_end_comes_after_every_reply_and_again_and_again(
    channel: Channel, stream: GrpcLaneStream
) -> None:
    """G2, with more replies than the queue takes."""
    count = grpc_stream.REPLY_QUEUE_MAX + 5
    for batch in range(count):
        channel.replies.put(encode_reply(Durable(batch, 0)))
    channel.replies.put(None)
    wait_for(stream._replies.full)
    for batch in range(count):
        assert stream.receive(10) == Durable(batch, 0)
    for _ in range(3):
        with pytest.raises(EOFError):
            stream.receive(10)
    with pytest.raises(EOFError):
        stream.receive(0)
    with pytest.raises(EOFError):
        stream.send(POLL)


def test_a_full_queue_does_not_hide_how_the_call_ended(channel: Channel, stream: GrpcLaneStream) -> None:
    count = grpc_stream.REPLY_QUEUE_MAX
    for batch in range(count):
        channel.replies.put(encode_reply(Durable(batch, 0)))
    wait_for(stream._replies.full)
    channel.replies.put(Broken(grpc.StatusCode.CANCELLED))
    wait_for(stream._ended.is_set)
    for _ in range(count):
        assert stream.receive(0) is not None
    with pytest.raises(Cancelled):
        stream.receive(60)


def test_who_waits_is_woken_by_the_end(channel: Channel, stream: GrpcLaneStream) -> None:
    found: list[Exception] = []

    def wait() -> None:
        try:
            stream.receive(60)
        except EOFError as error:
            found.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    channel.replies.put(None)
    waiter.join(10)
    assert len(found) == 1


def test_a_receivers_error_reaches_every_call(
    channel: Channel, stream: GrpcLaneStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_stream, "from_rpc_error", lambda error, peer: Conflict(f"{peer} lost it"))
    channel.replies.put(Broken(grpc.StatusCode.ABORTED))
    for _ in range(2):
        with pytest.raises(Conflict, match="target t lost it"):
            stream.receive(10)
    with pytest.raises(Conflict):
        stream.send(POLL)
    stream.close_sending()


def test_a_reply_that_does_not_parse_ends_the_call(channel: Channel, stream: GrpcLaneStream) -> None:
    """gRPC would turn what a deserializer raises into a nameless INTERNAL."""
    channel.replies.put(b"\xff\xff")
    with pytest.raises(InvalidRequest):
        stream.receive(10)
    assert channel.cancelled.is_set()
    with pytest.raises(InvalidRequest):
        stream.send(POLL)


def test_cancel_frees_a_sender_that_is_held_back(channel: Channel, stream: GrpcLaneStream) -> None:
    for _ in range(grpc_stream.REQUEST_QUEUE_MAX):
        stream.send(POLL)
    found: list[Exception] = []

    def late() -> None:
        try:
            stream.send(POLL)
        except Cancelled as error:
            found.append(error)

    sender = threading.Thread(target=late)
    sender.start()
    stream.cancel()
    stream.cancel()
    sender.join(10)
    assert len(found) == 1
