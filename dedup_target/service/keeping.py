"""Edge: what keeps a target in order: locks, the clock that judges them, tenants and their quotas."""

from __future__ import annotations

from collections import Counter

import grpc

from arraylift.errors import InvalidRequest
from arraylift.ids import ImageId, check_id
from arraylift.v1 import image_pb2, image_pb2_grpc, target_admin_pb2, target_admin_pb2_grpc
from dedup_target.backup_manifest_format import BackupId
from dedup_target.backups import Backups
from dedup_target.lock_clock import LockClock
from dedup_target.store import Store


class ImageLocksEdge(image_pb2_grpc.ImageServiceServicer):
    """LockImage."""

    _backups: Backups

    def LockImage(
        self, request: image_pb2.LockImageRequest, context: grpc.ServicerContext
    ) -> image_pb2.LockImageResponse:
        if bool(request.image_id) == bool(request.backup_id):
            raise InvalidRequest("name an image or a backup, one of the two")
        if request.image_id:
            self._backups.lock_image(ImageId(check_id(request.image_id, "image id")), request.until_ns)
        else:
            self._backups.lock_backup(BackupId(check_id(request.backup_id, "backup id")), request.until_ns)
        return image_pb2.LockImageResponse(lock_until_ns=request.until_ns)


class KeepingEdge(target_admin_pb2_grpc.TargetAdminServiceServicer):
    """ConfirmTime, ListTenants, SetQuota."""

    _store: Store
    _lock_clock: LockClock

    def ConfirmTime(
        self, request: target_admin_pb2.ConfirmTimeRequest, context: grpc.ServicerContext
    ) -> target_admin_pb2.ConfirmTimeResponse:
        now = self._lock_clock.confirm(request.wall_ns)
        return target_admin_pb2.ConfirmTimeResponse(lock_clock_ns=now.time_ns, lags=now.lags)

    def ListTenants(
        self, request: target_admin_pb2.ListTenantsRequest, context: grpc.ServicerContext
    ) -> target_admin_pb2.ListTenantsResponse:
        space = self._store.space
        images = Counter(image.tenant for image in self._store.manifests.all())
        return target_admin_pb2.ListTenantsResponse(
            tenants=[
                target_admin_pb2.Tenant(
                    name=known.name,
                    quota_bytes=space.quotas.of(known.tenant),
                    stored_bytes=space.stored_bytes(known.tenant),
                    image_count=images[known.tenant],
                )
                for known in self._store.keys.all()
            ]
        )

    def SetQuota(
        self, request: target_admin_pb2.SetQuotaRequest, context: grpc.ServicerContext
    ) -> target_admin_pb2.SetQuotaResponse:
        tenant = self._store.keys.by_name(request.tenant).tenant
        self._store.space.quotas.set(tenant, request.quota_bytes)
        return target_admin_pb2.SetQuotaResponse()
