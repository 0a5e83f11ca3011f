"""``arraylift array volumes``: make, fill, read, resize, clone, roll back and remove volumes.

Callers: the command line, main thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from arraylift.cli import transfers, vm_calls, volume_data
from arraylift.cli.command import command, group
from arraylift.cli.disk_files import new_disk, open_disk, parse_format
from arraylift.cli.session import Session
from arraylift.cli.show import pairs, plain, row, size_bytes, table
from arraylift.errors import InvalidRequest, NotFound
from arraylift.rpc.channel import LONG_CALL_SECONDS
from arraylift.sizes import human
from arraylift.v1 import volume_pb2

RunningForce = Annotated[bool, typer.Option("--force", help="Also if a VM runs on it.")]
VolumeName = Annotated[str, typer.Argument(metavar="VOLUME", help="Name of the volume.")]


def register(app: typer.Typer) -> None:
    """Add the noun to ``arraylift array``."""
    noun = group("Disks of the array.")
    command(noun, "ls", examples="arraylift array volumes ls --json")(ls)
    command(noun, "create", examples="arraylift array volumes create web1 10G")(create)
    command(noun, "rm", examples="arraylift array volumes rm web1 --cascade")(rm)
    command(
        noun,
        "import",
        examples="arraylift array volumes import web1 disk.img\n"
        "arraylift array volumes import web2 disk.qcow2",
    )(import_)
    command(noun, "resize", examples="arraylift array volumes resize web1 20G")(resize)
    command(noun, "clone", examples="arraylift array volumes clone web1@monday web1-test")(clone)
    command(
        noun,
        "rollback",
        examples="arraylift array volumes rollback web1 web1@monday --safety before-rollback\n"
        "arraylift array volumes rollback web1 web1@monday --no-safety",
    )(rollback)
    command(
        noun,
        "export",
        examples="arraylift array volumes export web1 disk.img\n"
        "arraylift array volumes export web1@monday disk.qcow2 --format qcow2 --force",
    )(export)
    command(noun, "write", examples="arraylift array volumes write web1 disk.img")(write)
    app.add_typer(noun, name="volumes")


def ls(session: Session) -> None:
    """List the volumes."""
    array = session.array
    found = array.call(array.volumes.ListVolumes, volume_pb2.ListVolumesRequest()).volumes
    session.emit([plain(volume) for volume in found], _table(found))


def create(
    session: Session,
    name: VolumeName,
    size: Annotated[str, typer.Argument(help="E.g. 512M, 10G, 1TiB; a multiple of 512 bytes.")],
) -> None:
    """Make an empty volume; it takes space as it is written."""
    request = volume_pb2.CreateVolumeRequest(name=name, size_bytes=size_bytes(size))
    array = session.array
    made = array.call(array.volumes.CreateVolume, request).volume
    session.emit(plain(made), _table([made]))


def rm(
    session: Session,
    name: VolumeName,
    cascade: Annotated[bool, typer.Option("--cascade", help="Remove its snapshots too.")] = False,
    missing_ok: Annotated[bool, typer.Option("--missing-ok", help="Fine if there is none.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also if it is a disk of a VM.")] = False,
) -> None:
    """Remove a volume with its data, unless it is a disk of a VM."""
    array = session.array
    if not force:
        vm_calls.check_no_disk(session, array, name)
    request = volume_pb2.DeleteVolumeRequest(name=name, cascade=cascade, missing_ok=missing_ok)
    array.call(array.volumes.DeleteVolume, request, timeout_seconds=LONG_CALL_SECONDS)
    session.emit({"removed": name}, f"removed volume {name}")


def resize(
    session: Session,
    name: VolumeName,
    size: Annotated[str, typer.Argument(help="The new size, e.g. 20G.")],
    shrink: Annotated[
        bool, typer.Option("--shrink", help="Allow a smaller size: what is past it is gone.")
    ] = False,
    force: RunningForce = False,
) -> None:
    """Give a volume another size; what is added reads as zeros."""
    array = session.array
    wanted = size_bytes(size)
    have = volume_data.get_volume(array, name).size_bytes
    if wanted < have and not shrink:
        raise InvalidRequest(
            f"volume {name} has {human(have)}: {human(have - wanted)} at its end would be gone",
            next_step="repeat with --shrink if that is meant",
        )
    if wanted < have and not force:
        vm_calls.check_not_running(session, array, name)
    request = volume_pb2.ResizeVolumeRequest(name=name, size_bytes=wanted)
    made = array.call(array.volumes.ResizeVolume, request, timeout_seconds=LONG_CALL_SECONDS).volume
    session.emit(plain(made), _table([made]))


def clone(
    session: Session,
    snapshot: Annotated[str, typer.Argument(metavar="SNAPSHOT", help="An id, or VOLUME@NAME.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new volume.")],
) -> None:
    """Make a volume of a snapshot at once; both share what neither changes."""
    array = session.array
    found = transfers.find_snapshot(array, snapshot)
    request = volume_pb2.CloneVolumeRequest(snapshot_id=found.snapshot_id, name=name)
    made = array.call(array.volumes.CloneVolume, request, timeout_seconds=LONG_CALL_SECONDS).volume
    session.emit(plain(made), _table([made]))


def rollback(
    session: Session,
    name: VolumeName,
    snapshot: Annotated[str, typer.Argument(metavar="SNAPSHOT", help="An id, or VOLUME@NAME.")],
    safety: Annotated[
        str, typer.Option(help="Name of the snapshot that keeps what the volume holds now.")
    ] = "before-rollback",
    no_safety: Annotated[bool, typer.Option("--no-safety", help="Let what it holds now go.")] = False,
    force: RunningForce = False,
) -> None:
    """Set a volume back to one of its snapshots, unless a VM runs on it."""
    array = session.array
    if not force:
        vm_calls.check_not_running(session, array, name)
    found = transfers.find_snapshot(array, snapshot)
    request = volume_pb2.RollbackVolumeRequest(
        volume_name=name, snapshot_id=found.snapshot_id, safety_name="" if no_safety else safety
    )
    answer = array.call(array.volumes.RollbackVolume, request, timeout_seconds=LONG_CALL_SECONDS)
    safe_id = answer.safety.snapshot_id
    document = {"volume": plain(answer.volume), "safety_snapshot_id": safe_id or None}
    kept = f"; what it held is snapshot {answer.safety.name}, {safe_id}" if safe_id else ""
    session.emit(document, f"volume {name} is as in snapshot {snapshot}{kept}")


def import_(
    session: Session,
    name: VolumeName,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Raw, qcow2, VMDK, VHDX, or a block device.")],
    format: Annotated[str, typer.Option(help="raw, qcow2, vmdk or vhdx. [default: as FILE begins]")] = "",
) -> None:
    """Make a volume of a disk image; its holes are not read."""
    with open_disk(file, format) as source, session.progress(f"import {name}", source.size_bytes) as bar:
        answer = volume_data.import_volume(session.array, source, name, bar.update)
    document = {"volume": plain(answer.volume), "bytes_written": answer.bytes_written}
    session.emit(
        document,
        f"volume {name}: {human(answer.volume.size_bytes)}, {human(answer.bytes_written)} of data",
    )


def export(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="VOLUME|VOLUME@SNAPSHOT|ID", help="What to read.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Disk image to write, sparse.")],
    format: Annotated[str, typer.Option(help="raw, qcow2, vmdk or vhdx.")] = "raw",
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
) -> None:
    """Write a volume or a snapshot into a sparse file, which appears when it is whole."""
    wanted = parse_format(format)
    request, total_bytes = _readable(session, name)
    with (
        new_disk(file, wanted, total_bytes, overwrite=force) as destination,
        session.progress(f"export {name}", total_bytes) as bar,
    ):
        volume_data.export(session.array, request, total_bytes, destination, bar.update)
    session.emit(
        {"source": name, "file": str(file), "format": wanted.value, "size_bytes": total_bytes},
        f"{file}: {human(total_bytes)} of {name}",
    )


def write(
    session: Session,
    name: VolumeName,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A disk image of the same size.")],
    force: RunningForce = False,
) -> None:
    """Make a volume equal to a file, writing only granules (64 KiB) that differ, unless a VM runs on it."""
    array = session.array
    if not force:
        vm_calls.check_not_running(session, array, name)
    with open_disk(file) as source:
        volume = volume_data.get_volume(array, name)
        with session.progress(f"compare {name}", volume.size_bytes) as bar:
            difference = volume_data.differences(array, volume, source, bar.update)
        if difference.ranges:
            with session.progress(f"write {name}", difference.total_bytes) as bar:
                volume_data.write_differences(array, name, source, difference, bar.update)
    document = {
        "volume": name,
        "bytes_compared": volume.size_bytes,
        "bytes_differing": difference.total_bytes,
        "range_count": len(difference.ranges),
    }
    rows: list[tuple[str, object]] = [
        ("volume", name),
        ("compared", human(volume.size_bytes)),
        ("written", f"{human(difference.total_bytes)} in {len(difference.ranges):,} ranges"),
    ]
    session.emit(document, pairs(rows))


def _readable(session: Session, reference: str) -> tuple[volume_pb2.ReadExtentsRequest, int]:
    """Return the request that reads a volume, or else a snapshot, of that name."""
    array = session.array
    try:
        volume = volume_data.get_volume(array, reference)
    except NotFound as error:
        try:
            snapshot = transfers.find_snapshot(array, reference)
        except NotFound:
            raise error from None
        return volume_pb2.ReadExtentsRequest(snapshot_id=snapshot.snapshot_id), snapshot.size_bytes
    return volume_pb2.ReadExtentsRequest(volume_name=reference), volume.size_bytes


def _table(volumes: Sequence[volume_pb2.Volume]) -> Table:
    shown = table("volume", ">size", ">mapped", ">unique", ">snapshots", "id")
    for volume in volumes:
        row(
            shown,
            volume.name,
            human(volume.size_bytes),
            human(volume.mapped_bytes),
            human(volume.unique_bytes),
            volume.snapshot_count,
            volume.volume_id,
        )
    return shown
