"""Edge: those methods of CatalogService that bring files back (figure 6; [0046])."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import grpc

from arraylift.errors import InvalidRequest
from arraylift.ids import check_id
from arraylift.v1 import catalog_pb2 as pb
from arraylift.v1 import catalog_pb2_grpc as pb_grpc
from backup_server.backup_disks import BackupDisks
from backup_server.catalog.browse import checked_path
from backup_server.file_reads import Browser, Data, Done, FileReads, Start, checked_paths
from backup_server.job_rules import FileOrder
from backup_server.orders import Orders
from backup_server.service.files import file_to_pb, path_bytes


class FileRestoreEdge(pb_grpc.CatalogServiceServicer):
    """The half of CatalogService that restores files."""

    def __init__(self, disks: BackupDisks, browser: Browser, orders: Orders) -> None:
        self._disks = disks
        self._browser = browser
        self._orders = orders

    def ReadFiles(
        self, request: pb.ReadFilesRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ReadFilesResponse]:
        paths = checked_paths(request.paths, recursive=request.recursive)
        with self._disks.opened(request.backup_id) as disks:
            reads = FileReads(self._browser, disks, request.volume)
            with closing(reads.read(paths, recursive=request.recursive)) as stream:
                for one in stream:
                    if isinstance(one, Data):
                        data = pb.FileData(offset=one.offset, data=one.data)
                        yield pb.ReadFilesResponse(data=data)
                    elif isinstance(one, Start):
                        yield pb.ReadFilesResponse(start=_start(one))
                    elif isinstance(one, Done):
                        done = pb.FilesDone(
                            file_count=one.file_count,
                            bytes_read=one.bytes_read,
                            problem_count=one.problem_count,
                        )
                        yield pb.ReadFilesResponse(done=done)

    def StartFileRestore(
        self, request: pb.StartFileRestoreRequest, context: grpc.ServicerContext
    ) -> pb.StartFileRestoreResponse:
        on_disk = request.destination == pb.FILE_DESTINATION_RESTORE_DISK
        if not on_disk and request.destination != pb.FILE_DESTINATION_GUEST:
            raise InvalidRequest("no place is named where the files go", next_step="name guest or disk")
        if on_disk and (request.directory or request.overwrite):
            raise InvalidRequest("a new disk has no files yet", next_step="name no directory")
        order = FileOrder(
            volume=request.volume,
            paths=tuple(checked_paths(request.paths, recursive=True)),
            on_disk=on_disk,
            directory=checked_path(request.directory) if request.directory else "",
            overwrite=request.overwrite,
        )
        job_id = self._orders.start_file_restore(
            check_id(request.backup_id, "backup id"), order, vm=request.vm, direct=request.direct
        )
        return pb.StartFileRestoreResponse(job_id=job_id)


def _start(one: Start) -> pb.FileStart:
    entry = one.entry
    return pb.FileStart(
        file=file_to_pb(entry),
        path=path_bytes(entry.path),
        link_target=path_bytes(entry.link_target),
        xattrs={name.decode("utf-8", "backslashreplace"): value for name, value in entry.attributes},
        hard_link_to=path_bytes(one.hard_link_to),
        device_major=entry.device[0],
        device_minor=entry.device[1],
        problem=one.problem,
    )
