"""A virtual center, a host, an array and a target in one process, over real gRPC and TLS.

They share one ``tests.fakes.world.World``, which records calls and makes them fail.
"""

from __future__ import annotations

from typing import Any

from arraylift.rpc.server import RpcServer, service_of
from arraylift.v1 import (
    backup_logic_pb2_grpc,
    image_pb2_grpc,
    target_admin_pb2_grpc,
    virtual_center_pb2,
    virtual_center_pb2_grpc,
    vm_pb2,
    vm_pb2_grpc,
    volume_pb2_grpc,
)
from tests.fakes.world import Handler, World
from tests.wire.stage import House


class FakePeers:
    """The four daemons, listening."""

    def __init__(self, house: House) -> None:
        self.world = world = World()
        host = vm_handlers(world, "host1")
        self.servers = {
            "array": self._serve(house, "array", "array1", self._array(world)),
            "array2": self._serve(house, "array", "array2", self._array(world)),
            "target": self._serve(house, "target", "target1", self._target(world)),
            "host": self._serve(house, "host", "host1", host),
            "host2": self._serve(house, "host", "host2", vm_handlers(world, "host2")),
        }
        world.addresses = {name: server.address for name, server in self.servers.items()}
        self.servers["vcenter"] = self._serve(house, "vcenter", "vcenter1", center_handlers(world))
        world.addresses["vcenter"] = self.servers["vcenter"].address
        world.reset()

    def _serve(self, house: House, role: str, name: str, services: list[Any]) -> RpcServer:
        server = RpcServer("127.0.0.1:0", house.identity(role, name), services)
        server.start()
        return server

    def close(self) -> None:
        for server in self.servers.values():
            server.stop(0)

    def _array(self, world: World) -> list[Any]:
        volumes = _servicer(
            volume_pb2_grpc.VolumeServiceServicer,
            PrepareRestore=world.one("PrepareRestore", world.prepare_restore),
            RevokeRestore=world.one("RevokeRestore", world.revoke_restore),
            CommitRestoreGroup=world.one("CommitRestoreGroup", world.commit_group),
            ListVolumes=world.one("ListVolumes", world.list_volumes),
            DeleteVolume=world.one("DeleteVolume", world.delete_volume),
        )
        logic = _servicer(
            backup_logic_pb2_grpc.BackupLogicServiceServicer,
            SendSnapshot=world.many("SendSnapshot", world.send_snapshot),
            SendForeignDisk=world.many("SendForeignDisk", world.send_foreign_disk),
        )
        return [
            service_of(volume_pb2_grpc.add_VolumeServiceServicer_to_server, volumes),
            service_of(backup_logic_pb2_grpc.add_BackupLogicServiceServicer_to_server, logic),
        ]

    def _target(self, world: World) -> list[Any]:
        admin = _servicer(
            target_admin_pb2_grpc.TargetAdminServiceServicer,
            CreateGrant=world.one("CreateGrant", world.create_grant),
            RevokeGrant=world.one("RevokeGrant", world.revoke_grant),
            GetTargetStats=world.one("GetTargetStats", world.stats),
            ConfirmTime=world.one("ConfirmTime", world.confirm_time),
        )
        images = _servicer(
            image_pb2_grpc.ImageServiceServicer,
            DeleteImage=world.one("DeleteImage", world.delete_image),
            PublishBackup=world.one("PublishBackup", world.publish),
            GetBackupManifest=world.one("GetBackupManifest", world.get_manifest),
            ListBackupManifests=world.one("ListBackupManifests", world.list_manifests),
            DeleteBackupManifest=world.one("DeleteBackupManifest", world.delete_manifest),
            LockImage=world.one("LockImage", world.lock_image),
            VerifyImage=world.many("VerifyImage", world.verify_image),
            ComposeImage=world.many("ComposeImage", world.compose_image),
            ReadRange=world.many("ReadRange", world.read_range),
            SendImage=world.many("SendImage", world.send_image),
        )
        return [
            service_of(target_admin_pb2_grpc.add_TargetAdminServiceServicer_to_server, admin),
            service_of(image_pb2_grpc.add_ImageServiceServicer_to_server, images),
        ]


def _servicer(base: type, **methods: Any) -> Any:
    servicer = base()
    for name, method in methods.items():
        assert hasattr(base, name), f"{base} has no {name}"
        setattr(servicer, name, method)
    return servicer


