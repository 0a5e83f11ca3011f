"""The virtual center moves VMs over real gRPC and TLS: what is told, refused, followed, resumed, undone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arraylift.errors import (
    Conflict,
    InvalidRequest,
    NotFound,
    OutOfSpace,
    Overloaded,
    PeerUnavailable,
    WrongState,
)
from arraylift.rpc.channel import ResponseStream, stream
from arraylift.v1 import virtual_center_pb2 as pb
from arraylift.v1 import vm_pb2
from tests.e2e.daemon import wait_until
from tests.fakes.vmms import FakeVolumes, Vmms
from tests.unit.vcenter.center_stage import WAIT_SECONDS, Stage
from tests.unit.vcenter.material import vm_id_of
from tests.unit.vcenter.move_host import MoveAgent
from tests.wire.stage import House
from vcenter import migrate

VM = vm_id_of(1)


class Moving:
    """A center and hosts; a VM on the first."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.vmms, self.volumes = Vmms(), FakeVolumes()
        self.agents: dict[str, MoveAgent] = {}
        for name in ("h1", "h2"):
            self.host(name)

    def host(self, name: str, **more: Any) -> MoveAgent:
        tls = self.stage.house.identity("host", name)
        agent = MoveAgent(tls, self.stage.server.address, self.vmms, self.volumes, **more)
        self.agents[name] = agent
        agent.report()
        return agent

    def make(self, *, on: bool = False) -> None:
        self.agents["h1"].fake.make(VM, on=on)
        self.agents["h1"].report()

    def stream(self, host: str = "h2", **more: Any) -> ResponseStream[pb.MigrateVmResponse]:
        request = pb.MigrateVmRequest(vm_id=VM, host=host, **more)
        return stream(self.stage.stub.MigrateVm, request, peer="center", timeout_seconds=WAIT_SECONDS)

    def migrate(self, host: str = "h2", **more: Any) -> list[pb.MigrateVmResponse]:
        return list(self.stream(host, **more))

    def migrations(self) -> list[pb.Migration]:
        return list(self.stage.ask("ListMigrations", pb.ListMigrationsRequest()).migrations)

    def wait_phase(self, phase: str) -> pb.Migration:
        """Until the only migration is in it, and waits."""
        wait_until(lambda: [one.phase for one in self.migrations()] == [phase], phase, seconds=20)
        return self.migrations()[0]

    def shown(self) -> str:
        """The host on which the VM is shown."""
        answer = self.stage.ask("GetManagedVm", pb.GetManagedVmRequest(vm_id=VM))
        assert answer.host.name == answer.vm.host
        return str(answer.host.name)

    def who(self) -> list[str]:
        return [name for name, agent in self.agents.items() if agent.fake.can_run(VM)]

    def close(self) -> None:
        for agent in self.agents.values():
            agent.close()


@pytest.fixture
def moving(house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Moving]:
    monkeypatch.setattr(migrate, "RETRY_SECONDS", 0.05)
    stage = Stage(house, tmp_path / "state")
    moving = Moving(stage)
    yield moving
    moving.close()
    stage.close()


@pytest.mark.parametrize("live", [False, True])
def test_a_vm_is_moved_and_shown_at_its_new_host_at_once(moving: Moving, live: bool) -> None:
    moving.make(on=live)
    news = moving.migrate(live=live)
    assert moving.shown() == "h2"  # before any report
    last = news[-1]
    assert (last.vm.host, last.host.name, last.vm.vm_id) == ("h2", "h2", VM)
    assert (last.vm.power == vm_pb2.POWER_STATE_ON) == live
    assert (last.downtime_ns > 0) == live
    assert news[0].phase == "place"
    assert all(not one.HasField("vm") for one in news[:-1])
    assert moving.who() == ["h2"]
    wait_until(lambda: not moving.migrations(), "nothing is left")
    for name in ("h1", "h2", "h1"):
        moving.agents[name].report()
        assert moving.shown() == "h2"
    moved = moving.stage.ask("PowerVm", pb.PowerVmRequest(vm_id=VM, power=vm_pb2.POWER_STATE_ON)).vm
    assert moved.host == "h2"
    history = moving.stage.ask("GetVmHistory", pb.GetVmHistoryRequest(vm_id=VM)).entries
    assert [(entry.host, entry.removed) for entry in history] == [("h2", False), ("h1", False)]


