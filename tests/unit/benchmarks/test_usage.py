"""Costs are measured of the program that is meant, and it never outlives the measurement."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from arraylift.config import child_environment
from arraylift.errors import ArrayliftError
from arraylift.sizes import MIB
from benchmarks import usage

BURN = "import time\nwhile time.process_time() < 0.3: pass"


def python(code: str, folder: Path) -> usage.Usage:
    return usage.run([sys.executable, "-c", code], environment=child_environment(), folder=folder)


def test_cpu_of_a_program_and_of_its_children_is_counted(tmp_path: Path) -> None:
    alone = python(BURN, tmp_path)
    assert alone.cpu_seconds >= 0.3
    assert alone.wall_seconds >= 0.3
    nested = python(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BURN!r}])", tmp_path)
    assert nested.cpu_seconds >= 0.3


def test_a_program_that_fails_is_an_error_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(ArrayliftError, match="the disk is full"):
        python("import sys; sys.exit('the disk is full')", tmp_path)


def test_a_program_that_takes_too_long_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "COMMAND_SECONDS_MAX", 0.5)
    note = tmp_path / "pid"
    code = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    with pytest.raises(ArrayliftError, match="took more than"):
        python(code, tmp_path)
    if note.exists():  # it may not have come so far
        with pytest.raises(ProcessLookupError):
            os.kill(int(note.read_text()), 0)


def test_processes_below_one_are_found_with_cpu_and_memory() -> None:
    code = (
        "import subprocess, sys; child = subprocess.Popen(['sleep', '60']); print(flush=True)\n"
        "sys.stdin.read(); child.kill()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        found = usage.tree_of(parent.pid)
        assert len(found) == 2
        assert found[0] == parent.pid
        assert usage.cpu_seconds_of(parent.pid) >= 0
        assert usage.peak_memory_of(parent.pid) > MIB
        assert parent.stdin is not None
        parent.stdin.close()
        parent.wait(20)
    assert parent.returncode == 0


def test_bytes_on_disk_leave_holes_out(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(8 * MIB)
        file.write(os.urandom(MIB))
    assert MIB <= usage.disk_bytes(tmp_path) < 2 * MIB
    usage.warm([tmp_path])


def test_files_are_the_same_only_bit_by_bit(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    data = bytearray(os.urandom(5 * MIB))
    one.write_bytes(data)
    other.write_bytes(data)
    assert usage.same(one, other)
    data[-1] ^= 1
    other.write_bytes(data)
    assert not usage.same(one, other)
    other.write_bytes(data[:-1])
    assert not usage.same(one, other)
