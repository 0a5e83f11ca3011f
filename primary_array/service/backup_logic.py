"""Edge: BackupLogicService. Runs each transfer in a thread of its own and streams its progress."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import grpc

from arraylift.errors import (
    ArrayliftError,
    Cancelled,
    Conflict,
    InvalidRequest,
    NotFound,
    Overloaded,
    StoreFailed,
)
from arraylift.exchange import convert as shared
from arraylift.ids import SnapshotId, TransferId, check_id
from arraylift.logs import get_logger
from arraylift.v1 import backup_logic_pb2 as pb
from arraylift.v1 import backup_logic_pb2_grpc as pb_grpc
from primary_array.send import Sender, SendProgress, SendRequest

TRANSFERS_MAX = 16
PATIENCE_SECONDS, PATIENCE_SECONDS_MAX = 60, 3600
PROGRESS_QUEUE_MAX = 4
"""Progress that a slow reader has not taken; older news is dropped for newer."""
_POLL_SECONDS = 0.5

_log = get_logger("backup_logic")


class _Running:
    """One SendSnapshot call."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.news: queue.Queue[SendProgress | ArrayliftError] = queue.Queue(PROGRESS_QUEUE_MAX)

    def report(self, progress: SendProgress) -> None:
        """Queue news that may be dropped."""
        try:
            self.news.put_nowait(progress)
        except queue.Full:
            return

    def end(self, last: SendProgress | ArrayliftError) -> None:
        """Queue the last news, making room for it."""
        while True:
            try:
                return self.news.put_nowait(last)
            except queue.Full:
                try:
                    self.news.get_nowait()
                except queue.Empty:
                    continue


class BackupLogicEdge(pb_grpc.BackupLogicServiceServicer):
    """Serves one Sender."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._lock = threading.Lock()
        self._running: dict[TransferId, _Running] = {}

    def SendSnapshot(
        self, request: pb.SendSnapshotRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.SendSnapshotResponse]:
        asked = _request(request)
        running = self._admit(asked.transfer_id)
        context.add_callback(running.cancelled.set)
        threading.Thread(
            target=self._run, args=(asked, running), name=f"send {asked.transfer_id[:8]}", daemon=True
        ).start()
        while True:
            news = self._next(running, context)
            if isinstance(news, ArrayliftError):
                raise news
            if news is not None:
                yield _response(news)
                if news.receipt is not None:
                    return

    def _next(self, running: _Running, context: grpc.ServicerContext) -> SendProgress | ArrayliftError | None:
        try:
            return running.news.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            return None if context.is_active() else Cancelled("the caller left")

    def _admit(self, transfer_id: TransferId) -> _Running:
        with self._lock:
            if transfer_id in self._running:
                raise Conflict(
                    f"transfer {transfer_id} is being sent already",
                    next_step="wait for it, or cancel it first",
                )
            if len(self._running) >= TRANSFERS_MAX:
                raise Overloaded(f"{TRANSFERS_MAX} transfers are running", next_step="repeat later")
            running = self._running[transfer_id] = _Running()
            return running

    def _run(self, asked: SendRequest, running: _Running) -> None:
        last: SendProgress | ArrayliftError
        try:
            last = self._sender.send(asked, cancelled=running.cancelled, report=running.report)
        except ArrayliftError as error:
            last = error
        except Exception as error:
            _log.exception("send_failed", transfer=asked.transfer_id)
            last = StoreFailed(f"sending failed: {error!r}")
        with self._lock:
            del self._running[asked.transfer_id]
        running.end(last)

    def CancelTransfer(
        self, request: pb.CancelTransferRequest, context: grpc.ServicerContext
    ) -> pb.CancelTransferResponse:
        transfer_id = TransferId(check_id(request.transfer_id, "transfer id"))
        with self._lock:
            running = self._running.get(transfer_id)
        if running is None:
            raise NotFound(f"transfer {transfer_id} is not running here")
        running.cancelled.set()
        return pb.CancelTransferResponse()

    def close(self) -> None:
        """Stop every transfer; they can be resumed."""
        with self._lock:
            for running in self._running.values():
                running.cancelled.set()


def _request(request: pb.SendSnapshotRequest) -> SendRequest:
    if len(request.grant) != 32:
        raise InvalidRequest("a grant has 32 bytes", next_step="get one by TargetAdminService.CreateGrant")
    if request.patience_seconds > PATIENCE_SECONDS_MAX:
        raise InvalidRequest(f"patience is at most {PATIENCE_SECONDS_MAX} s")
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
        patience_seconds=request.patience_seconds or PATIENCE_SECONDS,
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
