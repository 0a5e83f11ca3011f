"""VMs, wherever they are: through the virtual center (figure 2), or by asking hosts (figure 1).

Invariants:
  V1 "not found" is said only when every host could be asked, twice. Of a VM that two hosts tell of, the word
     with the higher revision counts.
Callers: use cases, any thread. Nothing is cached: a VM may move between two calls.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol, TypeVar

from arraylift.errors import ArrayliftError, Conflict, NotFound, PeerUnavailable, WrongState
from arraylift.vm.types import Disk, SnapshotRequest, Vm, VmConfig, VmSnapshot
from backup_server.model import Located
from backup_server.ports import Center, Host, HostRef, Peers
from backup_server.registry import Registry

_VM_ID = re.compile(r"[0-9a-f]{32}")

T = TypeVar("T")


class VmSide(Protocol):
    """What a job needs of whoever has the VM. ``at`` is the host it was last seen on."""

    def vms(self) -> list[Vm]: ...
    def find(self, vm: str) -> Located:
        """By id or name. Raises NotFound."""
        ...

    def take_snapshot(self, order: SnapshotRequest, at: HostRef) -> VmSnapshot: ...
    def identify(self, snapshot: VmSnapshot, at: HostRef) -> VmSnapshot: ...
    def renew(self, snapshot: VmSnapshot, at: HostRef) -> None: ...
    def release(self, vm_id: str, vm_snapshot_id: str, at: HostRef) -> None:
        """A missing snapshot is no error."""
        ...

    def place(self, config: VmConfig, arrays: list[str], host: str) -> HostRef:
        """The host that is named, or a chosen one. Raises NotFound, Overloaded."""
        ...

    def provision(
        self, vm_id: str, config: VmConfig, at: HostRef, firmware_variables: bytes = b""
    ) -> HostRef: ...
    def attach(self, vm_id: str, disk: Disk, at: HostRef) -> None: ...
    def power(self, vm_id: str, at: HostRef, *, on: bool, grace_seconds: int = 0) -> None:
        """Off is at once, unless the guest is given seconds to obey."""
        ...

    def remove(self, vm_id: str, at: HostRef) -> None: ...


class Inventory:
    """Chooses the way to a VM."""

    def __init__(self, registry: Registry, peers: Peers) -> None:
        self._registry = registry
        self._peers = peers

    def is_direct(self, *, asked: bool) -> bool:
        """Direct when it is asked for, or when there is no virtual center."""
        return asked or self._registry.center() is None

    def side(self, *, direct: bool) -> VmSide:
        """Raises WrongState if there is nobody to ask."""
        if direct:
            hosts = self._registry.hosts()
            if not hosts:
                raise WrongState(
                    "no host is registered, so no VM can be found",
                    subject="host",
                    next_step="add a host, or a virtual center",
                )
            return Direct(hosts, self._peers)
        center = self._registry.center()
        if center is None:
            raise WrongState(
                "no virtual center is known", subject="virtual center", next_step="add it, or work directly"
            )
        return ThroughCenter(self._peers.center(center))

    def look(self, side: VmSide, vm_id: str) -> Located:
        """The VM as its host itself says now; what a virtual center knows may be seconds old.

        Raises NotFound, Conflict (it moves: look again), PeerUnavailable (the host).
        """
        found = side.find(vm_id)
        if found.vm.vm_id != vm_id:
            raise NotFound(f"there is no VM with the id {vm_id}", subject=f"VM {vm_id}")
        try:
            fresh = self._peers.host(HostRef(found.host, found.host_address)).find_vm(vm_id=vm_id)
        except NotFound as error:
            raise Conflict(
                f"host {found.host} no longer has VM {found.vm.config.name}", subject=f"VM {vm_id}"
            ) from error
        return replace(found, vm=fresh)

    def strays(self, vm_id: str, name: str, at: HostRef) -> list[str]:
        """Ids of the VM's snapshots of that name on that host."""
        found = self._peers.host(at).snapshots(vm_id)
        return [one.vm_snapshot_id for one in found if one.name == name]


