"""Share the reads of one attempt among worker processes, at the transfer's rate, and gather what they report.

Invariants:
  W1 each read item goes to one worker; a lane that fails ends the attempt, and the
     target's durable spans decide what the next attempt reads again.
  W2 when this returns, no worker of the attempt is running, however it ended.
  W3 items are handed out at the transfer's rate, whichever lane asks (transfer_control R1).
  W4 while another transfer waits for a worker, this one goes on with one, and gives that back too after
     SLICE_SECONDS; the lane ends durably, so nothing of it is read again.
Limits: LANES_MAX lanes at once; ITEMS_AHEAD items a lane on their way to its worker.
Callers: send.py, the transfer's thread; each lane has a thread here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count

from arraylift.clock import SYSTEM_CLOCK, Clock
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
from primary_array.transfer_control import RateLimit, TransferControl
from primary_array.worker_pool import Place, WorkerHandle, WorkerPool

LANES_MAX = 2
"""Worker lanes of one transfer: more than the cores of a small machine gains nothing."""
SLICE_SECONDS = 5.0
"""How long a transfer keeps its last worker while another has none."""
_TICK_SECONDS = 0.1
_CANCEL_SECONDS = 10.0


@dataclass(slots=True)
class LaneRun:
    """What the lanes of one attempt have done so far; complete when run_lanes returns."""

    lanes: dict[int, Figures] = field(default_factory=dict)
    """By a number that no two lanes of the attempt share."""

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
    control: TransferControl,
    progressed: Callable[[LaneRun], None],
    clock: Clock = SYSTEM_CLOCK,
) -> None:
    """Send every item, in at most ``task.lane_count`` lanes. Raises the first lane's error, Cancelled."""
    first = next(items, None)
    if first is None:
        return
    feed = _Feed(first, items, control.rate)
    lanes_max = max(1, min(LANES_MAX, task.lane_count, workers.size, limits.lanes_max - 1))
    lanes = _Lanes(run, workers, replace(task, lane_count=lanes_max), feed, clock)
    try:
        while not control.cancelled.is_set() and lanes.go_on():
            feed.changed.wait(_TICK_SECONDS)
            feed.changed.clear()
            progressed(run)
    finally:
        feed.stop()
        lanes.end()
    if feed.error is not None:
        raise feed.error
    if control.cancelled.is_set():
        raise Cancelled("the transfer was cancelled")


class _Feed:
    """The reads that are left, shared by the lanes, and the first error."""

    def __init__(self, first: ReadItem, items: Iterator[ReadItem], rate: RateLimit) -> None:
        self._next: ReadItem | None = first
        self._items = items
        self._rate = rate
        self._lock = threading.Lock()
        self.changed = threading.Event()
        self.error: Exception | None = None

    @property
    def empty(self) -> bool:
        return self._next is None

    def take(self) -> tuple[ReadItem | None, float]:
        """Return the next item and 0; None and 0 at the end; or None and the seconds to wait (W3)."""
        with self._lock:
            item = self._next
            if item is None:
                return None, 0.0
            seconds = self._rate.take(item.bytes_to_read)
            if seconds:
                return None, seconds
            self._next = next(self._items, None)
            return item, 0.0

    def fail(self, error: Exception) -> None:
        with self._lock:
            if self.error is None or isinstance(self.error, Cancelled):
                self.error = error
            self._next, self._items = None, iter(())
        self.changed.set()

    def stop(self) -> None:
        with self._lock:
            self._next, self._items = None, iter(())


