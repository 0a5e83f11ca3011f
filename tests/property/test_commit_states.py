"""The power is cut at every step of two backups, the second on the first: the start after it finds
each image whole or not at all, and the same transfers then commit, once each.

Everything from the lane's requests to the disk is what ships, but the writer thread, whose work is
done where it is asked for, so that every run takes the same steps.
"""

from __future__ import annotations

import itertools
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest

from arraylift.durable import Files
from arraylift.errors import ArrayliftError
from arraylift.exchange import wire
from arraylift.exchange.coverage import Coverage, runs_of
from arraylift.exchange.messages import (
    NO_RUNS,
    Commit,
    Committed,
    Figures,
    Limits,
    Missing,
    Offer,
    Open,
    Opened,
    Reply,
    Request,
    Segments,
)
from arraylift.exchange.serve_lane import serve_lane
from arraylift.ids import ImageId, LineageId, PoolId, SourceState, TransferId, UnitId
from arraylift.segments.codecs import compress_lz4
from arraylift.segments.fingerprint import FingerprintKey
from arraylift.segments.segmentation import DEFAULT_SEGMENTATION, Segmenter
from arraylift.sizes import KIB, MIB, SPAN_BYTES, spans_of
from dedup_target.image_reader import ImageReader
from dedup_target.ingest import Ingest
from dedup_target.reserve import Reserve
from dedup_target.seal_queue import SealJob
from dedup_target.store import Store
from dedup_target.transfers import GrantRequest, Transfers
from tests.fakes.disk import FakeFiles, PowerCut
from tests.fakes.index import MemorySegmentIndex
from tests.property.test_target_storage_crash import IndexDisk

PEER = "array1"
STRIDE = 10
"""The default run tries one of so many primitive changes, from a place that it draws."""


class Ticks:
    """Time that passes when it is asked for: containers and logs come of age in mid-transfer."""

    def __init__(self) -> None:
        self._count = itertools.count(1)

    def monotonic(self) -> float:
        return next(self._count) * 0.3

    def wall_ns(self) -> int:
        return next(self._count)


@dataclass(frozen=True)
class Backup:
    """One transfer: what is sent, and which spans of it the array knows to be unchanged."""

    number: int
    disk: bytes
    changed: frozenset[int] | None
    """None: a full backup."""

    @property
    def transfer_id(self) -> TransferId:
        return TransferId(f"{self.number:032x}")

    @property
    def image_id(self) -> ImageId:
        """The image bears its transfer's id."""
        return ImageId(self.transfer_id)


def _disks() -> tuple[bytes, bytes]:
    """Four spans: a hole, one of repeats, one of noise in between zeros, and a short one."""
    draw = np.random.default_rng(1)
    block = draw.bytes(32 * KIB)
    first = bytes(MIB) + block * 32 + bytes(MIB - 16 * KIB) + draw.bytes(16 * KIB) + draw.bytes(8 * KIB)
    second = bytearray(first)
    second[2 * MIB : 2 * MIB + 10 * KIB] = draw.bytes(10 * KIB)
    return first, bytes(second)


FIRST, SECOND = _disks()
BACKUPS = [Backup(1, FIRST, None), Backup(2, SECOND, frozenset({2})), Backup(3, FIRST, None)]


@dataclass
class Notes:
    """What the runs were told, and what the index kept on its disk."""

    disk: IndexDisk = field(default_factory=lambda: IndexDisk(MemorySegmentIndex()))
    receipts: dict[int, Committed] = field(default_factory=dict)


