"""Single disks restored as volumes or in place, and attributes of a VM edited on the way."""

from __future__ import annotations

from typing import Any

import pytest

from arraylift import errors
from arraylift.v1 import vm_pb2
from backup_server.engine import JobView
from backup_server.job_rules import JobState, RestoreOrder
from tests.fakes.backup_server import Killed, Rig
from tests.fakes.world import Fault
from tests.fakes.world_array import SPAN


def order(backup_id: str, **more: Any) -> RestoreOrder:
    plain: dict[str, Any] = dict.fromkeys(("as_name", "host", "array"), "")
    plain |= dict.fromkeys(("start", "direct", "keep_identity"), False)
    return RestoreOrder(backup_id, **(plain | more))


def restore(rig: Rig, backup_id: str, **more: Any) -> JobView:
    return rig.run(rig.server.orders.start_restore(order(backup_id, **more)))


@pytest.mark.parametrize("direct", [False, True])
def test_a_disk_becomes_a_volume_and_no_vm(rig: Rig, direct: bool) -> None:
    backup = rig.back_up()
    view = restore(rig, backup.backup_id, disks=("disk1",), volume="mine", direct=direct)
    assert view.job.state is JobState.SUCCEEDED, view.job.failure
    assert rig.world.volumes["mine"] == 4 * SPAN
    assert rig.world.restored() == []
    assert (view.spans_done, view.spans_total, view.outcome.result_vm_id) == (4, 4, "")
    assert set(rig.world.volumes) - rig.world.own_volumes == {"mine"}


def test_disks_without_a_name_get_one_each(rig: Rig) -> None:
    backup = rig.back_up()
    view = restore(rig, backup.backup_id, disks=("disk1", "disk0"))
    short = view.job.job_id[:12]
    made = set(rig.world.volumes) - rig.world.own_volumes
    assert made == {f"web1-disk0-{short}", f"web1-disk1-{short}"}


@pytest.mark.parametrize("direct", [False, True])
def test_a_running_vm_gets_it_as_a_further_disk(rig: Rig, direct: bool) -> None:
    backup = rig.back_up()
    rig.world.fault("AttachVolume" if direct else "AttachVmVolume", "mute")
    view = restore(rig, backup.backup_id, disks=("disk1",), volume="mine", attach="db1", direct=direct)
    assert view.job.state is JobState.SUCCEEDED, view.job.failure
    vm = rig.world.vm_named("db1")
    assert view.outcome.result_vm_id == vm.vm_id
    assert [(disk.name, disk.volume_name) for disk in vm.config.disks][-1] == (
        f"disk1-{view.job.job_id[:12]}",
        "mine",
    )
    assert rig.world.leftovers() == []


def test_a_volume_of_that_name_is_never_taken_for_ours(rig: Rig) -> None:
    backup = rig.back_up()
    rig.world.volumes["mine"] = 4 * SPAN
    view = restore(rig, backup.backup_id, disks=("disk1",), volume="mine")
    assert view.job.failure is not None
    assert view.job.failure.reason == "already_exists"
    assert "mine" in rig.world.volumes
    # Between the look and the transfer somebody makes one.
    del rig.world.volumes["mine"]
    job_id = rig.server.orders.start_restore(order(backup.backup_id, disks=("disk1",), volume="mine"))
    rig.on_boundary = lambda name: rig.world.volumes.update({"mine": SPAN}) if "send" in name else None
    view = rig.run(job_id)
    rig.sweep()
    assert view.job.failure is not None
    assert view.job.failure.reason == "already_exists"
    assert rig.world.volumes["mine"] == SPAN


def test_what_a_refused_attachment_leaves(rig: Rig) -> None:
    backup = rig.back_up()
    rig.world.fault("AttachVmVolume", Fault("fail", errors.WrongState("no slot is free")))
    view = restore(rig, backup.backup_id, disks=("disk0", "disk1"), attach="db1")
    assert view.job.failure is not None
    assert view.job.failure.message == "no slot is free"
    rig.sweep()
    assert set(rig.world.volumes) == rig.world.own_volumes


