"""The segment exchange with nothing behind it: what gRPC, TLS and the machines cost.

A receiver in a process of its own wants every segment and drops it; the sender offers batches that
were prepared beforehand. Codec, lanes, window and limits are those of real transfers.
Callers: benchmarks.kernels; ``_serve`` is the receiver's process.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import numpy as np

from arraylift import logs, pki
from arraylift.errors import ArrayliftError
from arraylift.exchange.edge import exchange_service
from arraylift.exchange.grpc_stream import GrpcLaneStream
from arraylift.exchange.lane import open_lane, run_lane
from arraylift.exchange.messages import Commit, Committed, Flags, Limits, Open, Opened
from arraylift.exchange.receiver import Arrived, Batch
from arraylift.exchange.sender import SenderLane
from arraylift.ids import TransferId
from arraylift.rpc.channel import connect
from arraylift.rpc.server import RpcServer
from arraylift.segments.segmentation import DEFAULT_SEGMENTATION
from arraylift.sizes import SPAN_BYTES
from benchmarks.material import KEY, KEY_BYTES, Prepared
from benchmarks.usage import cpu_seconds_of

START_SECONDS_MAX = 30.0
_TRANSFER = TransferId("0" * 32)


class _NullLane:
    """Wants everything, keeps nothing; durable is what has arrived."""

    def __init__(self) -> None:
        self._batches: list[Batch] = []
        self._durable = 0

    def offered(self, batch: Batch) -> tuple[Flags | None, None]:
        self._batches.append(batch)
        return np.ones(len(batch.offer.lengths), dtype=np.bool_), None

    def arrived(self, arrived: Arrived) -> None:
        """Drop it."""

    def advance(self, *, now: bool) -> tuple[int, int]:  # noqa: ARG002 - there is nothing to wait for
        while self._batches and self._batches[0].complete:
            self._durable = self._batches.pop(0).number
        return self._durable, 0

    def flush(self) -> tuple[int, int]:
        return self.advance(now=True)

    def commit(self, message: Commit) -> Committed:
        raise AssertionError(f"nothing is committed here: {message}")

    def close(self, cause: ArrayliftError | None) -> None:
        """Nothing is held."""


class _NullReceiver:
    limits = Limits()

    def open(self, message: Open) -> Opened:
        return Opened(
            attempt=max(1, message.attempt),
            limits=self.limits,
            tenant="default",
            key=KEY_BYTES,
            key_id=KEY.key_id,
            lease_seconds=60,
        )

    def lane(self, number: int) -> _NullLane:
        assert number == 0
        return _NullLane()


def _serve(pipe: Connection, pki_directory: str) -> None:
    """Serve until the pipe's other end closes."""
    logs.configure("warning", "console")
    receiver = _NullReceiver()
    tls = pki.load(pki_directory, "target", "target1")
    server = RpcServer("127.0.0.1:0", tls, [exchange_service(lambda _open, _peer: receiver)])
    server.start()
    pipe.send(server.address)
    try:
        pipe.recv()
    except EOFError:
        server.stop(0)


@contextmanager
def receiver() -> Iterator[tuple[str, int, str]]:
    """Run a null receiver; yields its address, its pid and a directory with certificates."""
    with tempfile.TemporaryDirectory(prefix="arraylift-loopback-") as directory:
        pki.init_ca(directory)
        pki.issue(directory, "array", "array1")
        pki.issue(directory, "target", "target1")
        ours, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=_serve, args=(theirs, directory), daemon=True)
        process.start()
        theirs.close()
        try:
            if not ours.poll(START_SECONDS_MAX):
                raise ArrayliftError("the null receiver did not start")
            assert process.pid is not None
            yield ours.recv(), process.pid, directory
        finally:
            ours.close()
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()


def send_once(address: str, pid: int, directory: str, batches: list[Prepared]) -> tuple[float, float, float]:
    """Send all batches on one lane; returns seconds: wall, CPU of the sender, CPU of the receiver."""
    channel = connect(address, pki.load(directory, "array", "array1"), "target")
    stream = GrpcLaneStream(channel, "the null receiver")
    lane = SenderLane()
    opening = Open(
        transfer_id=_TRANSFER,
        grant=bytes(32),
        attempt=0,
        lane=0,
        image_bytes=sum(len(batch.spans) for batch in batches) * SPAN_BYTES,
        segmentation=DEFAULT_SEGMENTATION,
        source_state=None,
    )
    try:
        open_lane(stream, lane, opening)
        lane.use_lanes(1)
        theirs, ours, began = cpu_seconds_of(pid), time.process_time(), time.perf_counter()
        run_lane(stream, lane, iter(batches), cancelled=threading.Event(), on_answered=lambda _wanted: None)
        wall, sender = time.perf_counter() - began, time.process_time() - ours
        return wall, sender, cpu_seconds_of(pid) - theirs
    finally:
        stream.cancel()
        channel.close()
