"""Edge: those methods of BackupService that look into images (figure 6; [0046])."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import grpc

from arraylift.errors import InvalidRequest
from arraylift.rpc import pages
from arraylift.sizes import MIB
from arraylift.v1 import backup_pb2 as pb
from arraylift.v1 import backup_pb2_grpc as pb_grpc
from backup_server.backup_disks import BackupDisks
from backup_server.backups import Backups
from backup_server.catalog.entry import DiskSet, FileEntry, Volume
from backup_server.ports import Peers
from backup_server.registry import Registry

PATH_BYTES_MAX = 4096


class Browser(Protocol):
    """The catalog's parser: ``backup_server.catalog.browse``."""

    def list_directory(
        self, disks: DiskSet, path: str, volume: str
    ) -> tuple[Volume, Sequence[FileEntry]]: ...
    def read_file(
        self, disks: DiskSet, path: str, volume: str
    ) -> tuple[Volume, FileEntry, Iterator[bytes]]: ...


class FilesEdge(pb_grpc.BackupServiceServicer):
    """The half of BackupService that reads files; ``backup`` has the other."""

    def __init__(self, backups: Backups, registry: Registry, peers: Peers, browser: Browser) -> None:
        self._backups = backups
        self._registry = registry
        self._disks = BackupDisks(backups, registry, peers)
        self._browser = browser

    def ListFiles(self, request: pb.ListFilesRequest, context: grpc.ServicerContext) -> pb.ListFilesResponse:
        behind = pages.after(request.page_token, str)
        with self._disks.opened(request.backup_id, request.disk_name) as disks:
            volume, found = self._browser.list_directory(disks, _path(request.path), request.volume)
        page, token = pages.cut(
            pages.rest(found, behind, _by_path), request.page_size, key=_by_path, to_pb=file_to_pb
        )
        return pb.ListFilesResponse(files=page, next_page_token=token, volume=volume.key)

    def GetFile(
        self, request: pb.GetFileRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.GetFileResponse]:
        with self._disks.opened(request.backup_id, request.disk_name) as disks:
            volume, entry, pieces = self._browser.read_file(disks, _path(request.path), request.volume)
            yield pb.GetFileResponse(file=file_to_pb(entry), volume=volume.key)
            for piece in pieces:
                for start in range(0, len(piece), MIB):
                    yield pb.GetFileResponse(data=piece[start : start + MIB])


def _by_path(entry: FileEntry) -> pages.Key:
    """Keeps the order of the name's bytes, which is the listing's."""
    return (entry.path.encode("utf-8", "surrogateescape").decode("latin-1"),)


def _path(path: str) -> str:
    if not path.startswith("/") or "\0" in path or len(path.encode()) > PATH_BYTES_MAX:
        raise InvalidRequest(f"{path[:80]!r} is no absolute path", next_step="begin it with '/'")
    if ".." in path.split("/"):
        raise InvalidRequest(f"{path[:80]!r} has '..' in it", next_step="write the path out")
    return path


def file_to_pb(entry: FileEntry) -> pb.BackupFile:
    return pb.BackupFile(
        path=text_of(entry.path),
        size_bytes=entry.size_bytes,
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        modified_at_ns=entry.modified_at_ns,
        link_target=text_of(entry.link_target),
    )


def text_of(name: str) -> str:
    """Names that are not UTF-8 are shown with escapes; a message cannot carry them as they are."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def path_bytes(path: str) -> bytes:
    """Names as they are in the file system."""
    return path.encode("utf-8", "surrogateescape")
