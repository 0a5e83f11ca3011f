"""What a host asks of arrays: the contract that ``peers`` fulfils over gRPC.

Callers: use cases and drivers, any thread. Every call ends: an array that hangs raises
DeadlineExceeded, one that is away PeerUnavailable; the effect of a change is then unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from arraylift.ids import SnapshotId, SourceState
from arraylift.nbd.uri import NbdUri


@dataclass(frozen=True, slots=True)
class VolumeFacts:
    name: str
    size_bytes: int
    mapped_bytes: int
    snapshot_count: int


@dataclass(frozen=True, slots=True)
class TakenSnapshot:
    volume_name: str
    snapshot_id: SnapshotId
    size_bytes: int
    state: SourceState | None = None


class Volumes(Protocol):
    """Volumes of any array, by the array's address."""

    def find(self, address: str, name: str) -> VolumeFacts | None:
        """None if the array has no such volume."""
        ...

    def create(self, address: str, name: str, size_bytes: int) -> None:
        """Raises AlreadyExists, OutOfSpace."""
        ...

    def delete(self, address: str, name: str) -> None:
        """No error if it is gone. Raises WrongState (it has snapshots)."""
        ...

    def snapshot_group(
        self, address: str, names: Sequence[str], label: str, *, timeout_seconds: float
    ) -> list[TakenSnapshot]:
        """One snapshot of each volume, all at one instant. Raises NotFound, Overloaded."""
        ...

    def snapshots_labelled(self, address: str, names: Sequence[str], label: str) -> list[TakenSnapshot]:
        """Those that a ``snapshot_group`` of that label made; a volume that is gone has none."""
        ...

    def delete_snapshot(self, address: str, snapshot_id: SnapshotId) -> None:
        """No error if it is gone. Raises WrongState (a transfer reads it)."""
        ...

    def create_export(self, address: str, export: str, volume_name: str) -> NbdUri:
        """Serve a volume by NBD under the name ``export``, for writing; returns where. Idempotent.

        Where it is served over TLS, ``tls_name`` is what only an array's certificate has.

        Raises NotFound (volume), AlreadyExists (another volume is served so), WrongState, Overloaded.
        """
        ...

    def delete_export(self, address: str, export: str) -> None:
        """End its connections, then forget it; no error if it is gone."""
        ...

    def read(self, address: str, name: str) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) of what is mapped, ascending, in pieces of at most 1 MiB."""
        ...

    def write(self, address: str, name: str, pieces: Iterator[tuple[int, bytes]]) -> None:
        """Overwrite ranges, in pieces of at most 1 MiB; durable on return. Raises NotFound, OutOfSpace."""
        ...