class Target:
    """A target without its edges and threads."""

    def __init__(
        self,
        files: Files,
        disk: IndexDisk | Callable[[UnitId], IndexDisk],
        *,
        reserve: Reserve | None = None,
    ) -> None:
        """``disk``: of the one index, or of each unit's."""
        self.clock = Ticks()
        opener_of = disk if callable(disk) else lambda _: disk
        self.store = Store(files, "/state", opener_of=opener_of, reserve=reserve)
        self.store.seal_queue.submit = self._seal_at_once  # type: ignore[method-assign]
        self.images = ImageReader(self.store)
        self.transfers: Transfers | None = None
        try:
            self.transfers = Transfers(
                self.store, self.images, limits=Limits(), lease_seconds=10**9, clock=self.clock
            )
        except BaseException:
            self.end_threads()
            raise

    def _seal_at_once(self, job: SealJob) -> None:
        try:
            sealed = self.store.seal_queue.seal_now(job.buffer)
        except ArrayliftError as error:
            job.done(None, error)
        else:
            job.ticket.sealed = True
            job.done(sealed, None)

    def end_threads(self) -> None:
        """What a power cut does to threads."""
        self.store.seal_queue.close()
        if self.transfers is not None:
            self.transfers._stop.set()
            self.transfers._reaper.join()

    # -- one backup -----------------------------------------------------------------------------

    def send(self, backup: Backup) -> Committed:
        """Grant, open, offer what is not durable yet, commit."""
        assert self.transfers is not None
        grant, base = self.transfers.create_grant(
            GrantRequest(backup.transfer_id, PEER, "", "disk", None, no_base=backup.changed is None)
        )
        assert (base is None) == (backup.changed is None)
        opening = Open(
            transfer_id=backup.transfer_id,
            grant=grant,
            attempt=0,
            lane=0,
            image_bytes=len(backup.disk),
            segmentation=DEFAULT_SEGMENTATION,
            source_state=SourceState(PoolId("a" * 32), LineageId("b" * 32), backup.number),
        )
        requests: deque[bytes] = deque()
        transfers = self.transfers
        lane = serve_lane(
            iter(requests.popleft, None),
            lambda message: Ingest(transfers.find(message, role="array", name=PEER), self.clock),
        )
        try:
            return _converse(lane, requests, opening, backup)
        finally:
            lane.close()  # type: ignore[attr-defined]

    def read(self, backup: Backup) -> bytes:
        """The image, plain."""
        image = self.images.open(backup.image_id)
        pieces = self.images.read(image, 0, 0)
        return b"".join(bytes(piece.data) or bytes(piece.zero_bytes) for piece in pieces)


def _converse(lane: Iterator[Reply], requests: deque[bytes], opening: Open, backup: Backup) -> Committed:
    def ask(request: Request, *answers: type[Reply]) -> Reply:
        requests.append(wire.encode_request(request))
        while not isinstance(reply := next(lane), answers):
            pass
        return reply

    opened = ask(opening, Opened)
    assert isinstance(opened, Opened)
    if opened.committed is not None:
        return opened.committed
    key, spans = FingerprintKey(opened.key), spans_of(len(backup.disk))
    left = ~Coverage.from_bitmap(opened.durable_spans, spans).flags
    if backup.changed is not None:
        assert opened.base is not None
        left &= np.isin(np.arange(spans), list(backup.changed))
    for batch, span in enumerate(np.flatnonzero(left).tolist(), start=1):
        offer, pieces = _offer(batch, span, backup.disk, key)
        missing = ask(offer, Missing)
        assert isinstance(missing, Missing)
        if missing.wanted is not None:
            requests.append(wire.encode_request(_segments(missing, pieces)))
    committed = ask(Commit(backup.changed is not None, Figures()), Committed)
    assert isinstance(committed, Committed)
    return committed


def _offer(batch: int, span: int, disk: bytes, key: FingerprintKey) -> tuple[Offer, list[memoryview]]:
    view = memoryview(disk)[span * SPAN_BYTES : (span + 1) * SPAN_BYTES]
    hole = not any(view)
    pieces = [] if hole else list(Segmenter(DEFAULT_SEGMENTATION).cut(view))
    flags = np.zeros(spans_of(len(disk)), dtype=np.bool_)
    flags[span] = hole
    offer = Offer(
        batch=batch,
        spans=np.array([] if hole else [span], dtype="<u4"),
        counts=np.array([] if hole else [len(pieces)], dtype="<u2"),
        lengths=np.array([len(piece) for piece in pieces], dtype="<u4"),
        fingerprints=key.segments(pieces),
        hole_runs=runs_of(flags) if hole else NO_RUNS,
    )
    return offer, pieces


def _segments(missing: Missing, pieces: list[memoryview]) -> Segments:
    assert missing.wanted is not None
    stored = [compress_lz4(pieces[index]) for index in np.flatnonzero(missing.wanted).tolist()]
    return Segments(
        missing.batch,
        np.array([codec for codec, _ in stored], np.uint8),
        np.array([len(data) for _, data in stored], dtype="<u4"),
        [data for _, data in stored],
    )


# -- the runs -----------------------------------------------------------------------------------


