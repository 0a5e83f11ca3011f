"""What the use cases need of other daemons, in the words of ``model``: the contracts of ``peers``.

Every method has a deadline and raises the other daemon's error, PeerUnavailable or
DeadlineExceeded. What makes something is idempotent by the ids it is given.
Callers: use cases, any thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from arraylift.ids import SourceState
from arraylift.vm.types import (
    Disk,
    ForeignSource,
    SnapshotRequest,
    SuppliedChanges,
    Vm,
    VmConfig,
    VmSnapshot,
)
from backup_server.model import Backup, Located, RegisteredPeer, Safety, TransferNews, Verdict


@dataclass(frozen=True, slots=True)
class HostRef:
    """Where a VmService is; a virtual center finds it by itself."""

    name: str
    address: str


class Center(Protocol):
    """VirtualCenterService, as far as it differs from VmService."""

    def vms(self) -> list[Vm]: ...
    def find_vm(self, *, vm_id: str = "", name: str = "") -> Located: ...
    def prepare_backup(self, order: SnapshotRequest) -> VmSnapshot: ...
    def renew_snapshot(self, vm_id: str, vm_snapshot_id: str) -> None: ...
    def release_snapshot(self, vm_id: str, vm_snapshot_id: str) -> None: ...
    def place_vm(self, config: VmConfig, arrays: list[str]) -> str:
        """The chosen host's name."""
        ...

    def provision_vm(
        self, vm_id: str, config: VmConfig, host: str, firmware_variables: bytes = b""
    ) -> HostRef: ...
    def attach_volume(self, vm_id: str, disk: Disk) -> None: ...
    def power_vm(self, vm_id: str, *, on: bool, grace_seconds: int = 0) -> None:
        """Off is at once, without asking the guest, unless it is given seconds to obey."""
        ...

    def remove_vm(self, vm_id: str) -> None:
        """Its volumes stay; a missing VM is no error."""
        ...


class Host(Protocol):
    """VmService of one host."""

    def vms(self) -> list[Vm]: ...
    def find_vm(self, *, vm_id: str = "", name: str = "") -> Vm: ...
    def create_snapshot(self, order: SnapshotRequest) -> VmSnapshot: ...
    def snapshot(self, vm_snapshot_id: str) -> VmSnapshot: ...
    def snapshots(self, vm_id: str) -> list[VmSnapshot]: ...
    def renew_snapshot(self, vm_snapshot_id: str) -> None: ...
    def delete_snapshot(self, vm_snapshot_id: str) -> None: ...
    def create_vm(self, vm_id: str, config: VmConfig, firmware_variables: bytes = b"") -> None: ...
    def attach_volume(self, vm_id: str, disk: Disk) -> None: ...
    def power_vm(self, vm_id: str, *, on: bool, grace_seconds: int = 0) -> None: ...
    def remove_vm(self, vm_id: str) -> None: ...
    def list_files(self, vm_id: str, disk_name: str, path: str) -> list[str]:
        """Paths of what is in a directory of a running guest. Raises NotFound, WrongState."""
        ...

    def put_file(self, vm_id: str, disk_name: str, path: str, *, mode: int, pieces: Iterator[bytes]) -> None:
        """Make or replace a file of a running guest, whole or not at all. Raises NotFound (directory),
        WrongState, InvalidRequest, OutOfSpace; what ``pieces`` raises cuts the call."""
        ...


class Transfer(AbstractContextManager["Transfer"], Iterator[TransferNews], Protocol):
    """A running transfer: iterate on one thread, cancel from any."""

    def cancel(self) -> None: ...


