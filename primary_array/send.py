"""Send a disk to a target: plan, lanes, commit, and again after a cut ([0044], [0052]).

Owns: the life of a transfer on the array. An attempt opens lane 0 here, learns what
the target knows (key, base, what is durable), hands reads to worker lanes 1..n, and
commits on lane 0 when all of it is durable.
Invariants:
  K1 the source stays open from the first read to the receipt.
  K2 the base's state comes from the target's Opened, never from the caller.
  K3 a sampled span that differs distrusts whoever told the changes before the transfer
     fails, so that the next run reads everything.
Limits: send_lanes.LANES_MAX lanes a transfer; ``patience_seconds`` without progress end it.
Callers: service, one thread a transfer; each worker lane has a thread here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from arraylift.clock import SYSTEM_CLOCK, Clock
from arraylift.errors import (
    Cancelled,
    Conflict,
    PeerUnavailable,
    TrackerMismatch,
    WrongState,
)
from arraylift.exchange.coverage import Coverage
from arraylift.exchange.hole_batch import hole_batches
from arraylift.exchange.lane import LaneStream, commit_lane, open_lane, send_batches, settle
from arraylift.exchange.messages import (
    Base,
    Commit,
    Committed,
    Figures,
    Open,
    Opened,
)
from arraylift.exchange.sender import SenderLane
from arraylift.ids import TransferId
from arraylift.logs import get_logger
from arraylift.pki import TlsMaterial
from arraylift.segments.segmentation import DEFAULT_SEGMENTATION, Segmentation
from arraylift.sizes import spans_of
from primary_array.change_types import Changed, ChangeSource
from primary_array.send_lanes import LANES_MAX, LaneRun, run_lanes
from primary_array.send_plan import SendPlan, changed_plan, full_plan, mapped_spans, read_items
from primary_array.send_worker import LaneTask
from primary_array.sent_disk import DiskSource, SentDisk
from primary_array.transfer_control import TransferControl
from primary_array.worker_pool import WorkerPool

RETRY_SECONDS_FIRST, RETRY_SECONDS_MAX = 0.2, 5.0

_log = get_logger("send")


@dataclass(frozen=True, slots=True)
class SendRequest:
    """Which transfer, and to whom."""

    transfer_id: TransferId
    target_address: str
    grant: bytes
    patience_seconds: float


@dataclass(frozen=True, slots=True)
class SendProgress:
    """A snapshot of the counts while a transfer runs; ``receipt`` ends it."""

    spans_done: int
    figures: Figures
    source: ChangeSource
    """Who told what changed; FULL_READ where nobody could."""
    receipt: Committed | None = None


OpenStream = Callable[[str], LaneStream]
Report = Callable[[SendProgress], None]


class Sender:
    """Sends disks of any source."""

    def __init__(
        self,
        workers: WorkerPool,
        *,
        tls: TlsMaterial,
        open_stream: OpenStream,
        clock: Clock = SYSTEM_CLOCK,
        segmentation: Segmentation = DEFAULT_SEGMENTATION,
    ) -> None:
        self._workers = workers
        self._tls = tls
        self._open_stream = open_stream
        self._clock = clock
        self._segmentation = segmentation

    def send(
        self, request: SendRequest, source: DiskSource, *, control: TransferControl, report: Report
    ) -> SendProgress:
        """Run the transfer to its receipt, resuming after cuts while patience lasts.

        Raises TrackerMismatch, WrongState (a base is demanded, but none vouches), Cancelled, the source's and
        the target's errors.
        """
        with source.open(control.cancelled) as disk:  # K1
            run = _Run(self, request, disk, control, report)
            while True:
                try:
                    return run.attempt()
                except TrackerMismatch:
                    _log.error("tracker_distrusted", disk=disk.label, transfer=request.transfer_id)
                    disk.distrust()  # K3
                    raise
                except (PeerUnavailable, Conflict) as error:
                    run.wait_before_retry(error)


class _Run:
    """One transfer over its attempts."""

    def __init__(
        self,
        sender: Sender,
        request: SendRequest,
        disk: SentDisk,
        control: TransferControl,
        report: Report,
    ) -> None:
        self._sender = sender
        self._request = request
        self._disk = disk
        self._control = control
        self._cancelled = control.cancelled
        self._report = report
        self._spent = Figures()  # of attempts that have ended
        self._failures = 0
        self._last_progress = sender._clock.monotonic()
        self._furthest = self._durable = 0  # spans
        self._source = ChangeSource.FULL_READ

    # -- attempts -------------------------------------------------------------------------------

    def wait_before_retry(self, error: Exception) -> None:
        """Sleep a little longer each time; raise ``error`` when patience is over."""
        waited = self._sender._clock.monotonic() - self._last_progress
        if waited > self._request.patience_seconds:
            raise error
        self._failures += 1
        pause = min(RETRY_SECONDS_MAX, RETRY_SECONDS_FIRST * 2 ** min(self._failures, 6))
        _log.warning(
            "transfer_retries",
            transfer=self._request.transfer_id,
            error=str(error),
            attempt=self._failures,
            pause_seconds=pause,
        )
        if self._cancelled.wait(pause):
            raise Cancelled("the transfer was cancelled")

    def attempt(self) -> SendProgress:
        """Open, send what is not durable yet, commit."""
        started = self._sender._clock.monotonic()
        self._disk.begin_attempt()
        stream = self._sender._open_stream(self._request.target_address)
        lane, run = SenderLane(), LaneRun()
        try:
            opened = open_lane(stream, lane, self._open_message())
            if opened.committed is not None:
                return SendProgress(self._spans, opened.committed.figures, self._source, opened.committed)
            coverage = Coverage.from_bitmap(opened.durable_spans, self._spans)
            self._note_progress(durable=coverage.count)
            plan = self._plan(opened.base, coverage)
            holes = hole_batches(plan.holes)
            send_batches(stream, lane, holes, cancelled=self._cancelled, on_answered=lambda _: None)
            self._run_lanes(run, opened, plan, coverage.count)
            settle(stream, lane, cancelled=self._cancelled)
            figures = self._total(run, lane.figures, plan, coverage.count)
            figures.duration_ns = int((self._sender._clock.monotonic() - started) * 1e9)
            receipt = commit_lane(stream, lane, Commit(plan.inherit_base, figures))
            return SendProgress(self._spans, receipt.figures, self._source, receipt)
        except BaseException:
            self._spent.add(run.figures)
            raise
        finally:
            stream.cancel()

    @property
    def _spans(self) -> int:
        return spans_of(self._disk.size_bytes)

    def _open_message(self) -> Open:
        return Open(
            transfer_id=self._request.transfer_id,
            grant=self._request.grant,
            attempt=0,
            lane=0,
            image_bytes=self._disk.size_bytes,
            segmentation=self._sender._segmentation,
            source_state=self._disk.state,
        )

    # -- planning -------------------------------------------------------------------------------

    def _plan(self, base: Base | None, coverage: Coverage) -> SendPlan:
        mapped = mapped_spans(self._disk.places, self._disk.size_bytes)
        changed = self._changed_since(base)
        self._source = ChangeSource.FULL_READ if changed is None else changed.source
        if base is None or changed is None:
            if self._disk.base_demanded:
                raise WrongState(
                    "no base at the target vouches for what is unchanged",
                    subject=self._disk.label,
                    next_step="send it with a full read once; later runs can use births",
                )
            return full_plan(mapped, coverage.flags)
        return changed_plan(
            mapped,
            coverage.flags,
            changed.spans,
            base_spans=spans_of(base.image_bytes),
            seed=self._request.transfer_id,
        )

    def _changed_since(self, base: Base | None) -> Changed | None:
        """What changed, or None where nobody can tell (K2)."""
        if base is None or base.segmentation != self._sender._segmentation:
            return None
        return self._disk.changed_since(base)

    # -- sending --------------------------------------------------------------------------------

    def _run_lanes(self, run: LaneRun, opened: Opened, plan: SendPlan, resumed: int) -> None:
        task = LaneTask(
            open=replace(self._open_message(), attempt=opened.attempt),
            lane_count=min(LANES_MAX, self._disk.readers_max),
            key=opened.key,
            target_address=self._request.target_address,
            tls=self._sender._tls,
            reader=self._disk.reader,
        )

        def progressed(run: LaneRun) -> None:
            total = self._total(run, Figures(), plan, resumed)
            done = resumed + int(plan.holes.sum()) + run.figures.spans_read + run.figures.spans_sampled
            self._note_progress(done=done)
            self._report(SendProgress(done, total, self._source))

        size_bytes, spans_per_item = self._disk.size_bytes, opened.limits.spans_per_offer_max
        run_lanes(
            run,
            self._sender._workers,
            task,
            read_items(plan, self._disk.places, size_bytes, spans_per_item),
            opened.limits,
            control=self._control,
            progressed=progressed,
        )

    def _note_progress(self, *, done: int = 0, durable: int = 0) -> None:
        """Patience starts anew only when this attempt came further than those before it, or kept more."""
        if done > self._furthest or durable > self._durable:
            self._last_progress = self._sender._clock.monotonic()
        self._furthest, self._durable = max(done, self._furthest), max(durable, self._durable)

    def _total(self, run: LaneRun, control: Figures, plan: SendPlan, resumed: int) -> Figures:
        total = Figures()
        for part in (self._spent, run.figures, control):
            total.add(part)
        total.spans_total = self._spans
        total.spans_hole += int(plan.holes.sum())
        total.spans_resumed = resumed
        total.attempts = self._failures + 1
        return total
