"""Edge: BackupLogicService. Runs each transfer in a thread of its own and streams its progress."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import grpc
import numpy as np

from arraylift.errors import Conflict, InvalidRequest, NotFound, Overloaded, WrongState
from arraylift.exchange import convert as shared
from arraylift.ids import SnapshotId, TransferId, check_id
from arraylift.rpc.long_call import stream_long_call
from arraylift.v1 import backup_logic_pb2 as pb
from arraylift.v1 import backup_logic_pb2_grpc as pb_grpc
from primary_array.change_sources import ChangeRequest, ChangeSource, Supplied
from primary_array.pool import Pool
from primary_array.send import Sender, SendProgress, SendRequest
from primary_array.transfer_control import RateLimit, TransferControl, check_rate

TRANSFERS_MAX = 16
RANGES_PER_MESSAGE = 4096

_ASKED = {
    pb.ChangeSource.CHANGE_SOURCE_UNSPECIFIED: ChangeSource.ANY,
    pb.ChangeSource.CHANGE_SOURCE_BIRTHS: ChangeSource.BIRTHS,
    pb.ChangeSource.CHANGE_SOURCE_FULL_READ: ChangeSource.FULL_READ,
    pb.ChangeSource.CHANGE_SOURCE_DIFF: ChangeSource.DIFF,
    pb.ChangeSource.CHANGE_SOURCE_SUPPLIED: ChangeSource.SUPPLIED,
}
_TOLD = {source: number for number, source in _ASKED.items()}


class BackupLogicEdge(pb_grpc.BackupLogicServiceServicer):
    """Serves one Sender."""

    def __init__(self, sender: Sender, pool: Pool) -> None:
        self._sender = sender
        self._pool = pool
        self._lock = threading.Lock()
        self._running: dict[TransferId, TransferControl] = {}

    def SendSnapshot(
        self, request: pb.SendSnapshotRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.SendSnapshotResponse]:
        asked = _request(request)
        control = self._admit(asked.transfer_id, check_rate(request.bytes_per_second_max))

        def run(report: Callable[[SendProgress], None]) -> SendProgress:
            try:
                return self._sender.send(asked, control=control, report=report)
            finally:
                with self._lock:
                    del self._running[asked.transfer_id]

        news = stream_long_call(context, run, cancelled=control.cancelled, what=f"send {asked.transfer_id}")
        yield from map(_response, news)

    def _admit(self, transfer_id: TransferId, bytes_per_second: int) -> TransferControl:
        with self._lock:
            if transfer_id in self._running:
                raise Conflict(
                    f"transfer {transfer_id} is being sent already",
                    next_step="wait for it, or cancel it first",
                )
            if len(self._running) >= TRANSFERS_MAX:
                raise Overloaded(f"{TRANSFERS_MAX} transfers are running", next_step="repeat later")
            control = TransferControl(rate=RateLimit(bytes_per_second))
            self._running[transfer_id] = control
            return control

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
            control = self._running.get(transfer_id)
        if control is None:
            raise NotFound(f"transfer {transfer_id} is not running here")
        return control

    def close(self) -> None:
        """Stop every transfer; they can be resumed."""
        with self._lock:
            for control in self._running.values():
                control.cancelled.set()


def _request(request: pb.SendSnapshotRequest) -> SendRequest:
    if len(request.grant) != 32:
        raise InvalidRequest("a grant has 32 bytes", next_step="get one by TargetAdminService.CreateGrant")
    if request.change_source not in _ASKED:
        raise InvalidRequest(f"change source {request.change_source} is unknown")
    return SendRequest(
        snapshot_id=SnapshotId(check_id(request.snapshot_id, "snapshot id")),
        transfer_id=TransferId(check_id(request.transfer_id, "transfer id")),
        target_address=request.target_address,
        grant=request.grant,
        changes=_changes(request),
        patience_seconds=shared.patience_from_pb(request.patience_seconds),
    )


def _response(news: SendProgress) -> pb.SendSnapshotResponse:
    receipt = news.receipt
    return pb.SendSnapshotResponse(
        spans_done=news.spans_done,
        figures=shared.figures_to_pb(news.figures),
        receipt_id=receipt.image_id if receipt else "",
        root=receipt.root if receipt else b"",
        change_source=_TOLD[news.source],
    )


def _changes(request: pb.SendSnapshotRequest) -> ChangeRequest:
    diff_base = request.diff_base_snapshot_id
    supplied = None
    if request.HasField("supplied"):
        since = shared.state_from_pb(request.supplied.since)
        if since is None:
            raise InvalidRequest("say since which state the supplied changes hold")
        packed = [np.frombuffer(part, "<u8") for part in _whole(request.supplied)]
        supplied = Supplied(since, *(part.astype(np.uint64) for part in packed))
    return ChangeRequest(
        _ASKED[request.change_source],
        SnapshotId(check_id(diff_base, "diff base")) if diff_base else None,
        supplied,
    )


def _whole(supplied: pb.SuppliedChanges) -> tuple[bytes, bytes]:
    if len(supplied.offsets) % 8 or len(supplied.lengths) % 8:
        raise InvalidRequest("offsets and lengths are packed 8 bytes each")
    return supplied.offsets, supplied.lengths
