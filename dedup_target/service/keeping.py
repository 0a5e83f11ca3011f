"""Edge: locks, and the clock that judges them."""

from __future__ import annotations

import grpc

from arraylift.errors import InvalidRequest
from arraylift.ids import ImageId, check_id
from arraylift.v1 import image_pb2, image_pb2_grpc, target_admin_pb2, target_admin_pb2_grpc
from dedup_target.backup_manifest_format import BackupId
from dedup_target.backups import Backups
from dedup_target.lock_clock import LockClock


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


class LockClockEdge(target_admin_pb2_grpc.TargetAdminServiceServicer):
    """ConfirmTime."""

    _lock_clock: LockClock

    def ConfirmTime(
        self, request: target_admin_pb2.ConfirmTimeRequest, context: grpc.ServicerContext
    ) -> target_admin_pb2.ConfirmTimeResponse:
        now = self._lock_clock.confirm(request.wall_ns)
        return target_admin_pb2.ConfirmTimeResponse(lock_clock_ns=now.time_ns, lags=now.lags)
