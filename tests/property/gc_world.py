"""A target over a disk in memory, with everything that happens to its containers, one step at a time.

``GcWorld`` runs the code that ships, from a lane's offers to the disk, against a plain model: which
images exist, and what their bytes are. Steps are chosen by whoever drives it: a state machine, a
campaign, a test of one race. Only the writer thread's work is done where it is asked for, so that a
schedule is what its choices say.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from arraylift.errors import ArrayliftError, Conflict
from arraylift.exchange.coverage import Coverage
from arraylift.exchange.messages import NO_RUNS, Commit, Committed, Figures, Limits, Offer, Open, Segments
from arraylift.exchange.receiver import Arrived, Batch
from arraylift.exchange.serve_lane import cut_short
from arraylift.ids import ImageId, LineageId, PoolId, SourceState, TenantId, TransferId, UnitId
from arraylift.segments.fingerprint import FingerprintKey
from arraylift.segments.segmentation import DEFAULT_SEGMENTATION
from arraylift.sizes import MIB
from dedup_target.collect import CollectFigures, CollectOptions, Collector
from dedup_target.container_store import ContainerLimits
from dedup_target.image_reader import ImageReader, Piece
from dedup_target.ingest import Ingest, LaneIngest
from dedup_target.seal_queue import SealJob
from dedup_target.store import Store
from dedup_target.transfers import GrantRequest, Transfers
from tests.fakes.disk import FakeFiles, PowerCut
from tests.fakes.index import MemorySegmentIndex
from tests.property.gc_content import (
    CONTAINER_BYTES,
    POOL,
    STORED,
    Content,
    bytes_of,
    draw_content,
    image_bytes_of,
)

PEER = "array1"
TENANTS = ("", "acme")
LEASE_SECONDS = 1000


class HandClock:
    """Stands still until it is turned."""

    def __init__(self) -> None:
        self.now = 0.0
        self._stamps = itertools.count(1)

    def monotonic(self) -> float:
        return self.now

    def wall_ns(self) -> int:
        return next(self._stamps)


class IndexDisk:
    """IndexOpener that keeps what every batch left; each of them is durable at once."""

    def __init__(self) -> None:
        self.index = MemorySegmentIndex()
        self.lost = False
        """Forget everything at the next opening."""

    def open(self) -> MemorySegmentIndex:
        self.index = MemorySegmentIndex() if self.lost else self.index.copy()
        self.lost = False
        return self.index

    def destroy(self) -> None:
        self.index = MemorySegmentIndex()

    def open_next(self) -> MemorySegmentIndex:
        self._next = MemorySegmentIndex()
        return self._next

    def switch(self) -> None:
        """The one in use takes its content over."""

    def destroy_other(self) -> None:
        """Nothing of it is on a disk."""


@dataclass
class Sending:
    """One transfer as its sender knows it."""

    transfer_id: TransferId
    tenant: str
    content: Content
    base: Content | None
    """What the sender says is unchanged may be inherited from here."""
    grant: bytes
    lane: LaneIngest | None = None
    number: int = 0
    left: list[int] = field(default_factory=list)
    """Spans that are not offered yet."""
    asked: list[tuple[Batch, list[int]]] = field(default_factory=list)
    """Offers, and what of them is wanted and not sent."""
    inherit: bool = False

    @property
    def image_id(self) -> ImageId:
        return ImageId(self.transfer_id)


class GcWorld:
    """See the module. ``where`` tells the history in messages of failing asserts."""

    def __init__(
        self, draw: random.Random, *, lease_seconds: int = LEASE_SECONDS, clock: HandClock | None = None
    ) -> None:
        self.draw = draw
        self.files = FakeFiles()
        self.disk = IndexDisk()
        self.clock = clock or HandClock()
        self.images: dict[ImageId, tuple[str, Content]] = {}
        """Committed and acknowledged: tenant and content."""
        self.deleting: dict[ImageId, tuple[str, Content]] = {}
        """Being deleted when the machine died: there or not."""
        self.sending: dict[TransferId, Sending] = {}
        self.reading: list[tuple[Iterator[Piece], bytes, int]] = []
        self.where: list[str] = []
        self.inherit_share = 0.8
        """How often a sender that may inherit does."""
        self.conflicts = 0
        """Promises that were broken: nothing is damaged here, so there should be none."""
        self.cycles = self.crashes = self.restores = self.commits = self.deleted_containers = 0
        self._numbers = itertools.count(1)
        self._lease_seconds = lease_seconds
        self._keys: dict[str, FingerprintKey] = {}
        self._prints: dict[str, list[bytes]] = {}
        self.open_store()

    # -- life -------------------------------------------------------------------------------

    def open_store(self) -> None:
        whole_from_bytes = 0 if self.draw.random() < 0.8 else 4 * MIB  # containers are read whole, or by runs
        limits = ContainerLimits(whole_from_bytes=whole_from_bytes)
        self.store = Store(self.files, "/state", opener_of=self.index_of, limits=limits)
        self.store.seal_queue.submit = self._seal_at_once  # type: ignore[method-assign]
        self.store.containers.container_bytes = CONTAINER_BYTES
        self.reader = ImageReader(self.store)
        self.transfers = Transfers(
            self.store, self.reader, limits=Limits(), lease_seconds=self._lease_seconds, clock=self.clock
        )
        self.collector = Collector(lambda _: self.transfers, self.clock)
        self.tenants = {name: self.store.keys.get_or_create(name) for name in TENANTS}
        for name, tenant in self.tenants.items():
            if name not in self._keys:
                self._keys[name] = key = FingerprintKey(tenant.key)
                packed = key.segments(POOL)
                self._prints[name] = [packed[32 * at : 32 * at + 32] for at in range(len(POOL))]

    def index_of(self, _unit_id: UnitId) -> IndexDisk:
        """Where a unit's index is kept."""
        return self.disk

    def _seal_at_once(self, job: SealJob) -> None:
        try:
            sealed = self.store.seal_queue.seal_now(job.buffer)
        except ArrayliftError as error:
            job.done(None, error)
        else:
            job.ticket.sealed = True
            job.done(sealed, None)

    def end_threads(self) -> None:
        """What a crash does to threads."""
        self.store.seal_queue.close()
        self.store.containers._prefetcher.shutdown(wait=False, cancel_futures=True)
        self.transfers._stop.set()
        self.transfers._reaper.join()

    def crash(self, *, power: bool, index_lost: bool = False) -> None:
        """Die, and start again on what is found."""
        self.note(f"crash power={power} index_lost={index_lost}")
        self.crashes += 1
        self.end_threads()
        if power:
            states = list(self.files.post_crash_states(maximum=3, seed=self.draw.getrandbits(32)))
            self.files = self.draw.choice(states)
        else:
            self.files = self.files.after_kill()
        self.disk.lost = index_lost
        self.reading.clear()
        self.open_store()
        found = {image.image_id for image in self.store.manifests.all()}
        for image_id, (tenant, content) in self.deleting.items():
            if image_id in found:
                self.images[image_id] = (tenant, content)
        self.deleting.clear()
        for transfer in list(self.sending.values()):
            transfer.lane = None
            if transfer.image_id in found:  # committed; only the answer was lost
                self._committed(transfer)
            elif transfer.transfer_id not in self.transfers._transfers:
                del self.sending[transfer.transfer_id]
        for left in self.transfers._live():  # of a grant or a revocation that was cut
            if left.transfer_id not in self.sending:
                self.transfers.revoke(left.transfer_id)
        assert found == set(self.images), f"images after the crash; {self.story}"

    def survive(self, step: Callable[[], object], *, changes: int, power: bool) -> None:
        """Take a step in which the machine dies after so many changes of its disk, if it makes them."""
        self.files.crash_after(changes)
        try:
            step()
            self.files.kernel.crash_at = None
        except PowerCut:
            self.crash(power=power)

    def note(self, text: str) -> None:
        self.where.append(text)

    @property
    def story(self) -> str:
        return "\n".join(self.where[-60:])

    # -- ingest -----------------------------------------------------------------------------

    def begin(self, tenant: str, content: Content | None, name: str, *, full: bool) -> Sending:
        """Ask for a grant; without ``content``, the base's with one span changed."""
        transfer_id = TransferId(f"{next(self._numbers):032x}")
        grant, base_id = self.transfers.create_grant(
            GrantRequest(transfer_id, PEER, tenant, name, None, no_base=full)
        )
        base = self.images[base_id][1] if base_id is not None and base_id in self.images else None
        content = content or draw_content(self.draw, base)
        self.note(f"begin {transfer_id[-3:]} {tenant!r} {name} base {base_id and base_id[-3:]} {content}")
        self.sending[transfer_id] = Sending(transfer_id, tenant, content, base, grant)
        return self.sending[transfer_id]

    def open(self, transfer: Sending) -> None:
        """Begin the next attempt, whatever the last one did."""
        self.note(f"open {transfer.transfer_id[-3:]}")
        opening = Open(
            transfer_id=transfer.transfer_id,
            grant=transfer.grant,
            attempt=0,
            lane=0,
            image_bytes=image_bytes_of(transfer.content),
            segmentation=DEFAULT_SEGMENTATION,
            source_state=SourceState(PoolId("a" * 32), LineageId("b" * 32), 1),
        )
        ingest = Ingest(self.transfers.find(opening, role="array", name=PEER), self.clock)
        opened = ingest.open(opening)
        if opened.committed is not None:
            self._committed(transfer)
            return
        transfer.lane = ingest.lane(0)
        transfer.number, transfer.asked = 0, []
        durable = Coverage.from_bitmap(opened.durable_spans, len(transfer.content)).flags
        base = transfer.base if opened.base is not None else None
        same_size = base is not None and image_bytes_of(base) == image_bytes_of(transfer.content)
        transfer.inherit = same_size and self.draw.random() < self.inherit_share
        kept = [
            transfer.inherit and base is not None and base[span] == transfer.content[span]
            for span in range(len(transfer.content))
        ]
        transfer.left = [
            span for span in range(len(transfer.content)) if not durable[span] and not kept[span]
        ]
        self.draw.shuffle(transfer.left)

    def offer(self, transfer: Sending) -> None:
        """Offer one span."""
        lane = self._lane(transfer)
        span = transfer.left.pop()
        transfer.number += 1
        prints, segments = self._prints[transfer.tenant], transfer.content[span]
        solid = bool(segments)
        offer = Offer(
            batch=transfer.number,
            spans=np.array([span] if solid else [], dtype="<u4"),
            counts=np.array([len(segments)] if solid else [], dtype="<u2"),
            lengths=np.array([len(POOL[one]) for one in segments], dtype="<u4"),
            fingerprints=b"".join(prints[one] for one in segments),
            hole_runs=NO_RUNS if solid else np.array([[span, 1]], dtype="<u4"),
        )
        batch = Batch(offer)
        wanted, _ = lane.offered(batch)
        places = [] if wanted is None else np.flatnonzero(wanted).tolist()
        batch.indexes = np.array(places, dtype=np.intp)
        self.note(f"offer {transfer.transfer_id[-3:]} span {span} wanted {places}")
        if places:
            transfer.asked.append((batch, places))

    def send(self, transfer: Sending, count: int = 0) -> None:
        """Send what one offer lacks, or part of it: ``count`` segments, 0: as drawn."""
        lane = self._lane(transfer)
        batch, places = transfer.asked[0]
        count = count or self.draw.randint(1, len(places))
        now, later = places[:count], places[count:]
        self.note(f"send {transfer.transfer_id[-3:]} {now}, later {later}")
        segments = transfer.content[int(batch.offer.spans[0])]
        stored = [STORED[segments[place]] for place in now]
        message = Segments(
            batch.number,
            np.array([codec for codec, _ in stored], np.uint8),
            np.array([len(data) for _, data in stored], dtype="<u4"),
            [b"".join(data for _, data in stored)],
        )
        transfer.asked[0] = (batch, later)
        if not later:
            transfer.asked.pop(0)
        batch.arrived += len(now)
        lane.arrived(Arrived(batch, np.array(now, dtype=np.intp), message))

    def advance(self, transfer: Sending) -> None:
        """Let time pass until what was sent is sealed and logged."""
        self.note(f"advance {transfer.transfer_id[-3:]}")
        self.clock.now += 2.5
        self._lane(transfer).advance(now=True)

    def commit(self, transfer: Sending) -> None:
        """Commit what is offered and sent; a Conflict begins anew."""
        assert not transfer.left
        assert not transfer.asked
        self.note(f"commit {transfer.transfer_id[-3:]}")
        lane = self._lane(transfer)
        lane.flush()
        receipt = lane.commit(Commit(transfer.inherit, Figures()))
        assert isinstance(receipt, Committed)
        lane.close(None)
        self._committed(transfer)

    def abort(self, transfer: Sending) -> None:
        """The sender is cut off; it may open again."""
        self.note(f"abort {transfer.transfer_id[-3:]}")
        if transfer.lane is not None:
            transfer.lane.close(cut_short())
            transfer.lane = None

    def revoke(self, transfer: Sending) -> None:
        """Nobody wants it any more."""
        self.abort(transfer)
        self.note(f"revoke {transfer.transfer_id[-3:]}")
        del self.sending[transfer.transfer_id]
        self.transfers.revoke(transfer.transfer_id)

    def lapse(self) -> None:
        """Nobody continues a transfer for its lease: those that have no lane are forgotten."""
        self.note("lapse")
        self.clock.now += self._lease_seconds + 1
        self.transfers.reap()
        for transfer in list(self.sending.values()):
            if transfer.transfer_id not in self.transfers._transfers:
                del self.sending[transfer.transfer_id]

    def next_step(self, transfer: Sending) -> None:
        """Whatever brings a transfer nearer to its commit; a lost promise begins anew."""
        try:
            if transfer.lane is None:
                self.open(transfer)
            elif transfer.asked:
                self.send(transfer)
            elif transfer.left:
                self.offer(transfer)
            else:
                self.commit(transfer)
        except Conflict:
            self.note("conflict")
            self.conflicts += 1
            self.abort(transfer)

    def _committed(self, transfer: Sending) -> None:
        self.images[transfer.image_id] = (transfer.tenant, transfer.content)
        del self.sending[transfer.transfer_id]
        self.commits += 1

    def _lane(self, transfer: Sending) -> LaneIngest:
        assert transfer.lane is not None
        return transfer.lane

    def image(self, content: Content, *, tenant: str = "", name: str = "a", full: bool = True) -> ImageId:
        """Send a whole image."""
        transfer = self.begin(tenant, content, name, full=full)
        while transfer.transfer_id in self.sending:
            self.next_step(transfer)
        return transfer.image_id

    # -- images -----------------------------------------------------------------------------

    def delete(self, image_id: ImageId) -> None:
        self.note(f"delete {image_id[-3:]}")
        self.deleting[image_id] = self.images.pop(image_id)
        self.store.manifests.remove(image_id)
        self.reader.forget(image_id)
        self.deleting.clear()

    def start_reading(self, image_id: ImageId) -> None:
        """Begin a restore that other steps may overtake."""
        self.note(f"read {image_id[-3:]}")
        content = bytes_of(self.images[image_id][1])

        def pieces() -> Iterator[Piece]:
            with self.reader.held(image_id) as image:
                yield from self.reader.read(image, 0, 0)

        started = pieces()
        self.reading.append((started, content, self._check_piece(next(started), content)))

    def go_on_reading(self) -> None:
        """One more piece of the oldest restore."""
        pieces, content, at = self.reading.pop(0)
        piece = next(pieces, None)
        if piece is None:
            assert at == len(content), self.story
            self.restores += 1
        else:
            self.reading.append((pieces, content, self._check_piece(piece, content)))

    def _check_piece(self, piece: Piece, content: bytes) -> int:
        data = bytes(piece.data) or bytes(piece.zero_bytes)
        end = piece.offset + len(data)
        assert data == content[piece.offset : end], f"wrong bytes at {piece.offset}; {self.story}"
        return end

    # -- collecting -------------------------------------------------------------------------

    def collect(
        self, *, live_percent_min: int = 100, between: Callable[[], None] = lambda: None
    ) -> CollectFigures:
        """One cycle; ``between`` may do anything between its steps."""
        self.note(f"collect {live_percent_min}")
        self.cycles += 1

        def report(figures: CollectFigures) -> None:
            self.note(f"  gc {figures.phase} {figures.done}/{figures.total}")
            between()

        figures = self.collector.collect(
            self.store.unit, CollectOptions(live_percent_min=live_percent_min), report=report
        )
        self.note(f"  {figures}")
        self.deleted_containers += figures.deleted_count
        return figures

    # -- what must hold ---------------------------------------------------------------------

    def check(self) -> None:
        """Every acknowledged image is there, bit for bit; nothing else is."""
        found = {image.image_id for image in self.store.manifests.all()}
        assert found == set(self.images), f"images; {self.story}"
        assert self.store.unit.quarantine.is_empty, f"quarantine; {self.story}"
        for image_id, (_, content) in self.images.items():
            expected, at = bytes_of(content), 0
            image = self.reader.view(self.store.unit, self.store.manifests.get(image_id))
            for piece in self.reader.read(image, 0, 0):
                at = self._check_piece(piece, expected)
            assert at == len(expected), self.story

    def check_no_garbage(self) -> None:
        """After the last transfer and three quiet cycles, the containers have what is alive, once."""
        for transfer in list(self.sending.values()):
            self.revoke(transfer)
        for pieces, _, _ in self.reading:
            pieces.close()  # type: ignore[attr-defined]
        self.reading.clear()
        for _ in range(3):
            self.collect()
        alive = {(tenant, name) for tenant, name in self._alive()}
        stored = self.stored()
        assert len(stored) == len(set(stored)), f"stored twice; {self.story}"
        assert set(stored) == alive, f"garbage or loss; {self.story}"

    def _alive(self) -> Iterator[tuple[TenantId, bytes]]:
        """Every fingerprint that an image reaches, found without the code under test."""
        for image_id, (name, content) in self.images.items():
            manifest = self.store.manifests.get(image_id)
            tenant, prints = self.tenants[name].tenant, self._prints[name]
            yield tenant, manifest.root
            yield from ((tenant, prints[one]) for span in content for one in span)
            view = self.reader.view(self.store.unit, manifest).tree
            rows = [view.leaves]
            rows += [view._rows[level] for level in range(1, view.height + 1)]
            yield from ((tenant, row.tobytes()) for level in rows for row in level if row.any())

    def holds(self, tenant: str, content: Content) -> bool:
        """Whether every segment of an image is there."""
        packed = b"".join(self._prints[tenant][one] for span in content for one in span)
        return bool(self.store.unit.contains(self.tenants[tenant].tenant, packed).all())

    def stored(self) -> list[tuple[TenantId, bytes]]:
        """Every record of every container."""
        containers = self.store.containers
        directories = map(containers.read_directory, containers.containers())
        return [(one.tenant, name) for one in directories for name in one.directory["fingerprint"].tolist()]
