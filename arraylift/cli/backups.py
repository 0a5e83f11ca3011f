"""``arraylift backup``, ``restore`` and ``backups``: VMs to the target and back.

Callers: the command line, main thread.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated

import typer
from rich.table import Table

from arraylift.cli import jobs, peers
from arraylift.cli.command import command, group
from arraylift.cli.connection import Connection
from arraylift.cli.session import Session
from arraylift.cli.show import moment, pairs, plain, row, short_name, size_bytes, table
from arraylift.cli.times import For, MaxAge, Until, duration_seconds, lock_end_ns
from arraylift.errors import Corruption, InvalidRequest, NotFound
from arraylift.rpc.channel import LONG_CALL_SECONDS
from arraylift.sizes import human
from arraylift.v1 import backup_logic_pb2, backup_pb2, image_pb2, vm_pb2

PREFIX_CHARS_MIN = 4
_ID = re.compile(r"[0-9a-f]{32}")
_PREFIX = re.compile(rf"[0-9a-f]{{{PREFIX_CHARS_MIN},32}}")

BackupReference = Annotated[
    str, typer.Argument(metavar="BACKUP", help="An id, how that begins, or a VM's name: its newest.")
]


class Consistency(StrEnum):
    """What a VM snapshot must at least be."""

    any = "any"
    crash = "crash"
    filesystem = "filesystem"
    application = "application"


class Changes(StrEnum):
    """Who says what changed on volumes."""

    births = "births"
    supplied = "supplied"


_LEVELS = {
    Consistency.any: vm_pb2.CONSISTENCY_LEVEL_UNSPECIFIED,
    Consistency.crash: vm_pb2.CONSISTENCY_LEVEL_CRASH,
    Consistency.filesystem: vm_pb2.CONSISTENCY_LEVEL_FILESYSTEM,
    Consistency.application: vm_pb2.CONSISTENCY_LEVEL_APPLICATION,
}
_SOURCES = {
    Changes.births: backup_logic_pb2.CHANGE_SOURCE_UNSPECIFIED,
    Changes.supplied: backup_logic_pb2.CHANGE_SOURCE_SUPPLIED,
}


NoWait = Annotated[bool, typer.Option("--no-wait", help="Start only; see `arraylift job watch`.")]
Direct = Annotated[bool, typer.Option("--direct", help="Ask hosts, not the virtual center.")]


def register(app: typer.Typer) -> typer.Typer:
    """Add the commands to the root; returns the noun, for commands of other modules."""
    command(
        app,
        "backup",
        examples="arraylift backup web db\narraylift backup --all --consistency filesystem\n"
        "arraylift backup --tag tier=gold --full",
    )(backup)
    command(
        app,
        "restore",
        examples="arraylift restore web --as web-restored --start\narraylift restore 3f2a --host host2\n"
        "arraylift restore web --in-place --stop --start\n"
        "arraylift restore web --disk disk1 --attach web\narraylift restore web --memory 8G --network lab",
    )(restore)
    noun = group("Backups that exist.")
    command(noun, "ls", examples="arraylift backups ls\narraylift backups ls web --json")(ls)
    command(noun, "show", examples="arraylift backups show web")(show)
    command(
        noun, "verify", examples="arraylift backups verify 3f2a\narraylift backups verify web --max-age 0"
    )(verify)
    command(
        noun,
        "lock",
        examples="arraylift backups lock 3f2a --for 90d\narraylift backups lock web --until 2030-01-31",
    )(lock)
    command(noun, "rm", examples="arraylift backups rm 3f2a --dry-run\narraylift backups rm 3f2a")(rm)
    app.add_typer(noun, name="backups")
    return noun


def backup(
    session: Session,
    vms: Annotated[list[str] | None, typer.Argument(metavar="[VM]...", help="Names or ids.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every VM.")] = False,
    tag: Annotated[str, typer.Option(metavar="KEY=VALUE", help="Every VM with that tag.")] = "",
    full: Annotated[bool, typer.Option("--full", help="Read and offer everything.")] = False,
    direct: Direct = False,
    target: Annotated[
        str, typer.Option(metavar="TARGET", help="Registered name. [default: the only one]")
    ] = "",
    consistency: Annotated[
        Consistency, typer.Option(help="What the snapshot must at least be; less fails the job.")
    ] = Consistency.any,
    changes: Annotated[
        Changes, typer.Option(help="Who says what changed: the array, or the VMM, where it knows.")
    ] = Changes.births,
    gateway: Annotated[
        str, typer.Option(metavar="ARRAY", help="That reads foreign disks. [default: the first registered]")
    ] = "",
    exclude_disk: Annotated[
        list[str] | None, typer.Option("--exclude-disk", metavar="DISK", help="Leave it out; repeatable.")
    ] = None,
    retries: Annotated[
        int, typer.Option(min=0, max=10, help="Start a job that failed by what may pass again, so often.")
    ] = 0,
    no_wait: NoWait = False,
) -> None:
    """Back up VMs, each by a job of its own; ends with the exit code of the worst."""
    if sum((bool(vms), every, bool(tag))) != 1:
        raise InvalidRequest("name VMs, or give --all, or --tag", next_step="see `arraylift backup --help`")
    server = session.server
    request = backup_pb2.StartBackupRequest(
        vms=vms or [],
        all=every,
        tag=tag,
        full=full,
        direct=direct,
        target=target,
        level_min=_LEVELS[consistency],
        exclude_disks=exclude_disk or [],
        gateway=gateway,
        change_source=_SOURCES[changes],
        retries_max=retries,
    )
    answer = server.call(server.backups.StartBackup, request, timeout_seconds=LONG_CALL_SECONDS)
    wait(session, list(answer.job_ids), no_wait=no_wait)


def restore(
    session: Session,
    backup: BackupReference,
    as_name: Annotated[
        str, typer.Option("--as", metavar="NAME", help="Of the new VM. [default: NAME-restored]")
    ] = "",
    host: Annotated[str, typer.Option(metavar="HOST", help="Its name. [default: chosen]")] = "",
    array: Annotated[
        str, typer.Option(metavar="ARRAY", help="Registered name. [default: each disk's own]")
    ] = "",
    start: Annotated[bool, typer.Option("--start", help="Power it on afterwards.")] = False,
    keep_identity: Annotated[
        bool,
        typer.Option("--keep-identity", help="The same UUID and MAC addresses: the old VM must be gone."),
    ] = False,
    in_place: Annotated[
        bool,
        typer.Option(
            "--in-place", help="Onto the disks of the VM itself; what they hold is kept as snapshots."
        ),
    ] = False,
    stop: Annotated[
        bool, typer.Option("--stop", help="With --in-place: power the VM off when all has arrived.")
    ] = False,
    disk: Annotated[
        list[str] | None,
        typer.Option("--disk", metavar="DISK", help="Only it, as a new volume or in place; repeatable."),
    ] = None,
    volume: Annotated[
        str, typer.Option(metavar="NAME", help="With --disk: of the new volume. [default: made up]")
    ] = "",
    attach: Annotated[
        str, typer.Option(metavar="VM", help="With --disk: give the new volume to this VM.")
    ] = "",
    memory: Annotated[str, typer.Option(help="Of the new VM, e.g. 8G. [default: as it was]")] = "",
    cpus: Annotated[int, typer.Option(min=0, help="Likewise.", show_default=False)] = 0,
    network: Annotated[
        list[str] | None,
        typer.Option("--network", metavar="NETWORK", help="An interface in it; repeatable. [as they were]"),
    ] = None,
    direct: Direct = False,
    no_wait: NoWait = False,
) -> None:
    """Restore a backup, or disks of it: as a new VM with new volumes, or in place, all at one instant."""
    server = session.server
    request = backup_pb2.StartRestoreRequest(
        backup_id=find_backup(server, backup).backup_id,
        as_name=as_name,
        host=host,
        array=array,
        start=start,
        direct=direct,
        keep_identity=keep_identity,
        in_place=in_place,
        stop=stop,
        disks=disk or [],
        volume=volume,
        attach=attach,
        memory_bytes=size_bytes(memory) if memory else 0,
        cpus=cpus,
        networks=network or [],
    )
    answer = server.call(server.backups.StartRestore, request, timeout_seconds=LONG_CALL_SECONDS)
    wait(session, [answer.job_id], no_wait=no_wait)


def wait(session: Session, job_ids: list[str], *, no_wait: bool) -> None:
    """Follow jobs to their end, or only name them. Raises what the worst of them failed by."""
    if no_wait or not job_ids:
        shown = table("id")
        for job_id in job_ids:
            row(shown, job_id)
        session.emit([{"job_id": job_id} for job_id in job_ids], shown if job_ids else "no VM was found")
        return
    ended = jobs.follow(session, session.server, job_ids)
    session.emit([plain(job) for job in ended], jobs.summary(ended))
    for line in (line for job in ended for line in jobs.safety_lines(job)):
        session.note(line)
    jobs.check_outcome(ended)


def ls(
    session: Session,
    vm: Annotated[str, typer.Argument(metavar="[VM]", help="Only of this VM, by name or id.")] = "",
) -> None:
    """List backups, newest first."""
    server = session.server
    found = list(_listed(server, vm))
    session.emit([plain(each) for each in found], _table(found))


def show(session: Session, backup: BackupReference) -> None:
    """Show one backup, its disks and what it cost."""
    found = find_backup(session.server, backup)
    frozen = f"{found.frozen_ns / 1e6:.1f} ms" if found.frozen_ns else "not frozen"
    rows: list[tuple[str, object]] = [
        ("backup", found.backup_id),
        ("vm", f"{found.vm_name} ({found.vm_id})"),
        ("target", found.target),
        ("snapshot", moment(found.snapshot_at_ns)),
        ("locked until", moment(found.lock_until_ns) or "not locked"),
        ("consistency", f"{short_name(vm_pb2.ConsistencyLevel, found.level)}, {frozen}"),
        ("sent as", _kind(found)),
        ("memory", human(found.config.memory_bytes)),
        ("CPUs", found.config.cpus),
    ]
    for disk in found.disks:
        read, stored = human(disk.figures.bytes_read), human(disk.figures.bytes_stored)
        how = short_name(backup_logic_pb2.ChangeSource, disk.change_source) if disk.change_source else ""
        by = f" by {how.replace('_', ' ')}" if how else ""
        rows.append((disk.disk_name, f"{human(disk.size_bytes)}, read {read}{by}, stored {stored}"))
        rows.append(("", f"image {disk.image_id}"))
        rows.append(("", f"root {disk.root.hex()}"))
    session.emit(plain(found), pairs(rows))


def lock(session: Session, backup: BackupReference, until: Until = "", duration: For = "") -> None:
    """Lock a backup: until then nobody can delete it or its images. A lock is extended, never shortened."""
    server = session.server
    found = find_backup(server, backup)
    request = backup_pb2.LockBackupRequest(backup_id=found.backup_id, until_ns=lock_end_ns(until, duration))
    answer = server.call(server.backups.LockBackup, request, timeout_seconds=LONG_CALL_SECONDS)
    session.emit(
        {"backup_id": found.backup_id, "lock_until_ns": answer.lock_until_ns},
        f"backup {found.backup_id} of {found.vm_name} is locked until {moment(answer.lock_until_ns)}",
    )


def verify(session: Session, backup: BackupReference, max_age: MaxAge = "30d") -> None:
    """Have the target say whether every image is whole: by what its scrub saw, reading what it did not."""
    server = session.server
    found = find_backup(server, backup)
    done: dict[str, tuple[int, int]] = {}
    since: dict[str, int] = {}
    request = backup_pb2.VerifyBackupRequest(
        backup_id=found.backup_id, max_age_seconds=duration_seconds(max_age)
    )
    whole = sum(disk.size_bytes for disk in found.disks)
    with (
        session.progress(f"verify {found.vm_name}", whole) as bar,
        server.stream(server.backups.VerifyBackup, request) as responses,
    ):
        for response in responses:
            done[response.disk_name] = (response.bytes_verified, response.bytes_total)
            since[response.disk_name] = response.oldest_check_at_ns
            bar.update(sum(verified for verified, _ in done.values()))
    shown = table("disk", ">verified", "checked since")
    for disk in found.disks:
        verified, total = done.get(disk.disk_name, (0, 0))
        if verified != total or total != disk.size_bytes:
            raise Corruption(
                f"{server.label} verified {verified:,} of {disk.size_bytes:,} bytes of {disk.disk_name}",
                subject=f"backup {found.backup_id}",
                next_step="repeat it; look into the target's log",
            )
        row(shown, disk.disk_name, human(verified), moment(since[disk.disk_name]))
    session.emit(
        {"backup_id": found.backup_id, "disks": {name: verified for name, (verified, _) in done.items()}},
        shown,
    )


def rm(
    session: Session,
    backup: Annotated[str, typer.Argument(metavar="BACKUP", help="Its id, or how that begins.")],
    missing_ok: Annotated[bool, typer.Option("--missing-ok", help="Fine if there is none.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would come free.")] = False,
) -> None:
    """Remove a backup with its images; no other backup needs it. Its space comes back by `target gc`."""
    server = session.server
    try:
        found = find_backup(server, backup, by_vm=False)
    except NotFound:
        if not missing_ok:
            raise
        session.emit({"removed": None}, f"there was no backup {backup}")
        return
    if dry_run:
        _preview(session, found)
        return
    request = backup_pb2.DeleteBackupRequest(backup_id=found.backup_id, missing_ok=missing_ok)
    server.call(server.backups.DeleteBackup, request, timeout_seconds=LONG_CALL_SECONDS)
    session.emit({"removed": found.backup_id}, f"removed backup {found.backup_id} of {found.vm_name}")


def _preview(session: Session, found: backup_pb2.Backup) -> None:
    """Ask the backup's target, which alone knows what its images share with others."""
    peer = peers.find_peer(session.server, "target", found.target)
    target = session.daemon_at("target", peer.address)
    request = image_pb2.PreviewDeleteRequest(image_ids=[disk.image_id for disk in found.disks])
    freed = target.call(target.images.PreviewDelete, request, timeout_seconds=LONG_CALL_SECONDS)
    rows: list[tuple[str, object]] = [
        ("backup", f"{found.backup_id} of {found.vm_name}"),
        ("images", freed.image_count),
        ("would come free", f"{human(freed.unique_stored_bytes)} on {found.target}"),
        ("before compression", human(freed.unique_plain_bytes)),
    ]
    session.emit({"backup_id": found.backup_id, "preview": plain(freed)}, pairs(rows))


