"""Edge: those methods of CatalogService that bring files back (figure 6; [0046])."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import grpc

from arraylift.v1 import catalog_pb2 as pb
from arraylift.v1 import catalog_pb2_grpc as pb_grpc
from backup_server.backup_disks import BackupDisks
from backup_server.file_reads import Browser, Data, FileReads, Start, checked_paths
from backup_server.service.files import file_to_pb, path_bytes


class FileRestoreEdge(pb_grpc.CatalogServiceServicer):
    """The half of CatalogService that restores files."""

    def __init__(self, disks: BackupDisks, browser: Browser) -> None:
        self._disks = disks
        self._browser = browser

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
                    else:
                        done = pb.FilesDone(
                            file_count=one.file_count,
                            bytes_read=one.bytes_read,
                            problem_count=one.problem_count,
                        )
                        yield pb.ReadFilesResponse(done=done)


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
