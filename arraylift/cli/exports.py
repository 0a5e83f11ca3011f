"""``arraylift array export`` and ``array exports``: serve volumes and snapshots by NBD.

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
from arraylift.cli.show import plain, row, table
from arraylift.cli.volume_data import get_volume
from arraylift.errors import NotFound
from arraylift.rpc.channel import LONG_CALL_SECONDS
from arraylift.v1 import volume_pb2

Source = Annotated[
    str, typer.Argument(metavar="VOLUME|VOLUME@SNAPSHOT|ID", help="What to serve; a snapshot is read-only.")
]


def register(app: typer.Typer) -> None:
    """Add command and noun to ``arraylift array``."""
    command(
        app,
        "export",
        examples="arraylift array export web1\narraylift array export web1@monday --name web1-monday",
    )(export)
    noun = group("Volumes and snapshots that are served by NBD.")
    command(noun, "ls", examples="arraylift array exports ls --json")(ls)
    command(noun, "rm", examples="arraylift array exports rm web1")(rm)
    app.add_typer(noun, name="exports")


def export(
    session: Session,
    source: Source,
    name: Annotated[str | None, typer.Option(help="Name of the export. [default: as SOURCE]")] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Let nobody write to it.")] = False,
) -> None:
    """Serve a volume or snapshot by NBD, until it is removed again; survives restarts."""
    array = session.array
    request = volume_pb2.CreateExportRequest(name=source if name is None else name, read_only=read_only)
    try:
        request.volume_name = get_volume(array, source).name
    except NotFound as error:
        try:
            request.snapshot_id = transfers.find_snapshot(array, source).snapshot_id
        except NotFound:
            raise error from None
    made = array.call(array.volumes.CreateExport, request).export
    session.emit(plain(made), _table([made]))


def ls(session: Session) -> None:
    """List the exports, and how many clients each has."""
    array = session.array
    found = array.call(array.volumes.ListExports, volume_pb2.ListExportsRequest()).exports
    session.emit([plain(each) for each in found], _table(found))


def rm(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="EXPORT", help="Name of the export.")],
    missing_ok: Annotated[bool, typer.Option("--missing-ok", help="Fine if there is none.")] = False,
) -> None:
    """End an export's connections, and serve it no longer; what it served stays."""
    array = session.array
    request = volume_pb2.DeleteExportRequest(name=name, missing_ok=missing_ok)
    array.call(array.volumes.DeleteExport, request, timeout_seconds=LONG_CALL_SECONDS)
    session.emit({"removed": name}, f"removed export {name}")


def _table(exports: Sequence[volume_pb2.Export]) -> Table:
    shown = table("export", "of", "access", ">clients", "address")
    for each in exports:
        row(
            shown,
            each.name,
            each.volume_name or each.snapshot_id or "(gone)",
            "read" if each.read_only else "read, write",
            each.connection_count,
            each.uri,
        )
    return shown
