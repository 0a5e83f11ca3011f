"""The last changes of the inventory, so that a watcher resumes where it left off. Pure.

Invariants:
  E1 the log holds at most EVENTS_MAX events and VMS_MAX changed VMs; the oldest go first.
  E2 ``since`` answers only if it has every event after that revision; else it says that it has not.
Callers: live_inventory, under its lock.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass

from arraylift.ids import VmId
from arraylift.vm.types import Vm
from vcenter.model import VMS_MAX

EVENTS_MAX = 4_096


@dataclass(frozen=True, slots=True)
class Event:
    """VMs made or changed, and gone, up to and with ``revision``."""

    revision: int
    vms: tuple[Vm, ...]
    gone: tuple[VmId, ...]
    listing: bool = False
    """``vms`` is everything there is."""


class EventLog:
    """Events by ascending revision. One thread at a time."""

    def __init__(self, revision: int) -> None:
        """``revision`` is the inventory's; what was before it is not here."""
        self._oldest = revision
        self._newest = revision
        self._weight = 0
        self._events: deque[Event] = deque()

    def add(self, event: Event) -> None:
        assert event.revision > self._newest, "events come in the order of revisions"
        self._events.append(event)
        self._newest = event.revision
        self._weight += _weight(event)
        while len(self._events) > EVENTS_MAX or (self._weight > VMS_MAX and len(self._events) > 1):
            dropped = self._events.popleft()
            self._weight -= _weight(dropped)
            self._oldest = dropped.revision

    def since(self, revision: int, upto: int) -> Event | None:
        """Return one event for all after ``revision``, ending at ``upto``, the inventory's revision.

        None if the log does not reach back that far, or no center ever had that revision (E2).
        """
        if not self._oldest <= revision <= upto:
            return None
        vms: dict[VmId, Vm] = {}
        gone: dict[VmId, None] = {}
        start = bisect_right(self._events, revision, key=lambda event: event.revision)
        for index in range(start, len(self._events)):
            event = self._events[index]
            for vm in event.vms:
                gone.pop(vm.vm_id, None)
                vms[vm.vm_id] = vm
            for vm_id in event.gone:
                vms.pop(vm_id, None)
                gone[vm_id] = None
        return Event(upto, tuple(vms.values()), tuple(gone))


def _weight(event: Event) -> int:
    return len(event.vms) + len(event.gone)
