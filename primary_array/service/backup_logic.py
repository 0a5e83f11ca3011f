"""Edge: BackupLogicService. Runs each transfer in a thread of its own and streams its progress."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import grpc

from arraylift.errors import Conflict, InvalidRequest, NotFound, Overloaded
from arraylift.exchange import convert as shared
from arraylift.ids import SnapshotId, TransferId, check_id
from arraylift.rpc.long_call import stream_long_call
from arraylift.v1 import backup_logic_pb2 as pb
from arraylift.v1 import backup_logic_pb2_grpc as pb_grpc
from primary_array.send import Sender, SendProgress, SendRequest

TRANSFERS_MAX = 16


class BackupLogicEdge(pb_grpc.BackupLogicServiceServicer):
    """Serves one Sender."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._lock = threading.Lock()
        self._running: dict[TransferId, threading.Event] = {}

    def SendSnapshot(
        self, request: pb.SendSnapshotRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.SendSnapshotResponse]:
        asked = _request(request)
        cancelled = self._admit(asked.transfer_id)

        def run(report: Callable[[SendProgress], None]) -> SendProgress:
            try:
                return self._sender.send(asked, cancelled=cancelled, report=report)
            finally:
                with self._lock:
                    del self._running[asked.transfer_id]

        news = stream_long_call(context, run, cancelled=cancelled, what=f"send {asked.transfer_id}")
        yield from map(_response, news)

    def _admit(self, transfer_id: TransferId) -> threading.Event:
        with self._lock:
            if transfer_id in self._running:
                raise Conflict(
                    f"transfer {transfer_id} is being sent already",
                    next_step="wait for it, or cancel it first",
                )
            if len(self._running) >= TRANSFERS_MAX:
                raise Overloaded(f"{TRANSFERS_MAX} transfers are running", next_step="repeat later")
            cancelled = self._running[transfer_id] = threading.Event()
            return cancelled

    def CancelTransfer(
        self, request: pb.CancelTransferRequest, context: grpc.ServicerContext
    ) -> pb.CancelTransferResponse:
        transfer_id = TransferId(check_id(request.transfer_id, "transfer id"))
        with self._lock:
            cancelled = self._running.get(transfer_id)
        if cancelled is None:
            raise NotFound(f"transfer {transfer_id} is not running here")
        cancelled.set()
        return pb.CancelTransferResponse()

    def close(self) -> None:
        """Stop every transfer; they can be resumed."""
        with self._lock:
            for cancelled in self._running.values():
                cancelled.set()


def _request(request: pb.SendSnapshotRequest) -> SendRequest:
    if len(request.grant) != 32:
        raise InvalidRequest("a grant has 32 bytes", next_step="get one by TargetAdminService.CreateGrant")
    sources = pb.ChangeSource
    if request.change_source not in sources.values():
        raise InvalidRequest(f"change source {request.change_source} is unknown")
    return SendRequest(
        snapshot_id=SnapshotId(check_id(request.snapshot_id, "snapshot id")),
        transfer_id=TransferId(check_id(request.transfer_id, "transfer id")),
        target_address=request.target_address,
        grant=request.grant,
        births=request.change_source != sources.CHANGE_SOURCE_FULL_READ,
        births_required=request.change_source == sources.CHANGE_SOURCE_BIRTHS,
        patience_seconds=shared.patience_from_pb(request.patience_seconds),
    )


def _response(news: SendProgress) -> pb.SendSnapshotResponse:
    births = pb.ChangeSource.CHANGE_SOURCE_BIRTHS
    receipt = news.receipt
    return pb.SendSnapshotResponse(
        spans_done=news.spans_done,
        figures=shared.figures_to_pb(news.figures),
        receipt_id=receipt.image_id if receipt else "",
        root=receipt.root if receipt else b"",
        change_source=births if news.used_births else pb.ChangeSource.CHANGE_SOURCE_FULL_READ,
    )
