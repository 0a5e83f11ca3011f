"""``arraylift daemon``: run one daemon in this process, as a service manager does.

Callers: the command line, main thread.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from arraylift.cli.command import command
from arraylift.cli.session import Session
from arraylift.cli.settings import KINDS
from arraylift.errors import InvalidRequest

_MODULES = {kind.noun: kind.module for kind in KINDS}


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    command(
        app,
        "daemon",
        examples="arraylift daemon array --config /etc/arraylift/array1.toml\n"
        "arraylift daemon server --print-config > server1.toml",
    )(daemon)


def daemon(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="|".join(_MODULES), help="Which daemon.")],
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="Its settings, TOML.")] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print all settings as TOML and exit.")
    ] = False,
) -> None:
    """Run one daemon until SIGTERM; its logs go to standard error."""
    if name not in _MODULES:
        raise InvalidRequest(
            f"there is no daemon {name!r}", subject=name, next_step=f"use one of {', '.join(_MODULES)}"
        )
    arguments = [sys.executable, "-m", _MODULES[name]]
    if config is not None:
        arguments += ["--config", str(config)]
    if print_config:
        arguments.append("--print-config")
    session.out.file.flush()
    # The same process: a service manager's signals and exit code are the daemon's own.
    os.execv(sys.executable, arguments)  # noqa: S606  # no shell is the point
