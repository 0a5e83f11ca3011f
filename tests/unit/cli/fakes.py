"""An array and a target in this process: real TLS, real gRPC, stores of plain dicts."""
# ruff: noqa: N802  # the methods have the names of their RPCs

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc

from arraylift.errors import AlreadyExists, ArrayliftError, NotFound
from arraylift.v1 import (
    backup_logic_pb2,
    backup_logic_pb2_grpc,
    common_pb2,
    image_pb2,
    image_pb2_grpc,
    target_admin_pb2,
    target_admin_pb2_grpc,
    volume_pb2,
    volume_pb2_grpc,
)

Context = grpc.ServicerContext
PIECE_BYTES = 100_000  # odd on purpose: pieces do not keep to granules


def hex_id(number: int) -> str:
    return f"{number:032x}"


@dataclass
class FakeVolumes(volume_pb2_grpc.VolumeServiceServicer):
    """Volumes as byte arrays; ``received`` keeps every message that a stream brought."""

    volumes: dict[str, bytearray] = field(default_factory=dict)
    snapshots: list[volume_pb2.Snapshot] = field(default_factory=list)
    frozen: dict[str, bytes] = field(default_factory=dict)
    received: list[Any] = field(default_factory=list)
    exports: dict[str, volume_pb2.Export] = field(default_factory=dict)
    cut_reads_at: int | None = None
    fail_with: ArrayliftError | None = None

    def _volume(self, name: str) -> volume_pb2.Volume:
        return volume_pb2.Volume(
            volume_id=hex_id(hash(name) % 10**9), name=name, size_bytes=len(self.volumes[name])
        )

    def ListVolumes(
        self, request: volume_pb2.ListVolumesRequest, context: Context
    ) -> volume_pb2.ListVolumesResponse:
        if self.fail_with is not None:
            raise self.fail_with
        wanted = [name for name in self.volumes if request.name in {"", name}]
        return volume_pb2.ListVolumesResponse(volumes=[self._volume(name) for name in wanted])

    def ImportVolume(
        self, requests: Iterator[volume_pb2.ImportVolumeRequest], context: Context
    ) -> volume_pb2.ImportVolumeResponse:
        header = next(requests).header
        if header.name in self.volumes:
            raise AlreadyExists(f"volume {header.name} exists", next_step="give another name")
        content = bytearray(header.size_bytes)
        written = 0
        for request in requests:
            self.received.append(request)
            if request.HasField("end"):
                assert request.end.bytes_written == written
                self.volumes[header.name] = content
                break
            extent = request.extent
            content[extent.offset : extent.offset + len(extent.data)] = extent.data
            written += len(extent.data)
        return volume_pb2.ImportVolumeResponse(volume=self._volume(header.name), bytes_written=written)

    def DeleteVolume(
        self, request: volume_pb2.DeleteVolumeRequest, context: Context
    ) -> volume_pb2.DeleteVolumeResponse:
        self.volumes.pop(request.name, None)
        return volume_pb2.DeleteVolumeResponse()

    def ReadExtents(
        self, request: volume_pb2.ReadExtentsRequest, context: Context
    ) -> Iterator[volume_pb2.ReadExtentsResponse]:
        content = bytes(self.volumes.get(request.volume_name) or self.frozen[request.snapshot_id])
        end = len(content) if self.cut_reads_at is None else self.cut_reads_at
        for offset in range(0, end, PIECE_BYTES):
            piece = content[offset : min(offset + PIECE_BYTES, end)]
            if any(piece):
                extent = volume_pb2.Extent(offset=offset, data=piece)
                yield volume_pb2.ReadExtentsResponse(extent=extent, size_bytes=len(content))
            else:
                extent = volume_pb2.Extent(offset=offset)
                yield volume_pb2.ReadExtentsResponse(extent=extent, zero_bytes=len(piece))

    def WriteExtents(
        self, requests: Iterator[volume_pb2.WriteExtentsRequest], context: Context
    ) -> volume_pb2.WriteExtentsResponse:
        name = next(requests).volume_name
        written = 0
        for request in requests:
            self.received.append(request)
            extent = request.extent
            data = extent.data or bytes(request.zero_bytes)
            self.volumes[name][extent.offset : extent.offset + len(data)] = data
            written += len(data)
        return volume_pb2.WriteExtentsResponse(bytes_written=written)

    def CreateSnapshots(
        self, request: volume_pb2.CreateSnapshotsRequest, context: Context
    ) -> volume_pb2.CreateSnapshotsResponse:
        made = []
        for name in request.volume_names:
            if name not in self.volumes:
                raise NotFound(f"there is no volume {name}", subject=f"volume {name}")
            snapshot = volume_pb2.Snapshot(
                snapshot_id=hex_id(len(self.snapshots) + 1),
                volume_name=name,
                name=request.name,
                size_bytes=len(self.volumes[name]),
            )
            self.frozen[snapshot.snapshot_id] = bytes(self.volumes[name])
            self.snapshots.append(snapshot)
            made.append(snapshot)
        return volume_pb2.CreateSnapshotsResponse(snapshots=made)

    def ListSnapshots(
        self, request: volume_pb2.ListSnapshotsRequest, context: Context
    ) -> volume_pb2.ListSnapshotsResponse:
        found = [each for each in self.snapshots if request.volume_name in {"", each.volume_name}]
        return volume_pb2.ListSnapshotsResponse(snapshots=found)

    def DeleteSnapshot(
        self, request: volume_pb2.DeleteSnapshotRequest, context: Context
    ) -> volume_pb2.DeleteSnapshotResponse:
        self.snapshots = [each for each in self.snapshots if each.snapshot_id != request.snapshot_id]
        return volume_pb2.DeleteSnapshotResponse()

    def CreateExport(
        self, request: volume_pb2.CreateExportRequest, context: Context
    ) -> volume_pb2.CreateExportResponse:
        made = volume_pb2.Export(
            name=request.name,
            volume_name=request.volume_name,
            snapshot_id=request.snapshot_id,
            read_only=request.read_only or bool(request.snapshot_id),
            uri=f"nbds://127.0.0.1:10809/{request.name}",
        )
        self.exports[request.name] = made
        return volume_pb2.CreateExportResponse(export=made)

    def ListExports(
        self, request: volume_pb2.ListExportsRequest, context: Context
    ) -> volume_pb2.ListExportsResponse:
        return volume_pb2.ListExportsResponse(exports=self.exports.values())

    def DeleteExport(
        self, request: volume_pb2.DeleteExportRequest, context: Context
    ) -> volume_pb2.DeleteExportResponse:
        if self.exports.pop(request.name, None) is None and not request.missing_ok:
            raise NotFound(f"there is no export {request.name}")
        return volume_pb2.DeleteExportResponse()

    def PrepareRestore(
        self, request: volume_pb2.PrepareRestoreRequest, context: Context
    ) -> volume_pb2.PrepareRestoreResponse:
        self.received.append(request)
        return volume_pb2.PrepareRestoreResponse(grant=b"g" * 32)


