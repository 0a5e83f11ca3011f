"""A backup, step by step, against peers that fail, hang, come late or do things twice."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Self

import pytest

from arraylift import errors
from arraylift.exchange.messages import Figures
from arraylift.vm.types import ConsistencyLevel
from backup_server.job_rules import JobState, transfer_id
from backup_server.job_run import JobRun
from backup_server.model import Receipt, TransferNews
from tests.fakes.backup_server import PACING, Rig
from tests.fakes.world import Fault
from tests.fakes.world_array import SPAN

CENTER_CALLS = ("GetManagedVm", "PrepareBackup", "CreateGrant", "SendSnapshot", "PublishBackup")
STEPS = [
    "locate",
    "turn",
    "snapshot",
    "identify",
    "attributes",
    "grant disk0",
    "grant disk1",
    "publish",
    "release",
    "send disk0",
    "send disk1",
]


def test_a_backup_through_the_center(rig: Rig) -> None:
    view = rig.run(rig.order_backup())
    assert view.job.state is JobState.SUCCEEDED
    assert sorted(step.name for step in view.steps) == sorted(STEPS)
    assert [step.name for step in view.steps][:4] == STEPS[:4]
    assert all(step.ended_at_ns >= step.started_at_ns > 0 for step in view.steps)
    assert (view.spans_done, view.spans_total, view.figures.bytes_read) == (7, 7, 7 * SPAN)
    assert view.outcome.frozen_ns == rig.world.frozen_ns
    (backup,) = rig.server.backups.all()
    vm = rig.world.vm_named("web1")
    assert (backup.backup_id, backup.vm_id, backup.level) == (
        view.job.job_id,
        vm.vm_id,
        ConsistencyLevel.FILESYSTEM,
    )
    assert [(disk.disk_name, disk.size_bytes) for disk in backup.disks] == [
        ("disk0", 3 * SPAN),
        ("disk1", 4 * SPAN),
    ]
    assert backup.disks[0].image_id == transfer_id(view.job.job_id, "disk0")
    assert backup.config.memory_bytes == 1 << 30
    assert not backup.incremental
    assert list(rig.world.manifests) == [backup.backup_id]
    assert rig.world.leftovers() == []
    assert rig.world.count("GetVm") == 0, "the center alone was asked"


def test_a_backup_by_the_host(rig: Rig) -> None:
    view = rig.run(rig.order_backup(direct=True))
    assert view.job.state is JobState.SUCCEEDED
    assert rig.world.count("GetVmSnapshot") == 1, "the consistent state is identified by the VM API"
    assert rig.world.count("PrepareBackup") == 0
    assert rig.world.leftovers() == []


def test_the_second_backup_builds_on_the_first(rig: Rig) -> None:
    first = rig.back_up()
    second = rig.back_up()
    third = rig.back_up(full=True)
    assert (first.incremental, second.incremental, third.incremental) == (False, True, False)
    assert [one.backup_id for one in rig.server.backups.all("web1")] == [
        one.backup_id for one in (third, second, first)
    ]


def test_the_first_backup_of_a_restored_vm_builds_on_what_it_was_restored_from(rig: Rig) -> None:
    first = rig.back_up()
    rig.run(rig.order_restore(first.backup_id, name="web2"))
    rig.world.fault("CreateGrant", "lost")
    second = rig.back_up("web2")
    bases = {disk.disk_name: rig.world.bases[disk.image_id] for disk in second.disks}
    assert bases == {disk.disk_name: disk.image_id for disk in first.disks}
    third = rig.back_up("web2")
    bases = {disk.disk_name: rig.world.bases[disk.image_id] for disk in third.disks}
    assert bases == {disk.disk_name: disk.image_id for disk in second.disks}, "from then on its own"
    whole = rig.back_up("web2", full=True)
    assert [rig.world.bases[disk.image_id] for disk in whole.disks] == ["", ""]


def test_a_restored_vm_whose_backup_is_gone_is_read_whole(rig: Rig) -> None:
    first = rig.back_up()
    rig.run(rig.order_restore(first.backup_id, name="web2"))
    rig.server.backups.delete(first.backup_id)
    second = rig.back_up("web2")
    assert [rig.world.bases[disk.image_id] for disk in second.disks] == ["", ""]


def test_excluded_disks_stay_out(rig: Rig) -> None:
    view = rig.run(rig.order_backup(exclude=("disk0",)))
    assert view.job.state is JobState.SUCCEEDED
    (backup,) = rig.server.backups.all()
    assert [disk.disk_name for disk in backup.disks] == ["disk1"]
    assert [disk.name for disk in backup.config.disks] == ["disk0", "disk1"]


def test_a_level_that_was_not_reached_leaves_nothing(rig: Rig) -> None:
    view = rig.run(rig.order_backup(level_min=ConsistencyLevel.APPLICATION))
    assert view.job.state is JobState.FAILED
    assert view.job.failure is not None
    assert view.job.failure.reason == "wrong_state"
    assert rig.world.leftovers() == []


@pytest.mark.parametrize("method", CENTER_CALLS)
@pytest.mark.parametrize("kind", ["fail", "lost", "twice", "hang", "late"])
def test_each_call_may_go_wrong_once(rig: Rig, method: str, kind: str) -> None:
    job_id = rig.order_backup()
    rig.world.fault(method, kind)
    view = rig.run(job_id)
    assert view.job.state is JobState.SUCCEEDED, view.job.failure
    rig.world.wait_idle()
    assert rig.world.made_manifests == [job_id]
    assert rig.world.leftovers() == []


@pytest.mark.parametrize("kind", ["cut", "mute"])
def test_a_transfer_that_breaks_goes_on(rig: Rig, kind: str) -> None:
    rig.world.fault("SendSnapshot", kind, kind)
    assert rig.run(rig.order_backup()).job.state is JobState.SUCCEEDED
    ids = [request.transfer_id for name, request in rig.world.calls if name == "SendSnapshot"]
    assert len(ids) == 4
    assert len(set(ids)) == 2, "a replay is the same transfer"
    asked = [request for name, request in rig.world.calls if name == "SendSnapshot"]
    assert {request.patience_seconds for request in asked} == {PACING.transfer_patience_seconds}


class HandClock:
    """Time that a test turns by hand."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def monotonic(self) -> float:
        return self.seconds

    def wall_ns(self) -> int:
        return int(self.seconds * 1e9)


