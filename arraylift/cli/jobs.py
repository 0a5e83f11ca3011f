"""Jobs of the backup server: follow them to their end, show what they did, tell the worst.

Invariants:
  J1 a run that waits for jobs ends with the exit code of the worst of them, and with 0 only if all
     succeeded.
  J2 leaving early (Ctrl-C, a lost server) ends no job: the line says how to watch on.
Callers: the command line and the demo, main thread.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from arraylift.cli.connection import Connection
from arraylift.cli.session import Session
from arraylift.cli.show import figures_rows, moment, printable, ratio, row, short_name, table
from arraylift.clock import SYSTEM_CLOCK
from arraylift.errors import ArrayliftError, Cancelled, DeadlineExceeded, PeerUnavailable
from arraylift.exit_codes import exit_code, line_of
from arraylift.rpc.status import class_of
from arraylift.sizes import human
from arraylift.v1 import backup_pb2, vm_pb2

SHOWN_MAX = 20
"""Jobs with a line of their own while they run; the others wait in the count."""

NOTE_CHARS_MAX = 80
"""Of why a step is tried again, beside its bar."""

POLL_SECONDS = 0.5

_ENDED = {backup_pb2.JOB_STATE_SUCCEEDED, backup_pb2.JOB_STATE_FAILED, backup_pb2.JOB_STATE_CANCELLED}


def has_ended(job: backup_pb2.Job) -> bool:
    return job.state in _ENDED


def follow(session: Session, server: Connection, job_ids: Sequence[str]) -> list[backup_pb2.Job]:
    """Wait until all jobs have ended, showing them meanwhile; return them in the order given (J2)."""
    jobs: dict[str, backup_pb2.Job] = {}
    view = JobView(session.err, len(job_ids), enabled=not session.is_json and session.err.is_terminal)
    try:
        with view:
            for job in changes(server, job_ids):
                jobs[job.job_id] = job
                view.update(job)
    except KeyboardInterrupt:
        session.note(_goes_on(job_ids))
        raise
    except (PeerUnavailable, DeadlineExceeded) as error:
        error.next_step = "; ".join(filter(None, (error.next_step, _goes_on(job_ids))))
        raise
    missing = [job_id for job_id in job_ids if job_id not in jobs or not has_ended(jobs[job_id])]
    if missing:
        raise PeerUnavailable(
            f"{server.label} stopped telling of a job that runs",
            next_step=_goes_on(missing),
            subject=missing[0],
        )
    again = [jobs[job_id].retried_by for job_id in job_ids if jobs[job_id].retried_by]
    # A retry stands for the job that it repeats; there is an end of them.
    later = dict(zip(again, follow(session, server, again), strict=True)) if again else {}
    return [later.get(jobs[job_id].retried_by, jobs[job_id]) for job_id in job_ids]


def changes(server: Connection, job_ids: Sequence[str]) -> Iterator[backup_pb2.Job]:
    """Yield jobs as they change, until all have ended.

    One job is watched. Several are asked for in turn: a stream each would hold a thread of the
    server for every VM.
    """
    if len(job_ids) == 1:
        with server.stream(
            server.backups.WatchJob, backup_pb2.WatchJobRequest(job_id=job_ids[0])
        ) as responses:
            for response in responses:
                yield response.job
        return
    waiting = list(job_ids)
    while waiting:
        for job_id in list(waiting):
            job = get_job(server, job_id)
            yield job
            if has_ended(job):
                waiting.remove(job_id)
        if waiting:
            time.sleep(POLL_SECONDS)


def get_job(server: Connection, job_id: str) -> backup_pb2.Job:
    """Return a job as it is now. Raises NotFound."""
    answer: backup_pb2.GetJobResponse = server.call(
        server.backups.GetJob, backup_pb2.GetJobRequest(job_id=job_id)
    )
    return answer.job


def check_outcome(jobs: Sequence[backup_pb2.Job]) -> None:
    """Raise the error of the worst job unless all succeeded (J1)."""
    errors = [error_of(job) for job in jobs if job.state != backup_pb2.JOB_STATE_SUCCEEDED]
    if not errors:
        return
    worst = max(errors, key=exit_code)
    if len(errors) > 1:
        worst.message += f" ({len(errors)} of {len(jobs)} jobs did not succeed)"
    raise worst


def error_of(job: backup_pb2.Job) -> ArrayliftError:
    """Return why a job did not succeed."""
    what = f"{short_name(backup_pb2.JobKind, job.kind)} of {job.vm_name or job.vm_id}"
    if job.state == backup_pb2.JOB_STATE_CANCELLED:
        return Cancelled(f"the {what} was cancelled", subject=f"job {job.job_id}")
    detail = job.error
    made = (class_of(detail.reason) or ArrayliftError)(
        f"the {what} failed: {job.error_text or detail.reason or 'it gives no reason'}",
        subject=detail.subject or f"job {job.job_id}",
        next_step=detail.next_step or f"see `arraylift job show {job.job_id}`",
    )
    made.fields = dict(detail.fields)
    return made


def summary(jobs: Sequence[backup_pb2.Job]) -> Table:
    """Return what jobs did, a line each."""
    columns = (
        "vm",
        "job",
        "state",
        ">seconds",
        ">read",
        ">offered",
        ">on the wire",
        ">stored",
        ">ratio",
        ">frozen ms",
        "consistency",
    )
    shown = table(*columns, "id")
    for job in jobs:
        figures = job.figures
        row(
            shown,
            job.vm_name,
            short_name(backup_pb2.JobKind, job.kind),
            short_name(backup_pb2.JobState, job.state),
            f"{seconds_of(job):.1f}",
            human(figures.bytes_read),
            human(figures.bytes_offered),
            human(figures.bytes_sent_wire),
            human(figures.bytes_stored),
            ratio(figures.bytes_read, figures.bytes_stored) if figures.bytes_read else "-",
            f"{job.frozen_ns / 1e6:.1f}" if job.frozen_ns else "-",
            short_name(vm_pb2.ConsistencyLevel, job.level) if job.level else "-",
            job.job_id,
        )
    return shown


def safety_lines(job: backup_pb2.Job) -> list[str]:
    """Say where what the disks held before a restore in place is kept, a line a disk."""
    return [
        f"what {one.disk_name} held is kept: array {one.array}, snapshot {one.volume_name}@{one.name}"
        f" ({one.snapshot_id})"
        for one in map(_printable_safety, job.safeties)
    ]


def _printable_safety(one: backup_pb2.SafetySnapshot) -> backup_pb2.SafetySnapshot:
    return backup_pb2.SafetySnapshot(**{field.name: printable(value) for field, value in one.ListFields()})


def seconds_of(job: backup_pb2.Job) -> float:
    """Return how long the job took, or has been there; 0 where clocks disagree."""
    end = job.ended_at_ns or SYSTEM_CLOCK.wall_ns()
    return max(0.0, (end - job.created_at_ns) / 1e9)


def details(job: backup_pb2.Job) -> list[tuple[str, object]]:
    """Return all about a job, for ``pairs``."""
    rows: list[tuple[str, object]] = [
        ("job", job.job_id),
        ("kind", short_name(backup_pb2.JobKind, job.kind)),
        ("vm", f"{job.vm_name} ({job.vm_id})" if job.vm_id else job.vm_name),
        ("state", short_name(backup_pb2.JobState, job.state)),
        ("created", moment(job.created_at_ns)),
        ("ended", moment(job.ended_at_ns) or "-"),
        ("seconds", f"{seconds_of(job):.1f}"),
    ]
    if job.backup_id:
        rows.append(("backup", job.backup_id))
    if job.result_vm_id:
        rows.append(("VM made", job.result_vm_id))
    if job.level:
        rows.append(("consistency", short_name(vm_pb2.ConsistencyLevel, job.level)))
    if job.policy:
        rows.append(("policy", job.policy))
    if job.retry_of:
        since = moment(job.not_before_ns)
        rows.append(("retry", f"{job.retry_number}, of {job.retry_of}; not before {since}"))
    if job.retried_by:
        rows.append(("retried by", job.retried_by))
    if job.frozen_ns:
        rows.append(("guest frozen", f"{job.frozen_ns / 1e6:.1f} ms"))
    rows += [("held before", line) for line in safety_lines(job)]
    for step in job.steps:
        took = f"{max(0, step.ended_at_ns - step.started_at_ns) / 1e9:.2f} s" if step.ended_at_ns else "runs"
        rows.append((f"  {step.name}", f"{took}{', ' if step.detail else ''}{step.detail}"))
    transfers = sum(step.name.startswith("send") for step in job.steps)
    rows += figures_rows(job.figures, transfers=max(1, transfers))
    if has_ended(job) and job.state != backup_pb2.JOB_STATE_SUCCEEDED:
        rows.append(("error", line_of(error_of(job))))
    return rows


def log_table(job: backup_pb2.Job) -> Table:
    """Return the job's log: a line a step, in the order of their beginning; the last is the whole."""
    columns = ("began", "step", ">seconds", ">retries", ">read", ">offered", ">on the wire", ">stored")
    shown = table(*columns, "what")
    for step in job.steps:
        took = f"{max(0, step.ended_at_ns - step.started_at_ns) / 1e9:.2f}" if step.ended_at_ns else "runs"
        trouble = f"tried again: {step.trouble}" if step.trouble else ""
        what = "; ".join(dict.fromkeys(filter(None, (step.detail, trouble))))
        row(shown, moment(step.started_at_ns), step.name, took, step.tries or "", *_bytes_of(step), what)
    frozen = f"guest frozen {job.frozen_ns / 1e6:.1f} ms" if job.frozen_ns else ""
    bad = job.state == backup_pb2.JOB_STATE_FAILED
    again = f"retried by {job.retried_by}" if job.retried_by else ""
    before = f"retry {job.retry_number} of {job.retry_of}" if job.retry_of else ""
    state = short_name(backup_pb2.JobState, job.state)
    what = "; ".join(filter(None, (state, frozen, before, line_of(error_of(job)) if bad else "", again)))
    tries = sum(step.tries for step in job.steps)
    row(shown, moment(job.created_at_ns), "job", f"{seconds_of(job):.2f}", tries or "", *_bytes_of(job), what)
    return shown


