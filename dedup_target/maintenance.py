"""One maintenance at a time a unit: collect, move, drain, rebuild, survey.

Each of them takes for granted that nobody else moves containers about. Whoever comes second
is told what runs, and tries again; nobody waits.
Invariants:
  A1 at most one name is running; it is given back however the work ends.
Callers: any thread.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from arraylift.errors import Conflict


class Maintenance:
    """Of one unit, which ``subject`` names in errors."""

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._lock = threading.Lock()
        self._running = ""

    @property
    def running(self) -> str:
        """What runs now, or nothing."""
        return self._running

    @contextlib.contextmanager
    def begin(self, name: str) -> Iterator[None]:
        """Be the only one inside. Raises Conflict naming what runs (A1)."""
        assert name
        with self._lock:
            if self._running:
                raise Conflict(
                    f"{self._running} of {self._subject} is under way, so {name} cannot begin",
                    subject=self._subject,
                    next_step="repeat it when that has ended, or cancel that",
                )
            self._running = name
        try:
            yield
        finally:
            self._running = ""
