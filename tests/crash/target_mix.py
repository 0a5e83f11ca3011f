"""What clients do to a target daemon in a kill loop, and what they may rely on afterwards.

Images cost little: spans of sixteen segments of 64 KiB out of a pool that all share. A client notes what
it was told and what it was not told any more; ``Notes.settle`` holds the restarted daemon to it.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np

from arraylift import pki
from arraylift.errors import NotFound, WrongState
from arraylift.exchange.coverage import Coverage
from arraylift.exchange.hole_batch import hole_batches
from arraylift.exchange.lane import Prepared, commit_lane, open_lane, run_lane
from arraylift.exchange.messages import NO_RUNS, Commit, Figures, Offer, Open, Opened, Segments
from arraylift.exchange.peers import ExchangePeers
from arraylift.exchange.sender import SenderLane, Wanted
from arraylift.ids import TransferId
from arraylift.rpc.channel import call, connect, stream
from arraylift.segments.codecs import compress_lz4
from arraylift.segments.fingerprint import FingerprintKey
from arraylift.segments.segmentation import DEFAULT_SEGMENTATION
from arraylift.sizes import KIB, SPAN_BYTES
from arraylift.v1 import image_pb2, image_pb2_grpc, target_admin_pb2, target_admin_pb2_grpc

SEGMENT_BYTES = 64 * KIB
SEGMENTS = SPAN_BYTES // SEGMENT_BYTES
SPANS_MAX = 4
IMAGES_MAX = 6
NAMES = ("vm1/disk0", "vm2/disk0", "vm3/disk0")
CALL_SECONDS = 20.0

Span = tuple[int, ...]
"""Numbers of its segments; () for a hole."""
Content = tuple[Span, ...]


@lru_cache(maxsize=512)
def segment(number: int) -> bytes:
    """Half noise, half nothing, by number."""
    return np.random.default_rng(number).bytes(SEGMENT_BYTES // 2) + bytes(SEGMENT_BYTES // 2)


@lru_cache(maxsize=512)
def stored(number: int) -> tuple[int, bytes]:
    codec, data = compress_lz4(segment(number))
    return int(codec), bytes(data)


def span_bytes(span: Span) -> bytes:
    return b"".join(map(segment, span)) if span else bytes(SPAN_BYTES)


@dataclass(frozen=True)
class Sending:
    """A transfer whose end nobody has told yet."""

    transfer_id: TransferId
    grant: bytes
    content: Content


@dataclass
class Notes:
    """What the clients were told; any thread, under ``lock``."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    images: dict[str, Content] = field(default_factory=dict)
    """Acknowledged, and not asked to be deleted."""
    sending: dict[str, Sending] = field(default_factory=dict)
    deleting: dict[str, Content] = field(default_factory=dict)
    backups: dict[str, str] = field(default_factory=dict)
    """Published, and the one image that each names; an image is named once."""
    unsure_backups: dict[str, str] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)

    def count(self, what: str) -> None:
        with self.lock:
            self.done[what] = self.done.get(what, 0) + 1


class _Batch:
    """One span as a ``Prepared``."""

    def __init__(self, span: int, content: Span, key: FingerprintKey) -> None:
        self._span = span
        self._content = content
        self._fingerprints = key.segments(map(segment, content))

    def offer(self, batch: int) -> Offer:
        return Offer(
            batch=batch,
            spans=np.array([self._span], dtype="<u4"),
            counts=np.array([SEGMENTS], dtype="<u2"),
            lengths=np.full(SEGMENTS, SEGMENT_BYTES, dtype="<u4"),
            fingerprints=self._fingerprints,
            hole_runs=NO_RUNS,
        )

    def segments(self, wanted: Wanted) -> Iterator[tuple[Segments, int]]:
        packed = [stored(self._content[index]) for index in wanted.indexes.tolist()]
        sizes = np.array([len(data) for _, data in packed], dtype="<u4")
        codecs = np.array([codec for codec, _ in packed], dtype="u1")
        yield Segments(wanted.batch, codecs, sizes, [data for _, data in packed]), SEGMENT_BYTES * len(packed)

    def release(self) -> None:
        """Nothing is held."""


