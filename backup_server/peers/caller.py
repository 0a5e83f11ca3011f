"""Edge: one daemon at one address, called with deadlines.

Invariants:
  P1 every call has a deadline; a transfer may last long, but not in silence: ``Stream`` cancels one that
     says nothing for ``silence_seconds``.
  P2 after the channels were closed every call ends and new ones raise PeerUnavailable.
Callers: the other modules of this package, any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import grpc

from arraylift.errors import Cancelled, DeadlineExceeded
from arraylift.rpc import channel as rpc
from arraylift.rpc.channels import Channels
from backup_server.model import PeerKind, RegisteredPeer
from backup_server.registry import SETTINGS_CENTER


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds until a call is given up."""

    call_seconds: float = rpc.CALL_SECONDS
    long_seconds: float = 120.0
    """A freeze, a snapshot group on every array, a delete."""
    transfer_seconds: float = rpc.TRANSFER_SECONDS
    silence_seconds: float = 300.0
    """More than an array's own patience with a target, and a target's with an array."""
    health_seconds: float = 5.0


class Caller:
    """One daemon at one address."""

    def __init__(self, channels: Channels, deadlines: Deadlines, peer: RegisteredPeer) -> None:
        self._channels = channels
        self._peer = peer
        self._what = f"{peer} ({peer.address})"
        self._deadlines = deadlines

    def stub(self, kind: Callable[[grpc.Channel], Any]) -> Any:
        """Raises InvalidRequest (address), PeerUnavailable (P2)."""
        peer = self._peer
        # The center of the settings is known by its address only.
        unnamed = (peer.kind, peer.name) == (PeerKind.VCENTER, SETTINGS_CENTER)
        return self._channels.stub(kind, peer.address, peer.kind.role, "" if unnamed else peer.name)

    def call(
        self, stub: Callable[[grpc.Channel], Any], method: str, request: object, *, seconds: float = 0.0
    ) -> Any:
        """Call once (P1)."""
        bound = getattr(self.stub(stub), method)
        timeout = seconds or self._deadlines.call_seconds
        return rpc.call(bound, request, peer=self._what, timeout_seconds=timeout)

    def stream(self, stub: Callable[[grpc.Channel], Any], method: str, request: object) -> Stream:
        """Call for many answers (P1)."""
        bound = getattr(self.stub(stub), method)
        seconds = self._deadlines.transfer_seconds
        responses = rpc.stream(bound, request, peer=self._what, timeout_seconds=seconds)
        return Stream(responses, self._what, self._deadlines.silence_seconds)


class Stream:
    """Responses that may not stay away for long (P1)."""

    def __init__(self, responses: rpc.ResponseStream[Any], what: str, silence_seconds: float) -> None:
        self._responses = responses
        self._what = what
        self._seconds = silence_seconds
        self._silent = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        alarm = threading.Timer(self._seconds, self._give_up)
        alarm.daemon = True
        alarm.start()
        try:
            return next(self._responses)
        except Cancelled:
            if self._silent:
                raise DeadlineExceeded(
                    f"{self._what} said nothing for {self._seconds:.0f} s",
                    subject=self._what,
                    next_step="look at its log; the transfer can be resumed",
                ) from None
            raise
        finally:
            alarm.cancel()

    def _give_up(self) -> None:
        self._silent = True
        self.cancel()

    def cancel(self) -> None:
        self._responses.cancel()
