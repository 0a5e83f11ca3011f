"""Tells the virtual center what VMs this host has: at every change, and every REPORT_SECONDS.

Invariants:
  R1 sequences grow with every report, over restarts: the store's token is their upper half, so that a
     report which was delayed in the network never overwrites a later one.
  R2 a virtual center that is away, or has forgotten this host, never stops the host.
Callers: ``changed`` from any thread; reports leave on the reporter's own thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from arraylift.errors import ArrayliftError, NotFound
from arraylift.logs import get_logger
from arraylift.outcome import attempt
from hostagent.vm_types import VmRecord

REPORT_SECONDS = 5.0
_TOKEN_SHIFT = 32

_log = get_logger("reporter")


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What a host says of itself; ``address`` is where others reach it."""

    name: str
    address: str
    driver: str
    memory_bytes: int
    cpus: int


@dataclass(frozen=True, slots=True)
class HostUse:
    """What of a host is used now."""

    memory_free_bytes: int
    load_percent: int


class Center(Protocol):
    """The virtual center, as peers.py reaches it."""

    def register(self, facts: HostFacts) -> None: ...

    def report(self, facts: HostFacts, sequence: int, vms: list[VmRecord], use: HostUse) -> None:
        """Raises NotFound (register first), PeerUnavailable."""
        ...


class Reporter:
    """One host's reports to one virtual center."""

    def __init__(
        self,
        center: Center,
        facts: HostFacts,
        inventory: Callable[[], list[VmRecord]],
        *,
        token: int,
        load: Callable[[], int] = lambda: 0,
        seconds: float = REPORT_SECONDS,
    ) -> None:
        """``load``: percent of all processors, over the last minute."""
        self._center, self._facts, self._inventory, self._seconds = center, facts, inventory, seconds
        self._load = load
        self._sequence = token << _TOKEN_SHIFT  # R1
        self._registered = False
        self._trouble = ""
        self._stopping = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def changed(self) -> None:
        """Report soon."""
        self._wake.set()

    def close(self) -> None:
        """Stop; waits for the report under way."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()  # before the inventory is read: a later change wakes us again
            _, error = attempt(self._report, "report to the virtual center")
            self._tell(error)
            # A change wakes us, even while the center is away: one short call, and it may be back.
            self._wake.wait(self._seconds)

    def _report(self) -> None:
        if not self._registered:
            self._center.register(self._facts)
            self._registered = True
        vms = self._inventory()
        reserved = sum(vm.config.memory_bytes for vm in vms)
        self._sequence += 1
        try:
            use = HostUse(max(0, self._facts.memory_bytes - reserved), self._load())
            self._center.report(self._facts, self._sequence, vms, use)
        except NotFound:
            self._registered = False  # it lost its list, or an operator removed us: come back
            self._wake.set()
            raise

    def _tell(self, error: ArrayliftError | None) -> None:
        """One line when the state changes, not one for every attempt."""
        trouble = type(error).__name__ if error else ""
        if trouble != self._trouble:
            self._trouble = trouble
            if error is None:
                _log.info("vcenter_reached", sequence=self._sequence)
            else:
                _log.warning("vcenter_away", error=str(error))