def test_it_goes_to_and_fro(moving: Moving) -> None:
    moving.make()
    for host in ("h2", "h1", "h2"):
        moving.migrate(host)
        assert (moving.shown(), moving.who()) == (host, [host])
        wait_until(lambda: not moving.migrations(), "nothing is left")


def test_what_cannot_be_moved_is_said(moving: Moving) -> None:
    moving.make(on=True)
    moving.host("h3", driver="another")
    with pytest.raises(WrongState, match="move it live"):
        moving.migrate()
    for host, error in (("h1", "already"), ("h3", "by another")):
        with pytest.raises(WrongState, match=error):
            moving.migrate(host, live=True)
    with pytest.raises(NotFound):
        moving.migrate("h9", live=True)
    with pytest.raises(InvalidRequest):
        moving.migrate(live=True, downtime_ms_max=10**6)
    moving.agents["h2"].memory_free_bytes = 1
    moving.agents["h2"].report()
    for host in ("h2", ""):
        with pytest.raises(Overloaded, match="no host has"):
            moving.migrate(host, live=True)
    with pytest.raises(NotFound):
        list(
            stream(
                moving.stage.stub.MigrateVm,
                pb.MigrateVmRequest(vm_id=vm_id_of(9), host="h2"),
                peer="center",
                timeout_seconds=WAIT_SECONDS,
            )
        )
    assert moving.migrations() == []
    assert moving.who() == ["h1"]


@pytest.mark.parametrize(("name", "method"), [("h2", "ExpectVm"), ("h1", "HandOverVm")])
def test_a_host_that_refuses_leaves_the_vm_where_it_was(moving: Moving, name: str, method: str) -> None:
    moving.make(on=True)
    moving.agents[name].vmm.errors[method] = OutOfSpace("the disk is full")
    with pytest.raises(OutOfSpace, match="full"):
        moving.migrate(live=True)
    assert (moving.shown(), moving.who()) == ("h1", ["h1"])
    wait_until(lambda: not moving.migrations(), "nothing is left")
    assert moving.agents["h2"].fake.record(VM) is None
    del moving.agents[name].vmm.errors[method]
    moving.migrate(live=True)
    assert moving.who() == ["h2"]


def test_a_host_that_lives_and_never_hands_over_is_given_up(moving: Moving) -> None:
    moving.make()
    moving.agents["h1"].vmm.errors["HandOverVm"] = PeerUnavailable("the new host does not answer")
    with pytest.raises(PeerUnavailable, match="new host"):
        moving.migrate()
    assert moving.who() == ["h1"]


def test_nothing_else_is_asked_of_a_vm_that_moves(moving: Moving) -> None:
    moving.make()
    new = moving.agents["h2"].vmm
    new.errors["AcceptVm"] = PeerUnavailable("an array is away")
    following = moving.stream()
    waits = next(one for one in following if one.waits_for)
    assert waits.phase == "accept"
    assert "whether it has the VM is not known" in waits.waits_for
    listed = moving.wait_phase("accept")
    assert (listed.vm_name, listed.source, listed.destination) == ("web1", "h1", "h2")
    assert "an array is away" in listed.waits_for
    assert moving.shown() == "h1"  # until it is somebody else's
    assert moving.who() == []
    with pytest.raises(PeerUnavailable, match=r"(?s)being moved.*accept.*an array is away"):
        moving.stage.prepare(VM)
    power = pb.PowerVmRequest(vm_id=VM, power=vm_pb2.POWER_STATE_ON)
    with pytest.raises(PeerUnavailable, match="being moved"):
        moving.stage.ask("PowerVm", power)
    moving.host("h3")
    with pytest.raises(Conflict, match="being moved to h2"):
        moving.migrate("h3")
    again = moving.stream("")
    assert next(again).phase == "accept"
    del new.errors["AcceptVm"]
    assert [list(one)[-1].host.name for one in (following, again)] == ["h2", "h2"]
    assert moving.who() == ["h2"]


