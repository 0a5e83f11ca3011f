"""One client's socket, plain or TLS, as the loop of a connection needs it.

Invariants:
  L1 every wait ends: in the negotiation by its deadline, later by SILENCE_SECONDS_MAX without a byte
     moving, or because ``hang_up`` was called.
Callers: the connection's thread; ``hang_up`` and ``wake`` from any.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import struct
from typing import Final

from arraylift.clock import Clock
from arraylift.nbd import tls
from arraylift.rpc.identity import Peer

SILENCE_SECONDS_MAX: Final = 120
"""In the middle of a request or of a reply; between requests a client may be silent for ever."""
KEEPALIVE_SECONDS: Final = 30
"""A peer's machine that is gone is found in about this and SILENCE_SECONDS_MAX."""


class Link:
    """Owns the socket and an event by which other threads wake the loop."""

    def __init__(self, connection: socket.socket, clock: Clock) -> None:
        self._socket = connection
        self._clock = clock
        self._secured: ssl.SSLSocket | None = None
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll, self._poll_event = select.poll(), select.poll()
        self._hung_up = False
        _tune(connection)

    # -- negotiation ----------------------------------------------------------------------------

    def receive_some(self, most: int, deadline: float) -> bytes:
        """Return what came, nothing at the end. Raises TimeoutError, OSError."""
        self._limit(deadline)
        return self._socket.recv(most)

    def send_by(self, data: bytes, deadline: float) -> None:
        """Raises TimeoutError, OSError."""
        self._limit(deadline)
        self._socket.sendall(data)

    def start_tls(self, context: ssl.SSLContext, deadline: float) -> Peer:
        """Raises NotPermitted, TimeoutError, ConnectionAbortedError."""
        self._limit(deadline)
        self._secured, peer = tls.accept(context, self._socket)
        self._socket = self._secured
        if self._hung_up:  # while the socket changed hands
            raise ConnectionAbortedError
        return peer

    def _limit(self, deadline: float) -> None:
        left = deadline - self._clock.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)

    # -- transmission ---------------------------------------------------------------------------

    def begin_transmission(self) -> None:
        """From now on ``receive_into`` and ``send`` are used."""
        if self._secured is not None:
            self._socket.settimeout(SILENCE_SECONDS_MAX)
        else:
            # The kernel's own limits: Python's would cost a call of poll before each other call.
            self._socket.settimeout(None)
            limit = struct.pack("ll", SILENCE_SECONDS_MAX, 0)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self._poll.register(self._socket.fileno(), select.POLLIN)
        for poll in (self._poll, self._poll_event):
            poll.register(self._event, select.POLLIN)

    def receive_into(self, window: memoryview) -> int:
        """Return how much came, 0 at the end. Raises TimeoutError (silence), OSError."""
        try:
            return self._socket.recv_into(window)
        except (BlockingIOError, ssl.SSLWantReadError):
            raise TimeoutError from None

    def receive_ready(self, window: memoryview) -> int | None:
        """Like ``receive_into``, without waiting: None if nothing came, or only TLS spoke of itself."""
        try:
            if self._secured is None:
                return self._socket.recv_into(window, 0, socket.MSG_DONTWAIT)
            self._socket.settimeout(0)
            try:
                return self._socket.recv_into(window)
            finally:
                self._socket.settimeout(SILENCE_SECONDS_MAX)
        except (BlockingIOError, ssl.SSLWantReadError):
            return None

    def send(self, data: memoryview) -> None:
        """Raises TimeoutError (the client takes nothing), OSError."""
        try:
            self._socket.sendall(data)
        except (BlockingIOError, ssl.SSLWantWriteError):
            raise TimeoutError from None

    def wait(self, *, for_client: bool) -> tuple[bool, bool]:
        """Wait for the client (where asked for) or for ``wake``; return which of them came."""
        if for_client and self._secured is not None and self._secured.pending():
            return True, self._take_event()
        if not for_client:
            self._poll_event.poll()
            return False, self._take_event()
        ready = {descriptor for descriptor, _ in self._poll.poll()}
        return self._socket.fileno() in ready, self._event in ready and self._take_event()

    def wake(self) -> None:
        """Have ``wait`` return, now or at its next call."""
        with contextlib.suppress(OSError):
            os.eventfd_write(self._event, 1)

    def _take_event(self) -> bool:
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            return False
        return True

    # -- end ------------------------------------------------------------------------------------

    def hang_up(self) -> None:
        """Have the loop end at its next look at the socket. Any thread, at any time."""
        self._hung_up = True
        with contextlib.suppress(OSError):
            # Not through TLS: that belongs to the loop's thread.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """By the loop's thread, when nobody will call ``wake`` any more."""
        with contextlib.suppress(OSError):
            self._socket.close()
        os.close(self._event)


def _tune(connection: socket.socket) -> None:
    """Find peers that are gone, and send replies at once."""
    if connection.family == socket.AF_UNIX:
        return
    options = (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_SECONDS),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_SECONDS_MAX * 1000),
    )
    for level, option, value in options:
        with contextlib.suppress(OSError):
            connection.setsockopt(level, option, value)
