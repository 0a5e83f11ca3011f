"""kill -9 of the daemon around its commits: what was answered is there, whatever else is."""

from __future__ import annotations

import random
import secrets
from pathlib import Path

import pytest

from arraylift import pki
from arraylift.errors import PeerUnavailable
from arraylift.rpc.channel import call, connect
from arraylift.v1 import virtual_center_pb2 as pb
from arraylift.v1 import virtual_center_pb2_grpc as pb_grpc
from arraylift.vm import convert
from arraylift.vm.types import PowerState, Vm
from tests.e2e.daemon import Daemon
from tests.unit.vcenter.material import config, make_vm, vm_id_of

REPORTS_MAX = 40
SEED = secrets.randbits(32)


class Scene:
    """A center as a process, a host that reports to it, an operator who lists."""

    def __init__(self, home: Path) -> None:
        directory = str(home / "pki")
        pki.init_ca(directory)
        for role, name in (("vcenter", "v1"), ("host", "h1"), ("operator", "me")):
            pki.issue(directory, role, name)
        self.daemon = Daemon("vcenter", "v1", home=home, pki=Path(directory), settings={})
        self._channels = [
            connect(self.daemon.address, pki.load(directory, role, name), "vcenter")
            for role, name in (("host", "h1"), ("operator", "me"))
        ]
        self.host, self.operator = map(pb_grpc.VirtualCenterServiceStub, self._channels)
        self.sequence = 0

    def register(self) -> None:
        # Nobody listens there: the center asks a host nothing in this story.
        request = pb.RegisterHostRequest(name="h1", address="127.0.0.1:9", driver="fake")
        call(self.host.RegisterHost, request, peer="center")

    def report(self, vms: list[Vm]) -> None:
        self.sequence += 1
        request = pb.ReportInventoryRequest(name="h1", sequence=self.sequence, vms=map(convert.vm_to_pb, vms))
        call(self.host.ReportInventory, request, peer="center")

    def listed(self) -> tuple[list[Vm], int]:
        answer = call(self.operator.ListManagedVms, pb.ListManagedVmsRequest(), peer="center")
        return [convert.vm_from_pb(vm) for vm in answer.vms], answer.revision

    def close(self) -> None:
        for channel in self._channels:
            channel.close()
        self.daemon.close()


def _world(step: int) -> list[Vm]:
    """The host's VMs at one step: one comes, one goes, one changes."""
    vms = [make_vm(number, revision=1) for number in range(step, step + 3)]
    vms[1] = make_vm(step + 1, power=PowerState.ON, revision=step + 2, name=f"name{step}")
    return sorted(vms, key=lambda vm: vm.config.name)


@pytest.mark.parametrize("side", ["before", "after"])
def test_a_center_killed_in_a_commit_has_the_old_state_or_the_new(tmp_path: Path, side: str) -> None:
    choice = random.Random(SEED)
    scene = Scene(tmp_path)
    try:
        scene.daemon.start()
        scene.register()
        scene.report(_world(0))
        step, revision = 0, scene.listed()[1]
        for _ in range(2):
            scene.daemon.stop()
            at = choice.randint(1, 6)
            scene.daemon.start(failpoints=f"inventory.commit.{side}=kill@{at}")
            assert scene.listed() == (_world(step), revision)
            for _ in range(REPORTS_MAX):
                try:
                    scene.report(_world(step + 1))
                except PeerUnavailable:
                    break
                step += 1
                revision = scene.listed()[1]
            else:
                raise AssertionError(f"seed {SEED}: the center was not killed at commit {at}")
            scene.daemon.kill()  # it is dead already; this reaps it
            scene.daemon.start()
            found, found_revision = scene.listed()
            committed = side == "after"
            assert found == _world(step + committed), f"seed {SEED}"
            assert found_revision == revision + committed
            # The host repeats itself, and everything goes on.
            step += 1
            scene.report(_world(step))
            found, revision = scene.listed()
            assert found == _world(step)
    finally:
        scene.close()


def test_a_center_killed_while_it_asks_asks_the_same_host_again(tmp_path: Path) -> None:
    """The placement is durable before the host is asked; here the process dies right after that."""
    scene = Scene(tmp_path)
    try:
        scene.daemon.start()
        scene.register()
        scene.report([])
        scene.daemon.stop()
        scene.daemon.start(failpoints="inventory.commit.after=kill@1")
        request = pb.ProvisionVmRequest(
            vm_id=vm_id_of(1), config=convert.config_to_pb(config("new")), host="h1"
        )
        with pytest.raises(PeerUnavailable):
            call(scene.operator.ProvisionVm, request, peer="center")
        scene.daemon.kill()
        scene.daemon.start()
        request.host = "h2"
        with pytest.raises(Exception, match="on host h1, or may be"):
            call(scene.operator.ProvisionVm, request, peer="center")
    finally:
        scene.close()
