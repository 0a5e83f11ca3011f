"""The law of the QEMU driver: whatever dies, record, process and exports agree again, and never two QEMUs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from arraylift.errors import ArrayliftError
from arraylift.ids import VmId
from arraylift.sizes import MIB
from arraylift.vm.types import Disk, VmConfig
from hostagent.qemu import guest as guest_module
from hostagent.qemu.vmm import Vmm
from hostagent.vm_types import VmRecord, VmState
from tests.fakes.disk import FakeFiles, PowerCut
from tests.fakes.qemu import FakeProcesses, FakeQemuMonitor, Killed, World

ARRAYS = ("a1:1", "a2:1")
VMS = [VmId(f"{1:032x}")]
DISKS = [
    Disk(f"d{number}", f"a{number % 2 + 1}", ARRAYS[number % 2], f"volume{number}", MIB)
    for number in range(4)
]

Fate = tuple[str, int, int] | None
"""How and when the host agent dies in what it does: after so many calls, or steps of its disk."""

fates = st.one_of(
    st.none(),
    st.tuples(st.just("kill"), st.integers(1, 9), st.just(0)),
    st.tuples(st.just("cut"), st.integers(0, 6), st.integers(0, 7)),
)


class Host(RuleBasedStateMachine):
    """What machines.py does around a Vmm, on a disk whose power can be cut, over arrays that come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.files, self.world = FakeFiles(), World()
        self.world.at_death = lambda: self.files.crash_after(0)
        self.records = {
            vm_id: VmRecord(
                vm_id, VmConfig(f"vm{place}", "u", 1, MIB, tuple(DISKS[:2])), VmState.OFF, 1, "", ()
            )
            for place, vm_id in enumerate(VMS)
        }
        self._open()

    def _open(self) -> None:
        self.processes = FakeProcesses(self.world)
        self.vmm = Vmm(
            self.files,
            "/qemu",
            host="host1",
            volumes=self.world,  # type: ignore[arg-type]
            launcher=self.processes,  # type: ignore[arg-type]
            processes=self.processes,  # type: ignore[arg-type]
            firmware=lambda _: b"",
            monitor_of=lambda path, _: FakeQemuMonitor(self.world, path),  # type: ignore[arg-type, return-value]
        )
        on = [vm for vm in self.records.values() if vm.state is VmState.ON]
        for vm in on:
            self.vmm.adopt(vm)
        self.vmm.sweep(running=[vm.vm_id for vm in on], known=list(self.records))

    def _reopen(self) -> None:
        """A restart of the host agent."""
        self.world.dead, self.world.calls_left = False, -1
        self.world.at_death = lambda: self.files.crash_after(0)
        self._open()

    def _do(self, work: Any, fate: Fate = None) -> bool:
        """Whether it was done; a failure of the world is none of ours, a death of ours ends the process."""
        if fate is not None:
            how, when, self.choice = fate
            if how == "kill":
                self.world.calls_left = when
            else:
                self.files.crash_after(when)
        try:
            work()
        except ArrayliftError:
            done = False
        except (Killed, PowerCut):
            self._die()
            return False
        else:
            done = True
        self.world.calls_left, self.files.kernel.crash_at = -1, None  # it was over before that
        self.processes.fails = False
        return done

    def _die(self) -> None:
        if self.world.dead:
            self.files = self.files.after_kill()
        else:
            states = list(self.files.post_crash_states(maximum=8, seed=self.choice))
            self.files = states[self.choice % len(states)]
            self.world.power_cut()
        self._reopen()

    choice = 0

    # -- what people and machines do ------------------------------------------------------------

    @rule(vm_id=st.sampled_from(VMS), fate=fates)
    def start(self, vm_id: VmId, fate: Fate) -> None:
        vm = self.records[vm_id]
        if self._do(lambda: self.vmm.start(vm), fate):
            self.records[vm_id] = replace(vm, state=VmState.ON)

    @rule(vm_id=st.sampled_from(VMS), force=st.booleans(), fate=fates)
    def stop(self, vm_id: VmId, force: bool, fate: Fate) -> None:
        vm = self.records[vm_id]
        if self._do(lambda: self.vmm.stop(vm, grace_seconds=1, force=force), fate):
            self.records[vm_id] = replace(vm, state=VmState.OFF)

    @rule(vm_id=st.sampled_from(VMS), disk=st.sampled_from(DISKS[2:]), fate=fates)
    def attach(self, vm_id: VmId, disk: Disk, fate: Fate) -> None:
        vm = self.records[vm_id]
        if disk not in vm.config.disks:
            vm = replace(vm, config=replace(vm.config, disks=(*vm.config.disks, disk)))
        self.records[vm_id] = vm
        self._do(lambda: self.vmm.attach(vm, disk), fate)

    @rule(vm_id=st.sampled_from(VMS), disk=st.sampled_from(DISKS), fate=fates)
    def detach(self, vm_id: VmId, disk: Disk, fate: Fate) -> None:
        vm = self.records[vm_id]
        if disk in vm.config.disks and self._do(lambda: self.vmm.detach(vm, disk), fate):
            rest = tuple(one for one in vm.config.disks if one != disk)
            self.records[vm_id] = replace(vm, config=replace(vm.config, disks=rest))

    @rule(vm_id=st.sampled_from(VMS))
    def remove_and_make(self, vm_id: VmId) -> None:
        vm = self.records[vm_id]
        if vm.state is VmState.OFF and self._do(lambda: self.vmm.release(vm)):
            assert not self._exports(vm_id)
            self._do(lambda: self.vmm.forget(vm))

    # -- what befalls them ----------------------------------------------------------------------

    @rule(vm_id=st.sampled_from(VMS))
    def die(self, vm_id: VmId) -> None:
        self.world.running.pop(f"/qemu/{vm_id}/lock", None)

    @rule(vm_id=st.sampled_from(VMS), lets_go=st.booleans(), status=st.sampled_from(["running", "io-error"]))
    def change_guest(self, vm_id: VmId, lets_go: bool, status: str) -> None:
        qemu = self.world.running.get(f"/qemu/{vm_id}/lock")
        if qemu is not None and qemu.status == "running":
            qemu.lets_go, qemu.status = lets_go, status

    @rule(away=st.sampled_from([(), (), (), ARRAYS[:1], ARRAYS]))
    def change_arrays(self, away: tuple[str, ...]) -> None:
        self.world.away = set(away)

    @rule()
    def break_next_start(self) -> None:
        self.processes.fails = True

    @rule()
    def kill_agent(self) -> None:
        self.files = self.files.after_kill()
        self._reopen()

    @rule()
    def reap(self) -> None:
        self._do(self._reap)

    def _reap(self) -> None:
        for vm_id, vm in self.records.items():
            if vm.state is VmState.ON and not self.vmm.is_running(vm_id):
                self.vmm.stop(vm, grace_seconds=0, force=True)
                self.records[vm_id] = replace(vm, state=VmState.OFF)
        for guest in self.vmm.guests():
            guest.looked_at = 0.0
        self.vmm.reap()

    # -- what must hold -------------------------------------------------------------------------

    def _exports(self, vm_id: VmId) -> set[str]:
        return {volume for (_, export), volume in self.world.exports.items() if vm_id in export}

    @invariant()
    def no_disk_is_taken_from_under_its_guest(self) -> None:
        self.world.check()

    @rule()
    def settled(self) -> None:
        """Arrays answer, guests let go: after a restart and two turns of the reaper all agree."""
        self.world.away.clear()
        for qemu in self.world.running.values():
            qemu.lets_go = True
        self.files = self.files.after_kill()
        self._reopen()
        for _ in range(3):
            self._do(self._reap)
        for vm_id, vm in self.records.items():
            found = self.world.running.get(f"/qemu/{vm_id}/lock")
            if vm.state is VmState.ON:
                assert found is not None
                assert found.status == "running"
                wanted = {disk.volume_name for disk in vm.config.disks}
                assert self._exports(vm_id) == wanted
                assert len(found.devices) == len(found.nodes) == len(wanted)
            else:
                assert found is None
                assert not self._exports(vm_id)


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UNPLUG_SECONDS", "SETTLE_SECONDS", "UNPLUG_POLL_SECONDS"):
        monkeypatch.setattr(guest_module, name, 0.001)


TestHost = Host.TestCase
TestHost.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
