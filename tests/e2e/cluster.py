"""An array and a target as real processes, and what an operator does with them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from arraylift import pki
from arraylift.errors import ArrayliftError
from arraylift.ids import random_id
from arraylift.rpc.channel import call, connect, stream
from arraylift.sizes import EXTENT_BYTES_MAX
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
from tests.e2e.daemon import Daemon, wait_until
from tests.e2e.disks import solid_pieces

ARRAY, TARGET = "array1", "target1"
CALL_SECONDS = 60.0
FULL_READ = backup_logic_pb2.CHANGE_SOURCE_FULL_READ
BIRTHS = backup_logic_pb2.CHANGE_SOURCE_BIRTHS


@dataclass(frozen=True, slots=True)
class Sent:
    """The last message of a SendSnapshot."""

    image_id: str
    root: bytes
    figures: common_pb2.TransferFigures
    change_source: int


@dataclass
class Running:
    """A call in a thread of its own."""

    thread: threading.Thread
    news: list[Any] = field(default_factory=list)
    error: BaseException | None = None

    def wait(self, seconds: float = 90.0) -> list[Any]:
        """Return all its messages, or raise what ended it."""
        self.thread.join(seconds)
        assert not self.thread.is_alive(), f"the call still runs after {seconds:.0f} s"
        if self.error is not None:
            raise self.error
        return self.news


def in_thread(messages: Callable[[], Iterator[Any]]) -> Running:
    """Run a streaming call beside the test."""

    def run() -> None:
        try:
            for message in messages():
                running.news.append(message)
        except (ArrayliftError, AssertionError) as error:
            running.error = error

    running = Running(threading.Thread(target=run, daemon=True))
    running.thread.start()
    return running


class Cluster:
    """State, certificates, two daemons, and the calls that tests make."""

    def __init__(self, home: Path, *, target_state: Path | None = None) -> None:
        self.home = home
        self.pki = home / "pki"
        self.pki.mkdir()
        pki.init_ca(str(self.pki))
        for role, name in (("array", ARRAY), ("target", TARGET), ("operator", "admin")):
            pki.issue(str(self.pki), role, name)
        settings = {"log_level": "info"}
        self.array = Daemon("primary_array", ARRAY, home=home, pki=self.pki, settings=settings)
        more = {"state": str(target_state)} if target_state else {}
        self.target = Daemon("dedup_target", TARGET, home=home, pki=self.pki, settings={**settings, **more})
        self.target.state = target_state or self.target.state
        tls = pki.load(str(self.pki), "operator", "admin")
        self._channels = [connect(daemon.address, tls, daemon.role) for daemon in (self.array, self.target)]
        array, target = self._channels
        self.volumes = volume_pb2_grpc.VolumeServiceStub(array)
        self.backup_logic = backup_logic_pb2_grpc.BackupLogicServiceStub(array)
        self.images = image_pb2_grpc.ImageServiceStub(target)
        self.admin = target_admin_pb2_grpc.TargetAdminServiceStub(target)

    def start(self) -> None:
        self.array.launch()
        self.target.start()
        self.array.wait_started()

    def close(self) -> None:
        for channel in self._channels:
            channel.close()
        for daemon in (self.array, self.target):
            daemon.close()

    def tls(self, role: str, name: str) -> pki.TlsMaterial:
        """An identity of this cluster's CA, issued when it is new."""
        if not (self.pki / f"{role}-{name}.pem").exists():
            pki.issue(str(self.pki), role, name)
        return pki.load(str(self.pki), role, name)

    def channel(self, daemon: Daemon, tls: pki.TlsMaterial) -> grpc.Channel:
        """A further channel; closed with the cluster."""
        self._channels.append(connect(daemon.address, tls, daemon.role, daemon.name))
        return self._channels[-1]

    def logs(self) -> str:
        """Both logs' ends, for a failing test."""
        return "\n".join(f"==== {one.name}\n{one.log_tail()}" for one in (self.array, self.target))

    # -- volumes --------------------------------------------------------------------------------

    def import_disk(self, name: str, disk: bytes | bytearray) -> None:
        """Make a volume with this content."""
        self.import_pieces(name, len(disk), solid_pieces(disk))

    def import_pieces(self, name: str, size_bytes: int, pieces: Iterable[tuple[int, bytes]]) -> None:
        """Make a volume from ascending (offset, bytes); the rest is zero."""

        def messages() -> Iterator[volume_pb2.ImportVolumeRequest]:
            yield volume_pb2.ImportVolumeRequest(
                header=volume_pb2.ImportHeader(name=name, size_bytes=size_bytes)
            )
            count = total = 0
            for offset, data in pieces:
                yield volume_pb2.ImportVolumeRequest(extent=volume_pb2.Extent(offset=offset, data=data))
                count, total = count + 1, total + len(data)
            yield volume_pb2.ImportVolumeRequest(
                end=volume_pb2.ImportEnd(extent_count=count, bytes_written=total)
            )

        call(self.volumes.ImportVolume, messages(), peer=ARRAY, timeout_seconds=CALL_SECONDS)

    def write(
        self, volume: str, offset: int, data: bytes | bytearray, *, disk: bytearray | None = None
    ) -> None:
        """Write to a volume, and to the copy of it that the test keeps."""
        requests = [
            volume_pb2.WriteExtentsRequest(
                volume_name=volume,
                extent=volume_pb2.Extent(
                    offset=offset + start, data=bytes(data[start : start + EXTENT_BYTES_MAX])
                ),
            )
            for start in range(0, len(data), EXTENT_BYTES_MAX)
        ]
        call(self.volumes.WriteExtents, iter(requests), peer=ARRAY, timeout_seconds=CALL_SECONDS)
        if disk is not None:
            disk[offset : offset + len(data)] = data

    def trim(self, volume: str, offset: int, length: int, *, disk: bytearray | None = None) -> None:
        """Trim a range, here and in the test's copy."""
        request = volume_pb2.WriteExtentsRequest(
            volume_name=volume, extent=volume_pb2.Extent(offset=offset), zero_bytes=length
        )
        call(self.volumes.WriteExtents, iter([request]), peer=ARRAY, timeout_seconds=CALL_SECONDS)
        if disk is not None:
            disk[offset : offset + length] = bytes(length)

    def snapshot(self, volume: str) -> str:
        """Take a snapshot; returns its id."""
        request = volume_pb2.CreateSnapshotsRequest(volume_names=[volume])
        made = call(self.volumes.CreateSnapshots, request, peer=ARRAY, timeout_seconds=CALL_SECONDS)
        found: str = made.snapshots[0].snapshot_id
        return found

    def volume_names(self) -> list[str]:
        """Names of the volumes that the array lists."""
        listed = call(self.volumes.ListVolumes, volume_pb2.ListVolumesRequest(), peer=ARRAY)
        return [volume.name for volume in listed.volumes]

    def volume_bytes(self, name: str = "", *, snapshot_id: str = "") -> bytearray:
        """The whole content of a volume or snapshot."""
        request = volume_pb2.ReadExtentsRequest(volume_name=name, snapshot_id=snapshot_id)
        content: bytearray | None = None
        for piece in stream(self.volumes.ReadExtents, request, peer=ARRAY, timeout_seconds=CALL_SECONDS):
            if content is None:
                content = bytearray(piece.size_bytes)
            content[piece.extent.offset : piece.extent.offset + len(piece.extent.data)] = piece.extent.data
        assert content is not None, "the first message tells the size"
        return content

    # -- backup ---------------------------------------------------------------------------------

    def grant(
        self, image: str, *, transfer_id: str = "", full: bool = False, array: str = ARRAY
    ) -> tuple[str, bytes]:
        """Have the target admit a transfer; returns (transfer id, grant)."""
        transfer_id = transfer_id or random_id()
        request = target_admin_pb2.CreateGrantRequest(
            transfer_id=transfer_id, array=array, image_name=image, no_base=full
        )
        made = call(self.admin.CreateGrant, request, peer=TARGET)
        return transfer_id, made.grant

    def send_messages(
        self,
        snapshot_id: str,
        transfer_id: str,
        grant: bytes,
        *,
        source: int = 0,
        patience_seconds: int = 0,
        **more: Any,
    ) -> Iterator[Any]:
        """The messages of one SendSnapshot."""
        request = backup_logic_pb2.SendSnapshotRequest(
            snapshot_id=snapshot_id,
            target_address=self.target.address,
            transfer_id=transfer_id,
            grant=grant,
            change_source=source,  # type: ignore[arg-type]
            patience_seconds=patience_seconds,
            **more,
        )
        return self.messages(self.backup_logic.SendSnapshot, request)

    def messages(self, method: Callable[..., Any], request: object) -> Iterator[Any]:
        """The messages of a streaming call; its error comes as ours."""
        return iter(stream(method, request, peer="daemon under test", timeout_seconds=5 * CALL_SECONDS))

    def send(self, snapshot_id: str, image: str, *, full: bool = False, source: int = 0, **more: Any) -> Sent:
        """Back a snapshot up, start to end."""
        transfer_id, grant = self.grant(image, full=full)
        return last_of(list(self.send_messages(snapshot_id, transfer_id, grant, source=source, **more)))

    def back_up(self, volume: str, image: str, *, full: bool = False, source: int = 0) -> Sent:
        """Snapshot and send."""
        return self.send(self.snapshot(volume), image, full=full, source=source)

    # -- images ---------------------------------------------------------------------------------

    def image_list(self, name: str = "") -> list[image_pb2.Image]:
        """Images, newest first."""
        request = image_pb2.ListImagesRequest(name=name)
        return list(call(self.images.ListImages, request, peer=TARGET).images)

    def image_bytes(self, image_id: str) -> bytearray:
        """The whole content of an image, read at the target."""
        image = call(self.images.GetImage, image_pb2.GetImageRequest(image_id=image_id), peer=TARGET).image
        content, at = bytearray(image.image_bytes), 0
        request = image_pb2.ReadRangeRequest(image_id=image_id)
        for piece in stream(self.images.ReadRange, request, peer=TARGET, timeout_seconds=CALL_SECONDS):
            assert piece.offset == at, "pieces come in order, without a gap"
            content[at : at + len(piece.data)] = piece.data
            at += len(piece.data) + piece.zero_bytes
        assert at == image.image_bytes, "nothing is missing at the end"
        return content

    def stats(self) -> target_admin_pb2.GetTargetStatsResponse:
        """The target's counts."""
        request = target_admin_pb2.GetTargetStatsRequest()
        found: target_admin_pb2.GetTargetStatsResponse = call(self.admin.GetTargetStats, request, peer=TARGET)
        return found

    # -- restore --------------------------------------------------------------------------------

    def prepare_restore(
        self, volume: str, *, transfer_id: str = "", target: str = TARGET
    ) -> tuple[str, bytes]:
        """Have the array admit a restore; returns (transfer id, grant)."""
        transfer_id = transfer_id or random_id()
        request = volume_pb2.PrepareRestoreRequest(transfer_id=transfer_id, target=target, volume_name=volume)
        return transfer_id, call(self.volumes.PrepareRestore, request, peer=ARRAY).grant

    def restore_messages(self, image_id: str, transfer_id: str, grant: bytes) -> Iterator[Any]:
        """The messages of one SendImage."""
        request = image_pb2.SendImageRequest(
            image_id=image_id,
            receiver_address=self.array.address,
            transfer_id=transfer_id,
            grant=grant,
        )
        return self.messages(self.images.SendImage, request)

    def restore(self, image_id: str, volume: str) -> Any:
        """Restore an image into a new volume; returns the last message."""
        transfer_id, grant = self.prepare_restore(volume)
        return list(self.restore_messages(image_id, transfer_id, grant))[-1]


def last_of(messages: list[Any]) -> Sent:
    """The receipt at the end of a SendSnapshot's messages."""
    last = messages[-1]
    assert last.receipt_id, "the last message bears the receipt"
    return Sent(last.receipt_id, last.root, last.figures, last.change_source)


def wait_for_progress(running: Running, spans: int) -> None:
    """Wait until a SendSnapshot or SendImage has told of so many spans, or has ended."""
    wait_until(
        lambda: not running.thread.is_alive() or any(one.spans_done >= spans for one in list(running.news)),
        f"{spans} spans are done",
    )
