"""Edge: calls to arrays and to the virtual center.

Every call has a deadline. Limits: CHANNELS_MAX arrays are kept connected.
Callers: any thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from arraylift.errors import NotFound
from arraylift.exchange.convert import state_from_pb
from arraylift.ids import SnapshotId, check_id
from arraylift.nbd.uri import NbdUri, parse_uri
from arraylift.rpc.channel import LONG_CALL_SECONDS, call, stream
from arraylift.rpc.channels import Channels
from arraylift.rpc.identity import demanded_name
from arraylift.v1 import virtual_center_pb2 as center_pb
from arraylift.v1 import virtual_center_pb2_grpc as center_grpc
from arraylift.v1 import volume_pb2 as pb
from arraylift.v1 import volume_pb2_grpc as pb_grpc
from arraylift.vm import convert
from hostagent.reporter import HostFacts, HostUse
from hostagent.vm_types import VmRecord
from hostagent.volumes import TakenSnapshot, VolumeFacts

CHANNELS_MAX = 64
"""Arrays that a host keeps connections to; the one unused longest is dropped for a new one."""

ARRAY_CALL_SECONDS = 10.0
"""Deadline of a short call to an array; a group under freeze has its own."""

EXPORT_END_SECONDS = 35.0

CENTER_CALL_SECONDS = 5.0


class ArrayVolumes:
    """Volumes over VolumeService."""

    def __init__(self, channels: Channels, *, call_seconds: float = ARRAY_CALL_SECONDS) -> None:
        self._channels = channels
        self._call_seconds = call_seconds

    def find(self, address: str, name: str) -> VolumeFacts | None:
        found = self._call(address, "ListVolumes", pb.ListVolumesRequest(name=name))
        for volume in found.volumes:
            if volume.name == name:
                return VolumeFacts(name, volume.size_bytes, volume.mapped_bytes, volume.snapshot_count)
        return None

    def create(self, address: str, name: str, size_bytes: int) -> None:
        self._call(address, "CreateVolume", pb.CreateVolumeRequest(name=name, size_bytes=size_bytes))

    def delete(self, address: str, name: str) -> None:
        self._call(address, "DeleteVolume", pb.DeleteVolumeRequest(name=name, missing_ok=True))

    def snapshot_group(
        self, address: str, names: Sequence[str], label: str, *, timeout_seconds: float
    ) -> list[TakenSnapshot]:
        request = pb.CreateSnapshotsRequest(volume_names=names, name=label)
        stub = self._channels.stub(pb_grpc.VolumeServiceStub, address, "array")
        made = call(stub.CreateSnapshots, request, peer=f"array {address}", timeout_seconds=timeout_seconds)
        return [_taken(snapshot) for snapshot in made.snapshots]

    def snapshots_labelled(self, address: str, names: Sequence[str], label: str) -> list[TakenSnapshot]:
        taken = []
        for name in names:  # a whole array's might not fit into one message
            with contextlib.suppress(NotFound):
                found = self._call(address, "ListSnapshots", pb.ListSnapshotsRequest(volume_name=name))
                taken += [_taken(snapshot) for snapshot in found.snapshots if snapshot.name == label]
        return taken

    def delete_snapshot(self, address: str, snapshot_id: SnapshotId) -> None:
        request = pb.DeleteSnapshotRequest(snapshot_id=snapshot_id, missing_ok=True)
        self._call(address, "DeleteSnapshot", request)

    def create_export(self, address: str, export: str, volume_name: str) -> NbdUri:
        request = pb.CreateExportRequest(name=export, volume_name=volume_name)
        uri = parse_uri(self._call(address, "CreateExport", request).export.uri)
        # Only an array may serve what a guest writes: its certificate says the role, and where it is.
        return replace(uri, tls_name=demanded_name("array", host=uri.host or "localhost"))

    def delete_export(self, address: str, export: str) -> None:
        request = pb.DeleteExportRequest(name=export, missing_ok=True)
        stub = self._channels.stub(pb_grpc.VolumeServiceStub, address, "array")
        # It waits for connections to end, longer than a short call may.
        call(stub.DeleteExport, request, peer=f"array {address}", timeout_seconds=EXPORT_END_SECONDS)

    def read(self, address: str, name: str) -> Iterator[tuple[int, bytes]]:
        stub = self._channels.stub(pb_grpc.VolumeServiceStub, address, "array")
        request = pb.ReadExtentsRequest(volume_name=name)
        with stream(
            stub.ReadExtents, request, peer=f"array {address}", timeout_seconds=LONG_CALL_SECONDS
        ) as pieces:
            for piece in pieces:
                if piece.extent.data:
                    yield piece.extent.offset, piece.extent.data

    def write(self, address: str, name: str, pieces: Iterator[tuple[int, bytes]]) -> None:
        def requests() -> Iterator[pb.WriteExtentsRequest]:
            yield pb.WriteExtentsRequest(volume_name=name)
            for offset, data in pieces:
                yield pb.WriteExtentsRequest(extent=pb.Extent(offset=offset, data=data))

        stub = self._channels.stub(pb_grpc.VolumeServiceStub, address, "array")
        call(stub.WriteExtents, requests(), peer=f"array {address}", timeout_seconds=LONG_CALL_SECONDS)

    def _call(self, address: str, method: str, request: object) -> Any:
        stub = self._channels.stub(pb_grpc.VolumeServiceStub, address, "array")
        return call(
            getattr(stub, method), request, peer=f"array {address}", timeout_seconds=self._call_seconds
        )


class VirtualCenter:
    """Registers and reports over VirtualCenterService."""

    def __init__(self, channels: Channels, address: str) -> None:
        self._channels, self._address = channels, address

    def register(self, facts: HostFacts) -> None:
        request = center_pb.RegisterHostRequest(name=facts.name, address=facts.address, driver=facts.driver)
        self._call("RegisterHost", request)

    def report(self, facts: HostFacts, sequence: int, vms: list[VmRecord], use: HostUse) -> None:
        request = center_pb.ReportInventoryRequest(
            name=facts.name,
            sequence=sequence,
            vms=[convert.vm_to_pb(vm.told(facts.name)) for vm in vms],
            memory_bytes=facts.memory_bytes,
            memory_free_bytes=use.memory_free_bytes,
            cpus=facts.cpus,
            load_percent=use.load_percent,
        )
        self._call("ReportInventory", request)

    def _call(self, method: str, request: object) -> None:
        stub = self._channels.stub(center_grpc.VirtualCenterServiceStub, self._address, "vcenter")
        peer = f"vcenter {self._address}"
        call(getattr(stub, method), request, peer=peer, timeout_seconds=CENTER_CALL_SECONDS)


def _taken(snapshot: pb.Snapshot) -> TakenSnapshot:
    snapshot_id = SnapshotId(check_id(snapshot.snapshot_id, "the array's snapshot id"))
    state = state_from_pb(snapshot.state)
    return TakenSnapshot(snapshot.volume_name, snapshot_id, snapshot.size_bytes, state)