class Clients:
    """An array and an operator of one target; their channels reconnect by themselves."""

    def __init__(self, address: str, pki_directory: str, notes: Notes) -> None:
        self.notes = notes
        self._address = address
        self._peers = ExchangePeers(pki.load(pki_directory, "array", "array1"), "target")
        self._channel = connect(address, pki.load(pki_directory, "operator", "admin"), "target")
        self.images = image_pb2_grpc.ImageServiceStub(self._channel)
        self.admin = target_admin_pb2_grpc.TargetAdminServiceStub(self._channel)

    def close(self) -> None:
        self._peers.close()
        self._channel.close()

    def call(self, method: Callable[..., Any], request: object) -> Any:
        return call(method, request, peer="target", timeout_seconds=CALL_SECONDS)

    def follow(self, method: Callable[..., Any], request: object) -> list[Any]:
        """All messages of a streaming call."""
        return list(stream(method, request, peer="target", timeout_seconds=CALL_SECONDS))

    # -- sending --------------------------------------------------------------------------------

    def back_up(self, draw: random.Random) -> None:
        """A full image, or the next one of its name; deletes one first where there are many."""
        if len(self.notes.images) >= IMAGES_MAX:
            self.delete(draw)
        transfer_id, name = TransferId(f"{draw.getrandbits(128):032x}"), draw.choice(NAMES)
        request = target_admin_pb2.CreateGrantRequest(
            transfer_id=transfer_id, array="array1", image_name=name, no_base=draw.random() < 0.4
        )
        made = self.call(self.admin.CreateGrant, request)
        notes = self.notes
        with notes.lock:
            base = notes.images.get(made.base_image_id)
            content = changed(base, draw) if base else fresh(draw)
            notes.sending[transfer_id] = Sending(transfer_id, made.grant, content)
        changes = None if base is None else {at for at, one in enumerate(content) if one != base[at]}
        self._send(notes.sending[transfer_id], changes)

    def resume(self, sending: Sending) -> None:
        """Once more, whole: what is durable or committed already is not sent again."""
        self._send(sending, None)

    def _send(self, sending: Sending, changes: set[int] | None) -> None:
        opening = Open(
            transfer_id=sending.transfer_id,
            grant=sending.grant,
            attempt=0,
            lane=0,
            image_bytes=len(sending.content) * SPAN_BYTES,
            segmentation=DEFAULT_SEGMENTATION,
            source_state=None,
        )
        lane_stream, lane = self._peers.open_stream(self._address), SenderLane()
        try:
            opened = open_lane(lane_stream, lane, opening)
            receipt = opened.committed
            if receipt is None:
                inherit = changes is not None and opened.base is not None
                self._offer(replace(opening, attempt=opened.attempt, lane=1), opened, sending, changes)
                receipt = commit_lane(lane_stream, lane, Commit(inherit_base=inherit, figures=Figures()))
        finally:
            lane_stream.cancel()
        assert str(receipt.image_id) == sending.transfer_id, "an image bears its transfer's id"
        with self.notes.lock:
            self.notes.sending.pop(sending.transfer_id, None)
            self.notes.images[receipt.image_id] = sending.content
        self.notes.count("committed")

    def _offer(self, opening: Open, opened: Opened, sending: Sending, changes: set[int] | None) -> None:
        """Send on a lane of its own, which ends when all of it is durable."""
        key, spans = FingerprintKey(opened.key), len(sending.content)
        left = ~Coverage.from_bitmap(opened.durable_spans, spans).flags
        if changes is not None and opened.base is not None:
            left &= np.isin(np.arange(spans), list(changes))
        holes = np.array([not one for one in sending.content]) & left

        def batches() -> Iterator[Prepared]:
            yield from hole_batches(holes)
            for span in np.flatnonzero(left & ~holes).tolist():
                yield _Batch(span, sending.content[span], key)

        lane_stream, lane = self._peers.open_stream(self._address), SenderLane()
        try:
            open_lane(lane_stream, lane, opening)
            lane.use_lanes(1)
            run_lane(lane_stream, lane, batches(), cancelled=threading.Event(), on_answered=lambda _: None)
        finally:
            lane_stream.cancel()

    # -- keeping --------------------------------------------------------------------------------

    def delete(self, draw: random.Random) -> None:
        """Delete an image that no backup names."""
        notes = self.notes
        with notes.lock:
            if len(notes.images) <= 1 or (len(notes.images) < IMAGES_MAX and draw.random() < 0.5):
                return
            named = {*notes.backups.values(), *notes.unsure_backups.values()}
            free = sorted(notes.images.keys() - named)
            if not free:
                return
            image_id = draw.choice(free)
            notes.deleting[image_id] = notes.images.pop(image_id)
        try:
            self.call(self.images.DeleteImage, image_pb2.DeleteImageRequest(image_id=image_id))
        except WrongState:  # a backup names it
            with notes.lock:
                notes.images[image_id] = notes.deleting.pop(image_id)
            return
        with notes.lock:
            del notes.deleting[image_id]
        notes.count("deleted")

    def collect(self, draw: random.Random) -> None:
        request = target_admin_pb2.CollectGarbageRequest(live_percent_min=draw.choice([0, 90]))
        self.follow(self.admin.CollectGarbage, request)
        self.notes.count("collected")

    def scrub(self, draw: random.Random) -> None:
        request = target_admin_pb2.ScrubRequest(restart=draw.random() < 0.5)
        self.follow(self.admin.Scrub, request)
        self.notes.count("scrubbed")

    def rebuild(self, _draw: random.Random) -> None:
        self.follow(self.admin.RebuildUnit, target_admin_pb2.RebuildUnitRequest())
        self.notes.count("rebuilt")

    def publish(self, draw: random.Random) -> None:
        """Publish a backup over an image that none names."""
        notes = self.notes
        with notes.lock:
            named = {*notes.backups.values(), *notes.unsure_backups.values()}
            free = sorted(notes.images.keys() - named)
            if not free or len(notes.backups) > 2:
                return
            backup_id, image_id = f"{draw.getrandbits(128):032x}", draw.choice(free)
            notes.unsure_backups[backup_id] = image_id
        manifest = image_pb2.BackupManifest(
            backup_id=backup_id,
            tenant="default",
            vm_id=f"{1:032x}",
            vm_name="vm1",
            snapshot_at_ns=1,
            images=[image_pb2.BackupImage(disk_name="disk0", image_id=image_id)],
            attributes=b"of the test",
        )
        try:
            self.call(self.images.PublishBackup, image_pb2.PublishBackupRequest(manifest=manifest))
        except NotFound:  # it was deleted meanwhile
            with notes.lock:
                del notes.unsure_backups[backup_id]
            return
        with notes.lock:
            notes.backups[backup_id] = notes.unsure_backups.pop(backup_id)
        notes.count("published")

    def withdraw(self, draw: random.Random) -> None:
        """Delete a backup, and with it its image."""
        notes = self.notes
        with notes.lock:
            if len(notes.backups) < 2:
                return
            backup_id = draw.choice(sorted(notes.backups))
            image_id = notes.unsure_backups[backup_id] = notes.backups.pop(backup_id)
            notes.deleting[image_id] = notes.images.pop(image_id)
        self.call(
            self.images.DeleteBackupManifest, image_pb2.DeleteBackupManifestRequest(backup_id=backup_id)
        )
        with notes.lock:
            del notes.unsure_backups[backup_id], notes.deleting[image_id]
        notes.count("withdrawn")

    # -- looking --------------------------------------------------------------------------------

    def read(self, image_id: str) -> list[bytes]:
        """The spans of an image."""
        request = image_pb2.ReadRangeRequest(image_id=image_id)
        content = bytearray()
        for piece in self.follow(self.images.ReadRange, request):
            assert piece.offset == len(content), "pieces come in order"
            content += piece.data or bytes(piece.zero_bytes)
        return [bytes(content[at : at + SPAN_BYTES]) for at in range(0, len(content), SPAN_BYTES)]

    def settle(self, draw: random.Random) -> None:
        """Hold a restarted target to what was acknowledged, and learn what became of the rest."""
        notes = self.notes
        listed = {one.image_id for one in self._listed(self.images.ListImages, image_pb2.ListImagesRequest())}
        manifests = self._listed(self.images.ListBackupManifests, image_pb2.ListBackupManifestsRequest())
        backups = {one.backup_id: one.images[0].image_id for one in manifests}
        with notes.lock:
            unsure = {one: sent.content for one, sent in notes.sending.items()} | notes.deleting
            assert notes.images.keys() <= listed, "an acknowledged image is lost"
            assert listed <= notes.images.keys() | unsure.keys(), "an image that nobody sent"
            known_backups = notes.backups | notes.unsure_backups
            assert notes.backups.keys() <= backups.keys(), "an acknowledged backup is lost"
            assert backups.items() <= known_backups.items(), "a backup that nobody published"
            assert set(backups.values()) <= listed, "a backup names an image that is not there"
            known = notes.images | {one: unsure[one] for one in listed & unsure.keys()}
        for image_id, content in known.items():
            assert self.read(image_id) == [span_bytes(span) for span in content], f"image {image_id} differs"
        with notes.lock:
            interrupted = [sent for one, sent in notes.sending.items() if one not in listed]
            notes.images, notes.backups = known, backups
            notes.sending, notes.deleting, notes.unsure_backups = {}, {}, {}
        for sending in interrupted:
            if draw.random() < 0.7:
                notes.sending[sending.transfer_id] = sending
                self.resume(sending)
                notes.count("resumed")

    def _listed(self, method: Callable[..., Any], request: Any) -> list[Any]:
        answer = self.call(method, request)
        return [*getattr(answer, "images", ()), *getattr(answer, "manifests", ())]


def fresh(draw: random.Random) -> Content:
    """A few spans, of segments old and new; never one hole."""
    spans = [_span(draw) for _ in range(draw.randrange(1, SPANS_MAX + 1))]
    return tuple(spans) if any(spans) else (*spans[:-1], tuple(range(SEGMENTS)))


def changed(base: Content, draw: random.Random) -> Content:
    """The same disk a day later."""
    spans = list(base)
    spans[draw.randrange(len(spans))] = _span(draw) or tuple(range(SEGMENTS))
    return tuple(spans)


def _span(draw: random.Random) -> Span:
    if draw.random() < 0.15:
        return ()
    start = draw.randrange(1 << 20) if draw.random() < 0.4 else 64 * draw.randrange(4)
    return tuple(start + (draw.randrange(64) if draw.random() < 0.3 else at) for at in range(SEGMENTS))
