"""Edge: what a transfer on its way tells."""

from __future__ import annotations

from typing import Self

from arraylift.exchange import convert as exchange
from backup_server import convert
from backup_server.model import ChangeSource, Receipt, TransferNews
from backup_server.peers.caller import Stream


class GrpcTransfer:
    """ports.Transfer over SendSnapshot, SendForeignDisk or SendImage."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TransferNews:
        news = next(self._stream)
        figures = exchange.figures_from_pb(news.figures)
        receipt = None
        if news.receipt_id:
            source = convert.change_source(getattr(news, "change_source", 0))
            changed_only = source not in (ChangeSource.UNSPECIFIED, ChangeSource.FULL_READ)
            receipt = Receipt(news.receipt_id, news.root, figures, changed_only, source)
        return TransferNews(news.spans_done, figures, receipt)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stream.cancel()

    def cancel(self) -> None:
        self._stream.cancel()
