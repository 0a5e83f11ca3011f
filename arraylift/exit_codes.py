"""How a process ends when something failed: an exit code by kind, and one line that says what.

Owns: the table from error class to exit code, and the form ``arraylift: error: ...``. The table is
part of the interface: scripts rely on it, so a number never changes its meaning.
Invariants:
  X1 every class of arraylift/errors.py has a code, its own or that of the nearest class above it.
  X2 an error is one line of printable text, whatever a peer put into it.
Callers: the command line and the daemons' ``__main__``, on the main thread.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from arraylift import errors
from arraylift.errors import ArrayliftError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TextIO

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130

LINE_CHARS_MAX = 2000
"""Longer messages are cut: a line is for a person."""

_CODES: Mapping[type[ArrayliftError], int] = MappingProxyType(
    {
        ArrayliftError: FAILED,
        errors.InvalidRequest: USAGE,
        errors.NotFound: 3,
        errors.AlreadyExists: 4,
        errors.WrongState: 5,
        errors.LeaseLost: 6,
        errors.Conflict: 6,
        errors.OutOfSpace: 7,
        errors.Overloaded: 7,
        errors.PeerUnavailable: 8,
        errors.DeadlineExceeded: 8,
        errors.NotPermitted: 9,
        errors.Corruption: 10,
        errors.StoreFailed: 11,
    }
)

MEANINGS: Mapping[int, str] = MappingProxyType(
    {
        OK: "ok",
        FAILED: "anything else that failed",
        USAGE: "wrong usage or request",
        3: "not found",
        4: "exists already",
        5: "wrong state for this",
        6: "conflict or lost lease: start again",
        7: "out of space, or overloaded",
        8: "a daemon does not answer in time",
        9: "not permitted",
        10: "damaged data",
        11: "a store failed: restart its daemon",
        INTERRUPTED: "interrupted",
    }
)
"""What each exit code means, for help texts."""


def exit_code(error: BaseException) -> int:
    """Return the code that a process ends with because of ``error`` (X1)."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, ArrayliftError):
        return next(_CODES[parent] for parent in type(error).__mro__ if parent in _CODES)
    return FAILED


def error_of(code: int, message: str) -> ArrayliftError:
    """Return an error of the kind that a child process ended with, to pass its line on."""
    for error_class, class_code in _CODES.items():
        if class_code == code and code != FAILED:
            return error_class(message)
    return ArrayliftError(message)


def line_of(error: BaseException) -> str:
    """Return what a person is told (X2), without the program's name before it."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, ArrayliftError):
        return one_line(str(error))
    if isinstance(error, OSError) and error.strerror:
        return one_line(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    return one_line(f"{type(error).__name__}: {error}")


def one_line(text: str) -> str:
    """Return ``text`` without line breaks, control characters or lone surrogates, cut to length."""
    joined = " ".join(text.split())
    printable = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in joined)
    return printable if len(printable) <= LINE_CHARS_MAX else printable[: LINE_CHARS_MAX - 3] + "..."


def report(error: BaseException, stream: TextIO) -> None:
    """Write the one line: ``arraylift: error: what, on what; what to do next``."""
    text = line_of(error)
    encoding = stream.encoding or "utf-8"
    stream.write(f"arraylift: error: {text}\n".encode(encoding, "replace").decode(encoding))
    stream.flush()
