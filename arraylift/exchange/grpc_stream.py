"""LaneStream over one gRPC Exchange call, with the bulk codec as its serializers.

Threads: the owner's (send, receive, close), gRPC's own that drains the request
queue, and one that only moves replies into the reply queue.
"""

from __future__ import annotations

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
REPLY_QUEUE_MAX = 1024
"""More than any window can leave unanswered; a receiver that exceeds it is held back."""
CALL_SECONDS_MAX = 24 * 3600.0

_PUT_SECONDS = 0.5


class GrpcLaneStream:
    """One call; see LaneStream for what each method promises."""

    def __init__(self, channel: grpc.Channel, peer: str) -> None:
        self._peer = peer
        self._requests: queue.Queue[Request | None] = queue.Queue(REQUEST_QUEUE_MAX)
        self._replies: queue.Queue[Reply | Exception] = queue.Queue(REPLY_QUEUE_MAX)
        self._ended = threading.Event()
        method = channel.stream_stream(
            METHOD, request_serializer=wire.encode_request, response_deserializer=wire.decode_reply
        )
        self._call = method(self._drain(), timeout=CALL_SECONDS_MAX)
        threading.Thread(target=self._collect, name=f"lane-replies {peer}", daemon=True).start()

    def _drain(self) -> Iterator[Request]:
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
        end: Exception = EOFError("the receiver ended the lane")
        try:
            for reply in self._call:
                self._put(reply)
        except grpc.RpcError as error:
            end = from_rpc_error(error, self._peer)
        except ArrayliftError as error:
            end = error
        self._ended.set()
        self._put(end)

    def _put(self, item: Reply | Exception) -> None:
        while True:
            try:
                return self._replies.put(item, timeout=_PUT_SECONDS)
            except queue.Full:
                if self._ended.is_set():
                    return

    def send(self, request: Request) -> None:
        while True:
            if self._ended.is_set():
                self._raise_end()
            try:
                return self._requests.put(request, timeout=_PUT_SECONDS)
            except queue.Full:
                continue

    def receive(self, timeout: float) -> Reply | None:
        try:
            item = self._replies.get(timeout=timeout) if timeout else self._replies.get_nowait()
        except queue.Empty:
            return None
        if isinstance(item, Exception):
            self._put(item)  # every later call gets it too
            raise item
        return item

    def close_sending(self) -> None:
        while not self._ended.is_set():
            try:
                return self._requests.put(None, timeout=_PUT_SECONDS)
            except queue.Full:
                continue

    def cancel(self) -> None:
        self._ended.set()
        self._call.cancel()

    def _raise_end(self) -> None:
        """The call is over: raise why, skipping replies that no longer matter."""
        while True:
            item = self._replies.get(timeout=_PUT_SECONDS)
            if isinstance(item, Exception):
                self._put(item)
                raise item
