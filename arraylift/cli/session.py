"""What one run of the command has at hand: places, connections, and where to write.

Owns: the connections (closed with the session) and both consoles. Standard output carries the
result only: one table or, with ``--json``, one JSON document; progress goes to standard error.
Callers: main thread.
"""

from __future__ import annotations

import json
import sys
from functools import cached_property
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType

from arraylift.cli.connection import Connection
from arraylift.cli.progress import Progress, Steps
from arraylift.cli.settings import ARRAY, SERVER, TARGET, VCENTER, DaemonKind, Overrides, Places, places
from arraylift.errors import ArrayliftError
from arraylift.exit_codes import exit_code, line_of, one_line

FILE_COLUMNS = 200
"""Width of a table that goes to a file or a pipe: lines stay whole for grep."""


def _width() -> int | None:
    return None if sys.stdout.isatty() else FILE_COLUMNS


def error_document(error: BaseException) -> dict[str, object]:
    """Return an error as JSON takes it."""
    known = error if isinstance(error, ArrayliftError) else None
    reason = "interrupted" if isinstance(error, KeyboardInterrupt) else ArrayliftError.reason
    return {
        "reason": known.reason if known else reason,
        "message": one_line(known.message) if known else line_of(error),
        "subject": known.subject if known else "",
        "next_step": known.next_step if known else "",
        "fields": known.fields if known else {},
        "exit_code": exit_code(error),
    }


class Session:
    """A context manager; closes its connections."""

    def __init__(self, overrides: Overrides) -> None:
        self.is_json = overrides.json
        self._overrides = overrides
        self._connections: list[Connection] = []
        self._emitted = False
        # Names come from other machines: no markup, no emoji codes, no guessed colors.
        self.out = Console(markup=False, emoji=False, highlight=False, width=_width())
        self.err = Console(stderr=True, markup=False, emoji=False, highlight=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in self._connections:
            connection.close()
        if error is not None and self.is_json and not self._emitted:
            self.emit({"error": error_document(error)}, "")

    @cached_property
    def places(self) -> Places:
        return places(self._overrides)

    @cached_property
    def array(self) -> Connection:
        return self._connect(ARRAY)

    @cached_property
    def target(self) -> Connection:
        return self._connect(TARGET)

    @cached_property
    def vcenter(self) -> Connection:
        return self._connect(VCENTER)

    @cached_property
    def server(self) -> Connection:
        return self._connect(SERVER)

    def daemon_at(self, noun: str, address: str) -> Connection:
        """Return a connection to a daemon that another one told us of; closed with the session."""
        return self._connected(noun, address)

    def _connect(self, kind: DaemonKind) -> Connection:
        return self._connected(kind.noun, self.places.address(kind), away_step=self.places.away_step(kind))

    def _connected(self, noun: str, address: str, *, away_step: str = "") -> Connection:
        connection = Connection(noun, address, self.places.pki_directory(), away_step=away_step)
        self._connections.append(connection)
        return connection

    def emit(self, document: object, shown: RenderableType) -> None:
        """Write the result: ``document`` with --json, else ``shown``. Once a run.

        A run with --json that fails before writes the error instead; one that has written its result
        and then fails (``status``) says so by its exit code.
        """
        assert not self._emitted, "one document a run"
        self._emitted = True
        if self.is_json:
            sys.stdout.write(json.dumps(document, indent=2) + "\n")
        else:
            self.out.print(shown)
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Say what is going on; never part of the result."""
        if not self.is_json:
            self.err.print(text, soft_wrap=True)

    def progress(self, what: str, total_bytes: int) -> Progress:
        """Return a bar on standard error; silent with --json or without a terminal."""
        return Progress(self.err, what, total_bytes, enabled=not self.is_json and self.err.is_terminal)

    def steps(self, what: str) -> Steps:
        """The same for work that is counted."""
        return Steps(self.err, what, enabled=not self.is_json and self.err.is_terminal)
