"""The virtual center over real gRPC and TLS, with fake hosts: what every method answers and refuses."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from arraylift.errors import (
    AlreadyExists,
    Corruption,
    InvalidRequest,
    NotFound,
    NotPermitted,
    Overloaded,
    PeerUnavailable,
    WrongState,
)
from arraylift.rpc.channel import call
from arraylift.v1 import virtual_center_pb2 as pb
from arraylift.v1 import vm_pb2
from arraylift.vm import convert
from arraylift.vm.types import Disk, PowerState
from tests.unit.vcenter.center_stage import WAIT_SECONDS, Stage, listing_of, provision
from tests.unit.vcenter.fake_host import GIB
from tests.unit.vcenter.material import config, make_vm, vm_id_of
from tests.wire.stage import House


@pytest.fixture
def stage(house: House, tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(house, tmp_path / "state")
    yield stage
    stage.close()


# -- hosts --------------------------------------------------------------------------------------


def test_a_host_reports_and_its_vms_are_listed_and_found(stage: Stage) -> None:
    stage.host("h1", 2, 1)
    assert [vm.config.name for vm in stage.vms()] == ["vm1", "vm2"]
    assert stage.vms("h1") == stage.vms()
    (host,) = stage.ask("ListHosts", pb.ListHostsRequest()).hosts
    assert (host.name, host.state, host.vm_count, host.driver) == ("h1", pb.HOST_STATE_ALIVE, 2, "fake")
    assert host.memory_free_bytes == 8 * GIB
    by_name = stage.ask("GetManagedVm", pb.GetManagedVmRequest(name="vm2"))
    by_id = stage.ask("GetManagedVm", pb.GetManagedVmRequest(vm_id=vm_id_of(2)))
    assert by_name == by_id
    assert by_name.vm == convert.vm_to_pb(stage.hosts["h1"].vms[vm_id_of(2)])
    assert by_name.host.address == stage.hosts["h1"].server.address


def test_a_host_speaks_for_itself_only(stage: Stage) -> None:
    agent = stage.host("h1", 1)
    stage.host("h2")
    with pytest.raises(NotPermitted):
        agent.register("h2")
    with pytest.raises(NotPermitted):
        agent.report(name="h2")
    with pytest.raises(NotPermitted):
        stage.ask("RegisterHost", pb.RegisterHostRequest(name="one", address="127.0.0.1:1"))
    # A VM of another host in one's own report is refused as a whole.
    agent.vms[vm_id_of(5)] = make_vm(5, "h2")
    with pytest.raises(InvalidRequest, match="host h2"):
        agent.report()
    assert [vm.vm_id for vm in stage.vms()] == [vm_id_of(1)]


@pytest.mark.parametrize("address", ["", "nowhere", "127.0.0.1", "127.0.0.1:0", "a/b:1"])
def test_a_bad_address_is_refused(stage: Stage, address: str) -> None:
    agent = stage.host("h1")
    with pytest.raises(InvalidRequest):
        call(
            agent._center.RegisterHost,
            pb.RegisterHostRequest(name="h1", address=address),
            peer="center",
        )


def test_a_report_before_registration_and_after_removal(stage: Stage) -> None:
    agent = stage.host("h1", 1)
    stage.ask("RemoveHost", pb.RemoveHostRequest(name="h1"))
    assert stage.vms() == []
    with pytest.raises(NotFound):
        agent.report()
    agent.register()
    agent.report()
    assert len(stage.vms()) == 1
    with pytest.raises(NotFound):
        stage.ask("RemoveHost", pb.RemoveHostRequest(name="h9"))
    stage.ask("RemoveHost", pb.RemoveHostRequest(name="h9", missing_ok=True))
    with pytest.raises(NotFound):
        stage.vms("h9")


def test_an_older_report_is_ignored(stage: Stage) -> None:
    agent = stage.host("h1", 1)
    agent.report(sequence=9)
    agent.add_vm(2)
    agent.report(sequence=8)
    assert len(stage.vms()) == 1
    agent.report(sequence=10)
    assert len(stage.vms()) == 2


def test_malformed_reports_are_refused(stage: Stage) -> None:
    agent = stage.host("h1", 1)
    good = convert.vm_to_pb(make_vm(2))
    requests = [pb.ReportInventoryRequest(name="h1", sequence=0)]
    for change in (
        {"vm_id": "../../etc"},
        {"power": vm_pb2.POWER_STATE_UNSPECIFIED},
        {"revision": 2**63},
        {"config": vm_pb2.VmConfig(name="a/b")},
        {"config": vm_pb2.VmConfig(name="a", disks=[vm_pb2.Disk(name="d")] * 2)},
        {"config": vm_pb2.VmConfig(name="a", uuid="x" * 256)},
        {"config": vm_pb2.VmConfig(name="a", networks=[vm_pb2.NetworkInterface()] * 17)},
    ):
        bad = vm_pb2.Vm()
        bad.CopyFrom(good)
        for name, value in change.items():
            if isinstance(value, vm_pb2.VmConfig):
                bad.config.CopyFrom(value)
            else:
                setattr(bad, name, value)
        requests.append(pb.ReportInventoryRequest(name="h1", sequence=5, vms=[bad]))
    requests.append(pb.ReportInventoryRequest(name="h1", sequence=5, vms=[good, good]))
    for request in requests:
        with pytest.raises(InvalidRequest):
            call(agent._center.ReportInventory, request, peer="center")
    assert [vm.vm_id for vm in stage.vms()] == [vm_id_of(1)]


# -- finding ------------------------------------------------------------------------------------


def test_two_vms_of_one_name_are_found_by_id(stage: Stage) -> None:
    stage.host("h1").add_vm(1, "web")
    stage.host("h2").add_vm(2, "web")
    for agent in stage.hosts.values():
        agent.report()
    with pytest.raises(WrongState, match="2 VMs are named web"):
        stage.ask("GetManagedVm", pb.GetManagedVmRequest(name="web"))
    assert stage.ask("GetManagedVm", pb.GetManagedVmRequest(vm_id=vm_id_of(2))).vm.host == "h2"


def test_questions_that_name_no_vm(stage: Stage) -> None:
    with pytest.raises(NotFound):
        stage.ask("GetManagedVm", pb.GetManagedVmRequest(name="none"))
    for request in (pb.GetManagedVmRequest(), pb.GetManagedVmRequest(vm_id="1", name="a")):
        with pytest.raises(InvalidRequest):
            stage.ask("GetManagedVm", request)


def test_a_listing_beyond_one_message_comes_in_pages(stage: Stage) -> None:
    agent = stage.host("h1")
    other = stage.host("h2")
    for number in range(1, 9_001):
        (agent if number % 2 else other).add_vm(number, f"{number:05d}-" + "x" * 200)
    agent.report()
    other.report()
    names = [vm.config.name for vm in stage.vms()]
    assert names == sorted(names)
    assert len(set(names)) == 9_000
    assert len(stage.vms("h1")) == 4_500
    few = stage.ask("ListManagedVms", pb.ListManagedVmsRequest(host="h2", page_size=3))
    assert [vm.config.name[:5] for vm in few.vms] == ["00002", "00004", "00006"]
    with pytest.raises(InvalidRequest, match="page token"):
        stage.ask("ListManagedVms", pb.ListManagedVmsRequest(page_token="3"))
    first, *rest = listing_of(stage.watch())
    assert first.listing
    assert not any(piece.listing for piece in rest)
    assert [piece.revision for piece in (first, *rest)[:-1]] == [0] * len(rest)
    assert sum(len(piece.vms) for piece in (first, *rest)) == 9_000


# -- claim 1 ------------------------------------------------------------------------------------


def test_prepare_backup_asks_the_vms_host_and_answers_what_a_backup_needs(stage: Stage) -> None:
    stage.host("h1", 1)
    second = stage.host("h2", 2)
    answer = stage.prepare(vm_id_of(2))
    assert answer.host.name == "h2"
    assert answer.vm.config == convert.config_to_pb(config("vm2"))
    assert answer.snapshot.vm_id == vm_id_of(2)
    assert answer.snapshot.level == vm_pb2.CONSISTENCY_LEVEL_FILESYSTEM
    (disk,) = answer.snapshot.disks
    assert (disk.array, disk.array_address, disk.volume_name) == ("a1", "127.0.0.1:7403", "vm2-0")
    assert stage.hosts["h1"].vmm.fake.calls == []
    # The same again returns the same snapshot; another name another one.
    assert stage.prepare(vm_id_of(2)).snapshot == answer.snapshot
    assert stage.prepare(vm_id_of(2), "job2").snapshot.vm_snapshot_id != answer.snapshot.vm_snapshot_id
    assert len(second.vmm.fake.snapshots["h2"]) == 2


def test_prepare_backup_of_nothing(stage: Stage) -> None:
    stage.host("h1", 1)
    with pytest.raises(NotFound):
        stage.prepare(vm_id_of(7))
    for bad in (
        pb.PrepareBackupRequest(vm_id="x", name="job"),
        pb.PrepareBackupRequest(vm_id=vm_id_of(1), name=""),
        pb.PrepareBackupRequest(vm_id=vm_id_of(1), name="job", lease_seconds=5),
        pb.PrepareBackupRequest(vm_id=vm_id_of(1), name="job", level_min=9),  # type: ignore[arg-type]
        pb.PrepareBackupRequest(vm_id=vm_id_of(1), name="job", exclude_disks=["d"] * 65),
    ):
        with pytest.raises(InvalidRequest):
            stage.ask("PrepareBackup", bad)
    assert stage.hosts["h1"].vmm.fake.calls == []


def test_the_hosts_own_refusal_reaches_the_caller(stage: Stage) -> None:
    agent = stage.host("h1", 1)
    agent.vmm.fake.failing["h1"] = WrongState("level not reached", next_step="start the guest agent")
    with pytest.raises(WrongState, match="level not reached") as caught:
        stage.prepare(vm_id_of(1))
    assert caught.value.next_step == "start the guest agent"


def test_a_vm_that_moved_unreported_is_looked_for_once_more(stage: Stage) -> None:
    first, second = stage.host("h1", 1), stage.host("h2")
    second.vms[vm_id_of(1)] = make_vm(1, "h2", power=PowerState.ON, revision=2)
    del first.vms[vm_id_of(1)]
    # Neither host has said so: the first is asked for all it has, and nobody claims the VM.
    with pytest.raises(PeerUnavailable, match="no longer has VM") as caught:
        stage.prepare(vm_id_of(1))
    assert "retry" in caught.value.next_step
    assert [method for _, method in first.vmm.fake.calls] == ["create_vm_snapshot", "list_vms"]
    second.report()
    assert stage.prepare(vm_id_of(1)).host.name == "h2"


def test_a_vm_claimed_by_two_is_found_where_it_is(stage: Stage) -> None:
    """The old host's claim runs and is newer; but it does not know the VM any more."""
    second = stage.host("h2", 1, power=PowerState.OFF)
    first = stage.host("h1", 1)
    assert stage.vms()[0].host == "h1"
    del first.vms[vm_id_of(1)]
    assert stage.prepare(vm_id_of(1)).host.name == "h2"
    assert ("h1", "list_vms") in first.vmm.fake.calls
    assert second.vmm.fake.snapshots["h2"]


