"""A worker process: reads, cuts, fingerprints and sends the spans it is handed.

Runs beside the daemon so that serving blocks never waits for a backup (one core
each; FACTS: threads gain nothing here). Resident: everything is imported before
the first task.
Protocol with the daemon over one pipe (pickled, both ends are this program):
  daemon -> worker  LaneTask, then ReadItem* and None, or Cancel at any time
  worker -> daemon  Credit for each item taken, Progress, then Finished or Failed
A closed pipe means that the daemon is gone: the worker exits at once.
Threads: the main thread runs lanes; one listens to the pipe.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection

from arraylift.errors import ArrayliftError
from arraylift.exchange.grpc_stream import GrpcLaneStream
from arraylift.exchange.lane import open_lane, run_lane
from arraylift.exchange.messages import Figures, Open
from arraylift.exchange.sender import SenderLane, Wanted
from arraylift.outcome import attempt
from arraylift.pki import TlsMaterial
from arraylift.rpc.channel import connect
from arraylift.segments.fingerprint import FingerprintKey
from arraylift.tuning import tune_process
from primary_array.send_plan import ReadItem
from primary_array.sent_disk import DiskReader, GranuleReader
from primary_array.span_source import NextItem, SpanSource

ITEMS_AHEAD = 3
"""Items in the pipe or queue of one worker: enough that it never waits for the daemon."""
STANDS_BACK = 10
"""Nice value: guests whose disks the daemon serves come before their backup; alone, nothing is lost."""
PROGRESS_BATCHES = 4
"""Batches between two progress messages."""


@dataclass(frozen=True, slots=True)
class LaneTask:
    """One lane of one attempt."""

    open: Open
    lane_count: int
    key: bytes
    target_address: str
    tls: TlsMaterial
    reader: DiskReader


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop the lane."""


@dataclass(frozen=True, slots=True)
class Credit:
    """One item was taken: send another."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What this lane has done so far."""

    figures: Figures


@dataclass(frozen=True, slots=True)
class Finished:
    """The lane ended and everything on it is durable."""

    figures: Figures


@dataclass(frozen=True, slots=True)
class Failed:
    """The lane ended early."""

    error: ArrayliftError
    figures: Figures


class Worker:
    """The process's state between tasks."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._tasks: queue.Queue[LaneTask] = queue.Queue(1)
        self._items: queue.Queue[ReadItem | None] = queue.Queue()  # bounded by ITEMS_AHEAD credits
        self._cancelled = threading.Event()

    def run(self) -> None:
        """Serve tasks for ever; the pipe's end ends the process."""
        threading.Thread(target=self._listen, name="worker-pipe", daemon=True).start()
        while True:
            task = self._tasks.get()
            self._pipe.send(self._attempt(task))

    def _listen(self) -> None:
        try:
            while True:
                message = self._pipe.recv()
                if isinstance(message, LaneTask):
                    self._cancelled.clear()
                    self._items = queue.Queue()
                    self._tasks.put(message)
                elif isinstance(message, Cancel):
                    self._cancelled.set()
                    self._items.put(None)
                else:
                    self._items.put(message)
        except (EOFError, OSError):
            os._exit(0)

    def _attempt(self, task: LaneTask) -> Finished | Failed:
        lane_run = _LaneRun(task, self._next_item, self._cancelled)
        _, error = attempt(partial(lane_run.run, self._pipe.send), "a backup worker's lane")
        figures = lane_run.figures()
        return Finished(figures) if error is None else Failed(error, figures)

    def _next_item(self, wait: bool) -> ReadItem | None:
        item = self._items.get(block=wait)
        if item is not None:
            self._pipe.send(Credit())
        return item


class _LaneRun:
    """One task, from its connection to its last Durable."""

    def __init__(self, task: LaneTask, next_item: NextItem, cancelled: threading.Event) -> None:
        self._task = task
        self._next_item = next_item
        self._cancelled = cancelled
        self._lane = SenderLane()
        self._source: SpanSource | None = None

    def run(self, send: Callable[[Progress], None]) -> None:
        """Read, cut, offer and send until the items end. Raises what ended it early."""
        task = self._task
        channel = connect(task.target_address, task.tls, "target")
        stream = GrpcLaneStream(channel, f"target {task.target_address}")
        disk: GranuleReader | None = None
        try:
            disk = task.reader.open(self._cancelled)
            opened = open_lane(stream, self._lane, task.open)
            self._lane.use_lanes(task.lane_count)
            self._source = SpanSource(
                disk,
                key=FingerprintKey(task.key),
                segmentation=task.open.segmentation,
                image_bytes=task.open.image_bytes,
                spans_per_offer=opened.limits.spans_per_offer_max,
                buffers_max=opened.limits.window_batches + 1,
                next_item=self._next_item,
            )

            def on_answered(wanted: Wanted) -> None:
                if wanted.batch % PROGRESS_BATCHES == 0:
                    send(Progress(self.figures()))

            run_lane(stream, self._lane, self._source, cancelled=self._cancelled, on_answered=on_answered)
        finally:
            stream.cancel()
            channel.close()
            if disk is not None:
                disk.close()

    def figures(self) -> Figures:
        """What this lane has done so far."""
        figures = Figures()
        figures.add(self._lane.figures)
        if self._source is not None:
            figures.bytes_read = self._source.bytes_read
            figures.spans_read = self._source.spans_read
            figures.spans_sampled = self._source.spans_sampled
            figures.spans_hole = self._source.spans_hole
        return figures


def main(pipe: Connection) -> None:
    """Entry point of the process. Ctrl-C is for the daemon, which then closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(STANDS_BACK)
    tune_process()
    Worker(pipe).run()
