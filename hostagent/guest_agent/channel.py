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

from collections.abc import Mapping
from typing import Protocol

ANSWER_BYTES_MAX = 4 << 20
"""Longest answer that is read; the largest honest one is a piece of a file."""

Answer = dict[str, object] | list[object] | str | int | float | bool | None
"""What JSON can say."""


class AgentRefused(Exception):  # noqa: N818 - named by what happened
    """The agent answered with an error: the command had no effect, or a part of it, and the channel is fine.

    ``description`` is the guest's text: bounded, without control characters, and no more than a claim.
    """

    def __init__(self, command: str, error_class: str, description: str) -> None:
        super().__init__(f"{command}: {description}")
        self.command, self.error_class, self.description = command, error_class, description


class AgentChannel(Protocol):
    """The agent of one running guest."""

    def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, timeout_seconds: float
    ) -> Answer:
        """Run one command and return its ``return`` (A1).

        Raises AgentRefused, DeadlineExceeded, PeerUnavailable (no guest, no agent, a channel that broke,
        rubbish).
        """
        ...

    def thaw(self, *, timeout_seconds: float) -> int:
        """Thaw (A2) and return how many file systems that set free. Raises as ``execute``."""
        ...

    def guard(self) -> GuardTarget:
        """How a process outside this one thaws the guest when this one is dead. Raises PeerUnavailable."""
        ...


class GuardTarget(Protocol):
    """What a guard (``guard_process``) is started with. The file descriptor is the guard's own: closed by
    whoever asked once the guard has it."""

    @property
    def arguments(self) -> tuple[str, ...]:
        """``("socket", FD)``, or ``("command", PROGRAM, ARGUMENT...)``, which is run until it ends with 0."""
        ...

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Inherited by the guard."""
        ...

    def close(self) -> None: ...
