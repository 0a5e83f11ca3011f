"""Adopted guests: VMs of this host that its admin made, kept in step with what the VMM says.

Invariants:
  P1 the VMM's word wins: name, attributes, disks and power of an adopted guest are what it said last. Where
     it says nothing nothing is changed.
  P2 a guest is forgotten when MISSING_LOOKS looks in a row did not find it. Its VM snapshots go by their
     leases.
  P3 only a guest of the admin's is adopted: what this host made, or has a record of, is never.
Lock order: VM, then names. A VM that is busy with another call waits for the next look.
Callers: its own thread, every LOOK_SECONDS and whenever the VMM tells of a change.
Why: docs/decisions/0096-who-owns-an-adopted-guest.md
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from arraylift.errors import ArrayliftError, Overloaded
from arraylift.ids import VmId
from arraylift.logs import get_logger
from arraylift.outcome import attempt
from hostagent.found_guests import FoundGuest, FoundGuests
from hostagent.locks import KeyedLocks
from hostagent.machines import Machines
from hostagent.vm_store import VmStore
from hostagent.vm_types import VmRecord, VmState

LOOK_SECONDS = 5.0
REST_SECONDS = 0.3
"""Between two looks, however often the VMM tells of changes."""

MISSING_LOOKS = 2

_log = get_logger("adoption")


class Adoption:
    """Keeps the records of adopted guests."""

    def __init__(
        self,
        store: VmStore,
        guests: FoundGuests,
        machines: Machines,
        locks: KeyedLocks,
        *,
        seconds: float = LOOK_SECONDS,
    ) -> None:
        self._store, self._guests, self._machines, self._locks = store.vms, guests, machines, locks
        self._seconds = seconds
        self._missing: Counter[VmId] = Counter()
        self._trouble = ""
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="adoption", daemon=True)

    def start(self) -> None:
        self._guests.watch(self._wake.set)
        self._thread.start()

    def close(self) -> None:
        """Stop; waits for the look under way, for a while."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()  # before the look: a later change wakes us again
            _, error = attempt(self.look, "look for guests")
            self._tell(error)
            if not self._stopping.wait(REST_SECONDS):
                self._wake.wait(self._seconds)

    def look(self) -> None:
        """Bring the records in step once. Raises PeerUnavailable, DeadlineExceeded (P1)."""
        adopted = {vm.vm_id: vm for vm in self._store.all() if vm.adopted}
        found = {guest.vm_id: guest for guest in self._guests.found(adopted)}
        for guest in found.values():
            self._missing.pop(guest.vm_id, None)
            self._attempt(guest.vm_id, lambda guest=guest: self._keep(guest))  # type: ignore[misc]
        for vm_id in adopted.keys() - found.keys():
            self._missing[vm_id] += 1
            if self._missing[vm_id] >= MISSING_LOOKS:  # P2
                self._attempt(vm_id, lambda vm_id=vm_id: self._lose(vm_id))  # type: ignore[misc]

    def _attempt(self, vm_id: VmId, work: Callable[[], None]) -> None:
        def locked() -> None:
            with self._locks.hold(vm_id, seconds=0.1):
                work()

        _, error = attempt(locked, "adoption of a guest")
        if error is not None and not isinstance(error, Overloaded):
            _log.warning("adoption_waits", vm=vm_id, error=str(error))

    def _keep(self, guest: FoundGuest) -> None:
        known = self._store.find(guest.vm_id)
        if known is not None and not known.adopted:
            return  # P3
        state = VmState.ON if guest.running else VmState.OFF
        if known is None:
            vm = VmRecord(guest.vm_id, guest.config, state, 0, "", (), adopted=True)
        else:
            vm = replace(known, config=guest.config, state=state)
        kept = self._machines.adopt(vm)
        if kept != known:
            _log.info(
                "adopted_guest_kept",
                new=known is None,
                vm=guest.vm_id,
                name=kept.config.name,
                power=state.value,
                disks=len(kept.config.disks),
            )

    def _lose(self, vm_id: VmId) -> None:
        vm = self._store.find(vm_id)
        if vm is not None and vm.adopted:
            self._machines.forget(vm)
            _log.warning("adopted_guest_gone", vm=vm_id, name=vm.config.name)
        self._missing.pop(vm_id, None)

    def _tell(self, error: ArrayliftError | None) -> None:
        """One line when the state changes, not one for every look."""
        trouble = type(error).__name__ if error else ""
        if trouble != self._trouble:
            self._trouble = trouble
            if error is None:
                _log.info("vmm_reached")
            else:
                _log.warning("vmm_away", error=str(error))
