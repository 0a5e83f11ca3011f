"""Error classes to gRPC codes and back: the only table.

Owns: what an error looks like on the wire: the code, the message as status
details, and a serialized ``arraylift.v1.ErrorDetail`` in trailing metadata.
Invariants:
  E1 a client rebuilds the class from ``reason``, never from text. Only where the
     peer sent no detail (gRPC itself failed the call) do code and transport text speak.
  E2 what is sent fits into gRPC's metadata limit: every part is cut to a stated length.
  E3 nothing of an unexpected exception leaves the process.
Callers: any thread.
Protocol: docs/protocols/errors.md
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Never

import grpc
from google.protobuf.message import DecodeError

from arraylift import errors
from arraylift.errors import ArrayliftError
from arraylift.v1 import common_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

DETAIL_KEY = "arraylift-error-bin"

# E2: together below the 16 KiB of METADATA_BYTES_MAX, after base64 and percent-encoding.
MESSAGE_BYTES_MAX = 1024
TEXT_BYTES_MAX = 512
FIELD_NAME_BYTES_MAX = 64
FIELD_BYTES_MAX = 256
FIELD_COUNT_MAX = 16
METADATA_BYTES_MAX = 16 * 1024

_CODES: dict[type[ArrayliftError], grpc.StatusCode] = {
    ArrayliftError: grpc.StatusCode.INTERNAL,
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.WrongState: grpc.StatusCode.FAILED_PRECONDITION,
    errors.LeaseLost: grpc.StatusCode.ABORTED,
    errors.Conflict: grpc.StatusCode.ABORTED,
    errors.TrackerMismatch: grpc.StatusCode.ABORTED,
    errors.OutOfSpace: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.PeerUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Cancelled: grpc.StatusCode.CANCELLED,
    errors.NotPermitted: grpc.StatusCode.PERMISSION_DENIED,
    errors.Corruption: grpc.StatusCode.DATA_LOSS,
    errors.StoreFailed: grpc.StatusCode.INTERNAL,
}
_CLASSES = {error_class.reason: error_class for error_class in _CODES}
assert len(_CLASSES) == len(_CODES), "two error classes share a reason"

AWAY_STEP = "check that the daemon runs and listens there, then retry"

# Calls that gRPC failed by itself: class and what to do.
_WITHOUT_DETAIL: dict[grpc.StatusCode, tuple[type[ArrayliftError], str]] = {
    grpc.StatusCode.UNAVAILABLE: (errors.PeerUnavailable, AWAY_STEP),
    grpc.StatusCode.DEADLINE_EXCEEDED: (errors.DeadlineExceeded, "look at what it did, then retry"),
    grpc.StatusCode.CANCELLED: (errors.Cancelled, ""),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (errors.Overloaded, "wait, then repeat"),
    grpc.StatusCode.INVALID_ARGUMENT: (errors.InvalidRequest, ""),
    grpc.StatusCode.NOT_FOUND: (errors.NotFound, ""),
    grpc.StatusCode.UNIMPLEMENTED: (
        errors.WrongState,
        "check that the address is of the right kind of daemon, of the same version",
    ),
    grpc.StatusCode.UNAUTHENTICATED: (errors.NotPermitted, "check both sides' certificates"),
    grpc.StatusCode.PERMISSION_DENIED: (errors.NotPermitted, "check both sides' certificates"),
}
_UNKNOWN = (ArrayliftError, "look into that daemon's log")

_TLS_STEP = (
    "check that both certificates are of the same CA, not expired, and that the daemon's names this "
    "address (`arraylift pki show`)"
)
_TLS_MARKS = ("handshake", "SSL_ERROR", "CERTIFICATE", "Peer name", "verify")
_OTHER_MARK = "Hostname Verification"
_OTHER_STEP = (
    "check the address, and the daemon's certificate (`arraylift pki show`): it must be of that role and "
    "name, or name this host; one that an older release issued must be issued again"
)
# TLS 1.3 tells a client of its refused certificate only by hanging up.
_HUNG_UP_MARKS = ("Socket closed", "Connection reset", "Broken pipe")
_HUNG_UP_STEP = "check that the daemon runs there, and that it trusts our certificate (same CA, not expired)"
_CONNECTING = re.compile(
    r"failed to connect to all addresses; last error: \w+: ipv[46]:\S+: "
    r"(?:Failed to connect to remote host: )?"
)
"""What gRPC says before it comes to the point; the address stands in the peer's name already."""
_OVERSIZE_MARK = "larger than max"


