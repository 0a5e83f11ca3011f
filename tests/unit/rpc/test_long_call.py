"""Long work beside a call: nothing of it begins, or stays, that nobody can stop any more."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, cast

import grpc
import pytest

from arraylift.errors import Cancelled, Conflict
from arraylift.exchange.messages import Figures
from arraylift.ids import SnapshotId, TransferId
from arraylift.rpc.long_call import stream_long_call
from arraylift.v1 import backup_logic_pb2 as pb
from primary_array.change_types import ChangeSource
from primary_array.send import SendProgress
from primary_array.service.backup_logic import BackupLogicEdge


class Context:
    """A call whose client is there, or has left."""

    def __init__(self, *, left: bool = False) -> None:
        self._left = left

    def add_callback(self, _callback: Callable[[], None]) -> bool:
        return not self._left

    def is_active(self) -> bool:
        return not self._left

    @property
    def grpc(self) -> grpc.ServicerContext:
        return cast("grpc.ServicerContext", self)


def test_work_for_a_caller_who_has_left_does_not_begin() -> None:
    """gRPC tells nobody of that end any more: what began would run on, and could not be stopped."""
    began = threading.Event()

    def run(_report: Callable[[int], None]) -> int:
        began.set()
        return 1

    news = stream_long_call(Context(left=True).grpc, run, cancelled=threading.Event(), what="test")
    with pytest.raises(Cancelled):
        list(news)
    assert not began.wait(0.2)


def no_thread(_thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_a_transfer_without_a_thread_is_not_taken_for_a_running_one(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = SendProgress(1, Figures(), ChangeSource.FULL_READ)
    running = threading.Event()

    class Sender:
        def send(self, *_: object, **__: object) -> SendProgress:
            running.set()
            assert go_on.wait(10)
            return sent

    go_on = threading.Event()
    edge = BackupLogicEdge(cast("Any", Sender()), cast("Any", None), cast("Any", None), cast("Any", None))
    request = pb.SendSnapshotRequest(
        transfer_id=TransferId("a" * 32),
        snapshot_id=SnapshotId("b" * 32),
        target_address="127.0.0.1:1",
        grant=b"g" * 32,
        patience_seconds=1,
    )
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(RuntimeError):
            list(edge.SendSnapshot(request, Context().grpc))
    assert not edge.ListTransfers(pb.ListTransfersRequest(), Context().grpc).transfers
    answers: list[pb.SendSnapshotResponse] = []
    first = threading.Thread(target=lambda: answers.extend(edge.SendSnapshot(request, Context().grpc)))
    first.start()
    assert running.wait(10)
    assert len(edge.ListTransfers(pb.ListTransfersRequest(), Context().grpc).transfers) == 1
    with pytest.raises(Conflict):
        list(edge.SendSnapshot(request, Context().grpc))
    go_on.set()
    first.join(10)
    assert [answer.spans_done for answer in answers] == [1]
    assert not edge.ListTransfers(pb.ListTransfersRequest(), Context().grpc).transfers
