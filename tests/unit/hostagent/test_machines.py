"""The life of VMs over fake arrays: idempotence, undoing, ownership of volumes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arraylift.errors import (
    AlreadyExists,
    ArrayliftError,
    InvalidRequest,
    NotFound,
    PeerUnavailable,
    WrongState,
)
from arraylift.ids import VmId, random_id
from arraylift.sizes import MIB
from hostagent.firmware_store import pack_variables
from hostagent.vm_types import VmState
from tests.e2e.daemon import wait_until
from tests.unit.hostagent.stage import Stage, config


def test_the_same_request_again_is_the_same_vm(stage: Stage) -> None:
    vm_id, wanted = VmId(random_id()), config("web1", stage.disk("a"))
    made = stage.machines.create(vm_id, wanted)
    assert made.config.uuid
    assert made.config.networks[0].mac.startswith("52:54:00:")
    assert made.config.firmware == "bios"
    assert stage.machines.create(vm_id, wanted) == made
    on = stage.machines.power_on(vm_id)
    assert stage.machines.create(vm_id, wanted) == on
    with pytest.raises(AlreadyExists):
        stage.machines.create(vm_id, replace(wanted, cpus=2))
    with pytest.raises(AlreadyExists):
        stage.machines.create(VmId(random_id()), wanted)
    assert len(stage.arrays[0].volumes) == 1
    assert stage.changes == 2


def test_what_fails_in_the_middle_leaves_nothing_and_nothing_of_others(stage: Stage) -> None:
    stage.arrays[1].volumes["mine"] = bytearray(MIB)
    vm_id = VmId(random_id())
    bad = config(
        "web1", stage.disk("a"), stage.disk("b", 1, volume="mine"), stage.disk("c", 1, volume="none")
    )
    with pytest.raises(NotFound):
        stage.machines.create(vm_id, bad)
    assert stage.arrays[0].volumes == {}
    assert list(stage.arrays[1].volumes) == ["mine"]
    assert stage.store.vms.all() == []
    good = config("web1", stage.disk("a"), stage.disk("b", 1, volume="mine"))
    assert stage.machines.create(vm_id, good).config.disks[1].size_bytes == MIB


def test_an_array_that_goes_away_in_the_middle_is_cleaned_when_it_is_back(stage: Stage) -> None:
    vm_id = VmId(random_id())
    wanted = config("web1", stage.disk("a"), stage.disk("b", 1))
    stage.arrays[1].error = PeerUnavailable("away")
    with pytest.raises(PeerUnavailable):
        stage.machines.create(vm_id, wanted)
    with pytest.raises(NotFound):
        stage.machines.get(vm_id)
    assert stage.machines.listed() == []
    with pytest.raises(PeerUnavailable):
        stage.machines.create(vm_id, wanted)
    stage.arrays[1].error = None

    def gone() -> bool:
        stage.clock.now += 5
        stage.machines.reap()
        return stage.store.vms.all() == []

    wait_until(gone, "the VM is undone", seconds=10)
    assert stage.arrays[0].volumes == {}
    assert stage.machines.create(vm_id, wanted).state is VmState.OFF


def test_a_half_made_vm_of_an_earlier_process_is_undone(stage: Stage) -> None:
    vm = stage.vm(on=False)
    stage.store.vms.put(replace(vm, state=VmState.MAKING))
    stage.reopen()
    assert stage.machines.listed() == []
    stage.machines.reap()
    assert stage.arrays[0].volumes == stage.arrays[1].volumes == {}
    assert len(stage.store.vms.all()) == 1, "an array may still act on the old process's calls"
    stage.clock.now += 6
    stage.machines.reap()
    assert stage.store.vms.all() == []


def test_power_is_a_record_that_outlives_the_process(stage: Stage) -> None:
    vm = stage.vm()
    stage.driver.running.clear()
    stage.reopen()
    assert stage.machines.get(vm.vm_id).state is VmState.ON
    assert stage.driver.running == {vm.vm_id}
    off = stage.machines.power_off(vm.vm_id)
    assert (off.state, off.revision) == (VmState.OFF, vm.revision + 1)
    assert stage.machines.power_off(vm.vm_id) == off
    del stage.arrays[0].volumes[vm.config.disks[0].volume_name]
    with pytest.raises(WrongState, match="missing"):
        stage.machines.power_on(vm.vm_id)


def delete(stage: Stage, vm_id: VmId, *, keep: bool = False) -> None:
    stage.machines.delete(vm_id, keep_volumes=keep, release_snapshots=stage.snapshots.release_all)


def test_deletion_takes_volumes_unless_told_and_respects_snapshots(stage: Stage) -> None:
    vm = stage.vm()
    with pytest.raises(WrongState, match="runs"):
        delete(stage, vm.vm_id)
    stage.machines.power_off(vm.vm_id)
    made = stage.snapshots.create(vm.vm_id, "job")
    with pytest.raises(WrongState, match="VM snapshot"):
        delete(stage, vm.vm_id)
    stage.snapshots.delete(made.vm_snapshot_id)
    stage.arrays[1].snapshots["f" * 32] = (vm.config.disks[1].volume_name, "somebody's")
    with pytest.raises(WrongState, match="has snapshots"):
        delete(stage, vm.vm_id)
    assert len(stage.arrays[0].volumes) == 1, "all or nothing"
    stage.arrays[1].snapshots.clear()
    delete(stage, vm.vm_id)
    assert stage.arrays[0].volumes == stage.arrays[1].volumes == {}
    with pytest.raises(NotFound):
        delete(stage, vm.vm_id)
    kept = stage.vm("web2", on=False)
    delete(stage, kept.vm_id, keep=True)
    assert len(stage.arrays[0].volumes) == 1


def test_firmware_variables_live_and_go_with_their_vm_and_its_snapshots(stage: Stage) -> None:
    vm_id, wanted = VmId(random_id()), config("web1", stage.disk("a"))
    made_with, later = pack_variables(b"made with"), pack_variables(b"later")
    vm = stage.machines.create(vm_id, wanted, firmware_variables=made_with)
    assert stage.store.firmware.get(vm_id) == made_with
    with pytest.raises(AlreadyExists):
        stage.machines.create(vm_id, wanted, firmware_variables=later)
    stage.driver.variables[vm_id] = later
    snapshot = stage.snapshots.create(vm_id, "job")
    assert stage.snapshots.firmware_variables(snapshot) == later
    assert snapshot.told(later).firmware_variables == later
    stage.reopen()
    assert stage.snapshots.firmware_variables(snapshot) == later
    stage.snapshots.delete(snapshot.vm_snapshot_id)
    assert stage.snapshots.firmware_variables(snapshot) == b""
    delete(stage, vm.vm_id)
    assert stage.store.firmware.get(vm_id) == b""
    with pytest.raises(InvalidRequest):
        stage.machines.create(VmId(random_id()), wanted, firmware_variables=b"rubbish")


def test_an_array_serves_no_volume_of_a_vm_that_is_deleted(stage: Stage) -> None:
    vm = stage.vm(on=False)
    delete(stage, vm.vm_id)
    assert stage.driver.released == [vm.vm_id]


def test_a_vm_whose_vmm_died_is_shown_off_and_can_be_started(stage: Stage) -> None:
    vm, other = stage.vm(), stage.vm("web2")
    stage.machines.notice()
    assert stage.machines.get(vm.vm_id).state is VmState.ON
    stage.driver.running.clear()
    assert stage.machines.power_on(other.vm_id).state is VmState.ON
    changes = stage.changes
    stage.machines.notice()
    assert stage.machines.get(vm.vm_id).state is VmState.OFF
    assert stage.machines.get(other.vm_id).state is VmState.ON
    assert stage.changes == changes + 1
    stage.driver.running.add(vm.vm_id)  # started, and the record never written
    stage.reopen()
    assert stage.driver.running == {other.vm_id}


def test_a_deletion_that_was_cut_goes_on(stage: Stage) -> None:
    vm = stage.vm(on=False)
    stage.store.vms.put(replace(vm, state=VmState.DELETING))
    stage.reopen()
    with pytest.raises(WrongState, match="being deleted"):
        stage.machines.power_on(vm.vm_id)
    stage.machines.reap()
    assert stage.store.vms.all() == []
    assert stage.arrays[0].volumes == stage.arrays[1].volumes == {}


def test_attach_and_detach_are_idempotent_and_guard_ownership(stage: Stage) -> None:
    stage.arrays[0].volumes["extra"] = bytearray(MIB)
    vm, other = stage.vm(), stage.vm("web2")
    extra = stage.disk("x", volume="extra")
    with_it = stage.machines.attach(vm.vm_id, extra)
    assert with_it.config.disks[-1].size_bytes == MIB
    assert stage.machines.attach(vm.vm_id, extra) == with_it
    for thief in (extra, replace(extra, name="y", array="another name for it")):
        with pytest.raises(AlreadyExists):
            stage.machines.attach(other.vm_id, thief)
    without = stage.machines.detach(vm.vm_id, "x")
    assert stage.machines.detach(vm.vm_id, "x") == without
    assert (vm.vm_id, "x") in stage.driver.detached
    assert "extra" in stage.arrays[0].volumes
    stage.machines.attach(other.vm_id, extra)
    with pytest.raises(NotFound):
        stage.machines.attach(other.vm_id, stage.disk("z", volume="nothing"))


def test_a_record_that_cannot_be_written_stops_nothing_half_way(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = stage.vm(on=False)

    def full(_record: object) -> None:
        raise ArrayliftError("full")

    monkeypatch.setattr(stage.store.vms, "put", full)
    with pytest.raises(ArrayliftError, match="full"):
        stage.machines.power_on(vm.vm_id)
    assert stage.driver.running == set()
