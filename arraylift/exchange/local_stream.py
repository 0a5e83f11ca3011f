"""A lane between a sender and a receiver of one process: what one says, the other takes at once.

For data that arrives at its receiver uncut: the same machines, rules and limits as over the
wire, without the wire.
Invariants:
  L1 an error of the receiver is raised where the request was sent, and ends the lane with it
     as its cause, as it does over the wire.
Limits: replies are taken before the next request is sent, so a few wait at most.
Callers: one thread, the lane's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace

from arraylift.errors import ArrayliftError
from arraylift.exchange.messages import Open, Reply, Request, Segments
from arraylift.exchange.serve_lane import LaneServer, Receiving, cut_short


class LocalLaneStream:
    """A LaneStream (arraylift.exchange.lane)."""

    def __init__(self, receiving: Receiving, *, wait: Callable[[float], None]) -> None:
        """``wait`` returns when the receiver may have news, or after so many seconds."""
        self._receiving = receiving
        self._wait = wait
        self._server: LaneServer | None = None
        self._replies: deque[Reply] = deque()
        self._ended = False

    def send(self, request: Request) -> None:
        try:
            self._send(request)
        except ArrayliftError as error:
            self._close(error)  # L1
            raise

    def _send(self, request: Request) -> None:
        if isinstance(request, Open):
            self._server = LaneServer(self._receiving, request)
            self._replies.append(self._server.opened)
            return
        assert self._server is not None, "a lane begins with Open"
        assert not self._ended, "the lane is closed"
        if isinstance(request, Segments):
            request = replace(request, payload=(b"".join(request.payload),))  # as it comes off the wire
        self._replies.extend(self._server.take(request))

    def receive(self, timeout: float) -> Reply | None:
        if self._replies:
            return self._replies.popleft()
        if self._ended:
            raise EOFError("the lane has ended")
        if timeout > 0:
            self._wait(timeout)
        return None

    def close_sending(self) -> None:
        assert self._server is not None, "a lane begins with Open"
        try:
            self._replies.extend(self._server.end())
        except ArrayliftError as error:
            self._close(error)  # L1
            raise
        self._close(None)

    def cancel(self) -> None:
        """Idempotent, and nothing after a proper end."""
        self._close(cut_short())

    def _close(self, cause: ArrayliftError | None) -> None:
        if not self._ended:
            self._ended = True
            if self._server is not None:
                self._server.close(cause)
