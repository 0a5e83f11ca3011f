"""``arraylift target gc`` and ``space``: free what nothing needs, and say where the space goes.

Callers: the command line, main thread.
"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from arraylift.cli.command import command
from arraylift.cli.connection import Connection
from arraylift.cli.session import Session
from arraylift.cli.show import plain, ratio, row, size_bytes, table
from arraylift.errors import PeerUnavailable
from arraylift.sizes import human
from arraylift.v1 import target_admin_pb2

CYCLES_MAX = 10
CYCLES_OF_A_CONTAINER = 3
"""From dead to gone: condemned in the first, deleted in the third."""


def register(noun: typer.Typer) -> None:
    """Add the commands to ``arraylift target``."""
    command(
        noun,
        "gc",
        examples="arraylift target gc --dry-run\narraylift target gc --cycles 3\n"
        "arraylift target gc --unit archive --rate 20M",
    )(gc)
    command(noun, "space", examples="arraylift target space\narraylift target space --by-vm --json")(space)


def gc(
    session: Session,
    unit: Annotated[str, typer.Option(metavar="UNIT", help="Its name. [default: the active one]")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, change nothing.")] = False,
    rate: Annotated[
        str, typer.Option(metavar="SIZE", help="Copy at most so much a second. [default: as fast as it goes]")
    ] = "0",
    live_percent: Annotated[
        int, typer.Option(min=0, max=100, help="Copy containers forward with less of this alive. 0: 50.")
    ] = 0,
    cycles: Annotated[
        int,
        typer.Option(
            min=1, max=CYCLES_MAX, help=f"Run so many; what dies now goes in the {CYCLES_OF_A_CONTAINER}rd."
        ),
    ] = 1,
) -> None:
    """Collect garbage: containers that nothing needs are condemned, and deleted two cycles later."""
    request = target_admin_pb2.CollectGarbageRequest(
        unit=unit,
        dry_run=dry_run,
        live_percent_min=live_percent,
        bytes_per_second_max=size_bytes(rate),
    )
    target = session.target
    done = [_cycle(session, target, request) for _ in range(1 if dry_run else cycles)]
    session.emit([plain(each) for each in done], _plan(done[0]) if dry_run else _cycles(done))


def _cycle(
    session: Session, target: Connection, request: target_admin_pb2.CollectGarbageRequest
) -> target_admin_pb2.CollectGarbageResponse:
    last: target_admin_pb2.CollectGarbageResponse | None = None
    with (
        session.steps("collect") as bar,
        target.stream(target.admin.CollectGarbage, request) as responses,
    ):
        for response in responses:
            bar.update(response.phase, response.done, response.total)
            last = response
    if last is None or last.phase != "done":
        raise PeerUnavailable(f"{target.label} ended a collection without saying what it did")
    return last


def _plan(plan: target_admin_pb2.CollectGarbageResponse) -> Table:
    shown = table("would be", ">containers", ">bytes", title=f"cycle {plan.cycle}, {_live(plan)}")
    row(shown, "deleted, condemned two cycles ago", plan.deleted_count, human(plan.deleted_bytes))
    row(shown, "condemned", plan.condemned_count, "")
    row(shown, "copied forward", plan.copied_container_count, human(plan.copied_bytes))
    row(shown, "dead in all: comes free in the end", "", human(plan.dead_bytes))
    row(shown, "spared for running transfers", plan.pinned_count, "")
    return shown


def _live(figures: target_admin_pb2.CollectGarbageResponse) -> str:
    stored = figures.live_bytes + figures.dead_bytes
    percent = 100 * figures.live_bytes / stored if stored else 100.0
    return f"{percent:.1f} % of {human(stored)} in {figures.container_count:,} containers are alive"


def _cycles(done: list[target_admin_pb2.CollectGarbageResponse]) -> Table:
    shown = table(
        ">cycle", ">containers", ">live", ">dead", ">condemned", ">copied", ">deleted", ">freed", ">pinned"
    )
    for each in done:
        row(
            shown,
            each.cycle,
            each.container_count,
            human(each.live_bytes),
            human(each.dead_bytes),
            each.condemned_count,
            human(each.copied_bytes),
            each.deleted_count,
            human(each.deleted_bytes),
            each.pinned_count,
        )
    return shown


def space(
    session: Session,
    by_vm: Annotated[
        bool, typer.Option("--by-vm", help="Also what each VM has, and what only it needs.")
    ] = False,
) -> None:
    """Walk every tree, and say where the space goes: stored, metadata and garbage are all there is."""
    target, last = session.target, None
    request = target_admin_pb2.SurveySpaceRequest(by_vm=by_vm)
    with session.steps("survey") as bar, target.stream(target.admin.SurveySpace, request) as responses:
        for response in responses:
            bar.update("", response.images_done, response.images_total)
            last = response
    if last is None or not last.done:
        raise PeerUnavailable(f"{target.label} ended a survey without its figures")
    session.emit(plain(last), _space(last, by_vm=by_vm))


def _space(found: target_admin_pb2.SurveySpaceResponse, *, by_vm: bool) -> Table:
    columns = ["images", "disks", "mapped", "unique", "stored", "metadata", "garbage", "containers"]
    shown = table("", *(f">{name}" for name in columns), *([">only its own"] if by_vm else []))
    groups = [("unit", found.units), ("tenant", found.tenants), ("vm", found.vms), ("all", [found.total])]
    for what, uses in groups:
        for use in uses:
            sizes = [
                use.logical_bytes,
                use.mapped_bytes,
                use.plain_bytes,
                use.stored_bytes,
                use.metadata_bytes,
                use.garbage_bytes,
                use.container_bytes,
            ]
            cells = [human(size) for size in sizes]
            if what == "vm":
                cells[-2:] = ["", "", human(use.unique_stored_bytes)]
            row(shown, f"{what} {use.name}".strip(), f"{use.image_count:,}", *cells)
    total = found.total
    shown.caption = f"{ratio(total.mapped_bytes, total.plain_bytes)} deduplication, "
    shown.caption += f"{ratio(total.plain_bytes, total.stored_bytes)} compression"
    shown.caption_justify = "left"
    return shown
