"""Bring a request to the host that has the VM, and look again once if the VM has moved.

Owns: what a center asks of a host (``HostCalls``), and how long that may take.
Invariants:
  Q1 no lock is held while a host is asked; every question has a deadline, at most the caller's.
  Q2 a host that does not know a VM is asked for all it has, once; then the VM is looked up once more.
  Q3 an answer about another VM, or by another host, is refused: it changes nothing here.
  Q4 nothing is asked of a VM while it moves between hosts.
Callers: use cases, on the threads of their calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from arraylift.clock import Clock
from arraylift.errors import Corruption, DeadlineExceeded, NotFound, PeerUnavailable
from arraylift.ids import VmId, VmSnapshotId
from arraylift.logs import get_logger
from arraylift.vm.types import Disk, SnapshotRequest, Vm, VmConfig, VmSnapshot
from vcenter.live_inventory import LiveInventory, alive
from vcenter.migration import Migration
from vcenter.model import Host
from vcenter.moves import Moves

LIST_SECONDS = 15.0
QUICK_SECONDS = 30.0
"""A host answers these from memory, or after a few calls to its arrays."""
SNAPSHOT_SECONDS = 60.0
"""A guest is frozen for at most 10 s; the rest is for asking it and for the arrays."""
MAKE_SECONDS = 120.0
"""Volumes are made or deleted on every array of the VM."""

T = TypeVar("T")

_log = get_logger("vcenter")


@dataclass(frozen=True, slots=True)
class MemorySent:
    """Of a running guest that moves."""

    bytes_sent: int
    bytes_left: int


@dataclass(frozen=True, slots=True)
class HandedOver:
    """The old host will not run the VM; what goes to the new one."""

    firmware_variables: bytes
    downtime_ns: int


class HostCalls(Protocol):
    """The VM API of a host, as a center uses it.

    Every call raises the host's own errors, and PeerUnavailable where it does not answer in
    time: its effect is unknown then, and all of them may be repeated. Any thread.
    """

    def list_vms(self, host: Host, *, seconds: float) -> Sequence[Vm]: ...

    def create_vm(
        self, host: Host, vm_id: VmId, config: VmConfig, *, firmware_variables: bytes, seconds: float
    ) -> Vm: ...

    def delete_vm(self, host: Host, vm_id: VmId, *, keep_volumes: bool, seconds: float) -> None: ...

    def power_on(self, host: Host, vm_id: VmId, *, seconds: float) -> Vm: ...

    def power_off(
        self, host: Host, vm_id: VmId, *, grace_seconds: int, force: bool, seconds: float
    ) -> Vm: ...

    def attach_volume(self, host: Host, vm_id: VmId, disk: Disk, *, seconds: float) -> Vm: ...

    def create_vm_snapshot(self, host: Host, request: SnapshotRequest, *, seconds: float) -> VmSnapshot: ...

    def delete_vm_snapshot(self, host: Host, vm_snapshot_id: VmSnapshotId, *, seconds: float) -> None: ...

    def renew_vm_snapshot(self, host: Host, vm_snapshot_id: VmSnapshotId, *, seconds: float) -> None: ...

    def expect_vm(self, host: Host, migration: Migration, config: VmConfig, *, seconds: float) -> str:
        """Returns where the new host waits for memory; "" unless it is live."""
        ...

    def hand_over_vm(
        self, host: Host, migration: Migration, *, seconds: float
    ) -> Iterator[MemorySent | HandedOver]:
        """HandedOver comes last, if the old host said so."""
        ...

    def accept_vm(self, host: Host, migration: Migration, *, seconds: float) -> Vm: ...

    def abandon_migration(self, host: Host, migration: Migration, *, seconds: float) -> None: ...

    def finish_migration(self, host: Host, migration: Migration, *, seconds: float) -> None: ...


class Budget:
    """The time that a caller gave us; shared by everything done for him. One thread."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._until = clock.monotonic() + seconds

    def at_most(self, seconds: float) -> float:
        """Return ``seconds``, or what is left if that is less. Raises DeadlineExceeded."""
        left = self._until - self._clock.monotonic()
        if left <= 0:
            raise DeadlineExceeded("no time is left for another question to the host", next_step="retry")
        return min(seconds, left)


class Router:
    """Finds hosts and asks them."""

    def __init__(self, live: LiveInventory, hosts: HostCalls, moves: Moves) -> None:
        self.live = live
        self.hosts = hosts
        self._moves = moves

    def at_host(self, vm_id: VmId, ask: Callable[[Host, Vm], T], budget: Budget) -> T:
        """Return what the VM's host answers (Q2).

        ``ask`` may be called twice. Raises NotFound; PeerUnavailable (lost, hangs, or the VM is
        between hosts); what the host raises.
        """
        self._moves.refuse_moving(vm_id)
        host, vm = self.live.locate(vm_id)
        try:
            return ask(host, vm)
        except NotFound:
            _log.info("vm_not_at_host", vm=vm_id, host=host.name)
            self.synchronize(host.name, budget)
        found = self.live.now.shown.get(vm_id)
        if found is None:
            raise PeerUnavailable(
                f"host {host.name} no longer has VM {vm_id}, and no other host has reported it yet",
                subject=f"vm {vm_id}",
                next_step="retry in a few seconds: a VM that moved is reported by its new host, one "
                "that was deleted is then not found",
            )
        return ask(alive(self.live.now.host(found.host)), found)

    def synchronize(self, name: str, budget: Budget) -> None:
        """Bring the inventory in line with what a host has now. Raises NotFound, PeerUnavailable."""

        def fetch(host: Host) -> Sequence[Vm]:
            vms = self.hosts.list_vms(host, seconds=budget.at_most(LIST_SECONDS))
            return [checked(vm, host) for vm in vms]

        self.live.synchronize(name, fetch)

    def take(self, vm: Vm, host: Host, vm_id: VmId) -> Vm:
        """Put a host's answer about one VM into the inventory, and return it."""
        self.live.apply_vm(checked(vm, host, vm_id))
        return vm


def checked(vm: Vm, host: Host, vm_id: VmId | None = None) -> Vm:
    """Return the VM if the host may speak for it (Q3)."""
    if vm.host != host.name or vm_id not in (None, vm.vm_id):
        raise Corruption(
            f"the host agent at {host.address} answered with VM {vm.vm_id} of host {vm.host}; it was "
            f"asked as host {host.name}" + (f" about VM {vm_id}" if vm_id else ""),
            subject=f"host {host.name}",
            next_step="check which address that host registered",
        )
    return vm
