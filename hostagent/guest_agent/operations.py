"""What every driver with guest agents does alike: freezes and files of its guests.

Drivers delegate to this; it knows no VMM. Callers: as driver.py says.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from arraylift.clock import SYSTEM_CLOCK, Clock
from arraylift.durable import Files
from arraylift.errors import Overloaded
from arraylift.ids import VmId
from arraylift.vm.types import ConsistencyLevel, Disk
from hostagent.guest_agent.agent import CALL_SECONDS, GuestAgent
from hostagent.guest_agent.channel import AgentChannel, AgentRefused, Answer, GuardTarget
from hostagent.guest_agent.files import AgentFiles
from hostagent.guest_agent.freezer import AgentFreezer
from hostagent.vm_types import GuestFile, VmRecord

FILE_CALLS_MAX = 4
"""File operations of one host at once: each reads pieces of guests' files into memory."""

ROOM_SECONDS = 20.0
"""Longest wait for the others: agents that are slow on purpose shall not take all threads of the host."""


class GuestOperations:
    """``channel_of`` raises PeerUnavailable, or WrongState (off); ``serial_of`` is the serial number with
    which a guest sees a disk, empty if it cannot be told. ``files`` are local ones on their way."""

    def __init__(
        self,
        channel_of: Callable[[VmId], AgentChannel],
        *,
        serial_of: Callable[[VmRecord, Disk], str],
        files: Files,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._channel_of, self._serial_of, self._files, self._clock = channel_of, serial_of, files, clock
        self._room = threading.BoundedSemaphore(FILE_CALLS_MAX)
        self.freezer = AgentFreezer(lambda vm_id: self.agent(vm_id, f"VM {vm_id}"), clock=clock)

    def agent(self, vm_id: VmId, subject: str) -> GuestAgent:
        """For what a driver asks itself, e.g. a shutdown."""
        return GuestAgent(self._channel_of(vm_id), subject, clock=self._clock)

    # -- freeze ---------------------------------------------------------------------------------

    def freeze(self, vm: VmRecord, *, timeout_seconds: float) -> ConsistencyLevel:
        return self.freezer.freeze(vm.vm_id, vm.subject, timeout_seconds=timeout_seconds)

    def thaw(self, vm_id: VmId) -> None:
        self.freezer.thaw(vm_id)

    def kept_level(self, vm: VmRecord, reached: ConsistencyLevel) -> ConsistencyLevel:
        return self.freezer.kept_level(vm.vm_id, reached)

    def resume(self, vm: VmRecord) -> None:
        """D3: call it when the VMM of a running guest has been found again."""
        self.freezer.resume(vm.vm_id)

    def stopped(self, vm_id: VmId) -> None:
        """The guest does not run any more: nothing of it can be frozen."""
        self.freezer.forget(vm_id)

    # -- files ----------------------------------------------------------------------------------

    def put_file(self, vm: VmRecord, disk: Disk, path: str, *, source: str, mode: int) -> GuestFile:
        with self._a_place(vm):
            return self._of(vm, disk).put(path, source=source, mode=mode)

    def get_file(self, vm: VmRecord, disk: Disk, path: str, *, into: str) -> GuestFile:
        with self._a_place(vm):
            return self._of(vm, disk).get(path, into=into)

    def list_files(self, vm: VmRecord, disk: Disk, path: str) -> list[GuestFile]:
        with self._a_place(vm):
            return self._of(vm, disk).listed(path)

    def remove_file(self, vm: VmRecord, disk: Disk, path: str) -> None:
        with self._a_place(vm):
            self._of(vm, disk).remove(path)

    @contextmanager
    def _a_place(self, vm: VmRecord) -> Iterator[None]:
        """Raises Overloaded."""
        if not self._room.acquire(timeout=ROOM_SECONDS):
            raise Overloaded(
                f"{FILE_CALLS_MAX} file operations of this host's guests are under way",
                subject=vm.subject,
                next_step="repeat later; see which guests' agents are slow",
            )
        try:
            yield
        finally:
            self._room.release()

    def _of(self, vm: VmRecord, disk: Disk) -> AgentFiles:
        channel = _HeldBack(self._channel_of(vm.vm_id), self.freezer, vm)
        agent = GuestAgent(channel, vm.subject, clock=self._clock)
        return AgentFiles(agent, self._files, serial=self._serial_of(vm, disk), subject=vm.subject)


class _HeldBack:
    """The channel of a file operation: its commands wait while the guest is frozen (D4)."""

    def __init__(self, channel: AgentChannel, freezer: AgentFreezer, vm: VmRecord) -> None:
        self._channel, self._freezer, self._vm = channel, freezer, vm

    def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, timeout_seconds: float
    ) -> Answer:
        while True:
            freeze = self._freezer.wait_for_thaw(self._vm.vm_id, self._vm.subject)
            try:
                return self._channel.execute(command, arguments, timeout_seconds=timeout_seconds)
            except AgentRefused:
                # A frozen agent refuses before it does anything.
                if not self._freezer.has_frozen_since(self._vm.vm_id, freeze):
                    raise

    def thaw(self, *, timeout_seconds: float = CALL_SECONDS) -> int:
        return self._channel.thaw(timeout_seconds=timeout_seconds)

    def guard(self) -> GuardTarget:
        return self._channel.guard()
