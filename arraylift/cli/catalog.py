"""What the catalog of files is asked: ``files find|versions|volumes``, ``backups catalog``,
``catalog rebuild``.

Callers: the command line, main thread.
"""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer

from arraylift.cli.backups import BackupReference, find_backup
from arraylift.cli.command import command, group
from arraylift.cli.session import Session
from arraylift.cli.show import moment, plain, row, short_name, table
from arraylift.sizes import human
from arraylift.v1 import catalog_pb2

LIMIT = 100


def register(app: typer.Typer) -> None:
    """Add the noun to the root."""
    noun = group("The catalog of files inside backups.")
    command(
        noun, "rebuild", examples="arraylift catalog rebuild\narraylift catalog rebuild --target target1"
    )(rebuild)
    app.add_typer(noun, name="catalog")


def register_files(noun: typer.Typer) -> None:
    """Add what ``arraylift files`` has of it."""
    command(
        noun,
        "find",
        examples="arraylift files find hosts\narraylift files find '*.sql' --vm db\n"
        "arraylift files find '/etc/*.conf' --limit 20",
    )(find)
    command(noun, "versions", examples="arraylift files versions web disk0/p1 /etc/hosts")(versions)
    command(noun, "volumes", examples="arraylift files volumes web")(volumes)


def register_backups(noun: typer.Typer) -> None:
    """Add what ``arraylift backups`` has of it."""
    command(noun, "catalog", examples="arraylift backups catalog web\narraylift backups catalog 3f2a")(
        catalog
    )


def find(
    session: Session,
    pattern: Annotated[str, typer.Argument(help="Part of a name; or a glob, over the path if it has a '/'.")],
    vm: Annotated[str, typer.Option(metavar="VM", help="Of this VM only.")] = "",
    backup: Annotated[str, typer.Option(metavar="BACKUP", help="As this backup has them.")] = "",
    case_sensitive: Annotated[bool, typer.Option("--case-sensitive", help="A is not a.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Versions to tell.")] = LIMIT,
) -> None:
    """Find files by name in all catalogued backups, newest first."""
    server = session.server
    request = catalog_pb2.FindFilesRequest(
        pattern=pattern,
        vm=vm,
        backup_id=find_backup(server, backup).backup_id if backup else "",
        case_sensitive=case_sensitive,
        page_size=min(limit, 1_000),
    )
    found = list(islice(server.listing(server.catalog.FindFiles, request, "files", slow=True), limit))
    shown = table("VM", "volume", "path", ">size", "modified", "newest backup", ">backups")
    for one in found:
        row(
            shown, one.vm_name, one.volume, one.file.path, human(one.file.size_bytes),
            moment(one.file.modified_at_ns), f"{one.newest_backup_id[:12]} {moment(one.newest_at_ns)}",
            one.backup_count,
        )  # fmt: skip
    told = shown if found else "no file of that name is in the catalog"
    session.emit([plain(one) for one in found], told)


def versions(
    session: Session,
    vm: Annotated[str, typer.Argument(metavar="VM")],
    volume: Annotated[str, typer.Argument(metavar="VOLUME", help="E.g. disk0/p1.")],
    path: Annotated[str, typer.Argument(metavar="PATH")],
) -> None:
    """List what a file was over a VM's backups, newest first."""
    server = session.server
    request = catalog_pb2.ListFileVersionsRequest(vm=vm, volume=volume, path=path)
    found = server.call(server.catalog.ListFileVersions, request).versions
    shown = table("from", "to", ">size", "modified", ">backups", "newest")
    for one in found:
        size, modified = "absent", ""
        if not one.absent:
            size, modified = human(one.file.size_bytes), moment(one.file.modified_at_ns)
        cells = (moment(one.first_at_ns), moment(one.last_at_ns), size, modified, len(one.backup_ids))
        row(shown, *cells, one.backup_ids[0][:12])
    session.emit([plain(one) for one in found], shown)


def volumes(session: Session, backup: BackupReference) -> None:
    """List the volumes of a backup, and what the catalog has of each."""
    server = session.server
    request = catalog_pb2.ListFileVolumesRequest(backup_id=find_backup(server, backup).backup_id)
    found = server.call(server.catalog.ListFileVolumes, request).volumes
    shown = table("volume", "file system", "label", ">size", ">files", "catalog", "remark")
    for one in found:
        state = short_name(catalog_pb2.CatalogState, one.state)
        size = human(one.size_bytes)
        row(shown, one.name, one.file_system, one.label, size, one.file_count, state, one.problem)
    session.emit([plain(one) for one in found], shown)


def catalog(session: Session, backup: BackupReference) -> None:
    """Parse a backup for its files now, if the catalog has not all of it."""
    server = session.server
    found = find_backup(server, backup)
    request = catalog_pb2.CatalogBackupRequest(backup_id=found.backup_id)
    files: dict[str, int] = {}
    with (
        session.progress(f"catalog {found.vm_name}", 0) as bar,
        server.stream(server.catalog.CatalogBackup, request) as answers,
    ):
        for answer in answers:
            if answer.volume:
                files[answer.volume] = answer.files_done
            bar.update(sum(files.values()))
    session.emit(
        {"backup_id": found.backup_id, "files": files},
        f"backup {found.backup_id} is in the catalog; {sum(files.values()):,} files were read now",
    )


def rebuild(
    session: Session,
    target: Annotated[str, typer.Option(metavar="TARGET", help="Only backups on this one.")] = "",
) -> None:
    """Make the catalog anew from what the targets hold; the present one answers meanwhile."""
    server = session.server
    last = catalog_pb2.RebuildCatalogResponse()
    request = catalog_pb2.RebuildCatalogRequest(target=target)
    with (
        session.progress("catalog rebuild", 0) as bar,
        server.stream(server.catalog.RebuildCatalog, request) as answers,
    ):
        for last in answers:
            bar.update(last.files_done)
    text = f"{last.files_done:,} files of {last.backups_done} backups are in the catalog"
    session.emit(plain(last), "\n".join([text, *(f"lacking: {problem}" for problem in last.problems)]))
