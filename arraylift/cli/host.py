"""``arraylift host``: the hosts that the virtual center manages, and those of direct mode.

Callers: the command line, main thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.table import Table

from arraylift.cli import peers
from arraylift.cli.command import command, group
from arraylift.cli.session import Session
from arraylift.cli.show import moment, plain, row, short_name, table
from arraylift.errors import InvalidRequest
from arraylift.rpc.channel import LONG_CALL_SECONDS
from arraylift.sizes import human
from arraylift.v1 import virtual_center_pb2


def register(app: typer.Typer) -> None:
    """Add the noun to the root."""
    noun = group("Hosts of virtual machines. `add` and `rm` are for backups without a virtual center.")
    command(noun, "ls", examples="arraylift host ls --json")(ls)
    command(noun, "sync", examples="arraylift host sync\narraylift host sync host1")(sync)
    command(noun, "forget", examples="arraylift host forget host3 --gone-for-good")(forget)
    peers.register(noun, "host", verbs=("add", "rm"))
    app.add_typer(noun, name="host")


def ls(session: Session) -> None:
    """List the hosts that the virtual center knows."""
    center = session.vcenter
    found = center.call(center.center.ListHosts, virtual_center_pb2.ListHostsRequest()).hosts
    session.emit([plain(host) for host in found], _table(found))


def sync(
    session: Session,
    host: Annotated[str, typer.Argument(metavar="[HOST]", help="Its name. [default: all]")] = "",
) -> None:
    """Have the virtual center ask hosts for their VMs now."""
    center = session.vcenter
    request = virtual_center_pb2.SynchronizeHostsRequest(host=host)
    found = center.call(center.center.SynchronizeHosts, request, timeout_seconds=LONG_CALL_SECONDS).hosts
    session.emit([plain(one) for one in found], _table(found))


def forget(
    session: Session,
    host: Annotated[str, typer.Argument(metavar="HOST", help="Its name.")],
    gone_for_good: Annotated[
        bool, typer.Option("--gone-for-good", help="It does not run, and will not come back with its VMs.")
    ] = False,
    missing_ok: Annotated[bool, typer.Option("--missing-ok", help="Fine if there is none.")] = False,
) -> None:
    """Have the virtual center forget a host that is gone for good, with its VMs.

    Moves of VMs that wait for it are undone: a VM on its way to it goes back to where it came from. If the
    host still runs such a VM, two hosts write to its disks then: make sure that it does not.
    """
    if not gone_for_good:
        raise InvalidRequest(
            f"only an operator can know that host {host} is gone",
            subject=f"host {host}",
            next_step="switch it off, then repeat with --gone-for-good",
        )
    center = session.vcenter
    center.call(
        center.center.RemoveHost, virtual_center_pb2.RemoveHostRequest(name=host, missing_ok=missing_ok)
    )
    session.emit({"forgotten": host}, f"forgot host {host}")


def _table(found: Sequence[virtual_center_pb2.Host]) -> Table:
    shown = table(
        "host", "address", "state", ">VMs", ">memory", ">free", ">CPUs", ">load", "driver", "last report"
    )
    for host in found:
        row(
            shown,
            host.name,
            host.address,
            short_name(virtual_center_pb2.HostState, host.state),
            host.vm_count,
            human(host.memory_bytes),
            human(host.memory_free_bytes),
            host.cpus,
            f"{host.load_percent}%",
            host.driver,
            moment(host.last_report_ns),
        )
    return shown