def vm_handlers(world: World, host: str) -> list[Any]:
    """VmService of a host, which has all VMs."""
    pb = vm_pb2

    def get_vm(request: Any) -> vm_pb2.GetVmResponse:
        vm = pb.Vm()
        vm.CopyFrom(world._vm(request.vm_id, request.name))
        vm.revision = world.told_by.get(host, {}).get(vm.vm_id, vm.revision)
        return pb.GetVmResponse(vm=vm)

    def handler(name: str, work: Handler) -> tuple[str, Any]:
        return name, world.one(name, work)

    methods = dict(
        [
            handler("ListVms", lambda _: pb.ListVmsResponse(vms=world.vms.values())),
            handler("GetVm", get_vm),
            handler(
                "CreateVmSnapshot", lambda r: pb.CreateVmSnapshotResponse(snapshot=world.create_snapshot(r))
            ),
            handler("GetVmSnapshot", lambda r: pb.GetVmSnapshotResponse(snapshot=world.snapshot(r))),
            handler(
                "ListVmSnapshots",
                lambda r: pb.ListVmSnapshotsResponse(
                    snapshots=[one for one in world.vm_snapshots.values() if one.vm_id == r.vm_id]
                ),
            ),
            handler("RenewVmSnapshot", lambda r: (world.snapshot(r), pb.RenewVmSnapshotResponse())[1]),
            handler(
                "DeleteVmSnapshot", lambda r: (world.delete_snapshot(r), pb.DeleteVmSnapshotResponse())[1]
            ),
            handler("CreateVm", lambda r: pb.CreateVmResponse(vm=world.create_vm(r))),
            handler("DeleteVm", lambda r: (world.remove_vm(r), pb.DeleteVmResponse())[1]),
            handler("ListGuestFiles", world.list_guest_files),
            handler("PutGuestFile", world.put_guest_file),
            handler("AttachVolume", lambda r: pb.AttachVolumeResponse(vm=world.attach(r))),
            handler("PowerOn", lambda r: pb.PowerOnResponse(vm=world.power(r.vm_id, pb.POWER_STATE_ON))),
            handler("PowerOff", lambda r: pb.PowerOffResponse(vm=world.power(r.vm_id, pb.POWER_STATE_OFF))),
        ]
    )
    servicer = _servicer(vm_pb2_grpc.VmServiceServicer, **methods)
    return [service_of(vm_pb2_grpc.add_VmServiceServicer_to_server, servicer)]


def center_handlers(world: World) -> list[Any]:
    """VirtualCenterService over host1."""
    pb = virtual_center_pb2

    def host() -> virtual_center_pb2.Host:
        return pb.Host(name="host1", address=world.addresses["host"], state=pb.HOST_STATE_ALIVE)

    def list_vms(request: Any) -> virtual_center_pb2.ListManagedVmsResponse:
        """One VM a page."""
        at, vms = int(request.page_token or 0), list(world.vms.values())
        more = str(at + 1) if at + 1 < len(vms) else ""
        return pb.ListManagedVmsResponse(vms=vms[at : at + 1], next_page_token=more)

    def prepare(request: Any) -> virtual_center_pb2.PrepareBackupResponse:
        snapshot = world.create_snapshot(request)
        return pb.PrepareBackupResponse(host=host(), vm=world._vm(request.vm_id), snapshot=snapshot)

    def handler(name: str, work: Handler) -> tuple[str, Any]:
        return name, world.one(name, work)

    methods = dict(
        [
            handler("ListManagedVms", list_vms),
            handler(
                "GetManagedVm",
                lambda r: pb.GetManagedVmResponse(vm=world._vm(r.vm_id, r.name), host=host()),
            ),
            handler("PrepareBackup", prepare),
            handler("RenewSnapshot", lambda r: (world.snapshot(r), pb.RenewSnapshotResponse())[1]),
            handler("ReleaseSnapshot", lambda r: (world.delete_snapshot(r), pb.ReleaseSnapshotResponse())[1]),
            handler("PlaceVm", lambda _: pb.PlaceVmResponse(host=host())),
            handler("ProvisionVm", lambda r: pb.ProvisionVmResponse(vm=world.create_vm(r), host=host())),
            handler("AttachVmVolume", lambda r: pb.AttachVmVolumeResponse(vm=world.attach(r))),
            handler("PowerVm", lambda r: pb.PowerVmResponse(vm=world.power(r.vm_id, r.power))),
            handler("RemoveVm", lambda r: (world.remove_vm(r), pb.RemoveVmResponse())[1]),
        ]
    )
    servicer = _servicer(virtual_center_pb2_grpc.VirtualCenterServiceServicer, **methods)
    return [service_of(virtual_center_pb2_grpc.add_VirtualCenterServiceServicer_to_server, servicer)]
