"""A host agent for the tests: VmService over real gRPC and TLS, VMs in a dict."""

# ruff: noqa: N802  # names are those of the generated classes

from __future__ import annotations

import threading

import grpc

from arraylift.errors import NotFound
from arraylift.ids import VmId
from arraylift.pki import TlsMaterial
from arraylift.rpc.channel import call, connect
from arraylift.rpc.server import RpcServer, service_of
from arraylift.v1 import virtual_center_pb2, virtual_center_pb2_grpc, vm_pb2, vm_pb2_grpc
from arraylift.vm import convert
from arraylift.vm.types import ConsistencyLevel, PowerState, SnapshotRequest, Vm
from tests.unit.vcenter.material import FakeHosts, config, vm_id_of
from vcenter.model import Host

GIB = 1 << 30


class FakeVmm(vm_pb2_grpc.VmServiceServicer):
    """Speaks for one host; ``hang`` makes snapshots wait until it is set."""

    def __init__(self, name: str) -> None:
        self.fake = FakeHosts(name)
        self.host = Host(name, "", "fake")
        self.hang: threading.Event | None = None

    def CreateVm(
        self, request: vm_pb2.CreateVmRequest, context: grpc.ServicerContext
    ) -> vm_pb2.CreateVmResponse:
        wanted = convert.config_from_pb(request.config)
        made = self.fake.create_vm(
            self.host,
            VmId(request.vm_id),
            wanted,
            firmware_variables=request.firmware_variables,
            seconds=1,
        )
        return vm_pb2.CreateVmResponse(vm=convert.vm_to_pb(made))

    def ListVms(
        self, request: vm_pb2.ListVmsRequest, context: grpc.ServicerContext
    ) -> vm_pb2.ListVmsResponse:
        return vm_pb2.ListVmsResponse(vms=map(convert.vm_to_pb, self.fake.list_vms(self.host, seconds=1)))

    def DeleteVm(
        self, request: vm_pb2.DeleteVmRequest, context: grpc.ServicerContext
    ) -> vm_pb2.DeleteVmResponse:
        self.fake.delete_vm(self.host, VmId(request.vm_id), keep_volumes=request.keep_volumes, seconds=1)
        return vm_pb2.DeleteVmResponse()

    def PowerOn(
        self, request: vm_pb2.PowerOnRequest, context: grpc.ServicerContext
    ) -> vm_pb2.PowerOnResponse:
        vm = self.fake.power_on(self.host, VmId(request.vm_id), seconds=1)
        return vm_pb2.PowerOnResponse(vm=convert.vm_to_pb(vm))

    def PowerOff(
        self, request: vm_pb2.PowerOffRequest, context: grpc.ServicerContext
    ) -> vm_pb2.PowerOffResponse:
        vm = self.fake.power_off(
            self.host,
            VmId(request.vm_id),
            grace_seconds=request.grace_seconds,
            force=request.force,
            seconds=1,
        )
        return vm_pb2.PowerOffResponse(vm=convert.vm_to_pb(vm))

    def AttachVolume(
        self, request: vm_pb2.AttachVolumeRequest, context: grpc.ServicerContext
    ) -> vm_pb2.AttachVolumeResponse:
        disk = convert.disk_from_pb(request.disk)
        vm = self.fake.attach_volume(self.host, VmId(request.vm_id), disk, seconds=1)
        return vm_pb2.AttachVolumeResponse(vm=convert.vm_to_pb(vm))

    def CreateVmSnapshot(
        self, request: vm_pb2.CreateVmSnapshotRequest, context: grpc.ServicerContext
    ) -> vm_pb2.CreateVmSnapshotResponse:
        if self.hang is not None:
            self.hang.wait()
        asked = SnapshotRequest(
            VmId(request.vm_id), request.name, ConsistencyLevel(request.level_min), request.lease_seconds
        )
        made = self.fake.create_vm_snapshot(self.host, asked, seconds=1)
        return vm_pb2.CreateVmSnapshotResponse(snapshot=convert.snapshot_to_pb(made))

    def RenewVmSnapshot(
        self, request: vm_pb2.RenewVmSnapshotRequest, context: grpc.ServicerContext
    ) -> vm_pb2.RenewVmSnapshotResponse:
        if request.vm_snapshot_id not in self.fake.snapshots[self.host.name]:
            raise NotFound(f"no VM snapshot {request.vm_snapshot_id}")
        return vm_pb2.RenewVmSnapshotResponse()

    def DeleteVmSnapshot(
        self, request: vm_pb2.DeleteVmSnapshotRequest, context: grpc.ServicerContext
    ) -> vm_pb2.DeleteVmSnapshotResponse:
        snapshots = self.fake.snapshots[self.host.name]
        for one in [one for one in snapshots if one == request.vm_snapshot_id]:
            del snapshots[one]
        return vm_pb2.DeleteVmSnapshotResponse()


class FakeHostAgent:
    """One host: its VMM behind a port, and its side of the talk with the center."""

    def __init__(self, tls: TlsMaterial, center_address: str) -> None:
        self.name = tls.peer.name
        self.vmm = FakeVmm(self.name)
        service = service_of(vm_pb2_grpc.add_VmServiceServicer_to_server, self.vmm)
        self.server = RpcServer("127.0.0.1:0", tls, [service])
        self.server.start()
        self.sequence = 0
        self.memory_free_bytes = 8 * GIB
        self._channel = connect(center_address, tls, "vcenter")
        self._center = virtual_center_pb2_grpc.VirtualCenterServiceStub(self._channel)

    @property
    def vms(self) -> dict[VmId, Vm]:
        return self.vmm.fake.vms[self.name]

    def add_vm(self, number: int, name: str = "", *, power: PowerState = PowerState.ON) -> VmId:
        vm_id = vm_id_of(number)
        self.vms[vm_id] = Vm(vm_id, config(name or f"vm{number}"), power, self.name, 1)
        return vm_id

    def register(self, name: str = "", address: str = "") -> None:
        request = virtual_center_pb2.RegisterHostRequest(
            name=name or self.name, address=address or self.server.address, driver="fake"
        )
        call(self._center.RegisterHost, request, peer="center")

    def report(self, *, sequence: int = 0, name: str = "") -> None:
        self.sequence = sequence or self.sequence + 1
        request = virtual_center_pb2.ReportInventoryRequest(
            name=name or self.name,
            sequence=self.sequence,
            vms=map(convert.vm_to_pb, self.vms.values()),
            memory_bytes=16 * GIB,
            memory_free_bytes=self.memory_free_bytes,
            cpus=8,
        )
        call(self._center.ReportInventory, request, peer="center")

    def close(self) -> None:
        if self.vmm.hang is not None:
            self.vmm.hang.set()
        self._channel.close()
        self.server.stop(0)
