"""A restore, step by step, against peers that fail, hang, come late or do things twice."""

from __future__ import annotations

import dataclasses

import pytest

from arraylift import errors
from arraylift.v1 import vm_pb2
from backup_server.job_rules import RESTORE_TAG, JobState, new_vm_id
from backup_server.model import PeerKind, RegisteredPeer
from tests.fakes.backup_server import PACING, Killed, Rig
from tests.fakes.world import Fault
from tests.fakes.world_array import SPAN

CENTER_CALLS = ("PlaceVm", "ProvisionVm", "PrepareRestore", "SendImage", "AttachVmVolume", "PowerVm")
HOST_CALLS = ("CreateVm", "PrepareRestore", "SendImage", "AttachVolume", "PowerOn")


def test_a_restore_is_a_new_vm(rig: Rig) -> None:
    backup = rig.back_up()
    view = rig.run(rig.order_restore(backup.backup_id))
    assert view.job.state is JobState.SUCCEEDED, view.job.failure
    (vm,) = rig.world.restored()
    old = rig.world.vm_named("web1")
    assert (vm.config.name, vm.vm_id, view.outcome.result_vm_id) == (
        "web1-restored",
        new_vm_id(view.job.job_id),
        vm.vm_id,
    )
    assert (vm.config.cpus, vm.config.memory_bytes) == (old.config.cpus, old.config.memory_bytes)
    assert dict(vm.config.tags) == {"tier": "gold", RESTORE_TAG: view.job.job_id}
    assert vm.config.uuid != old.config.uuid
    assert vm.config.networks[0].mac != old.config.networks[0].mac
    assert vm.config.networks[0].network == "lan"
    assert vm.power == vm_pb2.POWER_STATE_OFF
    short = view.job.job_id[:12]
    assert [(disk.name, disk.volume_name) for disk in vm.config.disks] == [
        ("disk0", f"web1-restored-disk0-{short}"),
        ("disk1", f"web1-restored-disk1-{short}"),
    ]
    assert rig.world.volumes[f"web1-restored-disk1-{short}"] == 4 * SPAN
    assert (view.spans_done, view.spans_total) == (7, 7)
    assert rig.world.leftovers() == []


def test_it_keeps_its_identity_and_starts_when_asked(rig: Rig) -> None:
    backup = rig.back_up()
    view = rig.run(rig.order_restore(backup.backup_id, name="web2", start=True, keep=True))
    assert view.job.state is JobState.SUCCEEDED
    (vm,) = rig.world.restored()
    old = rig.world.vm_named("web1")
    assert (vm.config.name, vm.config.uuid) == ("web2", old.config.uuid)
    assert vm.config.networks == old.config.networks
    assert vm.power == vm_pb2.POWER_STATE_ON


def test_directly_on_a_host(rig: Rig) -> None:
    backup = rig.back_up(direct=True)
    view = rig.run(rig.order_restore(backup.backup_id, direct=True, start=True))
    assert view.job.state is JobState.SUCCEEDED
    assert rig.world.count("ProvisionVm") == 0
    assert rig.world.leftovers() == []


def test_disks_are_attached_in_the_order_of_the_guest(rig: Rig) -> None:
    backup = rig.back_up()
    rig.world.fault("SendImage", "cut")
    assert rig.run(rig.order_restore(backup.backup_id)).job.state is JobState.SUCCEEDED
    assert [disk.name for disk in rig.world.restored()[0].config.disks] == ["disk0", "disk1"]


def test_a_taken_name_is_refused_before_there_is_a_job(rig: Rig) -> None:
    backup = rig.back_up()
    with pytest.raises(errors.AlreadyExists, match="db1"):
        rig.order_restore(backup.backup_id, name="db1")
    with pytest.raises(errors.NotFound):
        rig.order_restore("0" * 32)
    assert len(rig.server.db.jobs(unfinished=False, limit=10)) == 1


def test_a_name_taken_meanwhile_is_refused_before_anything_is_made(rig: Rig) -> None:
    backup = rig.back_up()
    first, second = (rig.order_restore(backup.backup_id, name="twin") for _ in range(2))
    assert rig.run(first).job.state is JobState.SUCCEEDED
    view = rig.run(second)
    assert view.job.state is JobState.FAILED
    assert view.job.failure is not None
    assert view.job.failure.reason == "already_exists"
    assert [step.name for step in view.steps] == ["plan"]
    assert len(rig.world.restored()) == 1
    assert rig.world.leftovers() == []


@pytest.mark.parametrize("method", CENTER_CALLS)
@pytest.mark.parametrize("kind", ["fail", "lost", "twice", "hang", "late"])
def test_each_call_may_go_wrong_once(rig: Rig, method: str, kind: str) -> None:
    backup = rig.back_up()
    job_id = rig.order_restore(backup.backup_id, start=True)
    rig.world.fault(method, kind)
    view = rig.run(job_id)
    assert view.job.state is JobState.SUCCEEDED, view.job.failure
    rig.world.wait_idle()
    assert len(rig.world.restored()) == 1
    assert rig.world.leftovers() == []


