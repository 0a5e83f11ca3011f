"""``arraylift array gateway``: back up disks that lie on other storage, through their NBD exports.

Which state of a disk an image holds is kept where the image is: in its source state at the target.
Foreign storage has no names for its states, so each gets a fresh one here.
Callers: the command line, main thread.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from arraylift.cli import transfers
from arraylift.cli.command import command, group
from arraylift.cli.session import Session
from arraylift.cli.show import figures_rows, pairs, size_bytes
from arraylift.errors import InvalidRequest
from arraylift.ids import random_id
from arraylift.v1 import backup_logic_pb2, common_pb2, image_pb2

_STATE = re.compile(r"([0-9a-f]{32}):([0-9a-f]{32}):([0-9]{1,19})")


def register(app: typer.Typer) -> None:
    """Add the noun to ``arraylift array``."""
    noun = group("Backups of disks on other storage.")
    command(
        noun,
        "send",
        examples="arraylift array gateway send nbd://10.0.0.7/db1 --image db1\n"
        "arraylift array gateway send 'nbd+unix:///db1?socket=/run/db1.sock' --image db1 --bitmap arraylift",
    )(send)
    app.add_typer(noun, name="gateway")


def send(
    session: Session,
    uri: Annotated[str, typer.Argument(help="What to read; the array connects to it.")],
    image: Annotated[str, typer.Option(help="Name of the image.")],
    bitmap: Annotated[
        str, typer.Option(help="Dirty bitmap, cleared at the instant of the last image: read what it has.")
    ] = "",
    since: Annotated[
        str,
        typer.Option(help="State at which it was cleared, as `send` told it. [default: the newest image's]"),
    ] = "",
    full: Annotated[bool, typer.Option("--full", help="Read everything, on no earlier image.")] = False,
    rate: Annotated[
        str, typer.Option(help="Read at most so much a second, e.g. 20M. [default: no limit]")
    ] = "0",
    certificates: Annotated[
        Path | None,
        typer.Option(
            help="For nbds: folder of ca-cert.pem, and client-cert.pem and client-key.pem if wanted."
        ),
    ] = None,
) -> None:
    """Read a disk through its NBD export, and send it to the target as an image."""
    if full and (bitmap or since):
        raise InvalidRequest("--full reads everything: a bitmap has no say in it")
    if since and not bitmap:
        raise InvalidRequest("--since says when --bitmap was cleared: give both")
    newest = (
        None if full else next(iter(transfers.list_images(session.target, name=image, count_max=1)), None)
    )
    base = newest.source_state if newest is not None and newest.source_state.pool_id else None
    request = backup_logic_pb2.SendForeignDiskRequest(
        uri=uri, state=_next_state(base), bytes_per_second_max=size_bytes(rate)
    )
    cleared = _parse_state(since) if since else base
    if bitmap and cleared is not None:
        request.bitmap.name = bitmap
        request.bitmap.since.CopyFrom(cleared)
    if certificates is not None:
        request.credentials.CopyFrom(_credentials(certificates))
    with session.progress(f"send {image}", 0) as bar:
        receipt = transfers.send_foreign_disk(
            session.array,
            session.target,
            request,
            image_name=image,
            base_image_id=newest.image_id if newest is not None else "",
            on_spans=bar.transfer,
        )
    _show(session, receipt, image, request.state, newest)


def _show(
    session: Session,
    receipt: transfers.Receipt,
    image: str,
    state: common_pb2.SourceState,
    base: image_pb2.Image | None,
) -> None:
    document = {
        "image_id": receipt.receipt_id,
        "image_name": image,
        "state": _state_text(state),
        "base_image_id": base.image_id if base is not None else None,
        "change_source": receipt.change_source,
        **receipt.document(),
    }
    rows = [
        ("image", receipt.receipt_id),
        ("name", image),
        ("root", receipt.root.hex()),
        ("state", _state_text(state)),
        ("base", base.image_id if base is not None else "none: a full backup"),
        ("changes by", receipt.change_source.replace("_", " ")),
        *figures_rows(receipt.figures),
    ]
    session.emit(document, pairs(rows))


def _next_state(base: common_pb2.SourceState | None) -> common_pb2.SourceState:
    """A name that no state has had: two instants that share one would vouch for each other."""
    birth = 1 if base is None else base.birth + 1
    return common_pb2.SourceState(pool_id=random_id(), lineage_id=random_id(), birth=birth)


def _state_text(state: common_pb2.SourceState) -> str:
    return f"{state.pool_id}:{state.lineage_id}:{state.birth}"


def _parse_state(text: str) -> common_pb2.SourceState:
    found = _STATE.fullmatch(text)
    if found is None:
        raise InvalidRequest(
            f"{text[:120]!r} is no state", next_step="give what an earlier `send` told as its state"
        )
    return common_pb2.SourceState(pool_id=found[1], lineage_id=found[2], birth=int(found[3]))


def _credentials(folder: Path) -> backup_logic_pb2.NbdCredentials:
    try:
        parts = [(folder / name).read_bytes() for name in ("ca-cert.pem",)]
        names = ("client-cert.pem", "client-key.pem")
        given = [(folder / name).read_bytes() if (folder / name).exists() else b"" for name in names]
    except OSError as error:
        raise InvalidRequest(f"the certificates in {folder} cannot be read: {error.strerror}") from None
    return backup_logic_pb2.NbdCredentials(ca_pem=parts[0], certificate_pem=given[0], key_pem=given[1])
