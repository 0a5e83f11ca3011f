"""Host agents without a network: the real use cases over a disk that can crash and VMMs that can die."""

from __future__ import annotations

from arraylift.ids import MigrationId, VmId
from arraylift.vm.types import NetworkInterface, PowerState, Vm, VmConfig
from hostagent.live_move import MoveProgress
from hostagent.locks import KeyedLocks
from hostagent.machines import Machines
from hostagent.migration import HandedOver, HandOver, Migrations
from hostagent.vm_store import VmStore
from hostagent.vm_types import VmRecord, VmState
from tests.fakes.disk import FakeFiles
from tests.fakes.vmms import FakeVolumes, VmmDriver, Vmms, disk_of
from tests.unit.hostagent.stage import ManualClock


class FakeHost:
    """One host. ``kill`` ends its agent, ``power_cut`` the whole machine; both come back at once."""

    def __init__(self, name: str, vmms: Vmms, volumes: FakeVolumes, *, live: bool = True) -> None:
        self.name, self.vmms, self.volumes, self.live = name, vmms, volumes, live
        self.clock = ManualClock()
        self.files = FakeFiles()
        self.changes = 0
        self._open()

    def _open(self) -> None:
        self.store = VmStore(self.files, "/state")
        self.driver = VmmDriver(self.vmms, self.name, live=self.live)
        locks = KeyedLocks("VM")
        self.machines = Machines(
            self.store, self.driver, self.volumes, locks, clock=self.clock, changed=self._count
        )
        self.migrations = Migrations(self.store, self.driver, locks, self.machines)

    def _count(self) -> None:
        self.changes += 1

    def kill(self) -> None:
        """kill -9 of the agent."""
        self.files = self.files.after_kill()
        self._open()

    def power_cut(self, choice: int = 0) -> None:
        """The machine dies, and comes back with one of the disks that it may have then."""
        states = list(self.files.post_crash_states(maximum=16))
        self.files = states[choice % len(states)]
        self.vmms.power_cut(self.name)
        self._open()

    # -- looks ----------------------------------------------------------------------------------

    def record(self, vm_id: VmId) -> VmRecord | None:
        return self.store.vms.find(vm_id)

    def can_run(self, vm_id: VmId) -> bool:
        """Whether its guest runs here, or could be made to by this host alone."""
        vm = self.record(vm_id)
        owns = vm is not None and vm.state in (VmState.ON, VmState.OFF)
        return (self.name, vm_id) in self.vmms.running or (
            owns and vm is not None and (vm.move is None or not vm.move.handed_over)
        )

    def told(self) -> list[Vm]:
        """As ListVms answers."""
        return [vm.told(self.name) for vm in self.machines.listed()]

    # -- a migration's steps --------------------------------------------------------------------

    def make(self, vm_id: VmId, name: str = "web1", *, on: bool = False) -> VmRecord:
        volume = f"{name}-root"
        self.volumes.names.add(volume)
        config = VmConfig(name, "", 1, 1 << 20, (disk_of(volume),), (NetworkInterface("", "lan"),), (), "")
        vm = self.machines.create(vm_id, config)
        return self.machines.power_on(vm_id) if on else vm

    def hand_over(
        self, vm: VmRecord | Vm, migration_id: MigrationId, *, live: bool = False, address: str = ""
    ) -> HandedOver:
        told: list[MoveProgress] = []
        asked = HandOver(vm.vm_id, migration_id, vm.revision, live=live, address=address)
        return self.migrations.hand_over(asked, told.append)

    def expect(self, vm: VmRecord | Vm, migration_id: MigrationId, *, live: bool = False) -> str:
        return self.migrations.expect(vm.vm_id, migration_id, vm.config, revision=vm.revision, live=live)

    def runs(self, vm_id: VmId) -> bool:
        """As told: ON."""
        return any(vm.vm_id == vm_id and vm.power is PowerState.ON for vm in self.told())
