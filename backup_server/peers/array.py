"""Edge: an array, in the words of ``ports``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from arraylift.errors import NotFound
from arraylift.exchange import convert as exchange
from arraylift.ids import SourceState
from arraylift.v1 import backup_logic_pb2, backup_logic_pb2_grpc, volume_pb2, volume_pb2_grpc
from arraylift.vm import convert as shared
from arraylift.vm.types import ForeignSource, SuppliedChanges
from backup_server.model import Safety
from backup_server.peers.caller import Caller
from backup_server.peers.transfer import GrpcTransfer


class GrpcArray(Caller):
    """ports.Array."""

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
    ) -> GrpcTransfer:
        request = backup_logic_pb2.SendSnapshotRequest(
            snapshot_id=snapshot_id,
            transfer_id=transfer_id,
            target_address=target_address,
            grant=grant,
            patience_seconds=patience_seconds,
            bytes_per_second_max=bytes_per_second_max,
        )
        if full:
            request.change_source = backup_logic_pb2.CHANGE_SOURCE_FULL_READ
        elif changes is not None:
            request.change_source = backup_logic_pb2.CHANGE_SOURCE_SUPPLIED
            request.supplied.CopyFrom(shared.changes_to_pb(changes))
        stub = backup_logic_pb2_grpc.BackupLogicServiceStub
        return GrpcTransfer(self.stream(stub, "SendSnapshot", request))

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
    ) -> GrpcTransfer:
        told = shared.foreign_to_pb(source)
        request = backup_logic_pb2.SendForeignDiskRequest(
            uri=source.uri,
            target_address=target_address,
            transfer_id=transfer_id,
            grant=grant,
            state=exchange.state_to_pb(state),
            bitmap=told.bitmap if told.HasField("bitmap") and not full else None,
            patience_seconds=patience_seconds,
            bytes_per_second_max=bytes_per_second_max,
        )
        stub = backup_logic_pb2_grpc.BackupLogicServiceStub
        return GrpcTransfer(self.stream(stub, "SendForeignDisk", request))

    def _ask(self, method: str, request: object, *, slow: bool = False) -> Any:
        seconds = self._deadlines.long_seconds if slow else self._deadlines.call_seconds
        return self.call(volume_pb2_grpc.VolumeServiceStub, method, request, seconds=seconds)

    def prepare_restore(
        self, transfer_id: str, *, target: str, volume_name: str, group_id: str = ""
    ) -> bytes:
        request = volume_pb2.PrepareRestoreRequest(
            transfer_id=transfer_id, target=target, volume_name=volume_name, group_id=group_id
        )
        grant: bytes = self._ask("PrepareRestore", request).grant
        return grant

    def commit_group(self, group_id: str, transfer_ids: Sequence[str], *, safety_name: str) -> list[Safety]:
        request = volume_pb2.CommitRestoreGroupRequest(
            group_id=group_id, transfer_ids=transfer_ids, safety_name=safety_name
        )
        kept = self._ask("CommitRestoreGroup", request, slow=True).safeties
        return [Safety("", self._peer.name, one.volume_name, one.snapshot_id, one.name) for one in kept]

    def was_swapped(self, transfer_id: str, volume_name: str) -> bool:
        found = self._ask("ListVolumes", volume_pb2.ListVolumesRequest(name=volume_name)).volumes
        if not found:
            raise NotFound(f"{self._what} has no volume {volume_name}", subject=f"volume {volume_name}")
        # The lineage that a swap begins bears its transfer's id.
        lineage: str = found[0].state.lineage_id
        return lineage == transfer_id

    def revoke_restore(self, transfer_id: str) -> None:
        self._ask("RevokeRestore", volume_pb2.RevokeRestoreRequest(transfer_id=transfer_id), slow=True)

    def has_restored(self, transfer_id: str, volume_name: str) -> bool:
        found = self._ask("ListVolumes", volume_pb2.ListVolumesRequest(name=volume_name)).volumes
        # A volume that a restore makes bears its transfer's id.
        return bool(found) and found[0].volume_id == transfer_id

    def volume_size(self, name: str) -> int | None:
        found = self._ask("ListVolumes", volume_pb2.ListVolumesRequest(name=name)).volumes
        return found[0].size_bytes if found else None

    def delete_volume(self, name: str) -> None:
        request = volume_pb2.DeleteVolumeRequest(name=name, cascade=True, missing_ok=True)
        self._ask("DeleteVolume", request, slow=True)
