"""The command line put together, and the boundary at which errors become a line and an exit code.

Invariant:
  A1 whatever goes wrong, a person gets one line and a script gets a documented exit code; a traceback
     only with --debug.
Callers: ``arraylift.cli.main``, and tests.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from arraylift import __version__
from arraylift.cli import (
    array,
    backup_save,
    backups,
    catalog,
    daemon,
    demo,
    files,
    host,
    interrupts,
    job,
    pki,
    policy,
    reports,
    target,
    up,
    vm,
)
from arraylift.cli.command import COMMON, common_parameters
from arraylift.cli.settings import Overrides
from arraylift.errors import ArrayliftError, InvalidRequest
from arraylift.exit_codes import FAILED, INTERRUPTED, MEANINGS, OK, USAGE, exit_code, report

# Its own base classes moved from one package to another; typer's public name for them stays.
_USAGE_ERROR = typer.BadParameter.__mro__[1]

_HELP = "Back up whole virtual machines: the array sends, the target keeps each piece once."
_EPILOG = "\b\n" + "\n".join(
    [
        "Examples:",
        "  arraylift up && arraylift vm create web --disk disk.img --start",
        "  arraylift backup web",
        "  arraylift files get web /etc/hosts",
        "  arraylift restore web --as web-restored",
        "",
        "\b",
        "Exit codes:",
        *(f"  {code:<4} {meaning}" for code, meaning in MEANINGS.items()),
    ]
)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code (A1). Main thread."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    logging.getLogger("grpc").addHandler(logging.NullHandler())  # it logs what we report ourselves
    interrupts.install()
    try:
        result = typer.main.get_command(build())(given, prog_name="arraylift", standalone_mode=False)
        if result == INTERRUPTED:  # some releases of typer turn the interrupt into a result
            raise KeyboardInterrupt
        return result if isinstance(result, int) else OK
    except BrokenPipeError:
        # Whoever read our output has seen enough; Python must not complain about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (KeyboardInterrupt, typer.Abort):
        report(KeyboardInterrupt(), sys.stderr)
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001  # the last place that can tell a person
        return _failed(error, debug="--debug" in given)


def build() -> typer.Typer:
    """Return the whole tree of commands."""
    app = typer.Typer(
        help=_HELP, epilog=_EPILOG, no_args_is_help=True, add_completion=False, rich_markup_mode=None
    )
    app.callback()(_root())
    up.register(app)
    vm.register(app)
    of_backups = backups.register(app)
    backup_save.register(of_backups)
    catalog.register_backups(of_backups)
    for noun in (files, catalog, job, policy, reports, host, array, target, pki, daemon, demo):
        noun.register(app)
    return app


def _root() -> Any:
    """The options before the command: the common ones, and --version."""

    def root(context: typer.Context, **values: Any) -> None:
        context.obj = Overrides(**{name: values[name] for name in COMMON})

    version = Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ]
    parameters = [
        inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
        inspect.Parameter("version", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=version),
        *common_parameters(),
    ]
    described: Any = root
    described.__signature__ = inspect.Signature(parameters)
    described.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return root


def _version(wanted: bool) -> None:
    if wanted:
        print(f"arraylift {__version__}")
        raise typer.Exit


def _failed(error: Exception, *, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    if isinstance(error, _USAGE_ERROR):
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "arraylift"
        message: str = error.format_message()  # type: ignore[attr-defined]  # of every usage error
        if type(error).__name__ == "NoArgsIsHelpError":  # a noun without a verb: the help is the answer
            sys.stderr.write(message + "\n")
            return USAGE
        report(InvalidRequest(message.rstrip("."), next_step=f"see `{path} --help`"), sys.stderr)
        return USAGE
    if isinstance(error, ArrayliftError | OSError):
        report(error, sys.stderr)
        return exit_code(error)
    fault = f"a fault of arraylift itself: {type(error).__name__}: {error}"
    report(ArrayliftError(fault, next_step="run it again with --debug and report what it shows"), sys.stderr)
    return FAILED
