"""What a host agent asks of its VMM: the contract that every driver keeps.

Contract (tests/contract/test_vm_driver_contract.py):
  D1 ``freeze`` returns within its time-out, or raises and leaves the guest to ``thaw``.
  D2 ``thaw`` is harmless at any time, from any thread, and twice; it never waits for a freeze.
  D3 after ``resume`` no guest is frozen: a daemon that died under a freeze left nothing behind.
  D4 file operations that change a disk never run while the guest is frozen.
  D5 ``kept_level`` never raises, and says what is known to have held until the thaw: no more than CRASH
     where ``freeze`` reached no more, and it alone says APPLICATION.
  D6 a VM has one VMM at most on this host, also after any crash of this process.
Callers: use cases. One thread at a time for one VM (it holds the VM's lock), but for ``thaw``,
``is_running`` and the guest's files.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from arraylift.ids import VmId
from arraylift.vm.types import ConsistencyLevel, Disk
from hostagent.change_tracking import ChangeTracker
from hostagent.foreign_disks import ForeignDisks
from hostagent.live_move import LiveMover
from hostagent.vm_types import GuestFile, VmRecord


class Driver(Protocol):
    """One kind of VMM."""

    @property
    def name(self) -> str:
        """As the virtual center shows it."""
        ...

    @property
    def tracker(self) -> ChangeTracker | None:
        """None: this VMM does not see what its guests write."""
        ...

    @property
    def mover(self) -> LiveMover | None:
        """None: this VMM cannot move a running guest."""
        ...

    @property
    def foreign(self) -> ForeignDisks | None:
        """None: this VMM shows no disks but those of arrays."""
        ...

    def resume(self, vm: VmRecord) -> None:
        """Take a VM over from a process before this one; thaw it (D3). Once each, before any call.

        A VM that does not run any more is no error: ``is_running`` says so afterwards.
        """
        ...

    def sweep(self, *, running: Collection[VmId], known: Collection[VmId]) -> None:
        """End and remove what a process before this one left of VMs that are not ``running``, and
        everything of VMs that are not ``known``. Once, after the last ``resume``; waits for no array."""
        ...

    def start(self, vm: VmRecord) -> None:
        """Power on. No effect on a running VM.

        Raises WrongState, PeerUnavailable, DeadlineExceeded; nothing runs then.
        """
        ...

    def stop(self, vm: VmRecord, *, grace_seconds: float, force: bool) -> None:
        """Power off: ask the guest, force after ``grace_seconds``; ``force`` does not ask."""
        ...

    def is_running(self, vm_id: VmId) -> bool:
        """False also once its VMM died by itself; ``stop`` then cleans up.

        Raises PeerUnavailable, DeadlineExceeded: the VMM does not say, and nobody may guess.
        """
        ...

    def freeze(self, vm: VmRecord, *, timeout_seconds: float) -> ConsistencyLevel:
        """Have the guest hold its writes back; returns the level reached (D1).

        Raises DeadlineExceeded, WrongState. REQUIRES a ``thaw`` afterwards, in any case.
        """
        ...

    def thaw(self, vm_id: VmId) -> None:
        """Let the guest go on (D2)."""
        ...

    def kept_level(self, vm: VmRecord, reached: ConsistencyLevel) -> ConsistencyLevel:
        """After the thaw: the level that held since ``freeze`` (D5).

        An agent tells only then whether hooks ran, and whether the guest was thawed behind our back.
        """
        ...

    def attach(self, vm: VmRecord, disk: Disk) -> None:
        """Show a disk to the guest; idempotent."""
        ...

    def detach(self, vm: VmRecord, disk: Disk) -> None:
        """Take a disk away; idempotent. Nothing is written to it afterwards."""
        ...

    def firmware_variables(self, vm: VmRecord) -> bytes:
        """Of UEFI, packed (firmware_store.py); b"" where there are none. What the store has of the
        VM is what its first ``start`` begins with."""
        ...

    def release(self, vm: VmRecord) -> None:
        """Have no array serve this VM's disks any more; idempotent. REQUIRES that it is off.

        ``stop`` does so too, but leaves what an absent array still serves for later. Raises PeerUnavailable.
        """
        ...

    def forget(self, vm: VmRecord) -> None:
        """The VM is deleted, its record gone: keep nothing of it. REQUIRES that it is off."""
        ...

    def put_file(self, vm: VmRecord, disk: Disk, path: str, *, source: str, mode: int) -> GuestFile:
        """Make or replace a guest's file by the local file ``source``; ``mode`` 0 keeps the old one's.

        Raises NotFound (directory), WrongState (off; no file system), InvalidRequest, OutOfSpace.
        """
        ...

    def get_file(self, vm: VmRecord, disk: Disk, path: str, *, into: str) -> GuestFile:
        """Copy a guest's file into the local file ``into``. Raises NotFound, WrongState."""
        ...

    def list_files(self, vm: VmRecord, disk: Disk, path: str) -> list[GuestFile]:
        """A directory, by name. Raises NotFound, WrongState, Overloaded (too many entries)."""
        ...

    def remove_file(self, vm: VmRecord, disk: Disk, path: str) -> None:
        """Raises NotFound, WrongState (a directory)."""
        ...
