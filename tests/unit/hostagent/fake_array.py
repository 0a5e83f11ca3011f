"""An array in memory behind real gRPC, which a test can make fail, hang, or act late."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from arraylift.errors import AlreadyExists, ArrayliftError, NotFound, WrongState
from arraylift.ids import random_id
from arraylift.rpc.server import RpcServer, service_of
from arraylift.v1 import common_pb2
from arraylift.v1 import volume_pb2 as pb
from arraylift.v1 import volume_pb2_grpc as pb_grpc
from tests.wire.stage import House

PIECE_BYTES = 64 << 10


class FakeArray(pb_grpc.VolumeServiceServicer):
    """``group_hook`` runs inside CreateSnapshots before anything is made; ``error`` fails every call."""

    def __init__(self, house: House, name: str) -> None:
        self.name = name
        self.volumes: dict[str, bytearray] = {}
        self.snapshots: dict[str, tuple[str, str]] = {}
        self.pinned: set[str] = set()
        self.births: dict[str, int] = {}
        self.exports: dict[str, str] = {}
        self.uri = "nbd://127.0.0.1:1/{}"
        self.group_hook: Callable[[], None] = lambda: None
        self.error: ArrayliftError | None = None
        self.written: list[tuple[str, int, int]] = []
        self._lock = threading.Lock()
        service = service_of(pb_grpc.add_VolumeServiceServicer_to_server, self)
        self.server = RpcServer("127.0.0.1:0", house.identity("array", name), [service])
        self.server.start()
        self.address = self.server.address

    def close(self) -> None:
        self.server.stop(0)

    def labels(self) -> list[str]:
        with self._lock:
            return [label for _, label in self.snapshots.values()]

    # -- VolumeService --------------------------------------------------------------------------

    def ListVolumes(self, request: Any, context: grpc.ServicerContext) -> pb.ListVolumesResponse:  # noqa: N802
        self._check()
        with self._lock:
            found = [name for name in self.volumes if request.name in ("", name)]
            return pb.ListVolumesResponse(volumes=[self._volume(name) for name in found])

    def CreateVolume(self, request: Any, context: grpc.ServicerContext) -> pb.CreateVolumeResponse:  # noqa: N802
        self._check()
        with self._lock:
            self.volumes[request.name] = bytearray(request.size_bytes)
            return pb.CreateVolumeResponse(volume=self._volume(request.name))

    def DeleteVolume(self, request: Any, context: grpc.ServicerContext) -> pb.DeleteVolumeResponse:  # noqa: N802
        self._check()
        with self._lock:
            if any(name == request.name for name, _ in self.snapshots.values()):
                raise WrongState(f"{request.name} has snapshots")
            if request.name in self.exports.values():
                raise WrongState(f"{request.name} is exported")
            self.volumes.pop(request.name, None)
        return pb.DeleteVolumeResponse()

    def CreateSnapshots(self, request: Any, context: grpc.ServicerContext) -> pb.CreateSnapshotsResponse:  # noqa: N802
        self._check()
        self.group_hook()
        with self._lock:
            missing = [name for name in request.volume_names if name not in self.volumes]
            if missing:
                raise NotFound(f"no volume {missing[0]}")
            made = [self._snapshot(name) for name in request.volume_names]
            self.snapshots |= {one.snapshot_id: (one.volume_name, request.name) for one in made}
        return pb.CreateSnapshotsResponse(snapshots=made)

    def ListSnapshots(self, request: Any, context: grpc.ServicerContext) -> pb.ListSnapshotsResponse:  # noqa: N802
        self._check()
        with self._lock:
            found = [
                pb.Snapshot(snapshot_id=snapshot_id, volume_name=name, name=label)
                for snapshot_id, (name, label) in self.snapshots.items()
                if request.volume_name in ("", name)
            ]
        return pb.ListSnapshotsResponse(snapshots=found)

    def DeleteSnapshot(self, request: Any, context: grpc.ServicerContext) -> pb.DeleteSnapshotResponse:  # noqa: N802
        self._check()
        with self._lock:
            if request.snapshot_id in self.pinned:
                raise WrongState("a transfer reads it")
            self.snapshots.pop(request.snapshot_id, None)
        return pb.DeleteSnapshotResponse()

    def CreateExport(self, request: Any, context: grpc.ServicerContext) -> pb.CreateExportResponse:  # noqa: N802
        self._check()
        with self._lock:
            if request.volume_name not in self.volumes:
                raise NotFound(f"no volume {request.volume_name}")
            if self.exports.setdefault(request.name, request.volume_name) != request.volume_name:
                raise AlreadyExists(f"export {request.name} is another")
        export = pb.Export(name=request.name, uri=self.uri.format(request.name))
        return pb.CreateExportResponse(export=export)

    def DeleteExport(self, request: Any, context: grpc.ServicerContext) -> pb.DeleteExportResponse:  # noqa: N802
        self._check()
        with self._lock:
            self.exports.pop(request.name, None)
        return pb.DeleteExportResponse()

    def ReadExtents(self, request: Any, context: grpc.ServicerContext) -> Iterator[pb.ReadExtentsResponse]:  # noqa: N802
        self._check()
        data = bytes(self.volumes[request.volume_name])
        for start in range(0, len(data), PIECE_BYTES):
            piece = data[start : start + PIECE_BYTES]
            if any(piece):
                yield pb.ReadExtentsResponse(extent=pb.Extent(offset=start, data=piece))

    def WriteExtents(self, requests: Any, context: grpc.ServicerContext) -> pb.WriteExtentsResponse:  # noqa: N802
        self._check()
        name = next(requests).volume_name
        for request in requests:
            at, data = request.extent.offset, request.extent.data
            self.volumes[name][at : at + len(data)] = data
            self.written.append((name, at, len(data)))
        return pb.WriteExtentsResponse()

    def _snapshot(self, name: str) -> pb.Snapshot:
        """Each is a state of its own."""
        self.births[name] = self.births.get(name, 0) + 1
        lineage = hashlib.sha256(name.encode()).hexdigest()[:32]
        state = common_pb2.SourceState(pool_id="a" * 32, lineage_id=lineage, birth=self.births[name])
        size = len(self.volumes[name])
        return pb.Snapshot(snapshot_id=random_id(), volume_name=name, size_bytes=size, state=state)

    def _check(self) -> None:
        if self.error is not None:
            raise self.error

    def _volume(self, name: str) -> pb.Volume:
        count = sum(owner == name for owner, _ in self.snapshots.values())
        size = len(self.volumes[name])
        return pb.Volume(name=name, size_bytes=size, mapped_bytes=size, snapshot_count=count)
