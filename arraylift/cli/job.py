"""``arraylift job``: what the backup server does and did.

Callers: the command line, main thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Annotated

import typer

from arraylift.cli import jobs
from arraylift.cli.command import command, group
from arraylift.cli.connection import Connection
from arraylift.cli.session import Session
from arraylift.cli.show import moment, pairs, plain, row, short_name, table, value_of
from arraylift.cli.times import duration_seconds
from arraylift.clock import SYSTEM_CLOCK
from arraylift.errors import InvalidRequest, NotFound
from arraylift.v1 import backup_pb2

PAGE_MAX = 1000
_ID = re.compile(r"[0-9a-f]{32}")

JobReference = Annotated[str, typer.Argument(metavar="JOB", help="Its id, or how that begins.")]


def register(app: typer.Typer) -> None:
    """Add the noun to the root."""
    noun = group("Backups and restores that run or ran.")
    command(
        noun,
        "ls",
        examples="arraylift job ls --running\n\narraylift job ls --state failed --since 24h --policy nightly",
    )(ls)
    command(noun, "show", examples="arraylift job show 3f2a\narraylift job show 3f2a --log")(show)
    command(noun, "watch", examples="arraylift job watch 3f2a")(watch)
    command(noun, "cancel", examples="arraylift job cancel 3f2a")(cancel)
    app.add_typer(noun, name="job")


def find_job(server: Connection, reference: str) -> backup_pb2.Job:
    """Return the job of an id or the beginning of one. Raises NotFound, InvalidRequest (several)."""
    if _ID.fullmatch(reference):
        return jobs.get_job(server, reference)
    request = backup_pb2.ListJobsRequest(limit=PAGE_MAX)
    jobs_there: Iterator[backup_pb2.Job] = server.listing(server.backups.ListJobs, request, "jobs")
    found = [job for job in jobs_there if job.job_id.startswith(reference)]
    if not found:
        raise NotFound(
            f"there is no job {reference}", subject=f"job {reference}", next_step="see `arraylift job ls`"
        )
    if len(found) > 1:
        raise InvalidRequest(
            f"{len(found)} jobs begin with {reference}",
            subject=f"job {reference}",
            next_step="give more of the id of one: " + ", ".join(job.job_id for job in found[:4]),
        )
    return found[0]


def ls(
    session: Session,
    running: Annotated[bool, typer.Option("--running", help="Only those that have not ended.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    vm: Annotated[str, typer.Option(metavar="VM", help="Only those of this VM, by name or id.")] = "",
    state: Annotated[
        list[str] | None,
        typer.Option(help="Only queued, running, succeeded, failed or cancelled ones; again for more."),
    ] = None,
    kind: Annotated[str, typer.Option(help="Only backup, or restore.")] = "",
    since: Annotated[
        str, typer.Option(metavar="AGE", help="Only those created in the last so long, e.g. 12h, 7d.")
    ] = "",
    policy: Annotated[str, typer.Option(help="Only those that runs of this policy started.")] = "",
) -> None:
    """List jobs, newest first; those that meet all conditions."""
    server = session.server
    request = backup_pb2.ListJobsRequest(
        running_only=running,
        limit=min(limit, PAGE_MAX),
        vm=vm,
        states=[value_of(backup_pb2.JobState, one) for one in state or []],  # type: ignore[misc]
        kind=value_of(backup_pb2.JobKind, kind) if kind else 0,  # type: ignore[arg-type]
        since_ns=SYSTEM_CLOCK.wall_ns() - duration_seconds(since) * 10**9 if since else 0,
        policy=policy,
    )
    found = list(islice(server.listing(server.backups.ListJobs, request, "jobs"), limit))
    shown = table("vm", "job", "state", "created", ">seconds", "error", "id")
    for job in found:
        row(
            shown,
            job.vm_name,
            short_name(backup_pb2.JobKind, job.kind),
            short_name(backup_pb2.JobState, job.state),
            moment(job.created_at_ns),
            f"{jobs.seconds_of(job):.1f}",
            job.error_text,
            job.job_id,
        )
    session.emit([plain(job) for job in found], shown)


def show(
    session: Session,
    job: JobReference,
    log: Annotated[
        bool, typer.Option("--log", help="Its steps as a table: when, how long, retries, bytes.")
    ] = False,
) -> None:
    """Show one job: its steps and figures, and where it failed."""
    found = find_job(session.server, job)
    session.emit(plain(found), jobs.log_table(found) if log else pairs(jobs.details(found)))


def watch(session: Session, job: JobReference) -> None:
    """Follow a job to its end; its exit code is the job's."""
    found = find_job(session.server, job)
    (ended,) = jobs.follow(session, session.server, [found.job_id])
    session.emit(plain(ended), jobs.summary([ended]))
    jobs.check_outcome([ended])


def cancel(session: Session, job: JobReference) -> None:
    """Ask a job to end; what it made is removed."""
    found = find_job(session.server, job)
    jobs.cancel(session.server, found.job_id)
    session.emit({"cancelling": found.job_id}, f"job {found.job_id} was asked to end")