class _Lanes:
    """The lanes that run now; the transfer's thread starts and ends them."""

    def __init__(self, run: LaneRun, workers: WorkerPool, task: LaneTask, feed: _Feed, clock: Clock) -> None:
        self._run = run
        self._workers = workers
        self._task = task
        self._feed = feed
        self._clock = clock
        self._place = Place()
        self._keys = count(1)
        self._running: dict[int, _LaneThread] = {}
        """By the lane's number in the exchange, which is free again when it has ended."""

    def go_on(self) -> bool:
        """Take back ended lanes, start new ones, give way (W4); False when there is nothing left to do."""
        for number, lane in list(self._running.items()):
            if not lane.running:
                self._take_back(number)
        if self._feed.error is not None:
            return False
        if self._feed.empty:
            return bool(self._running)
        self._start_lanes()
        self._give_way()
        return True

    def end(self) -> None:
        """Stop what runs, and give every worker back (W2)."""
        self._workers.leave(self._place)
        for lane in self._running.values():
            lane.cancel()
        for number in list(self._running):
            self._take_back(number)

    def _start_lanes(self) -> None:
        while len(self._running) < self._task.lane_count and not self._feed.empty:
            if self._running:
                worker = self._workers.borrow_further()
            else:
                worker = self._workers.borrow(self._place, _TICK_SECONDS)
            if worker is None:
                return
            number = min(set(range(1, self._task.lane_count + 1)) - self._running.keys())
            lane = _LaneThread(next(self._keys), worker, self._feed, self._run, self._clock.monotonic())
            self._running[number] = lane
            lane.start(replace(self._task, open=replace(self._task.open, lane=number)))

    def _give_way(self) -> None:
        staying = [lane for lane in self._running.values() if not lane.retiring]
        if not self._workers.crowded or not staying:
            return
        newest = max(staying, key=lambda lane: lane.started_at)
        if len(staying) > 1 or self._clock.monotonic() - newest.started_at > SLICE_SECONDS:
            newest.retire()

    def _take_back(self, number: int) -> None:
        lane = self._running.pop(number)
        broken = not lane.join()
        self._workers.give_back(lane.worker, broken=broken)


class _LaneThread:
    """Talks to one worker over its pipe until it has finished or failed."""

    def __init__(self, key: int, worker: WorkerHandle, feed: _Feed, run: LaneRun, started_at: float) -> None:
        self.worker = worker
        self.started_at = started_at
        self.retiring = False
        self._key = key
        self._feed = feed
        self._run = run
        self._sending = threading.Lock()
        self._credits = ITEMS_AHEAD
        self._told_end = False
        self._cancel_sent = False
        self._thread: threading.Thread | None = None
        self._clean = False

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self, task: LaneTask) -> None:
        self._send(task)
        thread = threading.Thread(target=self._talk, name=f"send-lane-{self._key}", daemon=True)
        thread.start()
        self._thread = thread  # one that could not be started is not waited for

    def retire(self) -> None:
        """Have it end when it has sent what it was handed."""
        self.retiring = True

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
            with self._sending:
                self.worker.pipe.send(message)
        except OSError:
            self._feed.fail(_worker_died())

    def _talk(self) -> None:
        try:
            while True:
                if not self.worker.pipe.poll(self._hand_out()):
                    continue
                message = self.worker.pipe.recv()
                if isinstance(message, Credit):
                    self._credits += 1
                    continue
                assert isinstance(message, Progress | Finished | Failed)
                self._run.lanes[self._key] = message.figures
                if isinstance(message, Failed):
                    self._feed.fail(message.error)
                if not isinstance(message, Progress):
                    self._clean = True
                    return
                self._feed.changed.set()
        except (EOFError, OSError):
            self._feed.fail(_worker_died())
        finally:
            self._feed.changed.set()

    def _hand_out(self) -> float:
        """Send what the worker has credit for and the rate allows; return when to look again."""
        while self._credits and not self._told_end:
            item, seconds = (None, 0.0) if self.retiring else self._feed.take()
            if seconds:
                return min(seconds, _TICK_SECONDS)
            self._send(item)
            self._credits -= 1
            self._told_end = item is None
        return _TICK_SECONDS


def _worker_died() -> PeerUnavailable:
    return PeerUnavailable("a backup worker died", next_step="the transfer resumes by itself")
