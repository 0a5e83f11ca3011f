"""Bytes of an agent to answers: the machine of one connection. No I/O.

A command is a line of JSON, and so is its answer. Which answer is whose is known only by order, so after any
doubt the two sides are brought in step: ``guest-sync-delimited`` with a number drawn anew is answered by
0xFF, which is in no JSON, and that number; whatever came before is forgotten.
Invariants:
  L1 an answer is taken only in step, after the sync that this machine sent last.
  L2 what is kept has at most ANSWER_BYTES_MAX bytes, and before a sync's answer SYNC_BYTES_MAX.
Callers: socket_channel, the thread whose turn it is.
Source: https://qemu.readthedocs.io/en/latest/interop/qemu-ga-ref.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Never

from arraylift.errors import PeerUnavailable
from hostagent.guest_agent.channel import ANSWER_BYTES_MAX, AgentRefused, Answer

SYNC_BYTES_MAX = 256
"""Longest answer to a sync."""

SYNC_ID_MAX = 1 << 31
DESCRIPTION_CHARS_MAX = 300
_DELIMITER = b"\xff"


def request(command: str, arguments: Mapping[str, object] | None = None) -> bytes:
    """One command as it travels."""
    value: dict[str, object] = {"execute": command}
    if arguments:
        value["arguments"] = dict(arguments)
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


class AgentMachine:
    """What has come, and what it means."""

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._buffer = bytearray()
        self._scanned = 0
        self._sync_id: int | None = None
        self._delimited = False
        self.in_step = False

    @property
    def idle(self) -> bool:
        """In step, and nothing has come that nobody asked for."""
        return self.in_step and not self._buffer

    def sync(self, sync_id: int) -> bytes:
        """What brings both sides in step; its own 0xFF ends what the agent may have half read."""
        self.lose_step()
        self._sync_id = sync_id
        return _DELIMITER + request("guest-sync-delimited", {"id": sync_id})

    def lose_step(self) -> None:
        """Believe nothing more until the next sync."""
        self.in_step, self._delimited, self._sync_id = False, False, None
        self._drop(len(self._buffer))

    def receive(self, data: bytes) -> None:
        """Take bytes. Raises PeerUnavailable (an answer without end)."""
        self._buffer += data
        while not self.in_step and self._seek():
            pass
        if len(self._buffer) > ANSWER_BYTES_MAX and self._line_end() < 0:
            self._rubbish("an answer without end")

    def answer(self, command: str) -> tuple[Answer] | None:
        """The next answer, in a tuple, or None if it is not whole. Raises AgentRefused, PeerUnavailable."""
        assert self.in_step, "L1"
        end = self._line_end()
        if end < 0:
            return None
        if end > ANSWER_BYTES_MAX:
            self._rubbish("an answer without end")
        line = bytes(self._buffer[:end])
        self._drop(end + 1)
        value = _parsed(line)
        if isinstance(value, dict) and "error" in value:
            raise _refusal(command, value["error"], self._subject)
        if not isinstance(value, dict) or "return" not in value:
            self._rubbish(f"to {command} no answer")
        return (value["return"],)

    def _seek(self) -> bool:
        """Look for the sync's answer; True if there may be more to see."""
        if not self._delimited:
            at = self._buffer.find(_DELIMITER)
            self._drop(len(self._buffer) if at < 0 else at + 1)
            self._delimited = at >= 0
            return self._delimited
        again, end = self._buffer.find(_DELIMITER), self._line_end()
        if again >= 0 and not 0 <= end < again:
            self._drop(again + 1)  # a line that was broken off
            return True
        if end < 0:
            if len(self._buffer) > SYNC_BYTES_MAX:  # L2
                self._delimited = False
                return True
            return False
        line = bytes(self._buffer[:end])
        self._drop(end + 1)
        value = _parsed(line) if len(line) <= SYNC_BYTES_MAX else None
        found = value.get("return") if isinstance(value, dict) else None
        self._delimited = False
        if type(found) is int and found == self._sync_id:
            self.in_step = True
        return True

    def _line_end(self) -> int:
        end = self._buffer.find(b"\n", self._scanned)
        self._scanned = len(self._buffer) if end < 0 else end
        return end

    def _drop(self, count: int) -> None:
        del self._buffer[:count]
        self._scanned = 0

    def _rubbish(self, what: str) -> Never:
        self.lose_step()
        raise PeerUnavailable(
            f"the agent of {self._subject} gave {what}",
            subject=self._subject,
            next_step="restart qemu-guest-agent in the guest",
        )


def _parsed(line: bytes) -> object:
    """None for what is no JSON that an agent speaks."""
    try:
        return json.loads(line, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None


def _no_number(text: str) -> Never:
    raise ValueError(text)


def _refusal(command: str, error: object, subject: str) -> AgentRefused:
    told = error if isinstance(error, dict) else {}
    return AgentRefused(
        f"the agent of {subject} refused {command}: {printable(told.get('desc'))}",
        subject=subject,
        next_step="look into the guest agent's log and its list of blocked commands",
        agent_error=printable(told.get("class")),
    )


def printable(text: object) -> str:
    """A guest's text as it may stand in a log or an error."""
    if not isinstance(text, str):
        return "?"
    return "".join(char if char.isprintable() else "?" for char in text[:DESCRIPTION_CHARS_MAX])
