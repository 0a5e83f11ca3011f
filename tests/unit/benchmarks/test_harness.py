"""The whole harness on small disks: real daemons, every peer that is installed, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arraylift.config import child_environment
from benchmarks.__main__ import main
from benchmarks.peers import Work
from tests.programs import need

ROOT = Path(__file__).resolve().parents[3]
SMALL = ["--size", "50M", "--rounds", "1"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("mke2fs", "debugfs", "e2fsck")
    return tmp_path_factory.mktemp("bench")


def daemons_below(directory: Path) -> list[int]:
    """Processes whose command line names a file below ``directory``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if str(directory).encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


@pytest.mark.timeout(300)
def test_a_run_measures_every_work_restores_bit_identically_and_cleans_up(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = work / "figures.json"
    assert main([*SMALL, "--work", str(work), "--json", str(figures)]) == 0
    found = json.loads(figures.read_text())
    assert found["samples"].keys() == {one.name.lower() for one in Work}
    for samples in found["samples"].values():
        assert samples["arraylift"][0]["wall_seconds"] > 0
    installed = {name for name in ("restic", "borg", "cp") if shutil.which(name)}
    assert found["restored_bit_identical"] == dict.fromkeys({"arraylift", *installed}, True)
    assert found["disks"]["A1"]["changed_bytes"] > 0
    first, day = (found["samples"][one]["arraylift"][0]["added_bytes"] for one in ("first_full", "day_1"))
    assert first > 4 * day > 0, "an incremental stores what changed, not the disk"
    assert "goals" in capsys.readouterr().out
    assert [path.name for path in work.iterdir() if path.name.startswith(("round-", "kernels-"))] == []
    assert daemons_below(work) == []


@pytest.mark.timeout(300)
def test_ctrl_c_stops_daemons_and_removes_repositories(work: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", *SMALL, "--work", str(work), "--peers", "cp"]
    environment = child_environment(TERM="dumb")
    running = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE)
    with running:
        deadline = time.monotonic() + 200
        while not any(work.glob("round-*/arraylift/target1/units")):  # the daemons have begun
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        assert running.stderr is not None
        said = running.stderr.read().decode()
        assert running.wait(60) == 130, said
    assert "interrupted" in said
    assert list(work.glob("round-*")) == []
    assert daemons_below(work) == []


@pytest.mark.timeout(120)
def test_kernels_cost_something(work: Path) -> None:
    figures = work / "kernels.json"
    assert main(["kernels", "--size", "50M", "--work", str(work), "--json", str(figures)]) == 0
    stages = {one["stage"]: one["nanoseconds_per_byte"] for one in json.loads(figures.read_text())["stages"]}
    assert len(stages) >= 14
    assert all(cost > 0 for cost in stages.values())
    assert stages["verify (with decompress)"] > stages["LZ4 decompress"] / 2


@pytest.mark.timeout(120)
def test_an_image_is_read_and_restored_beside_the_plain_tools(work: Path) -> None:
    need("lz4", "b3sum")
    figures = work / "restore.json"
    arguments = ["restore", "--size", "50M", "--rounds", "1", "--work", str(work), "--json", str(figures)]
    assert main(arguments) in {0, 1}, "so little data says nothing of the goal"
    found = json.loads(figures.read_text())
    assert min(found[name] for name in ("data_bytes", "reference", "read", "sent", "ratio")) > 0
    assert not (work / "restore").exists()
    assert daemons_below(work) == []


def test_a_size_that_makes_no_guest_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--size", "1M"])
    assert "50M" in capsys.readouterr().err
