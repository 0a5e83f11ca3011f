"""A restore in place: all disks or none, never under a guest, never without a way back.

The fake array swaps under a running guest if it is told to, and writes down that it did: what is
tested is that the server never asks for that.
"""

from __future__ import annotations

import dataclasses

import pytest

from arraylift import errors
from arraylift.v1 import vm_pb2
from backup_server.engine import JobView
from backup_server.in_place_job import REFUSALS_MAX
from backup_server.job_rules import JobState, RestoreOrder, safety_name
from backup_server.model import Backup
from tests.fakes.backup_server import PACING, Killed, Rig
from tests.fakes.world import Fault
from tests.fakes.world_array import SPAN

CENTER_CALLS = ("GetManagedVm", "GetVm", "PrepareRestore", "SendImage", "PowerVm", "CommitRestoreGroup")
HOST_CALLS = ("GetVm", "PrepareRestore", "SendImage", "PowerOff", "CommitRestoreGroup", "PowerOn")
OFF, ON = vm_pb2.POWER_STATE_OFF, vm_pb2.POWER_STATE_ON


def disks_of(rig: Rig, vm: str = "web1") -> list[str]:
    """What the VM's volumes hold: ``old``, or an image's id."""
    return [rig.world.held.get(disk.volume_name, "old") for disk in rig.world.vm_named(vm).config.disks]


def images(backup: Backup) -> list[str]:
    return [disk.image_id for disk in backup.disks]


def check_old(rig: Rig, power: int = ON) -> None:
    """As if nothing had been."""
    assert disks_of(rig) == ["old", "old"]
    assert rig.world.vm_named("web1").power == power
    assert rig.world.safeties == {}
    check_always(rig)


def check_new(rig: Rig, backup: Backup, power: int) -> None:
    """All of it is the backup's, and the old state is kept under the job's name."""
    assert disks_of(rig) == images(backup)
    assert rig.world.vm_named("web1").power == power
    assert sorted(rig.world.safeties) == ["web1-disk0@old", "web1-disk1@old"]
    check_always(rig)


def check_always(rig: Rig) -> None:
    assert rig.world.swapped_under_a_guest == []
    assert rig.world.leftovers() == []
    assert len(set(disks_of(rig)) & {"old"}) * len(disks_of(rig)) == disks_of(rig).count("old"), "half"


def check_told(rig: Rig, view: JobView) -> None:
    """The job names every snapshot that the old state is in."""
    told = {(one.disk_name, one.array, one.volume_name, one.name) for one in view.outcome.safeties}
    name = safety_name(view.job.job_id)
    assert told == {(disk, "array1", f"web1-{disk}", name) for disk in ("disk0", "disk1")}
    ids = {one.snapshot_id for one in view.outcome.safeties}
    assert ids == {one.snapshot_id for one in rig.world.safeties.values()}


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("start", [False, True])
def test_all_disks_go_back_while_the_vm_is_off(rig: Rig, direct: bool, start: bool) -> None:
    backup = rig.back_up()
    view = rig.run(rig.order_in_place(backup.backup_id, start=start, direct=direct))
    assert view.job.state is JobState.SUCCEEDED, view.job.failure
    check_new(rig, backup, ON if start else OFF)
    check_told(rig, view)
    names = [step.name for step in view.steps]
    assert names[:2] == ["plan", "turn"]
    assert sorted(names[2:4]) == ["send disk0", "send disk1"]
    assert names[4:] == ["power", "stop", "swap", *(["start"] if start else [])]
    assert (view.spans_done, view.spans_total, view.outcome.result_vm_id) == (7, 7, backup.vm_id)
    assert rig.world.count("CommitRestoreGroup") == 1


def test_the_vm_runs_until_everything_has_arrived(rig: Rig) -> None:
    backup = rig.back_up()
    seen: dict[str, int] = {}

    def look(boundary: str) -> None:
        seen[boundary] = rig.world.vm_named("web1").power

    rig.on_boundary = look
    rig.run(rig.order_in_place(backup.backup_id))
    assert seen["job.send disk0.after"] == seen["job.send disk1.after"] == seen["job.stop.before"] == ON
    assert seen["job.swap.before"] == OFF


