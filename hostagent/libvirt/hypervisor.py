"""What this driver asks of libvirt, in values: no object of libvirt's leaves ``connection``.

Contract: every call ends within its time (``seconds``), or raises DeadlineExceeded: its effect is then
unknown. PeerUnavailable: libvirtd is away. NotFound: no such guest. WrongState: libvirt refused, and says
why.
Guests are named by UUID, 8-4-4-4-12. Callers: any thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

CALL_SECONDS = 10.0
"""Of a short call. libvirt itself waits 30 s for a guest that is busy."""

START_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Domain:
    """A guest as libvirt tells of it. ``xml``: of what runs, if it runs."""

    uuid: str
    name: str
    active: bool
    persistent: bool
    xml: str


class Hypervisor(Protocol):
    """One libvirt connection."""

    def domains(self) -> list[Domain]: ...

    def domain(self, uuid: str) -> Domain:
        """Raises NotFound."""
        ...

    def is_active(self, uuid: str) -> bool:
        """False also where there is no such guest."""
        ...

    def has_kvm(self) -> bool:
        """libvirt has found that guests can be accelerated."""
        ...

    def block_bytes(self, uuid: str, target: str) -> int:
        """Size of a disk as the guest sees it."""
        ...

    def internal_snapshots(self, uuid: str) -> int:
        """How many snapshots lie inside the guest's qcow2 disks."""
        ...

    def define(self, xml: str) -> None: ...

    def undefine(self, uuid: str) -> None:
        """No error if it is gone. Keeps the firmware's variables."""
        ...

    def start(self, uuid: str) -> None: ...

    def shut_down(self, uuid: str) -> None:
        """Ask the guest; does not wait."""
        ...

    def destroy(self, uuid: str) -> None:
        """Power off at once; no error if it is off or gone."""
        ...

    def attach(self, uuid: str, device_xml: str) -> None:
        """To what runs and to what is kept."""
        ...

    def detach(self, uuid: str, device_xml: str) -> None:
        """Done when the guest has let go; no error if there is no such device."""
        ...

    def agent(self, uuid: str, command: str, *, seconds: float) -> str:
        """One command of JSON to the guest agent; its answer. Raises AgentRefused too."""
        ...

    def begin_backup(self, uuid: str, backup_xml: str, checkpoint_xml: str, *, seconds: float) -> None:
        """``checkpoint_xml`` empty: none."""
        ...

    def backup(self, uuid: str) -> str | None:
        """The backup job under way, as XML."""
        ...

    def end_backup(self, uuid: str) -> None:
        """No error if there is none."""
        ...

    def checkpoints(self, uuid: str) -> list[tuple[str, str]]:
        """Names and XML, ancestors first."""
        ...

    def delete_checkpoint(self, uuid: str, name: str) -> None:
        """No error if it is gone. What it recorded is added to the one before."""
        ...

    def watch(self, changed: Callable[[], None]) -> None:
        """Call ``changed`` on a thread of its own when a guest comes, goes, starts, stops or changes."""
        ...
