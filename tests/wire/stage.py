"""What the fixtures of this folder hand out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from arraylift import pki
from arraylift.clock import SYSTEM_CLOCK

PEER = "target of the test"
"""How the tests name the server to the client helpers."""

Dial = Callable[[pki.TlsMaterial], grpc.Channel]
Behavior = Callable[[Any, grpc.ServicerContext], Any]


class DaysAgo:
    """A clock that stands ``days`` back."""

    def __init__(self, days: float) -> None:
        self._wall_ns = SYSTEM_CLOCK.wall_ns() - int(days * 86_400 * 10**9)

    def monotonic(self) -> float:
        return 0.0

    def wall_ns(self) -> int:
        return self._wall_ns


@dataclass
class House:
    """A PKI directory with one CA."""

    directory: str

    def identity(self, role: str, name: str = "one") -> pki.TlsMaterial:
        """Issue and load."""
        pki.issue(self.directory, role, name)
        return pki.load(self.directory, role, name)

    def expired_identity(self, role: str) -> pki.TlsMaterial:
        """One that ran out twenty days ago."""
        clock = DaysAgo(30)
        pki.issue(self.directory, role, "late", days=10, clock=clock)
        return pki.load(self.directory, role, "late", clock=clock)


@dataclass
class Script:
    """What the server's methods do, by method name."""

    behaviors: dict[str, Behavior] = field(default_factory=dict)

    def servicer(self, base: type) -> Any:
        """Return a servicer of ``base`` whose methods look up their behavior at each call."""

        def method(name: str) -> Behavior:
            def behave(request: Any, context: grpc.ServicerContext) -> Any:
                return self.behaviors[name](request, context)

            return behave

        servicer = base()
        for name in vars(base):
            if not name.startswith("_"):
                setattr(servicer, name, method(name))
        return servicer


def raiser(error: Exception) -> Behavior:
    """Return a behavior that fails."""

    def behavior(_request: Any, _context: grpc.ServicerContext) -> Any:
        raise error

    return behavior