def test_a_vm_that_is_off_stays_off_and_is_not_stopped(rig: Rig) -> None:
    backup = rig.back_up()
    rig.world.vm_named("web1").power = OFF
    view = rig.run(rig.order_in_place(backup.backup_id, stop=False))
    assert view.job.state is JobState.SUCCEEDED
    check_new(rig, backup, OFF)
    assert rig.world.count("PowerVm") == 0


def test_a_guest_is_asked_before_it_is_forced(rig: Rig) -> None:
    rig.run(rig.order_in_place(rig.back_up().backup_id))
    (asked,) = [request for name, request in rig.world.calls if name == "PowerVm"]
    assert (asked.power, asked.force, asked.grace_seconds) == (OFF, False, 30)


# -- refusals -----------------------------------------------------------------------------------


def test_a_running_vm_is_refused_unless_it_may_be_stopped(rig: Rig) -> None:
    backup = rig.back_up()
    with pytest.raises(errors.WrongState, match="is running"):
        rig.order_in_place(backup.backup_id, stop=False)
    check_old(rig)


def test_a_vm_that_was_started_since_is_refused(rig: Rig) -> None:
    backup = rig.back_up()
    rig.world.vm_named("web1").power = OFF
    job_id = rig.order_in_place(backup.backup_id, stop=False)
    rig.world.vm_named("web1").power = ON
    view = rig.run(job_id)
    assert view.job.state is JobState.FAILED
    assert rig.world.count("PrepareRestore") == 0
    check_old(rig)


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("boundary", ["job.power.after", "job.swap.before"])
def test_a_vm_that_somebody_starts_meanwhile_is_not_touched(rig: Rig, boundary: str, stop: bool) -> None:
    backup = rig.back_up()
    rig.world.vm_named("web1").power = OFF
    job_id = rig.order_in_place(backup.backup_id, stop=stop)

    def start(name: str) -> None:
        if name == boundary:
            rig.world.vm_named("web1").power = ON

    rig.on_boundary = start
    view = rig.run(job_id)
    assert view.job.state is JobState.FAILED
    assert view.job.failure is not None
    assert (view.job.failure.reason, "is running" in view.job.failure.message) == ("wrong_state", True)
    check_old(rig)


def test_a_vm_that_is_started_between_two_tries_of_the_swap_is_not_touched(rig: Rig) -> None:
    backup = rig.back_up()
    job_id = rig.order_in_place(backup.backup_id)

    def start() -> None:
        rig.world.vm_named("web1").power = ON

    rig.world.fault("CommitRestoreGroup", Fault("fail", meanwhile=start))
    view = rig.run(job_id)
    assert view.job.state is JobState.FAILED
    check_old(rig)


def test_what_only_the_host_knows_counts(rig: Rig) -> None:
    """The center may be seconds behind: the host is asked before each try."""
    rig.run(rig.order_in_place(rig.back_up().backup_id))
    names = [name for name, _ in rig.world.calls]
    commit = names.index("CommitRestoreGroup")
    assert "GetVm" in names[names.index("PowerVm") : commit]


@pytest.mark.parametrize("what", ["gone", "foreign", "size", "array", "volume"])
def test_a_vm_whose_disks_are_others_is_refused(rig: Rig, what: str) -> None:
    backup = rig.back_up()
    job_id = rig.order_in_place(backup.backup_id)
    disks = rig.world.vm_named("web1").config.disks
    if what == "gone":
        del disks[1]
    elif what == "foreign":
        disks[1].array, disks[1].volume_name = "", ""
    elif what == "size":
        disks[1].size_bytes += SPAN
    elif what == "array":
        disks[1].array = "array2"
    else:
        rig.on_boundary = lambda name: (
            setattr(disks[1], "volume_name", "db1-disk0") if name == "job.power.before" else None
        )
    view = rig.run(job_id)
    assert view.job.state is JobState.FAILED
    assert view.job.failure is not None
    assert view.job.failure.reason == "wrong_state"
    assert "cannot be restored in place" in view.job.failure.message
    assert rig.world.held == {}
    assert rig.world.count("CommitRestoreGroup") == 0
    if what != "volume":
        assert rig.world.count("PrepareRestore") == 0
        with pytest.raises(errors.WrongState, match="cannot be restored in place"):
            rig.order_in_place(backup.backup_id)


