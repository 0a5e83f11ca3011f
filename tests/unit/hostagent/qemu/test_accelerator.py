"""Accelerators are tried, in bounded time, and what does not run a guest is not used."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from arraylift.errors import InvalidRequest, WrongState
from hostagent.qemu import accelerator
from hostagent.qemu.accelerator import Accelerator, find_accelerator
from tests.programs import need

RUNS = 0x2A << 1 | 1


def program(tmp_path: Path, script: str) -> str:
    path = tmp_path / "qemu"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_the_real_one_runs_our_guest() -> None:
    need("qemu-system-x86_64")
    assert find_accelerator("qemu-system-x86_64", wanted="tcg").name == "tcg"


@pytest.mark.parametrize(
    ("script", "found"),
    [
        (f"exit {RUNS}", Accelerator("kvm", sandbox=True)),
        (f"case $* in *sandbox*) exit 1;; *) exit {RUNS};; esac", Accelerator("kvm", sandbox=False)),
        (f"case $* in *kvm*) kill -6 $$;; *) exit {RUNS};; esac", Accelerator("tcg", sandbox=True)),
        (f"case $* in *kvm*) exit 0;; *) exit {RUNS};; esac", Accelerator("tcg", sandbox=True)),
    ],
)
def test_the_first_that_runs_a_guest_is_used(tmp_path: Path, script: str, found: Accelerator) -> None:
    assert find_accelerator(program(tmp_path, script)) == found


def test_one_that_hangs_is_given_up_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "PROBE_SECONDS", {"kvm": 0.3, "tcg": 5.0})
    began = time.monotonic()
    script = f"case $* in *kvm*) exec sleep 60;; *) exit {RUNS};; esac"
    assert find_accelerator(program(tmp_path, script)).name == "tcg"
    assert time.monotonic() - began < 5


def test_none_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(WrongState, match="runs no guest"):
        find_accelerator(program(tmp_path, "exit 1"))
    with pytest.raises(WrongState, match="does not start"):
        find_accelerator(str(tmp_path / "none"))
    with pytest.raises(InvalidRequest, match="no accelerator"):
        find_accelerator("qemu", wanted="xen")
