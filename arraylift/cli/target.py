"""``arraylift target``: the dedup target and its images.

Callers: the command line, main thread.
"""

from __future__ import annotations

import typer

from arraylift.cli import gc, images, peers, rebuild, scrub, target_files, units
from arraylift.cli.command import command, group
from arraylift.cli.session import Session
from arraylift.cli.show import moment, pairs, plain, ratio
from arraylift.sizes import human
from arraylift.v1 import target_admin_pb2


def register(app: typer.Typer) -> None:
    """Add the noun to the root."""
    noun = group("Dedup targets: the registry, and statistics and images of one.")
    peers.register(noun, "target")
    command(noun, "stats", examples="arraylift target stats --json")(stats)
    gc.register(noun)
    scrub.register_images(images.register(noun))
    scrub.register(noun)
    target_files.register_names(noun)
    rebuild.register(noun)
    units.register(noun)
    app.add_typer(noun, name="target")


def stats(session: Session) -> None:
    """Show sizes and counts of the store."""
    target = session.target
    found = target.call(target.admin.GetTargetStats, target_admin_pb2.GetTargetStatsRequest())
    rows: list[tuple[str, object]] = [
        ("images", f"{found.image_count:,}, {human(found.logical_bytes)} as disks"),
        ("stored", f"{human(found.container_bytes)} in {found.container_count:,} containers"),
        ("ratio", f"{ratio(found.logical_bytes, found.container_bytes)} disks to stored"),
        ("segments", f"{found.segment_count:,}, {human(found.plain_bytes)} before compression"),
        ("open transfers", f"{found.open_transfer_count:,}"),
        ("quarantined", f"{found.quarantined_count:,}"),
        ("free", f"{human(found.free_bytes)}{_reserve(found)}"),
        ("garbage to go", f"{human(found.condemned_bytes)} condemned"),
        ("in memory", f"{human(found.cache_bytes)} of containers"),
        ("lock clock", f"{moment(found.lock_clock_ns)}{_lag(found)}"),
    ]
    if len(found.units) > 1:
        rows += [(f"unit {unit.unit}", _unit(unit)) for unit in found.units]
    session.emit(plain(found), pairs(rows))


def _unit(unit: target_admin_pb2.UnitStats) -> str:
    told = (
        f"{unit.image_count:,} images, {human(unit.container_bytes)} in {unit.container_count:,} containers"
    )
    if unit.absent:
        return f"{told}; absent"
    return f"{told}, {human(unit.free_bytes)} free" if unit.free_bytes else told


def _reserve(found: target_admin_pb2.GetTargetStatsResponse) -> str:
    if found.below_reserve:
        return f": below the reserve of {human(found.reserve_bytes)}, no transfer begins"
    return f", of which {human(found.reserve_bytes)} are kept" if found.reserve_bytes else ""


def _lag(found: target_admin_pb2.GetTargetStatsResponse) -> str:
    return ": not the wall clock's, until a daemon confirms the time" if found.lock_clock_lags else ""