def test_disks_that_are_in_no_backup_stay_as_they_are(rig: Rig) -> None:
    view = rig.run(rig.order_backup(exclude=("disk0",)))
    backup = rig.server.db.backup(view.job.job_id)
    assert rig.run(rig.order_in_place(backup.backup_id)).job.state is JobState.SUCCEEDED
    assert disks_of(rig) == ["old", backup.disks[0].image_id]


def test_words_that_mean_nothing_in_place_are_refused(rig: Rig) -> None:
    backup = rig.back_up()
    plain = RestoreOrder(
        *(backup.backup_id, "", "", ""),
        start=False,
        direct=False,
        keep_identity=False,
        in_place=True,
        stop=True,
    )
    for order in (
        dataclasses.replace(plain, as_name="web2"),
        dataclasses.replace(plain, host="host1"),
        dataclasses.replace(plain, array="array1"),
        dataclasses.replace(plain, keep_identity=True),
        dataclasses.replace(plain, in_place=False),
    ):
        with pytest.raises(errors.InvalidRequest):
            rig.server.orders.start_restore(order)
    del rig.world.vms[backup.vm_id]
    with pytest.raises(errors.NotFound):
        rig.server.orders.start_restore(plain)


def test_one_restore_in_place_a_vm(rig: Rig) -> None:
    backup = rig.back_up()
    first = rig.order_in_place(backup.backup_id)
    with pytest.raises(errors.Conflict, match="restored in place") as caught:
        rig.order_in_place(backup.backup_id)
    assert caught.value.fields["job_id"] == first
    aside = rig.order_restore(backup.backup_id)
    assert rig.run(first).job.state is JobState.SUCCEEDED
    assert rig.run(aside).job.state is JobState.SUCCEEDED
    assert rig.run(rig.order_in_place(backup.backup_id)).job.state is JobState.SUCCEEDED


# -- faults -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        *((method, kind) for method in CENTER_CALLS for kind in ("fail", "lost", "twice")),
        *((method, kind) for method in ("PowerVm", "CommitRestoreGroup") for kind in ("hang", "late")),
    ],
)
def test_each_call_may_go_wrong_once(rig: Rig, method: str, kind: str) -> None:
    backup = rig.back_up()
    job_id = rig.order_in_place(backup.backup_id, start=True)
    rig.world.fault(method, kind)
    view = rig.run(job_id)
    assert view.job.state is JobState.SUCCEEDED, view.job.failure
    rig.world.wait_idle()
    check_new(rig, backup, ON)
    check_told(rig, view)


@pytest.mark.parametrize("method", [*CENTER_CALLS, *HOST_CALLS])
@pytest.mark.parametrize("kind", ["fail", "lost"])
def test_what_fails_for_good_ends_in_one_of_two_states(rig: Rig, method: str, kind: str) -> None:
    backup = rig.back_up()
    direct = method in {"PowerOff", "PowerOn"}
    job_id = rig.order_in_place(backup.backup_id, start=method == "PowerOn", direct=direct)
    rig.world.fault(method, Fault(kind, errors.Corruption("no")))
    view = rig.run(job_id)
    assert view.job.state is JobState.FAILED
    if method == "PowerOn" or (method, kind) == ("CommitRestoreGroup", "lost"):
        power = ON if (method, kind) == ("PowerOn", "lost") else OFF
        check_new(rig, backup, power)
        check_told(rig, view)
    else:
        check_old(rig)
        assert view.outcome.safeties == ()


