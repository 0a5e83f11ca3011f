"""Send a snapshot to the target, and an image back: grant, transfer, receipt.

The operator asks the receiver for a grant and hands it to the sender; the data moves between the
two daemons alone. A transfer that fails or is interrupted is given up at the target, so that it
pins nothing until its lease lapses.
Callers: main thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from arraylift.cli.connection import Connection
from arraylift.cli.show import plain
from arraylift.errors import ArrayliftError, InvalidRequest, NotFound
from arraylift.ids import random_id
from arraylift.rpc.channel import LONG_CALL_SECONDS, ResponseStream
from arraylift.v1 import (
    backup_logic_pb2,
    common_pb2,
    image_pb2,
    target_admin_pb2,
    volume_pb2,
)

OnSpans = Callable[[int, common_pb2.TransferFigures], None]


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the receiver committed: an image's or a volume's id, and its root."""

    receipt_id: str
    root: bytes
    figures: common_pb2.TransferFigures
    base_image_id: str = ""
    change_source: str = ""

    def document(self) -> dict[str, object]:
        """As JSON takes it; the caller names the id."""
        return {"root": self.root.hex(), "figures": plain(self.figures)}


def send_snapshot(
    array: Connection,
    target: Connection,
    snapshot_id: str,
    *,
    image_name: str,
    full: bool,
    on_spans: OnSpans,
    tenant: str = "",
    diff_base_id: str = "",
    bytes_per_second_max: int = 0,
) -> Receipt:
    """Send a snapshot as the next image named ``image_name``; errors of the calls it makes.

    ``diff_base_id``: the snapshot that the last image was taken from; what differs is found by comparing
    the two.
    """
    request = backup_logic_pb2.SendSnapshotRequest(
        snapshot_id=snapshot_id, bytes_per_second_max=bytes_per_second_max
    )
    if diff_base_id:
        request.change_source = backup_logic_pb2.CHANGE_SOURCE_DIFF
        request.diff_base_snapshot_id = diff_base_id
    wanted = target_admin_pb2.CreateGrantRequest(image_name=image_name, no_base=full, tenant=tenant)
    return _send_granted(array, target, array.backup_logic.SendSnapshot, request, wanted, on_spans)


def send_foreign_disk(
    array: Connection,
    target: Connection,
    request: backup_logic_pb2.SendForeignDiskRequest,
    *,
    image_name: str,
    base_image_id: str,
    on_spans: OnSpans,
    tenant: str = "",
) -> Receipt:
    """Have the array read a foreign disk and send it as the next image named ``image_name``.

    ``base_image_id`` empty: on no base. Transfer, grant and target are put into the request here.
    """
    wanted = target_admin_pb2.CreateGrantRequest(
        image_name=image_name, base_image_id=base_image_id, no_base=not base_image_id, tenant=tenant
    )
    return _send_granted(array, target, array.backup_logic.SendForeignDisk, request, wanted, on_spans)


def _send_granted(
    array: Connection,
    target: Connection,
    method: Callable[..., Any],
    request: Any,
    wanted: target_admin_pb2.CreateGrantRequest,
    on_spans: OnSpans,
) -> Receipt:
    """Get the grant that is wanted, run the transfer, give the grant up if that fails."""
    wanted.transfer_id = transfer_id = random_id()
    wanted.array = array.identity().name
    grant = target.call(target.admin.CreateGrant, wanted)
    request.target_address, request.transfer_id, request.grant = target.address, transfer_id, grant.grant
    try:
        last = _follow(array.stream(method, request), array.label, on_spans)
    except BaseException:
        with contextlib.suppress(ArrayliftError):  # its lease lapses anyway
            target.call(
                target.admin.RevokeGrant, target_admin_pb2.RevokeGrantRequest(transfer_id=transfer_id)
            )
        raise
    source = backup_logic_pb2.ChangeSource.Name(last.change_source)
    return Receipt(
        receipt_id=last.receipt_id,
        root=last.root,
        figures=last.figures,
        base_image_id=grant.base_image_id,
        change_source=source.removeprefix("CHANGE_SOURCE_").lower(),
    )


