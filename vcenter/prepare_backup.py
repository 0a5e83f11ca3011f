"""Have a VM's host capture a consistent state of it, and say where the disks' snapshots lie.

The first request of claims 1, 10 and 19: a VM id comes in, its host is determined, the VMM of that
host is asked over the network for a VM snapshot; what is answered is all that the backup server
needs for the second request, to the storage systems.
Invariants:
  B1 idempotent by (VM, name), as the host is: the same again returns the same snapshot.
  B2 a VM snapshot is released and renewed at the host that took it, wherever the VM is by now.
Callers: the edge, on the threads of its calls.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from arraylift.errors import Corruption
from arraylift.ids import VmId, VmSnapshotId
from arraylift.logs import get_logger
from arraylift.vm.types import SnapshotRequest, Vm, VmSnapshot
from vcenter.inventory_store import InventoryStore
from vcenter.live_inventory import alive
from vcenter.model import Host
from vcenter.routing import QUICK_SECONDS, SNAPSHOT_SECONDS, Budget, Router

_log = get_logger("vcenter")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A VM that can be backed up now: until the lease of its snapshot lapses."""

    host: Host
    vm: Vm
    snapshot: VmSnapshot


class BackupPreparer:
    """Serves one center."""

    def __init__(self, router: Router, store: InventoryStore) -> None:
        self._router = router
        self._store = store

    def prepare(self, request: SnapshotRequest, budget: Budget) -> Prepared:
        """Find the VM's host and have its VMM take the snapshot (B1).

        Raises NotFound, PeerUnavailable (host lost or silent, VM on the move), and what the host
        raises. Should this process die before its answer, the lease frees the snapshot.
        """

        def ask(host: Host, vm: Vm) -> Prepared:
            seconds = budget.at_most(SNAPSHOT_SECONDS)
            snapshot = self._router.hosts.create_vm_snapshot(host, request, seconds=seconds)
            if (snapshot.vm_id, snapshot.name) != (request.vm_id, request.name):
                raise Corruption(
                    f"host {host.name} answered with snapshot {snapshot.name!r} of VM {snapshot.vm_id}; "
                    f"{request.name!r} of VM {request.vm_id} was asked for",
                    subject=f"host {host.name}",
                    next_step="look into that host agent's log",
                )
            return Prepared(host, vm, snapshot)

        prepared = self._router.at_host(request.vm_id, ask, budget)
        self._store.note_snapshot(prepared.snapshot.vm_snapshot_id, request.vm_id, prepared.host.name)
        _log.info(
            "backup_prepared",
            vm=request.vm_id,
            host=prepared.host.name,
            snapshot=prepared.snapshot.vm_snapshot_id,
            level=prepared.snapshot.level.name,
            disks=len(prepared.snapshot.disks),
        )
        # The freshest configuration is that of the instant itself.
        return replace(prepared, vm=replace(prepared.vm, config=prepared.snapshot.config))

    def release(self, vm_id: VmId, vm_snapshot_id: VmSnapshotId, budget: Budget) -> None:
        """Have the snapshot deleted where it lies (B2); a missing one is no error.

        Raises NotFound (VM and snapshot unknown), PeerUnavailable, and what the host raises.
        """
        host = self._host_of(vm_id, vm_snapshot_id)
        self._router.hosts.delete_vm_snapshot(host, vm_snapshot_id, seconds=budget.at_most(SNAPSHOT_SECONDS))
        self._store.forget_snapshot(vm_snapshot_id)

    def renew(self, vm_id: VmId, vm_snapshot_id: VmSnapshotId, budget: Budget) -> None:
        """Restart the snapshot's lease where it lies (B2). Raises as ``release``."""
        host = self._host_of(vm_id, vm_snapshot_id)
        self._router.hosts.renew_vm_snapshot(host, vm_snapshot_id, seconds=budget.at_most(QUICK_SECONDS))

    def _host_of(self, vm_id: VmId, vm_snapshot_id: VmSnapshotId) -> Host:
        name = self._store.snapshot_host(vm_snapshot_id)
        if name is not None:
            return alive(self._router.live.now.host(name))
        return self._router.live.locate(vm_id)[0]
