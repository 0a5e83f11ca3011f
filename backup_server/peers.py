"""Edge: calls to virtual center, hosts, arrays and targets, in the words of ``ports``.

Owns: one channel for each peer, made at first use, shared by all threads.
Invariants:
  P1 every call has a deadline; a transfer may last long, but not in silence: ``SilenceWatch``
     cancels one that says nothing for ``silence_seconds``.
  P2 after ``close`` every call ends and new ones raise PeerUnavailable.
Callers: any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from arraylift.errors import Cancelled, Corruption, DeadlineExceeded, NotFound, WrongState
from arraylift.exchange import convert as exchange
from arraylift.logs import get_logger
from arraylift.pki import TlsMaterial
from arraylift.rpc import channel as rpc
from arraylift.rpc import pages
from arraylift.rpc.channels import Channels
from arraylift.sizes import MIB
from arraylift.v1 import (
    backup_logic_pb2,
    backup_logic_pb2_grpc,
    image_pb2,
    image_pb2_grpc,
    target_admin_pb2,
    target_admin_pb2_grpc,
    virtual_center_pb2,
    virtual_center_pb2_grpc,
    vm_pb2,
    vm_pb2_grpc,
    volume_pb2,
    volume_pb2_grpc,
)
from arraylift.vm import convert as shared
from arraylift.vm.types import Disk, SnapshotRequest, Vm, VmConfig, VmSnapshot
from backup_server import convert
from backup_server.model import (
    Backup,
    Located,
    PeerKind,
    Receipt,
    RegisteredPeer,
    Safety,
    TransferNews,
    Verdict,
)
from backup_server.ports import HostRef
from backup_server.registry import PEERS_MAX, SETTINGS_CENTER

MANIFESTS_PER_PAGE = 200
CHANNELS_MAX = PEERS_MAX

_log = get_logger("peers")


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds until a call is given up."""

    call_seconds: float = rpc.CALL_SECONDS
    long_seconds: float = 120.0
    """A freeze, a snapshot group on every array, a delete."""
    transfer_seconds: float = rpc.TRANSFER_SECONDS
    silence_seconds: float = 300.0
    """More than an array's own patience with a target, and a target's with an array."""
    health_seconds: float = 5.0


class GrpcPeers:
    """ports.Peers over gRPC."""

    def __init__(self, tls: TlsMaterial, deadlines: Deadlines | None = None) -> None:
        self.deadlines = deadlines or Deadlines()
        self._channels = Channels(tls, channels_max=CHANNELS_MAX)

    def stub(self, kind: Callable[[grpc.Channel], Any], peer: RegisteredPeer) -> Any:
        """Raises InvalidRequest (address), PeerUnavailable (P2)."""
        # The center of the settings is known by its address only.
        unnamed = (peer.kind, peer.name) == (PeerKind.VCENTER, SETTINGS_CENTER)
        return self._channels.stub(kind, peer.address, peer.kind.role, "" if unnamed else peer.name)

    def center(self, peer: RegisteredPeer) -> GrpcCenter:
        return GrpcCenter(self, peer)

    def host(self, ref: HostRef) -> GrpcHost:
        return GrpcHost(self, RegisteredPeer(PeerKind.HOST, ref.name, ref.address))

    def array(self, peer: RegisteredPeer) -> GrpcArray:
        return GrpcArray(self, peer)

    def target(self, peer: RegisteredPeer) -> GrpcTarget:
        return GrpcTarget(self, peer)

    def check(self, peer: RegisteredPeer) -> None:
        seconds = self.deadlines.health_seconds
        caller = _Caller(self, peer)
        answer = caller.call(
            health_pb2_grpc.HealthStub, "Check", health_pb2.HealthCheckRequest(), seconds=seconds
        )
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            raise WrongState(f"{peer} is not serving", subject=str(peer), next_step="look at its log")

    def close(self) -> None:
        """End every call (P2)."""
        self._channels.close()


class _Caller:
    """One daemon at one address."""

    def __init__(self, peers: GrpcPeers, peer: RegisteredPeer) -> None:
        self._peers = peers
        self._peer = peer
        self._what = f"{peer} ({peer.address})"
        self._deadlines = peers.deadlines

    def call(
        self, stub: Callable[[grpc.Channel], Any], method: str, request: object, *, seconds: float = 0.0
    ) -> Any:
        """Call once (P1)."""
        bound = getattr(self._peers.stub(stub, self._peer), method)
        timeout = seconds or self._deadlines.call_seconds
        return rpc.call(bound, request, peer=self._what, timeout_seconds=timeout)

    def stream(self, stub: Callable[[grpc.Channel], Any], method: str, request: object) -> _Stream:
        """Call for many answers (P1)."""
        bound = getattr(self._peers.stub(stub, self._peer), method)
        seconds = self._deadlines.transfer_seconds
        responses = rpc.stream(bound, request, peer=self._what, timeout_seconds=seconds)
        return _Stream(responses, self._what, self._deadlines.silence_seconds)


