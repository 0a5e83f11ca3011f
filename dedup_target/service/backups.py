"""Edge: those methods of ImageService that publish and remove."""

from __future__ import annotations

import contextlib

import grpc

from arraylift.errors import InvalidRequest, NotFound
from arraylift.ids import ImageId, TenantId, check_id
from arraylift.v1 import image_pb2 as pb
from dedup_target.backup_manifest_format import BackupId, BackupManifest
from dedup_target.backups import Backups
from dedup_target.key_store import DEFAULT_TENANT
from dedup_target.service.keeping import ImageLocksEdge

PAGE_SIZE_MAX = 1000


class BackupsEdge(ImageLocksEdge):
    """The half of ImageService that changes something; ``images`` has the other."""

    def __init__(self, backups: Backups) -> None:
        self._backups = backups

    def DeleteImage(
        self, request: pb.DeleteImageRequest, context: grpc.ServicerContext
    ) -> pb.DeleteImageResponse:
        with contextlib.suppress(NotFound) if request.missing_ok else contextlib.nullcontext():
            self._backups.delete_image(ImageId(check_id(request.image_id, "image id")))
        return pb.DeleteImageResponse()

    def PublishBackup(
        self, request: pb.PublishBackupRequest, context: grpc.ServicerContext
    ) -> pb.PublishBackupResponse:
        manifest = request.manifest
        self._backups.publish(
            BackupManifest(
                backup_id=BackupId(check_id(manifest.backup_id, "backup id")),
                tenant=TenantId(0),  # found by its name
                tenant_name=manifest.tenant or DEFAULT_TENANT,
                vm_id=manifest.vm_id,
                vm_name=manifest.vm_name,
                snapshot_at_ns=manifest.snapshot_at_ns,
                images=tuple((image.disk_name, ImageId(image.image_id)) for image in manifest.images),
                attributes=manifest.attributes,
            )
        )
        return pb.PublishBackupResponse()

    def GetBackupManifest(
        self, request: pb.GetBackupManifestRequest, context: grpc.ServicerContext
    ) -> pb.GetBackupManifestResponse:
        found = self._backups.get(BackupId(check_id(request.backup_id, "backup id")))
        return pb.GetBackupManifestResponse(manifest=_manifest(found))

    def ListBackupManifests(
        self, request: pb.ListBackupManifestsRequest, context: grpc.ServicerContext
    ) -> pb.ListBackupManifestsResponse:
        if request.page_size > PAGE_SIZE_MAX:
            raise InvalidRequest(f"a page has at most {PAGE_SIZE_MAX} backups")
        page, token = self._backups.page(request.page_size or PAGE_SIZE_MAX, request.page_token)
        return pb.ListBackupManifestsResponse(manifests=map(_manifest, page), next_page_token=token)

    def DeleteBackupManifest(
        self, request: pb.DeleteBackupManifestRequest, context: grpc.ServicerContext
    ) -> pb.DeleteBackupManifestResponse:
        with contextlib.suppress(NotFound) if request.missing_ok else contextlib.nullcontext():
            self._backups.remove(BackupId(check_id(request.backup_id, "backup id")))
        return pb.DeleteBackupManifestResponse()


def _manifest(manifest: BackupManifest) -> pb.BackupManifest:
    return pb.BackupManifest(
        backup_id=manifest.backup_id,
        tenant=manifest.tenant_name,
        vm_id=manifest.vm_id,
        vm_name=manifest.vm_name,
        snapshot_at_ns=manifest.snapshot_at_ns,
        images=[pb.BackupImage(disk_name=name, image_id=image_id) for name, image_id in manifest.images],
        attributes=manifest.attributes,
        lock_until_ns=manifest.lock_until_ns or 0,
    )
