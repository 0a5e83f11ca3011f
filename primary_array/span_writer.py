"""Write the spans of a restore beside the thread that verifies the next ones.

A write past the page cache waits for the disk, without the interpreter's lock: one
thread of its own hides that wait (DESIGN: receivers verify and hand to a writer).
Invariants:
  P1 spans are written in the order of ``put``; after ``drain`` all of them are.
  P2 after a write failed nothing more is written; ``put`` and ``drain`` raise that error.
Limits: SPANS_QUEUED_MAX spans wait. Callers: ``put`` and ``drain`` from any thread.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from functools import partial

from arraylift.errors import ArrayliftError
from arraylift.outcome import attempt

SPANS_QUEUED_MAX = 16

Job = tuple[int, bytes, bytes]
"""Span, plain bytes, leaf fingerprint."""


class SpanWriter:
    """One writer thread; ``close`` it."""

    def __init__(self, write: Callable[[int, bytes, bytes], None]) -> None:
        self._write = write
        self._jobs: queue.Queue[Job | None] = queue.Queue(SPANS_QUEUED_MAX)
        self._error: ArrayliftError | None = None
        self._thread = threading.Thread(target=self._run, name="span-writer", daemon=True)
        self._thread.start()

    def put(self, span: int, plain: bytes, leaf: bytes) -> None:
        """Queue a span; waits while the queue is full. Raises what a write raised (P2)."""
        self._check()
        self._jobs.put((span, plain, leaf))

    def drain(self) -> None:
        """Wait until everything queued is written. Raises what a write raised (P2)."""
        self._jobs.join()
        self._check()

    def close(self) -> None:
        """Write what is queued, then end the thread."""
        self._jobs.put(None)
        self._thread.join()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self._error is None:
                _, self._error = attempt(partial(self._write, *job), "writing a restored span")
            self._jobs.task_done()
