"""Runs jobs: a queue, a few threads, and what happens at a job's end ([0039], [0043]).

Invariants:
  E1 a job that was accepted is in the database, and runs to one of its ends, over restarts.
  E2 a job that ends badly has been cleaned up after, or is on the reaper's list, before it says so.
  E3 a job makes nothing before its turn has come (``job_turns``): until then it is queued. Its turn is
     recorded, and outlives restarts. A thread is never kept waiting for it.
Limits: those of ``job_turns``, PLACERS jobs at once that find out what they need, JOBS_UNFINISHED_MAX queued.
Callers: ``submit``, ``cancel`` and the views from any thread; ``sweep`` from the reaper.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from arraylift.clock import Clock
from arraylift.errors import ArrayliftError, Cancelled, NotFound, WrongState
from arraylift.exchange.messages import Figures
from arraylift.failpoints import FAILPOINTS
from arraylift.logs import get_logger
from arraylift.outcome import attempt
from arraylift.vm.types import ConsistencyLevel
from backup_server import documents
from backup_server.job_queue import JobQueue
from backup_server.job_rules import (
    JOBS_UNFINISHED_MAX,
    Job,
    JobKind,
    JobState,
    Pacing,
    Step,
    failure_of,
    moved,
    retry_of,
)
from backup_server.job_run import JobRun, Stopped
from backup_server.job_turns import Demand, Limits, Turns
from backup_server.model import Safety
from backup_server.server_db import JobFilter, ServerDb

JOIN_SECONDS = 30.0
PLACERS = 4
"""Threads that find out what jobs need; those of hosts that do not answer keep them busy for a while."""

TURN = "turn"
"""The step in which a job waits for others."""

_log = get_logger("engine")


class Runner(Protocol):
    """What a kind of job does."""

    def place(self, run: JobRun) -> Demand:
        """Find out what it will use. Makes nothing; may do steps. Raises what failed."""
        ...

    def run(self, run: JobRun) -> None:
        """Do all steps, those of ``place`` included. Raises what failed."""
        ...

    def clean_up(self, run: JobRun) -> None:
        """Remove what the steps may have made; idempotent. Raises if something may be left."""
        ...

    def view(self, job: Job, steps: Sequence[Step]) -> Outcome:
        """What the steps tell so far."""
        ...


class Waits(BaseException):
    """The job's turn has not come (E3)."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a job's records say of its results."""

    vm_id: str
    vm_name: str
    figures: Mapping[str, tuple[int, Figures]]
    """By disk that is done: spans, figures."""
    frozen_ns: int = 0
    level: ConsistencyLevel = ConsistencyLevel.UNSPECIFIED
    """Reached by the VM snapshot, once there is one."""
    result_vm_id: str = ""
    safeties: tuple[Safety, ...] = ()
    """Of a restore in place: what its disks held before."""


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as it is now."""

    job: Job
    steps: tuple[Step, ...]
    outcome: Outcome
    spans_done: int
    spans_total: int
    figures: Figures


