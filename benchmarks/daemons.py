"""Daemons of the house as processes on loopback, for what is measured through them.

Callers: one thread.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from arraylift import pki
from arraylift.cli import processes
from arraylift.cli.connection import OPERATOR_NAME, OPERATOR_ROLE, Connection
from arraylift.config import child_environment
from arraylift.errors import ArrayliftError

READY_SECONDS_MAX = 30.0


@dataclass(frozen=True, slots=True)
class Daemon:
    """One daemon's process and a connection to it."""

    process: processes.ProcessRecord
    connection: Connection


def make_pki(scratch: Path) -> Path:
    """Certificates for one array, one target and an operator, below ``scratch``."""
    directory = scratch / "pki"
    directory.mkdir()
    pki.init_ca(str(directory))
    for role, name in (("array", "array1"), ("target", "target1"), (OPERATOR_ROLE, OPERATOR_NAME)):
        pki.issue(str(directory), role, name)
    return directory


def start(
    noun: str,
    module: str,
    name: str,
    *,
    scratch: Path,
    pki_directory: Path,
    more: Mapping[str, str] = MappingProxyType({}),
) -> Daemon:
    """Start a daemon with its state in ``<scratch>/<name>``, without waiting for it. ``more``: settings."""
    port = free_port()
    config = scratch / f"{name}.toml"
    settings = {
        "name": name,
        "listen": f"127.0.0.1:{port}",
        "state": str(scratch / name),
        "pki": str(pki_directory),
        "log_level": "warning",
    }
    if noun == "array":
        settings["nbd_listen"] = ""
    settings |= more
    config.write_text("".join(f'{key} = "{value}"\n' for key, value in settings.items()), encoding="utf-8")
    log = os.open(scratch / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        process = processes.spawn(["-m", module, "--config", str(config)], child_environment(), log)
    finally:
        os.close(log)
    return Daemon(process, Connection(noun, f"127.0.0.1:{port}", pki_directory))


def wait_until_ready(daemon: Daemon, *, scratch: Path) -> None:
    """Raises ArrayliftError with the end of its log if it does not start."""
    noun, deadline = daemon.connection.noun, time.monotonic() + READY_SECONDS_MAX
    while True:
        try:
            if daemon.connection.is_serving():
                return
        except ArrayliftError:
            if time.monotonic() > deadline or processes.exited_within(daemon.process, 0.05):
                log = scratch / f"{noun}1.log"
                said = log.read_text(encoding="utf-8", errors="replace")[-2000:]
                raise ArrayliftError(f"the {noun} did not start: {said}") from None


def stop(daemon: Daemon) -> None:
    """Close the connection and end the process."""
    daemon.connection.close()
    processes.stop(daemon.process)


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with contextlib.closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
