"""Take in what arrives at the target uncut: files, base and changes, compositions ([0048], [0053]).

There is no second way in: the target grants itself a transfer and is its sender as well, by the
exchange's own machines over a LocalLaneStream. Log, attempts, pins, quota and commit are those of
any backup.
Invariants:
  L1 the image exists when ``take_in`` returns, and nothing of it if it raises.
  L2 a call that repeats the id of a committed one is answered with its image, nothing read; one
     that repeats the id of a call that still runs fences it.
  L3 what comes from images is verified on its way, and of one tenant.
Limits: one thread a call, which cuts; two buffers of one offer; IMAGES_MAX images a composition.
Callers: the thread of one call. Source: US 2016/0170666 [0048], [0053], [0054].
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from arraylift.clock import Clock
from arraylift.errors import AlreadyExists, ArrayliftError, InvalidRequest, NotFound
from arraylift.exchange.lane import commit_lane, open_lane, run_lane
from arraylift.exchange.local_stream import LocalLaneStream
from arraylift.exchange.messages import SPANS_PER_OFFER_MAX, Commit, Committed, Figures, Open, Opened
from arraylift.exchange.sender import SenderLane
from arraylift.ids import ImageId, SourceState, TransferId
from arraylift.logs import get_logger
from arraylift.segments.segmentation import Segmentation
from dedup_target.assembly import Assembly, Patch
from dedup_target.image_reader import ImageReader, OpenImage
from dedup_target.ingest import Ingest
from dedup_target.manifest_format import ImageManifest
from dedup_target.store import Store
from dedup_target.transfer import Transfer
from dedup_target.transfers import LOCAL_PEER, GrantRequest, Transfers

IMAGES_MAX = 1024
"""Images that one composition draws from; each is held until its end."""
PROGRESS_SECONDS = 0.5
CONTROL_LANE, DATA_LANE = 0, 1

_log = get_logger("local_ingest")


@dataclass(frozen=True, slots=True)
class FileOrder:
    """What is to be made. Without a base the background is zeros."""

    transfer_id: TransferId
    tenant_name: str
    name: str
    size_bytes: int
    segmentation: Segmentation
    source_state: SourceState | None = None
    base_image_id: ImageId | None = None


@dataclass(frozen=True, slots=True)
class FilePatch:
    """``length`` bytes at ``offset``: ``data``, or those of an image from ``image_offset``, or zeros."""

    offset: int
    length: int
    data: bytes | None = None
    image_id: ImageId | None = None
    image_offset: int = 0


Report = Callable[[int], None]
"""Told how many spans are done."""


class LocalIngest:
    """Makes images of one target."""

    def __init__(self, store: Store, images: ImageReader, transfers: Transfers, clock: Clock) -> None:
        self._store = store
        self._images = images
        self._transfers = transfers
        self._clock = clock

    def take_in(
        self,
        order: FileOrder,
        patches: Iterator[FilePatch],
        *,
        cancelled: threading.Event,
        report: Report = lambda _: None,
    ) -> ImageManifest:
        """Make the image of ``order`` out of ``patches``, which ascend, and return it (L1, L2).

        ``patches`` may raise: then there is no image. Raises InvalidRequest, NotFound (base, image),
        AlreadyExists (the id is another image's), Corruption, OutOfSpace, Overloaded, LeaseLost, Cancelled.
        """
        made = self._made(order)
        if made is not None:
            return made
        transfer = self._transfers.begin_local(
            GrantRequest(
                transfer_id=order.transfer_id,
                peer=LOCAL_PEER,
                tenant_name=order.tenant_name,
                image_name=order.name,
                base_image_id=order.base_image_id,
                no_base=order.base_image_id is None,
            )
        )
        try:
            with contextlib.ExitStack() as held:
                if transfer.receipt() is None:
                    run = _Run(self._images, transfer, order, held, self._clock)
                    run.run(patches, cancelled, report)
        finally:
            self._end(transfer)
        made = self._made(order)
        assert made is not None, "L1: it was committed"
        return made

    def _end(self, transfer: Transfer) -> None:
        try:
            self._transfers.end_local(transfer)
        except ArrayliftError as error:  # the call's own end says more; the next start removes the log
            _log.warning("local_transfer_left", transfer=transfer.transfer_id, error=str(error))

    def _made(self, order: FileOrder) -> ImageManifest | None:
        """The image that an earlier call of this id made (L2): images bear their transfers' ids."""
        try:
            found = self._store.manifests.get(ImageId(order.transfer_id))
        except NotFound:
            return None
        same = (found.name, found.image_bytes, found.segmentation, found.source_state, found.base_image_id)
        asked = (order.name, order.size_bytes, order.segmentation, order.source_state, order.base_image_id)
        if same != asked or found.tenant_name != self._tenant_name(order):
            raise AlreadyExists(
                f"transfer {order.transfer_id} has made another image",
                subject=f"image {found.image_id}",
                next_step="make a new transfer id",
            )
        return found

    def _tenant_name(self, order: FileOrder) -> str:
        return self._store.keys.get_or_create(order.tenant_name).name


class _Run:
    """One transfer from this process to itself."""

    def __init__(
        self,
        images: ImageReader,
        transfer: Transfer,
        order: FileOrder,
        held: contextlib.ExitStack,
        clock: Clock,
    ) -> None:
        self._images = images
        self._transfer = transfer
        self._order = order
        self._held = held
        self._clock = clock
        self._held_ids: set[ImageId] = set()
        self._started = clock.monotonic()
        self._reported = self._started

    def run(self, patches: Iterator[FilePatch], cancelled: threading.Event, report: Report) -> Committed:
        opening = Open(
            transfer_id=self._order.transfer_id,
            grant=b"",
            attempt=0,
            lane=CONTROL_LANE,
            image_bytes=self._order.size_bytes,
            segmentation=self._order.segmentation,
            source_state=self._order.source_state,
        )
        control, data = self._stream(), self._stream()
        try:
            first, lane = SenderLane(), SenderLane()
            opened = open_lane(control, first, opening)
            open_lane(data, lane, replace(opening, attempt=opened.attempt, lane=DATA_LANE))
            lane.use_lanes(1)
            assembly = self._assembly(opened)

            def answered(_: object) -> None:
                now = self._clock.monotonic()
                if now - self._reported >= PROGRESS_SECONDS:
                    self._reported = now
                    report(assembly.spans_done)

            # The end of a lane has it sealed at once, which waiting for Durable would not.
            batches = assembly.batches(map(self._resolved, patches))
            run_lane(data, lane, batches, cancelled=cancelled, on_answered=answered)
            figures = self._figures(assembly, lane)
            return commit_lane(control, first, Commit(self._inherits(opened), figures))
        finally:
            data.cancel()
            control.cancel()

    def _stream(self) -> LocalLaneStream:
        return LocalLaneStream(Ingest(self._transfer, self._clock), wait=self._wait)

    def _wait(self, seconds: float) -> None:
        attempt = self._transfer.attempt
        with attempt.changed:
            attempt.changed.wait(seconds)

    def _inherits(self, opened: Opened) -> bool:
        """Whether the base's spans may be taken over; else it is read whole, and cut anew."""
        return opened.base is not None and opened.base.segmentation == self._order.segmentation

    def _assembly(self, opened: Opened) -> Assembly:
        base = None
        if self._order.base_image_id is not None:
            base = self._held.enter_context(self._images.held(self._order.base_image_id))
        return Assembly(
            self._images,
            self._order.size_bytes,
            base=base,
            inherit=self._inherits(opened),
            segmentation=self._order.segmentation,
            key=self._transfer.key,
            spans_per_offer=min(opened.limits.spans_per_offer_max, SPANS_PER_OFFER_MAX),
        )

    def _resolved(self, patch: FilePatch) -> Patch:
        image = self._source(patch) if patch.image_id is not None else None
        return Patch(patch.offset, patch.length, patch.data, image, patch.image_offset)

    def _source(self, patch: FilePatch) -> OpenImage:
        """Open an image of this tenant, held to the end of the call (L3)."""
        assert patch.image_id is not None
        if patch.image_id not in self._held_ids:
            if len(self._held_ids) >= IMAGES_MAX:
                raise InvalidRequest(f"an image is composed of at most {IMAGES_MAX} others")
            self._held.enter_context(self._images.held(patch.image_id))
            self._held_ids.add(patch.image_id)
        image = self._images.open(patch.image_id)
        if image.tenant != self._transfer.tenant:
            raise NotFound(f"there is no image {patch.image_id}", next_step="list the images")
        if patch.image_offset + patch.length > image.manifest.image_bytes:
            raise InvalidRequest(
                f"bytes {patch.image_offset:,}+{patch.length:,} are not within the image's "
                f"{image.manifest.image_bytes:,}",
                subject=f"image {patch.image_id}",
            )
        return image

    def _figures(self, assembly: Assembly, lane: SenderLane) -> Figures:
        figures = Figures(attempts=1)
        figures.add(assembly.figures)
        figures.add(lane.figures)
        figures.duration_ns = int((self._clock.monotonic() - self._started) * 1e9)
        return figures
