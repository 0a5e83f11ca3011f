"""``arraylift demo --vm``: passes, leaves nothing, and is gone after Ctrl-C, its guest too."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from arraylift.guest.build import Guest
from tests.e2e.command import command, processes_naming

SECONDS_MAX = 300.0


def environment(tmp_path: Path) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ARRAYLIFT_")}
    return {**clean, "TMPDIR": str(tmp_path)}


@pytest.mark.timeout(SECONDS_MAX)
def test_the_demo_shows_a_guest_lost_and_back(guest: Guest, tmp_path: Path) -> None:
    ended = subprocess.run(
        command("demo", "--vm", "--json"),
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    document = json.loads(ended.stdout)
    assert document["matched"] is True
    steps = {step["step"]: step for step in document["steps"]}
    assert list(steps)[-4:] == [
        "destroy the VM",
        "restore it from the backup",
        "boot the restored VM",
        "look at it from inside",
    ]
    assert steps["look at it from inside"]["note"].startswith("all 1")
    assert steps["back up, increment"]["frozen_ns"] > 0
    assert list(tmp_path.iterdir()) == []
    assert processes_naming(str(tmp_path)) == []


@pytest.mark.timeout(SECONDS_MAX)
def test_an_interrupt_ends_the_guest_too(guest: Guest, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command("demo", "--vm"),
        env=environment(tmp_path),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("boot it"):
            break
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.endswith("arraylift: error: interrupted\n")
    assert out == ""
    assert list(tmp_path.iterdir()) == []
    assert processes_naming(str(tmp_path)) == []
