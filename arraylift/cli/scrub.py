"""``arraylift target scrub``, ``heal`` and ``tenants``: are the data whole, and whose are they?

Callers: the command line, main thread.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from arraylift.cli import transfers
from arraylift.cli.command import command, group
from arraylift.cli.connection import Connection
from arraylift.cli.images import ImageReference
from arraylift.cli.session import Session
from arraylift.cli.show import moment, pairs, plain, row, size_bytes, table
from arraylift.cli.times import For, MaxAge, Until, duration_seconds, lock_end_ns
from arraylift.errors import ArrayliftError, Corruption, InvalidRequest
from arraylift.sizes import human
from arraylift.v1 import image_pb2, target_admin_pb2

HEAL_NAME = "heal"
SPANS_SHOWN_MAX = 8
HEALS = "back the VM up again, or heal the image from a snapshot that still holds the block: target heal"


def register(noun: typer.Typer) -> None:
    """Add the commands to ``arraylift target``."""
    command(noun, "scrub", examples="arraylift target scrub\narraylift target scrub --rate 50M --restart")(
        scrub
    )
    command(
        noun,
        "heal",
        examples="arraylift target heal web1/disk0 --snapshot web1-disk0@before\n"
        "arraylift target heal 3f2a... --snapshot web1-disk0@before --apply",
    )(heal)
    tenants = group("Tenants: deduplication, keys and quotas never cross them.")
    command(tenants, "ls", examples="arraylift target tenants ls")(ls)
    command(
        tenants,
        "quota",
        examples="arraylift target tenants quota acme 500G\narraylift target tenants quota acme none",
    )(quota)
    noun.add_typer(tenants, name="tenants")


def register_images(noun: typer.Typer) -> None:
    """Add the commands to ``arraylift target images``."""
    command(noun, "verify", examples="arraylift target images verify web1 --max-age 7d")(verify)
    command(noun, "lock", examples="arraylift target images lock web1 --for 90d")(lock)


# -- scrub --------------------------------------------------------------------------------------


def scrub(
    session: Session,
    unit: Annotated[str, typer.Option(metavar="UNIT", help="[default: the active one]")] = "",
    rate: Annotated[
        str, typer.Option(metavar="SIZE", help="Bytes a second, e.g. 50M. [default: all it can]")
    ] = "0",
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew, whatever was seen.")] = False,
) -> None:
    """Read and fingerprint every record of a unit; goes on where the last one stopped."""
    target = session.target
    request = target_admin_pb2.ScrubRequest(unit=unit, bytes_per_second_max=size_bytes(rate), restart=restart)
    last: Any = None
    with (
        session.progress("scrub", 0) as bar,
        target.stream(target.admin.Scrub, request) as responses,
    ):
        for last in responses:
            bar.counted(last.containers_done, last.containers_total, "containers")
    if last is None or not last.done:
        raise ArrayliftError(
            f"{target.label} ended the scrub without a result", next_step="look into its log"
        )
    rows: list[tuple[str, object]] = [
        ("period since", moment(last.period_started_at_ns)),
        ("containers", f"{last.containers_done:,}, {human(last.bytes_read)}"),
        ("records", f"{last.records_checked:,} checked"),
        ("damaged", f"{last.records_damaged:,} records, quarantined"),
        ("worn", f"{last.containers_worn:,} containers, no record lost"),
        ("unreadable", ", ".join(last.unreadable_containers) or "none"),
        ("images affected", ", ".join(last.affected_images) or "none"),
    ]
    session.emit(plain(last), pairs(rows))
    if last.affected_images or last.records_damaged or last.unreadable_containers:
        raise Corruption(
            f"{last.records_damaged:,} records are damaged, {len(last.affected_images):,} images lack some",
            subject=f"unit {unit or 'active'}",
            next_step=HEALS,
        )


# -- images -------------------------------------------------------------------------------------


def verify(session: Session, image: ImageReference, max_age: MaxAge = "30d") -> None:
    """Say whether an image is whole, by what scrub saw, reading what it did not."""
    found = transfers.find_image(session.target, image)
    verdict = _verdict(session, found, duration_seconds(max_age))
    session.emit(plain(verdict), pairs(_verdict_rows(found, verdict)))
    if not verdict.whole:
        raise Corruption(
            f"{verdict.damaged_span_count:,} spans of image {found.image_id} are damaged",
            subject=f"image {found.image_id}",
            next_step=HEALS,
        )


def lock(session: Session, image: ImageReference, until: Until = "", duration: For = "") -> None:
    """Lock an image: until then nobody can delete it. A lock is extended, never shortened."""
    target = session.target
    found = transfers.find_image(target, image)
    request = image_pb2.LockImageRequest(image_id=found.image_id, until_ns=lock_end_ns(until, duration))
    answer = target.call(target.images.LockImage, request)
    session.emit(
        {"image_id": found.image_id, "lock_until_ns": answer.lock_until_ns},
        f"image {found.image_id} is locked until {moment(answer.lock_until_ns)}",
    )


def _verdict(session: Session, image: image_pb2.Image, max_age_seconds: int) -> image_pb2.VerifyImageResponse:
    target = session.target
    request = image_pb2.VerifyImageRequest(image_id=image.image_id, max_age_seconds=max_age_seconds)
    last: Any = None
    with (
        session.progress(f"verify {image.name}", 0) as bar,
        target.stream(target.images.VerifyImage, request) as responses,
    ):
        for last in responses:
            bar.counted(last.containers_done, last.containers_total, "containers")
    if last is None or not last.done:
        raise ArrayliftError(f"{target.label} gave no verdict", next_step="look into its log")
    found: image_pb2.VerifyImageResponse = last
    return found


def _verdict_rows(image: image_pb2.Image, verdict: image_pb2.VerifyImageResponse) -> list[tuple[str, object]]:
    spans = ", ".join(map(str, verdict.damaged_spans[:SPANS_SHOWN_MAX]))
    more = ", ..." * (verdict.damaged_span_count > SPANS_SHOWN_MAX)
    return [
        ("image", f"{image.name} ({image.image_id})"),
        ("verdict", "whole" if verdict.whole else "damaged"),
        ("damaged spans", f"{verdict.damaged_span_count:,} of 1 MiB{': ' * bool(spans)}{spans}{more}"),
        ("checked since", moment(verdict.oldest_check_at_ns)),
        ("read now", human(verdict.bytes_read)),
    ]


# -- heal ---------------------------------------------------------------------------------------


def heal(
    session: Session,
    image: ImageReference,
    snapshot: Annotated[
        str, typer.Option(metavar="VOLUME@NAME|ID", help="A snapshot on the array that may hold the blocks.")
    ],
    apply: Annotated[bool, typer.Option("--apply", help="Do it; else only say what is damaged.")] = False,
) -> None:
    """Bring what an image lacks from a snapshot of the array; the image itself is not touched.

    The snapshot is sent as an image of its own, without a base: only what the target lacks travels, and what
    is quarantined counts as lacking. Then that image is deleted, and yours verified.
    """
    target, array = session.target, session.array
    found = transfers.find_image(target, image)
    source = transfers.find_snapshot(array, snapshot)
    if source.size_bytes != found.image_bytes:
        raise InvalidRequest(
            f"the snapshot has {source.size_bytes:,} bytes, the image {found.image_bytes:,}: another disk's",
            subject=f"snapshot {snapshot}",
            next_step="name a snapshot of the disk that was backed up",
        )
    before = _verdict(session, found, duration_seconds("30d"))
    document: dict[str, object] = {"image_id": found.image_id, "before": plain(before), "applied": False}
    rows = _verdict_rows(found, before)
    if before.whole or not apply:
        todo = "nothing" if before.whole else "repeat it with --apply to send the snapshot"
        session.emit(document, pairs([*rows, ("to do", todo)]))
        return
    receipt = _send_scratch(session, found, source.snapshot_id)
    after = _verdict(session, found, 0)
    document.update(applied=True, after=plain(after), figures=plain(receipt.figures))
    session.emit(
        document,
        pairs(
            [
                *_verdict_rows(found, after),
                ("sent", f"{receipt.figures.segments_sent:,} segments, {human(receipt.figures.bytes_sent)}"),
            ]
        ),
    )
    if not after.whole:
        raise Corruption(
            f"{after.damaged_span_count:,} of {before.damaged_span_count:,} damaged spans are not in it",
            subject=f"image {found.image_id}",
            next_step="try an older snapshot, or a replica",
        )


def _send_scratch(session: Session, image: image_pb2.Image, snapshot_id: str) -> transfers.Receipt:
    """Send the snapshot under a name of its own, and delete that image again."""
    target = session.target
    with session.progress(f"heal {image.name}", image.image_bytes) as bar:
        receipt = transfers.send_snapshot(
            session.array,
            target,
            snapshot_id,
            image_name=f"{HEAL_NAME}/{image.image_id}",
            tenant=image.tenant,
            full=True,
            on_spans=bar.transfer,
        )
    _delete(target, receipt.receipt_id)
    return receipt


def _delete(target: Connection, image_id: str) -> None:
    request = image_pb2.DeleteImageRequest(image_id=image_id, missing_ok=True)
    target.call(target.images.DeleteImage, request)


# -- tenants ------------------------------------------------------------------------------------


def ls(session: Session) -> None:
    """List tenants with what they store."""
    target = session.target
    found = target.call(target.admin.ListTenants, target_admin_pb2.ListTenantsRequest()).tenants
    shown = table("tenant", ">images", ">stored", ">quota", ">used")
    for tenant in found:
        limit = tenant.quota_bytes
        used = f"{100 * tenant.stored_bytes / limit:.0f} %" if limit else "-"
        row(
            shown,
            tenant.name,
            tenant.image_count,
            human(tenant.stored_bytes),
            human(limit) if limit else "none",
            used,
        )
    session.emit([plain(tenant) for tenant in found], shown)


def quota(
    session: Session,
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="Its name.")],
    size: Annotated[str, typer.Argument(metavar="SIZE|none", help="Of its containers, garbage included.")],
) -> None:
    """Bound what a tenant stores, or take the bound away."""
    target = session.target
    count = 0 if size == "none" else size_bytes(size)
    if size != "none" and not count:
        raise InvalidRequest("a quota of nothing stores nothing", next_step="write none to have no quota")
    target.call(target.admin.SetQuota, target_admin_pb2.SetQuotaRequest(tenant=tenant, quota_bytes=count))
    session.emit(
        {"tenant": tenant, "quota_bytes": count},
        f"tenant {tenant} has {'a quota of ' + human(count) if count else 'no quota'}",
    )