def test_a_vm_that_is_gone_is_first_unavailable_then_not_found(stage: Stage) -> None:
    agent = stage.host("h1", 1)
    agent.vms.clear()
    with pytest.raises(PeerUnavailable):
        stage.prepare(vm_id_of(1))
    with pytest.raises(NotFound):
        stage.prepare(vm_id_of(1))


def test_a_snapshot_is_released_and_renewed_where_it_lies_although_the_vm_moved(stage: Stage) -> None:
    first, second = stage.host("h1", 1), stage.host("h2")
    made = stage.prepare(vm_id_of(1)).snapshot.vm_snapshot_id
    second.vms[vm_id_of(1)] = make_vm(1, "h2", power=PowerState.ON, revision=2)
    del first.vms[vm_id_of(1)]
    first.report()
    second.report()
    stage.restart()
    stage.ask("RenewSnapshot", pb.RenewSnapshotRequest(vm_id=vm_id_of(1), vm_snapshot_id=made))
    release = pb.ReleaseSnapshotRequest(vm_id=vm_id_of(1), vm_snapshot_id=made)
    stage.ask("ReleaseSnapshot", release)
    assert first.vmm.fake.snapshots["h1"] == {}
    stage.ask("ReleaseSnapshot", release)  # a missing one is no error
    with pytest.raises(NotFound):
        stage.ask("RenewSnapshot", pb.RenewSnapshotRequest(vm_id=vm_id_of(1), vm_snapshot_id=made))