@dataclass
class FakeBackupLogic(backup_logic_pb2_grpc.BackupLogicServiceServicer):
    """Answers two messages of progress; the second carries the receipt unless ``error`` is set."""

    received: list[backup_logic_pb2.SendSnapshotRequest] = field(default_factory=list)
    rates: list[tuple[str, int]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    foreign: list[backup_logic_pb2.SendForeignDiskRequest] = field(default_factory=list)
    error: ArrayliftError | None = None
    has_receipt: bool = True

    def SendSnapshot(
        self, request: backup_logic_pb2.SendSnapshotRequest, context: Context
    ) -> Iterator[backup_logic_pb2.SendSnapshotResponse]:
        self.received.append(request)
        figures = common_pb2.TransferFigures(spans_total=2, bytes_read=1 << 20, bytes_sent_wire=1000)
        yield backup_logic_pb2.SendSnapshotResponse(spans_done=1, figures=figures)
        if self.error is not None:
            raise self.error
        yield backup_logic_pb2.SendSnapshotResponse(
            spans_done=2,
            figures=figures,
            receipt_id=hex_id(77) if self.has_receipt else "",
            root=b"r" * 32,
            change_source=backup_logic_pb2.CHANGE_SOURCE_BIRTHS,
        )

    def ListTransfers(
        self, request: backup_logic_pb2.ListTransfersRequest, context: Context
    ) -> backup_logic_pb2.ListTransfersResponse:
        figures = common_pb2.TransferFigures(spans_total=2, bytes_read=1 << 20)
        transfer = backup_logic_pb2.Transfer(
            transfer_id=hex_id(79), source="snapshot s", spans_done=1, figures=figures
        )
        return backup_logic_pb2.ListTransfersResponse(transfers=[transfer])

    def SetTransferRate(
        self, request: backup_logic_pb2.SetTransferRateRequest, context: Context
    ) -> backup_logic_pb2.SetTransferRateResponse:
        self.rates.append((request.transfer_id, request.bytes_per_second_max))
        return backup_logic_pb2.SetTransferRateResponse()

    def CancelTransfer(
        self, request: backup_logic_pb2.CancelTransferRequest, context: Context
    ) -> backup_logic_pb2.CancelTransferResponse:
        self.cancelled.append(request.transfer_id)
        return backup_logic_pb2.CancelTransferResponse()

    def SendForeignDisk(
        self, request: backup_logic_pb2.SendForeignDiskRequest, context: Context
    ) -> Iterator[backup_logic_pb2.SendForeignDiskResponse]:
        self.foreign.append(request)
        if self.error is not None:
            raise self.error
        yield backup_logic_pb2.SendForeignDiskResponse(
            spans_done=2,
            receipt_id=hex_id(78),
            root=b"r" * 32,
            change_source=backup_logic_pb2.CHANGE_SOURCE_BITMAP,
        )


@dataclass
class FakeAdmin(target_admin_pb2_grpc.TargetAdminServiceServicer):
    granted: list[target_admin_pb2.CreateGrantRequest] = field(default_factory=list)
    scrubs: list[target_admin_pb2.ScrubRequest] = field(default_factory=list)
    scrub_ends: target_admin_pb2.ScrubResponse | None = None
    quotas: dict[str, int] = field(default_factory=lambda: {"default": 0})
    revoked: list[str] = field(default_factory=list)
    collected: list[target_admin_pb2.CollectGarbageRequest] = field(default_factory=list)
    unit_calls: list[Any] = field(default_factory=list)
    is_cut: bool = False
    """Streams of progress end without their last message."""

    def ListUnits(
        self, request: target_admin_pb2.ListUnitsRequest, context: Context
    ) -> target_admin_pb2.ListUnitsResponse:
        active = target_admin_pb2.Unit(name="active", role=target_admin_pb2.UNIT_ROLE_ACTIVE, image_count=4)
        cold = target_admin_pb2.Unit(
            name="cold",
            role=target_admin_pb2.UNIT_ROLE_ARCHIVE,
            location="s3://backups/target1",
            absent=True,
            problem="no answer",
        )
        return target_admin_pb2.ListUnitsResponse(units=[active, cold])

    def AddUnit(
        self, request: target_admin_pb2.AddUnitRequest, context: Context
    ) -> target_admin_pb2.AddUnitResponse:
        self.unit_calls.append(request)
        unit = target_admin_pb2.Unit(name=request.name, role=request.role, location=request.location)
        return target_admin_pb2.AddUnitResponse(unit=unit)

    def RetireUnit(
        self, request: target_admin_pb2.RetireUnitRequest, context: Context
    ) -> target_admin_pb2.RetireUnitResponse:
        self.unit_calls.append(request)
        return target_admin_pb2.RetireUnitResponse()

    def DrainUnit(
        self, request: target_admin_pb2.DrainUnitRequest, context: Context
    ) -> Iterator[target_admin_pb2.DrainUnitResponse]:
        self.unit_calls.append(request)
        for progress in self._moving(3):
            yield target_admin_pb2.DrainUnitResponse(progress=progress)

    def MoveImages(
        self, request: target_admin_pb2.MoveImagesRequest, context: Context
    ) -> Iterator[target_admin_pb2.MoveImagesResponse]:
        self.unit_calls.append(request)
        for progress in self._moving(1):
            yield target_admin_pb2.MoveImagesResponse(progress=progress)

    def RebuildUnit(
        self, request: target_admin_pb2.RebuildUnitRequest, context: Context
    ) -> Iterator[target_admin_pb2.RebuildUnitResponse]:
        self.unit_calls.append(request)
        yield target_admin_pb2.RebuildUnitResponse(containers_done=1, containers_total=5)
        if not self.is_cut:
            yield target_admin_pb2.RebuildUnitResponse(
                containers_done=5, containers_total=5, records=700, manifests_restored=2, done=True
            )

    def _moving(self, images: int) -> Iterator[target_admin_pb2.MoveProgress]:
        yield target_admin_pb2.MoveProgress(images_total=images, image_id=hex_id(1))
        if not self.is_cut:
            yield target_admin_pb2.MoveProgress(
                images_done=images,
                images_total=images,
                kept_image_ids=[hex_id(2)],
                kept_reasons=["it is the newest image of its disk"],
                done=True,
            )

    def CreateGrant(
        self, request: target_admin_pb2.CreateGrantRequest, context: Context
    ) -> target_admin_pb2.CreateGrantResponse:
        self.granted.append(request)
        return target_admin_pb2.CreateGrantResponse(grant=b"g" * 32, base_image_id=hex_id(5))

    def RevokeGrant(
        self, request: target_admin_pb2.RevokeGrantRequest, context: Context
    ) -> target_admin_pb2.RevokeGrantResponse:
        self.revoked.append(request.transfer_id)
        return target_admin_pb2.RevokeGrantResponse()

    def GetTargetStats(
        self, request: target_admin_pb2.GetTargetStatsRequest, context: Context
    ) -> target_admin_pb2.GetTargetStatsResponse:
        return target_admin_pb2.GetTargetStatsResponse(
            image_count=3,
            logical_bytes=300,
            container_bytes=100,
            free_bytes=50,
            reserve_bytes=60,
            below_reserve=True,
            lock_clock_ns=10**18,
            lock_clock_lags=True,
            units=[
                target_admin_pb2.UnitStats(unit="active", image_count=2, container_bytes=70, free_bytes=50),
                target_admin_pb2.UnitStats(unit="vault", image_count=1, absent=True),
            ],
        )

    def Scrub(
        self, request: target_admin_pb2.ScrubRequest, context: Context
    ) -> Iterator[target_admin_pb2.ScrubResponse]:
        self.scrubs.append(request)
        yield target_admin_pb2.ScrubResponse(containers_done=1, containers_total=2)
        if self.scrub_ends is not None:
            yield self.scrub_ends

    def ListTenants(
        self, request: target_admin_pb2.ListTenantsRequest, context: Context
    ) -> target_admin_pb2.ListTenantsResponse:
        tenants = [
            target_admin_pb2.Tenant(name=name, quota_bytes=quota, stored_bytes=2**20, image_count=3)
            for name, quota in self.quotas.items()
        ]
        return target_admin_pb2.ListTenantsResponse(tenants=tenants)

    def SetQuota(
        self, request: target_admin_pb2.SetQuotaRequest, context: Context
    ) -> target_admin_pb2.SetQuotaResponse:
        self.quotas[request.tenant] = request.quota_bytes
        return target_admin_pb2.SetQuotaResponse()

    def CollectGarbage(
        self, request: target_admin_pb2.CollectGarbageRequest, context: Context
    ) -> Iterator[target_admin_pb2.CollectGarbageResponse]:
        self.collected.append(request)
        cycle = len(self.collected)
        yield target_admin_pb2.CollectGarbageResponse(phase="mark", done=1, total=2, cycle=cycle)
        if not self.is_cut:
            yield target_admin_pb2.CollectGarbageResponse(
                phase="done",
                cycle=cycle,
                container_count=4,
                live_bytes=3000,
                dead_bytes=1000,
                deleted_count=1,
            )

    def SurveySpace(
        self, request: target_admin_pb2.SurveySpaceRequest, context: Context
    ) -> Iterator[target_admin_pb2.SurveySpaceResponse]:
        yield target_admin_pb2.SurveySpaceResponse(images_done=1, images_total=2)
        if not self.is_cut:
            use = target_admin_pb2.SpaceUse(
                name="web", stored_bytes=1 << 20, plain_bytes=2 << 20, mapped_bytes=8 << 20
            )
            vms = [target_admin_pb2.SpaceUse(name="default/" + hex_id(1), unique_stored_bytes=5 << 20)]
            yield target_admin_pb2.SurveySpaceResponse(
                done=True, total=use, units=[use], vms=vms if request.by_vm else []
            )


@dataclass
class FakeImages(image_pb2_grpc.ImageServiceServicer):
    """Images by id, newest first; ``page_max`` bounds a page whatever was asked for."""

    images: list[image_pb2.Image] = field(default_factory=list)
    content: bytes = b""
    page_max: int = 1000
    damaged_spans: list[int] = field(default_factory=list)
    verified: list[image_pb2.VerifyImageRequest] = field(default_factory=list)
    locked: list[image_pb2.LockImageRequest] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    heals: bool = True
    """Whether what was missing is there once an image was deleted, as ``heal`` does last."""

    def VerifyImage(
        self, request: image_pb2.VerifyImageRequest, context: Context
    ) -> Iterator[image_pb2.VerifyImageResponse]:
        self.verified.append(request)
        yield image_pb2.VerifyImageResponse(containers_done=1, containers_total=2)
        yield image_pb2.VerifyImageResponse(
            done=True,
            whole=not self.damaged_spans,
            damaged_span_count=len(self.damaged_spans),
            damaged_spans=self.damaged_spans,
            oldest_check_at_ns=10**18,
        )

    def LockImage(self, request: image_pb2.LockImageRequest, context: Context) -> image_pb2.LockImageResponse:
        self.locked.append(request)
        return image_pb2.LockImageResponse(lock_until_ns=request.until_ns)

    def DeleteImage(
        self, request: image_pb2.DeleteImageRequest, context: Context
    ) -> image_pb2.DeleteImageResponse:
        self.deleted.append(request.image_id)
        if self.heals:
            self.damaged_spans = []
        return image_pb2.DeleteImageResponse()

    page_sizes: list[int] = field(default_factory=list)
    sent: list[image_pb2.SendImageRequest] = field(default_factory=list)
    cut_reads_at: int | None = None

    def ListImages(
        self, request: image_pb2.ListImagesRequest, context: Context
    ) -> image_pb2.ListImagesResponse:
        self.page_sizes.append(request.page_size)
        found = [image for image in self.images if request.name in {"", image.name}]
        start = int(request.page_token or 0)
        end = start + min(request.page_size or 1000, self.page_max)
        token = str(end) if end < len(found) else ""
        return image_pb2.ListImagesResponse(images=found[start:end], next_page_token=token)

    def GetImage(self, request: image_pb2.GetImageRequest, context: Context) -> image_pb2.GetImageResponse:
        for image in self.images:
            if image.image_id == request.image_id:
                return image_pb2.GetImageResponse(image=image)
        raise NotFound(f"there is no image {request.image_id}")

    def PreviewDelete(
        self, request: image_pb2.PreviewDeleteRequest, context: Context
    ) -> image_pb2.PreviewDeleteResponse:
        return image_pb2.PreviewDeleteResponse(
            image_count=len(request.image_ids), unique_plain_bytes=9 << 20, unique_stored_bytes=3 << 20
        )

    def ReadRange(
        self, request: image_pb2.ReadRangeRequest, context: Context
    ) -> Iterator[image_pb2.ReadRangeResponse]:
        end = request.offset + request.length
        for offset in range(request.offset, end, PIECE_BYTES):
            if self.cut_reads_at is not None and offset >= self.cut_reads_at:
                return
            piece = self.content[offset : min(offset + PIECE_BYTES, end)]
            if any(piece):
                yield image_pb2.ReadRangeResponse(offset=offset, data=piece)
            else:
                yield image_pb2.ReadRangeResponse(offset=offset, zero_bytes=len(piece))

    def SendImage(
        self, request: image_pb2.SendImageRequest, context: Context
    ) -> Iterator[image_pb2.SendImageResponse]:
        self.sent.append(request)
        yield image_pb2.SendImageResponse(spans_done=1, receipt_id=hex_id(9), root=b"r" * 32)
