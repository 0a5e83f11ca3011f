"""``arraylift target images``: look at images, restore them, read parts of them.

Callers: the command line, main thread.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from arraylift.cli import target_files, transfers
from arraylift.cli.command import command, group
from arraylift.cli.connection import Connection
from arraylift.cli.local_files import NewFile
from arraylift.cli.session import Session
from arraylift.cli.show import figures_rows, moment, pairs, plain, row, size_bytes, table
from arraylift.cli.volume_data import Piece
from arraylift.errors import Corruption, InvalidRequest
from arraylift.sizes import EXTENT_BYTES_MAX, human
from arraylift.v1 import image_pb2

LISTED_MAX = 100_000

ImageReference = Annotated[str, typer.Argument(metavar="IMAGE", help="An id, or a name: its newest image.")]


def register(app: typer.Typer) -> typer.Typer:
    """Add the noun to ``arraylift target``; returns it, for commands of other modules."""
    noun = group("Images: disks as they were when they were sent.")
    command(noun, "ls", examples="arraylift target images ls\narraylift target images ls web1")(ls)
    command(noun, "show", examples="arraylift target images show web1")(show)
    command(noun, "restore", examples="arraylift target images restore web1 --as web1-restored")(restore)
    command(
        noun,
        "read",
        examples="arraylift target images read web1 --length 1M --to head.bin\n"
        "arraylift target images read web1 --offset 512 --length 512 | xxd",
    )(read)
    target_files.register_images(noun)
    app.add_typer(noun, name="images")
    return noun


def ls(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Only images of this name.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=LISTED_MAX, help="At most so many.")] = 1000,
) -> None:
    """List images, newest first."""
    found = transfers.list_images(session.target, name=name, count_max=limit)
    shown = table("image", ">size", "committed", ">read", ">stored", "id")
    for image in found:
        row(
            shown,
            image.name,
            human(image.image_bytes),
            moment(image.committed_at_ns),
            human(image.figures.bytes_read),
            human(image.figures.bytes_stored),
            image.image_id,
        )
    session.emit([plain(image) for image in found], shown)


def show(session: Session, image: ImageReference) -> None:
    """Show one image and what its transfer cost."""
    found = transfers.find_image(session.target, image)
    rows = [
        ("image", found.image_id),
        ("name", found.name),
        ("tenant", found.tenant),
        ("size", human(found.image_bytes)),
        ("root", found.root.hex()),
        ("committed", moment(found.committed_at_ns)),
        ("unit", f"{found.unit}, which is absent" if found.unit_absent else found.unit),
        ("locked until", moment(found.lock_until_ns) or "not locked"),
        ("built on", found.base_image_id or "nothing: a full backup"),
        ("source", f"lineage {found.source_state.lineage_id or '-'}, birth {found.source_state.birth}"),
        *figures_rows(found.figures),
    ]
    session.emit(plain(found), pairs(rows))


def restore(
    session: Session,
    image: ImageReference,
    volume: Annotated[str, typer.Option("--as", metavar="VOLUME", help="Name of the new volume.")] = "",
    reference: Annotated[
        str, typer.Option(metavar="VOLUME", help="A volume of the array: what it has does not travel.")
    ] = "",
    in_place: Annotated[
        str, typer.Option(metavar="VOLUME", help="Replace what this volume holds, instead.")
    ] = "",
    safety: Annotated[
        str, typer.Option(help="With --in-place: the snapshot that keeps what it held.")
    ] = "before-restore",
) -> None:
    """Send an image to the array, as a new volume that appears when it is whole, or in place of one."""
    if bool(volume) == bool(in_place) or (in_place and reference):
        raise InvalidRequest("say --as VOLUME, perhaps with --reference, or --in-place VOLUME")
    found = transfers.find_image(session.target, image)
    with session.progress(f"restore {volume or in_place}", found.image_bytes) as bar:
        receipt = transfers.restore_image(
            session.target,
            session.array,
            found.image_id,
            volume_name=volume or in_place,
            reference=reference,
            safety_name=safety if in_place else "",
            on_spans=bar.transfer,
        )
    volume = volume or in_place
    document = {
        "volume_id": receipt.receipt_id,
        "volume": volume,
        "image_id": found.image_id,
        **receipt.document(),
    }
    rows = [
        ("volume", f"{volume} ({receipt.receipt_id})"),
        ("image", found.image_id),
        ("root", receipt.root.hex()),
        *figures_rows(receipt.figures),
    ]
    session.emit(document, pairs(rows))


def read(
    session: Session,
    image: ImageReference,
    offset: Annotated[str, typer.Option(help="Where to begin, e.g. 0, 512, 1M.")] = "0",
    length: Annotated[str | None, typer.Option(help="How much. [default: to the end]")] = None,
    to: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A sparse file. [default: standard output]")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
) -> None:
    """Read bytes of an image, each verified against its fingerprint."""
    if to is None and session.is_json:
        raise InvalidRequest("standard output cannot take both data and --json", next_step="add --to FILE")
    if to is None and sys.stdout.isatty():
        raise InvalidRequest("a terminal cannot take a disk's bytes", next_step="add --to FILE, or a pipe")
    found = transfers.find_image(session.target, image)
    start = size_bytes(offset)
    count = size_bytes(length) if length is not None else found.image_bytes - start
    if start + count > found.image_bytes or count <= 0:
        raise InvalidRequest(
            f"bytes {start:,} to {start + count:,} are not within image {image} of {found.image_bytes:,}",
            subject=f"image {image}",
            next_step="choose --offset and --length within it",
        )
    pieces = read_pieces(session.target, found.image_id, start, count)
    if to is None:
        _write_out(pieces)
        return
    with NewFile(to, overwrite=force) as destination, session.progress(f"read {image}", count) as bar:
        for piece in pieces:
            if piece.data is not None:
                destination.write(piece.offset - start, piece.data)
            bar.update(piece.offset + piece.length - start)
        destination.commit(count)
    document = {"image_id": found.image_id, "offset": start, "length": count, "file": str(to)}
    session.emit(document, f"{to}: {human(count)} of image {found.image_id}")


def read_pieces(target: Connection, image_id: str, start: int, count: int) -> Iterator[Piece]:
    """Yield the bytes asked for, in order; a cut or wrong answer raises."""
    request = image_pb2.ReadRangeRequest(image_id=image_id, offset=start, length=count)
    cursor, end = start, start + count
    with target.stream(target.images.ReadRange, request) as responses:
        for response in responses:
            length = len(response.data) or response.zero_bytes
            if not length:
                continue
            if response.offset != cursor or length > end - cursor:
                raise Corruption(
                    f"{target.label} answered bytes {response.offset:,}+{length:,} where {cursor:,} is next"
                )
            cursor += length
            yield Piece(response.offset, length, response.data or None)
    if cursor != end:
        raise Corruption(f"{target.label} answered {cursor - start:,} of {count:,} bytes")


def _write_out(pieces: Iterator[Piece]) -> None:
    out = sys.stdout.buffer
    for piece in pieces:
        if piece.data is not None:
            out.write(piece.data)
        else:
            for begin in range(0, piece.length, EXTENT_BYTES_MAX):
                out.write(bytes(min(EXTENT_BYTES_MAX, piece.length - begin)))
    out.flush()