# -- hosts that fail ----------------------------------------------------------------------------


def test_a_lost_host_keeps_its_vms_marked_and_calls_fail_at_once(stage: Stage) -> None:
    agent = stage.host("h1", 1)
    stage.host("h2", 2)
    stage.silence("h2")
    assert [(vm.config.name, vm.power) for vm in stage.vms()] == [
        ("vm1", vm_pb2.POWER_STATE_UNSPECIFIED),
        ("vm2", vm_pb2.POWER_STATE_ON),
    ]
    calls = [
        ("PrepareBackup", pb.PrepareBackupRequest(vm_id=vm_id_of(1), name="job")),
        ("PowerVm", pb.PowerVmRequest(vm_id=vm_id_of(1), power=vm_pb2.POWER_STATE_OFF)),
        ("RemoveVm", pb.RemoveVmRequest(vm_id=vm_id_of(1), missing_ok=True)),
        ("ReleaseSnapshot", pb.ReleaseSnapshotRequest(vm_id=vm_id_of(1), vm_snapshot_id="a" * 32)),
        (
            "ProvisionVm",
            pb.ProvisionVmRequest(vm_id=vm_id_of(5), config=convert.config_to_pb(config("n")), host="h1"),
        ),
    ]
    for method, request in calls:
        with pytest.raises(PeerUnavailable, match=r"host h1 .* has not reported") as caught:
            stage.ask(method, request)
        assert "remove it" in caught.value.next_step
    assert agent.vmm.fake.calls == []
    agent.report()
    assert stage.prepare(vm_id_of(1)).host.name == "h1"
    assert stage.vms()[0].power == vm_pb2.POWER_STATE_ON


