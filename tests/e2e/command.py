"""The ``arraylift`` command as a process, and daemons that it starts and that no test leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.daemon import free_port

SECONDS_MAX = 90.0


@dataclass
class Ended:
    """What a run left."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


@dataclass
class House:
    """One state directory and the ports that its daemons get."""

    state: Path
    base_port: int

    def run(self, *arguments: object, ok: bool = True) -> Ended:
        """Run one command; unless ``ok`` is False it must succeed."""
        ended = subprocess.run(
            command(*arguments),
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=SECONDS_MAX,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert not ok or ended.returncode == 0, f"{arguments}: {ended.stderr}"
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    def json(self, *arguments: object) -> Any:
        """Run one command with --json and return its document."""
        return self.run(*arguments, "--json").document

    def up(self) -> Any:
        return self.json("up", "--base-port", self.base_port)

    def environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("ARRAYLIFT_")}
        return {**clean, "ARRAYLIFT_STATE": str(self.state)}

    def log(self, name: str) -> str:
        return (self.state / "run" / f"{name}.log").read_text()

    def processes(self) -> list[int]:
        """Return the pids of all processes that know this state directory, our own tests aside."""
        return processes_naming(str(self.state))


@contextlib.contextmanager
def a_house(directory: Path) -> Iterator[House]:
    """An empty state directory below ``directory``; nothing runs yet, and nothing runs afterwards."""
    made = House(directory / "state", free_base_port())
    yield made
    if (made.state / "run").is_dir():
        made.run("down")
    assert made.processes() == [], "every process of a house ends with it"


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "arraylift.cli", *(str(argument) for argument in arguments)]


def processes_naming(text: str) -> list[int]:
    """Return the pids whose command line holds ``text``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if text in (entry / "cmdline").read_bytes().decode("utf-8", "replace"):
                    found.append(int(entry.name))
    return found


def free_base_port() -> int:
    """Return N so that N to N+5, the daemons' ports, are free."""
    return free_port(6)


def make_disk(path: Path, *, seed: int, size_bytes: int = 24 << 20) -> Path:
    """Write a sparse disk with data that compresses by half."""
    source = random.Random(seed)
    with path.open("wb") as file:
        file.truncate(size_bytes)
        for start in range(0, size_bytes, 2 << 20):
            file.seek(start + source.randrange(1 << 20))
            piece = source.randbytes(4096)
            file.write(b"".join(piece[:2048] + source.randbytes(2048) for _ in range(100)))
    return path
