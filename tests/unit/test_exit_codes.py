"""Exit codes: one for each error class, and one line for each error."""

from __future__ import annotations

import inspect
import io

import pytest

from arraylift import errors
from arraylift.errors import ArrayliftError
from arraylift.exit_codes import LINE_CHARS_MAX, MEANINGS, error_of, exit_code, report

CLASSES = [
    value
    for _, value in inspect.getmembers(errors, inspect.isclass)
    if issubclass(value, ArrayliftError) and value is not ArrayliftError
]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidRequest("x"), 2),
        (errors.NotFound("x"), 3),
        (errors.AlreadyExists("x"), 4),
        (errors.WrongState("x"), 5),
        (errors.Conflict("x"), 6),
        (errors.TrackerMismatch("x"), 6),
        (errors.LeaseLost("x"), 6),
        (errors.OutOfSpace("x"), 7),
        (errors.Overloaded("x"), 7),
        (errors.PeerUnavailable("x"), 8),
        (errors.DeadlineExceeded("x"), 8),
        (errors.NotPermitted("x"), 9),
        (errors.Corruption("x"), 10),
        (errors.StoreFailed("x"), 11),
        (errors.Cancelled("x"), 1),
        (ValueError("x"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_kind_has_its_code(error: BaseException, code: int) -> None:
    assert exit_code(error) == code


@pytest.mark.parametrize("error_class", CLASSES)
def test_every_class_has_a_code_that_is_explained(error_class: type[ArrayliftError]) -> None:
    assert exit_code(error_class("x")) in MEANINGS


def test_a_child_s_code_comes_back_as_the_same_code() -> None:
    assert {exit_code(error_of(code, "x")) for code in range(2, 12)} == set(range(2, 12))
    assert exit_code(error_of(77, "x")) == 1


def told(error: BaseException) -> str:
    stream = io.StringIO()
    report(error, stream)
    return stream.getvalue()


def test_the_line_says_what_and_what_next() -> None:
    error = errors.NotFound("there is no volume web1", next_step="make one")
    assert told(error) == "arraylift: error: there is no volume web1; make one\n"


HOSTILE = ["two\nlines", "esc \x1b[31mred", "bell\x07", "lone \udc80", "\u202eflipped"]


@pytest.mark.parametrize("text", HOSTILE)
def test_whatever_a_peer_says_stays_one_harmless_line(text: str) -> None:
    line = told(errors.Conflict(text))
    assert line.endswith("\n")
    assert line[:-1].isprintable()


def test_a_long_message_is_cut() -> None:
    assert len(told(errors.Conflict("x" * 10 * LINE_CHARS_MAX))) < LINE_CHARS_MAX + 50


def test_a_terminal_that_knows_only_ascii_still_gets_its_line() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    report(errors.NotFound("volume ä"), stream)
    assert raw.getvalue() == b"arraylift: error: volume ?\n"


def test_an_error_of_the_system_names_the_file() -> None:
    assert told(FileNotFoundError(2, "No such file or directory", "/x")) == (
        "arraylift: error: /x: No such file or directory\n"
    )
