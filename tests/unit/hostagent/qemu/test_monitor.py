"""The monitor of a QEMU that answers, lies, floods, stalls or is not there: bounded in time and bytes."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arraylift.errors import DeadlineExceeded, PeerUnavailable
from hostagent.qemu.monitor import ANSWER_BYTES_MAX, Monitor, MonitorRefused
from tests.fakes.monitor import FakeMonitor

SECONDS = 1.0
SLACK_SECONDS = 3.0


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeMonitor]:
    monitor = FakeMonitor(str(tmp_path / "m.sock"), lambda command, arguments: {"said": [command, arguments]})
    yield monitor
    monitor.close()


@pytest.fixture
def monitor(tmp_path: Path, fake: FakeMonitor) -> Monitor:
    return Monitor(str(tmp_path / "m.sock"), "VM web1")


def test_a_command_is_a_conversation_of_its_own(monitor: Monitor, fake: FakeMonitor) -> None:
    assert monitor.execute("one", {"a": 1}) == {"said": ["one", {"a": 1}]}
    assert monitor.execute("two") == {"said": ["two", {}]}
    assert fake.heard == ["qmp_capabilities", "one", "qmp_capabilities", "two"]


def test_a_refusal_is_bounded_text(monitor: Monitor, fake: FakeMonitor) -> None:
    fake.answers = lambda _command, _arguments: ValueError("no\x1b[2J" + "x" * 10_000)
    with pytest.raises(MonitorRefused, match="refuses device_del: no") as caught:
        monitor.execute("device_del")
    assert len(str(caught.value)) < 500
    assert "\x1b" not in str(caught.value)
    fake.answers = lambda _command, _arguments: 1
    assert monitor.execute("next") == 1


def _stall(_link: socket.socket, _request: dict[str, Any]) -> bool:
    return True


def _flood_of_events(link: socket.socket, _request: dict[str, Any]) -> bool:
    until = time.monotonic() + SECONDS + SLACK_SECONDS
    event = b'{"event":"STOP","timestamp":{"seconds":1,"microseconds":1}}\n' * 200
    while time.monotonic() < until:
        link.sendall(event)
    return True


def _trickle(link: socket.socket, _request: dict[str, Any]) -> bool:
    for _ in range(int((SECONDS + SLACK_SECONDS) * 20)):
        link.sendall(b" ")
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("misbehave", [_stall, _flood_of_events, _trickle])
def test_what_hangs_ends_in_time(monitor: Monitor, fake: FakeMonitor, misbehave: Any) -> None:
    fake.raw = misbehave
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        monitor.execute("query-status", seconds=SECONDS)
    assert time.monotonic() - began < SECONDS + SLACK_SECONDS
    fake.raw = lambda _link, _request: False
    assert monitor.execute("query-status")["said"][0] == "query-status"


def _endless_line(link: socket.socket, _request: dict[str, Any]) -> bool:
    for _ in range(3 * ANSWER_BYTES_MAX // 65536):
        link.sendall(b'"' + b"x" * 65535)
    return True


def _deep(link: socket.socket, _request: dict[str, Any]) -> bool:
    link.sendall(b"[" * 200_000 + b"\n")
    return True


@pytest.mark.parametrize(
    "misbehave",
    [
        _endless_line,
        _deep,
        lambda link, _request: link.sendall(b"rubbish\n") or True,
        lambda link, _request: link.sendall(b'{"return": 1, "id": "another"}\n') or True,
        lambda link, _request: link.sendall(b"[1]\n") or True,
        lambda link, _request: link.shutdown(socket.SHUT_RDWR) or True,
    ],
)
def test_what_makes_no_sense_is_an_error(monitor: Monitor, fake: FakeMonitor, misbehave: Any) -> None:
    fake.raw = misbehave
    with pytest.raises((PeerUnavailable, DeadlineExceeded)):
        monitor.execute("query-status", seconds=SECONDS)
    fake.raw = lambda _link, _request: False
    assert monitor.execute("query-status")["said"][0] == "query-status"


@pytest.mark.parametrize("greeting", [b"", b"hello\n", b'{"QMP": 1}\n', b"{}\n"])
def test_no_greeting_of_a_monitor_is_no_monitor(monitor: Monitor, fake: FakeMonitor, greeting: bytes) -> None:
    fake.greet = greeting
    with pytest.raises((PeerUnavailable, DeadlineExceeded)):
        monitor.execute("query-status", seconds=SECONDS)


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(PeerUnavailable):
        Monitor(str(tmp_path / "none.sock"), "VM web1").execute("query-status", seconds=SECONDS)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "full.sock"))
    listener.listen(0)
    deaf = Monitor(str(tmp_path / "full.sock"), "VM web1")
    with listener:
        for _ in range(3):  # the backlog fills
            with pytest.raises(DeadlineExceeded):
                deaf.execute("query-status", seconds=0.3)


def test_two_threads_take_turns(monitor: Monitor, fake: FakeMonitor) -> None:
    fake.raw = lambda _link, request: request["execute"] == "slow"

    def ask_slowly() -> None:
        with pytest.raises(DeadlineExceeded):
            monitor.execute("slow", seconds=0.5)

    slow = threading.Thread(target=ask_slowly)
    slow.start()
    while "slow" not in fake.heard:
        time.sleep(0.01)
    assert monitor.execute("quick", seconds=5)["said"][0] == "quick"
    slow.join()
