"""One job on its way: steps that are done once, retries, progress, cancellation.

Owns: the job's rows in the database while it runs.
Invariants:
  N1 a step whose end was recorded never runs again, over restarts; its result comes from the
     record. A step that began and did not end runs again: what it does must be idempotent.
  N2 a step's beginning is recorded before it does anything: what no step began needs no cleaning.
  N3 once ``begin_commit`` returned, nobody can cancel the job.
  N4 a job that is stopped (the server goes down) records nothing more: it goes on at the next start.
Callers: the engine's thread for this job, and threads that ``in_parallel`` makes; ``cancel``,
``stop`` and the views from any thread.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

from arraylift.clock import Clock
from arraylift.errors import ArrayliftError, Cancelled, LeaseLost, NotFound, PeerUnavailable, WrongState
from arraylift.exchange.messages import Figures
from arraylift.logs import get_logger
from backup_server import documents
from backup_server.job_rules import (
    DISKS_PER_JOB_MAX,
    Job,
    Pacing,
    Step,
    is_retryable,
    pause_before,
)
from backup_server.model import Receipt
from backup_server.ports import Transfer
from backup_server.server_db import ServerDb

_log = get_logger("job")

T = TypeVar("T")
Item = TypeVar("Item")

PUBLISH = "publish"
"""The step that commits a backup."""

SWAP = "swap"
"""The step that commits a restore in place."""

COMMITS = frozenset({PUBLISH, SWAP})


class Stopped(BaseException):
    """The server is going down (N4)."""


@dataclass(slots=True)
class DiskProgress:
    """How far one disk is."""

    spans_total: int
    spans_done: int = 0
    figures: Figures = field(default_factory=Figures)


class JobRun:
    """See the module's invariants. ``hook`` is told every boundary: failpoints in production."""

    def __init__(
        self, job: Job, db: ServerDb, *, clock: Clock, pacing: Pacing, hook: Callable[[str], None]
    ) -> None:
        self.job = job
        self.pacing = pacing
        self.progress: dict[str, DiskProgress] = {}
        self.left_something = False
        """It succeeded, and the reaper is to clean up all the same."""
        self.cleaning = False
        """Cleaning up: neither cancelled nor failed any more, only stopped."""
        self._db = db
        self._clock = clock
        self._hook = hook
        self._lock = threading.Lock()
        self._steps = {step.name: step for step in db.steps(job.job_id)}
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._cancelled = job.cancel_asked
        self._fatal: ArrayliftError | None = None
        self._committing = not COMMITS.isdisjoint(self._steps)
        self._transfers: set[Transfer] = set()
        self._moves, self._moved_at = 0, 0.0
        self._troubles: dict[str, str] = {}

    # -- from outside -----------------------------------------------------------------------

    def cancel(self) -> None:
        """Ask the job to end. Raises WrongState (N3)."""
        with self._lock:
            if self._committing:
                raise WrongState(
                    f"job {self.job.job_id} is past its commit",
                    subject=f"job {self.job.job_id}",
                    next_step="let it end; then delete the backup, or set the volumes back, if that is meant",
                )
            self.job = self._db.update_job(self.job.job_id, cancel_asked=True)
            self._cancelled = True
        self._interrupt()

    def stop(self) -> None:
        """Let go, as soon as the present call ends (N4)."""
        self._stopping.set()
        self._interrupt()

    def _interrupt(self) -> None:
        self._wake.set()
        with self._lock:
            transfers = list(self._transfers)
        for transfer in transfers:
            transfer.cancel()

    def steps(self) -> list[Step]:
        """In the order in which they began; one that is tried again says why."""
        with self._lock:
            steps = list(self._steps.values())
        troubles = dict(self._troubles)
        return [
            replace(step, detail=f"tried again: {troubles[step.name]}")
            if step.name in troubles and not step.ended_at_ns
            else step
            for step in steps
        ]

    # -- state ------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise Stopped, Cancelled or what failed the job, if anything did."""
        if self._stopping.is_set():
            raise Stopped
        if self.cleaning:
            return
        if self._fatal is not None:
            raise self._fatal
        if self._cancelled and not self._committing:
            raise Cancelled(f"job {self.job.job_id} was cancelled")

    def fail(self, error: ArrayliftError) -> None:
        """End the job with this error, whatever its threads do."""
        with self._lock:
            self._fatal = self._fatal or error
        self._interrupt()

    @property
    def was_cancelled(self) -> bool:
        """Somebody asked for its end, in time."""
        return self._cancelled and not self._committing

    def save(self, **changes: object) -> None:
        """Change fields of the job, durably."""
        with self._lock:
            self.job = self._db.update_job(self.job.job_id, **changes)

    def end(self, then: Sequence[Job], **changes: object) -> None:
        """Change fields of the job and accept the jobs that follow it, in one transaction."""
        with self._lock:
            self.job = self._db.end_job(self.job.job_id, then, **changes)

    def begin_commit(self) -> None:
        """From here on the job can only go forward (N3). Raises Cancelled."""
        with self._lock:
            if self._cancelled and not self._committing:
                raise Cancelled(f"job {self.job.job_id} was cancelled")
            self._committing = True

    # -- steps ------------------------------------------------------------------------------

    def began(self, name: str) -> bool:
        """The step was begun, in this run or an earlier one (N2)."""
        return name in self._steps

    def result(self, name: str, kind: type[T]) -> T | None:
        """What a step came to, if it was done."""
        step = self._steps.get(name)
        if step is None or not step.ended_at_ns:
            return None
        return documents.load(kind, step.result, what=f"step {name} of job {self.job.job_id}")

    def step(
        self, name: str, kind: type[T], work: Callable[[], T], *, detail: Callable[[T], str] | None = None
    ) -> T:
        """Do a step once (N1), with retries; ``kind`` is its result's type.

        Raises what ``work`` raised last, Cancelled, Stopped.
        """
        known = self.result(name, kind)
        if known is not None:
            return known
        self.check()
        self._hook(f"job.{name}.before")
        step = self._steps.get(name) or Step(name, self._clock.wall_ns())
        self._save_step(step)  # N2
        result = self.retry(work, name)
        self.settle(name, result, detail=detail(result) if detail is not None else "")
        return result

    def begin(self, name: str, *, detail: str = "") -> None:
        """Record that a step is under way, which ``settle`` ends; again, it keeps when it began."""
        step = self._steps.get(name) or Step(name, self._clock.wall_ns())
        self._save_step(replace(step, detail=detail))

    def note(self, name: str, result: object, *, detail: str = "") -> None:
        """Record what was found, as a step of its own that is done."""
        assert not self.began(name), f"{name} was noted before"
        self._save_step(Step(name, self._clock.wall_ns()))
        self.settle(name, result, detail=detail)

    def settle(self, name: str, result: object, *, detail: str = "") -> None:
        """Record that a step which began is done, with its result."""
        done = replace(
            self._steps[name],
            ended_at_ns=max(1, self._clock.wall_ns()),
            detail=detail,
            result=documents.dump(result),
        )
        self._hook(f"job.{name}.done")
        self._save_step(done)
        self._hook(f"job.{name}.after")
        _log.info("step_done", step=name, detail=detail)

    def _save_step(self, step: Step) -> None:
        self._db.save_step(self.job.job_id, step)
        with self._lock:
            self._steps[step.name] = step

    def retry(self, work: Callable[[], T], what: str) -> T:
        """Call until it succeeds, fails for good, or failed for the patience without progress."""
        retries, since, moves = 0, self._clock.monotonic(), self._moves
        while True:
            self.check()
            try:
                result = work()
                self._troubles.pop(what, None)
                return result
            except ArrayliftError as error:
                self.check()  # a call that we cut ourselves tells nothing
                if moves != self._moves:
                    retries, since, moves = 0, self._moved_at, self._moves
                # A peer that stops cancels its calls: it comes back.
                if not is_retryable(error) and not isinstance(error, Cancelled):
                    raise
                if self._clock.monotonic() - since >= self.pacing.patience_seconds:
                    raise
                self._note_trouble(what, error)
                _log.warning("step_retries", step=what, retry=retries, error=str(error))
            self._wake.wait(pause_before(retries, self.pacing))
            retries += 1

    def _note_trouble(self, what: str, error: ArrayliftError) -> None:
        """For the job's log, which outlives this process."""
        self._troubles[what] = error.message
        step = self._steps.get(what)
        if step is not None and not step.ended_at_ns:
            self._save_step(replace(step, tries=step.tries + 1, trouble=error.message))

    def in_parallel(self, items: Sequence[Item], work: Callable[[Item], T]) -> list[T]:
        """Work on DISKS_PER_JOB_MAX items at once; the first failure ends all."""

        def guarded(item: Item) -> T:
            try:
                self.check()
                return work(item)
            except ArrayliftError as error:
                self.fail(error)
                raise

        with ThreadPoolExecutor(DISKS_PER_JOB_MAX, thread_name_prefix="disk") as pool:
            futures = [pool.submit(contextvars.copy_context().run, guarded, item) for item in items]
        return [future.result() for future in futures]

    # -- transfers --------------------------------------------------------------------------

    def follow(self, disk_name: str, transfer: Transfer, spans_total: int) -> Receipt:
        """Follow a transfer to its receipt, telling its progress. Raises its error, PeerUnavailable."""
        progress = self.progress.setdefault(disk_name, DiskProgress(spans_total))
        with self._lock:
            self._transfers.add(transfer)
        try:
            self.check()  # it may have been cancelled before the transfer was known
            for news in transfer:
                if news.spans_done > progress.spans_done:
                    self._moves, self._moved_at = self._moves + 1, self._clock.monotonic()
                progress.spans_done, progress.figures = news.spans_done, news.figures
                if news.receipt is not None:
                    progress.spans_done = spans_total
                    return news.receipt
            raise PeerUnavailable(f"the transfer of {disk_name} ended without a receipt")
        finally:
            with self._lock:
                self._transfers.discard(transfer)

    @contextlib.contextmanager
    def renewing(self, renew: Callable[[], None], what: str) -> Iterator[None]:
        """Keep the lease of ``what`` alive; if that is gone the job fails."""
        done = threading.Event()

        def keep() -> None:
            pause = 0.0
            while not done.wait(pause):
                try:
                    renew()
                    pause = self.pacing.lease_seconds / 3
                except NotFound as error:
                    self.fail(_lapsed(what, error))
                    return
                except ArrayliftError as error:
                    _log.warning("lease_not_renewed", error=str(error))
                    pause = self.pacing.lease_seconds / 12

        thread = threading.Thread(target=contextvars.copy_context().run, args=(keep,), name="renewer")
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    # -- cleaning up ------------------------------------------------------------------------

    def tidy(self, chores: Sequence[tuple[str, Callable[[], None]]]) -> None:
        """Do every chore, in rounds, until all are done or the patience is over.

        A chore that finds nothing (NotFound) is done. Raises the last error of one that is not.
        """
        left, since, round_number = list(chores), self._clock.monotonic(), 0
        while True:
            problems: list[tuple[tuple[str, Callable[[], None]], ArrayliftError]] = []
            for chore in left:
                self.check()
                self._hook(f"job.clean {chore[0]}.before")
                try:
                    chore[1]()
                except NotFound:
                    continue
                except ArrayliftError as error:
                    self.check()
                    problems.append((chore, error))
            if not problems:
                return
            if self._clock.monotonic() - since >= self.pacing.patience_seconds:
                raise problems[-1][1]
            left = [chore for chore, _ in problems]
            _log.warning("cleaning_retries", left=[name for name, _ in left], error=str(problems[-1][1]))
            # Not ``_wake``: it is set since the job was cancelled.
            self._stopping.wait(pause_before(round_number, self.pacing))
            round_number += 1


def _lapsed(what: str, error: ArrayliftError) -> LeaseLost:
    return LeaseLost(
        f"{what} is gone before all disks were sent: {error.message}",
        subject=error.subject,
        next_step="start it again; this server or a peer was away for longer than the lease",
    )