def test_killed_anywhere_it_ends_as_if_it_were_not(rig: Rig) -> None:
    backup = rig.back_up()
    wanted = order(backup.backup_id, disks=("disk0", "disk1"), attach="db1")
    rig.boundaries.clear()
    assert rig.run(rig.server.orders.start_restore(wanted)).job.state is JobState.SUCCEEDED
    count = len(rig.boundaries)
    assert count > 8
    for at in range(count):
        before = len(rig.world.vm_named("db1").config.disks)
        rig.boundaries.clear()
        rig.kill_at = at
        job_id = rig.server.orders.start_restore(wanted) if at else ""
        if not at:
            rig.kill_at = None
            continue
        with pytest.raises(Killed):
            rig.run(job_id)
        rig.restart()
        view = rig.run(job_id)
        assert view.job.state is JobState.SUCCEEDED, (at, view.job.failure)
        assert len(rig.world.vm_named("db1").config.disks) == before + 2, at
        assert rig.world.leftovers() == []


def test_one_disk_goes_back_in_place(rig: Rig) -> None:
    backup = rig.back_up()
    view = restore(rig, backup.backup_id, disks=("disk1",), in_place=True, stop=True, start=True)
    assert view.job.state is JobState.SUCCEEDED, view.job.failure
    assert rig.world.held == {"web1-disk1": backup.disks[1].image_id}
    assert [one.disk_name for one in view.outcome.safeties] == ["disk1"]
    assert rig.world.vm_named("web1").power == vm_pb2.POWER_STATE_ON


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"disks": ("disk7",)}, errors.NotFound),
        ({"disks": ("disk1",), "attach": "nobody"}, errors.NotFound),
        ({"disks": ("disk1", "disk1")}, errors.InvalidRequest),
        ({"disks": ("disk0", "disk1"), "volume": "one"}, errors.InvalidRequest),
        ({"disks": ("disk1",), "as_name": "vm"}, errors.InvalidRequest),
        ({"disks": ("disk1",), "memory_bytes": 1 << 30}, errors.InvalidRequest),
        ({"disks": ("disk1",), "volume": "v", "in_place": True, "stop": True}, errors.InvalidRequest),
        ({"volume": "v"}, errors.InvalidRequest),
        ({"attach": "db1"}, errors.InvalidRequest),
        ({"in_place": True, "stop": True, "cpus": 4}, errors.InvalidRequest),
    ],
)
def test_what_makes_no_sense_is_no_job(rig: Rig, more: dict[str, Any], error: type[Exception]) -> None:
    backup = rig.back_up()
    jobs = len(rig.server.db.jobs(unfinished=False, limit=10))
    with pytest.raises(error):
        restore(rig, backup.backup_id, **more)
    assert len(rig.server.db.jobs(unfinished=False, limit=10)) == jobs


@pytest.mark.parametrize("keep", [False, True])
def test_attributes_are_edited_on_the_way(rig: Rig, keep: bool) -> None:
    backup = rig.back_up()
    view = restore(
        rig,
        backup.backup_id,
        memory_bytes=8 << 30,
        cpus=6,
        networks=("lab", "dmz"),
        keep_identity=keep,
    )
    assert view.job.state is JobState.SUCCEEDED, view.job.failure
    (vm,) = rig.world.restored()
    old = rig.world.vm_named("web1").config
    assert (vm.config.memory_bytes, vm.config.cpus) == (8 << 30, 6)
    assert [one.network for one in vm.config.networks] == ["lab", "dmz"]
    assert (vm.config.networks[0].mac == old.networks[0].mac) is keep
    asked = [request for method, request in rig.world.calls if method == "PlaceVm"]
    assert (asked[-1].memory_bytes, asked[-1].cpus) == (8 << 30, 6), "the host is chosen for what it will be"


def test_a_host_that_refuses_them_does_so_before_any_data_move(rig: Rig) -> None:
    backup = rig.back_up()
    rig.world.fault("ProvisionVm", Fault("fail", errors.InvalidRequest("there is no network lab")))
    view = restore(rig, backup.backup_id, networks=("lab",))
    assert view.job.failure is not None
    assert rig.world.count("SendImage") == 0
    assert rig.world.leftovers() == []
