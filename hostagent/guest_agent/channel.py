"""How commands reach the agent of one guest: the contract that each VMM's channel keeps.

Contract (tests/contract/test_agent_channel_contract.py):
  A1 ``execute`` returns or raises within ``timeout_seconds``, whatever the agent does; an answer is at most
     ANSWER_BYTES_MAX, and is the answer to this very command, never a late one to another.
  A2 ``thaw`` waits for no other command, ``execute`` of a freeze least of all; what it has asked for
     is on its way even if it raises: an agent that comes back to life thaws.
  A3 after a failure of any kind the next command finds a channel in step again.
Callers: any thread. ``execute`` is one at a time; others wait for it, within their own time-out.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from arraylift.errors import WrongState

ANSWER_BYTES_MAX = 1 << 20
"""Longest answer that is read; the largest honest one is a piece of a file."""

Answer = dict[str, object] | list[object] | str | int | float | bool | None
"""What JSON can say."""


class AgentRefused(WrongState):
    """The agent answered with an error: the command had no effect, or a part of it; the channel is fine.

    Its text is the guest's: bounded, printable, and no more than a claim.
    """


class AgentChannel(Protocol):
    """The agent of one running guest."""

    def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, timeout_seconds: float
    ) -> Answer:
        """Run one command and return what it ``return``\\s (A1).

        Raises AgentRefused, DeadlineExceeded (it does not answer), PeerUnavailable (no guest, a broken
        channel, rubbish).
        """
        ...

    def thaw(self, *, timeout_seconds: float) -> int:
        """Thaw (A2) and return how many file systems that set free. Raises as ``execute``."""
        ...

    def guard(self) -> GuardTarget:
        """How a process outside this one thaws the guest once this one is dead. Raises PeerUnavailable."""
        ...


@dataclass(frozen=True, slots=True)
class GuardTarget:
    """What a guard is started with (``guard.py``): ``("socket", FD, PATH)``, a connection that it shares
    with us, or ``("command", PROGRAM, ARGUMENT...)``, which thaws and then exits with 0.

    ``descriptors`` are this object's own, inherited by the guard; ``close`` when it has them.
    """

    arguments: tuple[str, ...]
    descriptors: tuple[int, ...] = ()

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)
