"""The connection: every call ends in its time, hung ones are few, errors say what to do."""

from __future__ import annotations

import importlib.util
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from arraylift.errors import DeadlineExceeded, NotFound, Overloaded, PeerUnavailable, WrongState
from hostagent.guest_agent.channel import AgentRefused
from hostagent.libvirt import connection as module
from hostagent.libvirt.connection import CALLS_MAX, LibvirtConnection
from tests.programs import lacking
from tests.unit.hostagent.libvirt.material import UUID


class LibvirtError(Exception):
    def __init__(self, code: int, text: str = "said") -> None:
        super().__init__(text)
        self.code = code

    def get_error_code(self) -> int:
        return self.code


class Library:
    """As much of the libvirt module as the connection names; any constant is its own number."""

    libvirtError = LibvirtError  # noqa: N815 - libvirt's own name

    def __init__(self) -> None:
        self.alive, self.opened = True, 0
        self.look: Any = lambda: None
        self._numbers: dict[str, int] = {}

    def __getattr__(self, name: str) -> int:
        if not name.startswith("VIR_"):
            raise AttributeError(name)
        return self._numbers.setdefault(name, 1 << len(self._numbers))

    def open(self, uri: str) -> Any:
        self.opened += 1
        self.alive = True
        return SimpleNamespace(
            isAlive=lambda: self.alive,
            setKeepAlive=lambda *_: None,
            domainEventRegisterAny=lambda *_: None,
            close=lambda: None,
            lookupByUUIDString=lambda uuid: self.look(),
        )


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    made = Library()
    monkeypatch.setattr(module, "load", lambda: made)
    return made


def test_a_call_that_hangs_ends_and_too_many_are_refused(library: Library) -> None:
    go = threading.Event()
    library.look = lambda: go.wait(30)
    connection = LibvirtConnection("qemu:///x", call_seconds=0.05)
    began = time.monotonic()
    for _ in range(CALLS_MAX):
        with pytest.raises(DeadlineExceeded):
            connection.is_active(UUID)
    with pytest.raises(Overloaded):
        connection.is_active(UUID)
    assert time.monotonic() - began < 20
    go.set()
    library.look = lambda: SimpleNamespace(isActive=lambda: 1)
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            assert connection.is_active(UUID)
            return
        except Overloaded:
            time.sleep(0.01)
    pytest.fail("places of calls that ended are free again")


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("VIR_ERR_NO_DOMAIN", NotFound),
        ("VIR_ERR_OPERATION_TIMEOUT", DeadlineExceeded),
        ("VIR_ERR_AGENT_UNRESPONSIVE", PeerUnavailable),
        ("VIR_ERR_INTERNAL_ERROR", WrongState),
    ],
)
def test_errors_say_what_to_do(library: Library, name: str, error: type[Exception]) -> None:
    connection = LibvirtConnection("qemu:///x")

    def fail() -> None:
        raise LibvirtError(getattr(library, name), "line\none \x1b[31m" + "x" * 9999)

    library.look = fail
    with pytest.raises(error) as caught:
        connection.block_bytes(UUID, "vda")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_an_agents_refusal_is_told_from_its_silence(library: Library) -> None:
    if importlib.util.find_spec("libvirt_qemu") is None:
        lacking("needs libvirt-python")
    connection = LibvirtConnection("qemu:///x")

    def fail() -> None:
        raise LibvirtError(library.VIR_ERR_INTERNAL_ERROR, "unable to execute QEMU agent command 'x': no")

    library.look = fail
    with pytest.raises(AgentRefused):
        connection.agent(UUID, "{}", seconds=1)


def test_a_backup_that_begins_too_late_is_ended(library: Library) -> None:
    """Whoever gave it up would never end it: libvirt waits up to 30 s for a guest that is busy."""
    go, ended = threading.Event(), threading.Event()
    library.look = lambda: SimpleNamespace(
        backupBegin=lambda *_: go.wait(30), abortJob=ended.set, isActive=lambda: 1
    )
    connection = LibvirtConnection("qemu:///x")
    with pytest.raises(DeadlineExceeded):
        connection.begin_backup(UUID, "<x/>", "", seconds=0.2)
    assert not ended.is_set()
    go.set()
    assert ended.wait(10)
    ended.clear()
    connection.begin_backup(UUID, "<x/>", "", seconds=10)
    assert not ended.is_set()


def test_a_dead_connection_is_made_anew(library: Library) -> None:
    connection = LibvirtConnection("qemu:///x")
    library.look = lambda: SimpleNamespace(isActive=lambda: 1)
    assert connection.is_active(UUID)
    assert connection.is_active(UUID)
    assert library.opened == 1

    def die() -> None:
        library.alive = False
        raise LibvirtError(1, "client socket is closed")

    library.look = die
    with pytest.raises(PeerUnavailable):
        connection.is_active(UUID)
    library.look = lambda: SimpleNamespace(isActive=lambda: 1)
    assert connection.is_active(UUID)
    assert library.opened == 2
