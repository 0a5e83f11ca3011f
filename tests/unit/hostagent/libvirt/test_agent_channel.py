"""The agent's channel through libvirt: answers are checked, a thaw waits for its turn aside."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable

import pytest

from arraylift.errors import ArrayliftError, DeadlineExceeded, InvalidRequest, PeerUnavailable
from hostagent.guest_agent.agent import PIECE_BYTES
from hostagent.guest_agent.channel import ANSWER_BYTES_MAX, AgentRefused
from hostagent.libvirt.agent_channel import LibvirtAgentChannel
from tests.fakes.libvirt import FakeHypervisor
from tests.unit.hostagent.libvirt.material import UUID


class Told(FakeHypervisor):
    """Whose agent answers as a test says."""

    def __init__(self, answer: Callable[[str], str]) -> None:
        super().__init__()
        self.answer, self.asked = answer, [""]

    def agent(self, uuid: str, command: str, *, seconds: float) -> str:
        self.asked.append(command)
        return self.answer(command)


def channel(answer: Callable[[str], str]) -> tuple[LibvirtAgentChannel, Told]:
    told = Told(answer)
    return LibvirtAgentChannel(told, "qemu:///session", UUID), told


def test_an_answer_is_what_it_returns() -> None:
    made, told = channel(lambda command: '{"return": {"a": [1, null]}}')
    assert made.execute("guest-info", {"x": 'quote " and \\'}, timeout_seconds=5) == {"a": [1, None]}
    assert json.loads(told.asked[-1]) == {"execute": "guest-info", "arguments": {"x": 'quote " and \\'}}


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("", PeerUnavailable),
        ("rubbish", PeerUnavailable),
        ("[" * 200_000, PeerUnavailable),
        ('{"return": ' + "9" * 100_000 + "}", PeerUnavailable),
        ('{"return": "' + "x" * ANSWER_BYTES_MAX + '"}', PeerUnavailable),
        ('{"error": {"desc": "no"}}', AgentRefused),
        ("[]", AgentRefused),
    ],
)
def test_what_is_no_answer_is_an_error(answer: str, error: type[ArrayliftError]) -> None:
    made, _ = channel(lambda command: answer)
    with pytest.raises(error):
        made.execute("guest-info", timeout_seconds=5)


def test_a_command_that_libvirt_would_hang_in_is_not_given_to_it() -> None:
    made, told = channel(lambda command: '{"return": {"count": 1}}')
    piece = base64.b64encode(bytes(PIECE_BYTES)).decode()
    made.execute("guest-file-write", {"handle": 1, "buf-b64": piece}, timeout_seconds=5)
    asked = len(told.asked)
    with pytest.raises(InvalidRequest):
        made.execute("guest-file-write", {"handle": 1, "buf-b64": 2 * piece}, timeout_seconds=5)
    assert len(told.asked) == asked


def test_a_thaw_goes_on_when_nobody_waits_for_it_any_more() -> None:
    go, thawed = threading.Event(), threading.Event()

    def answer(command: str) -> str:
        go.wait(10)
        thawed.set()
        return '{"return": 3}'

    made, _ = channel(answer)
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        made.thaw(timeout_seconds=0.1)
    assert time.monotonic() - began < 5
    go.set()
    assert thawed.wait(10)
    assert made.thaw(timeout_seconds=10) == 3


def test_a_thaw_that_says_no_number_has_freed_nothing() -> None:
    made, _ = channel(lambda command: '{"return": "many"}')
    assert made.thaw(timeout_seconds=10) == 0
