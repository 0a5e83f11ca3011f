"""A failed job is started again, as a new one, where that may help; and the log tells what happened."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arraylift import errors
from arraylift.errors import ArrayliftError
from arraylift.vm.types import ConsistencyLevel
from backup_server import convert
from backup_server.engine import JobView
from backup_server.job_rules import (
    RETRIES_MAX,
    BackupOrder,
    Job,
    JobState,
    Pacing,
    failure_of,
    retry_of,
)
from backup_server.orders import Choice
from tests.fakes.backup_server import PACING, Killed, Rig
from tests.fakes.world import Fault
from tests.fakes.world_array import SPAN
from tests.unit.backup_server.material import job, restore_job

MINUTE_NS = 60 * 10**9
DOWN = errors.PeerUnavailable("it is down")


def order(rig: Rig, retries: int) -> str:
    """Back up db1, with so many retries."""
    order = BackupOrder("", False, False, ConsistencyLevel.UNSPECIFIED, (), retries_max=retries)
    return rig.server.orders.start_backups(Choice(("db1",), all=False, tag=""), order)[0]


def fail_next(rig: Rig, error: ArrayliftError) -> None:
    """The next job fails at once by this, however patient it is."""
    rig.server.engine._pacing = replace(PACING, patience_seconds=0.0)
    rig.world.fault("CreateGrant", Fault("fail", error))


def retry(rig: Rig, view: JobView) -> Job:
    return rig.server.db.job(view.job.retried_by)


def test_a_peer_that_was_away_is_tried_again_by_a_new_job(rig: Rig) -> None:
    fail_next(rig, DOWN)
    first = rig.run(order(rig, 1))
    assert first.job.state is JobState.FAILED
    second = retry(rig, first)
    assert (second.state, second.retry_of, second.retry_number) == (JobState.QUEUED, first.job.job_id, 1)
    assert abs(second.not_before_ns - first.job.ended_at_ns - MINUTE_NS) < MINUTE_NS // 10
    view = rig.run(second.job_id)
    assert view.job.state is JobState.SUCCEEDED
    assert list(rig.world.manifests) == [second.job_id]
    assert rig.world.leftovers() == []
    told = convert.job_to_pb(view)
    assert (told.retry_of, told.retry_number) == (first.job.job_id, 1)
    assert convert.job_to_pb(first).retried_by == second.job_id


def test_retries_come_to_an_end(rig: Rig) -> None:
    job_id = order(rig, 2)
    for number in range(3):
        fail_next(rig, DOWN)
        view = rig.run(job_id)
        assert view.job.retry_number == number
        job_id = view.job.retried_by
    assert job_id == ""
    assert rig.server.db.jobs(unfinished=True, limit=9) == []


@pytest.mark.parametrize("error", [errors.Corruption("no"), errors.NotFound("no"), errors.OutOfSpace("full")])
def test_what_cannot_pass_is_not_tried_again(rig: Rig, error: ArrayliftError) -> None:
    fail_next(rig, error)
    view = rig.run(order(rig, 3))
    assert (view.job.state, view.job.retried_by) == (JobState.FAILED, "")


def test_nobody_retries_without_being_told_nor_what_was_cancelled(rig: Rig) -> None:
    fail_next(rig, DOWN)
    assert rig.run(order(rig, 0)).job.retried_by == ""
    job_id = order(rig, 3)
    rig.on_boundary = lambda name: rig.server.engine.cancel(job_id) if name == "job.snapshot.after" else None
    view = rig.run(job_id)
    assert (view.job.state, view.job.retried_by) == (JobState.CANCELLED, "")


def test_a_server_that_dies_at_the_end_of_a_job_retries_it_once(rig: Rig) -> None:
    fail_next(rig, DOWN)
    job_id = order(rig, 1)
    rig.kill_on = "job.end.before"
    with pytest.raises(Killed):
        rig.run(job_id)
    rig.restart()
    view = rig.run(job_id)
    jobs = rig.server.db.jobs(limit=9)
    assert [one.job_id for one in jobs] == [view.job.retried_by, job_id]


def test_a_waiting_retry_can_be_cancelled_and_stands_for_its_vm(rig: Rig) -> None:
    fail_next(rig, DOWN)
    again = retry(rig, rig.run(order(rig, 1)))
    with pytest.raises(errors.Conflict, match=again.job_id):
        order(rig, 0)
    rig.server.engine.cancel(again.job_id)
    assert rig.run(order(rig, 0)).job.state is JobState.SUCCEEDED


def test_pauses_double_up_to_an_hour() -> None:
    failed = replace(
        job(1),
        backup=BackupOrder("t", False, False, ConsistencyLevel.UNSPECIFIED, (), retries_max=99),
        failure=failure_of(DOWN),
    )
    pauses = []
    while (again := retry_of(failed, now_ns=0, pacing=Pacing())) is not None:
        pauses.append(again.not_before_ns // MINUTE_NS)
        failed = replace(again, failure=failure_of(DOWN))
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert len(pauses) == RETRIES_MAX
    assert retry_of(replace(restore_job(1, "x"), failure=failure_of(DOWN)), now_ns=0, pacing=Pacing()) is None


def test_the_log_tells_tries_and_bytes_and_outlives_a_restart(rig: Rig) -> None:
    rig.world.fault("SendSnapshot", *[Fault("fail", DOWN)] * 2)
    job_id = order(rig, 0)
    rig.run(job_id)
    rig.restart()
    told = convert.job_to_pb(rig.server.engine.view(job_id))
    steps = {step.name: step for step in told.steps}
    assert (steps["send disk0"].tries, steps["send disk0"].trouble) == (2, "it is down")
    assert steps["send disk0"].figures.bytes_read == 3 * SPAN
    assert steps["snapshot"].tries == 0
    assert not steps["snapshot"].HasField("figures")
    assert all(step.ended_at_ns >= step.started_at_ns > 0 for step in told.steps)
    assert told.frozen_ns == rig.world.frozen_ns