def test_a_move_goes_on_when_its_caller_leaves(moving: Moving) -> None:
    moving.make(on=True)
    moving.agents["h1"].vmm.hanging.add("HandOverVm")
    with moving.stream(live=True) as news:
        next(one for one in news if one.phase == "hand over")
    moving.agents["h1"].vmm.go.set()
    wait_until(lambda: moving.who() == ["h2"] and not moving.migrations(), "it ends", seconds=20)
    assert moving.shown() == "h2"


@pytest.mark.parametrize("method", ["HandOverVm", "AcceptVm", "FinishMigration"])
def test_a_restarted_center_brings_a_move_to_its_end(moving: Moving, method: str) -> None:
    moving.make(on=True)
    phase = {"HandOverVm": "hand over", "AcceptVm": "accept", "FinishMigration": "finish"}[method]
    host = moving.agents["h2" if method == "AcceptVm" else "h1"]
    host.vmm.hanging.add(method)
    with moving.stream(live=True) as news:
        next(one for one in news if one.phase == phase)
    for awaited in (method, "ListVms"):  # a host that is away
        host.vmm.errors[awaited] = PeerUnavailable("away")
    host.vmm.go.set()
    moving.stage.restart()
    moving.wait_phase(phase)
    if method == "FinishMigration":
        assert moving.shown() == "h2"
        moving.agents["h1"].report()  # which still tells of it
        assert moving.shown() == "h2"
    for agent in moving.agents.values():
        agent.vmm.errors.clear()
    wait_until(lambda: not moving.migrations(), "it ends", seconds=20)
    assert (moving.who(), moving.shown()) == (["h2"], "h2")


def test_a_new_host_that_is_gone_for_good_gives_the_vm_back(moving: Moving) -> None:
    moving.make()
    moving.agents["h2"].vmm.errors["AcceptVm"] = PeerUnavailable("gone")
    following = moving.stream()
    next(one for one in following if one.waits_for)
    moving.stage.ask("RemoveHost", pb.RemoveHostRequest(name="h2"))
    with pytest.raises(NotFound, match="h2"):
        list(following)
    assert (moving.who(), moving.shown()) == (["h1"], "h1")
    left = moving.wait_phase("undo")
    assert "forgotten" in left.undone_because
    moving.agents["h2"].register()  # it is back, and told to forget its place
    moving.agents["h2"].report()
    wait_until(lambda: not moving.migrations(), "nothing is left", seconds=20)
    assert moving.agents["h2"].fake.record(VM) is None


def test_an_old_host_that_is_gone_for_good_frees_the_place(moving: Moving) -> None:
    moving.make()
    old = moving.agents["h1"].vmm
    old.hanging.add("HandOverVm")
    following = moving.stream()
    next(one for one in following if one.phase == "hand over")
    for method in ("HandOverVm", "ListVms"):
        old.errors[method] = PeerUnavailable("gone")
    old.go.set()
    next(one for one in following if one.waits_for)
    moving.stage.ask("RemoveHost", pb.RemoveHostRequest(name="h1"))
    with pytest.raises(NotFound, match="h1"):
        list(following)
    assert moving.agents["h2"].fake.record(VM) is None
    assert moving.wait_phase("undo").source == "h1"


# -- hosts and history --------------------------------------------------------------------------


