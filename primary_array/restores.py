"""Restores of an array: who was granted what, which are under way, what a stop left behind.

Invariants:
  S1 a restore is opened by the target that its grant names, with its grant, only.
  S2 a restore that nobody continued for its lease is aborted and its draft removed; leases
     run on the monotonic clock and restart in full after a restart.
Limits: RESTORES_MAX restores. Callers: any thread; the reaper is a thread of its own.
Source: US 2016/0170666 [0045].
"""

from __future__ import annotations

import hmac
import threading
from collections import deque
from dataclasses import dataclass

import numpy as np

from arraylift.clock import Clock
from arraylift.errors import (
    AlreadyExists,
    ArrayliftError,
    Corruption,
    InvalidRequest,
    LeaseLost,
    NotFound,
    NotPermitted,
    Overloaded,
)
from arraylift.exchange.coverage import Coverage
from arraylift.exchange.messages import U32, Commit, Committed, Figures, Flags, Limits, Open, Opened
from arraylift.exchange.receiver import Arrived, Batch
from arraylift.exchange.serve_lane import cut_short
from arraylift.exchange.verify import plain_segments
from arraylift.grants import grant_for
from arraylift.ids import ImageId, TransferId, VolumeId
from arraylift.logs import get_logger
from arraylift.segments.tree import encode_leaf
from arraylift.sizes import spans_of
from primary_array.pool import Pool
from primary_array.pool_types import VolumeInfo
from primary_array.restore_draft import RestoreDraft, RestoreGrant, decode_tag, encode_tag
from primary_array.span_writer import SpanWriter

RESTORES_MAX = 64
LEASE_SECONDS = 3600
REAP_SECONDS = 5.0
SENDER_ROLE = "target"
"""Of the certificate that a sender shows: a name alone could be another daemon's."""

_log = get_logger("restores")


@dataclass(slots=True)
class _Entry:
    grant: RestoreGrant
    lease_until: float
    restore: RestoreDraft | None = None
    lanes: int = 0