def test_a_host_that_does_not_listen_is_unavailable(stage: Stage) -> None:
    agent = stage.host("h1", 1)
    agent.server.stop(0)
    with pytest.raises(PeerUnavailable, match="host h1"):
        stage.prepare(vm_id_of(1))


def test_a_host_that_hangs_is_unavailable_and_blocks_nobody(stage: Stage) -> None:
    agent, other = stage.host("h1", 1), stage.host("h2", 2)
    agent.vmm.hang = threading.Event()
    errors: list[Exception] = []

    def prepare() -> None:
        try:
            stage.prepare(vm_id_of(1), seconds=3.0)
        except PeerUnavailable as error:
            errors.append(error)

    waiting = threading.Thread(target=prepare)
    waiting.start()
    # Meanwhile everything else goes on, the hanging host's own reports included.
    other.report()
    agent.report()
    assert stage.prepare(vm_id_of(2)).host.name == "h2"
    assert len(stage.vms()) == 2
    assert waiting.is_alive()
    waiting.join(WAIT_SECONDS)
    (error,) = errors
    assert "did not finish CreateVmSnapshot" in str(error)
    assert "repeat" in str(error)


def test_a_host_agent_that_answers_for_another_changes_nothing(stage: Stage) -> None:
    first, second = stage.host("h1", 1), stage.host("h2", 2)
    before = stage.vms()
    first.vms[vm_id_of(1)] = make_vm(1, "h2", power=PowerState.OFF)
    on = pb.PowerVmRequest(vm_id=vm_id_of(1), power=vm_pb2.POWER_STATE_ON)
    with pytest.raises(Corruption, match="of host h2; it was asked as host h1"):
        stage.ask("PowerVm", on)
    assert stage.vms() == before
    # Nor is one asked under another's name, wherever that says it is.
    first.register(address=second.server.address)
    second.vms[vm_id_of(1)] = make_vm(1, "h2", power=PowerState.OFF)
    with pytest.raises(PeerUnavailable, match="whoever answers is not host h1"):
        stage.ask("PowerVm", on)
    assert second.vms[vm_id_of(1)].power is PowerState.OFF
    assert stage.vms() == before


# -- making and changing ------------------------------------------------------------------------


