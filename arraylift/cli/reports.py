"""``arraylift report``: who is not protected, who is overdue, where the space goes.

Callers: the command line, main thread.
"""

from __future__ import annotations

from collections.abc import Sequence

import typer
from rich.table import Table

from arraylift.cli.command import command, group
from arraylift.cli.session import Session
from arraylift.cli.show import moment, plain, row, table
from arraylift.rpc.channel import LONG_CALL_SECONDS
from arraylift.sizes import human
from arraylift.v1 import policy_pb2 as pb


def register(app: typer.Typer) -> None:
    """Add the noun to the root."""
    noun = group("Reports over policies and backups.")
    command(noun, "unprotected", examples="arraylift report unprotected")(unprotected)
    command(noun, "overdue", examples="arraylift report overdue --json")(overdue)
    command(noun, "space", examples="arraylift report space")(space)
    app.add_typer(noun, name="report")


def unprotected(session: Session) -> None:
    """List the VMs that no enabled policy chooses."""
    server = session.server
    request = pb.ReportUnprotectedRequest()
    found = list(server.listing(server.policies.ReportUnprotected, request, "vms", slow=True))
    shown = table("vm", "host", "last backup", "why")
    for gap in found:
        row(shown, gap.vm_name, gap.host, moment(gap.last_backup_at_ns) or "none", gap.reason)
    session.emit([plain(gap) for gap in found], shown if found else "every VM is chosen by a policy")


def overdue(session: Session) -> None:
    """List the VMs whose policy should have backed them up by now, longest overdue first."""
    server = session.server
    request = pb.ReportOverdueRequest()
    found = list(server.listing(server.policies.ReportOverdue, request, "vms", slow=True))
    shown = table("vm", "policy", "due", "last backup", "why")
    for gap in found:
        last = moment(gap.last_backup_at_ns) or "none"
        row(shown, gap.vm_name, gap.policy, moment(gap.due_at_ns), last, gap.reason)
    session.emit([plain(gap) for gap in found], shown if found else "no backup is overdue")


def space(session: Session) -> None:
    """Show what the backups of each VM and on each target amount to, largest first."""
    server = session.server
    answer = server.call(
        server.policies.ReportSpace, pb.ReportSpaceRequest(), timeout_seconds=LONG_CALL_SECONDS
    )
    shown = _space("vm", answer.vms)
    for one in answer.targets:
        row(shown, f"target {one.name}", *_sums(one))
    session.emit(plain(answer), shown)


def _space(what: str, uses: Sequence[pb.ProtectedSpace]) -> Table:
    shown = table(what, ">backups", ">protected", ">sent", ">stored")
    for one in uses:
        row(shown, one.name, *_sums(one))
    return shown


def _sums(one: pb.ProtectedSpace) -> tuple[object, ...]:
    return one.backup_count, human(one.bytes_protected), human(one.bytes_sent), human(one.bytes_stored)
