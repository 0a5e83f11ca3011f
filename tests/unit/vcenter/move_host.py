"""A host agent that VMs come to and leave, for the tests of the center: the real migrations over real gRPC
and TLS, over VMMs and a disk that are fake."""

# ruff: noqa: N802  # names are those of the generated classes

from __future__ import annotations

import threading
from typing import Any

import grpc

from arraylift.errors import ArrayliftError
from arraylift.ids import VmId
from arraylift.pki import TlsMaterial
from arraylift.rpc.channel import call, connect
from arraylift.rpc.server import RpcServer, service_of
from arraylift.v1 import virtual_center_pb2 as pb
from arraylift.v1 import virtual_center_pb2_grpc, vm_pb2, vm_pb2_grpc
from arraylift.vm import convert
from hostagent.service.migrations import MigrationEdge
from tests.fakes.hosts import FakeHost
from tests.fakes.vmms import FakeVolumes, Vmms
from tests.unit.vcenter.material import GIB


class MovingVmm(MigrationEdge):
    """``errors``: what a method raises instead; ``hang``: methods that wait until it is set first."""

    def __init__(self, fake: FakeHost) -> None:
        super().__init__(fake.name, fake.migrations)
        self.fake = fake
        self.errors: dict[str, ArrayliftError] = {}
        self.hanging: set[str] = set()
        self.go = threading.Event()

    def _before(self, method: str) -> None:
        if method in self.hanging:
            self.go.wait(20)
        if method in self.errors:
            raise self.errors[method]

    def ExpectVm(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._before("ExpectVm")
        return super().ExpectVm(request, context)

    def HandOverVm(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._before("HandOverVm")
        yield from super().HandOverVm(request, context)

    def AcceptVm(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._before("AcceptVm")
        return super().AcceptVm(request, context)

    def FinishMigration(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._before("FinishMigration")
        return super().FinishMigration(request, context)

    def AbandonMigration(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._before("AbandonMigration")
        return super().AbandonMigration(request, context)

    def ListVms(
        self, request: vm_pb2.ListVmsRequest, context: grpc.ServicerContext
    ) -> vm_pb2.ListVmsResponse:
        self._before("ListVms")
        return vm_pb2.ListVmsResponse(vms=map(convert.vm_to_pb, self.fake.told()))

    def PowerOn(
        self, request: vm_pb2.PowerOnRequest, context: grpc.ServicerContext
    ) -> vm_pb2.PowerOnResponse:
        vm = self.fake.machines.power_on(VmId(request.vm_id))
        return vm_pb2.PowerOnResponse(vm=convert.vm_to_pb(vm.told(self.fake.name)))


class MoveAgent:
    """One host, and its side of the talk with the center."""

    def __init__(
        self, tls: TlsMaterial, center_address: str, vmms: Vmms, volumes: FakeVolumes, *, driver: str = "fake"
    ) -> None:
        self.name = tls.peer.name
        self.fake = FakeHost(self.name, vmms, volumes)
        self.vmm = MovingVmm(self.fake)
        self.driver = driver
        self.load_percent, self.memory_free_bytes = 0, 8 * GIB
        service = service_of(vm_pb2_grpc.add_VmServiceServicer_to_server, self.vmm)
        self.server = RpcServer("127.0.0.1:0", tls, [service])
        self.server.start()
        self._channel = connect(center_address, tls, "vcenter")
        self._center = virtual_center_pb2_grpc.VirtualCenterServiceStub(self._channel)
        self._sequence = 0
        self.register()

    def register(self) -> None:
        request = pb.RegisterHostRequest(name=self.name, address=self.server.address, driver=self.driver)
        call(self._center.RegisterHost, request, peer="center")

    def report(self) -> None:
        self._sequence += 1
        request = pb.ReportInventoryRequest(
            name=self.name,
            sequence=self._sequence,
            vms=map(convert.vm_to_pb, self.fake.told()),
            memory_bytes=16 * GIB,
            memory_free_bytes=self.memory_free_bytes,
            cpus=8,
            load_percent=self.load_percent,
        )
        call(self._center.ReportInventory, request, peer="center")

    def close(self) -> None:
        self.vmm.go.set()
        self._channel.close()
        self.server.stop(0)