class LateNews:
    """A transfer that moves, and is then retried by its sender for as long as our patience."""

    def __init__(self, clock: HandClock) -> None:
        self._news = self._tell(clock)

    def _tell(self, clock: HandClock) -> Iterator[TransferNews]:
        yield TransferNews(1, Figures())
        clock.seconds += PACING.patience_seconds

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TransferNews:
        return next(self._news)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        return

    def cancel(self) -> None:
        raise AssertionError("nobody cancels it")


def test_a_step_that_is_tried_again_says_why(rig: Rig) -> None:
    told: list[str] = []
    job_id = rig.order_backup("db1")

    def look(boundary: str) -> None:
        if boundary == "job.grant disk0.done":
            told.extend(step.detail for step in rig.server.engine.view(job_id).steps)

    rig.on_boundary = look
    rig.world.fault("CreateGrant", "fail")
    waiting = threading.Thread(target=rig.run, args=(job_id,))
    waiting.start()
    seen: set[str] = set()
    while waiting.is_alive():
        seen |= {step.detail for step in rig.server.engine.view(job_id).steps if step.name == "grant disk0"}
    waiting.join()
    assert "tried again: the peer is down" in seen
    assert not any("again" in detail for detail in told), "once it has succeeded there is no trouble"
    assert not any("again" in step.detail for step in rig.server.engine.view(job_id).steps)


def test_an_address_that_is_set_right_is_taken_by_the_job_that_waits(rig: Rig) -> None:
    right = rig.server.registry.target("")
    rig.server.registry.add(replace(right, address="127.0.0.1:1"))
    job_id = rig.order_backup("db1")
    waiting = threading.Thread(target=rig.run, args=(job_id,))
    waiting.start()
    while not any("again" in step.detail for step in rig.server.engine.view(job_id).steps):
        assert waiting.is_alive()
    rig.server.registry.add(right)
    waiting.join()
    assert rig.server.db.job(job_id).state is JobState.SUCCEEDED