class Engine:
    """The job runner of one server."""

    def __init__(
        self,
        db: ServerDb,
        runners: Mapping[JobKind, Runner],
        *,
        clock: Clock,
        pacing: Pacing | None = None,
        limits: Limits | None = None,
        hook: Callable[[str], None] = FAILPOINTS.hit,
    ) -> None:
        limits = limits or Limits()
        self._db = db
        self._runners = runners
        self._clock = clock
        self._pacing = pacing or Pacing()
        self._hook = hook
        self._lock = threading.Lock()
        self._running: dict[str, JobRun] = {}
        self._turns = Turns(limits)
        self.opens: Callable[[Job, int], int] = lambda _job, at_ns: at_ns
        """When a retry may start, that instant or later; set before ``start``, by who knows windows."""
        self._to_place, self._to_run = JobQueue(clock.monotonic), JobQueue(clock.monotonic)
        self._stopping = threading.Event()
        self._threads = [
            *(self._thread(f"placer-{number}", self._to_place, self.place) for number in range(PLACERS)),
            *(self._thread(f"job-{number}", self._to_run, self.run) for number in range(limits.running)),
        ]

    # -- life -------------------------------------------------------------------------------

    def start(self) -> None:
        """Go on with what did not end, oldest first, and take new jobs."""
        unfinished = self._db.jobs(unfinished=True, limit=JOBS_UNFINISHED_MAX)
        for job in reversed(unfinished):
            if job.state is JobState.RUNNING:
                self._resume(job.job_id)
                self._to_run.put(job.job_id)
        self._queue_new([job for job in reversed(unfinished) if job.state is JobState.QUEUED])
        for thread in self._threads:
            thread.start()
        if unfinished:
            _log.info("jobs_resumed", job_count=len(unfinished))

    def _resume(self, job_id: str) -> None:
        """It had its turn; one that an earlier release ran may not say for what."""
        turn = next((step for step in self._db.steps(job_id) if step.name == TURN), None)
        known = turn is not None and turn.ended_at_ns
        demand = documents.load(Demand, turn.result, what="a turn") if turn and known else Demand()
        with self._lock:
            self._turns.resume(job_id, demand)

    def stop(self) -> None:
        """Let all jobs go; they resume at the next start. ``join`` waits for them."""
        self._stopping.set()
        self._to_place.close()
        self._to_run.close()
        with self._lock:
            runs = list(self._running.values())
        for run in runs:
            run.stop()

    def join(self) -> None:
        """Wait until no job runs; the calls of those that do have been cut before."""
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(JOIN_SECONDS)

    def _thread(self, name: str, jobs: JobQueue, work: Callable[[str], None]) -> threading.Thread:
        def serve() -> None:
            while (job_id := jobs.get()) is not None and not self._stopping.is_set():
                with structlog.contextvars.bound_contextvars(job=job_id):
                    _, error = attempt(lambda job_id=job_id: work(job_id), f"job {job_id}")  # type: ignore[misc]
                    if error is not None:
                        _log.error("job_abandoned", error=str(error))

        return threading.Thread(target=serve, name=name, daemon=True)

    # -- one job ----------------------------------------------------------------------------

    def place(self, job_id: str) -> None:
        """Have a job wait for its turn. Raises StoreFailed (of the database)."""
        begun = False  # stays so where it waits, or is let go
        with self._entered(job_id) as run:
            begun = run is not None and self._begin(run)
        if begun:
            self._to_run.put(job_id)

    def run(self, job_id: str) -> None:
        """Run a job to its end, or until the server stops, or its turn is to be waited for.

        Raises StoreFailed (of the database).
        """
        with self._entered(job_id) as run:
            if run is not None and self._begin(run):
                self._run(run)

    @contextlib.contextmanager
    def _entered(self, job_id: str) -> Iterator[JobRun | None]:
        """None: somebody runs it, or it has ended. Whoever lets a job go keeps its turn."""
        with self._lock:  # whoever cancels it sees it wait, or run
            job = self._db.job(job_id)
            run = None
            if not job.state.ended and job_id not in self._running and not self._stopping.is_set():
                run = JobRun(job, self._db, clock=self._clock, pacing=self._pacing, hook=self._hook)
                self._running[job_id] = run
        try:
            yield run
        except Waits:
            _log.info("job_waits")
        except Stopped:
            _log.info("job_let_go")
        finally:
            if run is not None:
                self._left(run)

    def _left(self, run: JobRun) -> None:
        job_id = run.job.job_id
        with self._lock:
            if self._running.get(job_id) is run:
                del self._running[job_id]
            given = self._turns.leave(job_id) if run.job.state.ended else []
        self._queue_all(given)

    def _queue_all(self, given: Sequence[str]) -> None:
        for job_id in given:
            self._to_run.put(job_id)

    def _begin(self, run: JobRun) -> bool:
        """Let it be running, once its turn has come (E3); False: it ended instead. Raises Waits."""
        if run.job.state is JobState.RUNNING:
            self._resume(run.job.job_id)
            return True
        runner = self._runners[run.job.kind]
        demand, error = attempt(lambda: self._placed(runner, run), f"job {run.job.job_id}")
        if demand is not None:
            self._wait_turn(run, demand)
        run.save(state=moved(run.job, JobState.RUNNING).state)
        if error is not None:
            self._fail(run, error)
            return False
        _log.info("job_started", kind=run.job.kind.name, vm=run.job.vm_name)
        return True

    def _placed(self, runner: Runner, run: JobRun) -> Demand:
        demand = runner.place(run)
        run.check()
        return demand

    def _wait_turn(self, run: JobRun, demand: Demand) -> None:
        """Ask for its turn, and record when it came. Raises Waits."""
        job_id = run.job.job_id
        with self._lock:  # it waits from the instant that nobody runs it
            if not self._turns.ask(job_id, demand, line=line_of(run.job)):
                lacks = ", ".join(self._turns.lacks(job_id)) or "those before it"
                run.begin(TURN, detail=f"waits for {lacks}")
                del self._running[job_id]
                raise Waits
        run.begin(TURN)
        run.settle(TURN, demand, detail=str(demand))

    def _run(self, run: JobRun) -> None:
        runner = self._runners[run.job.kind]
        if run.job.ending is not None:
            self._finish_badly(run)
            return
        _, error = attempt(lambda: runner.run(run), f"job {run.job.job_id}")
        if error is None:
            self._end(run, JobState.SUCCEEDED)
        else:
            self._fail(run, error)

    def _fail(self, run: JobRun, error: ArrayliftError) -> None:
        cancelled = isinstance(error, Cancelled) and run.was_cancelled
        run.save(
            ending=JobState.CANCELLED if cancelled else JobState.FAILED,
            failure=None if cancelled else failure_of(error),
        )
        self._finish_badly(run)

    def _finish_badly(self, run: JobRun) -> None:
        run.cleaning = True
        runner = self._runners[run.job.kind]
        _, problem = attempt(lambda: runner.clean_up(run), f"cleaning up after job {run.job.job_id}")
        if problem is not None:
            _log.error("cleaning_incomplete", error=str(problem))  # the reaper goes on (E2)
        assert run.job.ending is not None, "set before"
        self._end(run, run.job.ending)

    def _end(self, run: JobRun, state: JobState) -> None:
        self._hook("job.end.before")
        moved(run.job, state)  # J1
        bad = state is not JobState.SUCCEEDED
        leftover = bad or run.left_something
        retry = self._retry(run.job) if state is JobState.FAILED else None
        run.end(
            [retry] if retry is not None else [],
            state=state,
            ended_at_ns=self._clock.wall_ns(),
            sweeps_left=self._pacing.sweeps if leftover else 0,
            retried_by=retry.job_id if retry is not None else "",
        )
        if retry is not None:
            _log.info("job_retried", by=retry.job_id, retry=retry.retry_number)
            self._queue_new([retry])
        failure = run.job.failure
        log = _log.warning if bad else _log.info
        log("job_ended", state=state.name, error=failure.message if failure else None)

    def _retry(self, job: Job) -> Job | None:
        """Queued for a time at which its policy's jobs may start (J4 of ``job_rules``)."""
        retry = retry_of(job, now_ns=self._clock.wall_ns(), pacing=self._pacing)
        if retry is None:
            return None
        return replace(retry, not_before_ns=self.opens(retry, retry.not_before_ns))

    # -- from outside -----------------------------------------------------------------------

    def submit(self, jobs: Sequence[Job]) -> None:
        """Accept jobs, all or none (E1). Raises Conflict, Overloaded."""
        self._db.add_jobs(jobs)
        self._queue_new(jobs)

    def _queue_new(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            wait_ns = job.not_before_ns - self._clock.wall_ns() if job.not_before_ns else 0
            self._to_place.put(job.job_id, delay_seconds=max(0.0, wait_ns / 1e9))

    def cancel(self, job_id: str) -> None:
        """Ask a job to end. Raises NotFound, WrongState (ended, or past its commit)."""
        given: list[str] = []
        with self._lock:  # a waiting job cannot begin meanwhile
            run = self._running.get(job_id)
            if run is None:
                job = self._db.job(job_id)
                if job.state.ended:
                    raise WrongState(f"job {job_id} has ended", subject=f"job {job_id}")
                if job.state is JobState.QUEUED:
                    self._db.update_job(
                        job_id, state=JobState.CANCELLED, cancel_asked=True, ended_at_ns=self._clock.wall_ns()
                    )
                    given = self._turns.leave(job_id)
                else:  # resumed soon, and cleaned up after then
                    self._db.update_job(job_id, cancel_asked=True)
        if run is None:
            self._queue_all(given)
            return
        run.cancel()
        self._to_place.put(job_id)  # it may have begun to wait in this very instant

    def view(self, job_id: str) -> JobView:
        """A job as it is now. Raises NotFound."""
        with self._lock:
            run = self._running.get(job_id)
        if run is None:
            return self._view(self._db.job(job_id), self._db.steps(job_id), None)
        return self._view(run.job, run.steps(), run)

    def views(
        self, *, unfinished: bool, limit: int, behind: str = "", only: JobFilter | None = None
    ) -> list[JobView]:
        """Newest first; ``behind``: only those older than this job."""
        found = []
        for job in self._db.jobs(unfinished=unfinished, limit=limit, behind=behind, only=only):
            try:
                found.append(self.view(job.job_id))
            except NotFound:
                continue  # forgotten since
        return found

    def _view(self, job: Job, steps: Sequence[Step], run: JobRun | None) -> JobView:
        outcome = self._runners[job.kind].view(job, steps)
        figures, done, total = Figures(), 0, 0
        for spans, of_disk in outcome.figures.values():
            figures.add(of_disk)
            done, total = done + spans, total + spans
        for disk_name, progress in list(run.progress.items()) if run is not None else ():
            if disk_name not in outcome.figures:
                figures.add(progress.figures)
                done, total = done + progress.spans_done, total + progress.spans_total
        return JobView(job, tuple(steps), outcome, done, total, figures)

    # -- for the reaper ---------------------------------------------------------------------

    def sweep(self) -> int:
        """Clean up once more after jobs that left something, or may have; returns how many are left."""
        left = 0
        for job in self._db.jobs_to_sweep():
            if self._stopping.is_set():
                break
            with structlog.contextvars.bound_contextvars(job=job.job_id):
                left += self._sweep(job)
        return left

    def _sweep(self, job: Job) -> bool:
        pacing = Pacing(patience_seconds=0.0)  # the next round is the retry
        run = JobRun(job, self._db, clock=self._clock, pacing=pacing, hook=self._hook)
        run.cleaning = True
        try:
            self._runners[job.kind].clean_up(run)
        except ArrayliftError as error:
            _log.warning("sweep_incomplete", error=str(error))
            return True
        self._db.update_job(job.job_id, sweeps_left=job.sweeps_left - 1)
        return job.sweeps_left > 1


def line_of(job: Job) -> str:
    """With whom it waits in turn: restores, what was started by hand, and each policy."""
    if job.backup is None:
        return "restore"
    return f"policy {job.backup.policy}" if job.backup.policy else "backup"
