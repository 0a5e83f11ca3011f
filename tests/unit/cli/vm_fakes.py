"""A virtual center, a host and a backup server in this process, stores of plain lists."""
# ruff: noqa: N802  # the methods have the names of their RPCs

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import grpc

from arraylift.errors import ArrayliftError, Corruption, NotFound
from arraylift.v1 import (
    backup_pb2,
    backup_pb2_grpc,
    catalog_pb2,
    catalog_pb2_grpc,
    virtual_center_pb2,
    virtual_center_pb2_grpc,
    vm_pb2,
    vm_pb2_grpc,
)

Context = grpc.ServicerContext
Item = TypeVar("Item")

PAGE_SIZE = 2


def paged(items: list[Item], token: str) -> tuple[list[Item], str]:
    """A page, and the next one's token: small ones, so that everybody who lists must follow them."""
    at = int(token or 0)
    return items[at : at + PAGE_SIZE], str(at + PAGE_SIZE) if at + PAGE_SIZE < len(items) else ""


@dataclass
class FakeCenter(virtual_center_pb2_grpc.VirtualCenterServiceServicer):
    """VMs by name, all on one host; ``fail_with`` is what ProvisionVm ends with."""

    vms: dict[str, vm_pb2.Vm] = field(default_factory=dict)
    host: virtual_center_pb2.Host = field(default_factory=virtual_center_pb2.Host)
    provisioned: list[virtual_center_pb2.ProvisionVmRequest] = field(default_factory=list)
    removed: list[virtual_center_pb2.RemoveVmRequest] = field(default_factory=list)
    powered: list[virtual_center_pb2.PowerVmRequest] = field(default_factory=list)
    news: list[virtual_center_pb2.MigrateVmResponse] = field(default_factory=list)
    moves: list[virtual_center_pb2.MigrateVmRequest] = field(default_factory=list)
    migrations: list[virtual_center_pb2.Migration] = field(default_factory=list)
    entries: list[virtual_center_pb2.VmHistoryEntry] = field(default_factory=list)
    histories: list[virtual_center_pb2.GetVmHistoryRequest] = field(default_factory=list)
    synchronized: list[str] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    fail_with: ArrayliftError | None = None
    fail_removal_with: ArrayliftError | None = None

    def _vm(self, vm_id: str, name: str) -> vm_pb2.Vm:
        for vm in self.vms.values():
            if (vm_id and vm.vm_id == vm_id) or (name and vm.config.name == name):
                return vm
        raise NotFound(f"there is no VM {vm_id or name} here")

    def ListHosts(
        self, request: virtual_center_pb2.ListHostsRequest, context: Context
    ) -> virtual_center_pb2.ListHostsResponse:
        return virtual_center_pb2.ListHostsResponse(hosts=[self.host])

    def ListManagedVms(
        self, request: virtual_center_pb2.ListManagedVmsRequest, context: Context
    ) -> virtual_center_pb2.ListManagedVmsResponse:
        page, token = paged(list(self.vms.values()), request.page_token)
        return virtual_center_pb2.ListManagedVmsResponse(vms=page, next_page_token=token)

    def GetManagedVm(
        self, request: virtual_center_pb2.GetManagedVmRequest, context: Context
    ) -> virtual_center_pb2.GetManagedVmResponse:
        vm = self._vm(request.vm_id, request.name)
        return virtual_center_pb2.GetManagedVmResponse(vm=vm, host=self.host)

    def ProvisionVm(
        self, request: virtual_center_pb2.ProvisionVmRequest, context: Context
    ) -> virtual_center_pb2.ProvisionVmResponse:
        self.provisioned.append(request)
        if self.fail_with is not None:
            raise self.fail_with
        vm = vm_pb2.Vm(
            vm_id=request.vm_id,
            config=request.config,
            power=vm_pb2.POWER_STATE_OFF,
            host=request.host or self.host.name,
        )
        self.vms[request.config.name] = vm
        return virtual_center_pb2.ProvisionVmResponse(vm=vm, host=self.host)

    def PowerVm(
        self, request: virtual_center_pb2.PowerVmRequest, context: Context
    ) -> virtual_center_pb2.PowerVmResponse:
        self.powered.append(request)
        vm = self._vm(request.vm_id, "")
        vm.power = request.power
        return virtual_center_pb2.PowerVmResponse(vm=vm)

    def MigrateVm(
        self, request: virtual_center_pb2.MigrateVmRequest, context: Context
    ) -> Iterator[virtual_center_pb2.MigrateVmResponse]:
        self.moves.append(request)
        yield from self.news
        if self.fail_with is not None:
            raise self.fail_with

    def ListMigrations(
        self, request: virtual_center_pb2.ListMigrationsRequest, context: Context
    ) -> virtual_center_pb2.ListMigrationsResponse:
        found = [one for one in self.migrations if request.vm_id in ("", one.vm_id)]
        return virtual_center_pb2.ListMigrationsResponse(migrations=found)

    def GetVmHistory(
        self, request: virtual_center_pb2.GetVmHistoryRequest, context: Context
    ) -> virtual_center_pb2.GetVmHistoryResponse:
        self.histories.append(request)
        return virtual_center_pb2.GetVmHistoryResponse(entries=self.entries[: request.page_size])

    def SynchronizeHosts(
        self, request: virtual_center_pb2.SynchronizeHostsRequest, context: Context
    ) -> virtual_center_pb2.SynchronizeHostsResponse:
        self.synchronized.append(request.host)
        return virtual_center_pb2.SynchronizeHostsResponse(hosts=[self.host])

    def RemoveHost(
        self, request: virtual_center_pb2.RemoveHostRequest, context: Context
    ) -> virtual_center_pb2.RemoveHostResponse:
        self.forgotten.append(request.name)
        return virtual_center_pb2.RemoveHostResponse()

    def RemoveVm(
        self, request: virtual_center_pb2.RemoveVmRequest, context: Context
    ) -> virtual_center_pb2.RemoveVmResponse:
        self.removed.append(request)
        if self.fail_removal_with is not None:
            raise self.fail_removal_with
        self.vms = {name: vm for name, vm in self.vms.items() if vm.vm_id != request.vm_id}
        return virtual_center_pb2.RemoveVmResponse()


