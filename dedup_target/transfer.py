"""One transfer on its way in: its grant, its log, the attempt that may write to it.

Invariants:
  X1 at most one attempt is current; what an older one still does changes nothing durable
     of this transfer (law 9: fence before free).
  X2 the base is the one that the grant named, read as this target knows it; a base that
     cannot be read, or has lost a segment, is no base: everything is read, and so healed.
  X3 leaves are logged by the current attempt only, and only after their segments are sealed
     and indexed (ingest.py G2).
  X4 what an earlier attempt made durable is believed only while nothing of the store may be lost,
     and nothing was since it was last believed; else it is looked up before the next attempt builds on it.
  X5 a base whose tree turns out damaged on the way ends the attempt with Conflict: the next
     one judges the base anew (X2), as what was found is in quarantine by then.
Callers: handler threads of its lanes; ``lock`` guards attempt, log and lease.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from arraylift.clock import Clock
from arraylift.errors import (
    ArrayliftError,
    Conflict,
    Corruption,
    InvalidRequest,
    LeaseLost,
    NotFound,
    PeerUnavailable,
    WrongState,
)
from arraylift.exchange.coverage import Coverage
from arraylift.exchange.messages import Base, Committed, Figures, Flags, Limits, Open, Opened
from arraylift.ids import TenantId, TransferId
from arraylift.logs import get_logger
from arraylift.segments.fingerprint import FingerprintKey
from arraylift.segments.tree import Leaves, no_leaves
from arraylift.segments.tree_view import Places, TreeView
from arraylift.sizes import spans_of
from dedup_target.attempt import Attempt
from dedup_target.image_reader import ImageReader, OpenImage
from dedup_target.pins import PinHolder
from dedup_target.store import Store
from dedup_target.transfer_format import Attempt as LoggedAttempt
from dedup_target.transfer_format import GrantParameters, LoggedLeaves
from dedup_target.transfer_log import FrozenLog, TransferLog

_log = get_logger("transfer")


class Lane(Protocol):
    """What a transfer knows of its lanes."""

    def rotate(self, *, older_than_seconds: float, wait: bool = True) -> None:
        """Have the lane's container sealed if it is that old; without ``wait``, unless the lane is busy."""
        ...


