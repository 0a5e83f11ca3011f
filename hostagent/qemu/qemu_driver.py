"""The driver of QEMU: its VMs (vmm.py), what their guests' agents do, and moves between hosts.

Callers: as driver.py says; ``reap`` on a thread of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Collection

from arraylift.errors import WrongState
from arraylift.ids import VmId
from arraylift.vm.types import ConsistencyLevel, Disk
from hostagent.change_tracking import ChangeTracker
from hostagent.guest_agent.channel import AgentChannel
from hostagent.guest_agent.operations import GuestOperations
from hostagent.guest_agent.socket_channel import SocketChannel
from hostagent.live_move import LiveMover
from hostagent.qemu.vmm import Vmm
from hostagent.vm_types import GuestFile, VmRecord


class AgentChannels:
    """One channel to each running guest's agent, kept open: QEMU takes one at a time."""

    def __init__(self, vmm: Vmm) -> None:
        self._vmm = vmm
        self._lock = threading.Lock()
        self._channels: dict[VmId, SocketChannel] = {}

    def of(self, vm_id: VmId) -> AgentChannel:
        """Raises WrongState: the VM is off."""
        if not self._vmm.is_running(vm_id):
            raise WrongState(f"VM {vm_id} does not run", subject=f"VM {vm_id}", next_step="power it on")
        with self._lock:
            found = self._channels.get(vm_id)
            if found is None:
                path = self._vmm.guest(vm_id).folder.agent_path
                found = self._channels[vm_id] = SocketChannel(path, subject=f"VM {vm_id}")
            return found

    def drop(self, vm_id: VmId) -> None:
        """The guest does not run any more, or another begins."""
        with self._lock:
            found = self._channels.pop(vm_id, None)
        if found is not None:
            found.close()


class QemuDriver:
    """Driver of QEMU."""

    name = "qemu"
    foreign = None

    def __init__(
        self,
        vmm: Vmm,
        channels: AgentChannels,
        operations: GuestOperations,
        *,
        tracker: ChangeTracker | None = None,
        mover: LiveMover | None = None,
    ) -> None:
        self._vmm, self._channels, self._operations = vmm, channels, operations
        self.tracker, self.mover = tracker, mover
        self.reap = vmm.reap
        # Nothing of the guest's agent is in these.
        self.is_running = vmm.is_running
        self.attach, self.detach = vmm.attach, vmm.detach
        self.release, self.firmware_variables = vmm.release, vmm.firmware_variables

    # -- power ----------------------------------------------------------------------------------

    def resume(self, vm: VmRecord) -> None:
        if self._vmm.adopt(vm):
            self._operations.resume(vm)

    def sweep(self, *, running: Collection[VmId], known: Collection[VmId]) -> None:
        self._vmm.sweep(running=running, known=known)

    def start(self, vm: VmRecord) -> None:
        if not self._vmm.is_running(vm.vm_id):
            self._leave_agent(vm.vm_id)
        self._vmm.start(vm)

    def stop(self, vm: VmRecord, *, grace_seconds: float, force: bool) -> None:
        self._vmm.stop(vm, grace_seconds=grace_seconds, force=force)
        self._leave_agent(vm.vm_id)

    def forget(self, vm: VmRecord) -> None:
        self._leave_agent(vm.vm_id)
        if self.tracker is not None:
            self.tracker.forget(vm.vm_id)
        self._vmm.forget(vm)

    def _leave_agent(self, vm_id: VmId) -> None:
        self._operations.stopped(vm_id)
        self._channels.drop(vm_id)

    # -- the guest's agent ----------------------------------------------------------------------

    def freeze(self, vm: VmRecord, *, timeout_seconds: float) -> ConsistencyLevel:
        return self._operations.freeze(vm, timeout_seconds=timeout_seconds)

    def thaw(self, vm_id: VmId) -> None:
        self._operations.thaw(vm_id)

    def kept_level(self, vm: VmRecord, reached: ConsistencyLevel) -> ConsistencyLevel:
        return self._operations.kept_level(vm, reached)

    def put_file(self, vm: VmRecord, disk: Disk, path: str, *, source: str, mode: int) -> GuestFile:
        return self._operations.put_file(vm, disk, path, source=source, mode=mode)

    def get_file(self, vm: VmRecord, disk: Disk, path: str, *, into: str) -> GuestFile:
        return self._operations.get_file(vm, disk, path, into=into)

    def list_files(self, vm: VmRecord, disk: Disk, path: str) -> list[GuestFile]:
        return self._operations.list_files(vm, disk, path)

    def remove_file(self, vm: VmRecord, disk: Disk, path: str) -> None:
        self._operations.remove_file(vm, disk, path)
