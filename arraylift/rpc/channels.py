"""The channels of a daemon to those that it calls: one each, made at first use.

Invariants:
  C1 at most ``channels_max`` are kept; for a new one that which was not asked for longest is let go:
     its calls go on to their end, and it with them.
  C2 after ``close`` every call ends, and there is no new one: PeerUnavailable.
  C3 a generated stub is made under the lock, of a channel that is open: gRPC (1.85) makes one of a
     closed channel by reading memory that is gone, which ends the process.
Callers: edges, any thread.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc

from arraylift.errors import PeerUnavailable
from arraylift.pki import TlsMaterial
from arraylift.rpc.channel import connect

Stub = TypeVar("Stub")


@dataclass(slots=True)
class _Kept:
    channel: grpc.Channel
    stubs: dict[Callable[[grpc.Channel], Any], Any] = field(default_factory=dict)


class Channels:
    """Channels by whom they demand and where."""

    def __init__(self, tls: TlsMaterial, *, channels_max: int) -> None:
        self._tls = tls
        self._max = channels_max
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str, str], _Kept] = OrderedDict()
        self._closed = False

    def stub(self, kind: Callable[[grpc.Channel], Stub], address: str, role: str, name: str = "") -> Stub:
        """Return a service's stub, of the channel that ``connect`` makes (C3).

        Raises InvalidRequest (address), PeerUnavailable (C2).
        """
        with self._lock:
            kept = self._to(address, role, name)
            if kind not in kept.stubs:
                kept.stubs[kind] = kind(kept.channel)
            found: Stub = kept.stubs[kind]
            return found

    def channel(self, address: str, role: str, name: str = "") -> grpc.Channel:
        """Return the channel itself, for calls without a generated stub (C3). Raises as ``stub``."""
        with self._lock:
            return self._to(address, role, name).channel

    def _to(self, address: str, role: str, name: str) -> _Kept:
        if self._closed:
            raise PeerUnavailable("this daemon is stopping", next_step="start it again")
        called = (address, role, name)
        kept = self._kept.pop(called, None) or _Kept(connect(address, self._tls, role, name))
        self._kept[called] = kept
        if len(self._kept) > self._max:
            self._kept.popitem(last=False)  # C1
        return kept

    def close(self) -> None:
        """End every call (C2). Twice is fine."""
        with self._lock:
            self._closed = True
            for kept in self._kept.values():
                kept.channel.close()
            self._kept.clear()
