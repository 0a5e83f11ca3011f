"""Watching a virtual center, restarting it, and asking it the same thing twice at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from arraylift.errors import Conflict, Overloaded, PeerUnavailable
from arraylift.ids import VmId
from arraylift.rpc.channel import connect, stream
from arraylift.v1 import virtual_center_pb2 as pb
from arraylift.v1 import virtual_center_pb2_grpc as pb_grpc
from arraylift.v1 import vm_pb2
from tests.fakes.tcp_cut import CutRelay
from tests.unit.vcenter.center_stage import WAIT_SECONDS, Stage, provision
from tests.unit.vcenter.material import vm_id_of
from tests.wire.stage import House
from vcenter import watch


@pytest.fixture
def stage(house: House, tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(house, tmp_path / "state")
    yield stage
    stage.close()


# -- watching -----------------------------------------------------------------------------------


def test_a_watcher_sees_a_listing_then_every_change(stage: Stage) -> None:
    agent = stage.host("h1", 1)
    with stage.watch() as watching:
        first = next(watching)
        assert first.listing
        assert [vm.vm_id for vm in first.vms] == [vm_id_of(1)]
        agent.add_vm(2)
        agent.report()
        made = next(watching)
        assert ([vm.vm_id for vm in made.vms], made.listing) == ([vm_id_of(2)], False)
        del agent.vms[vm_id_of(1)]
        agent.report()
        gone = next(watching)
        assert (list(gone.removed_vm_ids), list(gone.vms)) == ([vm_id_of(1)], [])
    assert first.revision < made.revision < gone.revision
    with stage.watch(first.revision) as resumed:
        both = next(resumed)
    assert [vm.vm_id for vm in both.vms] == [vm_id_of(2)]
    assert list(both.removed_vm_ids) == [vm_id_of(1)]
    assert (both.listing, both.revision) == (False, gone.revision)


def test_a_watcher_that_is_cut_again_and_again_misses_nothing(stage: Stage) -> None:
    """Every few changes its connection breaks, wherever it is; it goes on after its last revision."""
    agent = stage.host("h1", *range(1, 4))
    seen: dict[str, vm_pb2.Vm] = {}
    revision, cuts, listings = 0, 0, 0
    with CutRelay(stage.server.address) as relay:
        channel = connect(relay.address, stage.house.identity("operator"), "vcenter", "v1")
        stub = pb_grpc.VirtualCenterServiceStub(channel)

        def change_and_cut() -> None:
            for number in range(4, 40):
                agent.add_vm(number)
                if number % 3 == 0:
                    del agent.vms[vm_id_of(number - 2)]
                agent.report()
                if number % 5 == 0:
                    relay.cut()

        changing = threading.Thread(target=change_and_cut)
        changing.start()
        wanted = {vm_id_of(number) for number in range(1, 40)}
        wanted -= {vm_id_of(number - 2) for number in range(6, 40, 3)}
        deadline = time.monotonic() + WAIT_SECONDS
        while changing.is_alive() or seen.keys() != wanted:
            assert time.monotonic() < deadline, sorted(wanted ^ seen.keys())
            request = pb.WatchInventoryRequest(after_revision=revision)
            watching = stream(stub.WatchInventory, request, peer="center", timeout_seconds=5)
            try:
                for event in watching:
                    listings += event.listing
                    seen.update((vm.vm_id, vm) for vm in event.vms)
                    for vm_id in event.removed_vm_ids:
                        seen.pop(vm_id, None)
                    revision = event.revision or revision
                    if not changing.is_alive() and seen.keys() == wanted:
                        break
            except PeerUnavailable:
                cuts += 1
            watching.cancel()
        changing.join()
        channel.close()
    assert cuts
    assert listings == 1, "it never had to begin anew"
    assert {vm.vm_id: vm for vm in stage.vms()} == seen


def test_a_watcher_of_an_unknown_past_begins_anew(stage: Stage) -> None:
    agent = stage.host("h1", 1)
    with stage.watch() as watching:
        revision = next(watching).revision
    agent.add_vm(2)
    agent.report()
    stage.restart()
    for unknown in (revision, 1 << 62):
        with stage.watch(unknown) as watching:
            first = next(watching)
            assert first.listing
            assert len(first.vms) == 2


def test_watchers_are_limited_and_make_room_when_they_go(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "WATCHERS_MAX", 2)
    stage.host("h1", 1)
    watching = [stage.watch() for _ in range(2)]
    for one in watching:
        next(one)
    with pytest.raises(Overloaded, match="2 watchers"):
        next(stage.watch())
    watching[0].cancel()
    for _ in range(200):
        try:
            assert next(stage.watch()).listing
            return
        except Overloaded:
            threading.Event().wait(0.05)
    raise AssertionError("the watcher that left still counts")


def test_the_center_can_be_closed_under_its_watchers(stage: Stage) -> None:
    stage.host("h1", 1)
    watching = stage.watch()
    next(watching)
    stage.built.close()
    with pytest.raises(PeerUnavailable, match="shutting down"):
        next(watching)
    stage._closing.clear()
    stage.server.stop(0)
    stage._start("127.0.0.1:0")


# -- restart ------------------------------------------------------------------------------------


def test_a_restarted_center_knows_everything_and_counts_silence_anew(stage: Stage) -> None:
    stage.host("h1", 1)
    stage.host("h2", 2)
    stage.silence("h2")
    before = stage.vms()
    stage.restart()
    assert stage.vms() == before
    states = {host.name: host.state for host in stage.ask("ListHosts", pb.ListHostsRequest()).hosts}
    assert states == {"h1": pb.HOST_STATE_LOST, "h2": pb.HOST_STATE_ALIVE}
    assert stage.prepare(vm_id_of(2)).host.name == "h2"


def test_two_requests_for_one_vm_at_once_are_one_after_the_other(stage: Stage) -> None:
    agent = stage.host("h1")
    entered, go = threading.Event(), threading.Event()
    original = agent.vmm.fake.create_vm

    def slow(*args: Any, **kwargs: Any) -> Any:
        entered.set()
        go.wait(WAIT_SECONDS)
        return original(*args, **kwargs)

    agent.vmm.fake.create_vm = slow  # type: ignore[method-assign]
    running = threading.Thread(target=provision, args=(stage, 1))
    running.start()
    assert entered.wait(WAIT_SECONDS)
    for number, name in ((1, "other"), (2, "vm1")):
        with pytest.raises(Conflict, match="being made right now"):
            provision(stage, number, name)
    go.set()
    running.join(WAIT_SECONDS)
    assert [VmId(vm.vm_id) for vm in stage.vms()] == [vm_id_of(1)]


def test_every_call_has_a_deadline(stage: Stage) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stage.stub.ListHosts(pb.ListHostsRequest())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
