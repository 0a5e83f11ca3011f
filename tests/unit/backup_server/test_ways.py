"""Backups whose disks, changes, firmware and hosts are not the plain ones; their restores."""

from __future__ import annotations

from typing import Any

import pytest

from arraylift import errors
from arraylift.vm.types import ConsistencyLevel
from backup_server.job_rules import JobState
from backup_server.model import ChangeSource, PeerKind, RegisteredPeer
from tests.fakes.backup_server import Killed, Rig
from tests.fakes.world import Fault
from tests.fakes.world_array import SPAN


@pytest.fixture
def foreign(rig: Rig) -> Rig:
    """``web1``'s second disk lies where only its VMM reads it, and two arrays are registered."""
    disk = rig.world.vm_named("web1").config.disks[1]
    disk.foreign, disk.array, disk.array_address, disk.volume_name = "/vms/web1.qcow2", "", "", ""
    rig.server.registry.add(RegisteredPeer(PeerKind.ARRAY, "array2", rig.world.addresses["array2"]))
    rig.world.vmm_tracks = True
    return rig


def asked(rig: Rig, method: str) -> list[Any]:
    return [request for name, request in rig.world.calls if name == method]


# -- foreign disks ------------------------------------------------------------------------------


@pytest.mark.parametrize("direct", [False, True])
def test_a_foreign_disk_goes_through_a_gateway(foreign: Rig, direct: bool) -> None:
    first = foreign.back_up(direct=direct)
    (sent,) = asked(foreign, "SendForeignDisk")
    (grant,) = [one for one in asked(foreign, "CreateGrant") if one.image_name.endswith("/disk1")][:1]
    assert (sent.uri, sent.HasField("bitmap"), grant.array) == ("nbd://127.0.0.1/disk1", False, "array1")
    assert [disk.array for disk in first.disks] == ["array1", "array1"]
    assert [disk.change_source for disk in first.disks] == [ChangeSource.FULL_READ] * 2
    assert foreign.world.leftovers() == []

    second = foreign.back_up(direct=direct)
    sent = asked(foreign, "SendForeignDisk")[-1]
    state = first.disks[1].state
    assert state is not None
    assert (sent.bitmap.name, sent.bitmap.since.lineage_id) == ("b", state.lineage_id)
    assert [disk.change_source for disk in second.disks] == [ChangeSource.BIRTHS, ChangeSource.BITMAP]
    assert second.incremental
    prepared = asked(foreign, "CreateVmSnapshot" if direct else "PrepareBackup")[-1]
    assert [one.disk_name for one in prepared.changes_since] == ["disk1"], "volumes have births"

    whole = foreign.back_up(full=True, direct=direct)
    assert not asked(foreign, "SendForeignDisk")[-1].HasField("bitmap")
    assert not whole.incremental


def test_the_gateway_that_is_named(foreign: Rig) -> None:
    view = foreign.run(foreign.order_backup(gateway="array2"))
    assert view.job.state is JobState.SUCCEEDED, view.job.failure
    (backup,) = foreign.server.backups.all()
    assert [disk.array for disk in backup.disks] == ["array1", "array2"]
    assert "array array2" in [step.detail for step in view.steps if step.name == "gateway"]
    with pytest.raises(errors.NotFound, match="nobody"):
        foreign.order_backup(gateway="nobody")


def test_the_gateway_stays_the_same_over_a_restart(foreign: Rig) -> None:
    job_id = foreign.order_backup()
    foreign.kill_on = "job.grant disk1.done"
    with pytest.raises(Killed):
        foreign.run(job_id)
    foreign.restart()
    foreign.server.registry.add(RegisteredPeer(PeerKind.ARRAY, "array0", "127.0.0.1:1"))
    assert foreign.run(job_id).job.state is JobState.SUCCEEDED
    assert foreign.server.backups.all()[0].disks[1].array == "array1"


@pytest.mark.parametrize("kind", ["fail", "lost", "cut", "mute"])
def test_a_gateway_that_breaks_off_goes_on(foreign: Rig, kind: str) -> None:
    job_id = foreign.order_backup()
    foreign.world.fault("SendForeignDisk", kind)
    assert foreign.run(job_id).job.state is JobState.SUCCEEDED
    first, second = asked(foreign, "SendForeignDisk")
    assert (first.transfer_id, first.state) == (second.transfer_id, second.state)
    assert foreign.world.leftovers() == []


def test_without_an_array_there_is_no_gateway(foreign: Rig) -> None:
    for name in ("array1", "array2"):
        foreign.server.registry.remove(PeerKind.ARRAY, name)
    view = foreign.run(foreign.order_backup())
    assert view.job.failure is not None
    assert "foreign disks" in view.job.failure.message
    assert foreign.world.leftovers() == []


