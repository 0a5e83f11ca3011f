"""Send an image to a receiver that granted it: the target's half of a restore ([0045]).

Limits: one lane a transfer (the receiver's CPU is the limit, measured); ``patience_seconds``
without progress end it. Callers: the thread of one SendImage.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from arraylift.clock import Clock
from arraylift.errors import Cancelled, Conflict, PeerUnavailable
from arraylift.exchange.coverage import Coverage
from arraylift.exchange.hole_batch import HoleBatch
from arraylift.exchange.lane import LaneStream, commit_lane, open_lane, send_batches, settle
from arraylift.exchange.messages import Commit, Committed, Figures, Open
from arraylift.exchange.sender import SenderLane, Wanted
from arraylift.ids import ImageId, TransferId
from arraylift.logs import get_logger
from arraylift.sizes import spans_of
from dedup_target.image_reader import ImageReader, OpenImage
from dedup_target.image_source import PreparedLeaves, image_batches
from dedup_target.store import Store

RETRY_PAUSE_SECONDS = 0.5
PROGRESS_SECONDS = 0.5

_log = get_logger("send_image")


@dataclass(frozen=True, slots=True)
class SendRequest:
    """What to send where, by a grant of the receiver's."""

    image_id: ImageId
    transfer_id: TransferId
    receiver_address: str
    grant: bytes
    patience_seconds: float


@dataclass(frozen=True, slots=True)
class SendProgress:
    """A snapshot of the counts; ``receipt`` ends it."""

    spans_done: int
    figures: Figures
    receipt: Committed | None = None


OpenStream = Callable[[str], LaneStream]
Report = Callable[[SendProgress], None]


class ImageSender:
    """Sends images of one target."""

    def __init__(self, store: Store, images: ImageReader, *, open_stream: OpenStream, clock: Clock) -> None:
        self._store = store
        self._images = images
        self._open_stream = open_stream
        self._clock = clock

    def send(self, request: SendRequest, *, cancelled: threading.Event, report: Report) -> SendProgress:
        """Run the transfer to its receipt, resuming after cuts while patience lasts.

        Raises NotFound, Corruption (of the image), Cancelled, and the receiver's errors.
        """
        with self._images.held(request.image_id) as image:
            run = _Run(self, image, request, cancelled, report)
            while True:
                try:
                    return run.attempt()
                except (PeerUnavailable, Conflict) as error:
                    run.wait_before_retry(error)


class _Run:
    """One transfer over its attempts."""

    def __init__(
        self,
        sender: ImageSender,
        image: OpenImage,
        request: SendRequest,
        cancelled: threading.Event,
        report: Report,
    ) -> None:
        self._sender = sender
        self._image = image
        self._request = request
        self._opening = Open(
            transfer_id=request.transfer_id,
            grant=request.grant,
            attempt=0,
            lane=0,
            image_bytes=image.manifest.image_bytes,
            segmentation=image.manifest.segmentation,
            source_state=image.manifest.source_state,
            key=sender._store.keys.by_id(image.tenant).key,
            root=image.manifest.root,
        )
        self._cancelled = cancelled
        self._report = report
        self._spent = Figures()
        self._attempts = 0
        self._clock = sender._clock
        self._last_progress = self._clock.monotonic()

    def wait_before_retry(self, error: Exception) -> None:
        """Pause; raise ``error`` when patience is over."""
        if self._clock.monotonic() - self._last_progress > self._request.patience_seconds:
            raise error
        _log.warning("transfer_retries", transfer=self._request.transfer_id, error=str(error))
        if self._cancelled.wait(RETRY_PAUSE_SECONDS):
            raise Cancelled("the transfer was cancelled")

    def attempt(self) -> SendProgress:
        """Open, send what is not durable yet, commit."""
        started = self._clock.monotonic()
        self._attempts += 1
        stream = self._sender._open_stream(self._request.receiver_address)
        lane = SenderLane()
        try:
            opened = open_lane(stream, lane, self._opening)
            spans = spans_of(self._opening.image_bytes)
            if opened.committed is not None:
                return SendProgress(spans, opened.committed.figures, opened.committed)
            lane.use_lanes(1)
            durable = Coverage.from_bitmap(opened.durable_spans, spans)
            counted = _Counted(
                image_batches(self._sender._images, self._image, durable, opened.limits.spans_per_offer_max),
                durable.count,
            )
            self._offer(stream, lane, counted)
            settle(stream, lane, cancelled=self._cancelled)
            figures = self._figures(lane, spans, durable.count)
            figures.duration_ns = int((self._clock.monotonic() - started) * 1e9)
            receipt = commit_lane(stream, lane, Commit(inherit_base=False, figures=figures))
            return SendProgress(spans, receipt.figures, receipt)
        finally:
            self._spent.add(lane.figures)
            stream.cancel()

    def _offer(self, stream: LaneStream, lane: SenderLane, counted: _Counted) -> None:
        last_report = self._clock.monotonic()

        def on_answered(_: Wanted) -> None:
            nonlocal last_report
            self._last_progress = now = self._clock.monotonic()
            if now - last_report >= PROGRESS_SECONDS:
                last_report = now
                figures = self._figures(lane, spans_of(self._opening.image_bytes), 0)
                self._report(SendProgress(counted.spans, figures))

        send_batches(stream, lane, counted, cancelled=self._cancelled, on_answered=on_answered)

    def _figures(self, lane: SenderLane, spans: int, resumed: int) -> Figures:
        figures = Figures()
        figures.add(self._spent)
        figures.add(lane.figures)
        figures.bytes_stored = 0
        figures.spans_total, figures.spans_resumed, figures.attempts = spans, resumed, self._attempts
        return figures


class _Counted:
    """Counts the spans that an iterator of batches accounts for."""

    def __init__(self, batches: Iterator[PreparedLeaves | HoleBatch], spans: int) -> None:
        self._batches = batches
        self.spans = spans

    def __iter__(self) -> _Counted:
        return self

    def __next__(self) -> PreparedLeaves | HoleBatch:
        prepared = next(self._batches)
        self.spans += prepared.span_count
        return prepared
