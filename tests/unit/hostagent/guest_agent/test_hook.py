"""The hook that guests install: it says that applications stood still only when they did."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from hostagent.guest_agent.freezer import HOOK_EVIDENCE, HOOK_REQUEST

HOOK = Path(__file__).resolve().parents[4] / "examples" / "guest-hooks" / "fsfreeze-hook"


class Guest:
    def __init__(self, folder: Path) -> None:
        self.state, self.hooks, self.log = folder / "run", folder / "hooks.d", folder / "log"
        self.state.mkdir()
        self.hooks.mkdir()
        self.request = self.state / Path(HOOK_REQUEST).name
        self.evidence = self.state / Path(HOOK_EVIDENCE).name
        self.request.write_text("ab" * 16)

    def add(self, name: str, *, fails: str = "") -> None:
        script = self.hooks / name
        script.write_text(f'#!/bin/sh\necho "{name} $1" >>{self.log}\n[ "$1" != "{fails}" ]\n')
        script.chmod(0o755)

    def run(self, action: str) -> int:
        environment = {"ARRAYLIFT_HOOK_STATE": str(self.state), "ARRAYLIFT_HOOKS": str(self.hooks)}
        path = {"PATH": "/usr/bin:/bin"}
        return subprocess.run(["sh", str(HOOK), action], env=environment | path, check=False).returncode

    def ran(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return Guest(tmp_path)


def test_all_applications_that_stood_still_are_told(guest: Guest) -> None:
    for name in ("20-web", "10-db"):
        guest.add(name)
    (guest.hooks / "30-off").write_text("not executable")
    guest.add("40-db.bak")
    assert guest.run("freeze") == 0
    assert guest.evidence.read_text() == "ab" * 16
    assert guest.run("thaw") == 0
    assert guest.ran() == ["10-db freeze", "20-web freeze", "20-web thaw", "10-db thaw"]


def test_one_that_fails_undoes_all_and_fails_the_freeze(guest: Guest) -> None:
    guest.evidence.write_text("stale")
    guest.add("10-db")
    guest.add("20-web", fails="freeze")
    guest.add("30-last")
    assert guest.run("freeze") == 1
    assert not guest.evidence.exists()
    assert guest.ran() == ["10-db freeze", "20-web freeze", "20-web thaw", "10-db thaw"]


def test_nothing_to_quiesce_and_nobody_who_asked_are_no_evidence(guest: Guest) -> None:
    assert guest.run("freeze") == 0
    assert not guest.evidence.exists()
    guest.add("10-db")
    guest.request.unlink()
    assert guest.run("freeze") == 0
    assert not guest.evidence.exists()


def test_a_thaw_goes_on_past_one_that_fails_and_says_so(guest: Guest) -> None:
    guest.add("10-db")
    guest.add("20-web", fails="thaw")
    assert guest.run("thaw") == 1
    assert guest.ran() == ["20-web thaw", "10-db thaw"]
    assert guest.run("neither") == 2