def test_a_disk_whose_state_nobody_names_is_refused(foreign: Rig) -> None:
    original = foreign.world._disk_snapshot

    def nameless(disk: Any, since: Any) -> Any:
        made = original(disk, since)
        made.ClearField("state")
        return made

    foreign.world._disk_snapshot = nameless  # type: ignore[method-assign]
    try:
        view = foreign.run(foreign.order_backup())
    finally:
        del foreign.world._disk_snapshot
    assert view.job.failure is not None
    assert "name the state of disk disk1" in view.job.failure.message
    assert foreign.world.leftovers() == []


@pytest.mark.parametrize("array", ["", "array2"])
def test_foreign_disks_are_restored_as_volumes(foreign: Rig, array: str) -> None:
    backup = foreign.back_up()
    job_id = foreign.order_restore(backup.backup_id, array=array)
    assert foreign.run(job_id).job.state is JobState.SUCCEEDED
    disks = foreign.world.restored()[0].config.disks
    assert [disk.array for disk in disks] == [array or "array1"] * 2
    assert [disk.foreign for disk in disks] == ["", ""]
    assert [foreign.world.volumes[disk.volume_name] for disk in disks] == [3 * SPAN, 4 * SPAN]
    with pytest.raises(errors.WrongState, match="disk1 is no volume"):
        foreign.order_in_place(backup.backup_id)


# -- supplied changes ---------------------------------------------------------------------------


def test_what_the_vmm_saw_is_passed_on_where_it_is_wanted(rig: Rig) -> None:
    rig.world.vmm_tracks = True
    first = rig.back_up()
    assert [len(one.changes_since) for one in asked(rig, "PrepareBackup")] == [0]
    view = rig.run(rig.order_backup(change_source=ChangeSource.SUPPLIED))
    second = rig.server.db.backup(view.job.job_id)
    states = {disk.disk_name: disk.state for disk in first.disks}
    sent = {one.transfer_id: one for one in asked(rig, "SendSnapshot")[2:]}
    for disk in second.disks:
        state = states[disk.disk_name]
        assert state is not None
        told = sent[disk.image_id].supplied
        assert (told.since.lineage_id, told.since.birth) == (state.lineage_id, state.birth)
        assert (len(told.offsets), len(told.lengths)) == (8, 8)
        assert disk.change_source is ChangeSource.SUPPLIED
    assert second.incremental
    assert any("by supplied" in step.detail for step in view.steps)
    rig.back_up()
    assert all(not one.HasField("supplied") for one in asked(rig, "SendSnapshot")[4:]), "births by default"


def test_a_vmm_that_knows_nothing_leaves_it_to_births(rig: Rig) -> None:
    rig.back_up()
    view = rig.run(rig.order_backup(change_source=ChangeSource.SUPPLIED))
    assert view.job.state is JobState.SUCCEEDED
    backup = rig.server.db.backup(view.job.job_id)
    assert {disk.change_source for disk in backup.disks} == {ChangeSource.BIRTHS}


def test_changes_since_another_state_than_the_base_s_are_left_to_births(rig: Rig) -> None:
    """The backup whose state was asked for is deleted before its successor chooses its base."""
    rig.world.vmm_tracks = True
    rig.back_up()
    second = rig.back_up()
    job_id = rig.order_backup(change_source=ChangeSource.SUPPLIED)
    rig.on_boundary = lambda name: (
        rig.server.backups.delete(second.backup_id) if name == "job.identify.after" else None
    )
    assert rig.run(job_id).job.state is JobState.SUCCEEDED
    assert not any(one.HasField("supplied") for one in asked(rig, "SendSnapshot")[4:])
    assert {disk.change_source for disk in rig.server.db.backup(job_id).disks} == {ChangeSource.BIRTHS}


def test_states_come_from_the_target_again(rig: Rig) -> None:
    """The database is a cache: who lost it asks since the same states."""
    first = rig.back_up()
    rig.server.db.forget_backup(first.backup_id)
    rig.server.backups.sync()
    assert rig.server.db.backup(first.backup_id) == first


# -- firmware variables -------------------------------------------------------------------------


