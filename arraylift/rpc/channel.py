"""Call another daemon: channels, deadlines, and errors as our own classes.

Owns: the client side of every connection.
Invariants:
  H1 every call has a deadline: the helpers take no default of "for ever".
  H2 no grpc.RpcError leaves this module's helpers; it becomes an ArrayliftError (status.py).
  H3 nothing is retried behind the caller's back: only he knows whether a replay is safe.
  H4 a channel speaks only to a daemon of the role that was called, by the name that was called or,
     where that is not known, at a host that its certificate names for that role.
Callers: any thread. A channel is made once for each peer and shared; it reconnects by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import grpc

from arraylift.errors import PeerUnavailable
from arraylift.pki import TlsMaterial
from arraylift.rpc.address import split_address
from arraylift.rpc.identity import demanded_name
from arraylift.rpc.interceptors import DEADLINE_SECONDS_MAX
from arraylift.rpc.status import METADATA_BYTES_MAX, from_rpc_error
from arraylift.sizes import MESSAGE_BYTES_MAX

CALL_SECONDS = 30.0
"""Deadline of a call that answers from memory or a few disk reads."""

LONG_CALL_SECONDS = 600.0
"""Deadline of a call that may wait for an fsync, a snapshot group or a delete."""

TRANSFER_SECONDS = DEADLINE_SECONDS_MAX
"""Deadline of a stream that moves data; one that needs longer resumes."""

_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_metadata_size", METADATA_BYTES_MAX),
    ("grpc.absolute_max_metadata_size", 2 * METADATA_BYTES_MAX),
    # A peer that vanished without a word is noticed within 30 s while calls are open.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),
    # Daemons come back within seconds; gRPC's two minutes of back-off would outlive a lease.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 3_000),
    ("grpc.enable_retries", 0),
    # A connection of its own for each channel, and never through a web proxy.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
]

_CLOSED_MARK = "Cannot invoke RPC"

Response = TypeVar("Response")


def connect(address: str, tls: TlsMaterial, role: str, name: str = "") -> grpc.Channel:
    """Return a channel to ``host:port``; connects at the first call. Close it when done.

    The peer must show a certificate of the same CA, of that role and name (H4). Without a name, the
    certificate must name this host. Raises InvalidRequest.
    """
    host, _ = split_address(address)
    demanded = demanded_name(role, name=name, host=host)
    credentials = grpc.ssl_channel_credentials(tls.ca_pem, tls.key_pem, tls.certificate_pem)
    options = [*_OPTIONS, ("grpc.ssl_target_name_override", demanded)]
    return grpc.secure_channel(address, credentials, options=options)


def call(
    method: Callable[..., Response], request: object, *, peer: str, timeout_seconds: float = CALL_SECONDS
) -> Response:
    """Call a stub's method that answers once; ``request`` may be an iterator of requests.

    ``peer`` names the callee in errors, e.g. ``"target 127.0.0.1:7404"``. Raises the peer's
    error, PeerUnavailable, DeadlineExceeded.
    """
    with _closed_is_unavailable(peer):
        try:
            return method(request, timeout=timeout_seconds)
        except grpc.RpcError as error:
            raise from_rpc_error(error, peer) from None


def stream(
    method: Callable[..., Any], request: object, *, peer: str, timeout_seconds: float
) -> ResponseStream[Any]:
    """Call a stub's method that answers by a stream; errors come while it is iterated, but for
    PeerUnavailable of a channel that is closed."""
    with _closed_is_unavailable(peer):
        return ResponseStream(method(request, timeout=timeout_seconds), peer)


class ResponseStream(Generic[Response]):
    """The responses of one call, once; a context manager that cancels what is left.

    Iterate on one thread; ``cancel`` from any.
    """

    def __init__(self, rpc: Any, peer: str) -> None:
        self._rpc = rpc
        self._peer = peer
        self._iterator = self._mapped()

    def __iter__(self) -> Iterator[Response]:
        return self._iterator

    def __next__(self) -> Response:
        return next(self._iterator)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Stop the call; whoever iterates gets Cancelled. No effect on one that has ended."""
        self._rpc.cancel()

    def _mapped(self) -> Iterator[Response]:
        try:
            yield from self._rpc
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._peer) from None


@contextmanager
def _closed_is_unavailable(peer: str) -> Iterator[None]:
    """A channel may be closed by another thread at any time: a daemon stops."""
    try:
        yield
    except ValueError as error:
        if _CLOSED_MARK not in str(error):
            raise
        raise PeerUnavailable(
            f"the connection to {peer} is closed", subject=peer, next_step="repeat it when this process is up"
        ) from None