class Restores:
    """The registry."""

    def __init__(
        self,
        pool: Pool,
        grant_secret: bytes,
        *,
        clock: Clock,
        limits: Limits,
        lease_seconds: int = LEASE_SECONDS,
    ) -> None:
        self._pool = pool
        self._grant_secret = grant_secret
        self._clock = clock
        self.limits = limits
        self.lease_seconds = lease_seconds
        self._lock = threading.Lock()
        self._entries: dict[TransferId, _Entry] = {}
        self._recover()
        self._stop = threading.Event()
        self._reaper = threading.Thread(target=self._reap_for_ever, name="restore-reaper", daemon=True)
        self._reaper.start()

    def _recover(self) -> None:
        """Take up what a stop left: drafts whose note can be read; others are removed."""
        for info in self._pool.drafts():
            try:
                if info.tag is None:
                    raise Corruption("it has no progress note")
                grant, opened, written = decode_tag(info.tag)
            except Corruption as error:
                _log.error("draft_removed", draft=info.draft_id, error=str(error))
                self._pool.resume_draft(info.draft_id).abort()
                continue
            draft = self._pool.resume_draft(info.draft_id)
            restore = RestoreDraft(grant, draft, opened, written, self._clock)
            self._entries[grant.transfer_id] = _Entry(grant, self._lease_end(), restore)

    def _lease_end(self) -> float:
        return self._clock.monotonic() + self.lease_seconds

    # -- grants ---------------------------------------------------------------------------------

    def prepare(self, transfer_id: TransferId, *, target: str, volume_name: str) -> bytes:
        """Return the grant; idempotent by transfer id. Raises AlreadyExists, Overloaded."""
        grant = RestoreGrant(
            transfer_id, target, volume_name, grant_for(self._grant_secret, transfer_id, target)
        )
        with self._lock:
            entry, made = self._entries.get(transfer_id), self._made(transfer_id)
            names = [entry.grant.volume_name] if entry else [made.name] if made else []
            if names:
                if names != [volume_name] or (entry and entry.grant.target != target):
                    raise AlreadyExists(
                        f"transfer {transfer_id} was granted for something else",
                        next_step="make a new transfer id",
                    )
                return grant.grant
            if len(self._entries) >= RESTORES_MAX:
                raise Overloaded(f"{RESTORES_MAX} restores are open", next_step="let some end or lapse")
            self._check_free(volume_name)
            self._entries[transfer_id] = _Entry(grant, self._lease_end())
            return grant.grant

    def _check_free(self, volume_name: str) -> None:
        taken = {volume.name for volume in self._pool.volumes()}
        taken |= {draft.name for draft in self._pool.drafts()}
        taken |= {entry.grant.volume_name for entry in self._entries.values()}
        if volume_name in taken:
            raise AlreadyExists(
                f"volume {volume_name} exists already", subject=volume_name, next_step="choose another name"
            )

    def _made(self, transfer_id: TransferId) -> VolumeInfo | None:
        """The volume that this restore made: it bears the transfer's id (S3)."""
        made = (volume for volume in self._pool.volumes() if volume.volume_id == VolumeId(transfer_id))
        return next(made, None)

    # -- opening --------------------------------------------------------------------------------

    def find(self, message: Open, *, role: str, name: str) -> Restore:
        """Return the restore that ``peer`` opens (S1). Raises NotFound, NotPermitted."""
        expected = grant_for(self._grant_secret, message.transfer_id, name)
        if role != SENDER_ROLE or not hmac.compare_digest(expected, message.grant):
            raise NotPermitted(
                f"{role} {name} holds no grant for restore {message.transfer_id}",
                next_step="prepare the restore for this target",
            )
        with self._lock:
            if message.transfer_id in self._entries:
                return Restore(self, message, None)
            made = self._made(message.transfer_id)
        if made is None or made.origin is None:
            raise _lapsed(message.transfer_id)
        figures = Figures(spans_total=spans_of(made.size_bytes))
        return Restore(self, message, Committed(made.origin.root, ImageId(made.volume_id), figures))

    def begin(self, message: Open) -> tuple[RestoreDraft, int]:
        """Begin or join an attempt; returns it and its number. Raises LeaseLost, Conflict."""
        if len(message.key) != 32 or len(message.root) != 32:
            raise InvalidRequest("a restore needs the key and the root of its image")
        with self._lock:
            entry = self._entries.get(message.transfer_id)
            if entry is None:  # the reaper was faster
                raise _lapsed(message.transfer_id)
            entry.lease_until = self._lease_end()
            if entry.restore is None:
                entry.restore = self._new(entry.grant, message)
            restore = entry.restore
            if message.attempt == 0:
                restore.begin_attempt(message)
            restore.check(message.attempt or restore.attempt)
            entry.lanes += 1
            return restore, restore.attempt

    def _new(self, grant: RestoreGrant, message: Open) -> RestoreDraft:
        volume_id = VolumeId(grant.transfer_id)  # S3
        draft = self._pool.begin_volume(grant.volume_name, message.image_bytes, volume_id=volume_id)
        written = Coverage(spans_of(message.image_bytes))
        draft.save_progress(encode_tag(grant, message, written))
        return RestoreDraft(grant, draft, message, written, self._clock)

    def lane_ended(self, transfer_id: TransferId) -> None:
        """A lane is over; its restore stays for the lease."""
        with self._lock:
            entry = self._entries.get(transfer_id)
            if entry is not None:
                entry.lanes -= 1
                entry.lease_until = self._lease_end()

    def ended(self, restore: RestoreDraft, receipt: Committed) -> None:
        """The volume exists; a sender that lost the answer finds it by its id (S3)."""
        with self._lock:
            self._entries.pop(restore.grant.transfer_id, None)
        _log.info("restore_committed", volume=restore.grant.volume_name, root=receipt.root.hex())

    # -- leases ---------------------------------------------------------------------------------

    def _reap_for_ever(self) -> None:
        while not self._stop.wait(REAP_SECONDS):
            self.reap()

    def reap(self) -> None:
        """Abort what nobody continued (S2)."""
        now = self._clock.monotonic()
        with self._lock:
            lapsed = [e for e in self._entries.values() if e.lanes <= 0 and now > e.lease_until]
            for entry in lapsed:
                del self._entries[entry.grant.transfer_id]
        for entry in lapsed:
            _log.info("restore_lapsed", transfer=entry.grant.transfer_id)
            _abort(entry, LeaseLost("the restore's lease lapsed"))

    def revoke(self, transfer_id: TransferId) -> None:
        """Give a restore up that has not committed; does nothing for any other."""
        with self._lock:
            entry = self._entries.pop(transfer_id, None)
        if entry is not None:
            _log.info("restore_revoked", transfer=transfer_id)
            _abort(entry, LeaseLost("the restore was given up"))

    def close(self) -> None:
        """Stop the reaper; drafts stay as their notes say."""
        self._stop.set()
        self._reaper.join()


