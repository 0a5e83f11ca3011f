"""The daemon's worker processes: started once, lent to transfers, replaced when they die.

Limits: ``workers`` processes; a transfer waits its turn for at least one.
Callers: any thread.
"""

from __future__ import annotations

import multiprocessing
import threading
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from arraylift.errors import Cancelled
from arraylift.logs import get_logger
from primary_array import send_worker

_WAIT_SECONDS = 0.5
_STOP_SECONDS = 5.0

_log = get_logger("worker_pool")


class WorkerHandle:
    """One process and our end of its pipe; belongs to one transfer at a time."""

    def __init__(self, context: multiprocessing.context.SpawnContext) -> None:
        self.pipe: Connection
        self.pipe, far_end = context.Pipe()
        self._process: BaseProcess = context.Process(
            target=send_worker.main, args=(far_end,), name="arraylift-send-worker", daemon=True
        )
        self._process.start()
        far_end.close()

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def stop(self) -> None:
        """End the process; it has nothing to lose."""
        self.pipe.close()
        self._process.join(_STOP_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(_STOP_SECONDS)


class WorkerPool:
    """Lends idle workers."""

    def __init__(self, workers: int) -> None:
        assert workers >= 1
        self._context = multiprocessing.get_context("spawn")
        self._condition = threading.Condition()
        self._idle = [WorkerHandle(self._context) for _ in range(workers)]
        self._closed = False

    def borrow(self, at_most: int, cancelled: threading.Event) -> list[WorkerHandle]:
        """Return 1..at_most idle workers, waiting for the first. Raises Cancelled."""
        with self._condition:
            while not self._idle:
                if cancelled.is_set() or self._closed:
                    raise Cancelled("the transfer was cancelled while it waited for a worker")
                self._condition.wait(_WAIT_SECONDS)
            lent = [self._idle.pop() for _ in range(min(at_most, len(self._idle)))]
        return [worker if worker.alive else self._replaced(worker) for worker in lent]

    def give_back(self, workers: list[WorkerHandle], *, broken: bool) -> None:
        """Return workers; broken ones (mid-task, dead) are replaced."""
        fresh = [self._replaced(worker) if broken else worker for worker in workers]
        with self._condition:
            self._idle.extend(fresh)
            self._condition.notify_all()

    def _replaced(self, worker: WorkerHandle) -> WorkerHandle:
        _log.warning("worker_replaced", pid=worker._process.pid)
        worker.stop()
        return WorkerHandle(self._context)

    def close(self) -> None:
        """Stop all idle workers; lent ones end with their pipes."""
        with self._condition:
            self._closed = True
            idle, self._idle = self._idle, []
            self._condition.notify_all()
        for worker in idle:
            worker.stop()
