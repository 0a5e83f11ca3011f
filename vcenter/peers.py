"""The VM API of hosts, called over gRPC.

Invariants:
  H1 a host that does not answer in time is PeerUnavailable here, not a deadline of the caller's.
Callers: use cases, on the threads of their calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from arraylift.errors import Corruption, DeadlineExceeded, InvalidRequest, PeerUnavailable
from arraylift.ids import VmId, VmSnapshotId
from arraylift.pki import TlsMaterial
from arraylift.rpc.channel import call, stream
from arraylift.rpc.channels import Channels
from arraylift.v1 import vm_pb2, vm_pb2_grpc
from arraylift.vm import convert as shared
from arraylift.vm.types import Disk, SnapshotRequest, Vm, VmConfig, VmSnapshot
from vcenter import admission, convert
from vcenter.migration import Migration
from vcenter.model import HOSTS_MAX, Host
from vcenter.routing import HandedOver, MemorySent

CHANNELS_MAX = HOSTS_MAX

T = TypeVar("T")
Response = TypeVar("Response")


class HostPeers:
    """HostCalls over gRPC. Any thread."""

    def __init__(self, tls: TlsMaterial) -> None:
        self._channels = Channels(tls, channels_max=CHANNELS_MAX)

    def list_vms(self, host: Host, *, seconds: float) -> Sequence[Vm]:
        answer = self._call(host, "ListVms", vm_pb2.ListVmsRequest(), seconds)
        return [_vm(host, vm) for vm in answer.vms]

    def create_vm(
        self, host: Host, vm_id: VmId, config: VmConfig, *, firmware_variables: bytes, seconds: float
    ) -> Vm:
        request = vm_pb2.CreateVmRequest(
            vm_id=vm_id, config=shared.config_to_pb(config), firmware_variables=firmware_variables
        )
        return _vm(host, self._call(host, "CreateVm", request, seconds).vm)

    def delete_vm(self, host: Host, vm_id: VmId, *, keep_volumes: bool, seconds: float) -> None:
        request = vm_pb2.DeleteVmRequest(vm_id=vm_id, keep_volumes=keep_volumes)
        self._call(host, "DeleteVm", request, seconds)

    def power_on(self, host: Host, vm_id: VmId, *, seconds: float) -> Vm:
        return _vm(host, self._call(host, "PowerOn", vm_pb2.PowerOnRequest(vm_id=vm_id), seconds).vm)

    def power_off(self, host: Host, vm_id: VmId, *, grace_seconds: int, force: bool, seconds: float) -> Vm:
        request = vm_pb2.PowerOffRequest(vm_id=vm_id, grace_seconds=grace_seconds, force=force)
        return _vm(host, self._call(host, "PowerOff", request, seconds).vm)

    def attach_volume(self, host: Host, vm_id: VmId, disk: Disk, *, seconds: float) -> Vm:
        request = vm_pb2.AttachVolumeRequest(vm_id=vm_id, disk=shared.disk_to_pb(disk))
        return _vm(host, self._call(host, "AttachVolume", request, seconds).vm)

    def create_vm_snapshot(self, host: Host, request: SnapshotRequest, *, seconds: float) -> VmSnapshot:
        message = shared.snapshot_request_to_pb(request, vm_pb2.CreateVmSnapshotRequest)
        answer = self._call(host, "CreateVmSnapshot", message, seconds)
        return _believed(host, admission.check_snapshot, shared.snapshot_from_pb(answer.snapshot))

    def delete_vm_snapshot(self, host: Host, vm_snapshot_id: VmSnapshotId, *, seconds: float) -> None:
        request = vm_pb2.DeleteVmSnapshotRequest(vm_snapshot_id=vm_snapshot_id)
        self._call(host, "DeleteVmSnapshot", request, seconds)

    def renew_vm_snapshot(self, host: Host, vm_snapshot_id: VmSnapshotId, *, seconds: float) -> None:
        request = vm_pb2.RenewVmSnapshotRequest(vm_snapshot_id=vm_snapshot_id)
        self._call(host, "RenewVmSnapshot", request, seconds)

    # -- migrations -----------------------------------------------------------------------------

    def expect_vm(self, host: Host, migration: Migration, config: VmConfig, *, seconds: float) -> str:
        request = vm_pb2.ExpectVmRequest(
            vm_id=migration.vm_id,
            migration_id=migration.migration_id,
            config=shared.config_to_pb(config),
            live=migration.live,
            revision=migration.revision,
        )
        return str(self._call(host, "ExpectVm", request, seconds).address)

    def hand_over_vm(
        self, host: Host, migration: Migration, *, seconds: float
    ) -> Iterator[MemorySent | HandedOver]:
        request = vm_pb2.HandOverVmRequest(
            vm_id=migration.vm_id,
            migration_id=migration.migration_id,
            live=migration.live,
            address=migration.address,
            downtime_ms_max=migration.downtime_ms_max,
            seconds_max=migration.seconds_max,
            revision=migration.revision,
        )
        stub = self._stub(host)
        with stream(stub.HandOverVm, request, peer=_peer(host), timeout_seconds=seconds) as answers:
            for answer in answers:
                if answer.handed_over:
                    yield HandedOver(answer.firmware_variables, answer.downtime_ns)
                else:
                    yield MemorySent(answer.bytes_sent, answer.bytes_left)

    def accept_vm(self, host: Host, migration: Migration, *, seconds: float) -> Vm:
        request = vm_pb2.AcceptVmRequest(
            vm_id=migration.vm_id,
            migration_id=migration.migration_id,
            firmware_variables=migration.firmware_variables,
        )
        return _vm(host, self._call(host, "AcceptVm", request, seconds).vm)

    def abandon_migration(self, host: Host, migration: Migration, *, seconds: float) -> None:
        request = vm_pb2.AbandonMigrationRequest(vm_id=migration.vm_id, migration_id=migration.migration_id)
        self._call(host, "AbandonMigration", request, seconds)

    def finish_migration(self, host: Host, migration: Migration, *, seconds: float) -> None:
        request = vm_pb2.FinishMigrationRequest(vm_id=migration.vm_id, migration_id=migration.migration_id)
        self._call(host, "FinishMigration", request, seconds)

    def close(self) -> None:
        """Close every channel; calls on them end."""
        self._channels.close()

    def _call(self, host: Host, method: str, request: object, seconds: float) -> Any:
        peer, stub = _peer(host), self._stub(host)
        try:
            return call(getattr(stub, method), request, peer=peer, timeout_seconds=seconds)
        except DeadlineExceeded as error:
            raise PeerUnavailable(
                f"{peer} did not finish {method} within {seconds:.0f} s: {error.message}",
                subject=f"host {host.name}",
                next_step="look at that host agent, then repeat the request as it was",
            ) from None

    def _stub(self, host: Host) -> vm_pb2_grpc.VmServiceStub:
        return self._channels.stub(vm_pb2_grpc.VmServiceStub, host.address, "host", host.name)


def _peer(host: Host) -> str:
    return f"host {host.name} at {host.address}"


def _vm(host: Host, vm: vm_pb2.Vm) -> Vm:
    return _believed(host, admission.check_vm, convert.vm_from_pb(vm, host=host.name))


def _believed(host: Host, check: Callable[[T], T], value: T) -> T:
    """Return a host's answer; one that breaks the contract is the host's fault, not the caller's."""
    try:
        return check(value)
    except InvalidRequest as error:
        raise Corruption(
            f"host {host.name} at {host.address} answered against its contract: {error.message}",
            subject=f"host {host.name}",
            next_step="look into that host agent's log; it may be of another version",
        ) from None
