"""The array's part of ``tests.fakes.world``: snapshots that are sent, restores that come in."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from arraylift.errors import AlreadyExists, Conflict, NotFound, WrongState
from arraylift.ids import random_id
from arraylift.v1 import (
    backup_logic_pb2,
    common_pb2,
    image_pb2,
    target_admin_pb2,
    vm_pb2,
    volume_pb2,
)

SPAN = 1 << 20
GRANT = b"g" * 32


class ArraySide:
    """Methods of World, which documents its fields and fills them."""

    lock: threading.RLock
    vms: dict[str, vm_pb2.Vm]
    vm_snapshots: dict[str, vm_pb2.VmSnapshot]
    volumes: dict[str, int]
    grants: dict[str, target_admin_pb2.CreateGrantRequest]
    bases: dict[str, str]
    images: dict[str, tuple[str, int]]
    restores: dict[str, volume_pb2.PrepareRestoreRequest]
    whole: dict[str, str]
    held: dict[str, str]
    lineages: dict[str, str]
    made_by: dict[str, str]
    """Volumes that restores made, to their transfers."""
    safeties: dict[str, volume_pb2.Snapshot]
    swapped_under_a_guest: list[str]
    gateways: dict[str, str]

    def send_snapshot(self, request: Any) -> Iterator[Any]:
        with self.lock:
            disks = [disk for one in self.vm_snapshots.values() for disk in one.disks]
            disk = next((one for one in disks if one.snapshot_id == request.snapshot_id), None)
            if disk is None:
                raise NotFound(f"there is no snapshot {request.snapshot_id}")
        sources = backup_logic_pb2.ChangeSource
        wanted = request.change_source or sources.CHANGE_SOURCE_BIRTHS
        for done in self._sent(request, disk.size_bytes, wanted):
            yield backup_logic_pb2.SendSnapshotResponse(**done)

    def send_foreign_disk(self, request: Any) -> Iterator[Any]:
        """Of whichever disk is exported under that URI."""
        with self.lock:
            disks = [disk for one in self.vm_snapshots.values() for disk in one.disks]
            disk = next((one for one in disks if one.foreign.uri == request.uri), None)
            if disk is None:
                raise NotFound(f"there is no export {request.uri}")
            assert request.state == disk.state
            self.gateways[request.transfer_id] = self._granted(request.transfer_id).array
        sources = backup_logic_pb2.ChangeSource
        told = request.HasField("bitmap")
        wanted = sources.CHANGE_SOURCE_BITMAP if told else sources.CHANGE_SOURCE_FULL_READ
        for done in self._sent(request, disk.size_bytes, wanted):
            yield backup_logic_pb2.SendForeignDiskResponse(**done)

    def _sent(self, request: Any, size_bytes: int, wanted: int) -> Iterator[dict[str, Any]]:
        """Fields of a transfer's messages; without a base everything is read."""
        with self.lock:
            self._granted(request.transfer_id)
        spans = size_bytes // SPAN
        for done in range(spans):
            yield {"spans_done": done, "figures": _figures(spans, done)}
        with self.lock:
            granted = self._granted(request.transfer_id)
            self.images.setdefault(request.transfer_id, (granted.image_name, size_bytes))
            base = self.bases.get(request.transfer_id, "")
        yield {
            "spans_done": spans,
            "figures": _figures(spans, spans),
            "receipt_id": request.transfer_id,
            "root": b"r" * 32,
            "change_source": wanted if base else backup_logic_pb2.CHANGE_SOURCE_FULL_READ,
        }

    def _granted(self, transfer_id: str) -> target_admin_pb2.CreateGrantRequest:
        if transfer_id not in self.grants:
            raise NotFound(f"there is no transfer {transfer_id}")
        return self.grants[transfer_id]

    def prepare_restore(self, request: Any) -> volume_pb2.PrepareRestoreResponse:
        known = self.restores.get(request.transfer_id)
        if known is not None and known != request:
            raise AlreadyExists("that transfer is another")
        if self.lineages.get(request.volume_name) == request.transfer_id:
            return volume_pb2.PrepareRestoreResponse(grant=GRANT)
        if known is None and not request.group_id and request.volume_name in self.volumes:
            raise AlreadyExists(f"volume {request.volume_name} exists already")
        if request.group_id and request.volume_name not in self.volumes:
            raise NotFound(f"there is no volume {request.volume_name}")
        self.restores[request.transfer_id] = request
        return volume_pb2.PrepareRestoreResponse(grant=GRANT)

    def commit_group(self, request: Any) -> volume_pb2.CommitRestoreGroupResponse:
        """Refuses nothing because of a guest: whether one runs is the server's to find out."""
        found = [self.restores.get(transfer_id) for transfer_id in request.transfer_ids]
        group = [one for one in self.restores.values() if one.group_id == request.group_id]
        if any(found):
            if not all(found):
                raise NotFound("a restore has lapsed")
            assert len(group) == len(found), "not all of the group"
            if not all(transfer_id in self.whole for transfer_id in request.transfer_ids):
                raise WrongState("a restore has not arrived whole")
            for one in group:
                self._swap(one, request.safety_name)
        volumes = [name for name, lineage in self.lineages.items() if lineage in request.transfer_ids]
        if len(volumes) != len(request.transfer_ids):
            raise NotFound("there is no such restore")
        return volume_pb2.CommitRestoreGroupResponse(
            safeties=[
                one
                for one in self.safeties.values()
                if one.volume_name in volumes and one.name == request.safety_name
            ]
        )

    def _swap(self, restore: volume_pb2.PrepareRestoreRequest, safety_name: str) -> None:
        name = restore.volume_name
        for vm in self.vms.values():
            on = vm.power == vm_pb2.POWER_STATE_ON
            if on and any(disk.volume_name == name for disk in vm.config.disks):
                self.swapped_under_a_guest.append(name)
        kept = volume_pb2.Snapshot(snapshot_id=random_id(), volume_name=name, name=safety_name)
        self.safeties[f"{name}@{self.held.get(name, 'old')}"] = kept
        self.held[name] = self.whole.pop(restore.transfer_id)
        self.lineages[name] = restore.transfer_id
        del self.restores[restore.transfer_id]

    def revoke_restore(self, request: Any) -> volume_pb2.RevokeRestoreResponse:
        self.restores.pop(request.transfer_id, None)
        self.whole.pop(request.transfer_id, None)
        return volume_pb2.RevokeRestoreResponse()

    def list_volumes(self, request: Any) -> volume_pb2.ListVolumesResponse:
        return volume_pb2.ListVolumesResponse(
            volumes=[
                volume_pb2.Volume(
                    volume_id=self.made_by.get(name, ""),
                    name=name,
                    size_bytes=size,
                    state=common_pb2.SourceState(lineage_id=self.lineages.get(name, "")),
                )
                for name, size in self.volumes.items()
                if request.name in ("", name)
            ]
        )

    def delete_volume(self, request: Any) -> volume_pb2.DeleteVolumeResponse:
        for vm in self.vms.values():
            if any(disk.volume_name == request.name for disk in vm.config.disks):
                raise WrongState(f"VM {vm.config.name} has volume {request.name}")
        if self.volumes.pop(request.name, None) is None and not request.missing_ok:
            raise NotFound(f"there is no volume {request.name}")
        return volume_pb2.DeleteVolumeResponse()

    def forget_restores(self) -> None:
        """The array restarts: it forgets grants that nobody used, and receipts."""
        with self.lock:
            self.restores.clear()

    def send_image(self, request: Any) -> Iterator[image_pb2.SendImageResponse]:
        with self.lock:
            if request.image_id not in self.images:
                raise NotFound(f"there is no image {request.image_id}")
            size = self.images[request.image_id][1]
            if request.transfer_id not in self.restores and request.transfer_id not in self.lineages.values():
                raise NotFound("there is no such restore")
        spans = size // SPAN
        for done in range(spans):
            yield image_pb2.SendImageResponse(spans_done=done, figures=_figures(spans, done))
        with self.lock:
            prepared = self.restores.get(request.transfer_id)
            if prepared is None:
                raise Conflict("the restore was given up")
            if prepared.group_id:
                self.whole[request.transfer_id] = request.image_id
            else:
                self.volumes.setdefault(prepared.volume_name, size)
                self.made_by.setdefault(prepared.volume_name, request.transfer_id)
        yield image_pb2.SendImageResponse(
            spans_done=spans, figures=_figures(spans, spans), receipt_id="e" * 32, root=b"r" * 32
        )


def _figures(spans: int, done: int) -> common_pb2.TransferFigures:
    return common_pb2.TransferFigures(spans_total=spans, spans_read=done, bytes_read=done * SPAN, attempts=1)
