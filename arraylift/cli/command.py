"""Declare commands: every one takes the common options and gets a Session.

``@command(app, "ls")`` registers ``def ls(session, ...)``: the decorator adds ``--json``, ``--debug``,
``--state``, ``--pki`` and the daemons' addresses to its options, so that they may stand after the
command as well as before it, and opens and closes the session around it. A command's own option of
the same name takes the place of the common one.
Callers: modules of this package, while they are imported.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from arraylift.cli.session import Session
from arraylift.cli.settings import Overrides

_PANEL = "Common options"
BRIEF_CHARS_MAX = 60
"""Of a command in a list of commands, at 80 columns: typer would cut it in mid-word."""


def _option(kind: Any, *names: str, help: str, metavar: str | None = None) -> Any:
    return Annotated[kind, typer.Option(*names, help=help, metavar=metavar, rich_help_panel=_PANEL)]


def _address(what: str = "") -> Any:
    return _option(str | None, help=f"{what}host:port; default: of the state.", metavar="ADDRESS")


COMMON: dict[str, Any] = {
    "json": _option(bool, "--json", help="One JSON document."),
    "debug": _option(bool, "--debug", help="Show the traceback of an error."),
    "state": _option(Path | None, help="State directory, also ARRAYLIFT_STATE.", metavar="DIR"),
    "pki": _option(Path | None, help="Certificates; default: of the state.", metavar="DIR"),
    "array": _address(),
    "target": _address(),
    "vcenter": _address(),
    "server": _address("Backup server, "),
}
assert set(COMMON) == {item.name for item in dataclasses.fields(Overrides)}


def group(help: str) -> typer.Typer:
    """Return a noun: a command with commands below it."""
    return typer.Typer(help=help, no_args_is_help=True, add_completion=False, rich_markup_mode=None)


def command(app: typer.Typer, name: str, *, examples: str = "") -> Callable[[Callable[..., None]], None]:
    """Register a function as the command ``name``; its docstring is the help."""

    def register(function: Callable[..., None]) -> None:
        made = _with_session(function)
        app.command(name, epilog=examples_epilog(examples), short_help=_brief(function.__doc__ or ""))(made)

    return register


def _brief(help: str) -> str:
    """Return as much of a command's help as a list of commands has room for, cut where it pauses."""
    brief = " ".join(help.strip().partition("\n\n")[0].split())
    for pause in (
        r"\. ",
        r"[;:] ",
        r", ",
    ):  # its first sentence, of that the clauses that have room, and so on
        if len(brief) > BRIEF_CHARS_MAX:
            parts = re.split(rf"(?<={pause})", brief)
            kept = max(
                1, sum(len("".join(parts[:count])) <= BRIEF_CHARS_MAX for count in range(1, len(parts)))
            )
            brief = "".join(parts[:kept]).rstrip(" ;:,.") + "."
    return brief


def examples_epilog(examples: str) -> str | None:
    """Return examples as click shows them: \\b keeps the lines as they are."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in examples.splitlines()) if examples else None


def _with_session(function: Callable[..., None]) -> Callable[..., None]:
    hints = get_type_hints(function, include_extras=True)
    own = [
        parameter.replace(annotation=hints[parameter.name])
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name != "session"
    ]
    common = [name for name in COMMON if name not in {parameter.name for parameter in own}]

    def run(context: typer.Context, **values: Any) -> None:
        given = Overrides(**{name: values.pop(name) for name in common})
        before = context.find_root().obj
        assert isinstance(before, Overrides), "the root callback leaves its options there"
        with Session(given.over(before)) as session:
            function(session, **values)

    keyword_only = inspect.Parameter.KEYWORD_ONLY
    first = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    parameters = [
        first,
        *(parameter.replace(kind=keyword_only) for parameter in own),
        *(parameter for parameter in common_parameters() if parameter.name in common),
    ]
    described: Any = run
    described.__signature__ = inspect.Signature(parameters)
    described.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    described.__doc__ = function.__doc__
    described.__name__ = function.__name__
    return run


def common_parameters() -> list[inspect.Parameter]:
    """Return the common options, as parameters of a function that typer reads."""
    defaults = {item.name: item.default for item in dataclasses.fields(Overrides)}
    return [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=annotation)
        for name, annotation in COMMON.items()
    ]