def test_patience_counts_from_the_last_progress(rig: Rig) -> None:
    clock, tries = HandClock(), []
    job = rig.server.db.job(rig.order_backup("db1"))
    run = JobRun(job, rig.server.db, clock=clock, pacing=PACING, hook=lambda _name: None)

    def send() -> Receipt:
        tries.append(clock.seconds)
        return run.follow("disk0", LateNews(clock), 4)

    with pytest.raises(errors.PeerUnavailable, match="without a receipt"):
        run.retry(send, "send disk0")
    assert tries == [100.0], "whoever retried for us has used our patience up"


@pytest.mark.parametrize("method", CENTER_CALLS)
@pytest.mark.parametrize("direct", [False, True])
def test_what_fails_for_good_fails_the_job_and_leaves_nothing(rig: Rig, method: str, direct: bool) -> None:
    if direct:
        method = {"GetManagedVm": "GetVm", "PrepareBackup": "CreateVmSnapshot"}.get(method, method)
    job_id = rig.order_backup(direct=direct)
    rig.world.fault(method, Fault("fail", errors.NotPermitted("no", subject="it", next_step="ask", who="me")))
    view = rig.run(job_id)
    assert view.job.state is JobState.FAILED
    failure = view.job.failure
    assert failure is not None
    assert (failure.reason, failure.message, failure.subject, failure.next_step, failure.fields) == (
        "not_permitted",
        "no",
        "it",
        "ask",
        {"who": "me"},
    )
    assert rig.world.leftovers() == []
    assert rig.server.backups.all() == []


@pytest.mark.parametrize("method", CENTER_CALLS)
def test_patience_ends(rig: Rig, method: str) -> None:
    job_id = rig.order_backup()
    rig.world.fault(method, *["fail"] * 1000)
    view = rig.run(job_id)
    assert view.job.state is JobState.FAILED
    assert view.job.failure is not None
    assert view.job.failure.reason == "peer_unavailable"
    assert rig.world.leftovers() == []


@pytest.mark.parametrize(
    "method", ["ReleaseSnapshot", "ListVmSnapshots", "RevokeGrant", "DeleteImage", "DeleteBackupManifest"]
)
@pytest.mark.parametrize("kind", ["fail", "lost", "late"])
def test_cleaning_up_may_go_wrong_too(rig: Rig, method: str, kind: str) -> None:
    job_id = rig.order_backup()
    rig.world.fault("PublishBackup", Fault("lost", errors.Corruption("no")))
    rig.world.fault(method, kind)
    assert rig.run(job_id).job.state is JobState.FAILED
    rig.world.wait_idle()
    assert rig.world.leftovers() == []
    assert rig.server.backups.all() == []


def test_the_reaper_finishes_what_a_job_could_not_clean_up(rig: Rig) -> None:
    job_id = rig.order_backup()
    rig.world.fault("PublishBackup", Fault("fail", errors.Corruption("no")))
    rig.world.fault("DeleteImage", *["fail"] * 10_000)
    assert rig.run(job_id).job.state is JobState.FAILED
    assert [one for one in rig.world.leftovers() if one.startswith("image")]
    assert rig.server.engine.sweep() == 1
    rig.world.faults.clear()
    rig.restart()
    rig.sweep()
    assert rig.world.leftovers() == []


def test_a_snapshot_whose_answer_never_came_is_found_at_its_host(rig: Rig) -> None:
    job_id = rig.order_backup()
    rig.world.fault("PrepareBackup", Fault("lost", errors.NotPermitted("no")))
    assert rig.run(job_id).job.state is JobState.FAILED
    assert rig.world.leftovers() == []


def test_a_backup_that_cannot_release_its_snapshot_is_a_backup(rig: Rig) -> None:
    job_id = rig.order_backup()
    rig.world.fault("ReleaseSnapshot", *["fail"] * 1000)
    assert rig.run(job_id).job.state is JobState.SUCCEEDED
    assert rig.world.leftovers() == [f"VM snapshot {job_id}"]
    rig.world.faults.clear()
    rig.sweep()
    assert rig.world.leftovers() == []
    assert list(rig.world.manifests) == [job_id]


def test_the_lease_is_renewed_while_disks_are_sent(rig: Rig) -> None:
    assert rig.run(rig.order_backup()).job.state is JobState.SUCCEEDED
    names = [name for name, _ in rig.world.calls]
    assert "RenewSnapshot" in names
    assert names.index("PrepareBackup") < names.index("RenewSnapshot") < names.index("PublishBackup")


