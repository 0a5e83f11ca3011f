"""``arraylift files``: files inside backups, read from the images piece by piece.

Callers: the command line, main thread.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from arraylift.cli import catalog, files_restore, single_files
from arraylift.cli.backups import BackupReference, find_backup
from arraylift.cli.command import command, group
from arraylift.cli.connection import Connection
from arraylift.cli.files_restore import VolumeKey
from arraylift.cli.local_files import NewFile
from arraylift.cli.session import Session
from arraylift.cli.show import plain
from arraylift.sizes import human
from arraylift.v1 import backup_pb2

DiskName = Annotated[str, typer.Option(metavar="DISK", help="Look at this disk alone, e.g. disk1.")]


def register(app: typer.Typer) -> None:
    """Add the noun to the root."""
    noun = group("Files inside backups.")
    command(noun, "ls", examples="arraylift files ls web /etc\narraylift files ls 3f2a / --volume disk1/p1")(
        ls
    )
    command(
        noun,
        "get",
        examples="arraylift files get web /etc/hosts\narraylift files get 3f2a /etc/hosts ./hosts --force",
    )(get)
    files_restore.register(noun)
    catalog.register_files(noun)
    app.add_typer(noun, name="files")


def ls(
    session: Session,
    backup: BackupReference,
    path: Annotated[str, typer.Argument(metavar="[PATH]", help="A directory.")] = "/",
    volume: VolumeKey = "",
    disk: DiskName = "",
) -> None:
    """List a directory inside a backup."""
    server = session.server
    request = backup_pb2.ListFilesRequest(
        backup_id=find_backup(server, backup).backup_id, disk_name=disk, path=path, volume=volume
    )
    found = list(server.listing(server.backups.ListFiles, request, "files", slow=True))
    session.emit([plain(file) for file in found], single_files.listing(found))


def get(
    session: Session,
    backup: BackupReference,
    path: Annotated[str, typer.Argument(metavar="PATH", help="Absolute, inside the disk.")],
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Where it goes. [default: its name, here]")
    ] = None,
    volume: VolumeKey = "",
    disk: DiskName = "",
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
) -> None:
    """Copy one file out of a backup, with its permissions and time."""
    to = single_files.destination(file, path)
    server = session.server
    found = find_backup(server, backup)
    with session.progress(f"get {path}", 0) as bar:
        size = get_file(
            server, found.backup_id, disk, path, to, volume=volume, overwrite=force, on_size=bar.sized
        )
    session.emit(
        {"file": str(to), "size_bytes": size, "path": path, "backup_id": found.backup_id},
        f"{to}: {human(size)} of {path} in backup {found.backup_id}",
    )


def get_file(
    server: Connection,
    backup_id: str,
    disk_name: str,
    path: str,
    to: Path,
    *,
    volume: str = "",
    overwrite: bool,
    on_size: single_files.OnSize,
) -> int:
    """Write one file of a backup to ``to``; return its size. Raises AlreadyExists, NotFound, Corruption."""
    request = backup_pb2.GetFileRequest(backup_id=backup_id, disk_name=disk_name, path=path, volume=volume)
    with (
        NewFile(to, overwrite=overwrite) as new,
        server.stream(server.backups.GetFile, request) as responses,
    ):
        return single_files.receive(responses, new, label=server.label, on_size=on_size).size_bytes
