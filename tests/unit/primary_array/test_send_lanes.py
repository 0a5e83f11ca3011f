"""Items shared among workers: each once, at the transfer's rate, in turn with other transfers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import numpy as np
import pytest

from arraylift.errors import ArrayliftError, Cancelled, Conflict, PeerUnavailable
from arraylift.exchange.messages import Figures, Limits, Open
from arraylift.ids import TransferId
from arraylift.segments.segmentation import DEFAULT_SEGMENTATION
from arraylift.sizes import MIB
from primary_array import send_lanes
from primary_array.pool_reader import PoolFile
from primary_array.send_lanes import LaneRun, run_lanes
from primary_array.send_plan import GRANULES_PER_SPAN, ReadItem
from primary_array.send_worker import Cancel, Credit, Failed, Finished, LaneTask, Progress
from primary_array.transfer_control import RateLimit, TransferControl
from primary_array.worker_pool import Place, WorkerPool
from tests.e2e.daemon import wait_until

LIMITS = Limits()
WAIT_SECONDS = 20.0


class Worker:
    """A worker in a thread, which speaks the protocol of send_worker and remembers what it was handed."""

    def __init__(self, log: Log) -> None:
        self.pipe, self._far = Pipe()
        self.label = "thread"
        self.alive = True
        self._log = log
        threading.Thread(target=self._serve, daemon=True).start()

    def stop(self) -> None:
        self.alive = False
        self.pipe.close()

    def _serve(self) -> None:
        try:
            while True:
                task = self._far.recv()
                if isinstance(task, LaneTask):
                    self._lane(self._far, task)
        except (EOFError, OSError):
            self._far.close()

    def _lane(self, pipe: Connection, task: LaneTask) -> None:
        self._log.began(task)
        figures = Figures()
        while True:
            item = pipe.recv()
            if item is None:
                self._log.ended(task)
                pipe.send(Finished(figures))
                return
            if isinstance(item, Cancel):
                self._log.ended(task)
                pipe.send(Failed(Cancelled("cancelled"), figures))
                return
            pipe.send(Credit())
            error = self._log.handed(task, item)
            figures.spans_read += len(item.spans)
            if error is not None:
                self._log.ended(task)
                pipe.send(Failed(error, figures))
                return
            pipe.send(Progress(figures))


class Log:
    """What all workers of a test saw."""

    def __init__(self) -> None:
        self.lock = threading.Condition()
        self.items: list[tuple[str, int]] = []
        self.open: list[tuple[str, int]] = []
        self.lanes_most: dict[str, int] = {}
        self.fails: dict[int, ArrayliftError] = {}
        self.gate: Callable[[str], None] = lambda _: None

    def began(self, task: LaneTask) -> None:
        with self.lock:
            lane = (task.open.transfer_id, task.open.lane)
            assert lane not in self.open, "a number is used by one lane at a time"
            assert 1 <= task.open.lane <= task.lane_count
            self.open.append(lane)
            mine = sum(name == task.open.transfer_id for name, _ in self.open)
            self.lanes_most[lane[0]] = max(mine, self.lanes_most.get(lane[0], 0))
            self.lock.notify_all()

    def ended(self, task: LaneTask) -> None:
        with self.lock:
            self.open.remove((task.open.transfer_id, task.open.lane))

    def handed(self, task: LaneTask, item: ReadItem) -> ArrayliftError | None:
        self.gate(task.open.transfer_id)
        with self.lock:
            self.items.append((task.open.transfer_id, int(item.spans[0])))
            self.lock.notify_all()
        return self.fails.get(int(item.spans[0]))

    def spans(self, name: str) -> list[int]:
        with self.lock:
            return sorted(span for owner, span in self.items if owner == name)

    def wait(self, condition: Callable[[], bool]) -> None:
        with self.lock:
            assert self.lock.wait_for(condition, WAIT_SECONDS)


@pytest.fixture
def log() -> Log:
    return Log()


def pool_of(workers: int, log: Log) -> WorkerPool:
    return WorkerPool(workers, lambda: Worker(log))


def items(count: int) -> Iterator[ReadItem]:
    for span in range(count):
        yield ReadItem(np.array([span], "<u4"), np.ones(GRANULES_PER_SPAN, np.uint64), sample=False)


def task(name: str) -> LaneTask:
    opening = Open(TransferId(name), b"", 1, 0, MIB, DEFAULT_SEGMENTATION, None)
    return LaneTask(opening, 2, b"", "nowhere", None, PoolFile(""))  # type: ignore[arg-type]


class Transfer(threading.Thread):
    """run_lanes in a thread."""

    def __init__(
        self, pool: WorkerPool, name: str, count: int, control: TransferControl | None = None
    ) -> None:
        super().__init__(daemon=True)
        self.result = LaneRun()
        self.control = control or TransferControl()
        self.error: BaseException | None = None
        self.reports = 0
        self._do = lambda: run_lanes(
            self.result,
            pool,
            task(name),
            items(count),
            LIMITS,
            control=self.control,
            progressed=self._progressed,
        )
        self.start()

    def _progressed(self, _run: LaneRun) -> None:
        self.reports += 1

    def run(self) -> None:
        try:
            self._do()
        except ArrayliftError as error:
            self.error = error

    def finish(self) -> None:
        self.join(WAIT_SECONDS)
        assert not self.is_alive()
        if self.error is not None:
            raise self.error


def test_every_item_goes_to_one_worker(log: Log) -> None:
    pool = pool_of(2, log)
    transfer = Transfer(pool, "a", 200)
    transfer.finish()
    assert log.spans("a") == list(range(200))
    assert transfer.result.figures.spans_read == 200
    assert log.lanes_most["a"] == 2
    assert not log.open
    Transfer(pool, "empty", 0).finish()
    pool.close()


def test_the_first_error_ends_all_lanes_and_the_workers_are_free_again(log: Log) -> None:
    pool = pool_of(2, log)
    log.fails = {20: Conflict("lost")}
    with pytest.raises(Conflict, match="lost"):
        Transfer(pool, "a", 1_000).finish()
    assert not log.open, "W2"
    log.fails = {}
    Transfer(pool, "b", 50).finish()
    assert log.spans("b") == list(range(50))
    pool.close()


def test_a_dead_worker_is_replaced_and_the_attempt_can_be_repeated(log: Log) -> None:
    pool = pool_of(1, log)
    victims: list[Worker] = []

    def kill(_name: str) -> None:
        if victims:
            log.open.clear()
            victims.pop()._far.close()
            raise EOFError

    worker = pool._idle[0]
    assert isinstance(worker, Worker)
    victims.append(worker)
    log.gate = kill
    with pytest.raises(PeerUnavailable, match="worker died"):
        Transfer(pool, "a", 10).finish()
    Transfer(pool, "a", 10).finish()
    assert log.spans("a") == list(range(10))
    pool.close()


def test_a_worker_that_cannot_be_started_now_is_started_later(log: Log) -> None:
    """Processes are short: whoever borrows is told, and no place for a worker is lost for good."""
    short = False

    def start() -> Worker:
        if short:
            raise BlockingIOError("no process")
        return Worker(log)

    pool = WorkerPool(2, start)
    lent = [pool.borrow(Place(), 0), pool.borrow_further()]
    short = True
    for worker in lent:
        assert worker is not None
        pool.give_back(worker, broken=True)
    for _ in range(3):
        with pytest.raises(PeerUnavailable, match="started"):
            pool.borrow(Place(), 0)
        assert pool.borrow_further() is None
    assert not pool.crowded
    short = False
    Transfer(pool, "a", 200).finish()
    assert log.lanes_most["a"] == 2
    assert log.spans("a") == list(range(200))
    for worker in (pool.borrow(Place(), 0), pool.borrow_further()):
        assert worker is not None
        worker.stop()
        pool.give_back(worker, broken=False)
    short = True
    with pytest.raises(PeerUnavailable, match="started"):
        Transfer(pool, "b", 5).finish()
    short = False
    Transfer(pool, "b", 200).finish()
    assert log.lanes_most["b"] == 2
    pool.close()


def test_cancelling_ends_a_transfer_that_waits_for_its_rate(log: Log) -> None:
    pool = pool_of(2, log)
    control = TransferControl(rate=RateLimit(MIB))
    transfer = Transfer(pool, "a", 10_000, control)
    log.wait(lambda: bool(log.items))
    control.cancelled.set()
    with pytest.raises(Cancelled):
        transfer.finish()
    assert not log.open
    assert len(log.items) < 20, "it was slow"
    pool.close()


def test_the_rate_holds_over_all_lanes_and_can_be_changed(log: Log) -> None:
    class Still:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

        def wall_ns(self) -> int:
            return 0

    clock = Still()
    control = TransferControl(rate=RateLimit(10 * MIB, clock=clock))
    pool = pool_of(2, log)
    transfer = Transfer(pool, "a", 100, control)
    log.wait(lambda: len(log.items) == 6)  # a burst of 5, and the one that overdraws it
    reports = transfer.reports
    while transfer.reports < reports + 5:
        assert len(log.items) == 6, "W3: time stands still"
    clock.now = 1.0
    log.wait(lambda: len(log.items) == 12 or len(log.items) == 11)
    control.rate.change(0)
    transfer.finish()
    assert log.spans("a") == list(range(100))
    pool.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_transfers_take_turns(log: Log, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(send_lanes, "SLICE_SECONDS", 0.05)
    pool = pool_of(workers, log)
    others: list[Transfer] = []
    seen = threading.Event()

    def gate(name: str) -> None:
        if name == "long" and not seen.is_set():
            threading.Event().wait(0.002)

    log.gate = gate
    long = Transfer(pool, "long", 1_000_000)
    log.wait(lambda: bool(log.items))
    others.extend(Transfer(pool, f"short{number}", 40) for number in range(3))
    for number, other in enumerate(others):
        other.finish()
        assert log.spans(f"short{number}") == list(range(40))
    assert long.is_alive(), "W4: nobody waited for its end"
    done = len(log.spans("long"))
    log.wait(lambda: len([1 for name, _ in log.items if name == "long"]) > done + 10)
    long.control.cancelled.set()
    with pytest.raises(Cancelled):
        long.finish()
    spans = log.spans("long")
    assert len(spans) == len(set(spans)), "W1"
    pool.close()


def test_who_waits_for_a_worker_can_be_cancelled_and_leaves_the_queue(log: Log) -> None:
    pool = pool_of(1, log)
    taken = pool.borrow(Place(), 0)
    assert taken is not None
    transfer = Transfer(pool, "a", 5)
    wait_until(lambda: pool.crowded, "it waits for a worker")
    assert pool.borrow_further() is None
    transfer.control.cancelled.set()
    with pytest.raises(Cancelled):
        transfer.finish()
    assert not pool.crowded
    pool.give_back(taken, broken=False)
    Transfer(pool, "b", 5).finish()
    pool.close()
    with pytest.raises(Cancelled, match="stopping"):
        pool.borrow(Place(), 0)