class Restore:
    """A restore as its sender sees it (exchange.serve_lane.Receiving)."""

    def __init__(self, restores: Restores, message: Open, receipt: Committed | None) -> None:
        self._restores = restores
        self._receipt = receipt
        self._transfer_id = message.transfer_id
        self._entered: tuple[RestoreDraft, int] | None = None
        self.limits = restores.limits

    def open(self, message: Open) -> Opened:
        """Begin or join an attempt, or answer with the receipt."""
        if self._receipt is not None:
            return self._answer(0, b"", self._receipt)
        restore, attempt = self._restores.begin(message)
        self._entered = (restore, attempt)
        return self._answer(attempt, restore.written.to_bitmap(), None)

    def _answer(self, attempt: int, durable: bytes, receipt: Committed | None) -> Opened:
        return Opened(
            attempt=attempt,
            limits=self.limits,
            tenant="",
            key=b"",
            key_id=b"",
            lease_seconds=self._restores.lease_seconds,
            durable_spans=durable,
            committed=receipt,
        )

    def lane(self, number: int) -> RestoreLane:  # noqa: ARG002 - the lanes of a restore are alike
        """Enter the lane that ``open`` admitted."""
        assert self._entered is not None, "open comes first"
        return RestoreLane(self._restores, *self._entered)


class RestoreLane:
    """One lane of a restore (exchange.serve_lane.LaneSink)."""

    def __init__(self, restores: Restores, restore: RestoreDraft, attempt: int) -> None:
        self._restores = restores
        self._restore = restore
        self._attempt = attempt
        self._writer = SpanWriter(restore.write_span)
        self._incomplete: deque[_Spans] = deque()
        self._complete_batch = 0
        self._durable_batch = 0

    def offered(self, batch: Batch) -> tuple[Flags | None, U32 | None]:
        """A new volume lacks every segment."""
        self._restore.check(self._attempt)
        self._restore.claim(batch.offer)
        if len(batch.offer.lengths):
            self._incomplete.append(_Spans(batch))
            return np.ones(len(batch.offer.lengths), dtype=np.bool_), None
        if not self._incomplete:
            self._complete_batch = batch.number
        return None, None

    def arrived(self, arrived: Arrived) -> None:
        """Verify segments, and write the spans that are whole with them."""
        self._restore.check(self._attempt)
        spans = self._incomplete[0]
        assert spans.batch is arrived.batch, "segments come in batch order"
        spans.add(plain_segments(arrived, self._restore.key))
        for span, plain, leaf in spans.whole():
            self._writer.put(span, plain, self._restore.key.node(leaf))
        while self._incomplete and self._incomplete[0].batch.complete:
            self._complete_batch = self._incomplete.popleft().batch.number

    def advance(self, *, now: bool) -> tuple[int, int]:
        """Save progress when it is due, or when the sender waits for it."""
        self._restore.check(self._attempt)
        if self._complete_batch > self._durable_batch and (now or self._restore.progress_due):
            self._writer.drain()
            self._restore.save()
            self._durable_batch = self._complete_batch
        return self._durable_batch, self._restore.bytes_written

    def flush(self) -> tuple[int, int]:
        """Make everything that arrived durable."""
        if self._incomplete:
            raise cut_short()
        return self.advance(now=True)

    def commit(self, message: Commit) -> Committed:
        """Make the volume."""
        self._restore.check(self._attempt)
        receipt = self._restore.commit(message)
        self._restores.ended(self._restore, receipt)
        return receipt

    def close(self, cause: ArrayliftError | None) -> None:
        """The draft stays for the lease; a lane that did not end as it should ends its attempt."""
        self._writer.close()
        if cause is not None and self._attempt == self._restore.attempt:
            self._restore.fail(cause)
        self._restores.lane_ended(self._restore.grant.transfer_id)


class _Spans:
    """Plain segments of a batch on their way to being whole spans."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self._counts = deque(batch.offer.counts.tolist())
        self._spans = deque(batch.offer.spans.tolist())
        self._pieces: deque[bytes | memoryview] = deque()
        self._at = 0

    def add(self, pieces: list[bytes | memoryview]) -> None:
        """Take segments in the order of the offer; copies what belongs to the message."""
        self._pieces.extend(pieces)

    def whole(self) -> list[tuple[int, bytes, bytes]]:
        """Return (span, plain bytes, encoded leaf) of each span that is whole now."""
        done = []
        offer = self.batch.offer
        lengths, fingerprints = memoryview(offer.lengths.tobytes()), memoryview(offer.fingerprints)
        while self._counts and len(self._pieces) >= self._counts[0]:
            count = self._counts.popleft()
            plain = b"".join(self._pieces.popleft() for _ in range(count))
            end = self._at + count
            leaf = encode_leaf(lengths[4 * self._at : 4 * end], fingerprints[32 * self._at : 32 * end])
            done.append((self._spans.popleft(), plain, leaf))
            self._at = end
        return done


def _abort(entry: _Entry, cause: ArrayliftError) -> None:
    """End the lanes of a restore that is no longer registered, then remove what they wrote."""
    if entry.restore is not None:
        entry.restore.fail(cause)
        entry.restore.draft.abort()


def _lapsed(transfer_id: TransferId) -> NotFound:
    return NotFound(
        f"there is no restore {transfer_id}", next_step="its lease may have lapsed; prepare it again"
    )
