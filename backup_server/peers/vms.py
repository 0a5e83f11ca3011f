"""Edge: the virtual center and hosts, in the words of ``ports``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from arraylift.rpc import pages
from arraylift.v1 import virtual_center_pb2, virtual_center_pb2_grpc, vm_pb2, vm_pb2_grpc
from arraylift.vm import convert as shared
from arraylift.vm.types import Disk, SnapshotRequest, Vm, VmConfig, VmSnapshot
from backup_server.model import Located
from backup_server.peers.caller import Caller
from backup_server.ports import HostRef


class GrpcCenter(Caller):
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

    def provision_vm(
        self, vm_id: str, config: VmConfig, host: str, firmware_variables: bytes = b""
    ) -> HostRef:
        request = virtual_center_pb2.ProvisionVmRequest(
            vm_id=vm_id,
            config=shared.config_to_pb(config),
            host=host,
            firmware_variables=firmware_variables,
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


class GrpcHost(Caller):
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

    def create_vm(self, vm_id: str, config: VmConfig, firmware_variables: bytes = b"") -> None:
        request = vm_pb2.CreateVmRequest(
            vm_id=vm_id, config=shared.config_to_pb(config), firmware_variables=firmware_variables
        )
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

    def list_files(self, vm_id: str, disk_name: str, path: str) -> list[str]:
        place = vm_pb2.GuestPath(vm_id=vm_id, disk_name=disk_name, path=path)
        answers = pages.follow(
            lambda asked: self._ask("ListGuestFiles", asked, slow=True),
            vm_pb2.ListGuestFilesRequest(directory=place),
        )
        return [file.path for answer in answers for file in answer.files]

    def put_file(self, vm_id: str, disk_name: str, path: str, *, mode: int, pieces: Iterator[bytes]) -> None:
        def requests() -> Iterator[vm_pb2.PutGuestFileRequest]:
            place = vm_pb2.GuestPath(vm_id=vm_id, disk_name=disk_name, path=path)
            yield vm_pb2.PutGuestFileRequest(header=place, mode=mode)
            for data in pieces:
                yield vm_pb2.PutGuestFileRequest(data=data)
            yield vm_pb2.PutGuestFileRequest(last=True)

        seconds = self._deadlines.transfer_seconds
        self.call(vm_pb2_grpc.VmServiceStub, "PutGuestFile", requests(), seconds=seconds)
