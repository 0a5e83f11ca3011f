"""Read, and write, disks that other NBD servers export: the machines of the client, over a socket.

Invariants:
  C1 every wait ends, however the server trickles: the negotiation after CONNECT_SECONDS, later after
     SILENCE_SECONDS without a byte, or ANSWER_SECONDS without a whole answer, while something is asked,
     and soon after ``cancelled``.
  C2 a connection that failed in any way is not used again.
Limits: REQUESTS_MAX requests of REQUEST_BYTES_MAX on their way. One thread at a time.
Protocol: docs/protocols/nbd.md
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self

from arraylift.clock import SYSTEM_CLOCK, Clock
from arraylift.durable import Buffer
from arraylift.errors import Cancelled, InvalidRequest, PeerUnavailable, WrongState
from arraylift.nbd import client_tls, wire
from arraylift.nbd.client_handshake import ClientHandshake, Negotiated, broken
from arraylift.nbd.client_machine import Asked, ClientMachine, Extents
from arraylift.nbd.client_tls import ClientCredentials
from arraylift.nbd.uri import NbdUri
from arraylift.sizes import GIB, IMAGE_BYTES_MAX, MIB

CONNECT_SECONDS = 20.0
SILENCE_SECONDS = 60.0
ANSWER_SECONDS = 120.0
"""From what was asked or answered last to the next whole answer."""
REQUESTS_MAX = 16
REQUEST_BYTES_MAX = MIB
STATUS_RANGE_BYTES = GIB
"""What one BLOCK_STATUS asks about."""
EXTENTS_MAX = 1 << 26
"""Extents of one disk: a server that tells of more is not believed."""
_TICK_SECONDS = 0.2


class NbdClient:
    """One connection to one export; a context manager."""

    def __init__(
        self,
        uri: NbdUri,
        credentials: ClientCredentials | None = None,
        *,
        contexts: Sequence[str] = (),
        cancelled: threading.Event | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Connect and negotiate. Raises PeerUnavailable, NotFound and NotPermitted (export), WrongState,
        InvalidRequest, Corruption (protocol), Cancelled."""
        if uri.tls and credentials is None:
            raise InvalidRequest(f"{uri} demands certificates")
        self._uri = uri
        self._cancelled = cancelled or threading.Event()
        self._clock = clock
        self._deadline = self._answer_by = clock.monotonic() + CONNECT_SECONDS
        self._socket = self._connect()
        try:
            self.export = self._negotiate(credentials, contexts)
        except BaseException:
            self._socket.close()
            raise
        self._machine = ClientMachine(self.export)

    # -- what the export is ---------------------------------------------------------------------

    @property
    def size_bytes(self) -> int:
        return self.export.size_bytes

    @property
    def contexts(self) -> frozenset[str]:
        """Those of the asked that the server has."""
        return frozenset(self.export.contexts.values())

    @property
    def multi_conn(self) -> bool:
        """The server takes several connections to this export."""
        return bool(self.export.flags & wire.CAN_MULTI_CONN)

    # -- reading --------------------------------------------------------------------------------

    def read(self, pieces: Iterable[tuple[int, memoryview]]) -> None:
        """Fill each view with the bytes at its offset.

        Raises Corruption (unreadable; protocol), PeerUnavailable, NotPermitted, Cancelled; what the
        views hold then means nothing.
        """
        most = max(self.export.block_bytes_min, min(REQUEST_BYTES_MAX, self.export.payload_bytes_max))
        left = deque(
            (offset + start, view[start : start + most])
            for offset, view in pieces
            for start in range(0, len(view), most)
        )
        while left or self._machine.unanswered:
            requests = []
            while left and self._machine.unanswered < REQUESTS_MAX:
                requests.append(self._machine.read(*left.popleft()))
            self._send(b"".join(requests))
            self._receive()
            while self._machine.finished:
                _raise_failure(self._machine.finished.popleft())

    def status(self, start: int = 0) -> Iterator[tuple[int, dict[str, Extents]]]:
        """Yield (offset, extents by context) up to the end of the disk; the extents of each context cover
        the range up to the next offset, or more. Raises like ``read``, and WrongState (no contexts)."""
        if not self.export.contexts:
            raise WrongState(f"{self._uri} tells nothing of its blocks")
        told = 0
        while start < self.size_bytes:
            length = min(STATUS_RANGE_BYTES, self.size_bytes - start)
            self._send(self._machine.status(start, length))
            asked = self._wait_for_one()
            told += sum(len(extents) for extents in asked.states.values())
            if told > EXTENTS_MAX:
                raise broken("it tells of more extents than a disk has")
            yield start, asked.states
            start += min(length, *(int(extents[:, 0].sum()) for extents in asked.states.values()))

    # -- writing --------------------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        return not self.export.flags & wire.READ_ONLY

    def write(self, offset: int, data: Buffer) -> None:
        """Write all of ``data``; kept once ``flush`` has returned. Raises like ``read``, and OutOfSpace."""
        assert self.writable
        view = memoryview(data)
        most = min(REQUEST_BYTES_MAX, self.export.payload_bytes_max)
        for start in range(0, len(view), most):
            piece = view[start : start + most]
            self._send(self._machine.write(offset + start, len(piece)))
            self._send(piece)
            self._wait_for_one()

    def flush(self) -> None:
        """Have the server keep what was written."""
        if self.export.flags & wire.SEND_FLUSH:
            self._send(self._machine.flush())
            self._wait_for_one()

    def _wait_for_one(self) -> Asked:
        """Wait for the only request on its way. Raises what became of it."""
        while not self._machine.finished:
            self._receive()
        asked = self._machine.finished.popleft()
        _raise_failure(asked)
        return asked

    def close(self) -> None:
        """Say goodbye, if that can be said at once."""
        with contextlib.suppress(OSError, ValueError):
            self._socket.settimeout(_TICK_SECONDS)
            self._socket.sendall(ClientMachine.goodbye())
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- the socket -----------------------------------------------------------------------------

    def _connect(self) -> socket.socket:
        try:
            if self._uri.socket_path:
                connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                try:
                    connection.settimeout(CONNECT_SECONDS)
                    connection.connect(self._uri.socket_path)
                except BaseException:
                    connection.close()
                    raise
                return connection
            connection = socket.create_connection((self._uri.host, self._uri.port), CONNECT_SECONDS)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            return connection
        except (OSError, UnicodeError) as error:
            raise self._gone(f"does not answer: {error}") from None

    def _negotiate(self, credentials: ClientCredentials | None, contexts: Sequence[str]) -> Negotiated:
        talk = ClientHandshake(self._uri.export, contexts=contexts, tls=self._uri.tls)
        while talk.done is None:
            self._send(talk.take_outgoing())
            if talk.tls_due:
                assert credentials is not None
                self._socket.settimeout(max(0.001, self._deadline - self._clock.monotonic()))
                try:
                    self._socket = client_tls.secure(self._socket, credentials, self._uri.tls_name)
                except TimeoutError:
                    raise self._gone("said nothing in the TLS handshake") from None
                talk.secured()
                continue
            data = bytearray(talk.needs)
            view = memoryview(data)
            while view:
                view = view[self._receive_some(view, self._deadline) :]
            talk.receive(bytes(data))
        export = talk.done
        if not 0 < export.size_bytes <= IMAGE_BYTES_MAX:
            raise WrongState(
                f"{self._uri} has {export.size_bytes:,} bytes; 1 to {IMAGE_BYTES_MAX:,} can be read"
            )
        return export

    def _send(self, data: Buffer) -> None:
        if not data:
            return
        self._check_cancelled()
        try:
            # One that does not take a request reads nothing at all.
            self._socket.settimeout(SILENCE_SECONDS)
            self._socket.sendall(data)
        except OSError as error:
            raise self._gone(f"went away: {error}") from None
        self._answer_by = self._clock.monotonic() + ANSWER_SECONDS

    def _receive(self) -> None:
        """Take what comes next."""
        deadline = min(self._clock.monotonic() + SILENCE_SECONDS, self._answer_by)
        self._machine.filled(self._receive_some(self._machine.window, deadline))
        if self._machine.finished:
            self._answer_by = self._clock.monotonic() + ANSWER_SECONDS

    def _receive_some(self, view: memoryview, deadline: float) -> int:
        while True:
            self._check_cancelled()
            if self._clock.monotonic() > deadline:
                raise self._gone("is silent, or too slow")
            try:
                self._socket.settimeout(_TICK_SECONDS)
                count = self._socket.recv_into(view)
            except (TimeoutError, ssl.SSLWantReadError):
                continue
            except OSError as error:
                raise self._gone(f"went away: {error}") from None
            if not count:
                raise self._gone("hung up")
            return count

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise Cancelled("the transfer was cancelled")

    def _gone(self, why: str) -> PeerUnavailable:
        return PeerUnavailable(
            f"the NBD server at {self._uri} {why}",
            subject=str(self._uri),
            next_step="see that it runs, serves several clients at once (qemu-nbd --persistent --shared=4), "
            "and can be reached",
        )


def _raise_failure(asked: Asked) -> None:
    if asked.error is not None:
        raise asked.error