def _bytes_of(one: backup_pb2.Job | backup_pb2.JobStep) -> tuple[str, str, str, str]:
    if not one.HasField("figures"):
        return "", "", "", ""
    figures = one.figures
    counts = (figures.bytes_read, figures.bytes_offered, figures.bytes_sent_wire, figures.bytes_stored)
    read, offered, wire, stored = map(human, counts)
    return read, offered, wire, stored


class JobView:
    """A bar for each running job, on a terminal. A context manager."""

    def __init__(self, console: Console, job_count: int, *, enabled: bool) -> None:
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            transient=True,
            disable=not enabled,
        )
        self._tasks: dict[str, TaskID] = {}
        self._ended: set[str] = set()
        self._job_count = job_count
        self._all = self._bars.add_task("jobs", total=job_count, note="", visible=job_count > 1)
        self._enabled = enabled

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._bars.stop()

    def update(self, job: backup_pb2.Job) -> None:
        """Show how far a job is; a job that has ended makes room for another."""
        if not self._enabled or job.job_id in self._ended:
            return
        if has_ended(job):
            self._ended.add(job.job_id)
            with contextlib.suppress(KeyError):
                self._bars.remove_task(self._tasks.pop(job.job_id))
            self._bars.update(self._all, completed=len(self._ended))
            return
        if job.job_id not in self._tasks:
            if job.state != backup_pb2.JOB_STATE_RUNNING or len(self._tasks) >= SHOWN_MAX:
                return
            self._tasks[job.job_id] = self._bars.add_task(printable(job.vm_name), total=None, note="")
        self._bars.update(
            self._tasks[job.job_id],
            completed=job.spans_done,
            total=job.spans_total or None,
            note=progress_note(job),
        )


