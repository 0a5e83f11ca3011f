"""Take one lane of a backup in: look up, verify, pack into containers, log what is durable.

The stream's handler calls in from its own thread, without a reader thread between
(FACTS: the hand-over costs more than it gains). Containers are written by the seal
queue while the lane fills the next.
Invariants:
  G1 a segment enters a container only after its fingerprint was recomputed (law 6).
  G2 a batch is logged, and then called Durable, only when every segment of it lies in a
     sealed container whose index batch is synced, its own copies or others' (law 7).
  G3 spans equal to the base's need no look-up: the base's root promises them (REF).
Limits: one container buffer a lane; ``Limits`` of the exchange; OFFERS_BYTES_MAX of offers that wait
to become durable, which the exchange leaves to the sender.
Callers: the lane's handler thread; ``rotate`` also from other lanes' threads.
Source: US 2016/0170666 [0040], [0055].
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from arraylift.clock import Clock
from arraylift.errors import ArrayliftError, InvalidRequest, Overloaded
from arraylift.exchange.messages import Commit, Committed, Flags, Offer, Open, Opened
from arraylift.exchange.receiver import Arrived, Batch
from arraylift.exchange.serve_lane import cut_short
from arraylift.exchange.verify import plain_segments
from arraylift.segments.tree import encode_leaf
from dedup_target.attempt import Pending
from dedup_target.commit import commit
from dedup_target.container_buffer import ContainerBuffer
from dedup_target.container_format import Kind
from dedup_target.container_store import SealedContainer
from dedup_target.seal_queue import SealJob, Ticket
from dedup_target.transfer import Transfer
from dedup_target.transfer_format import LoggedLeaves

CONTAINER_SECONDS_MAX = 2.0
"""A container is sealed at this age, so that Durable is never far behind."""
LOG_BATCHES, LOG_SECONDS = 32, 0.25
"""Durable batches are logged together: one sync for this many, or this often."""
FLUSH_SECONDS_MAX = 120.0
OFFERS_BYTES_MAX = 32 << 20
"""Of a lane: 3 GiB of image and more, which no sender is ahead that sends what it is asked for."""
OFFER_BYTES = 1024
"""What an offer costs besides its arrays."""


@dataclass(slots=True)
class _Open:
    """A batch that is not durable yet."""

    batch: Batch
    leaves: list[bytes]
    """Leaf fingerprint of each span of the offer."""
    foreign: list[Pending] = field(default_factory=list)
    """Copies that others asked for."""
    own: Ticket | None = None
    """The last container that holds segments of this batch."""

    @property
    def held_bytes(self) -> int:
        offer = self.batch.offer
        arrays = offer.spans.nbytes + offer.lengths.nbytes + offer.hole_runs.nbytes
        return OFFER_BYTES + arrays + len(offer.fingerprints) + 64 * len(self.leaves)

    def durable(self) -> bool:
        if not self.batch.complete or not (self.own is None or self.own.sealed):
            return False
        return all(pending.sealed for pending in self.foreign)


class Ingest:
    """A transfer as its sender sees it: open it, then run lanes."""

    def __init__(self, transfer: Transfer, clock: Clock) -> None:
        self._transfer = transfer
        self._clock = clock
        self._attempt = 0
        self.limits = transfer.limits

    def open(self, message: Open) -> Opened:
        """Begin or join an attempt."""
        opened = self._transfer.open(message)
        self._attempt = opened.attempt
        return opened

    def lane(self, number: int) -> LaneIngest:
        """Enter a lane that ``open`` admitted. Raises LeaseLost if another attempt took over since."""
        with self._transfer.lock:
            self._transfer.check_current(self._attempt)
            lane = LaneIngest(self._transfer, number, self._clock)
            self._transfer.enter(number, lane)
        return lane


class LaneIngest:
    """One lane; see the module's invariants."""

    def __init__(self, transfer: Transfer, lane: int, clock: Clock) -> None:
        self._transfer = transfer
        self._attempt = transfer.attempt
        self._lane = lane
        self._clock = clock
        # Of the unit that receives now: when another one does, this attempt has been fenced.
        self._containers, self._seal_queue = transfer.store.containers, transfer.store.seal_queue
        self._lock = threading.Lock()  # guards the buffer against rotate()
        self._buffer: ContainerBuffer | None = None
        self._ticket = Ticket()
        self._buffer_keys: list[bytes] = []
        self._buffer_since = 0.0
        self._open: deque[_Open] = deque()
        self._held_bytes = 0  # of the offers in _open
        self._logged_at = clock.monotonic()
        self.durable_batch = 0

    # -- offers ---------------------------------------------------------------------------------

    def offered(self, batch: Batch) -> tuple[Flags | None, np.ndarray | None]:
        """Decide what of an offer is wanted; returns (wanted, mismatched sample spans)."""
        self._attempt.check()
        offer = batch.offer
        leaves = self._leaves_of(offer)
        same = self._same_as_base(offer, leaves)
        if offer.sample:
            odd = self._sample_mismatches(offer, same)
            if len(odd):
                return None, odd
        with self._attempt.changed:
            self._attempt.coverage.claim(offer)
        entry = _Open(batch, leaves)
        self._hold(entry)
        wanted = self._wanted(offer, same, entry)
        self._open.append(entry)
        return wanted, None

    def _hold(self, entry: _Open) -> None:
        """Count an offer until it is durable. Raises Overloaded."""
        self._held_bytes += entry.held_bytes
        if self._held_bytes > OFFERS_BYTES_MAX:
            raise Overloaded(
                f"{self._held_bytes} bytes of offers wait for segments of batch {self.durable_batch + 1}",
                next_step="open the transfer again, and send what is asked for",
            )

    def _leaves_of(self, offer: Offer) -> list[bytes]:
        node, at = self._transfer.key.node, 0
        leaves: list[bytes] = []
        fingerprints, lengths = memoryview(offer.fingerprints), memoryview(offer.lengths.tobytes())
        for count in offer.counts.tolist():
            end = at + count
            leaf = encode_leaf(lengths[4 * at : 4 * end], fingerprints[32 * at : 32 * end])
            leaves.append(node(leaf))
            at = end
        return leaves

    def _same_as_base(self, offer: Offer, leaves: list[bytes]) -> list[bool]:
        base = None
        if self._transfer.store.all_healthy:
            base = self._transfer.base_rows(offer.spans.astype(np.int64))
        if base is None:
            return [False] * len(leaves)
        return [row == leaf for row, leaf in zip(_listed(base[0]), leaves, strict=True)]

    def _sample_mismatches(self, offer: Offer, same: list[bool]) -> np.ndarray:
        odd = [span for span, equal in zip(offer.spans.tolist(), same, strict=True) if not equal]
        for first, count in offer.hole_runs.tolist():
            spans = np.arange(first, first + count)
            base = self._transfer.base_rows(spans)
            equal = ~base[0].any(axis=1) & base[1] if base is not None else np.zeros(count, dtype=np.bool_)
            odd.extend(spans[~equal].tolist())
        return np.array(odd, dtype="<u4")

    def _wanted(self, offer: Offer, same: list[bool], entry: _Open) -> Flags | None:
        if all(same):
            return None
        packed = np.frombuffer(offer.fingerprints, np.uint8).reshape(-1, 32)
        asked = np.flatnonzero(np.repeat(np.logical_not(same), offer.counts))
        transfer = self._transfer
        present = transfer.store.present(transfer.tenant, packed[asked].tobytes(), self._attempt.pins)
        absent = asked[~present]
        wanted = np.zeros(len(packed), dtype=np.bool_)
        with self._attempt.changed:
            for place, fingerprint in zip(absent.tolist(), _listed(packed[absent]), strict=True):
                under_way = self._attempt.want(fingerprint)
                if under_way is None:
                    wanted[place] = True
                else:
                    entry.foreign.append(under_way)
        return wanted

    # -- segments -------------------------------------------------------------------------------

    def arrived(self, arrived: Arrived) -> None:
        """Verify segments and pack them (G1). Raises Corruption, Overloaded, OutOfSpace."""
        self._attempt.check()
        plain_segments(arrived, self._transfer.key)
        offer, message = arrived.batch.offer, arrived.message
        packed = np.frombuffer(offer.fingerprints, np.uint8).reshape(-1, 32)[arrived.indexes]
        keys = _listed(packed)
        payload_bytes = sum(map(len, message.payload))
        with self._lock:
            buffer = self._room_for(len(keys), payload_bytes)
            buffer.append_frame(
                fingerprints=packed.tobytes(),
                stored_bytes=message.stored_lengths,
                plain_bytes=offer.lengths[arrived.indexes],
                codecs=message.codecs,
                payload=message.payload,
            )
            self._buffer_keys.extend(keys)
            ticket = self._ticket
        with self._attempt.changed:
            for key in keys:
                self._attempt.pending[key].ticket = ticket
        for entry in self._open:
            if entry.batch is arrived.batch:
                entry.own = ticket
                break

    def _room_for(self, count: int, payload_bytes: int) -> ContainerBuffer:
        if self._buffer is not None and not self._buffer.fits(count, payload_bytes):
            self._submit()
        if self._buffer is None:
            transfer = self._transfer
            self._buffer = self._containers.acquire(
                tenant=transfer.tenant, key_id=transfer.key.key_id, kind=Kind.DATA
            )
            self._attempt.pins.add([self._buffer.container_id])
            self._ticket = Ticket()
            self._buffer_since = self._clock.monotonic()
        return self._buffer

    # -- sealing --------------------------------------------------------------------------------

    def rotate(self, *, older_than_seconds: float, wait: bool = True) -> None:
        """Have the container sealed if it is that old; without ``wait``, unless the lane is busy, as one
        that waits for a buffer is. Any lane's thread, and the reaper's."""
        if not self._lock.acquire(blocking=wait):
            return
        try:
            age = self._clock.monotonic() - self._buffer_since
            if self._buffer is not None and age >= older_than_seconds:
                self._submit()
        finally:
            self._lock.release()

    def _submit(self) -> None:
        buffer, keys = self._buffer, self._buffer_keys
        assert buffer is not None
        self._buffer, self._buffer_keys = None, []
        attempt, transfer = self._attempt, self._transfer

        def done(sealed: SealedContainer | None, error: ArrayliftError | None) -> None:
            if sealed is None:
                attempt.fail(error or Overloaded("the container was not written"))
            else:
                transfer.bytes_stored += sealed.file_bytes  # one writer thread
                attempt.settle(keys)

        self._seal_queue.submit(SealJob(buffer, self._ticket, done))

    def advance(self, *, now: bool) -> tuple[int, int]:
        """Log batches that have become durable; returns the last one, and bytes stored (G2).

        Without ``now`` it waits for LOG_BATCHES or LOG_SECONDS to pass.
        """
        self._attempt.check()
        self.rotate(older_than_seconds=CONTAINER_SECONDS_MAX)
        clock = self._clock.monotonic()
        if not (now or len(self._open) >= LOG_BATCHES or clock - self._logged_at >= LOG_SECONDS):
            return self.durable_batch, self._transfer.bytes_stored
        ready: list[_Open] = []
        while self._open and self._open[0].durable():
            ready.append(self._open.popleft())
        self._held_bytes -= sum(entry.held_bytes for entry in ready)
        if ready:
            self._transfer.log_leaves(self._attempt, [_logged(entry) for entry in ready])
            self.durable_batch = ready[-1].batch.number
            # Only now: what becomes durable just after a look in vain must not wait as long once more.
            self._logged_at = clock
        return self.durable_batch, self._transfer.bytes_stored

    def flush(self) -> tuple[int, int]:
        """Seal what the lane holds and wait until all of it is durable."""
        self.rotate(older_than_seconds=0)
        deadline = self._clock.monotonic() + FLUSH_SECONDS_MAX
        while self._open:
            self.advance(now=True)
            if not self._open:
                break
            if not self._open[0].batch.complete:
                raise cut_short()
            self._transfer.rotate_lanes(older_than_seconds=CONTAINER_SECONDS_MAX)
            with self._attempt.changed:
                if not self._open[0].durable():
                    self._attempt.changed.wait(0.5)
            if self._clock.monotonic() > deadline:
                raise Overloaded(
                    f"a lane was not durable within {FLUSH_SECONDS_MAX:.0f} s",
                    next_step="repeat the transfer",
                )
        return self.durable_batch, self._transfer.bytes_stored

    def commit(self, message: Commit) -> Committed:
        """Make the image; this lane must be the last. Raises what ended the attempt (A2)."""
        self._attempt.check()
        if len(self._transfer.lanes) > 1:
            raise InvalidRequest(
                "Commit came while other lanes are open", next_step="end every other lane first"
            )
        return commit(self._transfer, self._attempt, message, self._clock)

    def close(self, cause: ArrayliftError | None) -> None:
        """Give the buffer up: what it holds was never promised. Other lanes may wait for segments
        that this one will never bring, so the attempt ends with its cause."""
        with self._lock:
            if self._buffer is not None:
                self._containers.release(self._buffer)
                self._buffer = None
        self._transfer.leave(self._lane, self)
        if cause is not None:
            self._attempt.fail(cause)


def _listed(packed: np.ndarray) -> list[bytes]:
    """Rows of 32 bytes as bytes objects."""
    rows: list[bytes] = packed.view("V32").ravel().tolist()
    return rows


def _logged(entry: _Open) -> LoggedLeaves:
    offer = entry.batch.offer
    return LoggedLeaves(
        spans=offer.spans,
        counts=offer.counts,
        lengths=offer.lengths,
        fingerprints=offer.fingerprints,
        leaf_fingerprints=b"".join(entry.leaves),
        hole_runs=offer.hole_runs,
    )
