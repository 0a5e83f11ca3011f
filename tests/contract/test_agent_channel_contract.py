"""What every channel to a guest's agent keeps (hostagent/guest_agent/channel.py), whatever the agent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from arraylift.errors import ArrayliftError, DeadlineExceeded, PeerUnavailable
from hostagent.guest_agent import socket_channel
from hostagent.guest_agent.channel import ANSWER_BYTES_MAX, AgentChannel, AgentRefused
from hostagent.guest_agent.socket_channel import SocketChannel
from tests.fakes.guest_agent import FakeAgent

SECONDS = 0.25
SLACK = 0.4


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FakeAgent]:
    fake = FakeAgent(tmp_path / "agent")
    yield fake
    fake.close()


@pytest.fixture
def channel(agent: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> Iterator[AgentChannel]:
    monkeypatch.setattr(socket_channel, "SYNC_SECONDS_MAX", SECONDS)
    made = SocketChannel(agent.path, subject="VM web1")
    yield made
    made.close()


def within(seconds: float, work: Callable[[], object]) -> object:
    """The result or the error of work that must end in time (A1)."""
    began = time.monotonic()
    try:
        return work()
    except ArrayliftError as error:
        return error
    finally:
        assert time.monotonic() - began < seconds + SLACK


def ping(channel: AgentChannel, seconds: float = SECONDS) -> object:
    return within(seconds, lambda: channel.execute("guest-ping", timeout_seconds=seconds))


def info(channel: AgentChannel) -> object:
    return channel.execute("guest-info", timeout_seconds=5)


def test_commands_are_answered_in_turn(channel: AgentChannel, agent: FakeAgent) -> None:
    assert info(channel) == {"version": "7.2.0"}
    assert channel.execute("guest-fsfreeze-status", timeout_seconds=5) == "thawed"
    agent.refused.add("guest-ping")
    with pytest.raises(AgentRefused, match="disabled"):
        channel.execute("guest-ping", timeout_seconds=5)
    assert info(channel) == {"version": "7.2.0"}


Tamper = Callable[[str, bytes], Iterable[bytes]]


def endless(command: str, answer: bytes) -> Iterable[bytes]:
    yield b'{"return": "'
    for _ in range(ANSWER_BYTES_MAX // 65536 + 2):
        yield b"x" * 65536


HOSTILE: dict[str, Tamper] = {
    "silent": lambda command, answer: [],
    "rubbish": lambda command, answer: [bytes(range(256)) * 40],
    "deep": lambda command, answer: [b'{"return": ' + b"[" * 200_000 + b"\n"],
    "huge number": lambda command, answer: [b'{"return": ' + b"9" * 100_000 + b"}\n"],
    "another answer": lambda command, answer: [b'\xff{"return": 1}\n', b'{"return": 2}\n'],
    "half an answer": lambda command, answer: [answer[:-2]],
    "endless": endless,
    "never a line": lambda command, answer: [b"\xff{" * 5000],
    "error without sense": lambda command, answer: [b'{"error": [1]}\n'],
    "only the sync": lambda command, answer: [answer] if "sync" in command else [],
    "the sync, then no JSON": lambda command, answer: [answer if "sync" in command else b"{{{\n"],
    "the sync, then nonsense": lambda command, answer: [answer if "sync" in command else b"[]\n"],
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_hostile_agent_holds_nobody_up_and_is_believed_again_when_it_behaves(
    channel: AgentChannel, agent: FakeAgent, how: str
) -> None:
    honest = agent.tamper
    agent.tamper = HOSTILE[how]
    for _ in range(2):
        found = ping(channel)
        assert isinstance(found, (DeadlineExceeded, PeerUnavailable, AgentRefused))
    agent.tamper = honest
    assert info(channel) == {"version": "7.2.0"}


def test_answers_in_pieces_of_one_byte_are_put_together(channel: AgentChannel, agent: FakeAgent) -> None:
    agent.tamper = lambda command, answer: [answer[at : at + 1] for at in range(len(answer))]
    assert info(channel) == {"version": "7.2.0"}


def test_a_late_answer_is_never_taken_for_another(channel: AgentChannel, agent: FakeAgent) -> None:
    go = threading.Event()
    agent.hooks["guest-fsfreeze-status"] = lambda: go.wait(10)
    info(channel)
    found = within(SECONDS, lambda: channel.execute("guest-fsfreeze-status", timeout_seconds=SECONDS))
    assert isinstance(found, DeadlineExceeded)
    go.set()
    for _ in range(3):
        assert info(channel) == {"version": "7.2.0"}


def test_an_answer_that_nobody_asked_for_is_not_taken_either(channel: AgentChannel, agent: FakeAgent) -> None:
    agent.tamper = lambda command, answer: [answer, b'{"return": "extra"}\n']
    for _ in range(3):
        # Behind a sync it cannot be told from the answer; the channel then falls out of step, once.
        found = within(5, lambda: info(channel))
        assert found in ({"version": "7.2.0"}, "extra")
        agent.tamper = lambda command, answer: [answer]
    assert info(channel) == {"version": "7.2.0"}


def test_a_thaw_overtakes_a_freeze_that_hangs(channel: AgentChannel, agent: FakeAgent) -> None:
    begun, stuck = threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        stuck.wait(10)

    agent.hooks["guest-fsfreeze-freeze"] = hang
    outcome: list[object] = []
    freezing = threading.Thread(
        target=lambda: outcome.append(
            within(30, lambda: channel.execute("guest-fsfreeze-freeze", timeout_seconds=30))
        )
    )
    freezing.start()
    assert begun.wait(5)
    found = within(SECONDS, lambda: channel.thaw(timeout_seconds=SECONDS))
    assert isinstance(found, DeadlineExceeded)
    freezing.join(2)
    assert isinstance(outcome[0], DeadlineExceeded), "the freeze has given its turn up"
    stuck.set()
    assert agent.wait(lambda: "guest-fsfreeze-thaw" in agent.ran)  # A2
    assert not agent.frozen
    assert info(channel) == {"version": "7.2.0"}


def test_a_thaw_says_how_many_it_freed(channel: AgentChannel, agent: FakeAgent) -> None:
    assert channel.thaw(timeout_seconds=5) == 0
    assert channel.execute("guest-fsfreeze-freeze", timeout_seconds=5) == 2
    assert channel.thaw(timeout_seconds=5) == 2


def test_a_deaf_agent_is_asked_for_nothing_that_would_happen_later(
    channel: AgentChannel, agent: FakeAgent
) -> None:
    deaf = threading.Event()
    agent.hooks["guest-sync-delimited"] = lambda: deaf.wait(10)
    for _ in range(3):
        found = within(
            SECONDS,
            lambda: channel.execute("guest-file-open", {"path": "/x", "mode": "w"}, timeout_seconds=SECONDS),
        )
        assert isinstance(found, DeadlineExceeded)
    deaf.set()
    assert info(channel) == {"version": "7.2.0"}
    assert "guest-file-open" not in agent.ran


def test_a_guest_that_is_gone_is_said_to_be_and_found_again(
    channel: AgentChannel, agent: FakeAgent, tmp_path: Path
) -> None:
    info(channel)
    agent.cut()
    found = ping(channel, 5)
    assert found == {} or isinstance(found, (PeerUnavailable, AgentRefused))
    assert info(channel) == {"version": "7.2.0"}
    nobody = SocketChannel(str(tmp_path / "none"), subject="VM web2")
    assert isinstance(ping(nobody), PeerUnavailable)


def test_many_threads_share_one_agent(channel: AgentChannel, agent: FakeAgent) -> None:
    found: list[object] = []

    def work(index: int) -> None:
        path = f"/f{index}"
        for _ in range(5):
            handle = channel.execute("guest-file-open", {"path": path, "mode": "w"}, timeout_seconds=10)
            found.append(agent._handles[handle][0] == path)  # type: ignore[index]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == [True] * 30
