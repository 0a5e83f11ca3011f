"""Processes: known by number and start, under one lock each, gone when they are ended."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from arraylift.errors import WrongState
from hostagent.qemu.processes import Processes, holder_of, identify, take_lock
from tests.e2e.daemon import wait_until


@pytest.fixture
def lock(tmp_path: Path) -> str:
    path = tmp_path / "lock"
    path.touch()
    return str(path)


def spawn(processes: Processes, lock: str, *command: str):  # type: ignore[no-untyped-def]
    descriptor = take_lock(lock)
    assert descriptor is not None
    try:
        with Path(os.devnull).open("wb") as log:
            return processes.spawn(command or ("sleep", "60"), inherited=[descriptor], log=log.fileno())
    finally:
        os.close(descriptor)


def test_the_lock_is_held_as_long_as_the_process_lives(lock: str) -> None:
    processes = Processes()
    assert processes.find(lock) is None
    started = spawn(processes, lock)
    assert started.alive
    assert take_lock(lock) is None
    assert processes.find(lock) == holder_of(lock) == started
    assert Processes().find(lock) == started, "as after a restart"
    assert processes.kill(started)
    assert not started.alive
    assert processes.find(lock) is None
    another = spawn(processes, lock, "true")
    assert another != started
    assert processes.wait(another, seconds=10)


def test_a_dead_child_is_dead_before_anybody_collects_it(lock: str) -> None:
    processes = Processes()
    started = spawn(processes, lock)
    os.kill(started.pid, signal.SIGKILL)
    wait_until(lambda: not started.alive, "it is dead", seconds=10)
    assert processes.find(lock) is None
    assert identify(started.pid) is None, "a zombie lives no more"
    processes.collect()
    assert not Path(f"/proc/{started.pid}").exists()


def test_another_process_of_the_same_number_is_left_alone() -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        found = identify(other.pid)
        assert found is not None
        before = replace(found, started=found.started - 1)
        assert not before.alive
        assert Processes().kill(before), "that one is gone"
        assert other.poll() is None
        other.kill()


def test_it_leads_a_session_of_its_own_and_its_files_are_bounded(lock: str) -> None:
    processes = Processes()
    started = spawn(processes, lock)
    assert os.getsid(started.pid) == started.pid
    limits = Path(f"/proc/{started.pid}/limits").read_text()
    assert any(
        line.split()[:5] == ["Max", "file", "size", str(64 << 20), str(64 << 20)]
        for line in limits.splitlines()
    )
    inherited = [os.readlink(f"/proc/{started.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{started.pid}/fd")]
    assert sorted(set(inherited)) == sorted({"/dev/null", lock})
    assert processes.kill(started)


def test_what_is_not_there_does_not_start(lock: str) -> None:
    with pytest.raises(WrongState, match="no-such-qemu does not start"):
        spawn(Processes(), lock, "no-such-qemu")
    assert take_lock(lock) is not None


def test_a_name_with_parentheses_fools_nobody(tmp_path: Path) -> None:
    program = tmp_path / "a) S 1 (b"
    program.write_text("#!/bin/sh\nsleep 60\n")
    program.chmod(0o755)
    with subprocess.Popen([str(program)]) as child:
        found = identify(child.pid)
        assert found is not None
        wait_until(lambda: identify(child.pid) == found, "it stays itself")
        child.kill()
