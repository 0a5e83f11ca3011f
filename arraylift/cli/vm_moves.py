"""``arraylift vm migrate|migrations|history``: where VMs go, and where they were.

Callers: the command line, main thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.table import Table

from arraylift.cli import vm_calls
from arraylift.cli.command import command
from arraylift.cli.session import Session
from arraylift.cli.show import moment, plain, row, table
from arraylift.errors import PeerUnavailable
from arraylift.sizes import human
from arraylift.v1 import virtual_center_pb2 as pb
from arraylift.v1 import vm_pb2

VmReference = Annotated[str, typer.Argument(metavar="VM", help="Its name or id.")]


def register(noun: typer.Typer) -> None:
    """Add the verbs to ``arraylift vm``."""
    command(
        noun,
        "migrate",
        examples="arraylift vm migrate web host2\narraylift vm migrate web --live --downtime 200",
    )(migrate)
    command(noun, "migrations", examples="arraylift vm migrations\narraylift vm migrations web --json")(
        migrations
    )
    command(noun, "history", examples="arraylift vm history web\narraylift vm history web --last 5")(history)


def migrate(
    session: Session,
    vm: VmReference,
    host: Annotated[
        str, typer.Argument(metavar="[HOST]", help="Where it goes. [default: where there is room]")
    ] = "",
    live: Annotated[
        bool, typer.Option("--live", help="A running VM goes on running; without, it must be off.")
    ] = False,
    downtime: Annotated[
        int, typer.Option(min=0, metavar="MS", help="Longest time that its guest stands still; 0: 500.")
    ] = 0,
    time: Annotated[
        int, typer.Option(min=0, metavar="SECONDS", help="Longest time to send its memory; 0: 600.")
    ] = 0,
) -> None:
    """Move a VM to another host that reaches its arrays.

    It goes on if this command is cut; the same command follows it. After an error the VM is where it was.
    """
    center = session.vcenter
    found = vm_calls.find_vm(center, vm)
    request = pb.MigrateVmRequest(
        vm_id=found.vm.vm_id, host=host, live=live, downtime_ms_max=downtime, seconds_max=time
    )
    last = pb.MigrateVmResponse()
    waited_for = ""
    with (
        session.progress(f"move {found.vm.config.name}", 0) as bar,
        center.stream(center.center.MigrateVm, request) as news,
    ):
        for last in news:
            bar.sized(last.bytes_sent, last.bytes_sent + last.bytes_left)
            if last.waits_for and last.waits_for != waited_for:
                session.note(f"{last.phase} waits: {last.waits_for}")
            waited_for = last.waits_for
    if not last.HasField("vm"):
        raise PeerUnavailable(
            f"{center.label} did not say how the move ended",
            subject=f"vm {vm}",
            next_step="see `arraylift vm migrations`",
        )
    said = f"VM {last.vm.config.name} is on host {last.host.name}"
    if last.downtime_ns:
        said += f"; its guest stood still for {last.downtime_ns / 1e6:.0f} ms"
    if last.bytes_sent:
        said += f", {human(last.bytes_sent)} of memory were sent"
    session.emit(plain(last), said)


def migrations(
    session: Session,
    vm: Annotated[str, typer.Argument(metavar="[VM]", help="Its name or id. [default: of all]")] = "",
) -> None:
    """List moves that have not ended, and what each waits for.

    Nobody guesses which of two hosts can run a VM: a move waits until the host in question answers, and
    ends by itself then. One that is gone for good: `arraylift host forget`.
    """
    center = session.vcenter
    vm_id = vm_calls.find_vm(center, vm).vm.vm_id if vm else ""
    found = center.call(center.center.ListMigrations, pb.ListMigrationsRequest(vm_id=vm_id)).migrations
    session.emit([plain(one) for one in found], _migrations_table(found))


def history(
    session: Session,
    vm: Annotated[str, typer.Argument(metavar="VM", help="Its name; of one that is gone, its id.")],
    last: Annotated[int, typer.Option(min=1, metavar="COUNT", help="The newest only.")] = 20,
) -> None:
    """Show the configurations that a VM had, and the hosts that it was on, newest first."""
    center = session.vcenter
    is_id = vm_calls.is_id(vm)
    request = pb.GetVmHistoryRequest(vm_id=vm if is_id else "", name="" if is_id else vm, page_size=last)
    answer = center.call(center.center.GetVmHistory, request)
    entries = list(answer.entries)[:last]
    session.emit([plain(entry) for entry in entries], _history_table(entries))


def _migrations_table(found: Sequence[pb.Migration]) -> Table:
    shown = table("vm", "from", "to", "live", "phase", "began", "waits for", "undone because")
    for one in found:
        row(
            shown,
            one.vm_name,
            one.source,
            one.destination,
            "yes" if one.live else "no",
            one.phase,
            moment(one.began_at_ns),
            one.waits_for or "-",
            one.undone_because or "-",
        )
    return shown


def _history_table(entries: Sequence[pb.VmHistoryEntry]) -> Table:
    shown = table("since", "host", "vm", ">CPUs", ">memory", "disks", "tags")
    for entry in entries:
        config = entry.config
        disks = ", ".join(f"{disk.name} {human(disk.size_bytes)}" for disk in config.disks)
        cells = (config.cpus, human(config.memory_bytes), disks, _tags(config))
        gone = ("-", "-", "-", "-")
        host = f"removed from {entry.host}" if entry.removed else entry.host or "-"
        row(shown, moment(entry.at_ns), host, config.name, *(gone if entry.removed else cells))
    return shown


def _tags(config: vm_pb2.VmConfig) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(config.tags.items()))
