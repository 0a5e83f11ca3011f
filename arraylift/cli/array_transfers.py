"""``arraylift array transfers``: see what an array is sending, slow it down, stop it.

Callers: the command line, main thread.
"""

from __future__ import annotations

from typing import Annotated

import typer

from arraylift.cli.command import command, group
from arraylift.cli.session import Session
from arraylift.cli.show import plain, row, size_bytes, table
from arraylift.sizes import human
from arraylift.v1 import backup_logic_pb2

TransferArgument = Annotated[str, typer.Argument(metavar="TRANSFER", help="Its id, as in `ls`.")]


def register(app: typer.Typer) -> None:
    """Add the noun to ``arraylift array``."""
    noun = group("Disks that are being sent to a target.")
    command(noun, "ls", examples="arraylift array transfers ls")(ls)
    command(
        noun,
        "rate",
        examples="arraylift array transfers rate 0f3c…  20M\narraylift array transfers rate 0f3c…  0",
    )(rate)
    command(noun, "cancel", examples="arraylift array transfers cancel 0f3c…")(cancel)
    app.add_typer(noun, name="transfers")


def ls(session: Session) -> None:
    """List what is being sent."""
    array = session.array
    request = backup_logic_pb2.ListTransfersRequest()
    found = array.call(array.backup_logic.ListTransfers, request).transfers
    shown = table("source", "target", ">spans", ">read", ">at most", "id")
    for transfer in found:
        limit = transfer.bytes_per_second_max
        row(
            shown,
            transfer.source,
            transfer.target_address,
            f"{transfer.spans_done:,}/{transfer.figures.spans_total:,}",
            human(transfer.figures.bytes_read),
            f"{human(limit)}/s" if limit else "",
            transfer.transfer_id,
        )
    session.emit([plain(transfer) for transfer in found], shown)


def rate(
    session: Session,
    transfer: TransferArgument,
    rate: Annotated[str, typer.Argument(metavar="RATE", help="Bytes read a second, e.g. 20M; 0: no limit.")],
) -> None:
    """Change how fast a transfer reads, from now on."""
    array = session.array
    request = backup_logic_pb2.SetTransferRateRequest(
        transfer_id=transfer, bytes_per_second_max=size_bytes(rate)
    )
    array.call(array.backup_logic.SetTransferRate, request)
    limit = request.bytes_per_second_max
    said = f"reads at most {human(limit)}/s" if limit else "reads as fast as it can"
    session.emit({"transfer_id": transfer, "bytes_per_second_max": limit}, f"transfer {transfer} {said}")


def cancel(session: Session, transfer: TransferArgument) -> None:
    """Stop a transfer; whoever started it is told, and may resume it."""
    array = session.array
    request = backup_logic_pb2.CancelTransferRequest(transfer_id=transfer)
    array.call(array.backup_logic.CancelTransfer, request)
    session.emit({"cancelled": transfer}, f"transfer {transfer} is being stopped")
