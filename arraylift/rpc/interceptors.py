"""What happens around every handler: identity, authorization, deadline, logs, errors.

Handlers are wrapped once, when a server is put together, not intercepted at each call.
Invariants:
  R1 no line of a handler runs before the caller is identified, allowed, and has set a deadline.
  R2 a call that fails carries an ErrorDetail; an unexpected exception is logged with its
     traceback and reaches the caller as INTERNAL, without a word of it.
  R3 streams stay hot: requests reach the handler untouched, responses pass by ``yield from``.
  R4 every call leaves one summary line.
The end of a request stream proves nothing: gRPC ends the iterator of a stream that was cut either by
its RpcError or, if the cut is noticed a moment later, like one that was closed. So no handler may
take the end of its requests for consent; what commits is a message of its own.
Callers: gRPC's threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Never, TypeAlias, cast

import grpc
import structlog

from arraylift.clock import SYSTEM_CLOCK, Clock
from arraylift.errors import ArrayliftError, Corruption, InvalidRequest, StoreFailed
from arraylift.logs import get_logger
from arraylift.rpc.authz import check_allowed
from arraylift.rpc.identity import bind_peer, peer_of
from arraylift.rpc.status import abort_with, as_call, code_of

DEADLINE_SECONDS_MAX = 24 * 3600.0
"""Longest time a call may ask for; a transfer that needs longer resumes."""

_DEADLINE_SLACK_SECONDS = 1200.0  # two clocks, and gRPC rounds a long one up, by ten minutes
_HEALTH = "/grpc.health.v1.Health/"

_log = get_logger("rpc")

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Behavior = Callable[[Any, grpc.ServicerContext], Any]


def wrap_handler(method: str, handler: Handler, clock: Clock = SYSTEM_CLOCK) -> Handler:
    """Return ``handler`` guarded (R1-R4), of the same kind and with the same (de)serializers."""
    guard = Guard(method, clock)
    coders = {
        "request_deserializer": handler.request_deserializer,
        "response_serializer": handler.response_serializer,
    }
    if handler.unary_unary is not None:
        return grpc.unary_unary_rpc_method_handler(guard.one(handler.unary_unary), **coders)
    if handler.stream_unary is not None:
        return grpc.stream_unary_rpc_method_handler(guard.one(handler.stream_unary), **coders)
    if handler.unary_stream is not None:
        return grpc.unary_stream_rpc_method_handler(guard.many(handler.unary_stream), **coders)
    assert handler.stream_stream is not None, f"{method} has no behavior"
    return grpc.stream_stream_rpc_method_handler(guard.many(handler.stream_stream), **coders)


def _code_set(context: grpc.ServicerContext) -> grpc.StatusCode:
    """Return how a call ends whose handler returned; gRPC's health servicer sets codes itself."""
    if not context.is_active():
        return grpc.StatusCode.CANCELLED
    code: grpc.StatusCode | None = cast("Any", context).code()  # missing in the stubs
    return code or grpc.StatusCode.OK


class Guard:
    """The wrapper of one method; holds no state of a call."""

    def __init__(self, method: str, clock: Clock) -> None:
        self._method = method
        self._clock = clock
        self._is_health = method.startswith(_HEALTH)

    def one(self, behavior: Behavior) -> Behavior:
        """Guard a handler that returns one response."""

        def guarded(request: Any, context: grpc.ServicerContext) -> Any:
            started = self._clock.monotonic()
            try:
                self._admit(context)
                response = behavior(request, context)
            except Exception as error:  # noqa: BLE001  # the last place that can tell the caller
                self._fail(context, error, started)
            self._summarize(_code_set(context), started)
            return response

        return guarded

    def many(self, behavior: Behavior) -> Callable[[Any, grpc.ServicerContext], Iterator[Any]]:
        """Guard a handler that returns an iterator of responses."""

        def guarded(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            started = self._clock.monotonic()
            try:
                self._admit(context)
                yield from behavior(request, context)
            except GeneratorExit:  # the caller has gone; the handler has just been closed
                self._summarize(grpc.StatusCode.CANCELLED, started)
                raise
            except Exception as error:  # noqa: BLE001  # the last place that can tell the caller
                self._fail(context, error, started)
            self._summarize(_code_set(context), started)

        return guarded

    def _admit(self, context: grpc.ServicerContext) -> None:
        """R1. Raises NotPermitted or InvalidRequest."""
        structlog.contextvars.bind_contextvars(rpc=self._method)
        peer = peer_of(context)
        structlog.contextvars.bind_contextvars(peer=str(peer))
        check_allowed(peer, self._method)
        bind_peer(peer)
        remaining = context.time_remaining()
        # A call without a deadline has endless time.
        too_long = remaining > DEADLINE_SECONDS_MAX + _DEADLINE_SLACK_SECONDS
        if too_long and not self._is_health:
            raise InvalidRequest(
                f"{self._method.rpartition('/')[2]} came without a deadline, or with one too far off",
                next_step=f"set a deadline of at most {DEADLINE_SECONDS_MAX:.0f} seconds",
            )

    def _fail(self, context: grpc.ServicerContext, error: Exception, started: float) -> Never:
        """End the call with ``error`` (R2)."""
        if isinstance(error, ArrayliftError):
            self._summarize(code_of(error), started, error)
            abort_with(context, error)
        if isinstance(error, grpc.RpcError) and as_call(error) is None:
            # The request stream was cut under the handler; gRPC knows its own exception.
            self._summarize(grpc.StatusCode.CANCELLED, started)
            raise error
        _log.error("rpc_crashed", exc_info=error)
        internal = ArrayliftError(
            f"{self._method.rpartition('/')[2]} failed by a fault of the daemon itself",
            next_step="its log has the details",
        )
        self._summarize(code_of(internal), started)
        abort_with(context, internal)

    def _summarize(self, code: grpc.StatusCode, started: float, error: ArrayliftError | None = None) -> None:
        """R4; rpc and peer are bound already."""
        figures: dict[str, Any] = {
            "code": code.name,
            "duration_ms": round((self._clock.monotonic() - started) * 1000, 1),
        }
        if error is not None:
            figures.update(reason=error.reason, error=str(error), subject=error.subject)
        if isinstance(error, Corruption | StoreFailed):
            _log.error("rpc_done", **figures)
        elif self._is_health and code is grpc.StatusCode.OK:
            _log.debug("rpc_done", **figures)
        else:
            _log.info("rpc_done", **figures)
