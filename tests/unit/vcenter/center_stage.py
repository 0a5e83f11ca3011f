"""A virtual center and its fake hosts in one process, over real gRPC and TLS."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arraylift.pki import TlsMaterial
from arraylift.rpc import pages
from arraylift.rpc.channel import ResponseStream, call, connect, stream
from arraylift.rpc.server import RpcServer
from arraylift.v1 import virtual_center_pb2 as pb
from arraylift.v1 import virtual_center_pb2_grpc as pb_grpc
from arraylift.v1 import vm_pb2
from arraylift.vm import convert
from arraylift.vm.types import PowerState
from tests.unit.vcenter.fake_host import FakeHostAgent
from tests.unit.vcenter.material import HandClock, config, vm_id_of
from tests.wire.stage import House
from vcenter.__main__ import build
from vcenter.config import CenterSettings
from vcenter.live_inventory import SILENCE_SECONDS

WAIT_SECONDS = 20.0


class Stage:
    """A center and its fake hosts, in this process; time is turned by hand."""

    def __init__(self, house: House, state: Path) -> None:
        self.house = house
        self.state = state
        self.clock = HandClock()
        self.hosts: dict[str, FakeHostAgent] = {}
        self._closing: list[Callable[[], Any]] = []
        self._start("127.0.0.1:0")

    def _start(self, address: str) -> None:
        tls = self.house.identity("vcenter", "v1")
        self.built = build(CenterSettings(name="v1", state=self.state), tls, clock=self.clock)
        self.server = RpcServer(address, tls, self.built.services)
        self.server.start()
        self.stub = self.stub_of(self.house.identity("operator"))

    def stub_of(self, tls: TlsMaterial) -> pb_grpc.VirtualCenterServiceStub:
        channel = connect(self.server.address, tls, "vcenter")
        self._closing.append(channel.close)
        return pb_grpc.VirtualCenterServiceStub(channel)

    def host(self, name: str, *vms: int, power: PowerState = PowerState.ON) -> FakeHostAgent:
        agent = FakeHostAgent(self.house.identity("host", name), self.server.address)
        self.hosts[name] = agent
        for number in vms:
            agent.add_vm(number, power=power)
        agent.register()
        agent.report()
        return agent

    def ask(self, method: str, request: object, *, seconds: float = WAIT_SECONDS) -> Any:
        return call(getattr(self.stub, method), request, peer="center", timeout_seconds=seconds)

    def prepare(self, vm_id: str, name: str = "job1", *, seconds: float = WAIT_SECONDS) -> Any:
        return self.ask("PrepareBackup", pb.PrepareBackupRequest(vm_id=vm_id, name=name), seconds=seconds)

    def vms(self, host: str = "") -> list[vm_pb2.Vm]:
        request = pb.ListManagedVmsRequest(host=host)
        answers = pages.follow(lambda asked: self.ask("ListManagedVms", asked), request)
        return [vm for answer in answers for vm in answer.vms]

    def silence(self, *but: str) -> None:
        """Let every host but those named fall silent, and wait until the center has noticed."""
        self.clock.seconds += SILENCE_SECONDS - 1
        for name in but:
            self.hosts[name].report()
        self.clock.seconds += 1
        silent = self.hosts.keys() - set(but)
        done = threading.Event()
        for _ in range(int(WAIT_SECONDS / 0.05)):
            hosts = self.ask("ListHosts", pb.ListHostsRequest()).hosts
            if {host.name for host in hosts if host.state == pb.HOST_STATE_LOST} == silent:
                return
            done.wait(0.05)
        raise AssertionError(f"{silent} were not marked as lost")

    def watch(self, after_revision: int = 0) -> ResponseStream[pb.WatchInventoryResponse]:
        request = pb.WatchInventoryRequest(after_revision=after_revision)
        watching = stream(self.stub.WatchInventory, request, peer="center", timeout_seconds=WAIT_SECONDS)
        self._closing.append(watching.cancel)
        return watching

    def close_center(self) -> None:
        for close in reversed(self._closing):
            close()
        self._closing.clear()
        self.server.stop(0)
        self.built.close()

    def restart(self) -> None:
        address = self.server.address
        self.close_center()
        self._start(address)

    def close(self) -> None:
        self.close_center()
        for agent in self.hosts.values():
            agent.close()


def listing_of(watching: ResponseStream[pb.WatchInventoryResponse]) -> list[pb.WatchInventoryResponse]:
    """Take pieces until one names a revision."""
    taken = []
    for piece in watching:
        taken.append(piece)
        if piece.revision:
            break
    return taken


def provision(stage: Stage, number: int, name: str = "", host: str = "", array: str = "a1") -> Any:
    wanted = convert.config_to_pb(config(name or f"vm{number}", array=array))
    request = pb.ProvisionVmRequest(vm_id=vm_id_of(number), config=wanted, host=host)
    return stage.ask("ProvisionVm", request)
