"""``arraylift up``, ``down`` and ``status``: the daemons of this machine.

Callers: the command line, main thread.
"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from arraylift.cli import house, processes, running_vms
from arraylift.cli.command import command
from arraylift.cli.house import DaemonStatus
from arraylift.cli.interrupts import shielded
from arraylift.cli.session import Session
from arraylift.cli.settings import BASE_PORT, DRIVERS
from arraylift.cli.show import row, table
from arraylift.errors import PeerUnavailable, WrongState


def register(app: typer.Typer) -> None:
    """Add the commands to the root."""
    command(
        app,
        "up",
        examples="arraylift up\narraylift up --driver qemu\narraylift up --state /srv/lift --base-port 9401",
    )(up)
    command(app, "down", examples="arraylift down\narraylift down --vms")(down)
    command(app, "status", examples="arraylift status --json")(status)


def up(
    session: Session,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay, and stop the daemons at Ctrl-C.")
    ] = False,
    base_port: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Move all ports: vcenter N, host N+1, array N+2, target N+3, server N+4. "
            f"[default for a new state: {BASE_PORT}]",
        ),
    ] = None,
    driver: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(DRIVERS),
            help=f"What runs the VMs of this machine. [default for a new state: {DRIVERS[0]}]",
        ),
    ] = None,
) -> None:
    """Start the daemons of this machine; make CA, certificates and settings where missing."""
    layout = session.places.layout
    found = house.up(layout, base_port=base_port, pki_directory=session.places.pki, driver=driver)
    if foreground and not any(daemon.started for daemon in found):
        raise WrongState(
            f"the daemons of {layout.root} run already",
            subject=str(layout.root),
            next_step="`arraylift down` first, or leave --foreground out",
        )
    try:
        session.emit([_document(daemon) for daemon in found], _table(found))
        if foreground:
            _stay(session, found)
    finally:
        if foreground:
            with shielded():
                house.down(layout, [daemon.kind for daemon in found if daemon.started])


def down(
    session: Session,
    vms: Annotated[bool, typer.Option("--vms", help="Switch the VMs of this machine off first.")] = False,
) -> None:
    """Stop the daemons of this machine; they finish what they answered for.

    VMs that a real VMM runs go on, and wait for their disks until the array is up again.
    """
    layout = session.places.layout
    if vms:
        for name in running_vms.end_all(layout, force=False):
            session.note(f"VM {name} is off")
    elif left := running_vms.running(layout):
        session.note(f"these VMs run on, without disks until `arraylift up`: {', '.join(left)}")
    session.note(f"stopping, at most {processes.STOP_SECONDS:.0f} s a daemon")
    ended = house.down(session.places.layout)
    shown = table("daemon", "result")
    for kind, how in ended:
        row(shown, kind.name, how)
    session.emit([{"daemon": kind.name, "result": how} for kind, how in ended], shown)


def status(session: Session) -> None:
    """Show the daemons of this machine; fails unless all are up."""
    found = house.status(session.places.layout)
    session.emit([_document(daemon) for daemon in found], _table(found))
    away = [daemon.name for daemon in found if not daemon.is_up]
    if away:
        raise PeerUnavailable(
            f"not up: {', '.join(away)}",
            subject=away[0],
            next_step=f"start what is down with {session.places.layout.command('up')}",
        )


def _stay(session: Session, found: list[DaemonStatus]) -> None:
    """Return never: an interrupt, or a daemon that ended, ends it."""
    session.note("running; Ctrl-C stops the daemons")
    records = [(daemon, daemon.record) for daemon in found if daemon.record is not None]
    while not any(processes.exited_within(record, 1.0) for _, record in records):
        pass
    ended = [daemon.name for daemon, record in records if not record.is_alive()]
    raise PeerUnavailable(f"{', '.join(ended)} ended by itself", next_step=f"look into {found[0].log.parent}")


def _document(daemon: DaemonStatus) -> dict[str, object]:
    record = daemon.record
    return {
        "name": daemon.name,
        "kind": daemon.kind.noun,
        "pid": record.pid if record else None,
        "address": daemon.address,
        "health": daemon.health,
        "up": daemon.is_up,
        "version": record.version if record else None,
        "state": str(daemon.state),
        "log": str(daemon.log),
        "started": daemon.started,
    }


def _table(found: list[DaemonStatus]) -> Table:
    shown = table("daemon", ">pid", "address", "health", "version", "state")
    for daemon in found:
        record = daemon.record
        row(
            shown,
            daemon.name,
            record.pid if record else "-",
            daemon.address,
            daemon.health,
            record.version if record else "-",
            daemon.state,
        )
    return shown
