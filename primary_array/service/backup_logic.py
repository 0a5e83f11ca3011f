"""Edge: BackupLogicService. Runs each transfer in a thread of its own and streams its progress."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from arraylift.errors import Conflict, NotFound, Overloaded, WrongState
from arraylift.exchange import convert as shared
from arraylift.ids import SnapshotId, TransferId, check_id
from arraylift.pki import TlsMaterial
from arraylift.rpc.long_call import stream_long_call
from arraylift.v1 import backup_logic_pb2 as pb
from arraylift.v1 import backup_logic_pb2_grpc as pb_grpc
from primary_array.doubt_table import DoubtTable
from primary_array.pool import Pool
from primary_array.send import Sender, SendProgress, SendRequest
from primary_array.sent_disk import DiskSource
from primary_array.service.send_requests import TOLD, foreign_source, send_request, snapshot_source
from primary_array.transfer_control import RateLimit, TransferControl, check_rate

TRANSFERS_MAX = 16
RANGES_PER_MESSAGE = 4096


@dataclass(slots=True)
class _Running:
    """A transfer, and what was last heard of it."""

    asked: SendRequest
    label: str
    control: TransferControl
    news: SendProgress | None = None


class BackupLogicEdge(pb_grpc.BackupLogicServiceServicer):
    """Serves one Sender."""

    def __init__(self, sender: Sender, pool: Pool, tls: TlsMaterial, doubts: DoubtTable) -> None:
        self._sender = sender
        self._pool = pool
        self._tls = tls
        self._doubts = doubts
        self._lock = threading.Lock()
        self._running: dict[TransferId, _Running] = {}

    def SendSnapshot(
        self, request: pb.SendSnapshotRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.SendSnapshotResponse]:
        source = snapshot_source(request, self._pool)
        for news in self._send(send_request(request), source, request.bytes_per_second_max, context):
            yield pb.SendSnapshotResponse(**_news(news))

    def SendForeignDisk(
        self, request: pb.SendForeignDiskRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.SendForeignDiskResponse]:
        source = foreign_source(request, self._tls, self._doubts)
        for news in self._send(send_request(request), source, request.bytes_per_second_max, context):
            yield pb.SendForeignDiskResponse(**_news(news))

    def _send(
        self, asked: SendRequest, source: DiskSource, bytes_per_second: int, context: grpc.ServicerContext
    ) -> Iterator[SendProgress]:
        control = TransferControl(rate=RateLimit(check_rate(bytes_per_second)))

        def run(report: Callable[[SendProgress], None]) -> SendProgress:
            with self._admitted(_Running(asked, source.label, control)) as running:

                def note(news: SendProgress) -> None:
                    running.news = news
                    report(news)

                return self._sender.send(asked, source, control=control, report=note)

        return stream_long_call(context, run, cancelled=control.cancelled, what=f"send {asked.transfer_id}")

    @contextmanager
    def _admitted(self, running: _Running) -> Iterator[_Running]:
        """Known for as long as its thread runs, and no longer. Raises Conflict, Overloaded."""
        transfer_id = running.asked.transfer_id
        with self._lock:
            if transfer_id in self._running:
                raise Conflict(
                    f"transfer {transfer_id} is being sent already",
                    next_step="wait for it, or cancel it first",
                )
            if len(self._running) >= TRANSFERS_MAX:
                raise Overloaded(f"{TRANSFERS_MAX} transfers are running", next_step="repeat later")
            self._running[transfer_id] = running
        try:
            yield running
        finally:
            with self._lock:
                del self._running[transfer_id]

    def ListTransfers(
        self, request: pb.ListTransfersRequest, context: grpc.ServicerContext
    ) -> pb.ListTransfersResponse:
        with self._lock:
            running = list(self._running.values())
        return pb.ListTransfersResponse(transfers=map(_transfer, running))

    def DiffSnapshots(
        self, request: pb.DiffSnapshotsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.DiffSnapshotsResponse]:
        newer = SnapshotId(check_id(request.snapshot_id, "snapshot id"))
        base = SnapshotId(check_id(request.base_snapshot_id, "base snapshot id"))
        ranges = self._pool.diff(newer, base)
        if ranges is None:
            raise WrongState(
                "the two snapshots share no history",
                subject=f"snapshot {newer}",
                next_step="only a comparison of their bytes can tell what differs",
            )
        offsets, lengths = ranges
        for start in range(0, len(offsets), RANGES_PER_MESSAGE):
            part = slice(start, start + RANGES_PER_MESSAGE)
            yield pb.DiffSnapshotsResponse(
                offsets=offsets[part].astype("<u8").tobytes(), lengths=lengths[part].astype("<u8").tobytes()
            )

    def CancelTransfer(
        self, request: pb.CancelTransferRequest, context: grpc.ServicerContext
    ) -> pb.CancelTransferResponse:
        self._control(request.transfer_id).cancelled.set()
        return pb.CancelTransferResponse()

    def SetTransferRate(
        self, request: pb.SetTransferRateRequest, context: grpc.ServicerContext
    ) -> pb.SetTransferRateResponse:
        rate = check_rate(request.bytes_per_second_max)
        self._control(request.transfer_id).rate.change(rate)
        return pb.SetTransferRateResponse()

    def _control(self, text: str) -> TransferControl:
        transfer_id = TransferId(check_id(text, "transfer id"))
        with self._lock:
            running = self._running.get(transfer_id)
        if running is None:
            raise NotFound(f"transfer {transfer_id} is not running here")
        return running.control

    def close(self) -> None:
        """Stop every transfer; they can be resumed."""
        with self._lock:
            for running in self._running.values():
                running.control.cancelled.set()


def _transfer(running: _Running) -> pb.Transfer:
    news = running.news
    return pb.Transfer(
        transfer_id=running.asked.transfer_id,
        source=running.label,
        target_address=running.asked.target_address,
        spans_done=news.spans_done if news else 0,
        figures=shared.figures_to_pb(news.figures) if news else None,
        bytes_per_second_max=running.control.rate.bytes_per_second,
    )


def _news(news: SendProgress) -> dict[str, Any]:
    """The fields that both kinds of sending answer with."""
    receipt = news.receipt
    return {
        "spans_done": news.spans_done,
        "figures": shared.figures_to_pb(news.figures),
        "receipt_id": receipt.image_id if receipt else "",
        "root": receipt.root if receipt else b"",
        "change_source": TOLD[news.source],
    }
