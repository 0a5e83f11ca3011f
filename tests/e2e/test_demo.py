"""``arraylift demo``: passes, leaves nothing, and is gone after Ctrl-C at any moment.

On small disks; `make demo` runs it in full.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.e2e.command import command, processes_naming
from tests.programs import need

SECONDS_MAX = 300.0


def environment(tmp_path: Path) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ARRAYLIFT_")}
    return {**clean, "TMPDIR": str(tmp_path)}


@pytest.mark.timeout(SECONDS_MAX)
def test_the_demo_matches_and_leaves_nothing(tmp_path: Path) -> None:
    need("mkfs.ext4", "debugfs", "e2fsck")
    ended = subprocess.run(
        command("demo", "--json", "--size", "64M"),
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    document = json.loads(ended.stdout)
    assert document["matched"] is True
    steps = {step["step"]: step["figures"] for step in document["steps"]}
    full, increment = steps["back up web, full"], steps["back up web, increment"]
    assert increment["bytes_read"] < full["bytes_read"] // 4
    assert steps["back up shop, full"]["bytes_stored"] < full["bytes_stored"] // 2
    frozen = {step["step"]: step["frozen_ns"] for step in document["steps"] if step["frozen_ns"]}
    assert set(frozen) == {"back up web, full", "back up web, increment", "back up shop, full"}
    done = [step["step"] for step in document["steps"]]
    assert done[-4:] == [
        "compare with web's disks",
        "compare with the images",
        "check the file systems",
        "restore two files",
    ]
    assert list(tmp_path.iterdir()) == []
    assert processes_naming(str(tmp_path)) == []


@pytest.mark.timeout(SECONDS_MAX)
@pytest.mark.parametrize("after", ["make three disks", "start daemons", "create VM web", "back up web, full"])
def test_an_interrupt_leaves_nothing(tmp_path: Path, after: str) -> None:
    need("mkfs.ext4", "debugfs", "e2fsck")
    process = subprocess.Popen(
        command("demo", "--size", "24M"),
        env=environment(tmp_path),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(after):
            break
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.endswith("arraylift: error: interrupted\n")
    assert out == ""
    assert list(tmp_path.iterdir()) == []
    assert processes_naming(str(tmp_path)) == []


def test_without_e2fsprogs_the_line_names_the_package(tmp_path: Path) -> None:
    hidden = (
        "import sys; from arraylift.cli import demo_disks; demo_disks._SYSTEM_PATH = '/nonexistent'; "
        "from arraylift.cli.app import run; sys.exit(run(['demo']))"
    )
    ended = subprocess.run(
        [command()[0], "-c", hidden],
        env={**environment(tmp_path), "PATH": "/nonexistent"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 3
    assert ended.stderr == "arraylift: error: there is no mkfs.ext4 on this machine; apt install e2fsprogs\n"
    assert list(tmp_path.iterdir()) == []
