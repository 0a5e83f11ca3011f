"""LaneStream over one gRPC Exchange call, with the bulk codec as its serializers.

Invariants:
  G1 a request is serialized before ``send`` returns: its buffers may be used again then.
  G2 the end of the call reaches every later caller, however full the reply queue is.
Threads: the owner's (send, receive, close), gRPC's own that drains the request
queue, and one that only moves replies into the reply queue.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator

import grpc

from arraylift.errors import ArrayliftError
from arraylift.exchange import wire
from arraylift.exchange.messages import Reply, Request
from arraylift.rpc.status import from_rpc_error

METHOD = "/arraylift.v1.SegmentExchangeService/Exchange"
REQUEST_QUEUE_MAX = 8
"""Messages of about 1 MiB that wait for the wire."""
REPLY_QUEUE_MAX = 64
"""More than any window can leave unanswered; a receiver that exceeds it is held back."""
CALL_SECONDS_MAX = 23 * 3600.0

_PUT_SECONDS = 0.5


class GrpcLaneStream:
    """One call; see LaneStream for what each method promises."""

    def __init__(self, channel: grpc.Channel, peer: str) -> None:
        self._peer = peer
        self._requests: queue.Queue[bytes | None] = queue.Queue(REQUEST_QUEUE_MAX)
        self._replies: queue.Queue[Reply | None] = queue.Queue(REPLY_QUEUE_MAX)
        self._end: Exception = EOFError("the receiver ended the lane")
        self._ended = threading.Event()
        self._given_up = threading.Event()
        method: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(METHOD)
        self._call = method(self._drain(), timeout=CALL_SECONDS_MAX)
        threading.Thread(target=self._collect, name=f"lane-replies {peer}", daemon=True).start()

    def _drain(self) -> Iterator[bytes]:
        while True:
            try:
                request = self._requests.get(timeout=_PUT_SECONDS)
            except queue.Empty:
                if self._ended.is_set():
                    return
                continue
            if request is None:
                return
            yield request

    def _collect(self) -> None:
        try:
            for data in self._call:
                self._put(wire.decode_reply(data))  # here, since gRPC hides what a deserializer raises
        except grpc.RpcError as error:
            self._end = from_rpc_error(error, self._peer)
        except ArrayliftError as error:
            self._end = error
            self._call.cancel()
        finally:
            self._ended.set()
            with contextlib.suppress(queue.Full):
                self._replies.put_nowait(None)  # wakes who waits; nobody waits at a full queue

    def _put(self, reply: Reply) -> None:
        while not self._given_up.is_set():
            try:
                self._replies.put(reply, timeout=_PUT_SECONDS)
            except queue.Full:
                continue
            return

    def send(self, request: Request) -> None:
        data = wire.encode_request(request)  # G1
        while not self._ended.is_set():
            try:
                self._requests.put(data, timeout=_PUT_SECONDS)
            except queue.Full:
                continue
            return
        raise self._end

    def receive(self, timeout: float) -> Reply | None:
        over = self._ended.is_set()  # nothing is queued after it is set but the None that wakes
        try:
            wait = timeout > 0 and not over
            reply = self._replies.get(timeout=timeout) if wait else self._replies.get_nowait()
        except queue.Empty:
            reply = None
        if reply is None and self._ended.is_set() and self._replies.empty():
            raise self._end  # G2
        return reply

    def close_sending(self) -> None:
        while not self._ended.is_set():
            try:
                self._requests.put(None, timeout=_PUT_SECONDS)
            except queue.Full:
                continue
            return

    def cancel(self) -> None:
        self._given_up.set()
        self._call.cancel()
