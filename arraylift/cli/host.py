"""``arraylift host``: the hosts that the virtual center manages, and those of direct mode.

Callers: the command line, main thread.
"""

from __future__ import annotations

import typer

from arraylift.cli import peers
from arraylift.cli.command import command, group
from arraylift.cli.session import Session
from arraylift.cli.show import moment, plain, row, short_name, table
from arraylift.sizes import human
from arraylift.v1 import virtual_center_pb2


def register(app: typer.Typer) -> None:
    """Add the noun to the root."""
    noun = group("Hosts of virtual machines. `add` and `rm` are for backups without a virtual center.")
    command(noun, "ls", examples="arraylift host ls --json")(ls)
    peers.register(noun, "host", verbs=("add", "rm"))
    app.add_typer(noun, name="host")


def ls(session: Session) -> None:
    """List the hosts that the virtual center knows."""
    center = session.vcenter
    found = center.call(center.center.ListHosts, virtual_center_pb2.ListHostsRequest()).hosts
    shown = table("host", "address", "state", ">VMs", ">memory", ">free", ">CPUs", "driver", "last report")
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
            host.driver,
            moment(host.last_report_ns),
        )
    session.emit([plain(host) for host in found], shown)
