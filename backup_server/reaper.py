"""Cleans up behind jobs and deletions that could not do it themselves, and keeps the cache in line.

Invariants:
  R1 a round touches only what bears the ids of this server's own jobs.
Callers: ``start`` and ``stop`` from the composition root; the rounds run in a thread of its own.
"""

from __future__ import annotations

import threading

from arraylift.logs import get_logger
from arraylift.outcome import attempt
from backup_server.backups import Backups
from backup_server.engine import Engine

JOIN_SECONDS = 30.0

_log = get_logger("reaper")


class Reaper:
    """One thread; the first round is at once."""

    def __init__(self, engine: Engine, backups: Backups, *, seconds: float) -> None:
        self._engine = engine
        self._backups = backups
        self._seconds = seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """No further round; ``join`` waits for the present one."""
        self._stop.set()

    def join(self) -> None:
        if self._thread.ident is not None:
            self._thread.join(JOIN_SECONDS)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.round()
            self._stop.wait(self._seconds)

    def round(self) -> None:
        """Sweep after jobs, finish deletions, read the targets, confirm the time to them."""
        for work, what in (
            (self._engine.sweep, "sweep"),
            (self._backups.finish_deletes, "deletions"),
            (self._backups.sync, "reading the targets"),
            (self._backups.confirm_times, "confirming the time"),
        ):
            if self._stop.is_set():
                return
            _, error = attempt(work, what)
            if error is not None:
                _log.warning("round_incomplete", what=what, error=str(error))
