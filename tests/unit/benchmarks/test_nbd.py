"""Figures of NBD are held against the goals as they are written."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from benchmarks.nbd import BUSY_CASES, CASES, OURS, THEIRS, Figures, _show


def figures(factor: float, busy: float) -> Figures:
    """Ours are ``factor`` times the goals; ``busy`` is the share that is kept during backups."""
    found = Figures()
    for case in CASES:
        for way in ("TCP", "Unix socket"):
            found.samples[case.name, way, OURS] = [(case.least or 1) * factor]
            found.samples[case.name, way, THEIRS] = [1.0]
    for case in BUSY_CASES:
        found.busy[case.name] = [(case.least or 1) * factor * busy]
    return found


@pytest.mark.parametrize(
    ("factor", "busy", "reached"), [(1.0, 0.5, True), (0.99, 1.0, False), (2.0, 0.49, False)]
)
def test_each_goal_counts(factor: float, busy: float, reached: bool) -> None:
    out = io.StringIO()
    assert _show(figures(factor, busy), Console(file=out, width=200)) == reached
    assert ("no" in out.getvalue().split()) == (not reached)


def test_the_goals_are_those_that_were_set() -> None:
    assert [case.least for case in CASES] == [500, 300, 10_000, 10_000, None]
