"""Feed worker processes with reads and gather what they report.

Invariants:
  W1 each read item goes to one worker; a lane that fails ends the attempt, and the
     target's durable spans decide what the next attempt reads again.
  W2 when this returns, no worker of the attempt is running, however it ended.
Callers: send.py; one thread a worker here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from arraylift.errors import Cancelled, PeerUnavailable
from arraylift.exchange.messages import Figures, Limits
from primary_array.send_plan import ReadItem
from primary_array.send_worker import (
    ITEMS_AHEAD,
    Cancel,
    Credit,
    Failed,
    Finished,
    LaneTask,
    Progress,
)
from primary_array.worker_pool import WorkerHandle, WorkerPool

LANES_MAX = 2
"""Worker lanes of one transfer: more than the cores of a small machine gains nothing."""
_PIPE_SECONDS = 0.2
_CANCEL_SECONDS = 10.0


@dataclass(slots=True)
class LaneRun:
    """What the lanes of one attempt have done so far; complete when run_lanes returns."""

    lanes: dict[int, Figures] = field(default_factory=dict)

    @property
    def figures(self) -> Figures:
        """Sum over the lanes."""
        total = Figures()
        for figures in list(self.lanes.values()):
            total.add(figures)
        # Each lane is told what the whole transfer stored so far.
        total.bytes_stored = max((figures.bytes_stored for figures in list(self.lanes.values())), default=0)
        return total


def run_lanes(
    run: LaneRun,
    workers: WorkerPool,
    task: LaneTask,
    items: Iterator[ReadItem],
    limits: Limits,
    *,
    cancelled: threading.Event,
    progressed: Callable[[LaneRun], None],
) -> None:
    """Send every item. Raises the first lane's error, Cancelled."""
    first = next(items, None)
    if first is None:
        return
    feed = _Feed(first, items)
    lent = workers.borrow(min(LANES_MAX, limits.lanes_max), cancelled)
    lanes = [_LaneThread(number, worker, feed, run, cancelled) for number, worker in enumerate(lent, start=1)]
    try:
        for lane in lanes:
            opening = replace(task.open, lane=lane.number)
            lane.start(replace(task, open=opening, lane_count=len(lanes)))
        while any(lane.running for lane in lanes):
            feed.changed.wait(_PIPE_SECONDS)
            feed.changed.clear()
            progressed(run)
            if feed.error is not None or cancelled.is_set():
                for lane in lanes:
                    lane.cancel()
    finally:
        feed.stop()
        broken = [lane for lane in lanes if not lane.join()]
        workers.give_back([lane.worker for lane in lanes if lane not in broken], broken=False)
        workers.give_back([lane.worker for lane in broken], broken=True)
    if feed.error is not None:
        raise feed.error
    if cancelled.is_set():
        raise Cancelled("the transfer was cancelled")


class _Feed:
    """The reads that are left, shared by the lanes, and the first error."""

    def __init__(self, first: ReadItem, items: Iterator[ReadItem]) -> None:
        self._first: ReadItem | None = first
        self._items = items
        self._lock = threading.Lock()
        self._stopped = False
        self.changed = threading.Event()
        self.error: Exception | None = None

    def take(self) -> ReadItem | None:
        with self._lock:
            if self._stopped:
                return None
            if self._first is not None:
                first, self._first = self._first, None
                return first
            return next(self._items, None)

    def fail(self, error: Exception) -> None:
        with self._lock:
            if self.error is None or isinstance(self.error, Cancelled):
                self.error = error
            self._stopped = True
        self.changed.set()

    def stop(self) -> None:
        with self._lock:
            self._stopped = True


class _LaneThread:
    """Talks to one worker over its pipe until it has finished or failed."""

    def __init__(
        self,
        number: int,
        worker: WorkerHandle,
        feed: _Feed,
        run: LaneRun,
        cancelled: threading.Event,
    ) -> None:
        self.number = number
        self.worker = worker
        self._feed = feed
        self._run = run
        self._cancelled = cancelled
        self._cancel_sent = False
        self._thread: threading.Thread | None = None
        self._clean = False

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self, task: LaneTask) -> None:
        self.worker.pipe.send(task)
        self._thread = threading.Thread(target=self._talk, name=f"send-lane-{self.number}", daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        if not self._cancel_sent:
            self._cancel_sent = True
            self._send(Cancel())

    def join(self) -> bool:
        """Wait for the lane to end (W2); False if its worker must be replaced."""
        if self._thread is None:
            return self._clean
        if self.running:
            self.cancel()
        self._thread.join(_CANCEL_SECONDS)
        return self._clean and not self.running

    def _send(self, message: object) -> None:
        try:
            self.worker.pipe.send(message)
        except OSError:
            self._feed.fail(
                PeerUnavailable("a backup worker died", next_step="the transfer resumes by itself")
            )

    def _talk(self) -> None:
        try:
            for _ in range(ITEMS_AHEAD):
                self._send(self._feed.take())
            while True:
                message = self.worker.pipe.recv()
                if isinstance(message, Credit):
                    self._send(self._feed.take())
                    continue
                assert isinstance(message, Progress | Finished | Failed)
                self._run.lanes[self.number] = message.figures
                if isinstance(message, Failed):
                    self._feed.fail(message.error)
                self._feed.changed.set()
                if not isinstance(message, Progress):
                    self._clean = True
                    return
        except (EOFError, OSError):
            self._feed.fail(
                PeerUnavailable("a backup worker died", next_step="the transfer resumes by itself")
            )
