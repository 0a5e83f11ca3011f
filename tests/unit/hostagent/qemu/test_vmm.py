"""VMs over QEMUs in memory: what is left behind by deaths, absent arrays and guests that hold on."""

from __future__ import annotations

import secrets
from dataclasses import replace

import pytest

from arraylift.errors import DeadlineExceeded, PeerUnavailable
from arraylift.ids import VmId
from arraylift.sizes import MIB
from arraylift.vm.types import Disk, VmConfig
from hostagent.firmware_store import pack_variables
from hostagent.qemu import guest as guest_module
from hostagent.qemu.vmm import Vmm
from hostagent.vm_types import VmRecord, VmState
from tests.fakes.disk import FakeFiles
from tests.fakes.qemu import FakeProcesses, FakeQemu, FakeQemuMonitor, Killed, World

ROOT, DATA = (Disk(name, "a1", "a1:1", f"volume {name}", MIB) for name in ("root", "data"))
VM = VmRecord(VmId("1" * 32), VmConfig("web1", "u", 1, MIB, (ROOT, DATA)), VmState.ON, 1, "", ())
LOCK = f"/qemu/{VM.vm_id}/lock"


class Host:
    def __init__(self) -> None:
        self.world, self.files = World(), FakeFiles()
        self.made_with = b""
        self.reopen()

    def reopen(self, *, on: bool = True, known: bool = True) -> None:
        """As after kill -9 of the host agent."""
        self.files = self.files.after_kill()
        self.world.dead, self.world.calls_left = False, -1
        self.world.at_death = lambda: self.files.crash_after(0)
        self.processes = FakeProcesses(self.world)
        self.vmm = Vmm(
            self.files,
            "/qemu",
            host="h1",
            volumes=self.world,  # type: ignore[arg-type]
            launcher=self.processes,  # type: ignore[arg-type]
            processes=self.processes,  # type: ignore[arg-type]
            firmware=lambda _: self.made_with,
            monitor_of=lambda path, _: FakeQemuMonitor(self.world, path),  # type: ignore[arg-type, return-value]
        )
        if on:
            self.vmm.adopt(VM)
        ids = [VM.vm_id]
        self.vmm.sweep(running=ids if on else [], known=ids if known else [])

    def reap(self) -> None:
        for guest in self.vmm.guests():
            guest.looked_at = -100.0
        self.vmm.reap()

    @property
    def qemu(self) -> FakeQemu:
        return self.world.running[LOCK]

    def served(self) -> list[str]:
        return sorted(self.world.exports.values())


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    for name in ("UNPLUG_SECONDS", "SETTLE_SECONDS", "UNPLUG_POLL_SECONDS"):
        monkeypatch.setattr(guest_module, name, 0.001)
    return Host()


def without(disk: Disk) -> VmRecord:
    return replace(VM, config=replace(VM.config, disks=tuple(one for one in VM.config.disks if one != disk)))


def test_a_disk_taken_from_a_dead_guest_is_not_served_to_the_next(host: Host) -> None:
    host.vmm.start(VM)
    host.world.power_cut()
    host.vmm.detach(VM, DATA)
    host.vmm.start(without(DATA))
    host.reap()
    assert host.served() == [ROOT.volume_name]


def test_a_disk_comes_back_before_its_stale_export_has_gone(host: Host) -> None:
    host.vmm.start(VM)
    host.world.away.add("a1:1")
    host.vmm.detach(VM, DATA)
    assert host.served() == [DATA.volume_name, ROOT.volume_name], "the array is away"
    host.world.away.clear()
    host.vmm.attach(VM, DATA)
    host.reopen()
    host.reap()
    assert host.served() == [DATA.volume_name, ROOT.volume_name]
    assert host.vmm.guest(VM.vm_id).record.stale == ()
    assert len(host.qemu.devices) == 2


def test_a_start_that_was_cut_before_the_guest_ran_goes_on(host: Host) -> None:
    host.world.calls_left = 7
    with pytest.raises(Killed):
        host.vmm.start(VM)
    assert host.qemu.status == "prelaunch"
    host.reopen()
    assert host.vmm.is_running(VM.vm_id)
    host.reap()
    assert host.qemu.status == "running"


def test_a_start_of_a_vm_that_is_off_for_its_record_is_undone(host: Host) -> None:
    host.world.calls_left = 7
    with pytest.raises(Killed):
        host.vmm.start(VM)
    host.reopen(on=False)
    assert not host.world.running
    host.reap()
    assert host.served() == []


def test_a_guest_whose_disk_failed_goes_on_when_it_can(host: Host) -> None:
    host.vmm.start(VM)
    host.qemu.status = "io-error"
    host.reap()
    assert host.qemu.status == "running"
    for status in ("postmigrate", "paused", "internal-error"):
        host.qemu.status = status
        host.reap()
        assert host.qemu.status == status, "not ours to change"


def test_a_disk_that_could_not_be_shown_is_shown_later(host: Host) -> None:
    host.vmm.start(without(DATA))
    host.world.away.add("a1:1")
    with pytest.raises(PeerUnavailable):
        host.vmm.attach(VM, DATA)
    host.world.away.clear()
    host.reap()
    assert len(host.qemu.devices) == 2


def test_a_disk_that_the_guest_lets_go_too_late_comes_back(host: Host) -> None:
    host.vmm.start(VM)
    host.qemu.lets_go = False
    with pytest.raises(DeadlineExceeded):
        host.vmm.detach(VM, DATA)
    host.qemu.devices.pop()
    host.reap()
    assert len(host.qemu.devices) == 2, "its VM still has it, as its caller was told"


def test_what_is_left_of_unknown_vms_goes_with_its_exports(host: Host) -> None:
    host.vmm.start(VM)
    host.world.away.add("a1:1")
    host.reopen(on=False, known=False)
    assert not host.world.running
    host.reap()
    assert host.files.list_dir(f"/qemu/{VM.vm_id}"), "the array is away"
    host.world.away.clear()
    host.reap()
    host.reap()
    assert host.served() == []
    assert host.files.list_dir(f"/qemu/{VM.vm_id}") == []


def test_variables_that_fit_no_message_keep_no_disk_from_being_backed_up(host: Host) -> None:
    host.made_with = pack_variables(b"made with")
    uefi = replace(VM, config=replace(VM.config, firmware="uefi"))
    assert host.vmm.firmware_variables(uefi) == host.made_with
    folder = host.vmm.guest(VM.vm_id).folder
    folder.make()
    folder.put_variables(b"as they are now")
    assert host.vmm.firmware_variables(uefi) == pack_variables(b"as they are now")
    assert host.vmm.firmware_variables(VM) == host.made_with
    folder.put_variables(secrets.token_bytes(600_000))
    assert host.vmm.firmware_variables(uefi) == host.made_with
