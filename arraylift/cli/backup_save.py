"""``arraylift backups save``: a disk of a backup as a disk file of the operator's.

The bytes come from the target, each segment verified there; the backup server only says which image it is.
Invariants:
  V1 what appears under the name is the whole disk, byte for byte (disk_files D2); a stream that is cut
     anywhere leaves nothing.
Callers: the command line, main thread.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from arraylift.cli import images, peers, volume_data
from arraylift.cli.backups import BackupReference, find_backup
from arraylift.cli.command import command
from arraylift.cli.disk_files import new_disk, parse_format
from arraylift.cli.session import Session
from arraylift.errors import NotFound
from arraylift.sizes import human
from arraylift.v1 import backup_pb2


def register(noun: typer.Typer) -> None:
    """Add the command to ``arraylift backups``."""
    command(
        noun,
        "save",
        examples="arraylift backups save web disk0 disk0.img\n"
        "arraylift backups save 3f2a disk1 disk1.qcow2 --format qcow2",
    )(save)


def save(
    session: Session,
    backup: BackupReference,
    disk: Annotated[str, typer.Argument(metavar="DISK", help="Its name in the VM, e.g. disk0.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Disk image to write, sparse.")],
    format: Annotated[str, typer.Option(help="raw, qcow2, vmdk or vhdx.")] = "raw",
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
) -> None:
    """Write a disk of a backup into a disk file, which appears when it is whole."""
    wanted = parse_format(format)
    found = find_backup(session.server, backup)
    one = _disk(found, disk)
    peer = peers.find_peer(session.server, "target", found.target)
    target = session.daemon_at("target", peer.address)
    with (
        new_disk(file, wanted, one.size_bytes, overwrite=force) as destination,
        session.progress(f"save {disk} of {found.vm_name}", one.size_bytes) as bar,
    ):
        pieces = images.read_pieces(target, one.image_id, 0, one.size_bytes)
        volume_data.write_whole(pieces, one.size_bytes, destination, bar.update)
    session.emit(
        {
            "backup_id": found.backup_id,
            "disk_name": disk,
            "image_id": one.image_id,
            "file": str(file),
            "format": wanted.value,
            "size_bytes": one.size_bytes,
        },
        f"{file}: {human(one.size_bytes)} of {disk} in backup {found.backup_id} of {found.vm_name}",
    )


def _disk(backup: backup_pb2.Backup, name: str) -> backup_pb2.BackupDisk:
    for disk in backup.disks:
        if disk.disk_name == name:
            return disk
    raise NotFound(
        f"backup {backup.backup_id} has no disk {name}",
        subject=f"disk {name}",
        next_step="name one of " + ", ".join(disk.disk_name for disk in backup.disks),
    )