@pytest.mark.parametrize("method", [*CENTER_CALLS, *HOST_CALLS])
@pytest.mark.parametrize("kind", ["fail", "lost"])
def test_what_fails_for_good_leaves_nothing(rig: Rig, method: str, kind: str) -> None:
    backup = rig.back_up()
    job_id = rig.order_restore(backup.backup_id, start=True, direct=method in HOST_CALLS)
    rig.world.fault(method, Fault(kind, errors.Corruption("no")))
    view = rig.run(job_id)
    assert view.job.state is JobState.FAILED
    assert rig.world.restored() == []
    assert rig.world.leftovers() == []
    assert rig.server.backups.all() == [backup]


def test_a_volume_that_lands_after_the_job_gave_up_is_swept(rig: Rig) -> None:
    backup = rig.back_up("db1")
    job_id = rig.order_restore(backup.backup_id)
    rig.world.fault("SendImage", *["late"] * 1)
    rig.world.fault("SendImage", Fault("fail", errors.Corruption("no")))
    assert rig.run(job_id).job.state is JobState.FAILED
    rig.sweep()
    assert rig.world.leftovers() == []


def test_the_target_has_no_more_patience_than_the_job(rig: Rig) -> None:
    view = rig.run(rig.order_restore(rig.back_up("db1").backup_id, name="db2"))
    assert view.job.state is JobState.SUCCEEDED
    (asked,) = [request for name, request in rig.world.calls if name == "SendImage"]
    assert asked.patience_seconds == PACING.transfer_patience_seconds == 2


def test_an_array_that_restarted_is_asked_again(rig: Rig) -> None:
    backup = rig.back_up("db1")
    job_id = rig.order_restore(backup.backup_id)
    rig.world.fault("SendImage", Fault("fail", errors.NotFound("there is no restore")))
    assert rig.run(job_id).job.state is JobState.SUCCEEDED
    assert rig.world.count("PrepareRestore") == 2


def test_an_image_that_is_gone_fails_the_restore_soon(rig: Rig) -> None:
    backup = rig.back_up("db1")
    job_id = rig.order_restore(backup.backup_id)
    del rig.world.images[backup.disks[0].image_id]
    view = rig.run(job_id)
    assert view.job.failure is not None
    assert view.job.failure.reason == "not_found"
    assert rig.world.count("SendImage") == 6
    assert rig.world.restored() == []


def test_a_volume_that_is_there_although_its_receipt_was_lost(rig: Rig) -> None:
    backup = rig.back_up("db1")
    job_id = rig.order_restore(backup.backup_id)
    rig.kill_on = "job.send disk0.done"
    with pytest.raises(Killed):
        rig.run(job_id)
    rig.restart()
    rig.world.forget_restores()
    assert rig.run(job_id).job.state is JobState.SUCCEEDED
    assert rig.world.count("SendImage") == 1
    assert rig.world.leftovers() == []


@pytest.mark.parametrize("boundary", ["job.plan.after", "job.send disk1.before", "job.attach disk0.after"])
def test_a_cancelled_restore_leaves_nothing(rig: Rig, boundary: str) -> None:
    backup = rig.back_up()
    job_id = rig.order_restore(backup.backup_id)
    rig.on_boundary = lambda name: rig.server.engine.cancel(job_id) if name == boundary else None
    assert rig.run(job_id).job.state is JobState.CANCELLED
    assert rig.world.restored() == []
    assert rig.world.leftovers() == []


def test_another_array_may_take_the_disks(rig: Rig) -> None:
    backup = rig.back_up("db1")
    rig.server.registry.add(RegisteredPeer(PeerKind.ARRAY, "array2", rig.world.addresses["array2"]))
    job_id = rig.order_restore(backup.backup_id)
    job = rig.server.db.job(job_id)
    assert job.restore is not None
    rig.server.db.update_job(job_id, restore=dataclasses.replace(job.restore, array="array2"))
    assert rig.run(job_id).job.state is JobState.SUCCEEDED
    assert rig.world.restored()[0].config.disks[0].array == "array2"


def test_an_array_that_is_another_is_sent_nothing(rig: Rig) -> None:
    """Its address was mistaken for another's: its certificate says who it is."""
    backup = rig.back_up("db1")
    rig.server.registry.add(RegisteredPeer(PeerKind.ARRAY, "array1", rig.world.addresses["array2"]))
    asked = rig.world.count("PrepareRestore")
    job_id = rig.order_restore(backup.backup_id)
    view = rig.run(job_id)
    assert view.job.state is JobState.FAILED
    assert view.job.failure is not None
    assert "whoever answers is not array array1" in view.job.failure.message
    assert rig.world.count("PrepareRestore") == asked
    assert rig.world.leftovers() == []


def test_a_backup_that_a_restore_reads_is_not_deleted(rig: Rig) -> None:
    backup = rig.back_up("db1")
    job_id = rig.order_restore(backup.backup_id)
    with pytest.raises(errors.WrongState, match=job_id):
        rig.server.backups.delete(backup.backup_id)
    assert rig.run(job_id).job.state is JobState.SUCCEEDED
    rig.server.backups.delete(backup.backup_id)
    assert rig.world.manifests == {}
    with pytest.raises(errors.NotFound):
        rig.order_restore(backup.backup_id)
