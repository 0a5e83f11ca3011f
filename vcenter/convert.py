"""Edge: the virtual center's own values to and from messages; VMs are in ``arraylift.vm.convert``.

Invariants:
  E1 a VM that has not changed is converted once: a listing of 10,000 costs copies only.
Callers: edges (``service``, ``peers``), any thread; they have ``admission`` check what comes in.
"""

from __future__ import annotations

from dataclasses import replace

from arraylift.ids import VmId
from arraylift.rpc import pages
from arraylift.v1 import virtual_center_pb2, vm_pb2
from arraylift.vm import convert as shared
from arraylift.vm.types import Vm
from vcenter.event_log import Event
from vcenter.inventory import Inventory
from vcenter.inventory_store import HistoryEntry
from vcenter.migrate import News
from vcenter.migration import Migration
from vcenter.model import Host, Report


def vm_from_pb(message: vm_pb2.Vm, *, host: str) -> Vm:
    """Return a VM that ``host`` told of, on that host unless it names another."""
    vm = shared.vm_from_pb(message)
    return vm if vm.host else replace(vm, host=host)


def report_from_pb(message: virtual_center_pb2.ReportInventoryRequest) -> Report:
    return Report(
        host=message.name,
        sequence=message.sequence,
        vms=tuple(vm_from_pb(vm, host=message.name) for vm in message.vms),
        memory_bytes=message.memory_bytes,
        memory_free_bytes=message.memory_free_bytes,
        cpus=message.cpus,
        load_percent=message.load_percent,
    )


def host_to_pb(host: Host, inventory: Inventory) -> virtual_center_pb2.Host:
    """``vm_count`` counts what is shown on the host, which a lost rival claim is not."""
    states = virtual_center_pb2.HostState
    count = sum(
        1 for vm_id in inventory.ids_by_host.get(host.name, ()) if inventory.shown[vm_id].host == host.name
    )
    return virtual_center_pb2.Host(
        name=host.name,
        address=host.address,
        state=states.HOST_STATE_LOST if host.lost else states.HOST_STATE_ALIVE,
        memory_bytes=host.memory_bytes,
        memory_free_bytes=host.memory_free_bytes,
        cpus=host.cpus,
        vm_count=count,
        last_report_ns=host.last_report_ns,
        driver=host.driver,
        load_percent=host.load_percent,
    )


def history_to_pb(entry: HistoryEntry) -> virtual_center_pb2.VmHistoryEntry:
    past = entry.past
    return virtual_center_pb2.VmHistoryEntry(
        at_ns=entry.noted_at_ns, host=past.host, config=shared.config_to_pb(past.config), removed=past.removed
    )


def migration_to_pb(migration: Migration, waits_for: str) -> virtual_center_pb2.Migration:
    return virtual_center_pb2.Migration(
        migration_id=migration.migration_id,
        vm_id=migration.vm_id,
        vm_name=migration.vm_name,
        source=migration.source,
        destination=migration.destination,
        live=migration.live,
        phase=migration.phase.value,
        began_at_ns=migration.began_at_ns,
        waits_for=waits_for,
        undone_because=migration.why,
    )


def news_to_pb(news: News, inventory: Inventory) -> virtual_center_pb2.MigrateVmResponse:
    moved = news.moved
    return virtual_center_pb2.MigrateVmResponse(
        phase=news.phase,
        bytes_sent=news.sent.bytes_sent,
        bytes_left=news.sent.bytes_left,
        vm=shared.vm_to_pb(moved[0]) if moved else None,
        host=host_to_pb(moved[1], inventory) if moved else None,
        downtime_ns=news.downtime_ns,
        waits_for=news.waits_for,
    )


def event_to_pb(event: Event, messages: VmMessages) -> virtual_center_pb2.WatchInventoryResponse:
    return virtual_center_pb2.WatchInventoryResponse(
        revision=event.revision,
        vms=map(messages.of, event.vms),
        removed_vm_ids=event.gone,
        listing=event.listing,
    )


VMS_FIELD = virtual_center_pb2.ListManagedVmsResponse.VMS_FIELD_NUMBER


class VmMessages:
    """VMs as messages, made once (E1). Any thread; the messages are for reading."""

    def __init__(self) -> None:
        self._made: dict[VmId, tuple[Vm, vm_pb2.Vm]] = {}
        self._frames: dict[VmId, tuple[Vm, bytes]] = {}

    def of(self, vm: Vm) -> vm_pb2.Vm:
        """Return the message of a VM."""
        found = self._made.get(vm.vm_id)
        if found is not None and found[0] is vm:
            return found[1]
        message = shared.vm_to_pb(vm)
        self._made[vm.vm_id] = (vm, message)
        return message

    def frame(self, vm: Vm) -> bytes:
        """Return a VM as it lies in the bytes of a ListManagedVmsResponse."""
        found = self._frames.get(vm.vm_id)
        if found is not None and found[0] is vm:
            return found[1]
        data = pages.frame(VMS_FIELD, self.of(vm))
        self._frames[vm.vm_id] = (vm, data)
        return data

    def keep_only(self, inventory: Inventory) -> None:
        """Forget VMs that are gone, once they outnumber the others."""
        if len(self._made) > 2 * len(inventory.shown) + 64:
            self._made = {vm_id: made for vm_id, made in list(self._made.items()) if vm_id in inventory.shown}
            self._frames = {
                vm_id: made for vm_id, made in list(self._frames.items()) if vm_id in inventory.shown
            }
