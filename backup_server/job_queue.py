"""Jobs that wait for a thread: in the order of their coming, some not before their time.

Callers: any thread. Bounded by the database: JOBS_UNFINISHED_MAX.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable


class JobQueue:
    """Ids of jobs; ``monotonic`` says the time, in seconds."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._changed = threading.Condition()
        self._heap: list[tuple[float, int, str]] = []
        self._count = 0
        self._closed = False

    def put(self, job_id: str, *, delay_seconds: float = 0.0) -> None:
        """Behind all that are there, or after that time."""
        with self._changed:
            self._count += 1
            # 0.0, not now: those without a delay keep their order whatever the clock does.
            due = self._monotonic() + delay_seconds if delay_seconds > 0 else 0.0
            heapq.heappush(self._heap, (due, self._count, job_id))
            self._changed.notify()

    def get(self) -> str | None:
        """Wait for the next; None: the queue was closed."""
        with self._changed:
            while not self._closed:
                wait = self._heap[0][0] - self._monotonic() if self._heap else None
                if wait is not None and wait <= 0:
                    return heapq.heappop(self._heap)[2]
                self._changed.wait(wait)
            return None

    def close(self) -> None:
        """Whoever waits, or comes, gets None."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
