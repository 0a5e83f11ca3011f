"""The examples as a reader would run them, against real daemons."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.command import Ended, House, a_house, make_disk

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LINES_MAX = 60


def example(house: House, name: str, *arguments: object) -> Ended:
    ended = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        env={**house.environment(), "PYTHONPATH": str(EXAMPLES.parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


@pytest.mark.timeout(240)
def test_the_examples_back_up_every_vm_and_restore_a_disk(tmp_path: Path) -> None:
    with a_house(tmp_path) as house:
        addresses = {each["kind"]: each["address"] for each in house.up()}
        server, target, pki = addresses["server"], addresses["target"], house.state / "pki"
        disks = [make_disk(tmp_path / f"{number}.img", seed=number) for number in range(2)]
        for name in ("web", "db"):
            house.run("vm", "create", name, "--disk", disks[0], "--disk", disks[1])

        told = example(house, "backup_every_vm.py", server, pki)
        assert (told.code, told.err) == (0, "")
        lines = [line.split() for line in told.out.splitlines()]
        assert sorted(line[:2] for line in lines) == [[name, "JOB_STATE_SUCCEEDED"] for name in ("db", "web")]

        out = tmp_path / "out.img"
        words = (server, target, pki, "web", "disk1", out)
        told = example(house, "restore_into_file.py", *words)
        assert (told.code, told.err) == (0, "")
        assert out.read_bytes() == disks[1].read_bytes()
        assert out.stat().st_blocks * 512 < out.stat().st_size, "holes stay holes"
        assert example(house, "restore_into_file.py", *words).code != 0, "an existing file is left alone"
        missing = example(house, "restore_into_file.py", server, target, pki, "web", "disk7", tmp_path / "x")
        assert (missing.code, missing.err) == (1, "there is no backup of disk7 of web\n")

        house.run("vm", "rm", "db")
        failing = example(house, "backup_every_vm.py", server, tmp_path)
        assert failing.code != 0, "without certificates there is no success"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short_and_stands_alone(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") < LINES_MAX
    imported = {line.split()[1] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert imported <= {"sys", "time", "pathlib", "grpc", "arraylift.v1"}
