"""What every daemon's ``__main__`` does: read settings, arm, serve, stop cleanly.

Owns: the process's signals and limits. A daemon hands in its settings class and a
function that builds it; everything in between is the same for all five.
Exit: 0 after SIGTERM or SIGINT; else one line on stderr and the code of exit_codes.py.
Callers: the daemons' composition roots, on the main thread.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from arraylift import __version__, config, logs, pki
from arraylift.errors import ArrayliftError, InvalidRequest
from arraylift.exit_codes import exit_code, report
from arraylift.failpoints import FAILPOINTS
from arraylift.pki import TlsMaterial
from arraylift.rpc.server import RpcServer, Service
from arraylift.tuning import tune_process

WAKE_SECONDS = 0.5
"""How late a signal may be seen at the most."""

_log = logs.get_logger("daemon")


class Settings(Protocol):
    """The settings that every daemon has."""

    @property
    def name(self) -> str: ...
    @property
    def listen(self) -> str: ...
    @property
    def state(self) -> Path: ...
    @property
    def pki(self) -> Path: ...
    @property
    def log_level(self) -> str: ...
    @property
    def log_format(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Built:
    """A daemon ready to serve: its services, and how to close what stands behind them."""

    services: Sequence[Service]
    close: Callable[[], None]


Build = Callable[[Any, TlsMaterial], Built]


def run(role: str, settings_class: type[Any], build: Build, arguments: Sequence[str] | None = None) -> int:
    """Run the daemon of ``role`` until a signal; returns the exit code."""
    parsed = _parser(role).parse_args(arguments)
    try:
        settings = config.load(settings_class, parsed.config)
        if parsed.print_config:
            sys.stdout.write(config.render(settings))
            return 0
        _serve(role, settings, build)
    except ArrayliftError as error:
        report(error, sys.stderr)
        return exit_code(error)
    return 0


def _parser(role: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"arraylift daemon {role}", description=f"Run the Arraylift {role} until SIGTERM or Ctrl-C."
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file with settings")
    parser.add_argument("--print-config", action="store_true", help="print the settings in force, and exit")
    parser.add_argument("--version", action="version", version=__version__)
    return parser


def _serve(role: str, settings: Settings, build: Build) -> None:
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stopping.set())
    logs.configure(settings.log_level, settings.log_format)
    try:
        FAILPOINTS.arm(config.failpoint_spec())
    except ValueError as error:
        raise InvalidRequest(f"ARRAYLIFT_FAILPOINTS: {error}") from None
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    tune_process()
    tls = pki.load(str(settings.pki), role, settings.name)
    built = build(settings, tls)
    try:
        server = RpcServer(settings.listen, tls, built.services)
        try:
            server.start()
            _log.info("daemon_ready", role=role, name=settings.name, address=server.address)
            # Not without end: the kernel may hand the signal to another thread, and Python runs its
            # handler on this one only when it wakes.
            while not stopping.wait(WAKE_SECONDS):
                pass
        finally:
            server.stop()
    finally:
        built.close()
    _log.info("daemon_stopped", role=role, name=settings.name)