class _Stream:
    """Responses that may not stay away for long (P1)."""

    def __init__(self, responses: rpc.ResponseStream[Any], what: str, silence_seconds: float) -> None:
        self._responses = responses
        self._what = what
        self._seconds = silence_seconds
        self._silent = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        alarm = threading.Timer(self._seconds, self._give_up)
        alarm.daemon = True
        alarm.start()
        try:
            return next(self._responses)
        except Cancelled:
            if self._silent:
                raise DeadlineExceeded(
                    f"{self._what} said nothing for {self._seconds:.0f} s",
                    subject=self._what,
                    next_step="look at its log; the transfer can be resumed",
                ) from None
            raise
        finally:
            alarm.cancel()

    def _give_up(self) -> None:
        self._silent = True
        self.cancel()

    def cancel(self) -> None:
        self._responses.cancel()


class _GrpcTransfer:
    """ports.Transfer over SendSnapshot or SendImage."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TransferNews:
        news = next(self._stream)
        figures = exchange.figures_from_pb(news.figures)
        receipt = None
        if news.receipt_id:
            births = getattr(news, "change_source", 0) == backup_logic_pb2.CHANGE_SOURCE_BIRTHS
            receipt = Receipt(news.receipt_id, news.root, figures, births)
        return TransferNews(news.spans_done, figures, receipt)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stream.cancel()

    def cancel(self) -> None:
        self._stream.cancel()


class GrpcCenter(_Caller):
    """ports.Center."""

    def _ask(self, method: str, request: object, *, slow: bool = False) -> Any:
        seconds = self._deadlines.long_seconds if slow else self._deadlines.call_seconds
        return self.call(virtual_center_pb2_grpc.VirtualCenterServiceStub, method, request, seconds=seconds)

    def vms(self) -> list[Vm]:
        request = virtual_center_pb2.ListManagedVmsRequest()
        answers = pages.follow(lambda asked: self._ask("ListManagedVms", asked), request)
        return [shared.vm_from_pb(vm) for answer in answers for vm in answer.vms]

    def find_vm(self, *, vm_id: str = "", name: str = "") -> Located:
        request = virtual_center_pb2.GetManagedVmRequest(vm_id=vm_id, name=name)
        answer = self._ask("GetManagedVm", request)
        return Located(shared.vm_from_pb(answer.vm), answer.host.name, answer.host.address)

    def prepare_backup(self, order: SnapshotRequest) -> VmSnapshot:
        request = shared.snapshot_request_to_pb(order, virtual_center_pb2.PrepareBackupRequest)
        return shared.snapshot_from_pb(self._ask("PrepareBackup", request, slow=True).snapshot)

    def renew_snapshot(self, vm_id: str, vm_snapshot_id: str) -> None:
        request = virtual_center_pb2.RenewSnapshotRequest(vm_id=vm_id, vm_snapshot_id=vm_snapshot_id)
        self._ask("RenewSnapshot", request)

    def release_snapshot(self, vm_id: str, vm_snapshot_id: str) -> None:
        request = virtual_center_pb2.ReleaseSnapshotRequest(vm_id=vm_id, vm_snapshot_id=vm_snapshot_id)
        self._ask("ReleaseSnapshot", request, slow=True)

    def place_vm(self, config: VmConfig, arrays: list[str]) -> str:
        request = virtual_center_pb2.PlaceVmRequest(
            memory_bytes=config.memory_bytes, cpus=config.cpus, arrays=arrays
        )
        chosen: str = self._ask("PlaceVm", request).host.name
        return chosen

    def provision_vm(self, vm_id: str, config: VmConfig, host: str) -> HostRef:
        request = virtual_center_pb2.ProvisionVmRequest(
            vm_id=vm_id, config=shared.config_to_pb(config), host=host
        )
        answer = self._ask("ProvisionVm", request, slow=True)
        return HostRef(answer.host.name, answer.host.address)

    def attach_volume(self, vm_id: str, disk: Disk) -> None:
        request = virtual_center_pb2.AttachVmVolumeRequest(vm_id=vm_id, disk=shared.disk_to_pb(disk))
        self._ask("AttachVmVolume", request, slow=True)

    def power_vm(self, vm_id: str, *, on: bool, grace_seconds: int = 0) -> None:
        power = vm_pb2.POWER_STATE_ON if on else vm_pb2.POWER_STATE_OFF
        request = virtual_center_pb2.PowerVmRequest(
            vm_id=vm_id, power=power, force=not on and not grace_seconds, grace_seconds=grace_seconds
        )
        self._ask("PowerVm", request, slow=True)

    def remove_vm(self, vm_id: str) -> None:
        request = virtual_center_pb2.RemoveVmRequest(vm_id=vm_id, keep_volumes=True, missing_ok=True)
        self._ask("RemoveVm", request, slow=True)


class GrpcHost(_Caller):
    """ports.Host."""

    def _ask(self, method: str, request: object, *, slow: bool = False) -> Any:
        seconds = self._deadlines.long_seconds if slow else self._deadlines.call_seconds
        return self.call(vm_pb2_grpc.VmServiceStub, method, request, seconds=seconds)

    def vms(self) -> list[Vm]:
        return [shared.vm_from_pb(vm) for vm in self._ask("ListVms", vm_pb2.ListVmsRequest()).vms]

    def find_vm(self, *, vm_id: str = "", name: str = "") -> Vm:
        return shared.vm_from_pb(self._ask("GetVm", vm_pb2.GetVmRequest(vm_id=vm_id, name=name)).vm)

    def create_snapshot(self, order: SnapshotRequest) -> VmSnapshot:
        request = shared.snapshot_request_to_pb(order, vm_pb2.CreateVmSnapshotRequest)
        return shared.snapshot_from_pb(self._ask("CreateVmSnapshot", request, slow=True).snapshot)

    def snapshot(self, vm_snapshot_id: str) -> VmSnapshot:
        request = vm_pb2.GetVmSnapshotRequest(vm_snapshot_id=vm_snapshot_id)
        return shared.snapshot_from_pb(self._ask("GetVmSnapshot", request).snapshot)

    def snapshots(self, vm_id: str) -> list[VmSnapshot]:
        answer = self._ask("ListVmSnapshots", vm_pb2.ListVmSnapshotsRequest(vm_id=vm_id))
        return [shared.snapshot_from_pb(snapshot) for snapshot in answer.snapshots]

    def renew_snapshot(self, vm_snapshot_id: str) -> None:
        self._ask("RenewVmSnapshot", vm_pb2.RenewVmSnapshotRequest(vm_snapshot_id=vm_snapshot_id))

    def delete_snapshot(self, vm_snapshot_id: str) -> None:
        request = vm_pb2.DeleteVmSnapshotRequest(vm_snapshot_id=vm_snapshot_id)
        self._ask("DeleteVmSnapshot", request, slow=True)

    def create_vm(self, vm_id: str, config: VmConfig) -> None:
        request = vm_pb2.CreateVmRequest(vm_id=vm_id, config=shared.config_to_pb(config))
        self._ask("CreateVm", request, slow=True)

    def attach_volume(self, vm_id: str, disk: Disk) -> None:
        request = vm_pb2.AttachVolumeRequest(vm_id=vm_id, disk=shared.disk_to_pb(disk))
        self._ask("AttachVolume", request, slow=True)

    def power_vm(self, vm_id: str, *, on: bool, grace_seconds: int = 0) -> None:
        if on:
            self._ask("PowerOn", vm_pb2.PowerOnRequest(vm_id=vm_id), slow=True)
            return
        request = vm_pb2.PowerOffRequest(vm_id=vm_id, force=not grace_seconds, grace_seconds=grace_seconds)
        self._ask("PowerOff", request, slow=True)

    def remove_vm(self, vm_id: str) -> None:
        request = vm_pb2.DeleteVmRequest(vm_id=vm_id, keep_volumes=True, missing_ok=True)
        self._ask("DeleteVm", request, slow=True)


class GrpcArray(_Caller):
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
    ) -> _GrpcTransfer:
        sources = backup_logic_pb2.ChangeSource
        request = backup_logic_pb2.SendSnapshotRequest(
            snapshot_id=snapshot_id,
            transfer_id=transfer_id,
            target_address=target_address,
            grant=grant,
            change_source=sources.CHANGE_SOURCE_FULL_READ if full else sources.CHANGE_SOURCE_UNSPECIFIED,
            patience_seconds=patience_seconds,
        )
        stub = backup_logic_pb2_grpc.BackupLogicServiceStub
        return _GrpcTransfer(self.stream(stub, "SendSnapshot", request))

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

    def volume_size(self, name: str) -> int | None:
        found = self._ask("ListVolumes", volume_pb2.ListVolumesRequest(name=name)).volumes
        return found[0].size_bytes if found else None

    def delete_volume(self, name: str) -> None:
        request = volume_pb2.DeleteVolumeRequest(name=name, cascade=True, missing_ok=True)
        self._ask("DeleteVolume", request, slow=True)


class GrpcTarget(_Caller):
    """ports.Target."""

    def create_grant(
        self, transfer_id: str, *, array: str, image_name: str, full: bool, base_image_id: str = ""
    ) -> tuple[bytes, str]:
        request = target_admin_pb2.CreateGrantRequest(
            transfer_id=transfer_id,
            array=array,
            image_name=image_name,
            no_base=full,
            base_image_id=base_image_id,
        )
        answer = self.call(target_admin_pb2_grpc.TargetAdminServiceStub, "CreateGrant", request)
        return answer.grant, answer.base_image_id

    def revoke_grant(self, transfer_id: str) -> None:
        request = target_admin_pb2.RevokeGrantRequest(transfer_id=transfer_id)
        self.call(target_admin_pb2_grpc.TargetAdminServiceStub, "RevokeGrant", request)

    def _ask(self, method: str, request: object, *, slow: bool = False) -> Any:
        seconds = self._deadlines.long_seconds if slow else self._deadlines.call_seconds
        return self.call(image_pb2_grpc.ImageServiceStub, method, request, seconds=seconds)

    def delete_image(self, image_id: str) -> None:
        self._ask("DeleteImage", image_pb2.DeleteImageRequest(image_id=image_id, missing_ok=True), slow=True)

    def publish_backup(self, backup: Backup) -> None:
        request = image_pb2.PublishBackupRequest(manifest=convert.backup_to_manifest(backup))
        self._ask("PublishBackup", request, slow=True)

    def backups(self) -> Iterator[Backup]:
        request = image_pb2.ListBackupManifestsRequest(page_size=MANIFESTS_PER_PAGE)
        for page in pages.follow(lambda asked: self._ask("ListBackupManifests", asked), request):
            for manifest in page.manifests:
                try:
                    yield convert.backup_from_manifest(manifest, self._peer.name)
                except Corruption as error:  # one of them hides no other
                    _log.error("backup_unreadable", backup=manifest.backup_id, error=str(error))

    def delete_backup(self, backup_id: str) -> None:
        request = image_pb2.DeleteBackupManifestRequest(backup_id=backup_id, missing_ok=True)
        self._ask("DeleteBackupManifest", request, slow=True)

    def lock_backup(self, backup_id: str, until_ns: int) -> None:
        self._ask("LockImage", image_pb2.LockImageRequest(backup_id=backup_id, until_ns=until_ns), slow=True)

    def verify_image(self, image_id: str, max_age_seconds: int) -> AbstractContextManager[Iterator[Verdict]]:
        request = image_pb2.VerifyImageRequest(image_id=image_id, max_age_seconds=max_age_seconds)
        return self._verdicts(request)

    @contextmanager
    def _verdicts(self, request: image_pb2.VerifyImageRequest) -> Iterator[Iterator[Verdict]]:
        stream = self.stream(image_pb2_grpc.ImageServiceStub, "VerifyImage", request)
        try:
            yield map(convert.verdict_from_pb, stream)
        finally:
            stream.cancel()

    def confirm_time(self, wall_ns: int) -> bool:
        stub = target_admin_pb2_grpc.TargetAdminServiceStub
        stats = self.call(stub, "GetTargetStats", target_admin_pb2.GetTargetStatsRequest())
        if stats.lock_clock_lags:
            self.call(stub, "ConfirmTime", target_admin_pb2.ConfirmTimeRequest(wall_ns=wall_ns))
        return bool(stats.lock_clock_lags)

    def send_image(
        self, image_id: str, transfer_id: str, *, receiver_address: str, grant: bytes, patience_seconds: int
    ) -> _GrpcTransfer:
        request = image_pb2.SendImageRequest(
            image_id=image_id,
            receiver_address=receiver_address,
            transfer_id=transfer_id,
            grant=grant,
            patience_seconds=patience_seconds,
        )
        return _GrpcTransfer(self.stream(image_pb2_grpc.ImageServiceStub, "SendImage", request))

    def read_range(
        self, image_id: str, offset: int, length: int
    ) -> AbstractContextManager[Iterator[tuple[bytes, int]]]:
        request = image_pb2.ReadRangeRequest(image_id=image_id, offset=offset, length=length)
        return self._pieces(request)

    @contextmanager
    def _pieces(self, request: image_pb2.ReadRangeRequest) -> Iterator[Iterator[tuple[bytes, int]]]:
        stream = self.stream(image_pb2_grpc.ImageServiceStub, "ReadRange", request)
        try:
            yield _in_order(stream, request.offset, self._what)
        finally:
            stream.cancel()


def _in_order(pieces: Iterator[Any], at: int, what: str) -> Iterator[tuple[bytes, int]]:
    for piece in pieces:
        if piece.offset != at or len(piece.data) > MIB or bool(piece.data) == bool(piece.zero_bytes):
            raise Corruption(f"{what} sent bytes of {piece.offset} where {at} was due", subject=what)
        at += len(piece.data) + piece.zero_bytes
        yield piece.data, piece.zero_bytes