class Transfer:
    """See the module's invariants."""

    def __init__(
        self,
        store: Store,
        images: ImageReader,
        log: TransferLog,
        *,
        limits: Limits,
        lease_seconds: int,
        clock: Clock,
    ) -> None:
        self.store = store
        self.log = log
        self.limits = limits
        self.lock = threading.RLock()
        self.tenant: TenantId = self.grant.tenant
        tenant = store.keys.by_id(self.tenant)
        self._key_bytes = tenant.key
        self.key = FingerprintKey(tenant.key)
        self.bytes_stored = 0
        """Of data containers, over the attempts that this process saw."""
        self.base: OpenImage | None = None
        self.lanes: dict[int, Lane] = {}
        self._images = images
        self.is_over = False
        """It was given up; its log is closed."""
        self._attempt: Attempt | None = None
        self._opened: Open | None = None
        self._sound_at = store.unit.unit_id, store.generation
        """The unit, and its generation, where all that is logged was there (X4)."""
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._lease_until = clock.monotonic() + lease_seconds

    @property
    def grant(self) -> GrantParameters:
        return self.log.state.grant

    @property
    def transfer_id(self) -> TransferId:
        return self.grant.transfer_id

    @property
    def attempt(self) -> Attempt:
        """The current attempt; there is one once a lane has opened."""
        assert self._attempt is not None, "X1"
        return self._attempt

    @property
    def opened(self) -> Open:
        """The message that began the current attempt."""
        assert self._opened is not None, "X1"
        return self._opened

    @property
    def base_tree(self) -> TreeView | None:
        """The base's tree, if its segmentation is the transfer's."""
        if self.base is None or self.base.manifest.segmentation != self.opened.segmentation:
            return None
        return self.base.tree

    def base_rows(self, spans: Places) -> tuple[Leaves, Flags] | None:
        """Leaf fingerprints that the base has for these spans, and whether it has them at all; None without
        a base. Reads the nodes above them. Raises Conflict (X5)."""
        base = self.base_tree
        if base is None:
            return None
        inside = spans < base.spans
        rows = no_leaves(len(spans))
        with self.believing_base():
            rows[inside] = base.leaves_at(spans[inside])
        return rows, inside

    @contextlib.contextmanager
    def believing_base(self) -> Iterator[None]:
        """Turn a node of the base that cannot be read into Conflict (X5)."""
        try:
            yield
        except Corruption as error:
            raise Conflict(
                f"the base cannot be read: {error.message}",
                subject=f"transfer {self.transfer_id}",
                next_step="open the transfer again: the base is then judged anew",
            ) from error

    # -- lease ----------------------------------------------------------------------------------

    def renew(self) -> None:
        """A lane was heard of."""
        self._lease_until = self._clock.monotonic() + self._lease_seconds

    @property
    def lapsed(self) -> bool:
        return self.is_over or (self._clock.monotonic() > self._lease_until and not self.lanes)

    # -- attempts -------------------------------------------------------------------------------

    def open(self, message: Open) -> Opened:
        """Begin the next attempt, or join the current one.

        Raises Conflict, LeaseLost, WrongState, OutOfSpace (reserve, quota).
        """
        with self.lock:
            if self.is_over:
                raise _given_up(self.transfer_id)
            self.renew()
            if self.log.state.committed is not None:
                return self._answer(self.log.state.attempt.attempt if self.log.state.attempt else 0)
            if message.attempt == 0:
                self._begin(message)
            else:
                self.check_current(message.attempt)
            self.attempt.check()
            if message.lane in self.lanes:
                raise InvalidRequest(f"lane {message.lane} is open already")
            return self._answer(self.attempt.number)

    def check_current(self, attempt: int) -> None:
        """Raise LeaseLost unless that is the number of the current attempt (X1)."""
        if self._attempt is None or attempt != self._attempt.number:
            raise LeaseLost(
                f"attempt {attempt} of transfer {self.transfer_id} is over",
                next_step="open the transfer again",
            )

    def _begin(self, message: Open) -> None:
        logged = self.log.state.attempt
        if logged is not None:
            same = (logged.image_bytes, logged.segmentation, logged.source_state)
            if same != (message.image_bytes, message.segmentation, message.source_state):
                raise WrongState(
                    f"transfer {self.transfer_id} began with another snapshot or segmentation",
                    next_step="ask for a new grant to send another snapshot",
                )
        number = logged.attempt + 1 if logged is not None else 1
        self.store.space.check_transfer(self.tenant)
        self.fence(LeaseLost(f"attempt {number} of transfer {self.transfer_id} took over"))
        generation = self.store.generation
        now = self.store.unit.unit_id, generation
        if logged is not None and not (self.store.all_healthy and now == self._sound_at):
            self.void_lost()
        self._sound_at = now
        self.base = self._open_base() if self.grant.base_image_id is not None else None
        self.log.append_attempt(
            LoggedAttempt(number, message.image_bytes, message.segmentation, message.source_state)
        )
        self.log.sync()
        coverage = Coverage(spans_of(message.image_bytes))
        coverage.flags |= self.log.state.covered
        self._opened = message
        self._attempt = Attempt(number, coverage, generation, self.store.unit.pins.holder())
        self.lanes = {}
        _log.info("attempt_opened", transfer=self.transfer_id, attempt=number, durable_spans=coverage.count)

    def fence(self, error: ArrayliftError) -> None:
        """End the current attempt, if any, with ``error`` (X1)."""
        if self._attempt is not None:
            self._attempt.fail(error)

    def _open_base(self) -> OpenImage | None:
        assert self.grant.base_image_id is not None
        try:
            base = self._images.open(self.grant.base_image_id)
            if base.unit is not self.store.unit:
                _log.info("base_in_other_unit", transfer=self.transfer_id, unit=base.unit.name)
                return None  # its root promises nothing of the unit that takes this backup
            lost = [] if self.store.all_healthy else self._images.lost_spans(base)
        except (NotFound, Corruption, PeerUnavailable) as error:
            _log.warning("base_unreadable", transfer=self.transfer_id, error=str(error))
            return None
        if lost:
            _log.warning("base_damaged", transfer=self.transfer_id, lost_spans=len(lost))
            return None
        return base

    def base_is_whole(self) -> bool:
        """Look the base up once more; forget it if it has lost anything (X2)."""
        try:
            if self.base is not None and self._images.lost_spans(self.base):
                self.base = None
        except Corruption:
            self.base = None
        return self.base is not None

    def _answer(self, attempt: int) -> Opened:
        base = self.base.manifest if self.base is not None else None
        covered = Coverage(0)
        covered.flags = self.log.state.covered
        return Opened(
            attempt=attempt,
            limits=self.limits,
            tenant=self.grant.tenant_name,
            key=self._key_bytes,
            key_id=self.key.key_id,
            lease_seconds=self._lease_seconds,
            base=Base(base.root, base.image_bytes, base.segmentation, base.source_state) if base else None,
            durable_spans=covered.to_bitmap(),
            committed=self.receipt(),
        )

    def receipt(self) -> Committed | None:
        """The receipt of a transfer that has committed."""
        done = self.log.state.committed
        return Committed(done.root, done.image_id, Figures(**done.receipt)) if done else None

    def frozen_log(self) -> FrozenLog:
        """What is durable so far, to be read by others."""
        with self.lock:
            return self.log.freeze()

    # -- writing --------------------------------------------------------------------------------

    def log_leaves(self, attempt: Attempt, batches: Sequence[LoggedLeaves]) -> None:
        """Make batches part of the transfer, durably (X3)."""
        with self.lock:
            attempt.check()
            assert attempt is self._attempt, "X1"
            for batch in batches:
                self.log.append_leaves(batch)
            self.log.sync()
            self.renew()

    def void_lost(self, pins: PinHolder | None = None) -> int:
        """Take back the spans that rest on a segment which is gone; returns how many (X4). With
        ``pins``, what is there stays."""
        store, tenant = self.store, self.tenant
        with self.lock:
            lost = [
                span
                for span, _, names in self.log.iter_leaves()
                if not (store.present(tenant, names, pins) if pins else store.contains(tenant, names)).all()
            ]
            if lost:
                _log.warning("durable_spans_lost", transfer=self.transfer_id, lost_spans=len(lost))
                self.log.append_voided(np.array(lost, dtype="<u4"))
                self.log.sync()
        return len(lost)

    def rotate_lanes(self, *, older_than_seconds: float, wait: bool = True) -> None:
        """Have old containers of every lane sealed."""
        for lane in list(self.lanes.values()):
            lane.rotate(older_than_seconds=older_than_seconds, wait=wait)

    def enter(self, number: int, lane: Lane) -> None:
        """A lane that ``open`` admitted begins."""
        with self.lock:
            self.lanes[number] = lane

    def leave(self, number: int, lane: Lane) -> None:
        """A lane has ended, however."""
        with self.lock:
            if self.lanes.get(number) is lane:
                del self.lanes[number]
            self.renew()

    def close(self) -> None:
        """End the attempt and close the log; the next process opens it again."""
        with self.lock:
            self.fence(WrongState("the target is stopping", next_step="repeat when it is back"))
            self.log.close()

    def give_up(self) -> None:
        """End the attempt for good; nobody opens another. The log can be removed."""
        self.fence(_given_up(self.transfer_id))
        with self.lock:
            self.is_over = True
            self.log.close()


def _given_up(transfer_id: TransferId) -> LeaseLost:
    return LeaseLost(f"transfer {transfer_id} was given up", next_step="ask for a new grant")