def test_a_new_vm_is_listed_at_once_and_an_older_report_does_not_take_it_away(stage: Stage) -> None:
    agent = stage.host("h1")
    made = provision(stage, 1)
    assert made.host.name == "h1"
    assert stage.vms() == [made.vm]
    vms, agent.vmm.fake.vms["h1"] = agent.vmm.fake.vms["h1"], {}
    agent.report()  # made before the VM was, arrives after
    assert stage.vms() == [made.vm]
    agent.vmm.fake.vms["h1"] = vms
    on = pb.PowerVmRequest(vm_id=vm_id_of(1), power=vm_pb2.POWER_STATE_ON)
    assert stage.ask("PowerVm", on).vm.power == vm_pb2.POWER_STATE_ON
    assert stage.vms()[0].power == vm_pb2.POWER_STATE_ON
    disk = convert.disk_to_pb(Disk("extra", "a1", "127.0.0.1:7403", "extra", 4096))
    attach = pb.AttachVmVolumeRequest(vm_id=vm_id_of(1), disk=disk)
    assert [one.name for one in stage.ask("AttachVmVolume", attach).vm.config.disks] == ["disk0", "extra"]
    assert stage.ask("AttachVmVolume", attach).vm == stage.vms()[0]
    off = pb.PowerVmRequest(vm_id=vm_id_of(1), power=vm_pb2.POWER_STATE_OFF, grace_seconds=1)
    assert stage.ask("PowerVm", off).vm == stage.vms()[0]
    remove = pb.RemoveVmRequest(vm_id=vm_id_of(1))
    stage.ask("RemoveVm", remove)
    assert stage.vms() == []
    with pytest.raises(NotFound):
        stage.ask("RemoveVm", remove)
    stage.ask("RemoveVm", pb.RemoveVmRequest(vm_id=vm_id_of(1), missing_ok=True))


def test_a_vm_is_made_once_however_often_it_is_asked_for(stage: Stage) -> None:
    first, second = stage.host("h1"), stage.host("h2")
    second.memory_free_bytes = 2 * GIB
    second.report()
    first.vmm.fake.dying["h1"] = PeerUnavailable("cut after the work was done")
    with pytest.raises(PeerUnavailable):
        provision(stage, 1)
    # By now the other host is the better one, and the center was restarted.
    first.memory_free_bytes = 1 * GIB
    first.report(sequence=first.sequence + 1)
    first.vmm.fake.vms["h1"], made = {}, first.vmm.fake.vms["h1"]
    first.report()
    first.vmm.fake.vms["h1"] = made
    stage.restart()
    first.vmm.fake.dying.clear()
    assert provision(stage, 1).host.name == "h1"
    assert second.vms == {}
    assert provision(stage, 1).host.name == "h1"
    with pytest.raises(AlreadyExists, match="on host h1"):
        provision(stage, 1, host="h2")


def test_a_name_is_given_once(stage: Stage) -> None:
    stage.host("h1", 1)
    stage.host("h2")
    with pytest.raises(AlreadyExists, match="is named vm1"):
        provision(stage, 2, "vm1", host="h2")
    assert stage.hosts["h2"].vmm.fake.calls == []


def test_placement_prefers_hosts_that_use_the_arrays_then_free_memory(stage: Stage) -> None:
    stage.host("h1", 1)  # uses a1
    stage.host("h2").memory_free_bytes = 12 * GIB
    stage.hosts["h2"].report()

    def placed(memory_gib: int, *arrays: str, cpus: int = 2) -> str:
        request = pb.PlaceVmRequest(memory_bytes=memory_gib * GIB, cpus=cpus, arrays=arrays)
        answer: pb.PlaceVmResponse = stage.ask("PlaceVm", request)
        return answer.host.name

    assert placed(1, "a1") == "h1"
    assert placed(1) == "h2"
    assert placed(1, "a2") == "h2"
    assert placed(10, "a1") == "h2"
    with pytest.raises(Overloaded, match="no host has 13"):
        placed(13)
    with pytest.raises(Overloaded):
        placed(1, cpus=64)
    stage.silence("h1")
    assert placed(1) == "h1"
    stage.silence()
    with pytest.raises(PeerUnavailable, match="none of 2 hosts"):
        placed(1)


def test_a_change_that_says_nothing_is_refused(stage: Stage) -> None:
    stage.host("h1", 1)
    for bad in (
        pb.PowerVmRequest(vm_id=vm_id_of(1)),
        pb.PowerVmRequest(vm_id=vm_id_of(1), power=vm_pb2.POWER_STATE_OFF, grace_seconds=4000),
        pb.PowerVmRequest(vm_id="1", power=vm_pb2.POWER_STATE_OFF),
    ):
        with pytest.raises(InvalidRequest):
            stage.ask("PowerVm", bad)