def _run(files: Files, notes: Notes) -> None:
    target = Target(files, notes.disk)
    try:
        for backup in BACKUPS:
            notes.receipts[backup.number] = target.send(backup)
    finally:
        target.end_threads()


def _check(files: FakeFiles, index: MemorySegmentIndex, notes: Notes, where: str) -> None:
    """Start again on what a crash left; look, then let every transfer go on, and look again."""
    target = Target(files, IndexDisk(index))
    try:
        found = {image.image_id: image for image in target.store.manifests.all()}
        assert target.store.manifests.damaged == [], where
        for backup in BACKUPS:
            acknowledged = notes.receipts.get(backup.number)
            if acknowledged is not None:
                assert backup.image_id in found, where
                assert found[backup.image_id].root == acknowledged.root, where
            if backup.image_id in found:
                assert target.read(backup) == backup.disk, where
        receipts = [target.send(backup) for backup in BACKUPS]
        for backup, receipt in zip(BACKUPS, receipts, strict=True):
            acknowledged = notes.receipts.get(backup.number, receipt)
            assert (receipt.root, receipt.image_id) == (acknowledged.root, backup.image_id), where
            assert target.read(backup) == backup.disk, where
        assert receipts[0].root == receipts[2].root, where
        assert receipts[0].root != receipts[1].root, where
        assert len(target.store.manifests.all()) == len(BACKUPS), where
    finally:
        target.end_threads()


def _op_count() -> int:
    whole = FakeFiles()
    _run(whole, Notes())
    return whole.op_count


def _cut(cut: int) -> tuple[FakeFiles, Notes]:
    """Run until the power goes at that primitive change."""
    notes, files = Notes(), FakeFiles()
    files.crash_after(cut)
    with pytest.raises(PowerCut):
        _run(files, notes)
    return files, notes


def _check_states(cuts: Iterable[int], states_max: int) -> None:
    for cut in cuts:
        files, notes = _cut(cut)
        for number, state in enumerate(files.post_crash_states(maximum=states_max, seed=cut)):
            # Every third start finds the index gone, too.
            lost = (cut + number) % 3 == 0
            index = MemorySegmentIndex() if lost else notes.disk.batches[-1].copy()
            _check(state, index, notes, f"cut {cut}, index lost: {lost}, {state.story}")


@pytest.mark.parametrize("phase", [secrets.randbelow(STRIDE)])
def test_a_cut_leaves_whole_images_and_transfers_that_commit(phase: int) -> None:
    """A share of the cuts, another one in each run; the campaign tries them all."""
    count = _op_count()
    assert count > 100
    _check_states(range(phase, count, STRIDE), states_max=2)


@pytest.mark.campaign
@pytest.mark.timeout(0)
def test_every_state_after_every_cut() -> None:
    _check_states(range(_op_count()), states_max=48)


@pytest.mark.parametrize("phase", [secrets.randbelow(STRIDE)])
def test_a_killed_process_leaves_whole_images_and_transfers_that_commit(phase: int) -> None:
    """What was written is in the page cache, synced or not, and the next start builds on it."""
    for cut in range(phase, _op_count(), STRIDE):
        files, notes = _cut(cut)
        _check(files.after_kill(), notes.disk.batches[-1].copy(), notes, f"kill at {cut}")


def _check_faults(kind: str, places: Iterable[int]) -> None:
    """One primitive change fails; the error is ours, and a restart brings all transfers home."""
    tried = failed = 0
    for at in places:
        notes, files = Notes(), FakeFiles()
        files.fail_after(at, kind)
        tried += 1
        try:
            _run(files, notes)
        except ArrayliftError:
            failed += 1
        _check(files.after_kill(), notes.disk.batches[-1].copy(), notes, f"{kind} at {at}")
    assert failed > tried // 4


@pytest.mark.parametrize("kind", ["eio", "enospc"])
@pytest.mark.parametrize("phase", [secrets.randbelow(STRIDE)])
def test_a_disk_that_fails_once_never_makes_a_false_image(kind: str, phase: int) -> None:
    _check_faults(kind, range(phase, _op_count(), STRIDE))


@pytest.mark.campaign
@pytest.mark.parametrize("kind", ["eio", "enospc"])
def test_every_change_fails_once(kind: str) -> None:
    _check_faults(kind, range(_op_count()))
