"""The inventory as it is now: takes reports and answers, stores them, tells watchers.

Owns: the current Inventory, its event log, who was heard when, and the holds.
Invariants:
  L1 store, then publish, then answer: nobody sees a change that a crash would take back.
  L2 readers take no lock: an Inventory never changes after it was published.
  L3 a host is lost when this process heard no report of it for SILENCE_SECONDS of its
     monotonic clock; a restart of the center gives every host that time anew.
  L4 what a host answered about a VM is not undone by a report that it made before: it is held
     until a report agrees, or HOLD_SECONDS have passed.
  L5 the lock is never held during an outbound call; only over the store's fsync.
  L6 of a VM that has moved, what its old host says counts no more until that host has forgotten it.
Callers: any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from arraylift.clock import Clock
from arraylift.errors import NotFound, PeerUnavailable
from arraylift.ids import VmId
from arraylift.logs import get_logger
from arraylift.vm.types import Vm
from vcenter import inventory as core
from vcenter.event_log import Event, EventLog
from vcenter.inventory import Change, Hold, Inventory
from vcenter.inventory_store import HistoryEntry, InventoryStore
from vcenter.model import Host, Report

SILENCE_SECONDS = 20.0
HOLD_SECONDS = 10.0
HOLDS_MAX = 4_096

_log = get_logger("vcenter")


@dataclass(frozen=True, slots=True)
class _Held:
    hold: Hold
    until: float


class LiveInventory:
    """One center's inventory."""

    def __init__(self, store: InventoryStore, clock: Clock) -> None:
        """Load what was stored. Raises Corruption, StoreFailed."""
        self._store = store
        self._clock = clock
        self._inventory = store.load()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._events = EventLog(self._inventory.revision)
        self._heard = dict.fromkeys(self._inventory.hosts, clock.monotonic())
        self._held: dict[tuple[VmId, str], _Held] = {}
        self._departed: set[tuple[VmId, str]] = set()

    # -- reading (L2) ---------------------------------------------------------------------------

    @property
    def now(self) -> Inventory:
        """The current inventory; keep it as long as you like."""
        return self._inventory

    def locate(self, vm_id: VmId) -> tuple[Host, Vm]:
        """Return a VM and its living host. Raises NotFound, PeerUnavailable (the host is lost)."""
        now = self._inventory
        vm = now.vm(vm_id)
        return alive(now.hosts[vm.host]), vm

    def history(self, vm_id: VmId, *, before: int, count: int) -> list[HistoryEntry]:
        """Return what a VM was, the newest first, below an entry's number. Raises NotFound (no VM ever)."""
        found = self._store.history(vm_id, before=before, count=count)
        if not found and not self._store.history(vm_id, count=1):
            raise NotFound(f"no VM {vm_id} was ever here", subject=f"vm {vm_id}")
        return found

    # -- hosts ----------------------------------------------------------------------------------

    def register(self, *, name: str, address: str, driver: str) -> None:
        """Make a host known, or note its new address. Raises Overloaded."""
        with self._lock:
            change = core.register_host(self._inventory, name=name, address=address, driver=driver)
            self._publish(change)
            self._heard.setdefault(name, self._clock.monotonic())
        if change.must_be_stored:
            _log.info("host_registered", host=name, address=address, driver=driver)

    def report(self, report: Report) -> bool:
        """Take a host's report; False if it is not newer than the last. Raises NotFound, Overloaded."""
        with self._lock:
            report = replace(
                report, received_at_ns=self._clock.wall_ns(), vms=tuple(self._still_there(report.vms))
            )
            was_lost = self._inventory.host(report.host).lost
            change = core.apply_report(self._inventory, report, self._holds())
            if change is None:
                _log.warning("report_ignored", host=report.host, sequence=report.sequence)
                return False
            self._publish(change)
            self._heard[report.host] = self._clock.monotonic()
            self._release_holds(report.host, report.vms)
        if was_lost:
            _log.info("host_found", host=report.host, vms=len(report.vms))
        return True

    def remove_host(self, name: str) -> None:
        """Forget a host and its VMs. Raises NotFound."""
        with self._lock:
            self._publish(core.remove_host(self._inventory, name))
            self._heard.pop(name, None)
            for key in [key for key in self._held if key[1] == name]:
                del self._held[key]
        _log.info("host_removed", host=name)

    def mark_silent(self) -> list[str]:
        """Mark the hosts that were silent too long; return their names (L3)."""
        now = self._clock.monotonic()
        lost = []
        with self._lock:
            for name, heard in self._heard.items():
                if now - heard >= SILENCE_SECONDS and not self._inventory.hosts[name].lost:
                    self._publish(core.mark_lost(self._inventory, name))
                    lost.append(name)
        for name in lost:
            _log.warning("host_lost", host=name, silent_seconds=SILENCE_SECONDS)
        return lost

    # -- what hosts answered --------------------------------------------------------------------

    def apply_vm(self, vm: Vm) -> None:
        """Take a VM as its host has just described it. Raises NotFound (the host was removed)."""
        with self._lock:
            known = self._claim(vm.vm_id, vm.host)
            if known is not None and known.revision > vm.revision:
                return  # a later answer or report overtook this one
            if (vm.vm_id, vm.host) in self._departed:
                return  # L6
            self._publish(core.apply_vm(self._inventory, vm))
            self._hold(vm.vm_id, vm.host, Hold(vm))

    def apply_removal(self, host: str, vm_id: VmId) -> None:
        """Take that the host removed the VM, just now."""
        with self._lock:
            self._publish(core.remove_vm(self._inventory, host, vm_id))
            self._hold(vm_id, host, Hold(None))

    def depart(self, vm_id: VmId, host: str) -> None:
        """The VM has moved away from the host, which may not know that it is to forget it (L6)."""
        with self._lock:
            self._departed.add((vm_id, host))
            self._held.pop((vm_id, host), None)  # an answer from before the move must not bring it back
            self._publish(core.remove_vm(self._inventory, host, vm_id))

    def departed(self, vm_id: VmId, host: str) -> None:
        """The host has forgotten the VM, just now; what it reported before does not count."""
        self.apply_removal(host, vm_id)
        with self._lock:
            self._departed.discard((vm_id, host))

    def synchronize(self, name: str, fetch: Callable[[Host], Sequence[Vm]]) -> None:
        """Ask a host for all of its VMs and take its answer. Raises NotFound, and what ``fetch`` raises.

        An answer that a report overtook is left aside: the report is as fresh as the question.
        """
        host = self._inventory.host(name)
        vms = fetch(host)
        with self._lock:
            known = self._inventory.hosts.get(name)
            if known is not None and known.sequence == host.sequence:
                there = list(self._still_there(vms))
                self._publish(core.apply_listing(self._inventory, name, there, self._holds()))

    # -- watching -------------------------------------------------------------------------------

    def changes_after(self, revision: int) -> Event | None:
        """Return what changed after a revision as one event; None if that is no longer known."""
        with self._lock:
            return self._events.since(revision, self._inventory.revision)

    def wait_for_change(self, revision: int, timeout_seconds: float) -> None:
        """Wait until the inventory is past ``revision``, ``wake`` is called, or the time is over."""
        with self._changed:
            if self._inventory.revision == revision:
                self._changed.wait(timeout_seconds)

    def wake(self) -> None:
        """Let every waiting watcher look around."""
        with self._changed:
            self._changed.notify_all()

    # -- inside, under the lock -----------------------------------------------------------------

    def _publish(self, change: Change) -> None:
        if change.must_be_stored:
            self._store.save(change, noted_at_ns=self._clock.wall_ns())  # L1
        self._inventory = change.inventory
        if change.is_visible:
            self._events.add(Event(change.inventory.revision, change.shown, change.gone))
        if change.must_be_stored:
            self._changed.notify_all()

    def _claim(self, vm_id: VmId, host: str) -> Vm | None:
        claims = self._inventory.claims.get(vm_id, ())
        return next((claim.vm for claim in claims if claim.vm.host == host), None)

    def _still_there(self, vms: Sequence[Vm]) -> Iterator[Vm]:
        """L6."""
        return (vm for vm in vms if (vm.vm_id, vm.host) not in self._departed)

    def _hold(self, vm_id: VmId, host: str, hold: Hold) -> None:
        self._held.pop((vm_id, host), None)
        if len(self._held) >= HOLDS_MAX:
            del self._held[next(iter(self._held))]  # the oldest: a stale report may flicker it
        self._held[vm_id, host] = _Held(hold, self._clock.monotonic() + HOLD_SECONDS)

    def _holds(self) -> dict[tuple[VmId, str], Hold]:
        now = self._clock.monotonic()
        self._held = {key: held for key, held in self._held.items() if held.until > now}
        return {key: held.hold for key, held in self._held.items()}

    def _release_holds(self, host: str, vms: Sequence[Vm]) -> None:
        if self._held:
            said = {vm.vm_id: vm for vm in vms}
            for (vm_id, holder), held in list(self._held.items()):
                if holder == host and held.hold.agrees(said.get(vm_id)):
                    del self._held[vm_id, holder]


def alive(host: Host) -> Host:
    """Return the host, or raise PeerUnavailable if it is lost."""
    if host.lost:
        raise PeerUnavailable(
            f"host {host.name} at {host.address} has not reported for {SILENCE_SECONDS:.0f} s or more",
            subject=f"host {host.name}",
            next_step="retry when its host agent runs and reaches this center; if the host is gone for "
            "good, remove it",
        )
    return host
