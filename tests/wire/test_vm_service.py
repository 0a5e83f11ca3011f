"""VmService over real gRPC in process: its errors' classes, its streams, who may call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from arraylift.durable import RealFiles
from arraylift.errors import (
    AlreadyExists,
    InvalidRequest,
    NotFound,
    NotPermitted,
    PeerUnavailable,
    WrongState,
)
from arraylift.ids import random_id
from arraylift.rpc import pages
from arraylift.rpc.channel import call, connect, stream
from arraylift.rpc.server import RpcServer, service_of
from arraylift.sizes import MIB
from arraylift.v1 import vm_pb2 as pb
from arraylift.v1 import vm_pb2_grpc
from hostagent.guest_files import GuestFiles
from hostagent.locks import KeyedLocks
from hostagent.migration import Migrations
from hostagent.service.vms import VmEdge
from tests.unit.hostagent.stage import Stage, staged
from tests.wire.stage import House

ID = "0" * 32


@pytest.fixture
def stage(tmp_path: Path, house: House) -> Iterator[Stage]:
    with staged(tmp_path, house) as one:
        yield one


@pytest.fixture
def channel(stage: Stage, house: House, tmp_path: Path) -> Iterator[Callable[[str], grpc.Channel]]:
    files = GuestFiles(RealFiles(), str(tmp_path / "files"), stage.store, stage.driver)
    migrations = Migrations(stage.store, stage.driver, KeyedLocks("VM"), stage.machines)
    edge = VmEdge("host1", stage.machines, stage.snapshots, files, migrations)
    service = service_of(vm_pb2_grpc.add_VmServiceServicer_to_server, edge)
    server = RpcServer("127.0.0.1:0", house.identity("host", "host1"), [service])
    server.start()
    opened: list[grpc.Channel] = []

    def dial(role: str) -> grpc.Channel:
        opened.append(connect(server.address, house.identity(role), "host"))
        return opened[-1]

    yield dial
    for one in opened:
        one.close()
    server.stop(0)


@pytest.fixture
def ask(channel: Callable[[str], grpc.Channel]) -> Callable[..., Any]:
    stub = vm_pb2_grpc.VmServiceStub(channel("operator"))
    return lambda method, request: call(getattr(stub, method), request, peer="host", timeout_seconds=20)


def disk(stage: Stage, name: str = "a", *, volume: str = "", array: int = 0) -> pb.Disk:
    one = stage.arrays[array]
    size = 0 if volume else MIB
    return pb.Disk(name=name, array=one.name, array_address=one.address, volume_name=volume, size_bytes=size)


def request(stage: Stage, *disks: pb.Disk, name: str = "web1", vm_id: str = "") -> pb.CreateVmRequest:
    config = pb.VmConfig(name=name, cpus=1, memory_bytes=MIB, disks=disks or [disk(stage)], tags={"k": "v"})
    return pb.CreateVmRequest(vm_id=vm_id or random_id(), config=config)


def test_a_vm_and_its_snapshot_over_the_wire(stage: Stage, ask: Callable[..., Any]) -> None:
    vm = ask("CreateVm", request(stage, disk(stage), disk(stage, "b", array=1))).vm
    assert (vm.host, vm.power, vm.config.tags["k"]) == ("host1", pb.POWER_STATE_OFF, "v")
    assert ask("PowerOn", pb.PowerOnRequest(vm_id=vm.vm_id)).vm.power == pb.POWER_STATE_ON
    make = pb.CreateVmSnapshotRequest(vm_id=vm.vm_id, name="job", level_min=pb.CONSISTENCY_LEVEL_FILESYSTEM)
    made = ask("CreateVmSnapshot", make).snapshot
    assert (made.level, made.lease_seconds) == (pb.CONSISTENCY_LEVEL_FILESYSTEM, 60)
    assert [one.array for one in made.disks] == ["a1", "a2"]
    at = {"vm_snapshot_id": made.vm_snapshot_id}
    assert ask("GetVmSnapshot", pb.GetVmSnapshotRequest(**at)).snapshot == made
    assert list(ask("ListVmSnapshots", pb.ListVmSnapshotsRequest(vm_id=vm.vm_id)).snapshots) == [made]
    ask("RenewVmSnapshot", pb.RenewVmSnapshotRequest(**at))
    for _ in range(2):
        ask("DeleteVmSnapshot", pb.DeleteVmSnapshotRequest(**at))
    assert ask("PowerOff", pb.PowerOffRequest(vm_id=vm.vm_id, force=True)).vm.power == pb.POWER_STATE_OFF
    ask("DeleteVm", pb.DeleteVmRequest(vm_id=vm.vm_id))
    assert list(ask("ListVms", pb.ListVmsRequest()).vms) == []


@pytest.mark.parametrize(
    ("method", "message", "error"),
    [
        ("GetVm", pb.GetVmRequest(), InvalidRequest),
        ("GetVm", pb.GetVmRequest(vm_id="../x"), InvalidRequest),
        ("GetVm", pb.GetVmRequest(vm_id=ID), NotFound),
        ("GetVm", pb.GetVmRequest(name="none"), NotFound),
        ("CreateVm", pb.CreateVmRequest(vm_id=ID), InvalidRequest),
        ("DeleteVm", pb.DeleteVmRequest(vm_id=ID), NotFound),
        ("PowerOn", pb.PowerOnRequest(vm_id=ID), NotFound),
        ("PowerOff", pb.PowerOffRequest(vm_id=ID, grace_seconds=1 << 31), InvalidRequest),
        ("CreateVmSnapshot", pb.CreateVmSnapshotRequest(vm_id=ID, name="a/b"), InvalidRequest),
        ("CreateVmSnapshot", pb.CreateVmSnapshotRequest(vm_id=ID, name="a", lease_seconds=5), InvalidRequest),
        ("CreateVmSnapshot", pb.CreateVmSnapshotRequest(vm_id=ID, name="job"), NotFound),
        ("GetVmSnapshot", pb.GetVmSnapshotRequest(vm_snapshot_id=ID), NotFound),
        ("RenewVmSnapshot", pb.RenewVmSnapshotRequest(vm_snapshot_id=ID), NotFound),
        ("AttachVolume", pb.AttachVolumeRequest(vm_id=ID), InvalidRequest),
        ("DetachVolume", pb.DetachVolumeRequest(vm_id=ID, disk_name="a"), NotFound),
        ("ListGuestFiles", pb.ListGuestFilesRequest(directory=pb.GuestPath(vm_id=ID, path="/")), NotFound),
        ("RemoveGuestFile", pb.RemoveGuestFileRequest(file=pb.GuestPath(vm_id=ID, path="x")), NotFound),
    ],
)
def test_errors_keep_their_class(
    ask: Callable[..., Any], method: str, message: object, error: type[Exception]
) -> None:
    with pytest.raises(error):
        ask(method, message)


def test_the_state_of_vms_and_arrays_decides(stage: Stage, ask: Callable[..., Any]) -> None:
    wanted = request(stage)
    vm = ask("CreateVm", wanted).vm
    assert ask("CreateVm", wanted).vm == vm
    with pytest.raises(AlreadyExists):
        ask("CreateVm", request(stage, vm_id=vm.vm_id, name="web2"))
    with pytest.raises(AlreadyExists):
        ask("CreateVm", request(stage, disk(stage, volume=vm.config.disks[0].volume_name), name="web3"))
    ask("PowerOn", pb.PowerOnRequest(vm_id=vm.vm_id))
    with pytest.raises(WrongState):
        ask("DeleteVm", pb.DeleteVmRequest(vm_id=vm.vm_id))
    stage.driver.freeze_error = WrongState("no agent")
    make = pb.CreateVmSnapshotRequest(vm_id=vm.vm_id, name="job", level_min=pb.CONSISTENCY_LEVEL_APPLICATION)
    with pytest.raises(WrongState):
        ask("CreateVmSnapshot", make)
    stage.arrays[0].close()
    with pytest.raises(PeerUnavailable):
        ask("CreateVmSnapshot", pb.CreateVmSnapshotRequest(vm_id=vm.vm_id, name="job"))
    assert stage.driver.frozen == set()


def put(vm: pb.Vm, *messages: pb.PutGuestFileRequest) -> Iterator[pb.PutGuestFileRequest]:
    yield pb.PutGuestFileRequest(header=pb.GuestPath(vm_id=vm.vm_id, path="/file"))
    yield from messages


def test_a_put_commits_by_its_last_message_alone(
    stage: Stage, ask: Callable[..., Any], channel: Callable[[str], grpc.Channel]
) -> None:
    vm = ask("CreateVm", request(stage)).vm
    ask("PowerOn", pb.PowerOnRequest(vm_id=vm.vm_id))
    data = pb.PutGuestFileRequest(data=b"abc")
    with pytest.raises(InvalidRequest, match="cut"):
        ask("PutGuestFile", put(vm, data))
    with pytest.raises(InvalidRequest, match="one header"):
        ask("PutGuestFile", put(vm, *put(vm)))
    with pytest.raises(InvalidRequest):
        ask("PutGuestFile", iter([data]))
    with pytest.raises(InvalidRequest):
        ask("PutGuestFile", put(vm, pb.PutGuestFileRequest(data=bytes(MIB + 1), last=True)))
    assert stage.driver.files == {}
    done = ask("PutGuestFile", put(vm, data, pb.PutGuestFileRequest(data=b"def", last=True)))
    assert done.file.size_bytes == 6
    stub = vm_pb2_grpc.VmServiceStub(channel("server"))
    at = pb.GuestPath(vm_id=vm.vm_id, path="/file")
    got = list(stream(stub.GetGuestFile, pb.GetGuestFileRequest(file=at), peer="host", timeout_seconds=20))
    assert got[0].file == done.file
    assert b"".join(piece.data for piece in got) == b"abcdef"
    assert [file.path for file in ask("ListGuestFiles", pb.ListGuestFilesRequest(directory=at)).files] == [
        "/file"
    ]
    ask("RemoveGuestFile", pb.RemoveGuestFileRequest(file=at))
    assert stage.driver.files == {}


def test_a_directory_comes_in_pages(stage: Stage, ask: Callable[..., Any]) -> None:
    vm = ask("CreateVm", request(stage)).vm
    ask("PowerOn", pb.PowerOnRequest(vm_id=vm.vm_id))
    for name in ("c", "a", "b"):
        header = pb.GuestPath(vm_id=vm.vm_id, path=f"/{name}")
        ask("PutGuestFile", iter([pb.PutGuestFileRequest(header=header, last=True)]))
    listing = pb.ListGuestFilesRequest(directory=pb.GuestPath(vm_id=vm.vm_id, path="/"), page_size=2)
    answers = pages.follow(lambda asked: ask("ListGuestFiles", asked), listing)
    assert [[file.path for file in answer.files] for answer in answers] == [["/a", "/b"], ["/c"]]
    listing.page_token = "[1]"
    with pytest.raises(InvalidRequest, match="page token"):
        ask("ListGuestFiles", listing)


@pytest.mark.parametrize("role", ["host", "array", "target"])
def test_other_roles_may_not_call(channel: Callable[[str], grpc.Channel], role: str) -> None:
    stub = vm_pb2_grpc.VmServiceStub(channel(role))
    with pytest.raises(NotPermitted):
        call(stub.ListVms, pb.ListVmsRequest(), peer="host")
