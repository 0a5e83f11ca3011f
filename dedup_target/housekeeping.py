"""Background work that comes round: one thread a task, each named, with an interval and a stop.

Whoever owns a piece of periodic work gives it here; the composition root starts and stops them all.
Invariants:
  P1 a task never runs twice at once, and never while the daemon closes what it works on:
     ``close`` returns when no task runs.
  P2 a task that fails is logged and comes round again; it ends no other.
Tasks wait for their interval and up to a tenth more, so that those of many daemons spread out. The
first run comes after the first wait, since every start has enough to do.
Limits: TASKS_MAX tasks. Callers: ``add`` before ``start``; ``run_soon`` from any thread.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from functools import partial

from arraylift.logs import get_logger
from arraylift.outcome import attempt

TASKS_MAX = 16
_JITTER = 1000

Work = Callable[[threading.Event], None]
"""One round of a task; it looks at the event between its steps, and ends soon when that is set."""

_log = get_logger("housekeeping")


class _Task:
    def __init__(self, name: str, interval_seconds: float, work: Work, stopping: threading.Event) -> None:
        self.name = name
        self._interval_seconds = interval_seconds
        self._work = work
        self._stopping = stopping
        self._wake = threading.Event()
        self.thread = threading.Thread(target=self._run, name=f"keep-{name}", daemon=True)

    def wake(self) -> None:
        self._wake.set()

    def _wait(self) -> None:
        """Until the next round, or until somebody asks for it; for ever where there is no interval."""
        jitter = 1 + secrets.randbelow(_JITTER) / (10 * _JITTER)
        self._wake.wait(self._interval_seconds * jitter if self._interval_seconds else None)
        self._wake.clear()

    def _run(self) -> None:
        while True:
            self._wait()
            if self._stopping.is_set():
                return
            _, error = attempt(partial(self._work, self._stopping), f"task {self.name}")
            if error is not None:
                _log.warning("task_failed", task=self.name, error=str(error))


class Housekeeping:
    """The periodic tasks of one daemon."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._tasks: dict[str, _Task] = {}

    def add(self, name: str, interval_seconds: float, work: Work) -> None:
        """Have ``work`` done every so often; 0: only when ``run_soon`` asks for it."""
        assert name not in self._tasks
        assert len(self._tasks) < TASKS_MAX
        self._tasks[name] = _Task(name, interval_seconds, work, self._stopping)

    def start(self) -> None:
        """Begin all waits."""
        for task in self._tasks.values():
            task.thread.start()

    def run_soon(self, name: str) -> None:
        """Have a task run now, or once more right after the round that is under way."""
        self._tasks[name].wake()

    def close(self) -> None:
        """Stop every task and wait for those that run (P1)."""
        self._stopping.set()
        for task in self._tasks.values():
            task.wake()
        for task in self._tasks.values():
            if task.thread.is_alive():
                task.thread.join()