@dataclass
class FakeHost(vm_pb2_grpc.VmServiceServicer):
    """Files of guests by (disk, path): permissions and content."""

    files: dict[tuple[str, str], tuple[int, bytes]] = field(default_factory=dict)
    cut_reads: bool = False

    def _file(self, place: vm_pb2.GuestPath) -> vm_pb2.GuestFile:
        if (place.disk_name, place.path) not in self.files:
            raise NotFound(f"there is no {place.path}")
        mode, content = self.files[place.disk_name, place.path]
        return vm_pb2.GuestFile(
            path=place.path, size_bytes=len(content), mode=0o100000 | mode, modified_at_ns=10**18
        )

    def PutGuestFile(
        self, requests: Iterator[vm_pb2.PutGuestFileRequest], context: Context
    ) -> vm_pb2.PutGuestFileResponse:
        first = next(requests)
        content, whole = b"", False
        for request in requests:
            content, whole = content + request.data, request.last
        assert whole, "the end was announced"
        self.files[first.header.disk_name, first.header.path] = (first.mode, content)
        return vm_pb2.PutGuestFileResponse(file=self._file(first.header))

    def GetGuestFile(
        self, request: vm_pb2.GetGuestFileRequest, context: Context
    ) -> Iterator[vm_pb2.GetGuestFileResponse]:
        found = self._file(request.file)
        content = self.files[request.file.disk_name, request.file.path][1]
        yield vm_pb2.GetGuestFileResponse(file=found)
        for start in range(0, len(content), 1000):
            yield vm_pb2.GetGuestFileResponse(data=content[start : start + 1000])
            if self.cut_reads:
                return

    def ListGuestFiles(
        self, request: vm_pb2.ListGuestFilesRequest, context: Context
    ) -> vm_pb2.ListGuestFilesResponse:
        places = [
            vm_pb2.GuestPath(disk_name=disk, path=path)
            for disk, path in self.files
            if disk == request.directory.disk_name and path.startswith(request.directory.path)
        ]
        page, token = paged(places, request.page_token)
        return vm_pb2.ListGuestFilesResponse(files=map(self._file, page), next_page_token=token)

    def RemoveGuestFile(
        self, request: vm_pb2.RemoveGuestFileRequest, context: Context
    ) -> vm_pb2.RemoveGuestFileResponse:
        self._file(request.file)
        del self.files[request.file.disk_name, request.file.path]
        return vm_pb2.RemoveGuestFileResponse()


