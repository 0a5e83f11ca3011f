"""``arraylift array snapshots``: take snapshots, send them to the target, remove them.

Callers: the command line, main thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.table import Table

from arraylift.cli import transfers
from arraylift.cli.command import command, group
from arraylift.cli.session import Session
from arraylift.cli.show import figures_rows, moment, pairs, plain, row, size_bytes, table
from arraylift.errors import NotFound
from arraylift.rpc.channel import LONG_CALL_SECONDS
from arraylift.sizes import human
from arraylift.v1 import volume_pb2

SnapshotReference = Annotated[
    str, typer.Argument(metavar="SNAPSHOT", help="An id, or VOLUME@NAME where that is one.")
]


def register(app: typer.Typer) -> None:
    """Add the noun to ``arraylift array``."""
    noun = group("Frozen states of volumes.")
    command(noun, "ls", examples="arraylift array snapshots ls web1")(ls)
    command(
        noun,
        "create",
        examples="arraylift array snapshots create web1 --name monday\n"
        "arraylift array snapshots create db1-data db1-log --name monday",
    )(create)
    command(noun, "rm", examples="arraylift array snapshots rm web1@monday")(rm)
    command(
        noun,
        "send",
        examples="arraylift array snapshots send web1@monday\n"
        "arraylift array snapshots send web1@monday --name web1/disk0 --full --rate 20M",
    )(send)
    app.add_typer(noun, name="snapshots")


def ls(
    session: Session,
    volume: Annotated[str, typer.Argument(metavar="[VOLUME]", help="Only of this volume.")] = "",
) -> None:
    """List snapshots."""
    array = session.array
    request = volume_pb2.ListSnapshotsRequest(volume_name=volume)
    found = array.call(array.volumes.ListSnapshots, request).snapshots
    session.emit([plain(snapshot) for snapshot in found], _table(found))


def create(
    session: Session,
    volumes: Annotated[list[str], typer.Argument(metavar="VOLUME...", help="All at one instant.")],
    name: Annotated[str, typer.Option(help="Name of the snapshots, e.g. monday.")],
) -> None:
    """Take a snapshot of each volume, all at one instant."""
    array = session.array
    request = volume_pb2.CreateSnapshotsRequest(volume_names=volumes, name=name)
    made = array.call(array.volumes.CreateSnapshots, request, timeout_seconds=LONG_CALL_SECONDS).snapshots
    session.emit([plain(snapshot) for snapshot in made], _table(made))


def rm(
    session: Session,
    snapshot: SnapshotReference,
    missing_ok: Annotated[bool, typer.Option("--missing-ok", help="Fine if there is none.")] = False,
) -> None:
    """Remove a snapshot."""
    array = session.array
    try:
        snapshot_id = transfers.find_snapshot(array, snapshot).snapshot_id
    except NotFound:
        if not missing_ok:
            raise
        session.emit({"removed": None}, f"there was no snapshot {snapshot}")
        return
    request = volume_pb2.DeleteSnapshotRequest(snapshot_id=snapshot_id, missing_ok=missing_ok)
    array.call(array.volumes.DeleteSnapshot, request, timeout_seconds=LONG_CALL_SECONDS)
    session.emit({"removed": snapshot_id}, f"removed snapshot {snapshot}")


def send(
    session: Session,
    snapshot: SnapshotReference,
    name: Annotated[str | None, typer.Option(help="Name of the image. [default: the volume's name]")] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Read and offer everything, on no earlier image.")
    ] = False,
    diff: Annotated[
        str, typer.Option(help="The snapshot that the last image was taken from: compare with it.")
    ] = "",
    rate: Annotated[
        str, typer.Option(help="Read at most so much a second, e.g. 20M. [default: no limit]")
    ] = "0",
) -> None:
    """Send a snapshot to the target: what changed since the last image of that name."""
    base_id = transfers.find_snapshot(session.array, diff).snapshot_id if diff else ""
    found = transfers.find_snapshot(session.array, snapshot)
    image_name = found.volume_name if name is None else name
    with session.progress(f"send {image_name}", found.size_bytes) as bar:
        receipt = transfers.send_snapshot(
            session.array,
            session.target,
            found.snapshot_id,
            image_name=image_name,
            full=full,
            diff_base_id=base_id,
            bytes_per_second_max=size_bytes(rate),
            on_spans=bar.transfer,
        )
    document = {
        "image_id": receipt.receipt_id,
        "image_name": image_name,
        "snapshot_id": found.snapshot_id,
        "base_image_id": receipt.base_image_id or None,
        "change_source": receipt.change_source,
        **receipt.document(),
    }
    rows = [
        ("image", receipt.receipt_id),
        ("name", image_name),
        ("root", receipt.root.hex()),
        ("base", receipt.base_image_id or "none: a full backup"),
        ("changes by", receipt.change_source.replace("_", " ")),
        *figures_rows(receipt.figures),
    ]
    session.emit(document, pairs(rows))


def _table(snapshots: Sequence[volume_pb2.Snapshot]) -> Table:
    shown = table("volume", "snapshot", ">size", ">unique", "created", "in use", "id")
    for snapshot in snapshots:
        row(
            shown,
            snapshot.volume_name,
            snapshot.name,
            human(snapshot.size_bytes),
            human(snapshot.unique_bytes),
            moment(snapshot.created_at_ns),
            "sending" if snapshot.pinned else "",
            snapshot.snapshot_id,
        )
    return shown
