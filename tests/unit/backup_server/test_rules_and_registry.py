"""Pure rules of jobs; the registry; finding VMs; orders; connections."""

from __future__ import annotations

import uuid

import pytest

from arraylift import errors
from arraylift.ids import VmId
from arraylift.vm.types import ConsistencyLevel, SnapshotRequest
from backup_server import job_rules
from backup_server.job_rules import BackupOrder, JobState, Pacing, moved
from backup_server.model import PeerKind, RegisteredPeer
from backup_server.orders import Choice
from tests.fakes.backup_server import Rig
from tests.fakes.world import Fault
from tests.unit.backup_server.material import job

JOB, OTHER = "1" * 32, "2" * 32
ORDER = BackupOrder("", full=False, direct=False, level_min=ConsistencyLevel.UNSPECIFIED, exclude_disks=())


def test_states_go_forward_only() -> None:
    allowed = {(before, after) for before in JobState for after in JobState if _goes(before, after)}
    ends = {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}
    assert allowed == {
        (JobState.QUEUED, JobState.RUNNING),
        (JobState.QUEUED, JobState.CANCELLED),
        *((JobState.RUNNING, end) for end in ends),
    }
    assert {state for state in JobState if state.ended} == ends


def _goes(before: JobState, after: JobState) -> bool:
    try:
        return moved(job(1, state=before), after).state is after
    except AssertionError:
        return False


def test_ids_follow_from_the_job_and_differ() -> None:
    made = [
        job_rules.transfer_id(JOB, "disk0"),
        job_rules.transfer_id(JOB, "disk1"),
        job_rules.transfer_id(OTHER, "disk0"),
        job_rules.new_vm_id(JOB),
        job_rules.new_vm_id(OTHER),
    ]
    assert len(set(made)) == len(made)
    assert all(len(one) == 32 for one in made)
    # On disk and on other machines: these never change.
    assert job_rules.transfer_id(JOB, "disk0") == "e9bf197a87caa1a4a4302095a3335451"
    assert uuid.UUID(job_rules.new_uuid(JOB)).version == 5
    assert job_rules.new_mac(JOB, 0) != job_rules.new_mac(JOB, 1)
    assert job_rules.new_mac(JOB, 0).startswith("52:54:00:")
    assert len(job_rules.new_mac(JOB, 0)) == 17


@pytest.mark.parametrize("name", ["web1", "x" * 255, "é" * 127, "a b"])
def test_volume_names_fit_and_name_the_job(name: str) -> None:
    made = job_rules.restored_volume_name(name, "disk0", JOB)
    assert len(made.encode()) <= 255
    assert made.endswith(f"-disk0-{JOB[:12]}")
    assert made != job_rules.restored_volume_name(name, "disk0", OTHER)


def test_pauses_double_up_to_their_maximum() -> None:
    pacing = Pacing()
    assert [job_rules.pause_before(retry, pacing) for retry in (0, 1, 2, 9, 10_000)] == [
        0.5,
        1.0,
        2.0,
        10.0,
        10.0,
    ]


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (errors.PeerUnavailable, True),
        (errors.DeadlineExceeded, True),
        (errors.Overloaded, True),
        (errors.Conflict, True),
        (errors.TrackerMismatch, True),
        (errors.LeaseLost, True),
        (errors.NotFound, False),
        (errors.AlreadyExists, False),
        (errors.InvalidRequest, False),
        (errors.WrongState, False),
        (errors.Corruption, False),
        (errors.OutOfSpace, False),
        (errors.NotPermitted, False),
        (errors.StoreFailed, False),
    ],
)
def test_what_is_worth_repeating(error: type[errors.ArrayliftError], again: bool) -> None:
    assert job_rules.is_retryable(error("x")) is again


# -- registry -----------------------------------------------------------------------------------


def test_peers_are_added_changed_and_removed(rig: Rig) -> None:
    registry = rig.server.registry
    other = RegisteredPeer(PeerKind.ARRAY, "array2", "127.0.0.1:1")
    registry.add(other)
    registry.add(RegisteredPeer(PeerKind.ARRAY, "array2", "127.0.0.1:2"))
    assert registry.find(PeerKind.ARRAY, "array2").address == "127.0.0.1:2"
    registry.remove(PeerKind.ARRAY, "array2")
    with pytest.raises(errors.NotFound):
        registry.remove(PeerKind.ARRAY, "array2")
    with pytest.raises(errors.NotFound):
        registry.array("array2")
    assert registry.array("array2", "127.0.0.1:3").address == "127.0.0.1:3"


def test_what_is_needed_stays(rig: Rig) -> None:
    registry = rig.server.registry
    job_id = rig.order_backup()
    for kind, name in ((PeerKind.TARGET, "target1"), (PeerKind.ARRAY, "array1")):
        with pytest.raises(errors.WrongState, match=job_id):
            registry.remove(kind, name)
    registry.remove(PeerKind.HOST, "host1")  # the job goes through the center
    assert rig.run(job_id).job.state is JobState.SUCCEEDED
    registry.remove(PeerKind.ARRAY, "array1")
    with pytest.raises(errors.WrongState, match="backup"):
        registry.remove(PeerKind.TARGET, "target1")
    rig.server.backups.delete(job_id)
    registry.remove(PeerKind.TARGET, "target1")


def test_a_registered_center_comes_before_that_of_the_settings(rig: Rig) -> None:
    registry = rig.server.registry
    assert [peer.name for peer in registry.all(PeerKind.VCENTER)] == ["vcenter"]
    registry.add(RegisteredPeer(PeerKind.VCENTER, "vc9", "127.0.0.1:9"))
    assert [peer.name for peer in registry.all(PeerKind.VCENTER)] == ["vc9"]
    center = registry.center()
    assert center is not None
    assert center.address == "127.0.0.1:9"