def restore_image(
    target: Connection,
    array: Connection,
    image_id: str,
    *,
    volume_name: str,
    on_spans: OnSpans,
    reference: str = "",
    safety_name: str = "",
) -> Receipt:
    """Send an image into a new volume, or with ``safety_name`` in place of one; errors of the calls it
    makes. What the volume ``reference`` has does not travel."""
    transfer_id, group_id = random_id(), random_id() if safety_name else ""
    grant = array.call(
        array.volumes.PrepareRestore,
        volume_pb2.PrepareRestoreRequest(
            transfer_id=transfer_id,
            target=target.identity().name,
            volume_name=volume_name,
            reference_volume=reference,
            group_id=group_id,
        ),
    ).grant
    request = image_pb2.SendImageRequest(
        image_id=image_id, receiver_address=array.address, transfer_id=transfer_id, grant=grant
    )
    try:
        last = _follow(target.stream(target.images.SendImage, request), target.label, on_spans)
        receipt = Receipt(receipt_id=last.receipt_id, root=last.root, figures=last.figures)
        return receipt if not group_id else _swap_in(array, receipt, transfer_id, group_id, safety_name)
    except BaseException:
        if group_id:
            with contextlib.suppress(ArrayliftError):  # its lease lapses anyway
                array.call(
                    array.volumes.RevokeRestore, volume_pb2.RevokeRestoreRequest(transfer_id=transfer_id)
                )
        raise


def _swap_in(
    array: Connection, receipt: Receipt, transfer_id: str, group_id: str, safety_name: str
) -> Receipt:
    request = volume_pb2.CommitRestoreGroupRequest(
        group_id=group_id, transfer_ids=[transfer_id], safety_name=safety_name
    )
    made = array.call(array.volumes.CommitRestoreGroup, request, timeout_seconds=LONG_CALL_SECONDS)
    return replace(receipt, receipt_id=made.volumes[0].volume_id)


def _follow(responses: ResponseStream[Any], label: str, on_spans: OnSpans) -> Any:
    """Report progress until the receipt comes; leaving early cancels the transfer."""
    last: Any = None
    with responses:
        for response in responses:
            last = response
            on_spans(response.spans_done, response.figures)
    if last is None or not last.receipt_id:
        raise ArrayliftError(f"{label} ended the transfer without a receipt", next_step="look into its log")
    return last


def find_snapshot(array: Connection, reference: str) -> volume_pb2.Snapshot:
    """Return the snapshot of an id, or of ``VOLUME@NAME``. Raises NotFound, InvalidRequest."""
    volume_name, at, name = reference.rpartition("@")
    listed: Sequence[volume_pb2.Snapshot] = array.call(
        array.volumes.ListSnapshots, volume_pb2.ListSnapshotsRequest(volume_name=volume_name if at else "")
    ).snapshots
    found = [
        snapshot for snapshot in listed if snapshot.snapshot_id == reference or (at and snapshot.name == name)
    ]
    if not found:
        raise NotFound(
            f"there is no snapshot {reference} on {array.label}",
            subject=f"snapshot {reference}",
            next_step="give an id or VOLUME@NAME; see `arraylift array snapshots ls`",
        )
    if len(found) > 1:
        raise InvalidRequest(
            f"{len(found)} snapshots are named {reference}",
            subject=f"snapshot {reference}",
            next_step="give the id of one: " + ", ".join(snapshot.snapshot_id for snapshot in found[:4]),
        )
    return found[0]


def find_image(target: Connection, reference: str) -> image_pb2.Image:
    """Return the image of an id, or the newest of a name. Raises NotFound."""
    named = list_images(target, name=reference, count_max=1)
    if named:
        return named[0]
    try:
        request = image_pb2.GetImageRequest(image_id=reference)
        answer: image_pb2.GetImageResponse = target.call(target.images.GetImage, request)
        return answer.image
    except (NotFound, InvalidRequest):
        raise NotFound(
            f"there is no image {reference} on {target.label}",
            subject=f"image {reference}",
            next_step="give an id or a name; see `arraylift target images ls`",
        ) from None


def list_images(target: Connection, *, name: str = "", count_max: int) -> list[image_pb2.Image]:
    """Return images, newest first, at most ``count_max``."""
    request = image_pb2.ListImagesRequest(name=name, page_size=min(1000, count_max))
    return list(islice(target.listing(target.images.ListImages, request, "images"), count_max))