def test_a_vm_that_does_not_start_was_restored_all_the_same(rig: Rig) -> None:
    backup = rig.back_up()
    job_id = rig.order_in_place(backup.backup_id, start=True, direct=True)
    rig.world.fault("PowerOn", Fault("fail", errors.Corruption("no")))
    view = rig.run(job_id)
    assert view.job.failure is not None
    assert view.job.failure.message == "the VM was restored, but does not start: no"
    rig.sweep()
    check_new(rig, backup, OFF)


def test_an_array_that_is_away_from_before_the_swap_on(rig: Rig) -> None:
    """The job fails; once the array is back the reaper finds out that nothing was swapped."""
    backup = rig.back_up()
    job_id = rig.order_in_place(backup.backup_id)

    def away(name: str) -> None:
        if name == "job.swap.before":
            for one in ("ListVolumes", "RevokeRestore"):
                rig.world.fault(one, *["fail"] * 10_000)

    rig.on_boundary = away
    assert rig.run(job_id).job.state is JobState.FAILED
    rig.world.faults.clear()
    rig.restart()
    rig.sweep()
    check_old(rig, OFF)  # nobody starts a VM minutes later
    assert rig.server.engine.view(job_id).outcome.safeties == ()


def test_a_swap_that_landed_although_the_array_went_silent(rig: Rig) -> None:
    backup = rig.back_up()
    job_id = rig.order_in_place(backup.backup_id)

    def away() -> None:
        for one in ("ListVolumes", "RevokeRestore", "CommitRestoreGroup"):
            rig.world.fault(one, *["fail"] * 10_000)

    rig.world.fault("CommitRestoreGroup", Fault("lost", meanwhile=away))
    view = rig.run(job_id)
    assert view.job.state is JobState.FAILED
    assert view.outcome.safeties == ()
    rig.world.faults.clear()
    rig.restart()
    rig.sweep()
    view = rig.server.engine.view(job_id)
    check_new(rig, backup, OFF)
    check_told(rig, view)


def test_a_vm_that_is_started_after_a_swap_whose_answer_was_lost(rig: Rig) -> None:
    """It runs on the new disks; that the job learns late of its success changes nothing."""
    backup = rig.back_up()
    job_id = rig.order_in_place(backup.backup_id)

    def start() -> None:
        rig.world.vm_named("web1").power = ON

    rig.world.fault("CommitRestoreGroup", Fault("lost", meanwhile=start))
    view = rig.run(job_id)
    assert view.job.state is JobState.SUCCEEDED
    check_new(rig, backup, ON)
    check_told(rig, view)


def test_a_connection_that_lingers_is_waited_for(rig: Rig) -> None:
    backup = rig.back_up()
    job_id = rig.order_in_place(backup.backup_id)
    rig.world.fault("CommitRestoreGroup", *[Fault("fail", errors.WrongState("open for writing"))] * 3)
    assert rig.run(job_id).job.state is JobState.SUCCEEDED
    check_new(rig, backup, OFF)


def test_a_volume_that_somebody_else_writes_is_not_taken_from_him(rig: Rig) -> None:
    backup = rig.back_up()
    job_id = rig.order_in_place(backup.backup_id)
    rig.world.fault("CommitRestoreGroup", *[Fault("fail", errors.WrongState("open for writing"))] * 50)
    view = rig.run(job_id)
    assert view.job.failure is not None
    assert view.job.failure.reason == "wrong_state"
    assert rig.world.count("CommitRestoreGroup") == REFUSALS_MAX + 1
    check_old(rig)


def test_restores_that_lapsed_change_nothing(rig: Rig) -> None:
    backup = rig.back_up()
    job_id = rig.order_in_place(backup.backup_id)
    rig.on_boundary = lambda name: rig.world.forget_restores() if name == "job.swap.before" else None
    view = rig.run(job_id)
    assert view.job.failure is not None
    assert view.job.failure.reason == "not_found"
    check_old(rig)


