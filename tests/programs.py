"""What a test needs from the machine: skip where it is missing, and say so at the end.

``need("restic")`` skips the test, or fails it where ``ARRAYLIFT_REQUIRE_ALL=1`` promises that
everything is installed. The list of what was left out closes every run.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

_MISSING_MARK = "needs the program "


def need(*programs: str) -> None:
    """Skip (or fail) the running test unless every program is on the path."""
    for program in programs:
        if shutil.which(program) is None and shutil.which(program, path="/usr/sbin:/sbin") is None:
            lacking(f"{_MISSING_MARK}{program}")


def lacking(reason: str) -> NoReturn:
    """Skip the running test, or fail it where everything is promised to be there."""
    if os.environ.get("ARRAYLIFT_REQUIRE_ALL") == "1":
        pytest.fail(f"{reason}, and ARRAYLIFT_REQUIRE_ALL=1", pytrace=False)
    pytest.skip(reason)


def left_out(skip_reasons: list[str]) -> dict[str, int]:
    """Return how many tests each missing program left out, from the reasons of skipped tests."""
    counts: dict[str, int] = {}
    for reason in skip_reasons:
        _, mark, program = reason.partition(_MISSING_MARK)
        if mark:
            counts[program] = counts.get(program, 0) + 1
    return counts


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """List the programs that were missing."""
    reports = terminalreporter.stats.get("skipped", [])
    counts = left_out([str(report.longrepr[2]) for report in reports if isinstance(report.longrepr, tuple)])
    if counts:
        terminalreporter.section("left out for want of a program")
        for program, count in sorted(counts.items()):
            terminalreporter.line(f"{program}: {count} test{'s' if count > 1 else ''}")