def progress_note(job: backup_pb2.Job) -> str:
    """Return step, spans, bytes and rate of a running job, in a few words."""
    running = [
        f"{step.name}{f' ({step.detail[:NOTE_CHARS_MAX]})' if step.detail else ''}"
        for step in job.steps
        if not step.ended_at_ns
    ]
    parts = [printable(running[-1])] if running else []
    if job.spans_total:
        parts.append(f"{job.spans_done:,}/{job.spans_total:,} spans")
        moved = max(job.figures.bytes_read, job.figures.bytes_offered)
        begun = [
            step.started_at_ns for step in job.steps if not step.ended_at_ns and step.name.startswith("send")
        ]
        parts.append(f"read {human(moved)}, sent {human(job.figures.bytes_sent_wire)}")
        seconds = (SYSTEM_CLOCK.wall_ns() - min(begun)) / 1e9 if begun else 0.0
        if seconds > 1:
            parts.append(f"{human(int(moved / seconds))}/s")
    return ", ".join(parts)


def cancel(server: Connection, job_id: str) -> None:
    """Ask a job to end. Raises NotFound, WrongState (past its commit)."""
    server.call(server.backups.CancelJob, backup_pb2.CancelJobRequest(job_id=job_id))


def _goes_on(job_ids: Sequence[str]) -> str:
    if len(job_ids) == 1:
        return f"the job goes on: `arraylift job watch {job_ids[0]}`"
    return f"{len(job_ids)} jobs go on: `arraylift job ls --running`"
