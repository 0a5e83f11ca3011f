"""BackupService over the wire: who may call, what is checked, what comes back, against fake peers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from arraylift import errors, pki
from arraylift.rpc import pages
from arraylift.rpc.channel import call, connect, stream
from arraylift.rpc.server import RpcServer, service_of
from arraylift.sizes import MIB
from arraylift.v1 import backup_pb2 as pb
from arraylift.v1 import backup_pb2_grpc, vm_pb2
from backup_server.catalog.entry import DiskSet, FileEntry, Volume
from backup_server.service.backup import BackupEdge
from tests.fakes.backup_server import Rig
from tests.fakes.peers import FakePeers
from tests.fakes.world import Fault, World
from tests.fakes.world_array import SPAN
from tests.wire.stage import House

PEER = "server of the test"


class RawBrowser:
    """Stands for a parser: an image whose whole content is one file."""

    def __init__(self) -> None:
        self.listing: list[FileEntry] = []

    def list_directory(self, disks: DiskSet, path: str, volume: str) -> tuple[Volume, list[FileEntry]]:
        return _volume(disks, volume), self.listing or [entry(f"{path}raw", disks[0].image.size_bytes)]

    def read_file(self, disks: DiskSet, path: str, volume: str) -> tuple[Volume, FileEntry, Iterator[bytes]]:
        if path != "/raw":
            raise errors.NotFound(f"there is no {path}")
        image = disks[0].image
        return _volume(disks, volume), entry(path, image.size_bytes), iter([image.read(0, image.size_bytes)])


def _volume(disks: DiskSet, asked: str) -> Volume:
    return Volume(asked or disks[0].name, "raw", "", "", disks[0].image.size_bytes, readable=True)


def entry(path: str, size_bytes: int, target: str = "") -> FileEntry:
    """A file as the browser lists it."""
    return FileEntry(path, path.rpartition("/")[2], size_bytes, 0o100644, 1, 2, 3, target)


@dataclass
class Desk:
    """A served backup server, and an operator in front of it."""

    rig: Rig
    stub: Any
    browser: RawBrowser
    channel_as: Callable[[str], grpc.Channel]

    @property
    def world(self) -> World:
        return self.rig.world

    def call(self, method: str, request: object) -> Any:
        return call(getattr(self.stub, method), request, peer=PEER)

    def stream(self, method: str, request: object) -> list[Any]:
        return list(stream(getattr(self.stub, method), request, peer=PEER, timeout_seconds=30))

    def watch(self, job_id: str) -> list[pb.Job]:
        """All reports of a job, to its end."""
        return [one.job for one in self.stream("WatchJob", pb.WatchJobRequest(job_id=job_id))]

    def back_up(self, *vms: str, **more: Any) -> pb.Job:
        """One backup, to its end."""
        (job_id,) = self.call("StartBackup", pb.StartBackupRequest(vms=vms or ("web1",), **more)).job_ids
        return self.watch(job_id)[-1]


@pytest.fixture(scope="module")
def backup_house(tmp_path_factory: pytest.TempPathFactory) -> House:
    directory = str(tmp_path_factory.mktemp("backup-pki"))
    pki.init_ca(directory)
    return House(directory)


@pytest.fixture(scope="module")
def fake_peers(backup_house: House) -> Iterator[FakePeers]:
    peers = FakePeers(backup_house)
    yield peers
    peers.close()


@pytest.fixture
def desk(backup_house: House, fake_peers: FakePeers, tmp_path: Path) -> Iterator[Desk]:
    fake_peers.world.reset()
    tls = backup_house.identity("server", "server1")
    rig = Rig(tmp_path / "server", fake_peers.world, tls)
    browser = RawBrowser()
    parts = rig.server
    edge = BackupEdge(
        parts.engine, parts.orders, parts.backups, parts.registry, peers=rig.peers, browser=browser
    )
    services = [service_of(backup_pb2_grpc.add_BackupServiceServicer_to_server, edge)]
    server = RpcServer("127.0.0.1:0", tls, services)
    server.start()
    rig.server.start()
    channels: list[grpc.Channel] = []

    def channel_as(role: str) -> grpc.Channel:
        channels.append(connect(server.address, backup_house.identity(role), "server"))
        return channels[-1]

    stub = backup_pb2_grpc.BackupServiceStub(channel_as("operator"))
    yield Desk(rig, stub, browser, channel_as)
    for channel in channels:
        channel.close()
    server.stop(0)
    rig.close()


def test_a_backup_from_start_to_list(desk: Desk) -> None:
    job = desk.back_up()
    assert (job.state, job.kind, job.vm_name) == (pb.JOB_STATE_SUCCEEDED, pb.JOB_KIND_BACKUP, "web1")
    assert (job.spans_done, job.spans_total, job.figures.bytes_read) == (7, 7, 7 * SPAN)
    assert job.frozen_ns == desk.world.frozen_ns
    assert job.backup_id == job.job_id
    assert job.created_at_ns <= job.steps[0].started_at_ns <= job.ended_at_ns
    assert "publish" in [step.name for step in job.steps]
    (backup,) = desk.call("ListBackups", pb.ListBackupsRequest(vm="web1")).backups
    assert backup == desk.call("GetBackup", pb.GetBackupRequest(backup_id=job.backup_id)).backup
    assert (backup.level, backup.target) == (vm_pb2.CONSISTENCY_LEVEL_FILESYSTEM, "target1")
    assert [(disk.disk_name, disk.array) for disk in backup.disks] == [
        ("disk0", "array1"),
        ("disk1", "array1"),
    ]
    assert backup.config == desk.world.vm_named("web1").config
    assert desk.call("ListBackups", pb.ListBackupsRequest(vm="db1")).backups == []
    assert desk.call("GetJob", pb.GetJobRequest(job_id=job.job_id)).job == job
    assert list(desk.call("ListJobs", pb.ListJobsRequest()).jobs) == [job]
    assert list(desk.call("ListJobs", pb.ListJobsRequest(running_only=True)).jobs) == []


def test_a_watcher_sees_progress_and_the_end(desk: Desk) -> None:
    desk.world.fault("SendSnapshot", "mute", "mute")
    (job_id,) = desk.call("StartBackup", pb.StartBackupRequest(vms=["web1"])).job_ids
    seen = desk.watch(job_id)
    assert len(seen) >= 2
    assert seen[0].state in {pb.JOB_STATE_QUEUED, pb.JOB_STATE_RUNNING}
    assert seen[-1].state == pb.JOB_STATE_SUCCEEDED
    assert desk.watch(job_id) == seen[-1:], "of a job that has ended: once"


def test_the_second_backup_names_the_first(desk: Desk) -> None:
    desk.world.fault("SendSnapshot", "hang", "hang")
    (job_id,) = desk.call("StartBackup", pb.StartBackupRequest(vms=["web1"])).job_ids
    with pytest.raises(errors.Conflict) as caught:
        desk.call("StartBackup", pb.StartBackupRequest(vms=["web1"]))
    assert caught.value.fields["job_id"] == job_id
    desk.call("CancelJob", pb.CancelJobRequest(job_id=job_id))
    job = desk.watch(job_id)[-1]
    assert (job.state, job.error_text, job.backup_id) == (pb.JOB_STATE_CANCELLED, "", "")
    with pytest.raises(errors.WrongState):
        desk.call("CancelJob", pb.CancelJobRequest(job_id=job_id))
    assert desk.world.leftovers() == []


def test_a_failed_job_tells_why(desk: Desk) -> None:
    desk.world.fault(
        "PrepareBackup",
        Fault("fail", errors.NotPermitted("not this guest", subject="VM web1", next_step="ask", a="b")),
    )
    job = desk.back_up()
    assert job.state == pb.JOB_STATE_FAILED
    assert job.error_text == "not this guest"
    assert (job.steps[-1].name, job.steps[-1].detail) == ("snapshot", "not done")
    assert job.steps[-1].ended_at_ns == job.ended_at_ns
    assert (job.error.reason, job.error.subject, job.error.next_step, dict(job.error.fields)) == (
        "not_permitted",
        "VM web1",
        "ask",
        {"a": "b"},
    )


def test_all_and_by_tag(desk: Desk) -> None:
    job_ids = desk.call("StartBackup", pb.StartBackupRequest(all=True)).job_ids
    assert {desk.watch(one)[-1].vm_name for one in job_ids} == {"web1", "db1"}
    (job_id,) = desk.call("StartBackup", pb.StartBackupRequest(tag="tier=gold")).job_ids
    assert desk.watch(job_id)[-1].vm_name == "web1"


def test_a_restore(desk: Desk) -> None:
    backup_id = desk.back_up().backup_id
    request = pb.StartRestoreRequest(backup_id=backup_id, as_name="web2", start=True)
    job = desk.watch(desk.call("StartRestore", request).job_id)[-1]
    assert (job.state, job.kind, job.backup_id) == (pb.JOB_STATE_SUCCEEDED, pb.JOB_KIND_RESTORE, backup_id)
    (vm,) = desk.world.restored()
    assert (job.result_vm_id, job.vm_name) == (vm.vm_id, "web2")
    with pytest.raises(errors.AlreadyExists):
        desk.call("StartRestore", request)


def test_verify_and_delete(desk: Desk) -> None:
    backup_id = desk.back_up().backup_id
    news = desk.stream("VerifyBackup", pb.VerifyBackupRequest(backup_id=backup_id))
    assert (news[-1].disk_name, news[-1].bytes_verified, news[-1].bytes_total) == (
        "disk1",
        4 * SPAN,
        4 * SPAN,
    )
    desk.world.damaged_images.add(next(iter(desk.world.images)))
    with pytest.raises(errors.Corruption):
        desk.stream("VerifyBackup", pb.VerifyBackupRequest(backup_id=backup_id))
    desk.call("DeleteBackup", pb.DeleteBackupRequest(backup_id=backup_id))
    assert desk.world.leftovers() == []
    assert desk.world.images == {}
    desk.call("DeleteBackup", pb.DeleteBackupRequest(backup_id=backup_id, missing_ok=True))
    with pytest.raises(errors.NotFound):
        desk.call("DeleteBackup", pb.DeleteBackupRequest(backup_id=backup_id))


def test_files_come_out_of_images(desk: Desk) -> None:
    backup_id = desk.back_up().backup_id
    (backup,) = desk.call("ListBackups", pb.ListBackupsRequest()).backups
    content = bytes(range(256)) * (3 * SPAN // 256)
    desk.world.image_content[backup.disks[0].image_id] = content
    (listed,) = desk.call("ListFiles", pb.ListFilesRequest(backup_id=backup_id, path="/")).files
    assert (listed.path, listed.size_bytes, listed.mode, listed.uid, listed.gid, listed.modified_at_ns) == (
        "/raw",
        3 * SPAN,
        0o100644,
        1,
        2,
        3,
    )
    pieces = desk.stream("GetFile", pb.GetFileRequest(backup_id=backup_id, path="/raw"))
    assert (pieces[0].file, pieces[0].volume) == (listed, "disk0")
    assert b"".join(piece.data for piece in pieces) == content
    assert max(len(piece.data) for piece in pieces) <= MIB
    other = pb.ListFilesRequest(backup_id=backup_id, path="/", disk_name="disk1")
    assert desk.call("ListFiles", other).files[0].size_bytes == 4 * SPAN
    assert desk.call("ListFiles", other).volume == "disk1"
    named = pb.ListFilesRequest(backup_id=backup_id, path="/", volume="disk0/p2")
    assert desk.call("ListFiles", named).volume == "disk0/p2"
    with pytest.raises(errors.NotFound, match="no disk disk7"):
        desk.call("ListFiles", pb.ListFilesRequest(backup_id=backup_id, path="/", disk_name="disk7"))
    with pytest.raises(errors.NotFound, match="/none"):
        desk.stream("GetFile", pb.GetFileRequest(backup_id=backup_id, path="/none"))


def test_odd_names_pass_and_many_come_in_pages(desk: Desk) -> None:
    backup_id = desk.back_up().backup_id
    request = pb.ListFilesRequest(backup_id=backup_id, path="/")
    desk.browser.listing = [entry("/caf\udce9", 1, "\udcff")]
    (listed,) = desk.call("ListFiles", request).files
    assert (listed.path, listed.link_target) == ("/caf\\xe9", "\\xff")
    # The listing's order is that of the bytes: an escaped one before what takes three of them.
    odd = ["/" + "x" * 200 + name for name in ("a", "\udce9", "\uffee")]
    desk.browser.listing = [entry(f"/{number:05d}" + "x" * 200, 1) for number in range(30_000)]
    desk.browser.listing += [entry(path, 1) for path in odd]
    answers = list(pages.follow(lambda asked: desk.call("ListFiles", asked), request))
    assert len(answers) > 1
    assert [file.path for one in answers for file in one.files] == [
        one.path.replace("\udce9", "\\xe9") for one in desk.browser.listing
    ]
    desk.browser.listing = [entry(path, 1) for path in odd]
    request = pb.ListFilesRequest(backup_id=backup_id, path="/", page_size=1)
    answers = list(pages.follow(lambda asked: desk.call("ListFiles", asked), request))
    assert [len(one.files) for one in answers] == [1, 1, 1]


def test_jobs_and_backups_come_in_pages(desk: Desk) -> None:
    made = [desk.back_up("db1").backup_id for _ in range(3)]
    made.append(desk.back_up("web1").backup_id)
    backups = pages.follow(lambda asked: desk.call("ListBackups", asked), pb.ListBackupsRequest(page_size=2))
    listed = [[one.backup_id for one in page.backups] for page in backups]
    assert [len(page) for page in listed] == [2, 2]
    assert [*listed[0], *listed[1]] == made[::-1]
    of_vm = pages.follow(
        lambda asked: desk.call("ListBackups", asked), pb.ListBackupsRequest(vm="db1", page_size=2)
    )
    assert [[one.vm_name for one in page.backups] for page in of_vm] == [["db1", "db1"], ["db1"]]
    jobs = pages.follow(lambda asked: desk.call("ListJobs", asked), pb.ListJobsRequest(limit=3))
    assert [[one.job_id for one in page.jobs] for page in jobs] == [made[:0:-1], made[:1]]


def test_the_registry(desk: Desk) -> None:
    add = pb.AddPeerRequest(kind=pb.PEER_KIND_ARRAY, name="array2", address="127.0.0.1:1")
    desk.call("AddPeer", add)
    desk.call("AddPeer", add)
    arrays = desk.call("ListPeers", pb.ListPeersRequest(kind=pb.PEER_KIND_ARRAY)).peers
    assert [(peer.name, peer.reachable, peer.problem) for peer in arrays] == [
        ("array1", False, ""),
        ("array2", False, ""),
    ]
    probed = desk.call("ListPeers", pb.ListPeersRequest(probe=True)).peers
    assert {peer.name: peer.reachable for peer in probed} == {
        "array1": True,
        "array2": False,
        "host1": True,
        "target1": True,
        "vcenter": True,
    }
    assert all(bool(peer.problem) is not peer.reachable for peer in probed)
    desk.call("RemovePeer", pb.RemovePeerRequest(kind=pb.PEER_KIND_ARRAY, name="array2"))
    with pytest.raises(errors.NotFound):
        desk.call("RemovePeer", pb.RemovePeerRequest(kind=pb.PEER_KIND_ARRAY, name="array2"))
    desk.back_up()
    with pytest.raises(errors.WrongState):
        desk.call("RemovePeer", pb.RemovePeerRequest(kind=pb.PEER_KIND_TARGET, name="target1"))


def test_a_target_that_is_added_shows_what_it_holds(desk: Desk) -> None:
    backup_id = desk.back_up().backup_id
    desk.rig.server.db.forget_backup(backup_id)
    desk.rig.server.db._db.execute("DELETE FROM jobs")  # another server's, as far as this one knows
    address = desk.world.addresses["target"]
    desk.call("AddPeer", pb.AddPeerRequest(kind=pb.PEER_KIND_TARGET, name="target1", address=address))
    assert [one.backup_id for one in desk.call("ListBackups", pb.ListBackupsRequest()).backups] == [backup_id]


UNKNOWN = "0" * 32
BAD: list[tuple[str, object, type[errors.ArrayliftError]]] = [
    ("StartBackup", pb.StartBackupRequest(), errors.InvalidRequest),
    ("StartBackup", pb.StartBackupRequest(vms=["web1"], all=True), errors.InvalidRequest),
    ("StartBackup", pb.StartBackupRequest(vms=["../x"]), errors.InvalidRequest),
    ("StartBackup", pb.StartBackupRequest(vms=["nobody"]), errors.NotFound),
    ("StartBackup", pb.StartBackupRequest(vms=["web1"], target="none"), errors.NotFound),
    (
        "StartBackup",
        pb.StartBackupRequest(vms=["web1"], level_min=9),  # type: ignore[arg-type]
        errors.InvalidRequest,
    ),
    ("StartBackup", pb.StartBackupRequest(vms=["web1"], exclude_disks=["a\n"]), errors.InvalidRequest),
    ("StartRestore", pb.StartRestoreRequest(backup_id=UNKNOWN), errors.NotFound),
    ("StartRestore", pb.StartRestoreRequest(backup_id="x"), errors.InvalidRequest),
    ("StartRestore", pb.StartRestoreRequest(backup_id=UNKNOWN, as_name="a/b"), errors.InvalidRequest),
    ("GetJob", pb.GetJobRequest(job_id=UNKNOWN), errors.NotFound),
    ("GetJob", pb.GetJobRequest(job_id="../x"), errors.InvalidRequest),
    ("ListJobs", pb.ListJobsRequest(limit=1001), errors.InvalidRequest),
    ("ListJobs", pb.ListJobsRequest(page_token="7"), errors.InvalidRequest),
    ("ListBackups", pb.ListBackupsRequest(page_token='["a", 1]'), errors.InvalidRequest),
    ("ListFiles", pb.ListFilesRequest(backup_id=UNKNOWN, path="/", page_token="[]"), errors.InvalidRequest),
    ("CancelJob", pb.CancelJobRequest(job_id=UNKNOWN), errors.NotFound),
    ("GetBackup", pb.GetBackupRequest(backup_id=UNKNOWN), errors.NotFound),
    ("DeleteBackup", pb.DeleteBackupRequest(backup_id=UNKNOWN), errors.NotFound),
    ("ListFiles", pb.ListFilesRequest(backup_id=UNKNOWN, path="/"), errors.NotFound),
    ("AddPeer", pb.AddPeerRequest(name="a", address="127.0.0.1:1"), errors.InvalidRequest),
    ("AddPeer", pb.AddPeerRequest(kind=pb.PEER_KIND_HOST, name="a", address="x"), errors.InvalidRequest),
    (
        "AddPeer",
        pb.AddPeerRequest(kind=pb.PEER_KIND_HOST, name="../a", address="127.0.0.1:1"),
        errors.InvalidRequest,
    ),
    ("RemovePeer", pb.RemovePeerRequest(kind=pb.PEER_KIND_HOST, name="none"), errors.NotFound),
]


@pytest.mark.parametrize(
    ("method", "request_", "error"), BAD, ids=[f"{index}-{one[0]}" for index, one in enumerate(BAD)]
)
def test_bad_requests_are_refused(
    desk: Desk, method: str, request_: object, error: type[errors.ArrayliftError]
) -> None:
    with pytest.raises(error):
        desk.call(method, request_)
    assert desk.rig.server.db.jobs(unfinished=False, limit=9) == []


@pytest.mark.parametrize("path", ["", "etc", "/etc/../x", "/a\0b", "/" + "a" * 4096])
def test_bad_paths_are_refused(desk: Desk, path: str) -> None:
    backup_id = desk.back_up("db1").backup_id
    with pytest.raises(errors.InvalidRequest):
        desk.call("ListFiles", pb.ListFilesRequest(backup_id=backup_id, path=path))
    with pytest.raises(errors.InvalidRequest):
        desk.stream("GetFile", pb.GetFileRequest(backup_id=backup_id, path=path))


@pytest.mark.parametrize("role", ["server", "vcenter", "host", "array", "target"])
def test_only_operators_may_call(desk: Desk, role: str) -> None:
    stub = backup_pb2_grpc.BackupServiceStub(desk.channel_as(role))
    with pytest.raises(errors.NotPermitted):
        call(stub.ListBackups, pb.ListBackupsRequest(), peer=PEER)
    with pytest.raises(errors.NotPermitted):
        call(stub.StartBackup, pb.StartBackupRequest(all=True), peer=PEER)