def test_a_lapsed_snapshot_fails_the_job_at_once(rig: Rig) -> None:
    job_id = rig.order_backup()
    rig.world.fault("SendSnapshot", "mute", "mute")
    rig.world.fault("RenewSnapshot", Fault("fail", errors.NotFound("there is no such snapshot")))
    view = rig.run(job_id)
    assert view.job.state is JobState.FAILED
    assert view.job.failure is not None
    assert "before all disks were sent" in view.job.failure.message
    assert rig.world.leftovers() == []


# -- one at a time, and its end -----------------------------------------------------------------


def test_one_backup_a_vm(rig: Rig) -> None:
    first = rig.order_backup()
    with pytest.raises(errors.Conflict, match=first) as caught:
        rig.order_backup()
    assert caught.value.fields["job_id"] == first
    other = rig.order_backup("db1")
    assert rig.run(first).job.state is JobState.SUCCEEDED
    assert rig.run(other).job.state is JobState.SUCCEEDED
    assert rig.run(rig.order_backup()).job.state is JobState.SUCCEEDED


def test_a_waiting_job_is_cancelled_at_once(rig: Rig) -> None:
    job_id = rig.order_backup()
    rig.server.engine.cancel(job_id)
    assert rig.run(job_id).job.state is JobState.CANCELLED
    assert rig.world.count("PrepareBackup") == 0
    with pytest.raises(errors.WrongState, match="has ended"):
        rig.server.engine.cancel(job_id)
    with pytest.raises(errors.NotFound):
        rig.server.engine.cancel("0" * 32)


@pytest.mark.parametrize("boundary", ["job.snapshot.after", "job.send disk0.before", "job.grant disk1.done"])
def test_a_running_job_is_cancelled_and_leaves_nothing(rig: Rig, boundary: str) -> None:
    job_id = rig.order_backup()
    rig.on_boundary = lambda name: rig.server.engine.cancel(job_id) if name == boundary else None
    view = rig.run(job_id)
    assert view.job.state is JobState.CANCELLED
    assert view.job.failure is None
    assert rig.world.leftovers() == []
    assert rig.server.backups.all() == []


def test_a_transfer_under_way_is_cancelled(rig: Rig) -> None:
    job_id = rig.order_backup()
    rig.world.fault("SendSnapshot", "hang", "hang")
    running = threading.Thread(target=rig.run, args=(job_id,))
    running.start()
    while rig.world.count("SendSnapshot") < 2:
        assert running.is_alive()
        running.join(0.01)
    rig.server.engine.cancel(job_id)
    running.join(20)
    assert rig.server.engine.view(job_id).job.state is JobState.CANCELLED
    assert rig.world.leftovers() == []


@pytest.mark.parametrize("boundary", ["job.publish.before", "job.publish.done", "job.release.before"])
def test_past_its_commit_a_job_goes_on(rig: Rig, boundary: str) -> None:
    job_id = rig.order_backup()
    refused = []

    def cancel(name: str) -> None:
        if name == boundary:
            with pytest.raises(errors.WrongState, match="past its commit"):
                rig.server.engine.cancel(job_id)
            refused.append(name)

    rig.on_boundary = cancel
    assert rig.run(job_id).job.state is JobState.SUCCEEDED
    assert refused == [boundary]
    assert rig.world.leftovers() == []


def test_a_stopped_server_lets_go_and_resumes(rig: Rig) -> None:
    job_id = rig.order_backup()
    rig.world.fault("SendSnapshot", "mute", "mute")
    rig.server.start()
    done = threading.Event()
    while rig.world.count("SendSnapshot") < 2:
        done.wait(0.01)
    rig.restart()
    assert rig.server.engine.view(job_id).job.state is JobState.RUNNING
    rig.server.start()
    while not (view := rig.server.engine.view(job_id)).job.state.ended:
        done.wait(0.01)
    assert view.job.state is JobState.SUCCEEDED
    assert rig.world.count("PrepareBackup") == 1
    assert rig.world.leftovers() == []


def test_a_defect_of_ours_fails_the_job_cleanly(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = rig.order_backup()
    runner = rig.server.engine._runners[rig.server.db.job(job_id).kind]
    monkeypatch.setattr(runner, "_publish", lambda *_: 1 // 0)
    view = rig.run(job_id)
    assert view.job.state is JobState.FAILED
    assert view.job.failure is not None
    assert view.job.failure.reason == "store_failed"
    assert rig.world.leftovers() == []
