"""Every failure a caller can act on: one class per decision.

A class carries a stable ``reason`` (it never changes once released), what it
happened to, and what to do next. ``arraylift/rpc/status.py`` is the only place
that knows gRPC codes; the command line maps classes to exit codes.

Assert against our own bugs; raise these for the world's faults.
"""

from __future__ import annotations

from typing import ClassVar


class ArrayliftError(Exception):
    """Base of all errors that cross a module or a wire.

    ``message`` says what failed and on what; ``subject`` names the thing, e.g.
    ``"volume web1"``; ``next_step`` says what the caller can do; ``fields`` are
    typed by the reason and survive the wire as text.
    """

    reason: ClassVar[str] = "internal"

    def __init__(self, message: str, *, subject: str = "", next_step: str = "", **fields: object) -> None:
        super().__init__(message)
        self.message = message
        self.subject = subject
        self.next_step = next_step
        self.fields: dict[str, str] = {name: str(value) for name, value in fields.items()}

    def __str__(self) -> str:
        return f"{self.message}; {self.next_step}" if self.next_step else self.message

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross process borders whole: worker processes report them by pickle."""
        return rebuild, (type(self), self.message, self.subject, self.next_step, self.fields)


def rebuild(
    error_class: type[ArrayliftError], message: str, subject: str, next_step: str, fields: dict[str, str]
) -> ArrayliftError:
    """Make an error again from what another process or daemon said of it."""
    error = error_class(message, subject=subject, next_step=next_step)
    error.fields = dict(fields)
    return error


class InvalidRequest(ArrayliftError):
    """The request can never succeed as it stands: fix it."""

    reason = "invalid_request"


class NotFound(ArrayliftError):
    """The named thing does not exist: decide."""

    reason = "not_found"


class AlreadyExists(ArrayliftError):
    """The name is taken by something else: decide."""

    reason = "already_exists"


class WrongState(ArrayliftError):
    """The thing exists but is not in the state that this needs: change that first."""

    reason = "wrong_state"


class LeaseLost(ArrayliftError):
    """A newer attempt took over, or the lease lapsed: restart the transfer."""

    reason = "lease_lost"


class Conflict(ArrayliftError):
    """Something else changed what this relied on: restart the transfer."""

    reason = "conflict"


class TrackerMismatch(Conflict):
    """A span that the tracker calls unchanged differs from the base: read everything."""

    reason = "tracker_mismatch"


class OutOfSpace(ArrayliftError):
    """The disk or a quota is full: free space, then repeat."""

    reason = "out_of_space"


class Overloaded(ArrayliftError):
    """A stated limit is reached: back off, then repeat."""

    reason = "overloaded"


class PeerUnavailable(ArrayliftError):
    """The other daemon does not answer: retry."""

    reason = "peer_unavailable"


class DeadlineExceeded(ArrayliftError):
    """The call took longer than its deadline; its effect is unknown: look, then retry."""

    reason = "deadline_exceeded"


class Cancelled(ArrayliftError):
    """The caller or an operator stopped it."""

    reason = "cancelled"


class NotPermitted(ArrayliftError):
    """This identity may not do that: ask whoever grants it."""

    reason = "not_permitted"


class Corruption(ArrayliftError):
    """Stored or received bytes are not what they should be: stop, scrub."""

    reason = "corruption"


class StoreFailed(ArrayliftError):
    """A write or fsync failed; the store refuses writes until it is restarted (law 3)."""

    reason = "store_failed"
