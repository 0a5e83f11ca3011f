"""Jobs that wait for their turn: nothing is made before it, it outlives restarts, and no thread waits."""

from __future__ import annotations

import itertools

import pytest

from backup_server.engine import JobView
from backup_server.job_rules import JobState
from backup_server.job_turns import Limits
from tests.e2e.daemon import wait_until
from tests.fakes.backup_server import Killed, Rig

ONE_AN_ARRAY = Limits(running=4, per_host=4, per_array=1, per_target=4)


@pytest.fixture
def narrow(rig: Rig) -> Rig:
    """One job on each array."""
    rig.limits = ONE_AN_ARRAY
    rig.restart()
    return rig


def turn_of(view: JobView) -> str:
    return next((step.detail for step in view.steps if step.name == "turn"), "")


def meet(rig: Rig, boundary: str) -> tuple[str, str, list[JobView]]:
    """A job runs; another is run as it passes a boundary. Returns both, and how the other stood then."""
    first, second = rig.order_backup("web1"), rig.order_backup("db1")
    seen: list[JobView] = []

    def at(name: str) -> None:
        if name == boundary:
            rig.on_boundary = lambda _name: None
            seen.append(rig.run(second))

    rig.on_boundary = at
    return first, second, seen


def test_a_job_waits_for_its_array_and_has_made_nothing_yet(narrow: Rig) -> None:
    first, second, seen = meet(narrow, "job.send disk0.before")
    assert narrow.run(first).job.state is JobState.SUCCEEDED
    assert [view.job.state for view in seen] == [JobState.QUEUED]
    assert turn_of(seen[0]) == "waits for array array1"
    made = [request.vm_id for name, request in narrow.world.calls if name == "PrepareBackup"]
    assert len(made) == 1
    view = narrow.run(second)
    assert view.job.state is JobState.SUCCEEDED
    assert turn_of(view) == "host host1, array array1, target target1"
    turn = next(step for step in view.steps if step.name == "turn")
    assert turn.ended_at_ns > turn.started_at_ns, "the record tells how long it waited"


def test_a_waiting_job_is_cancelled_and_keeps_nobody_waiting(narrow: Rig) -> None:
    first, second, seen = meet(narrow, "job.send disk0.before")
    narrow.run(first)
    assert seen
    narrow.server.engine.cancel(second)
    assert narrow.run(second).job.state is JobState.CANCELLED
    again = narrow.run(narrow.order_backup("db1"))
    assert again.job.state is JobState.SUCCEEDED


def test_who_had_its_turn_keeps_it_over_a_restart(narrow: Rig) -> None:
    first, second = narrow.order_backup("web1"), narrow.order_backup("db1")
    narrow.kill_on = "job.send disk0.done"
    with pytest.raises(Killed):
        narrow.run(first)
    narrow.restart()
    narrow.server.engine.start()
    wait_until(lambda: narrow.server.engine.view(second).job.state.ended, "both run")
    views = [narrow.server.engine.view(job_id) for job_id in (first, second)]
    assert [view.job.state for view in views] == [JobState.SUCCEEDED] * 2
    ended = [view.job.ended_at_ns for view in views]
    turn = next(step for step in views[1].steps if step.name == "turn")
    assert ended[0] <= turn.ended_at_ns, "the other came after it"


def test_threads_run_all_that_wait(narrow: Rig) -> None:
    narrow.server.engine.start()
    backup = [narrow.order_backup(vm) for vm in ("web1", "db1")]
    wait_until(lambda: all(narrow.server.engine.view(one).job.state.ended for one in backup), "backups end")
    jobs = [narrow.order_restore(backup[0], name=f"again{number}") for number in range(4)]
    wait_until(lambda: all(narrow.server.engine.view(one).job.state.ended for one in jobs), "restores end")
    views = [narrow.server.engine.view(job_id) for job_id in (*backup, *jobs)]
    assert {view.job.state for view in views} == {JobState.SUCCEEDED}
    times = sorted(
        (next(step.ended_at_ns for step in view.steps if step.name == "turn"), view.job.ended_at_ns)
        for view in views
    )
    assert all(ended <= begun for (_, ended), (begun, _) in itertools.pairwise(times)), times


def test_a_job_whose_vm_cannot_be_found_fails_without_a_turn(narrow: Rig) -> None:
    job_id = narrow.order_backup("db1")
    del narrow.world.vms[narrow.world.vm_named("db1").vm_id]
    view = narrow.run(job_id)
    assert view.job.state is JobState.FAILED
    assert turn_of(view) == ""
    assert narrow.run(narrow.order_backup("web1")).job.state is JobState.SUCCEEDED
