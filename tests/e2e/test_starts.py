"""Starts that cannot succeed: one line that says why, the exit code of its kind, nothing left running."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from arraylift import exit_codes, pki
from arraylift.errors import ArrayliftError, InvalidRequest, NotFound, WrongState
from tests.e2e.cluster import Cluster
from tests.e2e.daemon import Daemon, free_port, wait_until
from tests.wire.stage import DaysAgo

ROLES = {"primary_array": "array", "dedup_target": "target"}


def refused(module: str, config: Path) -> tuple[int, str]:
    """Start a daemon that ends by itself; returns (exit code, its stderr without log lines)."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, "--config", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not session_members(process.pid), "nothing of it is left running", seconds=10)
    lines = [line for line in stderr.decode().splitlines() if not line.startswith("20")]
    return process.returncode, "\n".join(lines)


def session_members(session: int) -> list[int]:
    """Processes of a session that are no zombies."""
    members = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                members.append(int(name))
    return members


def check(result: tuple[int, str], error_class: type[ArrayliftError], *words: str) -> None:
    code, text = result
    assert len(text.splitlines()) == 1, text
    assert text.startswith("arraylift: error: ")
    assert all(word in text for word in words), text
    assert code == exit_codes.exit_code(error_class("")), text


@pytest.fixture(params=list(ROLES))
def module(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def configured(tmp_path: Path, module: str) -> Callable[..., Path]:
    """Writes the settings of a daemon whose certificate is good, then changed by the test."""
    ca = tmp_path / "pki"
    ca.mkdir()
    pki.init_ca(str(ca), clock=DaysAgo(400))
    pki.issue(str(ca), ROLES[module], "one")

    def write(**changes: object) -> Path:
        settings = {
            "name": "one",
            "listen": f"127.0.0.1:{free_port()}",
            "state": str(tmp_path / "state"),
            "pki": str(ca),
            **changes,
        }
        path = tmp_path / "one.toml"
        path.write_text("".join(f'{key} = "{value}"\n' for key, value in settings.items()))
        return path

    return write


def test_the_state_directory_is_in_use(shared: Cluster, module: str, tmp_path: Path) -> None:
    daemon: Daemon = shared.array if module == "primary_array" else shared.target
    text = daemon.config_path.read_text().replace(daemon.address, f"127.0.0.1:{free_port()}")
    config = tmp_path / "twin.toml"
    config.write_text(text)
    check(refused(module, config), WrongState, "in use", str(daemon.state))
    assert daemon.running
    shared.volume_names()
    shared.stats()


def test_the_port_is_taken(shared: Cluster, module: str, configured: Callable[..., Path]) -> None:
    check(
        refused(module, configured(listen=shared.array.address)),
        WrongState,
        "taken",
        shared.array.address.partition(":")[2],
    )


def test_the_certificate_is_missing(module: str, configured: Callable[..., Path]) -> None:
    check(refused(module, configured(name="two")), NotFound, f"{ROLES[module]}-two")


def test_the_certificate_has_expired(module: str, configured: Callable[..., Path], tmp_path: Path) -> None:
    pki.issue(str(tmp_path / "pki"), ROLES[module], "late", days=10, clock=DaysAgo(30))
    check(refused(module, configured(name="late")), WrongState, "expired")


def test_the_certificate_is_of_another_ca(
    module: str, configured: Callable[..., Path], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    pki.init_ca(str(other))
    pki.issue(str(other), ROLES[module], "one")
    config = configured()
    for suffix in ("pem", "key"):
        name = f"{ROLES[module]}-one.{suffix}"
        (tmp_path / "pki" / name).write_bytes((other / name).read_bytes())
    check(refused(module, config), WrongState, f"{ROLES[module]}-one.pem")


def test_the_settings_cannot_be_read(module: str, configured: Callable[..., Path], tmp_path: Path) -> None:
    check(refused(module, tmp_path / "nowhere.toml"), NotFound, "nowhere.toml")
    config = configured()
    config.write_text("name = ")
    check(refused(module, config), InvalidRequest, "one.toml")
    config.write_text('nmae = "one"\n')
    check(refused(module, config), InvalidRequest, "nmae")


def test_the_state_is_no_directory(module: str, configured: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, text = refused(module, configured(state=tmp_path / "file"))
    assert len(text.splitlines()) == 1, text
    assert text.startswith("arraylift: error: ")
    assert code not in {0, exit_codes.FAILED}, text


def test_a_failpoint_that_is_no_failpoint(module: str, configured: Callable[..., Path]) -> None:
    config = configured()
    process = subprocess.run(
        [sys.executable, "-m", module, "--config", str(config)],
        env={**os.environ, "ARRAYLIFT_FAILPOINTS": "container.write=explode"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == exit_codes.USAGE
    assert b"ARRAYLIFT_FAILPOINTS" in process.stderr


def test_a_signal_that_another_thread_gets_ends_the_daemon(cluster: Cluster) -> None:
    """The kernel chooses the thread; a main thread that waited without end would sleep on."""
    daemon = cluster.target
    others = [int(name) for name in os.listdir(f"/proc/{daemon.pid}/task") if int(name) != daemon.pid]
    wait_until(lambda: cluster.stats().image_count == 0, "it serves")
    assert ctypes.CDLL(None).tgkill(daemon.pid, others[-1], signal.SIGTERM) == 0
    daemon.wait_dead(seconds=20)
    assert daemon.exit_code == 0
    daemon.start()