def code_of(error: ArrayliftError) -> grpc.StatusCode:
    """Return the code of an error's class, or of the nearest class above it that has one."""
    return next(_CODES[parent] for parent in type(error).__mro__ if parent in _CODES)


def class_of(reason: str) -> type[ArrayliftError] | None:
    """Return the class of a reason; None if a newer peer invented it."""
    return _CLASSES.get(reason)


def abort_with(context: grpc.ServicerContext, error: ArrayliftError) -> Never:
    """End the call with this error. Only on the thread that handles the call."""
    detail = common_pb2.ErrorDetail(
        reason=error.reason,
        subject=_cut(error.subject, TEXT_BYTES_MAX),
        next_step=_cut(error.next_step, TEXT_BYTES_MAX),
        fields={
            _cut(name, FIELD_NAME_BYTES_MAX): _cut(value, FIELD_BYTES_MAX)
            for name, value in list(error.fields.items())[:FIELD_COUNT_MAX]
        },
    )
    context.set_trailing_metadata(((DETAIL_KEY, detail.SerializeToString()),))
    context.abort(code_of(error), _cut(error.message, MESSAGE_BYTES_MAX))


def from_rpc_error(rpc_error: grpc.RpcError, peer: str) -> ArrayliftError:
    """Return our error for a failed call to ``peer``, e.g. ``"target 127.0.0.1:7404"`` (E1)."""
    call = as_call(rpc_error)
    if call is None:
        return errors.PeerUnavailable(f"the call to {peer} was cut: {rpc_error}", subject=peer)
    code, text = call.code(), call.details() or ""
    for key, value in call.trailing_metadata() or ():
        if key == DETAIL_KEY and isinstance(value, bytes):
            detail = _parsed(value)
            if detail is not None:
                fallback = _WITHOUT_DETAIL.get(code, _UNKNOWN)[0]
                error_class = class_of(detail.reason) or fallback
                return _rebuilt(error_class, text, detail)
    return _from_transport(code, text, peer)


def as_call(rpc_error: grpc.RpcError) -> grpc.Call | None:
    """Return the failed call that a client's error is; None for what gRPC raises in a handler whose
    request stream was cut, or from a channel that was closed under the call."""
    error: object = rpc_error  # the stubs deny that one thing can be both
    return error if isinstance(error, grpc.Call) else None


def walk_reasons() -> Iterator[tuple[str, type[ArrayliftError], grpc.StatusCode]]:
    """Yield every row of the table, for tests and documentation."""
    for error_class, code in _CODES.items():
        yield error_class.reason, error_class, code


def _rebuilt(error_class: type[ArrayliftError], text: str, detail: common_pb2.ErrorDetail) -> ArrayliftError:
    error = error_class(text, subject=detail.subject, next_step=detail.next_step)
    # Not by keyword: a peer's field may be called "subject".
    error.fields = dict(detail.fields)
    return error


def _from_transport(code: grpc.StatusCode, text: str, peer: str) -> ArrayliftError:
    error_class, next_step = _WITHOUT_DETAIL.get(code, _UNKNOWN)
    what = f"{peer} failed"
    if error_class is errors.PeerUnavailable:
        what = f"{peer} does not answer"
        if _OTHER_MARK in text:
            return errors.PeerUnavailable(
                f"whoever answers is not {peer}: its certificate is another's",
                subject=peer,
                next_step=_OTHER_STEP,
            )
        if any(mark in text for mark in _TLS_MARKS):
            what, next_step = f"no trusted connection with {peer}", _TLS_STEP
        elif "failed to connect" in text and any(mark in text for mark in _HUNG_UP_MARKS):
            what, next_step = f"{peer} hung up on us", _HUNG_UP_STEP
    elif code is grpc.StatusCode.RESOURCE_EXHAUSTED and _OVERSIZE_MARK in text:
        # Repeating it would never help, and only gRPC's text tells it from a busy daemon.
        error_class, next_step = errors.InvalidRequest, "send less in one message"
    return error_class(f"{what}: {_CONNECTING.sub('', text) or code.name}", subject=peer, next_step=next_step)


def _parsed(value: bytes) -> common_pb2.ErrorDetail | None:
    try:
        return common_pb2.ErrorDetail.FromString(value)
    except DecodeError:
        return None


def _cut(text: str, bytes_max: int) -> str:
    """Return what fits, as valid UTF-8 (lone surrogates become escapes)."""
    encoded = text.encode("utf-8", "backslashreplace")
    return encoded[:bytes_max].decode("utf-8", "ignore")
