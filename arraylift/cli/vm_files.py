"""``arraylift vm files``: files inside running guests, through the agent of their host.

Callers: the command line, main thread.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from arraylift.cli import single_files, vm_calls
from arraylift.cli.command import command, group
from arraylift.cli.local_files import NewFile, SourceFile
from arraylift.cli.session import Session
from arraylift.cli.show import plain
from arraylift.sizes import human
from arraylift.v1 import vm_pb2

VmReference = Annotated[str, typer.Argument(metavar="VM", help="Its name or id; it must run.")]
GuestPath = Annotated[str, typer.Argument(metavar="PATH", help="Absolute, inside the guest's disk.")]
DiskName = Annotated[str, typer.Option(metavar="DISK", help="E.g. disk1. [default: the first]")]


def register(app: typer.Typer) -> None:
    """Add the noun to ``arraylift vm``."""
    noun = group("Files inside running guests.")
    command(noun, "put", examples="arraylift vm files put web ./hosts /etc/hosts")(put)
    command(noun, "get", examples="arraylift vm files get web /etc/hosts ./hosts --force")(get)
    command(noun, "ls", examples="arraylift vm files ls web /etc --disk disk0")(ls)
    command(noun, "rm", examples="arraylift vm files rm web /tmp/old")(rm)
    app.add_typer(noun, name="files")


def put(
    session: Session,
    vm: VmReference,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A local file.")],
    path: GuestPath,
    disk: DiskName = "",
) -> None:
    """Write a local file into the guest; an existing one is replaced."""
    with SourceFile(file) as source:
        host, vm_id = vm_calls.host_of(session, vm)
        place = vm_pb2.GuestPath(vm_id=vm_id, disk_name=disk, path=path)
        made = vm_calls.put_file(host, place, source)
    session.emit(plain(made), f"{made.path}: {human(made.size_bytes)} in VM {vm}")


def get(
    session: Session,
    vm: VmReference,
    path: GuestPath,
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Where it goes. [default: its name, here]")
    ] = None,
    disk: DiskName = "",
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
) -> None:
    """Copy a file out of the guest, with its permissions and time."""
    to = single_files.destination(file, path)
    host, vm_id = vm_calls.host_of(session, vm)
    request = vm_pb2.GetGuestFileRequest(file=vm_pb2.GuestPath(vm_id=vm_id, disk_name=disk, path=path))
    with (
        NewFile(to, overwrite=force) as new,
        session.progress(f"get {path}", 0) as bar,
        host.stream(host.vms.GetGuestFile, request) as responses,
    ):
        found = single_files.receive(responses, new, label=host.label, on_size=bar.sized)
    session.emit(
        {"file": str(to), "size_bytes": found.size_bytes, "path": found.path},
        f"{to}: {human(found.size_bytes)} of {path} in VM {vm}",
    )


def ls(
    session: Session,
    vm: VmReference,
    path: Annotated[str, typer.Argument(metavar="[PATH]", help="A directory.")] = "/",
    disk: DiskName = "",
) -> None:
    """List a directory of the guest."""
    host, vm_id = vm_calls.host_of(session, vm)
    place = vm_pb2.GuestPath(vm_id=vm_id, disk_name=disk, path=path)
    request = vm_pb2.ListGuestFilesRequest(directory=place)
    found = list(host.listing(host.vms.ListGuestFiles, request, "files", slow=True))
    session.emit([plain(file) for file in found], single_files.listing(found))


def rm(session: Session, vm: VmReference, path: GuestPath, disk: DiskName = "") -> None:
    """Remove a file of the guest."""
    host, vm_id = vm_calls.host_of(session, vm)
    vm_calls.remove_file(host, vm_pb2.GuestPath(vm_id=vm_id, disk_name=disk, path=path))
    session.emit({"removed": path}, f"removed {path} in VM {vm}")