@dataclass
class FakeServer(backup_pb2_grpc.BackupServiceServicer):
    """Jobs are what the test says, each a list of its states in order; the last one stays."""

    peers: dict[tuple[int, str], str] = field(default_factory=dict)
    jobs: dict[str, list[backup_pb2.Job]] = field(default_factory=dict)
    backups: list[backup_pb2.Backup] = field(default_factory=list)
    started: list[backup_pb2.StartBackupRequest] = field(default_factory=list)
    requests: list[backup_pb2.ListJobsRequest] = field(default_factory=list)
    restored: list[backup_pb2.StartRestoreRequest] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    file: backup_pb2.BackupFile = field(default_factory=backup_pb2.BackupFile)
    content: bytes = b""
    verified_short: int = 0
    max_ages: list[int] = field(default_factory=list)
    cut_watch: bool = False

    def StartBackup(
        self, request: backup_pb2.StartBackupRequest, context: Context
    ) -> backup_pb2.StartBackupResponse:
        self.started.append(request)
        return backup_pb2.StartBackupResponse(job_ids=self.jobs)

    def StartRestore(
        self, request: backup_pb2.StartRestoreRequest, context: Context
    ) -> backup_pb2.StartRestoreResponse:
        self.restored.append(request)
        return backup_pb2.StartRestoreResponse(job_id=next(iter(self.jobs)))

    def GetJob(self, request: backup_pb2.GetJobRequest, context: Context) -> backup_pb2.GetJobResponse:
        if request.job_id not in self.jobs:
            raise NotFound(f"there is no job {request.job_id} here")
        states = self.jobs[request.job_id]
        return backup_pb2.GetJobResponse(job=states.pop(0) if len(states) > 1 else states[0])

    def WatchJob(
        self, request: backup_pb2.WatchJobRequest, context: Context
    ) -> Iterator[backup_pb2.WatchJobResponse]:
        states = self.jobs[request.job_id]
        for job in states[:-1] if self.cut_watch else states:
            yield backup_pb2.WatchJobResponse(job=job)

    def ListJobs(self, request: backup_pb2.ListJobsRequest, context: Context) -> backup_pb2.ListJobsResponse:
        self.requests.append(request)
        page, token = paged([states[-1] for states in self.jobs.values()], request.page_token)
        return backup_pb2.ListJobsResponse(jobs=page, next_page_token=token)

    def CancelJob(
        self, request: backup_pb2.CancelJobRequest, context: Context
    ) -> backup_pb2.CancelJobResponse:
        self.cancelled.append(request.job_id)
        return backup_pb2.CancelJobResponse()

    def ListBackups(
        self, request: backup_pb2.ListBackupsRequest, context: Context
    ) -> backup_pb2.ListBackupsResponse:
        found = [each for each in self.backups if request.vm in {"", each.vm_name, each.vm_id}]
        found.sort(key=lambda each: each.snapshot_at_ns, reverse=True)
        page, token = paged(found, request.page_token)
        return backup_pb2.ListBackupsResponse(backups=page, next_page_token=token)

    def GetBackup(
        self, request: backup_pb2.GetBackupRequest, context: Context
    ) -> backup_pb2.GetBackupResponse:
        for each in self.backups:
            if each.backup_id == request.backup_id:
                return backup_pb2.GetBackupResponse(backup=each)
        raise NotFound(f"there is no backup {request.backup_id}")

    def DeleteBackup(
        self, request: backup_pb2.DeleteBackupRequest, context: Context
    ) -> backup_pb2.DeleteBackupResponse:
        self.deleted.append(request.backup_id)
        return backup_pb2.DeleteBackupResponse()

    def LockBackup(
        self, request: backup_pb2.LockBackupRequest, context: Context
    ) -> backup_pb2.LockBackupResponse:
        for backup in self.backups:
            if backup.backup_id == request.backup_id:
                backup.lock_until_ns = request.until_ns
        return backup_pb2.LockBackupResponse(lock_until_ns=request.until_ns)

    def VerifyBackup(
        self, request: backup_pb2.VerifyBackupRequest, context: Context
    ) -> Iterator[backup_pb2.VerifyBackupResponse]:
        self.max_ages.append(request.max_age_seconds)
        for backup in self.backups:
            if backup.backup_id == request.backup_id:
                for disk in backup.disks:
                    for verified in (1, disk.size_bytes - self.verified_short):
                        yield backup_pb2.VerifyBackupResponse(
                            disk_name=disk.disk_name, bytes_verified=verified, bytes_total=disk.size_bytes
                        )

    def ListFiles(
        self, request: backup_pb2.ListFilesRequest, context: Context
    ) -> backup_pb2.ListFilesResponse:
        other = backup_pb2.BackupFile(path="/other", size_bytes=1, mode=0o100644)
        page, token = paged([self.file, other, other], request.page_token)
        return backup_pb2.ListFilesResponse(files=page, next_page_token=token)

    def GetFile(
        self, request: backup_pb2.GetFileRequest, context: Context
    ) -> Iterator[backup_pb2.GetFileResponse]:
        if request.path != self.file.path:
            raise NotFound(f"there is no {request.path} in the backup")
        half = len(self.content) // 2
        yield backup_pb2.GetFileResponse(file=self.file, data=self.content[:half])
        if self.content == b"damaged":
            raise Corruption("a segment is damaged")
        yield backup_pb2.GetFileResponse(data=self.content[half:])

    def AddPeer(self, request: backup_pb2.AddPeerRequest, context: Context) -> backup_pb2.AddPeerResponse:
        self.peers[request.kind, request.name] = request.address
        return backup_pb2.AddPeerResponse()

    def ListPeers(
        self, request: backup_pb2.ListPeersRequest, context: Context
    ) -> backup_pb2.ListPeersResponse:
        found = [
            backup_pb2.RegisteredPeer(
                kind=request.kind, name=name, address=address, problem="asleep" if request.probe else ""
            )
            for (kind, name), address in self.peers.items()
            if kind == request.kind
        ]
        return backup_pb2.ListPeersResponse(peers=found)

    def RemovePeer(
        self, request: backup_pb2.RemovePeerRequest, context: Context
    ) -> backup_pb2.RemovePeerResponse:
        if (request.kind, request.name) not in self.peers:
            raise NotFound(f"there is no {request.name} here")
        del self.peers[request.kind, request.name]
        return backup_pb2.RemovePeerResponse()


@dataclass
class FakeCatalog(catalog_pb2_grpc.CatalogServiceServicer):
    """Answers what it is given."""

    read: list[catalog_pb2.ReadFilesRequest] = field(default_factory=list)
    files: list[catalog_pb2.ReadFilesResponse] = field(default_factory=list)
    started: list[catalog_pb2.StartFileRestoreRequest] = field(default_factory=list)

    def ReadFiles(
        self, request: catalog_pb2.ReadFilesRequest, context: Context
    ) -> Iterator[catalog_pb2.ReadFilesResponse]:
        self.read.append(request)
        yield from self.files

    def StartFileRestore(
        self, request: catalog_pb2.StartFileRestoreRequest, context: Context
    ) -> catalog_pb2.StartFileRestoreResponse:
        self.started.append(request)
        return catalog_pb2.StartFileRestoreResponse(job_id=f"{1:032x}")
