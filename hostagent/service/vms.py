"""Edge: VmService. Checks, converts, delegates to the use cases; decides nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import grpc

from arraylift.errors import InvalidRequest, NotFound
from arraylift.ids import VmId, VmSnapshotId, check_id
from arraylift.rpc import pages
from arraylift.sizes import EXTENT_BYTES_MAX
from arraylift.v1 import vm_pb2 as pb
from arraylift.vm import convert as shared
from hostagent import convert
from hostagent.guest_files import GuestFiles
from hostagent.machines import Machines
from hostagent.migration import Migrations
from hostagent.service.migrations import MigrationEdge
from hostagent.vm_snapshots import VmSnapshots
from hostagent.vm_types import GuestFile, SnapshotRecord, VmRecord


class VmEdge(MigrationEdge):
    """Serves one host's VMs. ``host`` is the name in its certificate."""

    def __init__(
        self,
        host: str,
        machines: Machines,
        snapshots: VmSnapshots,
        files: GuestFiles,
        migrations: Migrations,
    ) -> None:
        super().__init__(host, migrations)
        self._host, self._machines, self._snapshots, self._files = host, machines, snapshots, files

    # -- life -----------------------------------------------------------------------------------

    def CreateVm(self, request: pb.CreateVmRequest, context: grpc.ServicerContext) -> pb.CreateVmResponse:
        vm = self._machines.create(
            _vm_id(request.vm_id),
            shared.config_from_pb(request.config),
            firmware_variables=request.firmware_variables,
        )
        return pb.CreateVmResponse(vm=self._pb(vm))

    def GetVm(self, request: pb.GetVmRequest, context: grpc.ServicerContext) -> pb.GetVmResponse:
        if bool(request.vm_id) == bool(request.name):
            raise InvalidRequest("name a VM by id or by name, one of the two")
        if request.name:
            vm = self._machines.get_named(request.name)
        else:
            vm = self._machines.get(_vm_id(request.vm_id))
        return pb.GetVmResponse(vm=self._pb(vm))

    def ListVms(self, request: pb.ListVmsRequest, context: grpc.ServicerContext) -> pb.ListVmsResponse:
        return pb.ListVmsResponse(vms=map(self._pb, self._machines.listed()))

    def DeleteVm(self, request: pb.DeleteVmRequest, context: grpc.ServicerContext) -> pb.DeleteVmResponse:
        with contextlib.suppress(NotFound) if request.missing_ok else contextlib.nullcontext():
            self._machines.delete(
                _vm_id(request.vm_id),
                keep_volumes=request.keep_volumes,
                release_snapshots=self._snapshots.release_all,
            )
        return pb.DeleteVmResponse()

    # -- power ----------------------------------------------------------------------------------

    def PowerOn(self, request: pb.PowerOnRequest, context: grpc.ServicerContext) -> pb.PowerOnResponse:
        return pb.PowerOnResponse(vm=self._pb(self._machines.power_on(_vm_id(request.vm_id))))

    def PowerOff(self, request: pb.PowerOffRequest, context: grpc.ServicerContext) -> pb.PowerOffResponse:
        vm = self._machines.power_off(
            _vm_id(request.vm_id), grace_seconds=request.grace_seconds, force=request.force
        )
        return pb.PowerOffResponse(vm=self._pb(vm))

    # -- VM snapshots ---------------------------------------------------------------------------

    def CreateVmSnapshot(
        self, request: pb.CreateVmSnapshotRequest, context: grpc.ServicerContext
    ) -> pb.CreateVmSnapshotResponse:
        asked = shared.snapshot_request_from_pb(request)
        made = self._snapshots.create(
            _vm_id(asked.vm_id),
            asked.name,
            level_min=asked.level_min,
            lease_seconds=asked.lease_seconds,
            exclude_disks=asked.exclude_disks,
            changes_since=asked.changes_since,
        )
        return pb.CreateVmSnapshotResponse(snapshot=self._snapshot_pb(made))

    def GetVmSnapshot(
        self, request: pb.GetVmSnapshotRequest, context: grpc.ServicerContext
    ) -> pb.GetVmSnapshotResponse:
        found = self._snapshots.get(_snapshot_id(request.vm_snapshot_id))
        return pb.GetVmSnapshotResponse(snapshot=self._snapshot_pb(found))

    def ListVmSnapshots(
        self, request: pb.ListVmSnapshotsRequest, context: grpc.ServicerContext
    ) -> pb.ListVmSnapshotsResponse:
        found = self._snapshots.listed(_vm_id(request.vm_id) if request.vm_id else None)
        return pb.ListVmSnapshotsResponse(snapshots=[shared.snapshot_to_pb(one.told()) for one in found])

    def RenewVmSnapshot(
        self, request: pb.RenewVmSnapshotRequest, context: grpc.ServicerContext
    ) -> pb.RenewVmSnapshotResponse:
        self._snapshots.renew(_snapshot_id(request.vm_snapshot_id))
        return pb.RenewVmSnapshotResponse()

    def DeleteVmSnapshot(
        self, request: pb.DeleteVmSnapshotRequest, context: grpc.ServicerContext
    ) -> pb.DeleteVmSnapshotResponse:
        self._snapshots.delete(_snapshot_id(request.vm_snapshot_id))
        return pb.DeleteVmSnapshotResponse()

    # -- disks ----------------------------------------------------------------------------------

    def AttachVolume(
        self, request: pb.AttachVolumeRequest, context: grpc.ServicerContext
    ) -> pb.AttachVolumeResponse:
        vm = self._machines.attach(_vm_id(request.vm_id), shared.disk_from_pb(request.disk))
        return pb.AttachVolumeResponse(vm=self._pb(vm))

    def DetachVolume(
        self, request: pb.DetachVolumeRequest, context: grpc.ServicerContext
    ) -> pb.DetachVolumeResponse:
        vm = self._machines.detach(_vm_id(request.vm_id), request.disk_name)
        return pb.DetachVolumeResponse(vm=self._pb(vm))

    # -- guest files ----------------------------------------------------------------------------

    def PutGuestFile(
        self, requests: Iterator[pb.PutGuestFileRequest], context: grpc.ServicerContext
    ) -> pb.PutGuestFileResponse:
        first = next(requests, None)
        if first is None or not first.HasField("header"):
            raise InvalidRequest("a put begins with its header")
        header = first.header
        vm_id = _vm_id(header.vm_id)
        with self._files.upload(vm_id, header.disk_name, header.path, mode=first.mode) as upload:
            request: pb.PutGuestFileRequest | None = first
            while request is not None:
                if len(request.data) > EXTENT_BYTES_MAX:
                    raise InvalidRequest(f"a message has at most {EXTENT_BYTES_MAX} bytes of data")
                upload.write(request.data)
                if request.last:  # what commits is a message of its own, never the end of the stream
                    return pb.PutGuestFileResponse(file=convert.file_to_pb(upload.commit()))
                request = next(requests, None)
                if request is not None and request.HasField("header"):
                    raise InvalidRequest("a put has one header")
        raise InvalidRequest("the put was cut before its last message", next_step="repeat it")

    def GetGuestFile(
        self, request: pb.GetGuestFileRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.GetGuestFileResponse]:
        at = request.file
        with self._files.download(_vm_id(at.vm_id), at.disk_name, at.path) as (file, pieces):
            yield pb.GetGuestFileResponse(file=convert.file_to_pb(file))
            for data in pieces:
                yield pb.GetGuestFileResponse(data=data)

    def ListGuestFiles(
        self, request: pb.ListGuestFilesRequest, context: grpc.ServicerContext
    ) -> pb.ListGuestFilesResponse:
        at, behind = request.directory, pages.after(request.page_token, str)
        found = self._files.listed(_vm_id(at.vm_id), at.disk_name, at.path)
        page, token = pages.cut(
            pages.rest(found, behind, _by_path), request.page_size, key=_by_path, to_pb=convert.file_to_pb
        )
        return pb.ListGuestFilesResponse(files=page, next_page_token=token)

    def RemoveGuestFile(
        self, request: pb.RemoveGuestFileRequest, context: grpc.ServicerContext
    ) -> pb.RemoveGuestFileResponse:
        at = request.file
        self._files.remove(_vm_id(at.vm_id), at.disk_name, at.path)
        return pb.RemoveGuestFileResponse()

    def _pb(self, vm: VmRecord) -> pb.Vm:
        return shared.vm_to_pb(vm.told(self._host))

    def _snapshot_pb(self, snapshot: SnapshotRecord) -> pb.VmSnapshot:
        return shared.snapshot_to_pb(snapshot.told(self._snapshots.firmware_variables(snapshot)))


def _by_path(file: GuestFile) -> pages.Key:
    return (file.path,)


def _vm_id(text: str) -> VmId:
    return VmId(check_id(text, "VM id"))


def _snapshot_id(text: str) -> VmSnapshotId:
    return VmSnapshotId(check_id(text, "VM snapshot id"))