def test_probes_say_what_is_wrong(rig: Rig) -> None:
    rig.server.registry.add(RegisteredPeer(PeerKind.ARRAY, "gone", "127.0.0.1:1"))
    probed = rig.server.registry.probe(rig.server.registry.all())
    problems = {one.peer.name: one.problem for one in probed}
    assert "does not answer" in (problems.pop("gone") or "")
    assert problems == {"array1": "", "target1": "", "host1": "", "vcenter": ""}


def test_the_target_is_the_only_one_or_named(rig: Rig) -> None:
    registry = rig.server.registry
    assert registry.target("").name == "target1"
    registry.add(RegisteredPeer(PeerKind.TARGET, "target2", "127.0.0.1:1"))
    with pytest.raises(errors.InvalidRequest, match="name one"):
        registry.target("")
    with pytest.raises(errors.NotFound):
        registry.target("target3")


# -- finding VMs, taking orders -----------------------------------------------------------------


@pytest.mark.parametrize("direct", [False, True])
def test_vms_are_found_by_name_and_id(rig: Rig, direct: bool) -> None:
    side = rig.server.inventory.side(direct=direct)
    vm = rig.world.vm_named("web1")
    assert side.find("web1").vm.vm_id == side.find(vm.vm_id).vm.vm_id == vm.vm_id
    assert (side.find("web1").host, side.find("web1").host_address) == (
        "host1",
        rig.world.addresses["host"],
    )
    with pytest.raises(errors.NotFound):
        side.find("nobody")
    with pytest.raises(errors.NotFound):
        side.find("0" * 32)


def test_not_found_needs_every_host(rig: Rig) -> None:
    rig.server.registry.add(RegisteredPeer(PeerKind.HOST, "a-dead-host", "127.0.0.1:1"))
    side = rig.server.inventory.side(direct=True)
    assert side.find("web1").host == "host1"
    with pytest.raises(errors.PeerUnavailable):
        side.find("nobody")


def test_without_a_center_everything_is_direct(rig: Rig) -> None:
    rig.server.registry._center = None
    view = rig.run(rig.order_backup())
    assert view.job.state is JobState.SUCCEEDED
    assert view.job.backup is not None
    assert view.job.backup.direct
    rig.server.registry.remove(PeerKind.HOST, "host1")
    with pytest.raises(errors.WrongState, match="no host"):
        rig.order_backup()


def test_all_and_tags_leave_out_what_is_busy(rig: Rig) -> None:
    orders = rig.server.orders
    busy = rig.order_backup("web1")
    (started,) = orders.start_backups(Choice((), all=True, tag=""), ORDER)
    assert rig.server.db.job(started).vm_name == "db1"
    with pytest.raises(errors.Conflict) as caught:
        orders.start_backups(Choice((), all=False, tag="tier=gold"), ORDER)
    assert caught.value.fields["job_id"] == busy
    for tag, error in (
        ("tier=tin", errors.NotFound),
        ("tier", errors.InvalidRequest),
        ("=x", errors.InvalidRequest),
    ):
        with pytest.raises(error):
            orders.start_backups(Choice((), all=False, tag=tag), ORDER)
    with pytest.raises(errors.InvalidRequest):
        orders.start_backups(Choice((), all=False, tag=""), ORDER)


def test_one_vm_named_twice_is_one_job(rig: Rig) -> None:
    vm = rig.world.vm_named("web1")
    choice = Choice(("web1", vm.vm_id), all=False, tag="")
    assert len(rig.server.orders.start_backups(choice, ORDER)) == 1


@pytest.mark.parametrize(("patience", "given"), [(0.0, 1), (1.5, 2), (6.0, 6), (300.0, 60), (86400.0, 60)])
def test_a_transfer_has_no_more_patience_than_its_job(patience: float, given: int) -> None:
    assert job_rules.Pacing(patience_seconds=patience).transfer_patience_seconds == given


# -- connections --------------------------------------------------------------------------------


def test_silence_ends_a_transfer(rig: Rig) -> None:
    rig.world.fault("SendSnapshot", Fault("mute"))
    rig.world.vm_snapshots.clear()
    side = rig.server.inventory.side(direct=True)
    at = rig.server.registry.hosts()[0]
    vm_id = rig.world.vm_named("db1").vm_id
    snapshot = side.take_snapshot(SnapshotRequest(VmId(vm_id), "x", ConsistencyLevel.UNSPECIFIED, 30, ()), at)
    target = rig.server.peers.target(rig.server.registry.target(""))
    grant, _ = target.create_grant("a" * 32, array="array1", image_name="x/y", full=False)
    array = rig.server.peers.array(rig.server.registry.array("array1"))
    transfer = array.send_snapshot(
        snapshot.disks[0].snapshot_id,
        "a" * 32,
        target_address="127.0.0.1:1",
        grant=grant,
        full=False,
        patience_seconds=7,
    )
    assert next(transfer).spans_done == 0
    with pytest.raises(errors.DeadlineExceeded, match="said nothing"):
        next(transfer)


def test_after_close_nobody_is_called(rig: Rig) -> None:
    target = rig.server.peers.target(rig.server.registry.target(""))
    rig.peers.close()
    for call in (lambda: target.delete_image("a" * 32), lambda: list(target.backups())):
        with pytest.raises(errors.PeerUnavailable):
            call()
