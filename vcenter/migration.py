"""A VM's way from one host to another, as the center decides it. Pure.

Invariants:
  G1 ``accept`` follows only on what the old host said of itself: HANDED_OVER. ``undo`` follows only where no
     host was asked to accept; after ``accept`` only where an operator says that the new host is gone.
  G2 from ``accept`` on it goes forward, from ``undo`` on backward, and never turns.
  G3 in ``finish`` the VM is the new host's; what the old one still says of it counts no more.
Why: docs/decisions/0099-who-can-run-a-moving-vm.md. Callers: use cases, any thread.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum

from arraylift.ids import MigrationId, VmId


class Phase(StrEnum):
    """What is asked next, and of whom."""

    EXPECT = "expect"
    """The new host, for a place. The VM is the old one's."""
    HAND_OVER = "hand over"
    """The old host. It may have handed over; the new one will not run the VM."""
    ACCEPT = "accept"
    """The new host. The old one will not run the VM."""
    FINISH = "finish"
    """The old host, to forget the VM, which is the new one's."""
    UNDO = "undo"
    """Both, to abandon; the new one will never be asked to accept."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One migration that has not ended. ``revision``: of the VM, as both hosts were told."""

    migration_id: MigrationId
    vm_id: VmId
    vm_name: str
    source: str
    destination: str
    live: bool
    revision: int
    memory_bytes: int
    began_at_ns: int
    phase: Phase = Phase.EXPECT
    address: str = ""
    """Where the new host waits for the memory of a running guest."""
    downtime_ms_max: int = 0
    seconds_max: int = 0
    firmware_variables: bytes = field(default=b"", repr=False)
    """Handed over."""
    why: str = ""
    """It is undone."""
    source_done: bool = False
    destination_done: bool = False
    """In ``undo``: that host has abandoned it, or was never asked for anything."""
    source_gone: bool = False
    """In ``undo``: the old host is forgotten. It is to abandon if it ever comes back."""

    @property
    def subject(self) -> str:
        return f"VM {self.vm_name}"

    @property
    def is_moving(self) -> bool:
        """Whether nothing may be asked of the VM: its old host refuses, and nobody else has it."""
        return self.phase in (Phase.HAND_OVER, Phase.ACCEPT) or (
            self.phase is Phase.UNDO and not self._source_settled
        )

    @property
    def is_left_over(self) -> bool:
        """Whether the VM is in its place, if anywhere, and only a host that has it not is to be told."""
        return self.phase is Phase.FINISH or (self.phase is Phase.UNDO and self._source_settled)

    @property
    def has_ended(self) -> bool:
        return self.phase is Phase.UNDO and self.source_done and self.destination_done

    @property
    def _source_settled(self) -> bool:
        return self.source_done or self.source_gone

    # -- what may happen ------------------------------------------------------------------------

    def expected(self, address: str) -> Migration:
        """The new host keeps a place."""
        assert self.phase is Phase.EXPECT, self.phase
        return replace(self, phase=Phase.HAND_OVER, address=address)

    def handed_over(self, firmware_variables: bytes) -> Migration:
        """The old host said HANDED_OVER (G1)."""
        assert self.phase is Phase.HAND_OVER, self.phase
        return replace(self, phase=Phase.ACCEPT, firmware_variables=firmware_variables)

    def accepted(self) -> Migration:
        """The new host has the VM."""
        assert self.phase is Phase.ACCEPT, self.phase
        return replace(self, phase=Phase.FINISH, firmware_variables=b"")

    def undone(self, why: str) -> Migration:
        """It is given up before anybody was asked to accept (G1)."""
        assert self.phase in (Phase.EXPECT, Phase.HAND_OVER), self.phase
        return self._undone(why)

    def given_back(self) -> Migration:
        """An operator has said that the new host is gone for good (G1)."""
        assert self.phase is Phase.ACCEPT, self.phase
        return self._undone(f"host {self.destination} was forgotten")

    def abandoned_at(self, host: str) -> Migration:
        """That host did as if it had not begun."""
        assert self.phase is Phase.UNDO, self.phase
        assert host in (self.source, self.destination), host
        if host == self.source:
            return replace(self, source_done=True)
        return replace(self, destination_done=True)

    def lost_source(self) -> Migration:
        """An operator has said that the old host is gone for good, and the VM with it."""
        assert self.phase is Phase.UNDO, self.phase
        return replace(self, source_gone=True)

    def _undone(self, why: str) -> Migration:
        asked_for_nothing = self.phase is Phase.EXPECT
        return replace(self, phase=Phase.UNDO, why=why, source_done=asked_for_nothing, firmware_variables=b"")
