"""Freezes through an agent: bounded, thawed whatever dies, and their level known."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from arraylift.errors import DeadlineExceeded, PeerUnavailable
from arraylift.ids import VmId
from arraylift.vm.types import ConsistencyLevel
from hostagent.guest_agent import freezer as module
from hostagent.guest_agent import socket_channel
from hostagent.guest_agent.agent import GuestAgent
from hostagent.guest_agent.channel import AgentRefused, GuardTarget
from hostagent.guest_agent.freezer import HOOK_EVIDENCE, HOOK_REQUEST, AgentFreezer
from hostagent.guest_agent.guard import NOT_NEEDED, THAWED
from hostagent.guest_agent.guard_process import Guard
from hostagent.guest_agent.socket_channel import SocketChannel
from tests.fakes.guest_agent import FakeAgent

VM = VmId("a" * 32)
NAME = "VM web1"


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FakeAgent]:
    fake = FakeAgent(tmp_path / "agent")
    yield fake
    fake.close()


@pytest.fixture
def freezer(agent: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> Iterator[AgentFreezer]:
    monkeypatch.setattr(socket_channel, "SYNC_SECONDS_MAX", 0.3)
    monkeypatch.setattr(module, "THAW_SECONDS", 0.5)
    channel = SocketChannel(agent.path, subject=NAME)
    made = AgentFreezer(lambda vm_id: GuestAgent(channel, NAME), guard_seconds=20)
    yield made
    made.forget(VM)
    channel.close()


def freeze(freezer: AgentFreezer, seconds: float = 5) -> ConsistencyLevel:
    return freezer.freeze(VM, NAME, timeout_seconds=seconds)


def guard_of(freezer: AgentFreezer) -> Guard:
    guard = freezer._freezes[VM].guard
    assert guard is not None
    return guard


def test_a_freeze_reaches_file_systems_and_its_guard_goes_with_the_thaw(
    freezer: AgentFreezer, agent: FakeAgent
) -> None:
    assert freeze(freezer) is ConsistencyLevel.FILESYSTEM
    assert [agent.frozen] == [True]
    guard = guard_of(freezer)
    assert guard._process.poll() is None
    freezer.thaw(VM)
    assert [agent.frozen] == [False]
    assert guard._process.poll() == NOT_NEEDED
    freezer.thaw(VM)
    assert agent.ran.count("guest-fsfreeze-thaw") == 1
    assert freezer.kept_level(VM, ConsistencyLevel.FILESYSTEM) is ConsistencyLevel.FILESYSTEM


@pytest.mark.parametrize(
    ("evidence", "kept"),
    [
        (lambda asked: asked, ConsistencyLevel.APPLICATION),
        (lambda asked: asked + b"\n", ConsistencyLevel.APPLICATION),
        (lambda asked: b"f" * 32, ConsistencyLevel.FILESYSTEM),  # of another freeze
        (lambda asked: b"", ConsistencyLevel.FILESYSTEM),
    ],
)
def test_only_a_hook_that_bears_this_freeze_out_makes_it_application(
    freezer: AgentFreezer,
    agent: FakeAgent,
    evidence: Callable[[bytes], bytes],
    kept: ConsistencyLevel,
) -> None:
    def hook() -> None:
        agent.files[HOOK_EVIDENCE] = evidence(agent.files[HOOK_REQUEST])

    agent.on_freeze = hook
    assert freeze(freezer) is ConsistencyLevel.FILESYSTEM
    freezer.thaw(VM)
    assert freezer.kept_level(VM, ConsistencyLevel.FILESYSTEM) is kept


def test_an_agent_whose_files_are_closed_freezes_all_the_same(
    freezer: AgentFreezer, agent: FakeAgent
) -> None:
    agent.refused = {"guest-file-open"}
    assert freeze(freezer) is ConsistencyLevel.FILESYSTEM
    freezer.thaw(VM)
    assert freezer.kept_level(VM, ConsistencyLevel.FILESYSTEM) is ConsistencyLevel.FILESYSTEM


def test_a_guest_that_somebody_else_thawed_kept_nothing(freezer: AgentFreezer, agent: FakeAgent) -> None:
    reached = freeze(freezer)
    agent.frozen = False
    freezer.thaw(VM)
    assert freezer.kept_level(VM, reached) is ConsistencyLevel.CRASH


def test_a_guest_without_file_systems_reaches_no_more_than_crash(
    freezer: AgentFreezer, agent: FakeAgent
) -> None:
    agent.file_systems = 0
    assert freeze(freezer) is ConsistencyLevel.CRASH
    freezer.thaw(VM)


def test_a_guest_without_an_agent_costs_no_thaw(freezer: AgentFreezer, agent: FakeAgent) -> None:
    agent.tamper = lambda command, answer: []
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        freeze(freezer)
    freezer.thaw(VM)
    assert time.monotonic() - began < 3
    assert "guest-fsfreeze-freeze" not in agent.ran
    assert freezer.kept_level(VM, ConsistencyLevel.CRASH) is ConsistencyLevel.CRASH


def test_a_hook_that_fails_is_a_freeze_that_failed(freezer: AgentFreezer, agent: FakeAgent) -> None:
    agent.refused = {"guest-fsfreeze-freeze"}
    with pytest.raises(AgentRefused):
        freeze(freezer)
    freezer.thaw(VM)
    assert not agent.frozen


def test_nothing_freezes_without_a_guard(
    freezer: AgentFreezer, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(PeerUnavailable, match="no guard"):
        freeze(freezer)
    freezer.thaw(VM)
    assert "guest-fsfreeze-freeze" not in agent.ran


def test_an_agent_that_hangs_in_a_freeze_thaws_when_it_comes_back(
    freezer: AgentFreezer, agent: FakeAgent
) -> None:
    stuck = threading.Event()
    agent.hooks["guest-fsfreeze-freeze"] = lambda: stuck.wait(10)
    with pytest.raises(DeadlineExceeded):
        freeze(freezer, 0.3)
    freezer.thaw(VM)
    guard = guard_of(freezer)
    assert guard._process.poll() is None, "it watches until the thaw is confirmed"
    stuck.set()
    assert agent.wait(lambda: "guest-fsfreeze-thaw" in agent.ran and not agent.frozen)
    assert freezer._freezes[VM].thawed.wait(10)  # F3
    assert guard._process.wait(5) == NOT_NEEDED


def test_a_watchdogs_thaw_in_the_middle_of_a_freeze_wins(freezer: AgentFreezer, agent: FakeAgent) -> None:
    begun, stuck = threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        stuck.wait(10)

    agent.hooks["guest-fsfreeze-freeze"] = hang
    failed: list[Exception] = []

    def run() -> None:
        try:
            freeze(freezer, 10)
        except DeadlineExceeded as error:
            failed.append(error)
        freezer.thaw(VM)

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(5)
    freezer.thaw(VM)
    stuck.set()
    thread.join(10)
    assert failed
    assert freezer._freezes[VM].thawed.wait(10)
    assert not agent.frozen


def test_a_start_thaws_what_a_process_before_it_froze(freezer: AgentFreezer, agent: FakeAgent) -> None:
    agent.frozen = True
    freezer.resume(VM)
    assert agent.wait(lambda: not agent.frozen)
    assert freeze(freezer) is ConsistencyLevel.FILESYSTEM
    freezer.thaw(VM)


def test_a_start_is_not_held_up_by_guests_without_agents(freezer: AgentFreezer, agent: FakeAgent) -> None:
    agent.tamper = lambda command, answer: []
    began = time.monotonic()
    freezer.resume(VM)
    assert time.monotonic() - began < module.RESUME_SECONDS + 2
    freezer.wait_for_thaw(VM, NAME)  # files are not held back by what may never have been frozen


FROZEN_PROCESS = """
import sys, time
from arraylift.ids import VmId
from hostagent.guest_agent.agent import GuestAgent
from hostagent.guest_agent.freezer import AgentFreezer
from hostagent.guest_agent.socket_channel import SocketChannel
channel = SocketChannel(sys.argv[1], subject="VM web1")
freezer = AgentFreezer(lambda vm_id: GuestAgent(channel, "VM web1"), guard_seconds=float(sys.argv[2]))
freezer.freeze(VmId("a" * 32), "VM web1", timeout_seconds=5)
print("frozen", flush=True)
time.sleep(60)
"""


def frozen_process(agent: FakeAgent, guard_seconds: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", FROZEN_PROCESS, agent.path, str(guard_seconds)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "frozen\n"
    assert agent.frozen
    return process


def ended(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(10)
    assert process.stdout is not None
    process.stdout.close()


def test_a_process_killed_under_a_freeze_leaves_a_guard_that_thaws_at_once(agent: FakeAgent) -> None:
    process = frozen_process(agent, 20)
    try:
        time.sleep(0.3)
        assert agent.frozen, "the guard waits while the process lives"
        killed = time.monotonic()
        os.killpg(process.pid, signal.SIGKILL)  # its whole group, as a terminal or a supervisor does
        assert agent.wait(lambda: not agent.frozen, 5)
        assert time.monotonic() - killed < 5
        # The guard has gone: the next process reaches the agent.
        channel = SocketChannel(agent.path, subject=NAME)
        assert channel.execute("guest-info", timeout_seconds=5)
        channel.close()
    finally:
        ended(process)


def test_a_process_that_hangs_under_a_freeze_is_thawed_in_time(agent: FakeAgent) -> None:
    process = frozen_process(agent, 1.0)
    try:
        os.kill(process.pid, signal.SIGSTOP)
        assert agent.wait(lambda: not agent.frozen, 4)
    finally:
        ended(process)


def test_a_guard_outlives_what_ends_services_and_reaches_an_agent_that_comes_back(agent: FakeAgent) -> None:
    stuck = threading.Event()
    channel = SocketChannel(agent.path, subject=NAME)
    channel.execute("guest-info", timeout_seconds=5)
    guard = Guard.started(channel.guard(), seconds=30, subject=NAME)
    agent.frozen = True
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(guard.pid, number)
    agent.hooks["guest-sync-delimited"] = lambda: stuck.wait(10)
    assert guard._process.stdin is not None
    guard._process.stdin.close()  # what our death looks like
    time.sleep(0.5)
    assert guard._process.poll() is None
    stuck.set()
    assert agent.wait(lambda: not agent.frozen, 10)
    assert guard._process.wait(10) == THAWED
    guard._process.stdout.close()  # type: ignore[union-attr]
    channel.close()


def test_a_guard_finds_the_agent_anew_when_the_connection_broke(agent: FakeAgent) -> None:
    channel = SocketChannel(agent.path, subject=NAME)
    channel.execute("guest-info", timeout_seconds=5)
    guard = Guard.started(channel.guard(), seconds=30, subject=NAME)
    agent.frozen = True
    agent.cut()
    guard._process.stdin.close()  # type: ignore[union-attr]
    assert agent.wait(lambda: not agent.frozen, 10)
    assert guard._process.wait(10) == THAWED
    guard._process.stdout.close()  # type: ignore[union-attr]
    channel.close()


def test_a_guard_may_thaw_by_a_command(tmp_path: Path) -> None:
    mark = tmp_path / "thawed"
    failing = f"test -e {mark}.once || {{ touch {mark}.once; exit 1; }}; touch {mark}"
    guard = Guard.started(GuardTarget(("command", "sh", "-c", failing)), seconds=0.2, subject=NAME)
    assert guard._process.wait(10) == THAWED
    assert mark.exists()
    guard.release()
