"""Edge: CatalogService, joined of its parts; and the part that asks and fills the catalog of files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc

from arraylift.errors import InvalidRequest
from arraylift.ids import check_id
from arraylift.rpc import pages
from arraylift.v1 import catalog_pb2 as pb
from arraylift.v1 import catalog_pb2_grpc as pb_grpc
from backup_server.backups import Backups
from backup_server.catalog_store import search
from backup_server.catalog_store.rows import CatalogState, StoredVolume
from backup_server.cataloguing import Cataloguing
from backup_server.service.files import file_to_pb

PAGE_FILES = 100
PAGE_FILES_MAX = 1_000

_STATES = {
    CatalogState.WAITING: pb.CATALOG_STATE_WAITING,
    CatalogState.DONE: pb.CATALOG_STATE_DONE,
    CatalogState.FAILED: pb.CATALOG_STATE_FAILED,
    CatalogState.OFF: pb.CATALOG_STATE_OFF,
}


class CatalogEdge(pb_grpc.CatalogServiceServicer):
    """The whole service: each method is that of the one part whose class defines it."""

    def __init__(self, *parts: pb_grpc.CatalogServiceServicer) -> None:
        for part in parts:
            for name in vars(type(part)):
                if name[0].isupper():
                    assert name not in vars(self), f"two parts have {name}"
                    setattr(self, name, getattr(part, name))


class CatalogQueryEdge(pb_grpc.CatalogServiceServicer):
    """Volumes, search, versions; cataloguing now or anew."""

    def __init__(self, cataloguing: Cataloguing, backups: Backups) -> None:
        self._cataloguing = cataloguing
        self._backups = backups

    def ListFileVolumes(
        self, request: pb.ListFileVolumesRequest, context: grpc.ServicerContext
    ) -> pb.ListFileVolumesResponse:
        backup = self._backups.get(check_id(request.backup_id, "backup id"))
        store = self._cataloguing.store
        state = store.states().get(backup.backup_id)
        volumes = [
            _volume(one, waiting=state is CatalogState.WAITING) for one in store.volumes(backup.backup_id)
        ]
        if not volumes:  # nothing is known but the disks
            problem = store.backup(backup.backup_id).problem if state else ""
            if state is None:
                state = CatalogState.WAITING if self._cataloguing.enabled else CatalogState.OFF
            volumes = [
                pb.FileVolume(
                    name=disk.disk_name, size_bytes=disk.size_bytes, problem=problem, state=_STATES[state]
                )
                for disk in backup.disks
            ]
        return pb.ListFileVolumesResponse(volumes=volumes)

    def FindFiles(self, request: pb.FindFilesRequest, context: grpc.ServicerContext) -> pb.FindFilesResponse:
        if request.page_size > PAGE_FILES_MAX:
            raise InvalidRequest(f"a page has at most {PAGE_FILES_MAX} files, not {request.page_size}")
        behind: Any = pages.after(request.page_token, int, int)
        size = request.page_size or PAGE_FILES
        store = self._cataloguing.store
        query = search.Query(
            request.pattern,
            vm=store.vm_id(request.vm) if request.vm else "",
            backup_id=check_id(request.backup_id, "backup id") if request.backup_id else "",
            case_sensitive=request.case_sensitive,
        )
        found = search.find(store, query, count=size + 1, after=behind)
        page, token = pages.cut(found, size, key=lambda hit: hit.after, to_pb=_hit)
        return pb.FindFilesResponse(files=page, next_page_token=token)

    def ListFileVersions(
        self, request: pb.ListFileVersionsRequest, context: grpc.ServicerContext
    ) -> pb.ListFileVersionsResponse:
        store = self._cataloguing.store
        found = search.versions(store, store.vm_id(request.vm), request.volume, request.path)
        return pb.ListFileVersionsResponse(
            versions=[
                pb.FileVersion(
                    file=file_to_pb(one.entry) if one.entry else None,
                    backup_ids=[backup.backup_id for backup in one.backups],
                    first_at_ns=one.backups[-1].at_ns,
                    last_at_ns=one.backups[0].at_ns,
                    absent=one.entry is None,
                )
                for one in found
            ]
        )

    def CatalogBackup(
        self, request: pb.CatalogBackupRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.CatalogBackupResponse]:
        backup = self._backups.get(check_id(request.backup_id, "backup id"))
        if not self._cataloguing.store.knows_whole(backup.backup_id):
            for one in self._cataloguing.catalog(backup):
                yield pb.CatalogBackupResponse(volume=one.volume, files_done=one.files)
        yield pb.CatalogBackupResponse(done=True)

    def RebuildCatalog(
        self, request: pb.RebuildCatalogRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.RebuildCatalogResponse]:
        for one in self._cataloguing.rebuild(request.target):
            yield pb.RebuildCatalogResponse(
                backups_done=one.backups_done,
                backups_total=one.backups_total,
                files_done=one.files,
                vm_name=one.vm_name,
                done=one.done,
                problems=one.problems,
            )


def _volume(one: StoredVolume, *, waiting: bool) -> pb.FileVolume:
    state = CatalogState.DONE
    if one.readable and not one.whole:
        state = CatalogState.WAITING if waiting and not one.walked else CatalogState.FAILED
    return pb.FileVolume(
        name=one.name,
        file_system=one.kind,
        label=one.label,
        uuid=one.uuid,
        size_bytes=one.size_bytes,
        readable=one.readable,
        problem=one.remark,
        file_count=one.file_count,
        state=_STATES[state],
    )


def _hit(one: search.Hit) -> pb.CatalogFile:
    return pb.CatalogFile(
        file=file_to_pb(one.entry),
        vm_id=one.vm_id,
        vm_name=one.vm_name,
        volume=one.volume,
        newest_backup_id=one.backup_id,
        newest_at_ns=one.at_ns,
        backup_count=one.backup_count,
    )