def find_backup(server: Connection, reference: str, *, by_vm: bool = True) -> backup_pb2.Backup:
    """Return the backup of an id, the newest of a VM, or the one whose id begins so, in this order.

    Raises NotFound, InvalidRequest (several begin so).
    """
    if _ID.fullmatch(reference):
        with contextlib.suppress(NotFound):  # a VM may have that id, or even that name
            return _backup(server, reference)
    newest = next(_listed(server, reference, page_size=1), None) if by_vm else None
    if newest is not None:
        return newest
    prefix = _PREFIX.fullmatch(reference)
    begin = [each for each in _listed(server) if each.backup_id.startswith(reference)] if prefix else []
    if len(begin) > 1:
        raise InvalidRequest(
            f"{len(begin)} backups begin with {reference}",
            subject=f"backup {reference}",
            next_step="give more of the id of one: " + ", ".join(each.backup_id for each in begin[:4]),
        )
    if not begin:
        what = "an id" if not by_vm else "an id or a VM's name"
        raise NotFound(
            f"there is no backup {reference}",
            subject=f"backup {reference}",
            next_step=f"give {what}; see `arraylift backups ls`",
        )
    return begin[0]


def _backup(server: Connection, backup_id: str) -> backup_pb2.Backup:
    answer: backup_pb2.GetBackupResponse = server.call(
        server.backups.GetBackup, backup_pb2.GetBackupRequest(backup_id=backup_id)
    )
    return answer.backup


def _listed(server: Connection, vm: str = "", *, page_size: int = 0) -> Iterator[backup_pb2.Backup]:
    """Newest first, read page by page as they are taken."""
    request = backup_pb2.ListBackupsRequest(vm=vm, page_size=page_size)
    return server.listing(server.backups.ListBackups, request, "backups")


def _kind(backup: backup_pb2.Backup) -> str:
    return "incremental" if backup.incremental else "full"


def _table(found: list[backup_pb2.Backup]) -> Table:
    shown = table(
        *("vm", "snapshot", "sent as", "consistency", ">disks", ">size", ">read", ">stored"),
        *("locked until", "target", "id"),
    )
    for each in found:
        row(
            shown,
            each.vm_name,
            moment(each.snapshot_at_ns),
            _kind(each),
            short_name(vm_pb2.ConsistencyLevel, each.level),
            len(each.disks),
            human(sum(disk.size_bytes for disk in each.disks)),
            human(sum(disk.figures.bytes_read for disk in each.disks)),
            human(sum(disk.figures.bytes_stored for disk in each.disks)),
            moment(each.lock_until_ns) or "-",
            each.target,
            each.backup_id,
        )
    return shown
