"""Edge: BackupService: jobs, backups, registry. Files are in ``files``."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import grpc

from arraylift.errors import InvalidRequest, NotFound
from arraylift.ids import check_id, check_name
from arraylift.rpc import pages
from arraylift.rpc.address import split_address
from arraylift.rpc.identity import checked_peer
from arraylift.v1 import backup_pb2 as pb
from arraylift.vm import convert as shared
from arraylift.vm.types import DISKS_MAX, NETWORKS_MAX
from backup_server import convert
from backup_server.backups import Backups
from backup_server.engine import Engine
from backup_server.job_rules import RETRIES_MAX, BackupOrder, JobKind, JobState, RestoreOrder
from backup_server.model import ChangeSource, PeerKind, RegisteredPeer
from backup_server.orders import VMS_MAX, Choice, Orders
from backup_server.ports import Peers
from backup_server.registry import Registry
from backup_server.server_db import JobFilter
from backup_server.service.files import Browser, FilesEdge

JOBS_PER_PAGE, JOBS_PER_PAGE_MAX = 100, 1000
BACKUPS_PER_PAGE_MAX = 500
"""So that no request holds the server for long."""
WATCH_SECONDS = 0.5


class BackupEdge(FilesEdge):
    """Serves one backup server."""

    def __init__(
        self,
        engine: Engine,
        orders: Orders,
        backups: Backups,
        registry: Registry,
        *,
        peers: Peers,
        browser: Browser,
    ) -> None:
        super().__init__(backups, registry, peers, browser)
        self._engine = engine
        self._orders = orders

    # -- jobs -----------------------------------------------------------------------------------

    def StartBackup(
        self, request: pb.StartBackupRequest, context: grpc.ServicerContext
    ) -> pb.StartBackupResponse:
        if bool(request.vms) + request.all + bool(request.tag) != 1:
            raise InvalidRequest("name VMs, or a tag, or all: one of the three")
        if len(request.vms) > VMS_MAX or len(request.exclude_disks) > DISKS_MAX:
            raise InvalidRequest(f"at most {VMS_MAX} VMs and {DISKS_MAX} excluded disks a call")
        if request.retries_max > RETRIES_MAX:
            raise InvalidRequest(f"a job is started again at most {RETRIES_MAX} times")
        choice = Choice(
            vms=tuple(check_name(vm, "VM name") for vm in request.vms), all=request.all, tag=request.tag
        )
        order = BackupOrder(
            target=request.target,
            full=request.full,
            direct=request.direct,
            level_min=shared.level_demanded(request.level_min),
            exclude_disks=tuple(check_name(name, "disk name") for name in request.exclude_disks),
            gateway=request.gateway,
            change_source=_source_demanded(request.change_source),
            retries_max=request.retries_max,
        )
        return pb.StartBackupResponse(job_ids=self._orders.start_backups(choice, order))

    def StartRestore(
        self, request: pb.StartRestoreRequest, context: grpc.ServicerContext
    ) -> pb.StartRestoreResponse:
        if len(request.disks) > DISKS_MAX or len(request.networks) > NETWORKS_MAX:
            raise InvalidRequest(f"at most {DISKS_MAX} disks and {NETWORKS_MAX} networks")
        order = RestoreOrder(
            backup_id=check_id(request.backup_id, "backup id"),
            as_name=check_name(request.as_name, "VM name") if request.as_name else "",
            host=request.host,
            array=request.array,
            start=request.start,
            direct=request.direct,
            keep_identity=request.keep_identity,
            in_place=request.in_place,
            stop=request.stop,
            disks=tuple(check_name(name, "disk name") for name in request.disks),
            volume=check_name(request.volume, "volume name") if request.volume else "",
            attach=check_name(request.attach, "VM name") if request.attach else "",
            memory_bytes=request.memory_bytes,
            cpus=request.cpus,
            networks=tuple(check_name(name, "network name") for name in request.networks),
        )
        return pb.StartRestoreResponse(job_id=self._orders.start_restore(order))

    def GetJob(self, request: pb.GetJobRequest, context: grpc.ServicerContext) -> pb.GetJobResponse:
        return pb.GetJobResponse(job=self._job(request.job_id))

    def _job(self, job_id: str) -> pb.Job:
        return convert.job_to_pb(self._engine.view(check_id(job_id, "job id")))

    def ListJobs(self, request: pb.ListJobsRequest, context: grpc.ServicerContext) -> pb.ListJobsResponse:
        if request.limit > JOBS_PER_PAGE_MAX:
            raise InvalidRequest(f"a page has at most {JOBS_PER_PAGE_MAX} jobs")
        behind = pages.after(request.page_token, str)
        size = request.limit or JOBS_PER_PAGE
        views = self._engine.views(
            unfinished=request.running_only,
            limit=size + 1,
            behind=str(behind[0]) if behind else "",
            only=_filter(request),
        )
        page, token = pages.cut(views, size, key=lambda view: (view.job.job_id,), to_pb=convert.job_to_pb)
        return pb.ListJobsResponse(jobs=page, next_page_token=token)

    def WatchJob(
        self, request: pb.WatchJobRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.WatchJobResponse]:
        told: pb.Job | None = None
        while context.is_active():
            view = self._engine.view(check_id(request.job_id, "job id"))
            job = convert.job_to_pb(view)
            if job != told:
                told = job
                yield pb.WatchJobResponse(job=job)
            if view.job.state.ended:
                return
            time.sleep(WATCH_SECONDS)

    def CancelJob(self, request: pb.CancelJobRequest, context: grpc.ServicerContext) -> pb.CancelJobResponse:
        self._engine.cancel(check_id(request.job_id, "job id"))
        return pb.CancelJobResponse()

    # -- backups --------------------------------------------------------------------------------

    def ListBackups(
        self, request: pb.ListBackupsRequest, context: grpc.ServicerContext
    ) -> pb.ListBackupsResponse:
        behind = pages.after(request.page_token, int, str)
        found = self._backups.newest_first(
            request.vm, behind=(int(behind[0]), str(behind[1])) if behind else None
        )
        page, token = pages.cut(
            found,
            min(request.page_size or BACKUPS_PER_PAGE_MAX, BACKUPS_PER_PAGE_MAX),
            key=lambda backup: (backup.snapshot_at_ns, backup.backup_id),
            to_pb=convert.backup_to_pb,
        )
        return pb.ListBackupsResponse(backups=page, next_page_token=token)

    def GetBackup(self, request: pb.GetBackupRequest, context: grpc.ServicerContext) -> pb.GetBackupResponse:
        backup = self._backups.get(check_id(request.backup_id, "backup id"))
        return pb.GetBackupResponse(backup=convert.backup_to_pb(backup))

    def DeleteBackup(
        self, request: pb.DeleteBackupRequest, context: grpc.ServicerContext
    ) -> pb.DeleteBackupResponse:
        with contextlib.suppress(NotFound) if request.missing_ok else contextlib.nullcontext():
            self._backups.delete(check_id(request.backup_id, "backup id"))
        return pb.DeleteBackupResponse()

    def VerifyBackup(
        self, request: pb.VerifyBackupRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.VerifyBackupResponse]:
        backup_id = check_id(request.backup_id, "backup id")
        for news in self._backups.verify(backup_id, request.max_age_seconds):
            yield pb.VerifyBackupResponse(
                disk_name=news.disk_name,
                bytes_verified=news.bytes_verified,
                bytes_total=news.bytes_total,
                oldest_check_at_ns=news.oldest_check_at_ns,
                bytes_read=news.bytes_read,
            )

    def LockBackup(
        self, request: pb.LockBackupRequest, context: grpc.ServicerContext
    ) -> pb.LockBackupResponse:
        self._backups.lock(check_id(request.backup_id, "backup id"), request.until_ns)
        return pb.LockBackupResponse(lock_until_ns=request.until_ns)

    # -- registry -------------------------------------------------------------------------------

    def AddPeer(self, request: pb.AddPeerRequest, context: grpc.ServicerContext) -> pb.AddPeerResponse:
        kind = _kind(request.kind)
        split_address(request.address)
        peer = RegisteredPeer(kind, checked_peer(kind.role, request.name).name, request.address)
        self._registry.add(peer)
        if kind is PeerKind.TARGET:
            self._backups.sync(peer.name)  # what it holds is seen at once
        return pb.AddPeerResponse()

    def ListPeers(self, request: pb.ListPeersRequest, context: grpc.ServicerContext) -> pb.ListPeersResponse:
        peers = self._registry.all(_kind(request.kind) if request.kind else None)
        if not request.probe:
            return pb.ListPeersResponse(peers=[_peer(peer, None) for peer in peers])
        probed = self._registry.probe(peers)
        return pb.ListPeersResponse(peers=[_peer(one.peer, one.problem) for one in probed])

    def RemovePeer(
        self, request: pb.RemovePeerRequest, context: grpc.ServicerContext
    ) -> pb.RemovePeerResponse:
        self._registry.remove(_kind(request.kind), request.name)
        return pb.RemovePeerResponse()


def _filter(request: pb.ListJobsRequest) -> JobFilter:
    try:
        states = tuple(map(JobState, request.states[: len(JobState) + 1]))
        kind = JobKind(request.kind) if request.kind else None
    except ValueError:
        raise InvalidRequest("that state or kind of jobs does not exist") from None
    return JobFilter(request.vm, states, kind, request.since_ns, request.policy)


def _source_demanded(source: int) -> ChangeSource:
    if source not in (ChangeSource.UNSPECIFIED, ChangeSource.SUPPLIED):
        raise InvalidRequest(
            f"change source {source} cannot be asked for",
            next_step="leave it out, name supplied changes, or ask for a full backup",
        )
    return ChangeSource(source)


def _kind(kind: int) -> PeerKind:
    try:
        return PeerKind(kind)
    except ValueError:
        raise InvalidRequest(f"{kind} is no kind of peer", next_step="say which") from None


def _peer(peer: RegisteredPeer, problem: str | None) -> pb.RegisteredPeer:
    return pb.RegisteredPeer(
        kind=int(peer.kind),  # type: ignore[arg-type]
        name=peer.name,
        address=peer.address,
        reachable=problem == "",
        problem=problem or "",
    )
