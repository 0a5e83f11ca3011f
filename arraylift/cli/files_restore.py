"""``arraylift files restore``: files and directories of a backup, into a directory here.

Callers: the command line, main thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from arraylift.cli.backups import BackupReference, Direct, NoWait, find_backup, wait
from arraylift.cli.command import command
from arraylift.cli.restored_tree import Facts, RestoredTree
from arraylift.cli.session import Session
from arraylift.errors import ArrayliftError, Corruption, InvalidRequest
from arraylift.rpc.channel import LONG_CALL_SECONDS
from arraylift.sizes import human
from arraylift.v1 import backup_pb2, catalog_pb2

PROBLEMS_TOLD_MAX = 100

VolumeKey = Annotated[
    str,
    typer.Option(
        metavar="VOLUME",
        help="E.g. disk0/p1, lvm/vg0/root. [default: the first with /etc or /Windows, else the largest]",
    ),
]


@dataclass(slots=True)
class Outcome:
    """What a restore came to; of the problems, the first PROBLEMS_TOLD_MAX."""

    file_count: int
    bytes_written: int
    problem_count: int
    problems: list[tuple[str, str]]
    attributes_left_out: int


def register(noun: typer.Typer) -> None:
    """Add the command to ``arraylift files``."""
    command(
        noun,
        "restore",
        examples="arraylift files restore web /etc /home/ann --to ./back\n"
        "arraylift files restore 3f2a /srv/data --volume lvm/vg0/data --to /mnt --overwrite\n"
        "arraylift files restore web /etc/hosts --guest --overwrite\n"
        "arraylift files restore web /home/ann --as-disk",
    )(restore)


def restore(
    session: Session,
    backup: BackupReference,
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Files, directories with all below.")],
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Here; below it they keep their whole paths.")
    ] = None,
    guest: Annotated[
        bool, typer.Option("--guest", help="Into the running guest instead, through its agent.")
    ] = False,
    as_disk: Annotated[
        bool, typer.Option("--as-disk", help="On a new disk of the VM instead, with owners and times.")
    ] = False,
    vm: Annotated[
        str, typer.Option(metavar="VM", help="With --guest, --as-disk. [default: the backup's own]")
    ] = "",
    directory: Annotated[
        str, typer.Option(metavar="PATH", help="With --guest: of the guest. [default: where they were]")
    ] = "",
    volume: VolumeKey = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    no_owner: Annotated[
        bool, typer.Option("--no-owner", help="They become yours. [default: unless root restores]")
    ] = False,
    direct: Direct = False,
    no_wait: NoWait = False,
) -> None:
    """Bring files and directories back: owner, mode, times, attributes, links and holes as they were."""
    by_job = guest or as_disk
    if guest + as_disk + (to is not None) != 1 or ((vm or directory or direct or no_wait) and not by_job):
        raise InvalidRequest(
            "say --to DIR, --guest or --as-disk", next_step="see `arraylift files restore --help`"
        )
    server = session.server
    found = find_backup(server, backup)
    if to is None:
        order = catalog_pb2.StartFileRestoreRequest(
            backup_id=found.backup_id,
            volume=volume,
            paths=paths,
            destination=(
                catalog_pb2.FILE_DESTINATION_RESTORE_DISK if as_disk else catalog_pb2.FILE_DESTINATION_GUEST
            ),
            vm=vm,
            directory=directory,
            overwrite=overwrite,
            direct=direct,
        )
        started = server.call(server.catalog.StartFileRestore, order, timeout_seconds=LONG_CALL_SECONDS)
        wait(session, [started.job_id], no_wait=no_wait)
        return
    _restore_here(session, found, to, paths, volume=volume, overwrite=overwrite, owned=not no_owner)


def _restore_here(
    session: Session,
    found: backup_pb2.Backup,
    to: Path,
    paths: list[str],
    *,
    volume: str,
    overwrite: bool,
    owned: bool,
) -> None:
    server = session.server
    request = catalog_pb2.ReadFilesRequest(
        backup_id=found.backup_id, volume=volume, paths=paths, recursive=True
    )
    problems: list[tuple[str, str]] = []
    count = 0

    def on_problem(path: bytes, why: str) -> None:
        nonlocal count
        count += 1
        if len(problems) < PROBLEMS_TOLD_MAX:
            problems.append((path.decode("utf-8", "backslashreplace"), why))

    owners = os.geteuid() == 0 and owned
    with (
        session.progress(f"restore files of {found.vm_name}", 0) as bar,
        server.stream(server.catalog.ReadFiles, request) as answers,
        RestoredTree(to, owners=owners, overwrite=overwrite, on_problem=on_problem) as tree,
    ):
        files, written = receive(answers, tree, label=server.label, on_bytes=bar.update)
    outcome = Outcome(files, written, count, problems, tree.attributes_left_out)
    _tell(session, found.backup_id, to, outcome)


def receive(
    answers: Iterable[catalog_pb2.ReadFilesResponse],
    tree: RestoredTree,
    *,
    label: str,
    on_bytes: Callable[[int], None],
) -> tuple[int, int]:
    """Write a stream into a tree; return how many files came, and how many bytes.

    Raises Corruption (cut, out of order), OutOfSpace.
    """
    files = done = at = 0
    for answer in answers:
        kind = answer.WhichOneof("message")
        if kind == "start":
            at = 0
            files += not answer.start.problem
            if answer.start.problem:
                tree.fail(answer.start.path, answer.start.problem)
            else:
                tree.start(_facts(answer.start))
        elif kind == "data":
            if answer.data.offset < at:
                raise Corruption(f"{label} sent bytes of {answer.data.offset} where {at} was due")
            tree.write(answer.data.offset, answer.data.data)
            at = answer.data.offset + len(answer.data.data)
            done += len(answer.data.data)
            on_bytes(done)
        else:
            tree.finish()
            return files, done
    raise Corruption(f"{label} did not send all files", next_step="repeat it, with --overwrite")


def _facts(start: catalog_pb2.FileStart) -> Facts:
    return Facts(
        path=start.path,
        mode=start.file.mode,
        uid=start.file.uid,
        gid=start.file.gid,
        size_bytes=start.file.size_bytes,
        modified_at_ns=start.file.modified_at_ns,
        link_target=start.link_target,
        device=(start.device_major, start.device_minor),
        hard_link_to=start.hard_link_to,
        attributes=dict(start.xattrs),
    )


def _tell(session: Session, backup_id: str, to: Path, outcome: Outcome) -> None:
    """Write the result, then what went wrong. Raises ArrayliftError if anything did."""
    document = {
        "backup_id": backup_id,
        "to": str(to),
        "file_count": outcome.file_count,
        "bytes_written": outcome.bytes_written,
        "problem_count": outcome.problem_count,
        "problems": [{"path": path, "problem": why} for path, why in outcome.problems],
        "attributes_left_out": outcome.attributes_left_out,
    }
    said = f"{to}: {outcome.file_count:,} files, {human(outcome.bytes_written)} of backup {backup_id}"
    if outcome.attributes_left_out:
        said += f"; {outcome.attributes_left_out:,} attributes mean nothing outside their own file system"
    session.emit(document, said)
    for path, why in outcome.problems:
        session.note(f"{path}: {why}")
    if outcome.problem_count:
        raise ArrayliftError(
            f"{outcome.problem_count:,} files or directories did not come back as they were",
            subject=f"backup {backup_id}",
            next_step="see what was said of each; with --overwrite those that are there are replaced",
        )