@pytest.mark.parametrize("direct", [False, True])
def test_firmware_variables_come_back_with_the_vm(rig: Rig, direct: bool) -> None:
    old = rig.world.vm_named("web1")
    old.config.firmware = "uefi"
    rig.world.variables[old.vm_id] = bytes(range(256)) * 9
    backup = rig.back_up(direct=direct)
    assert backup.firmware_variables == b"", "not in the database"
    rig.server.backups.sync()
    assert rig.run(rig.order_restore(backup.backup_id, direct=direct)).job.state is JobState.SUCCEEDED
    (made,) = rig.world.restored()
    assert rig.world.variables[made.vm_id] == rig.world.variables[old.vm_id]


def test_a_bios_has_none(rig: Rig) -> None:
    backup = rig.back_up()
    rig.run(rig.order_restore(backup.backup_id))
    assert rig.world.count("GetBackupManifest") == 0


# -- VMs that move ------------------------------------------------------------------------------


def test_a_vm_that_is_being_moved_is_waited_for(rig: Rig) -> None:
    job_id = rig.order_backup()
    moving = Fault("fail", errors.PeerUnavailable("VM web1 is being moved to host2"))
    rig.world.fault("PrepareBackup", moving, moving, moving)
    view = rig.run(job_id)
    assert view.job.state is JobState.SUCCEEDED, view.job.failure
    assert rig.world.leftovers() == []


def test_a_vm_that_moves_for_longer_than_the_patience_fails_clearly(rig: Rig) -> None:
    job_id = rig.order_backup()
    rig.world.fault("PrepareBackup", *[Fault("fail", errors.PeerUnavailable("being moved"))] * 10_000)
    view = rig.run(job_id)
    assert view.job.failure is not None
    assert (view.job.failure.reason, view.job.failure.message) == ("peer_unavailable", "being moved")
    assert rig.world.leftovers() == []


def test_a_vm_that_has_left_its_host_is_followed(rig: Rig) -> None:
    job_id = rig.order_backup(direct=True)
    rig.world.fault("CreateVmSnapshot", *[Fault("fail", errors.NotFound("there is no such VM"))] * 2)
    assert rig.run(job_id).job.state is JobState.SUCCEEDED
    assert rig.world.leftovers() == []


def test_a_vm_that_is_really_gone_is_not_looked_for_for_ever(rig: Rig) -> None:
    job_id = rig.order_backup(direct=True)
    rig.world.fault("CreateVmSnapshot", *[Fault("fail", errors.NotFound("there is no such VM"))] * 1000)
    view = rig.run(job_id)
    assert view.job.failure is not None
    assert view.job.failure.reason == "not_found"
    assert rig.world.count("CreateVmSnapshot") == 6


def test_whatever_a_try_left_is_found_on_the_host_that_the_vm_left(rig: Rig) -> None:
    """The first host's answer is lost, then the VM is on another; the job fails there for good."""
    job_id = rig.order_backup(direct=True)
    host2 = RegisteredPeer(PeerKind.HOST, "host2", rig.world.addresses["host2"])

    def move() -> None:
        """Both fake hosts show all VMs: the one that is registered counts."""
        rig.server.db.remove_peer(PeerKind.HOST, "host1")
        rig.server.registry.add(host2)

    rig.world.fault("CreateVmSnapshot", Fault("lost", meanwhile=move))
    rig.world.fault("CreateVmSnapshot", Fault("fail", errors.Corruption("no")))
    view = rig.run(job_id)
    assert view.job.state is JobState.FAILED
    assert [step.detail for step in view.steps if step.name.startswith("locate")] == [
        "host host1",
        "host host2",
    ]
    listed = [name for name, _ in rig.world.calls if name == "ListVmSnapshots"]
    assert len(listed) == 2, "both hosts were asked for strays"
    assert rig.world.leftovers() == []


def test_of_two_hosts_that_tell_of_a_vm_the_later_word_counts(rig: Rig) -> None:
    """It was handed over, and the old host has not forgotten it yet."""
    rig.server.registry.add(RegisteredPeer(PeerKind.HOST, "host2", rig.world.addresses["host2"]))
    view = rig.run(rig.order_backup("db1", direct=True))
    vm = rig.world.vm_named("db1")
    assert view.job.state is JobState.SUCCEEDED
    rig.world.told_by["host2"] = {vm.vm_id: vm.revision + 1}
    assert rig.server.inventory.side(direct=True).find("db1").host == "host2"
    rig.world.told_by["host2"] = {vm.vm_id: vm.revision - 1}
    assert rig.server.inventory.side(direct=True).find("db1").host == "host1"


def test_the_level_demanded_is_named_beside_the_level_reached(rig: Rig) -> None:
    view = rig.run(rig.order_backup(level_min=ConsistencyLevel.APPLICATION))
    assert view.job.failure is not None
    assert "filesystem only, application was demanded" in view.job.failure.message
