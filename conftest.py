"""Only here may pytest plugins be named; everything else is in tests/."""

from __future__ import annotations

import signal

pytest_plugins = ["tests.programs", "tests.e2e.running"]


def pytest_configure() -> None:
    """A shell without job control starts its background jobs with SIGINT ignored, and programs
    that the tests start and interrupt would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
