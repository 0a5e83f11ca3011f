"""Processes are known again by more than their pid, and end within a stated time."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from arraylift.cli import processes
from arraylift.cli.processes import ProcessRecord
from arraylift.config import child_environment

Spawn = Callable[[str], ProcessRecord]

READY = "import signal, sys\n{}\nsys.stdout.write('ready')\nsys.stdout.flush()\nsignal.pause()"


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Spawn]:
    """Start Python code that says when it is ready; nothing of it outlives the test."""
    started: list[ProcessRecord] = []

    def spawned(code: str) -> ProcessRecord:
        reader, writer = os.pipe()
        record = processes.spawn(["-c", READY.format(code)], child_environment(), writer)
        started.append(record)
        os.close(writer)
        with os.fdopen(reader) as ready:
            assert ready.read(5) == "ready"
        return record

    yield spawned
    for record in started:
        if record.is_alive():
            os.kill(record.pid, signal.SIGKILL)
            os.waitpid(record.pid, 0)


def test_a_process_is_stopped_and_reaped(spawn: Spawn) -> None:
    record = spawn("")
    assert record.is_alive()
    assert os.getsid(record.pid) == record.pid, "a session of its own: our Ctrl-C is not its"
    assert processes.stop(record) == "stopped"
    assert not record.is_alive()
    with pytest.raises(ChildProcessError):
        os.waitpid(record.pid, os.WNOHANG)


def test_one_that_will_not_end_is_killed_with_its_workers(spawn: Spawn, tmp_path: Path) -> None:
    worker = tmp_path / "worker"
    code = (
        "import os, pathlib\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nchild = os.fork()\n"
        f"if child: pathlib.Path({str(worker)!r}).write_text(str(child))\nelse: signal.pause()"
    )
    record = spawn(code)
    assert processes.stop(record, wait_seconds=0.2) == "killed"
    assert not record.is_alive()
    worker_pid = int(worker.read_text())
    gone = ProcessRecord(worker_pid, processes._started_ticks(worker_pid) or 0, record.boot_id, "")
    assert processes.exited_within(gone, 5)


@pytest.mark.parametrize("change", [{"started_ticks": 1}, {"boot_id": "another boot"}])
def test_a_recycled_pid_is_never_signalled(spawn: Spawn, change: dict[str, object]) -> None:
    record = spawn("")
    other = dataclasses.replace(record, **change)  # type: ignore[arg-type]
    assert not other.is_alive()
    assert processes.stop(other, wait_seconds=0) == "stopped"
    assert record.is_alive()


def test_the_record_survives_on_disk_while_the_process_lives(spawn: Spawn, tmp_path: Path) -> None:
    path = tmp_path / "x.pid"
    assert processes.read_record(path) is None
    record = spawn("")
    processes.write_record(path, record)
    assert processes.read_record(path) == record
    os.kill(record.pid, signal.SIGKILL)
    assert processes.exited_within(record, 10)
    assert processes.read_record(path) is None, "a zombie does not run"
    assert processes.exit_status(record) == -signal.SIGKILL
    processes.forget(path)
    processes.forget(path)
    assert not path.exists()


@pytest.mark.parametrize("text", ["", "{}", "[1]", "garbage", '{"pid": 1, "unknown": 2}'])
def test_a_record_that_says_nothing_names_no_process(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.pid").write_text(text)
    assert processes.read_record(tmp_path / "x.pid") is None
