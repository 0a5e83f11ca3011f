"""What a VMM does to move a running guest to another host: a contract that a driver may offer.

The virtual center has the new host ``expect``, the old one ``send``, and then, only when the old host has
recorded durably that it will not run the VM again, the new one ``accept`` (migration.py). A VMM decides
nothing by itself.
Contract:
  W1 a guest that comes in stands still until ``accept``, whatever happens to this process or the other host.
  W2 a guest that was sent stands still until ``take_back``, also over ``Driver.resume`` of a new process:
     only ``take_back`` makes ``is_sent`` false. Between the two at most one has run on from that instant.
  W3 every call is idempotent by (VM, migration), and may come to a process that did not begin what it ends.
  W4 ``dismiss``, ``take_back`` and ``let_go`` are harmless at any time, from any thread; a ``send`` that they
     cut raises WrongState soon.
  W5 what a VM has at its array for one host (exports) is that host's own: letting go of it at the old host
     takes nothing from the new one.
Callers: migration.py. One thread at a time for one VM (it holds the VM's lock), but for ``send``, which runs
without, and may run twice for one migration.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from arraylift.ids import MigrationId
from hostagent.vm_types import VmRecord

DOWNTIME_MS, SEND_SECONDS = 500, 600
"""What a caller that says nothing gets."""


@dataclass(frozen=True, slots=True)
class MoveProgress:
    """Of a guest's memory."""

    bytes_sent: int
    bytes_left: int


class LiveMover(Protocol):
    """The part of a driver that moves running guests: ``Driver.mover``."""

    # -- at the new host ------------------------------------------------------------------------

    def expect(self, vm: VmRecord, migration_id: MigrationId) -> str:
        """Have a VMM wait for the guest's memory; returns where, as host:port that the old host reaches.

        One that waits already is kept; one that is gone, or has taken a part from a sender that broke
        off, is made anew. Raises WrongState, Overloaded (ports, memory), PeerUnavailable (array).
        """
        ...

    def accept(self, vm: VmRecord, migration_id: MigrationId) -> None:
        """Let the guest that came run, as an ordinary VM of the driver (``is_running``).

        No effect on one that runs. Raises NotFound where no whole guest is here: its VMM has died.
        """
        ...

    def dismiss(self, vm: VmRecord, migration_id: MigrationId) -> None:
        """End the VMM that waits, with what has come."""
        ...

    # -- at the old host ------------------------------------------------------------------------

    def send(
        self, vm: VmRecord, migration_id: MigrationId, address: str, *, downtime_ms_max: int, seconds_max: int
    ) -> Iterator[MoveProgress]:
        """Send the guest; a sending under way is followed, one that has ended is done.

        When the iteration ends the guest stands still and is whole at the new host. Raises PeerUnavailable
        (new host), DeadlineExceeded (it changes its memory faster than it can be sent), WrongState (it is
        off, or was taken back): the guest runs on then, or does so from ``take_back`` on.
        """
        ...

    def is_sent(self, vm: VmRecord, migration_id: MigrationId) -> bool:
        """Whether the guest stands still, whole at the new host."""
        ...

    def downtime_ns(self, vm: VmRecord, migration_id: MigrationId) -> int:
        """How long the VMM says that a guest that was sent stood still; 0: unknown."""
        ...

    def take_back(self, vm: VmRecord, migration_id: MigrationId) -> None:
        """End a sending and let the guest run on here. No effect where its VMM is gone or sent nothing."""
        ...

    def let_go(self, vm: VmRecord, migration_id: MigrationId) -> None:
        """End the VMM of a guest that was sent: it runs elsewhere now."""
        ...
