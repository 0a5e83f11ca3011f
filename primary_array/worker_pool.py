"""The daemon's worker processes: started once, lent to transfers, replaced when they die.

Invariants:
  P1 a transfer without a worker gets the next one that is free, first come first served; one that has a
     worker gets a further one only while nobody waits.
  P2 whoever holds workers looks at ``crowded`` and gives back, so that nobody waits for a whole transfer.
  P3 a worker that cannot be started leaves its place vacant, for the next who borrows to start one: there
     are never fewer places than ``size``.
Limits: ``size`` processes. Callers: any thread.
"""

from __future__ import annotations

import multiprocessing
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Protocol

from arraylift.errors import Cancelled, PeerUnavailable
from arraylift.logs import get_logger
from primary_array import send_worker

_STOP_SECONDS = 5.0

_log = get_logger("worker_pool")


class WorkerHandle(Protocol):
    """One worker and our end of its pipe; belongs to one transfer at a time."""

    @property
    def pipe(self) -> Connection: ...
    @property
    def label(self) -> str: ...
    @property
    def alive(self) -> bool: ...
    def stop(self) -> None:
        """End it, whatever it does; it has nothing to lose."""
        ...


class ProcessWorker:
    """A worker in a process of its own."""

    def __init__(self, context: multiprocessing.context.SpawnContext) -> None:
        self.pipe: Connection
        self.pipe, far_end = context.Pipe()
        self._process: BaseProcess = context.Process(
            target=send_worker.main, args=(far_end,), name="arraylift-send-worker", daemon=True
        )
        self._process.start()
        far_end.close()

    @property
    def label(self) -> str:
        return f"pid {self._process.pid}"

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def stop(self) -> None:
        self.pipe.close()
        self._process.join(_STOP_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(_STOP_SECONDS)


class Place:
    """A transfer's place in the queue for workers; compared by identity."""


class WorkerPool:
    """Lends idle workers."""

    def __init__(self, workers: int, start: Callable[[], WorkerHandle] | None = None) -> None:
        assert workers >= 1
        self.size = workers
        self._start = start or partial(ProcessWorker, multiprocessing.get_context("spawn"))
        self._condition = threading.Condition()
        self._idle: list[WorkerHandle | None] = [self._start() for _ in range(workers)]
        """None: vacant (P3)."""
        self._queue: deque[Place] = deque()
        self._closed = False

    @property
    def crowded(self) -> bool:
        """True while a transfer waits for its first worker (P2)."""
        return bool(self._queue)

    def borrow(self, place: Place, wait_seconds: float) -> WorkerHandle | None:
        """Return a worker, or None after ``wait_seconds``; the place in the queue is kept until there is one.

        Raises Cancelled when the daemon stops, PeerUnavailable where no process can be started.
        """
        with self._condition:
            if place not in self._queue:
                self._queue.append(place)
            self._condition.wait_for(
                lambda: self._closed or (self._idle and self._queue[0] is place), wait_seconds
            )
            if self._closed:
                raise Cancelled("the array is stopping", next_step="repeat when it is back")
            if not self._idle or self._queue[0] is not place:
                return None
            self._queue.popleft()
            lent = self._idle.pop()
            self._condition.notify_all()
        living = self._living(lent)
        if living is None:
            raise PeerUnavailable(
                "no backup worker can be started", next_step="free memory or processes; the transfer resumes"
            )
        return living

    def borrow_further(self) -> WorkerHandle | None:
        """Return a worker that nobody waits for, if there is one (P1)."""
        with self._condition:
            if self._queue or not self._idle:
                return None
            lent = self._idle.pop()
        return self._living(lent)

    def leave(self, place: Place) -> None:
        """Give up waiting; fine if nobody waits."""
        with self._condition:
            if place in self._queue:
                self._queue.remove(place)
                self._condition.notify_all()

    def give_back(self, worker: WorkerHandle, *, broken: bool) -> None:
        """Return a worker; a broken one (mid-task, dead) is replaced."""
        fresh = self._started(worker) if broken else worker
        with self._condition:
            closed = self._closed
            if not closed:
                self._idle.append(fresh)
            self._condition.notify_all()
        if closed and fresh is not None:
            fresh.stop()

    def _living(self, lent: WorkerHandle | None) -> WorkerHandle | None:
        """Return it, or a new one where it has died; None where there is none to be had (P3)."""
        if lent is not None and lent.alive:
            return lent
        fresh = self._started(lent)
        if fresh is None:
            with self._condition:
                self._idle.append(None)
                self._condition.notify_all()
        return fresh

    def _started(self, instead: WorkerHandle | None) -> WorkerHandle | None:
        """Return a new worker; None where the system gives no process (P3)."""
        if instead is not None:
            _log.warning("worker_replaced", worker=instead.label)
            instead.stop()
        try:
            return self._start()
        except OSError as error:
            _log.error("worker_not_started", error=str(error))
            return None

    def close(self) -> None:
        """Stop all idle workers; lent ones end with their pipes."""
        with self._condition:
            self._closed = True
            idle, self._idle = self._idle, []
            self._condition.notify_all()
        for worker in idle:
            if worker is not None:
                worker.stop()