class Array(Protocol):
    """VolumeService and BackupLogicService of one array."""

    def send_snapshot(
        self,
        snapshot_id: str,
        transfer_id: str,
        *,
        target_address: str,
        grant: bytes,
        full: bool,
        patience_seconds: int,
        changes: SuppliedChanges | None = None,
        bytes_per_second_max: int = 0,
    ) -> Transfer:
        """``changes``: what a VMM saw; the array believes them since the base's state only. A rate of 0:
        none."""
        ...

    def send_foreign_disk(
        self,
        source: ForeignSource,
        transfer_id: str,
        *,
        state: SourceState,
        target_address: str,
        grant: bytes,
        full: bool,
        patience_seconds: int,
        bytes_per_second_max: int = 0,
    ) -> Transfer:
        """As a gateway. A bitmap is believed since the base's state only; ``full``: not at all."""
        ...

    def prepare_restore(
        self, transfer_id: str, *, target: str, volume_name: str, group_id: str = ""
    ) -> bytes:
        """The grant; again, it restarts the lease. With a group the volume exists, and is restored in
        place by ``commit_group``."""
        ...

    def commit_group(self, group_id: str, transfer_ids: Sequence[str], *, safety_name: str) -> list[Safety]:
        """Swap all images of a group for their volumes in one commit; done before, it says the same.

        Raises NotFound (unknown, lapsed), WrongState (not whole, or open for writing), OutOfSpace.
        """
        ...

    def was_swapped(self, transfer_id: str, volume_name: str) -> bool:
        """The volume is what this restore made of it, and was not set back since. Raises NotFound."""
        ...

    def revoke_restore(self, transfer_id: str) -> None:
        """Give up what was prepared; one that has committed, or is unknown, is no error."""
        ...

    def has_restored(self, transfer_id: str, volume_name: str) -> bool:
        """There is a volume of that name, and this restore made it."""
        ...

    def volume_size(self, name: str) -> int | None:
        """None: there is no such volume."""
        ...

    def delete_volume(self, name: str) -> None:
        """With its snapshots; a missing volume is no error."""
        ...


@dataclass(frozen=True, slots=True)
class ComposedExtent:
    """Bytes of a composed image: of another image, or a literal."""

    offset: int
    length: int
    image_id: str
    image_offset: int
    literal: bytes


class Target(Protocol):
    """ImageService and TargetAdminService of one target."""

    def create_grant(
        self, transfer_id: str, *, array: str, image_name: str, full: bool, base_image_id: str = ""
    ) -> tuple[bytes, str]:
        """The grant, and the id of the base; where none is named the target chooses one, if any.

        Raises NotFound (the base that is named), AlreadyExists (granted with another base).
        """
        ...

    def revoke_grant(self, transfer_id: str) -> None:
        """Raises NotFound, WrongState (committed)."""
        ...

    def compose_image(
        self, transfer_id: str, *, name: str, size_bytes: int, extents: Iterable[ComposedExtent]
    ) -> str:
        """Make an image out of extents of others, which ascend; its id is the transfer's. The same again is
        no error. Raises NotFound (an image), OutOfSpace, Corruption."""
        ...

    def delete_image(self, image_id: str) -> None:
        """A missing image is no error. Raises WrongState (a backup names it)."""
        ...

    def publish_backup(self, backup: Backup) -> None: ...

    def backup(self, backup_id: str) -> Backup:
        """As its manifest says, with its firmware variables. Raises NotFound, Corruption."""
        ...

    def backups(self) -> Iterator[Backup]:
        """Every backup on the target that can be read, newest first."""
        ...

    def delete_backup(self, backup_id: str) -> None:
        """Manifest, then images; a missing one is no error. Raises WrongState (locked)."""
        ...

    def lock_backup(self, backup_id: str, until_ns: int) -> None:
        """Raises NotFound, WrongState (shorter than the present lock), InvalidRequest."""
        ...

    def verify_image(self, image_id: str, max_age_seconds: int) -> AbstractContextManager[Iterator[Verdict]]:
        """Progress, then the verdict. Raises NotFound."""
        ...

    def confirm_time(self, wall_ns: int) -> bool:
        """Tell it the time, if the clock by which it judges locks lags: True. Raises WrongState (ours
        is another)."""
        ...

    def send_image(
        self, image_id: str, transfer_id: str, *, receiver_address: str, grant: bytes, patience_seconds: int
    ) -> Transfer: ...

    def read_range(
        self, image_id: str, offset: int, length: int
    ) -> AbstractContextManager[Iterator[tuple[bytes, int]]]:
        """Pieces in order: (data, 0), or (b"", length of a hole)."""
        ...


class Peers(Protocol):
    """Connections to other daemons, made at first use."""

    def center(self, peer: RegisteredPeer) -> Center: ...
    def host(self, ref: HostRef) -> Host: ...
    def array(self, peer: RegisteredPeer) -> Array: ...
    def target(self, peer: RegisteredPeer) -> Target: ...
    def check(self, peer: RegisteredPeer) -> None:
        """Ask for its health. Raises PeerUnavailable, WrongState (not serving)."""
        ...
