"""Edge: a target, in the words of ``ports``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from arraylift.errors import Corruption, PeerUnavailable
from arraylift.logs import get_logger
from arraylift.rpc import pages
from arraylift.sizes import EXTENT_BYTES_MAX, MIB
from arraylift.v1 import image_pb2, image_pb2_grpc, target_admin_pb2, target_admin_pb2_grpc
from backup_server import convert
from backup_server.model import Backup, Verdict
from backup_server.peers.caller import Caller
from backup_server.peers.transfer import GrpcTransfer
from backup_server.ports import ComposedExtent

MANIFESTS_PER_PAGE = 200
EXTENTS_PER_MESSAGE = 4096

_log = get_logger("peers")


class GrpcTarget(Caller):
    """ports.Target."""

    def create_grant(
        self, transfer_id: str, *, array: str, image_name: str, full: bool, base_image_id: str = ""
    ) -> tuple[bytes, str]:
        request = target_admin_pb2.CreateGrantRequest(
            transfer_id=transfer_id,
            array=array,
            image_name=image_name,
            no_base=full,
            base_image_id=base_image_id,
        )
        answer = self.call(target_admin_pb2_grpc.TargetAdminServiceStub, "CreateGrant", request)
        return answer.grant, answer.base_image_id

    def revoke_grant(self, transfer_id: str) -> None:
        request = target_admin_pb2.RevokeGrantRequest(transfer_id=transfer_id)
        self.call(target_admin_pb2_grpc.TargetAdminServiceStub, "RevokeGrant", request)

    def _ask(self, method: str, request: object, *, slow: bool = False) -> Any:
        seconds = self._deadlines.long_seconds if slow else self._deadlines.call_seconds
        return self.call(image_pb2_grpc.ImageServiceStub, method, request, seconds=seconds)

    def compose_image(
        self, transfer_id: str, *, name: str, size_bytes: int, extents: Iterable[ComposedExtent]
    ) -> str:
        header = image_pb2.FileHeader(transfer_id=transfer_id, name=name, size_bytes=size_bytes)
        requests = _composition(header, extents)
        stream = self.stream(image_pb2_grpc.ImageServiceStub, "ComposeImage", requests)
        try:
            for news in stream:
                if news.image.image_id:
                    return str(news.image.image_id)
        finally:
            stream.cancel()
        raise PeerUnavailable(f"{self._what} ended the composition of {name} without an image")

    def delete_image(self, image_id: str) -> None:
        self._ask("DeleteImage", image_pb2.DeleteImageRequest(image_id=image_id, missing_ok=True), slow=True)

    def publish_backup(self, backup: Backup) -> None:
        request = image_pb2.PublishBackupRequest(manifest=convert.backup_to_manifest(backup))
        self._ask("PublishBackup", request, slow=True)

    def backup(self, backup_id: str) -> Backup:
        request = image_pb2.GetBackupManifestRequest(backup_id=backup_id)
        answer = self.call(image_pb2_grpc.ImageServiceStub, "GetBackupManifest", request)
        return convert.backup_from_manifest(answer.manifest, self._peer.name)

    def backups(self) -> Iterator[Backup]:
        request = image_pb2.ListBackupManifestsRequest(page_size=MANIFESTS_PER_PAGE)
        for page in pages.follow(lambda asked: self._ask("ListBackupManifests", asked), request):
            for manifest in page.manifests:
                try:
                    yield convert.backup_from_manifest(manifest, self._peer.name)
                except Corruption as error:  # one of them hides no other
                    _log.error("backup_unreadable", backup=manifest.backup_id, error=str(error))

    def delete_backup(self, backup_id: str) -> None:
        request = image_pb2.DeleteBackupManifestRequest(backup_id=backup_id, missing_ok=True)
        self._ask("DeleteBackupManifest", request, slow=True)

    def lock_backup(self, backup_id: str, until_ns: int) -> None:
        self._ask("LockImage", image_pb2.LockImageRequest(backup_id=backup_id, until_ns=until_ns), slow=True)

    def verify_image(self, image_id: str, max_age_seconds: int) -> AbstractContextManager[Iterator[Verdict]]:
        request = image_pb2.VerifyImageRequest(image_id=image_id, max_age_seconds=max_age_seconds)
        return self._verdicts(request)

    @contextmanager
    def _verdicts(self, request: image_pb2.VerifyImageRequest) -> Iterator[Iterator[Verdict]]:
        stream = self.stream(image_pb2_grpc.ImageServiceStub, "VerifyImage", request)
        try:
            yield map(convert.verdict_from_pb, stream)
        finally:
            stream.cancel()

    def confirm_time(self, wall_ns: int) -> bool:
        stub = target_admin_pb2_grpc.TargetAdminServiceStub
        stats = self.call(stub, "GetTargetStats", target_admin_pb2.GetTargetStatsRequest())
        if stats.lock_clock_lags:
            self.call(stub, "ConfirmTime", target_admin_pb2.ConfirmTimeRequest(wall_ns=wall_ns))
        return bool(stats.lock_clock_lags)

    def send_image(
        self, image_id: str, transfer_id: str, *, receiver_address: str, grant: bytes, patience_seconds: int
    ) -> GrpcTransfer:
        request = image_pb2.SendImageRequest(
            image_id=image_id,
            receiver_address=receiver_address,
            transfer_id=transfer_id,
            grant=grant,
            patience_seconds=patience_seconds,
        )
        return GrpcTransfer(self.stream(image_pb2_grpc.ImageServiceStub, "SendImage", request))

    def read_range(
        self, image_id: str, offset: int, length: int
    ) -> AbstractContextManager[Iterator[tuple[bytes, int]]]:
        request = image_pb2.ReadRangeRequest(image_id=image_id, offset=offset, length=length)
        return self._pieces(request)

    @contextmanager
    def _pieces(self, request: image_pb2.ReadRangeRequest) -> Iterator[Iterator[tuple[bytes, int]]]:
        stream = self.stream(image_pb2_grpc.ImageServiceStub, "ReadRange", request)
        try:
            yield _in_order(stream, request.offset, self._what)
        finally:
            stream.cancel()


def _composition(
    header: image_pb2.FileHeader, extents: Iterable[ComposedExtent]
) -> Iterator[image_pb2.ComposeImageRequest]:
    """A whole stream, of messages within their limits."""
    yield image_pb2.ComposeImageRequest(header=header)
    message, literal_bytes, count, covered = image_pb2.ComposeExtents(), 0, 0, 0
    for one in extents:
        full = len(message.extents) == EXTENTS_PER_MESSAGE
        if full or literal_bytes + len(one.literal) > EXTENT_BYTES_MAX:
            yield image_pb2.ComposeImageRequest(extents=message)
            message, literal_bytes = image_pb2.ComposeExtents(), 0
        message.extents.add(
            offset=one.offset,
            length=one.length,
            image_id=one.image_id,
            image_offset=one.image_offset,
            literal=one.literal,
        )
        literal_bytes += len(one.literal)
        count, covered = count + 1, covered + one.length
    yield image_pb2.ComposeImageRequest(extents=message)
    end = image_pb2.FileEnd(extent_count=count, bytes_written=covered)
    yield image_pb2.ComposeImageRequest(end=end)


def _in_order(pieces: Iterator[Any], at: int, what: str) -> Iterator[tuple[bytes, int]]:
    for piece in pieces:
        if piece.offset != at or len(piece.data) > MIB or bool(piece.data) == bool(piece.zero_bytes):
            raise Corruption(f"{what} sent bytes of {piece.offset} where {at} was due", subject=what)
        at += len(piece.data) + piece.zero_bytes
        yield piece.data, piece.zero_bytes
