"""``arraylift target rebuild``: make a unit's index anew, and restore what else of it was lost.

Callers: the command line, main thread.
"""

from __future__ import annotations

from typing import Annotated

import typer

from arraylift.cli.command import command
from arraylift.cli.session import Session
from arraylift.cli.show import pairs, plain
from arraylift.errors import PeerUnavailable
from arraylift.v1 import target_admin_pb2 as pb


def register(noun: typer.Typer) -> None:
    """Add the command to ``arraylift target``."""
    command(noun, "rebuild", examples="arraylift target rebuild\narraylift target rebuild archive --json")(
        rebuild
    )


def rebuild(
    session: Session,
    unit: Annotated[
        str, typer.Argument(metavar="[UNIT]", help="Its name. [default: the one that takes backups]")
    ] = "",
) -> None:
    """Make a unit's index anew from its containers, and restore lost manifests from the other units.

    Backups and restores go on meanwhile.
    """
    target, last = session.target, None
    with (
        session.steps(f"rebuild {unit or 'the unit'}") as bar,
        target.stream(target.admin.RebuildUnit, pb.RebuildUnitRequest(unit=unit)) as responses,
    ):
        for response in responses:
            bar.update("containers", response.containers_done, response.containers_total)
            last = response
    if last is None or not last.done:
        raise PeerUnavailable(f"{target.label} ended a rebuild without saying that it is done")
    rows: list[tuple[str, object]] = [
        ("containers", f"{last.containers_done:,}"),
        ("records", f"{last.records:,}"),
        ("damaged containers", f"{last.containers_damaged:,}"),
        ("restored from replicas", f"{last.manifests_restored:,}"),
    ]
    session.emit(plain(last), pairs(rows))
