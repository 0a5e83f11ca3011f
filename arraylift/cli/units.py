"""``arraylift target units``: where a target's images lie, and moving them between units.

Callers: the command line, main thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer
from rich.table import Table

from arraylift.cli.command import command, group
from arraylift.cli.connection import Connection
from arraylift.cli.session import Session
from arraylift.cli.show import pairs, plain, row, short_name, table
from arraylift.errors import InvalidRequest, PeerUnavailable
from arraylift.rpc.channel import LONG_CALL_SECONDS
from arraylift.sizes import human
from arraylift.v1 import target_admin_pb2 as pb

DAY_SECONDS = 24 * 3600
ROLES = {"active": pb.UNIT_ROLE_ACTIVE, "archive": pb.UNIT_ROLE_ARCHIVE}

UnitName = Annotated[str, typer.Argument(metavar="UNIT", help="Its name.")]


def register(noun: typer.Typer) -> None:
    """Add the commands to ``arraylift target``."""
    units = group("Storage units: where images lie. The first active one takes the backups.")
    command(units, "ls", examples="arraylift target units ls")(ls)
    command(
        units,
        "add",
        examples="arraylift target units add archive /mnt/archive\n"
        "arraylift target units add cold s3://backups/target1 --endpoint https://s3.example.org",
    )(add)
    command(units, "drain", examples="arraylift target units drain archive")(drain)
    command(units, "retire", examples="arraylift target units retire archive")(retire)
    command(
        units,
        "move",
        examples="arraylift target units move --older-than 30 --dry-run\n"
        "arraylift target units move --to archive 0123456789abcdef0123456789abcdef",
    )(move)
    noun.add_typer(units, name="units")


def ls(session: Session) -> None:
    """List units, the one that takes backups first."""
    target = session.target
    found = target.call(target.admin.ListUnits, pb.ListUnitsRequest()).units
    session.emit([plain(unit) for unit in found], _units(found))


def _units(found: Iterable[pb.Unit]) -> Table:
    shown = table("unit", "role", "state", ">images", ">stored", "location")
    for unit in found:
        state = f"absent: {unit.problem}" if unit.absent else "draining" if unit.draining else "ready"
        role = short_name(pb.UnitRole, unit.role)
        stored = "" if unit.absent else human(unit.container_bytes)
        row(shown, unit.name, role, state, f"{unit.image_count:,}", stored, unit.location)
    return shown


def add(
    session: Session,
    name: UnitName,
    location: Annotated[
        str,
        typer.Argument(
            metavar="LOCATION", help="A directory of the target's machine, or s3://bucket/prefix."
        ),
    ],
    role: Annotated[
        str, typer.Option(metavar="ROLE", help="archive: takes images that are moved; active: takes backups.")
    ] = "archive",
    endpoint: Annotated[
        str, typer.Option(metavar="URL", help="Of an object store. [default: the library's]")
    ] = "",
) -> None:
    """Add a unit: an empty place, or one that holds a unit already, whose images then appear."""
    if role not in ROLES:
        raise InvalidRequest(f"{role!r} is no role", next_step="choose active or archive")
    if not location.startswith("s3://"):
        location = os.path.abspath(location)
    request = pb.AddUnitRequest(name=name, role=ROLES[role], location=location, endpoint=endpoint)
    target = session.target
    unit = target.call(target.admin.AddUnit, request, timeout_seconds=LONG_CALL_SECONDS).unit
    session.emit(plain(unit), _units([unit]))


def drain(session: Session, name: UnitName) -> None:
    """Move everything out of a unit, so that it can be retired; nothing new comes in from then on."""
    target = session.target
    _moving(session, f"drain {name}", target, target.admin.DrainUnit, pb.DrainUnitRequest(name=name))


def retire(
    session: Session,
    name: UnitName,
    lose_images: Annotated[
        bool, typer.Option("--lose-images", help="Of an absent unit: what it holds is lost.")
    ] = False,
) -> None:
    """Forget a unit that holds nothing; its data stay where they are."""
    target = session.target
    target.call(target.admin.RetireUnit, pb.RetireUnitRequest(name=name, lose_images=lose_images))
    session.emit({"name": name}, f"unit {name} is retired")


def move(
    session: Session,
    images: Annotated[
        list[str] | None, typer.Argument(metavar="[IMAGE]...", help="Ids; or give --older-than.")
    ] = None,
    to: Annotated[str, typer.Option(metavar="UNIT", help="[default: the only archive unit]")] = "",
    older_than: Annotated[
        float | None, typer.Option(metavar="DAYS", min=0, help="All images older than this.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say which, move nothing.")] = False,
) -> None:
    """Move images to an archive unit: Zstandard, larger containers. The newest of each disk stays."""
    if bool(images) == (older_than is not None):
        raise InvalidRequest("name images, or give --older-than DAYS, one of the two")
    request = pb.MoveImagesRequest(
        to_unit=to,
        image_ids=images or [],
        older_than_seconds=int((older_than or 0) * DAY_SECONDS),
        dry_run=dry_run,
    )
    target = session.target
    _moving(session, "move images", target, target.admin.MoveImages, request, dry_run=dry_run)


def _moving(
    session: Session,
    what: str,
    target: Connection,
    method: Callable[..., Any],
    request: pb.MoveImagesRequest | pb.DrainUnitRequest,
    *,
    dry_run: bool = False,
) -> None:
    last: pb.MoveProgress | None = None
    going: list[str] = []
    with session.steps(what) as bar, target.stream(method, request) as responses:
        for response in responses:
            last = response.progress
            going += [last.image_id] if dry_run and last.image_id else []
            bar.update(last.image_id[:8], last.images_done, last.images_total)
    if last is None or not last.done:
        raise PeerUnavailable(
            f"{target.label} ended without saying what was moved",
            next_step="repeat it; what was moved stays moved",
        )
    document = {**plain(last), **({"would_move": going} if dry_run else {})}
    session.emit(document, _moved(last, going, dry_run=dry_run))


def _moved(last: pb.MoveProgress, going: list[str], *, dry_run: bool) -> Table:
    if dry_run:
        rows: list[tuple[str, object]] = [("would move", f"{len(going):,} images")]
        rows += [("", one) for one in going]
    else:
        rows = [
            ("moved", f"{last.images_done:,} images"),
            ("read", human(last.bytes_read)),
            ("stored", human(last.bytes_stored)),
        ]
    stay = zip(last.kept_image_ids, last.kept_reasons, strict=True)
    return pairs([*rows, *((f"stays: {image_id}", why) for image_id, why in stay)])