def test_hosts_are_asked_now_all_or_one(moving: Moving) -> None:
    for name, number in (("h1", 5), ("h2", 6)):
        moving.agents[name].fake.make(vm_id_of(number), f"vm{number}")
    asked = moving.stage.ask("SynchronizeHosts", pb.SynchronizeHostsRequest()).hosts
    assert [(host.name, host.vm_count) for host in asked] == [("h1", 1), ("h2", 1)]
    moving.agents["h1"].vmm.errors["ListVms"] = PeerUnavailable("away")
    moving.agents["h2"].fake.make(vm_id_of(7), "vm7")
    moving.stage.ask("SynchronizeHosts", pb.SynchronizeHostsRequest())
    assert len(moving.stage.vms()) == 3
    with pytest.raises(PeerUnavailable, match="away"):
        moving.stage.ask("SynchronizeHosts", pb.SynchronizeHostsRequest(host="h1"))
    with pytest.raises(NotFound):
        moving.stage.ask("SynchronizeHosts", pb.SynchronizeHostsRequest(host="h9"))


def test_history_comes_in_pages_by_id_or_name_and_outlives_the_vm(moving: Moving) -> None:
    moving.make()
    for host in ("h2", "h1"):
        moving.migrate(host)
        wait_until(lambda: not moving.migrations(), "nothing is left")
    seen, token = [], ""
    while True:
        request = pb.GetVmHistoryRequest(name="web1", page_size=1, page_token=token)
        answer = moving.stage.ask("GetVmHistory", request)
        seen += [entry.host for entry in answer.entries]
        token = answer.next_page_token
        if not token:
            break
    assert seen == ["h1", "h2", "h1"]
    moving.agents["h1"].report()
    moving.agents["h1"].fake.machines.delete(VM, keep_volumes=True, release_snapshots=lambda _: None)
    moving.agents["h1"].report()
    last = moving.stage.ask("GetVmHistory", pb.GetVmHistoryRequest(vm_id=VM)).entries[0]
    assert (last.removed, last.host, last.config.name) == (True, "h1", "web1")
    with pytest.raises(NotFound):
        moving.stage.ask("GetVmHistory", pb.GetVmHistoryRequest(name="web1"))
    for wrong in (pb.GetVmHistoryRequest(), pb.GetVmHistoryRequest(vm_id=VM, page_token="x")):
        with pytest.raises(InvalidRequest):
            moving.stage.ask("GetVmHistory", wrong)


def test_a_busy_host_comes_after_the_others_however_much_memory_it_has(moving: Moving) -> None:
    place = pb.PlaceVmRequest(memory_bytes=1, cpus=1)
    moving.agents["h1"].memory_free_bytes += 1
    moving.agents["h1"].report()
    assert moving.stage.ask("PlaceVm", place).host.name == "h1"
    moving.agents["h1"].load_percent = 90
    moving.agents["h1"].report()
    placed = moving.stage.ask("PlaceVm", place).host
    assert (placed.name, placed.load_percent) == ("h2", 0)
    moving.agents["h2"].load_percent = 95
    moving.agents["h2"].report()
    assert moving.stage.ask("PlaceVm", place).host.name == "h1"


def test_eight_move_at_once(moving: Moving) -> None:
    moving.agents["h1"].vmm.hanging.add("HandOverVm")
    for number in range(1, 10):
        moving.agents["h1"].fake.make(vm_id_of(number), f"vm{number}")
    moving.agents["h1"].report()

    def begin(number: int) -> ResponseStream[pb.MigrateVmResponse]:
        request = pb.MigrateVmRequest(vm_id=vm_id_of(number), host="h2")
        return stream(moving.stage.stub.MigrateVm, request, peer="center", timeout_seconds=WAIT_SECONDS)

    running = [begin(number) for number in range(1, 9)]
    for one in running:
        next(news for news in one if news.phase == "hand over")
    with pytest.raises(Overloaded, match="being moved"):
        list(begin(9))
    moving.agents["h1"].vmm.go.set()
    threads = [threading.Thread(target=list, args=(one,)) for one in running]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(moving.agents["h2"].fake.told()) == 8