class ThroughCenter:
    """VmSide by way of the virtual center, which finds the host by itself."""

    def __init__(self, center: Center) -> None:
        self._center = center

    def vms(self) -> list[Vm]:
        return self._center.vms()

    def find(self, vm: str) -> Located:
        return _by_id_or_name(vm, lambda vm_id, name: self._center.find_vm(vm_id=vm_id, name=name))

    def take_snapshot(self, order: SnapshotRequest, at: HostRef) -> VmSnapshot:  # noqa: ARG002
        return self._center.prepare_backup(order)

    def identify(self, snapshot: VmSnapshot, at: HostRef) -> VmSnapshot:  # noqa: ARG002
        return snapshot  # the center's answer names every disk snapshot already

    def renew(self, snapshot: VmSnapshot, at: HostRef) -> None:  # noqa: ARG002
        self._center.renew_snapshot(snapshot.vm_id, snapshot.vm_snapshot_id)

    def release(self, vm_id: str, vm_snapshot_id: str, at: HostRef) -> None:  # noqa: ARG002
        try:
            self._center.release_snapshot(vm_id, vm_snapshot_id)
        except NotFound:  # the VM is gone, and its snapshots with it
            return

    def place(self, config: VmConfig, arrays: list[str], host: str) -> HostRef:
        return HostRef(host or self._center.place_vm(config, arrays), "")

    def provision(
        self, vm_id: str, config: VmConfig, at: HostRef, firmware_variables: bytes = b""
    ) -> HostRef:
        return self._center.provision_vm(vm_id, config, at.name, firmware_variables)

    def attach(self, vm_id: str, disk: Disk, at: HostRef) -> None:  # noqa: ARG002
        self._center.attach_volume(vm_id, disk)

    def power(self, vm_id: str, at: HostRef, *, on: bool, grace_seconds: int = 0) -> None:  # noqa: ARG002
        self._center.power_vm(vm_id, on=on, grace_seconds=grace_seconds)

    def remove(self, vm_id: str, at: HostRef) -> None:  # noqa: ARG002
        self._center.remove_vm(vm_id)


class Direct:
    """VmSide by the hosts themselves."""

    def __init__(self, hosts: Iterable[HostRef], peers: Peers) -> None:
        self._hosts = list(hosts)
        self._peers = peers

    def vms(self) -> list[Vm]:
        return [vm for ref in self._hosts for vm in self._peers.host(ref).vms()]

    def find(self, vm: str) -> Located:
        return _by_id_or_name(vm, self._find)

    def _find(self, vm_id: str, name: str) -> Located:
        """Asks twice: a VM that moves between two questions is on neither host."""
        return self._ask_all(vm_id, name) or self._ask_all(vm_id, name) or self._missing(vm_id, name)

    def _missing(self, vm_id: str, name: str) -> Located:
        raise NotFound(
            f"no registered host has the VM {vm_id or name}",
            subject=f"VM {vm_id or name}",
            next_step="list the VMs",
        )

    def _ask_all(self, vm_id: str, name: str) -> Located | None:
        """A VM that was handed over is told of by both hosts until the old one forgets it: the later word
        counts. Raises PeerUnavailable (V1)."""
        found: list[Located] = []
        silent: PeerUnavailable | None = None
        for ref in self._hosts:
            try:
                vm = self._peers.host(ref).find_vm(vm_id=vm_id, name=name)
            except NotFound:
                continue
            except PeerUnavailable as error:
                silent = error
                continue
            found.append(Located(vm, ref.name, ref.address))
        if not found and silent is not None:
            raise silent
        return max(found, key=lambda one: one.vm.revision, default=None)

    def _host(self, at: HostRef) -> Host:
        return self._peers.host(at)

    def take_snapshot(self, order: SnapshotRequest, at: HostRef) -> VmSnapshot:
        return self._host(at).create_snapshot(order)

    def identify(self, snapshot: VmSnapshot, at: HostRef) -> VmSnapshot:
        return self._host(at).snapshot(snapshot.vm_snapshot_id)

    def renew(self, snapshot: VmSnapshot, at: HostRef) -> None:
        self._host(at).renew_snapshot(snapshot.vm_snapshot_id)

    def release(self, vm_id: str, vm_snapshot_id: str, at: HostRef) -> None:  # noqa: ARG002
        self._host(at).delete_snapshot(vm_snapshot_id)

    def place(self, config: VmConfig, arrays: list[str], host: str) -> HostRef:  # noqa: ARG002
        """Without a name: the host that answers and has the fewest VMs."""
        if host:
            named = [ref for ref in self._hosts if ref.name == host]
            if not named:
                raise NotFound(f"no host {host} is registered", subject=f"host {host}")
            return named[0]
        counts: list[tuple[int, str, HostRef]] = []
        problem: ArrayliftError | None = None
        for ref in self._hosts:
            try:
                counts.append((len(self._host(ref).vms()), ref.name, ref))
            except PeerUnavailable as error:
                problem = error
        if not counts:
            assert problem is not None, "there is a host"
            raise problem
        return min(counts)[2]

    def provision(
        self, vm_id: str, config: VmConfig, at: HostRef, firmware_variables: bytes = b""
    ) -> HostRef:
        self._host(at).create_vm(vm_id, config, firmware_variables)
        return at

    def attach(self, vm_id: str, disk: Disk, at: HostRef) -> None:
        self._host(at).attach_volume(vm_id, disk)

    def power(self, vm_id: str, at: HostRef, *, on: bool, grace_seconds: int = 0) -> None:
        self._host(at).power_vm(vm_id, on=on, grace_seconds=grace_seconds)

    def remove(self, vm_id: str, at: HostRef) -> None:
        self._host(at).remove_vm(vm_id)


def _by_id_or_name(vm: str, find: Callable[[str, str], T]) -> T:
    """A name may look like an id: the id comes first."""
    if _VM_ID.fullmatch(vm):
        try:
            return find(vm, "")
        except NotFound:
            pass
    return find("", vm)
