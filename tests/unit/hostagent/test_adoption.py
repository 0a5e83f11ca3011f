"""Adopted guests: their records follow what libvirt says, and nothing of an admin's is touched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from arraylift.clock import SYSTEM_CLOCK
from arraylift.errors import InvalidRequest, PeerUnavailable, WrongState
from arraylift.ids import VmId, random_id
from arraylift.sizes import MIB
from arraylift.vm.types import Disk
from hostagent.adoption import MISSING_LOOKS, Adoption
from hostagent.libvirt.domain_xml import NAMESPACE
from hostagent.libvirt.inventory import LibvirtInventory
from hostagent.locks import KeyedLocks
from hostagent.vm_types import VmState
from tests.fakes.libvirt import FakeGuest, FakeHypervisor
from tests.unit.hostagent.libvirt.material import UUID, disk, domain
from tests.unit.hostagent.stage import Stage, config
from tests.wire.stage import House

VM_ID = VmId(UUID.replace("-", ""))
OTHER = "11111111-2222-4333-8444-555555555555"


class AdoptionStage(Stage):
    def _open(self) -> None:
        super()._open()
        self.hypervisor = getattr(self, "hypervisor", FakeHypervisor())
        inventory = LibvirtInventory(
            self.hypervisor, lambda vm_id, disk: f"{vm_id}.{disk.volume_name}", clock=SYSTEM_CLOCK
        )
        self.locks = KeyedLocks("VM")
        self.adoption = Adoption(self.store, inventory, self.machines, self.locks)


@pytest.fixture
def stage(house: House, tmp_path: Path) -> Iterator[AdoptionStage]:
    made = AdoptionStage(tmp_path, house)
    try:
        yield made
    finally:
        made.close()


def test_a_record_follows_its_guest(stage: AdoptionStage) -> None:
    guest = stage.hypervisor.guests[UUID] = FakeGuest(domain())
    stage.adoption.look()
    first = stage.machines.get(VM_ID)
    assert (first.state, first.adopted, first.revision) == (VmState.ON, True, 1)
    assert [one.foreign for one in first.config.disks] == ["/vms/vda.qcow2", "/vms/vdb.qcow2", "/vms/vdc.raw"]
    stage.adoption.look()
    assert stage.machines.get(VM_ID) == first, "nothing changed, nothing is written"
    guest.active = False
    guest.xml = domain("renamed", disks=disk("vda"))
    stage.adoption.look()
    second = stage.machines.get_named("renamed")
    assert (second.vm_id, second.state, second.revision) == (VM_ID, VmState.OFF, 2)
    assert [one.name for one in second.config.disks] == ["vda"]
    stage.reopen()
    assert stage.machines.get(VM_ID) == second


def test_a_guest_is_forgotten_only_when_it_was_missing_again(stage: AdoptionStage) -> None:
    stage.hypervisor.guests[UUID] = FakeGuest(domain())
    stage.adoption.look()
    guest = stage.hypervisor.guests.pop(UUID)
    for _ in range(MISSING_LOOKS - 1):
        stage.adoption.look()
    stage.hypervisor.fail = PeerUnavailable("libvirtd is away")
    for _ in range(5):
        with pytest.raises(PeerUnavailable):
            stage.adoption.look()
    stage.hypervisor.fail = None
    assert stage.machines.get(VM_ID).state is VmState.ON
    stage.hypervisor.guests[UUID] = guest
    stage.adoption.look()
    del stage.hypervisor.guests[UUID]
    for _ in range(MISSING_LOOKS):
        assert stage.machines.listed()
        stage.adoption.look()
    assert stage.machines.listed() == []


def test_names_that_are_taken_or_odd_are_made_fit(stage: AdoptionStage) -> None:
    mine = stage.machines.create(VmId(random_id()), config("web"))
    stage.hypervisor.guests[UUID] = FakeGuest(domain("web"))
    stage.hypervisor.guests[OTHER] = FakeGuest(domain("tab\tand\nline", OTHER, disks=disk("sda")))
    for _ in range(3):
        stage.adoption.look()
    names = {vm.vm_id: vm.config.name for vm in stage.machines.listed()}
    assert names[mine.vm_id] == "web"
    assert names[VM_ID] == f"web-{UUID}"
    assert names[VmId(OTHER.replace("-", ""))] == "tab_and_line"
    assert stage.machines.get(VM_ID).revision == 1


def test_what_this_host_made_is_not_adopted(stage: AdoptionStage) -> None:
    mark = f"<metadata><a:vm xmlns:a='{NAMESPACE}' id='{'ab' * 16}'/></metadata>"
    stage.hypervisor.guests[UUID] = FakeGuest(domain(head=mark))
    stage.adoption.look()
    assert stage.machines.listed() == []


def test_one_guest_that_cannot_be_read_keeps_no_other_from_being_seen(stage: AdoptionStage) -> None:
    guest = stage.hypervisor.guests[UUID] = FakeGuest(domain())
    stage.adoption.look()
    before = stage.machines.get(VM_ID)
    guest.xml = f"<domain><name>web</name>{'<a>' * 40}{'</a>' * 40}</domain>"
    stage.hypervisor.guests[OTHER] = FakeGuest(domain("other", OTHER))
    stage.adoption.look()
    assert {vm.config.name for vm in stage.machines.listed()} == {"web", "other"}
    assert stage.machines.get(VM_ID) == before


def test_an_admins_guest_is_not_deleted_and_no_vm_is_made_with_foreign_disks(stage: AdoptionStage) -> None:
    stage.hypervisor.guests[UUID] = FakeGuest(domain(), active=False)
    stage.adoption.look()
    with pytest.raises(WrongState, match="belongs to the admin"):
        stage.machines.delete(VM_ID, keep_volumes=True, release_snapshots=stage.snapshots.release_all)
    with pytest.raises(InvalidRequest, match="foreign"):
        stage.machines.create(VmId(random_id()), config("new", Disk("d", "", "", "", MIB, "/vms/x.raw")))
    stage.machines.power_on(VM_ID)
    assert VM_ID in stage.driver.running


def test_a_volume_of_ours_stays_with_the_guest_while_it_is_attached(stage: AdoptionStage) -> None:
    guest = stage.hypervisor.guests[UUID] = FakeGuest(domain())
    stage.adoption.look()
    array = stage.arrays[0]
    array.volumes["more"] = bytearray(MIB)
    extra = Disk("extra", "a1", array.address, "more", MIB)
    stage.machines.attach(VM_ID, extra)
    nbd = (
        f"<disk type='network' device='disk'><driver type='raw'/><source protocol='nbd' name='{VM_ID}.more'/>"
        "<target dev='vdd'/></disk>"
    )
    guest.xml = domain(disks=disk("vda") + nbd)
    stage.adoption.look()
    assert [one.name for one in stage.machines.get(VM_ID).config.disks] == ["vda", "extra"]
    assert stage.machines.get(VM_ID).config.disks[1] == replace(extra, size_bytes=MIB)
    guest.xml = domain(disks=disk("vda"))
    stage.adoption.look()
    assert [one.name for one in stage.machines.get(VM_ID).config.disks] == ["vda"], "the admin took it away"
