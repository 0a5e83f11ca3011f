"""Edge: VolumeService. Checks, converts, delegates to the pool; decides nothing."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator

import grpc

from arraylift.errors import InvalidRequest, NotFound, WrongState
from arraylift.exchange import convert as shared
from arraylift.ids import SnapshotId, TransferId, check_id, check_name
from arraylift.rpc.long_call import stream_long_call
from arraylift.sizes import EXTENT_BYTES_MAX
from arraylift.v1 import volume_pb2 as pb
from arraylift.v1 import volume_pb2_grpc as pb_grpc
from primary_array import convert
from primary_array.draft import Draft
from primary_array.exports import ArrayExports
from primary_array.pool import Pool
from primary_array.pool_check import CheckNews
from primary_array.pool_types import SnapshotSource, Source, VolumeInfo, VolumeSource
from primary_array.restores import Restores

RANGES_PER_MESSAGE = 4096


class VolumeEdge(pb_grpc.VolumeServiceServicer):
    """Serves one pool."""

    def __init__(
        self, pool: Pool, restores: Restores, exports: ArrayExports, uri_of: Callable[[str], str]
    ) -> None:
        """``uri_of``: where a client finds an export by name; empty if NBD is not served."""
        self._pool = pool
        self._restores = restores
        self._exports = exports
        self._uri_of = uri_of

    # -- volumes --------------------------------------------------------------------------------

    def CreateVolume(
        self, request: pb.CreateVolumeRequest, context: grpc.ServicerContext
    ) -> pb.CreateVolumeResponse:
        info = self._pool.create_volume(request.name, request.size_bytes)
        return pb.CreateVolumeResponse(volume=convert.volume_to_pb(info))

    def ListVolumes(
        self, request: pb.ListVolumesRequest, context: grpc.ServicerContext
    ) -> pb.ListVolumesResponse:
        wanted: list[VolumeInfo] = []
        if not request.name:
            wanted = self._pool.volumes(with_space=True)
        else:
            with contextlib.suppress(NotFound):
                wanted = [self._pool.volume(request.name, with_space=True)]
        return pb.ListVolumesResponse(volumes=map(convert.volume_to_pb, wanted))

    def DeleteVolume(
        self, request: pb.DeleteVolumeRequest, context: grpc.ServicerContext
    ) -> pb.DeleteVolumeResponse:
        with (
            contextlib.suppress(NotFound) if request.missing_ok else contextlib.nullcontext(),
            self._exports.hold(request.name),
        ):
            self._pool.delete_volume(request.name, cascade=request.cascade)
        return pb.DeleteVolumeResponse()

    def ResizeVolume(
        self, request: pb.ResizeVolumeRequest, context: grpc.ServicerContext
    ) -> pb.ResizeVolumeResponse:
        info = self._pool.resize_volume(request.name, request.size_bytes)
        return pb.ResizeVolumeResponse(volume=convert.volume_to_pb(info))

    def CloneVolume(
        self, request: pb.CloneVolumeRequest, context: grpc.ServicerContext
    ) -> pb.CloneVolumeResponse:
        snapshot_id = SnapshotId(check_id(request.snapshot_id, "snapshot id"))
        info = self._pool.clone_volume(snapshot_id, request.name)
        return pb.CloneVolumeResponse(volume=convert.volume_to_pb(info))

    def RollbackVolume(
        self, request: pb.RollbackVolumeRequest, context: grpc.ServicerContext
    ) -> pb.RollbackVolumeResponse:
        snapshot_id = SnapshotId(check_id(request.snapshot_id, "snapshot id"))
        info, safety = self._pool.rollback_volume(
            request.volume_name, snapshot_id, safety_name=request.safety_name
        )
        response = pb.RollbackVolumeResponse(volume=convert.volume_to_pb(info))
        if safety is not None:
            response.safety.CopyFrom(convert.snapshot_to_pb(safety))
        return response

    # -- data -----------------------------------------------------------------------------------

    def ImportVolume(
        self, requests: Iterator[pb.ImportVolumeRequest], context: grpc.ServicerContext
    ) -> pb.ImportVolumeResponse:
        first = next(requests, None)
        if first is None or first.WhichOneof("message") != "header":
            raise InvalidRequest("an import begins with its header")
        draft = self._pool.begin_volume(first.header.name, first.header.size_bytes)
        try:
            written = self._write_draft(draft, requests)
            draft.commit()
        except BaseException:
            draft.abort()
            raise
        info = self._pool.volume(first.header.name)
        return pb.ImportVolumeResponse(volume=convert.volume_to_pb(info), bytes_written=written)

    def _write_draft(self, draft: Draft, requests: Iterator[pb.ImportVolumeRequest]) -> int:
        written = end = count = 0
        for request in requests:
            which = request.WhichOneof("message")
            if which == "end":
                if (request.end.extent_count, request.end.bytes_written) != (count, written):
                    raise InvalidRequest(f"the import's end does not match its {count} extents")
                return written
            if which != "extent":
                raise InvalidRequest("an import has one header, then extents, then its end")
            extent = request.extent
            _check_extent(extent)
            if extent.offset < end:
                raise InvalidRequest(f"the extent at {extent.offset} comes after one that ends at {end}")
            draft.write(extent.offset, extent.data)
            end = extent.offset + len(extent.data)
            written, count = written + len(extent.data), count + 1
        raise InvalidRequest("the import was cut before its end", next_step="repeat it")

    def ReadExtents(
        self, request: pb.ReadExtentsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ReadExtentsResponse]:
        source, size = self._source(request)
        length = request.length or max(0, size - request.offset)
        first = True
        for offset, extent_bytes, hole in self._pool.extents(source, request.offset, length):
            if hole:
                if request.with_holes:
                    yield pb.ReadExtentsResponse(
                        extent=pb.Extent(offset=offset), zero_bytes=extent_bytes, size_bytes=size * first
                    )
                    first = False
                continue
            for start in range(0, extent_bytes, EXTENT_BYTES_MAX):
                data = bytearray(min(EXTENT_BYTES_MAX, extent_bytes - start))
                self._pool.read_into(source, offset + start, memoryview(data))
                yield pb.ReadExtentsResponse(
                    extent=pb.Extent(offset=offset + start, data=bytes(data)), size_bytes=size * first
                )
                first = False
        if first:
            yield pb.ReadExtentsResponse(size_bytes=size)

    def _source(self, request: pb.ReadExtentsRequest) -> tuple[Source, int]:
        if bool(request.volume_name) == bool(request.snapshot_id):
            raise InvalidRequest("name a volume or a snapshot, one of the two")
        if request.volume_name:
            return VolumeSource(request.volume_name), self._pool.volume(request.volume_name).size_bytes
        snapshot_id = SnapshotId(check_id(request.snapshot_id, "snapshot id"))
        return SnapshotSource(snapshot_id), self._pool.get_snapshot(snapshot_id).size_bytes

    def WriteExtents(
        self, requests: Iterator[pb.WriteExtentsRequest], context: grpc.ServicerContext
    ) -> pb.WriteExtentsResponse:
        first = next(requests, None)
        name = "" if first is None else first.volume_name
        if first is None or not name:
            raise InvalidRequest("the first message names the volume")
        written = count = 0
        with self._exports.kept_unopened(name):  # who has it open for writing does not see what comes here
            for request in itertools.chain([first], requests):
                if request.zero_bytes:
                    self._pool.trim(name, request.extent.offset, request.zero_bytes)
                elif request.HasField("extent"):
                    _check_extent(request.extent)
                    self._pool.write(name, request.extent.offset, request.extent.data)
                    written += len(request.extent.data)
                count += request.HasField("extent")
            self._pool.flush(name)
        return pb.WriteExtentsResponse(bytes_written=written, extent_count=count)

    # -- snapshots ------------------------------------------------------------------------------

    def CreateSnapshots(
        self, request: pb.CreateSnapshotsRequest, context: grpc.ServicerContext
    ) -> pb.CreateSnapshotsResponse:
        infos = self._pool.snapshot(list(request.volume_names), request.name)
        return pb.CreateSnapshotsResponse(snapshots=map(convert.snapshot_to_pb, infos))

    def ListSnapshots(
        self, request: pb.ListSnapshotsRequest, context: grpc.ServicerContext
    ) -> pb.ListSnapshotsResponse:
        infos = self._pool.snapshots(request.volume_name or None, with_space=True)
        return pb.ListSnapshotsResponse(snapshots=map(convert.snapshot_to_pb, infos))

    def DeleteSnapshot(
        self, request: pb.DeleteSnapshotRequest, context: grpc.ServicerContext
    ) -> pb.DeleteSnapshotResponse:
        snapshot_id = SnapshotId(check_id(request.snapshot_id, "snapshot id"))
        with contextlib.suppress(NotFound) if request.missing_ok else contextlib.nullcontext():
            self._pool.delete_snapshot(snapshot_id)
        return pb.DeleteSnapshotResponse()

    def ListChangedExtents(
        self, request: pb.ListChangedExtentsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ListChangedExtentsResponse]:
        snapshot_id = SnapshotId(check_id(request.snapshot_id, "snapshot id"))
        since = shared.state_from_pb(request.since)
        if since is None:
            raise InvalidRequest("say since which state")
        changed = self._pool.changed_ranges(snapshot_id, since)
        if changed is None:
            raise WrongState(
                "that state is no ancestor of the snapshot",
                subject=f"snapshot {snapshot_id}",
                next_step="only a full comparison can tell what differs",
            )
        offsets, lengths = changed
        for start in range(0, len(offsets), RANGES_PER_MESSAGE):
            part = slice(start, start + RANGES_PER_MESSAGE)
            yield pb.ListChangedExtentsResponse(
                offsets=offsets[part].astype("<u8").tobytes(), lengths=lengths[part].astype("<u8").tobytes()
            )

    # -- exports --------------------------------------------------------------------------------

    def CreateExport(
        self, request: pb.CreateExportRequest, context: grpc.ServicerContext
    ) -> pb.CreateExportResponse:
        if bool(request.volume_name) == bool(request.snapshot_id):
            raise InvalidRequest("name a volume or a snapshot, one of the two")
        if not self._uri_of(request.name):
            raise WrongState(
                "this array serves no NBD", subject=request.name, next_step="set nbd_listen and restart it"
            )
        snapshot_id = request.snapshot_id and check_id(request.snapshot_id, "snapshot id")
        info = self._exports.create(
            request.name,
            volume_name=request.volume_name,
            snapshot_id=SnapshotId(snapshot_id) if snapshot_id else None,
            read_only=request.read_only,
        )
        return pb.CreateExportResponse(export=convert.export_to_pb(info, self._uri_of(request.name)))

    def ListExports(
        self, request: pb.ListExportsRequest, context: grpc.ServicerContext
    ) -> pb.ListExportsResponse:
        infos = self._exports.infos()
        return pb.ListExportsResponse(
            exports=[convert.export_to_pb(info, self._uri_of(info.record.name)) for info in infos]
        )

    def DeleteExport(
        self, request: pb.DeleteExportRequest, context: grpc.ServicerContext
    ) -> pb.DeleteExportResponse:
        with contextlib.suppress(NotFound) if request.missing_ok else contextlib.nullcontext():
            self._exports.remove(request.name)
        return pb.DeleteExportResponse()

    # -- restore and stats ----------------------------------------------------------------------

    def PrepareRestore(
        self, request: pb.PrepareRestoreRequest, context: grpc.ServicerContext
    ) -> pb.PrepareRestoreResponse:
        grant = self._restores.prepare(
            TransferId(check_id(request.transfer_id, "transfer id")),
            target=check_name(request.target, "target name"),
            volume_name=check_name(request.volume_name, "volume name"),
            reference=_reference(request),
            group_id=check_id(request.group_id, "group id") if request.group_id else "",
        )
        return pb.PrepareRestoreResponse(grant=grant)

    def CommitRestoreGroup(
        self, request: pb.CommitRestoreGroupRequest, context: grpc.ServicerContext
    ) -> pb.CommitRestoreGroupResponse:
        volumes, safeties = self._restores.commit_group(
            check_id(request.group_id, "group id"),
            [TransferId(check_id(one, "transfer id")) for one in request.transfer_ids],
            safety_name=check_name(request.safety_name, "snapshot name"),
        )
        return pb.CommitRestoreGroupResponse(
            volumes=map(convert.volume_to_pb, volumes), safeties=map(convert.snapshot_to_pb, safeties)
        )

    def RevokeRestore(
        self, request: pb.RevokeRestoreRequest, context: grpc.ServicerContext
    ) -> pb.RevokeRestoreResponse:
        self._restores.revoke(TransferId(check_id(request.transfer_id, "transfer id")))
        return pb.RevokeRestoreResponse()

    def GetPoolStats(
        self, request: pb.GetPoolStatsRequest, context: grpc.ServicerContext
    ) -> pb.GetPoolStatsResponse:
        return convert.stats_to_pb(self._pool.stats())

    def CheckPool(
        self, request: pb.CheckPoolRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.CheckPoolResponse]:
        def run(report: Callable[[CheckNews], None]) -> CheckNews:
            return self._pool.check(repair=request.repair, report=report)

        # A check that nobody waits for any more runs to its end: it is bounded by the size of the maps.
        news = stream_long_call(context, run, cancelled=threading.Event(), what="pool check")
        yield from map(convert.check_to_pb, news)


def _reference(request: pb.PrepareRestoreRequest) -> Source | None:
    if request.reference_volume and request.reference_snapshot_id:
        raise InvalidRequest("name one reference")
    if request.reference_volume:
        return VolumeSource(check_name(request.reference_volume, "reference"))
    if request.reference_snapshot_id:
        return SnapshotSource(SnapshotId(check_id(request.reference_snapshot_id, "reference")))
    return None


def _check_extent(extent: pb.Extent) -> None:
    if not 1 <= len(extent.data) <= EXTENT_BYTES_MAX:
        raise InvalidRequest(f"an extent has 1 to {EXTENT_BYTES_MAX} bytes, got {len(extent.data)}")