def test_those_that_have_arrived_are_kept_alive_while_others_travel(rig: Rig) -> None:
    backup = rig.back_up()
    job_id = rig.order_in_place(backup.backup_id)
    rig.world.fault("SendImage", "none", "mute")
    pacing = dataclasses.replace(PACING, lease_seconds=1)
    rig.server.engine._pacing = pacing
    assert rig.run(job_id).job.state is JobState.SUCCEEDED
    asked = [request.transfer_id for name, request in rig.world.calls if name == "PrepareRestore"]
    assert max(asked.count(one) for one in set(asked)) > 1
    groups = {request.group_id for name, request in rig.world.calls if name == "PrepareRestore"}
    assert len(groups) == 1
    check_new(rig, backup, OFF)


# -- cancelled and killed -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "boundary",
    ["job.plan.after", "job.send disk1.before", "job.send disk0.done", "job.stop.before", "job.stop.after"],
)
def test_a_cancelled_restore_leaves_the_vm_as_it_was(rig: Rig, boundary: str) -> None:
    backup = rig.back_up()
    job_id = rig.order_in_place(backup.backup_id)
    rig.on_boundary = lambda name: rig.server.engine.cancel(job_id) if name == boundary else None
    view = rig.run(job_id)
    assert view.job.state is JobState.CANCELLED
    check_old(rig)
    rig.world.vm_named("web1").power = OFF
    rig.sweep()
    check_old(rig, OFF)


def test_a_vm_that_was_off_is_not_started_by_a_cancellation(rig: Rig) -> None:
    backup = rig.back_up()
    rig.world.vm_named("web1").power = OFF
    job_id = rig.order_in_place(backup.backup_id)
    rig.on_boundary = lambda name: rig.server.engine.cancel(job_id) if name == "job.power.after" else None
    assert rig.run(job_id).job.state is JobState.CANCELLED
    check_old(rig, OFF)


@pytest.mark.parametrize("boundary", ["job.swap.before", "job.swap.done", "job.start.before"])
def test_from_the_swap_on_nobody_cancels(rig: Rig, boundary: str) -> None:
    backup = rig.back_up()
    job_id = rig.order_in_place(backup.backup_id, start=True)
    refused = []

    def cancel(name: str) -> None:
        if name == boundary:
            with pytest.raises(errors.WrongState, match="past its commit"):
                rig.server.engine.cancel(job_id)
            refused.append(name)

    rig.on_boundary = cancel
    assert rig.run(job_id).job.state is JobState.SUCCEEDED
    assert refused == [boundary]
    check_new(rig, backup, ON)


def test_killed_at_every_boundary_it_goes_on(rig: Rig) -> None:
    """Once without a death, to count the boundaries; then with one at each."""
    backup = rig.back_up()
    rig.boundaries.clear()
    rig.run(rig.order_in_place(backup.backup_id, start=True))
    count = len(rig.boundaries)
    assert count > 20
    for at in range(count):
        rig.world.held.clear()
        rig.world.lineages.clear()
        rig.world.safeties.clear()
        job_id = rig.order_in_place(backup.backup_id, start=True)
        rig.boundaries.clear()
        rig.kill_at = at
        with pytest.raises(Killed):
            rig.run(job_id)
        held = disks_of(rig)
        assert held in (["old", "old"], images(backup)), held
        rig.restart()
        view = rig.run(job_id)
        assert view.job.state is JobState.SUCCEEDED, (at, view.job.failure)
        check_new(rig, backup, ON)
        check_told(rig, view)


@pytest.mark.parametrize("cancel_at", ["job.stop.after", "job.send disk1.done"])
def test_killed_while_it_cleans_up_it_goes_on_with_that(rig: Rig, cancel_at: str) -> None:
    backup = rig.back_up()
    job_id = rig.order_in_place(backup.backup_id)
    rig.on_boundary = lambda name: rig.server.engine.cancel(job_id) if name == cancel_at else None
    rig.kill_on = "job.clean give up.before"
    with pytest.raises(Killed):
        rig.run(job_id)
    rig.restart()
    assert rig.run(job_id).job.state is JobState.CANCELLED
    check_old(rig)
