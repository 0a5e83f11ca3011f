"""The sending side of one lane as a sans-I/O machine: replies in, requests out.

Invariants:
  E1 at most ``window_batches`` offers are unanswered, and what has been sent without being
     durable, or may still be asked for, is at most this lane's share of
     ``undurable_bytes_max``, or one offer where the share is smaller than that.
  E2 segments are sent for answered batches only, in batch order, each wanted one once.
  E3 a reply that no receiver may give (unknown batch, out of phase, wrong size) raises
     InvalidRequest, and so does every later one: nothing that follows it is believed.
  E4 Commit is sent once, when every batch of this lane is durable.
Callers: one thread, the lane's (arraylift/exchange/lane.py).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from arraylift.errors import InvalidRequest
from arraylift.exchange.messages import (
    U32,
    Commit,
    Committed,
    Durable,
    Figures,
    Limits,
    Missing,
    Offer,
    Open,
    Opened,
    Reply,
    Segments,
)
from arraylift.sizes import SPAN_BYTES


class Phase(Enum):
    """Where a lane stands; it only moves down this list."""

    NEW = "new"
    OPENING = "opening"
    OPEN = "open"
    COMMITTING = "committing"
    COMMITTED = "committed"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A batch was answered: send these, then forget its data."""

    batch: int
    indexes: npt.NDArray[np.intp]
    """Ascending indexes into the offer's segments; may be empty."""
    mismatched_spans: U32 | None


class SenderLane:
    """One lane's rules, limits and counts."""

    def __init__(self) -> None:
        self.phase = Phase.NEW
        self.limits = Limits()
        self.figures = Figures()
        self._undurable_share = 0
        self._last_batch = 0
        self._last_durable = 0
        self._unanswered: OrderedDict[int, Offer] = OrderedDict()
        self._unsent: OrderedDict[int, int] = OrderedDict()  # batch -> wanted segments not sent
        self._undurable: OrderedDict[int, int] = OrderedDict()  # batch -> wire bytes
        self._promised_bytes = 0  # plain bytes that may still be, or are, wanted and are not sent

    # -- what may be done -----------------------------------------------------------------------

    @property
    def may_offer(self) -> bool:
        """True if E1 allows another offer now."""
        return (
            self.phase is Phase.OPEN
            and len(self._unanswered) + len(self._unsent) < self.limits.window_batches
            and self._room_for_offer
        )

    @property
    def _room_for_offer(self) -> bool:
        exposed = self.undurable_bytes + self._promised_bytes
        return exposed == 0 or exposed + self.limits.spans_per_offer_max * SPAN_BYTES <= self._undurable_share

    @property
    def undurable_bytes(self) -> int:
        """Wire bytes sent that a crash of the receiver would make us send again."""
        return sum(self._undurable.values())

    @property
    def answered(self) -> bool:
        """True if every offer is answered and everything wanted is sent."""
        return not self._unanswered and not self._unsent

    @property
    def durable(self) -> bool:
        """True if every offer of this lane is durable at the receiver."""
        return self.answered and not self._undurable

    # -- requests -------------------------------------------------------------------------------

    def open(self, message: Open) -> Open:
        """Begin the lane."""
        assert self.phase is Phase.NEW, "a lane is opened once"
        self.phase = Phase.OPENING
        return message

    def offer(self, offer: Offer) -> Offer:
        """Account for an offer; its batch must be ``next_batch``."""
        assert self.may_offer, "E1"
        assert offer.batch == self.next_batch, "batches are numbered from 1"
        assert len(offer.spans) <= self.limits.spans_per_offer_max, "E1"
        self._last_batch = offer.batch
        plain_bytes = int(offer.lengths.sum(dtype=np.uint64))
        self._unanswered[offer.batch] = offer
        self._undurable[offer.batch] = 0
        self._promised_bytes += plain_bytes
        self.figures.segments_offered += len(offer.lengths)
        self.figures.bytes_offered += plain_bytes
        return offer

    @property
    def next_batch(self) -> int:
        """Number of the next offer."""
        return self._last_batch + 1

    def segments(self, message: Segments, plain_bytes: int) -> Segments:
        """Account for wanted segments of the oldest batch that has any left (E2)."""
        batch, left = next(iter(self._unsent.items()))
        count = len(message.codecs)
        assert message.batch == batch, "E2"
        assert 0 < count <= left, "E2"
        wire_bytes = int(message.stored_lengths.sum(dtype=np.uint64))
        if left == count:
            del self._unsent[batch]
        else:
            self._unsent[batch] = left - count
        self._undurable[batch] += wire_bytes
        self._promised_bytes -= plain_bytes
        assert wire_bytes <= plain_bytes, "E1: a stored form is never larger than the plain one"
        assert self._promised_bytes >= 0, "E1"
        self.figures.segments_sent += count
        self.figures.bytes_sent += plain_bytes
        self.figures.bytes_sent_wire += wire_bytes
        return message

    def commit(self, message: Commit) -> Commit:
        """End the transfer (E4)."""
        assert self.phase is Phase.OPEN, "commit follows open"
        assert self.durable, "E4"
        self.phase = Phase.COMMITTING
        return message

    # -- replies --------------------------------------------------------------------------------

    def receive(self, reply: Reply) -> Opened | Wanted | Durable | Committed:
        """Take one reply and say what it means. Raises InvalidRequest (E3)."""
        try:
            return self._receive(reply)
        except InvalidRequest:
            self.phase = Phase.BROKEN
            raise

    def _receive(self, reply: Reply) -> Opened | Wanted | Durable | Committed:
        if self.phase is Phase.BROKEN:
            raise InvalidRequest("the receiver goes on after a reply that was refused")
        if isinstance(reply, Missing):
            return self._missing(reply)
        if isinstance(reply, Durable):
            return self._durable(reply)
        if isinstance(reply, Opened):
            return self._opened(reply)
        if self.phase is not Phase.COMMITTING:
            raise InvalidRequest("the receiver committed a transfer that was not ready")
        self.phase = Phase.COMMITTED
        return reply

    def _opened(self, reply: Opened) -> Opened:
        if self.phase is not Phase.OPENING:
            raise InvalidRequest("the receiver opened a lane twice")
        self.phase = Phase.OPEN if reply.committed is None else Phase.COMMITTED
        self.limits = reply.limits
        self._undurable_share = max(1, reply.limits.undurable_bytes_max // reply.limits.lanes_max)
        return reply

    def use_lanes(self, count: int) -> None:
        """Share the undurable bytes among ``count`` lanes instead of the most there may be."""
        assert 1 <= count <= self.limits.lanes_max
        self._undurable_share = max(1, self.limits.undurable_bytes_max // count)

    def _missing(self, reply: Missing) -> Wanted:
        oldest = next(iter(self._unanswered), None)
        if oldest != reply.batch:
            raise InvalidRequest(f"the receiver answered batch {reply.batch} where {oldest} was due")
        offer = self._unanswered[reply.batch]
        indexes = _wanted_indexes(reply, offer)
        del self._unanswered[reply.batch]
        self._promised_bytes -= int(offer.lengths.sum(dtype=np.uint64))
        if len(indexes):
            self._unsent[reply.batch] = len(indexes)
            self._promised_bytes += int(offer.lengths[indexes].sum(dtype=np.uint64))
        return Wanted(reply.batch, indexes, reply.mismatched_spans)

    def _durable(self, reply: Durable) -> Durable:
        if self.phase not in (Phase.OPEN, Phase.COMMITTING):
            raise InvalidRequest("the receiver calls a batch durable on a lane that is not open")
        done = [batch for batch in self._undurable if batch <= reply.batch]
        pending = self._unanswered.keys() | self._unsent.keys()
        if reply.batch > self._last_batch or any(batch in pending for batch in done):
            raise InvalidRequest(f"the receiver calls batch {reply.batch} durable before it has it")
        if reply.batch < self._last_durable:
            raise InvalidRequest(f"the receiver takes back that batch {self._last_durable} is durable")
        self._last_durable = reply.batch
        for batch in done:
            del self._undurable[batch]
        self.figures.bytes_stored = reply.bytes_stored
        return reply


def _wanted_indexes(reply: Missing, offer: Offer) -> npt.NDArray[np.intp]:
    """The segments that a Missing asks for. Raises InvalidRequest (E3)."""
    odd, offered = reply.mismatched_spans, len(offer.lengths)
    if odd is not None and len(odd) and not (offer.sample and bool(np.isin(odd, offer.spans).all())):
        raise InvalidRequest(f"the receiver compared spans that batch {reply.batch} did not sample")
    if reply.wanted is None:
        return np.empty(0, dtype=np.intp)
    if not offered <= len(reply.wanted) < offered + 8:
        raise InvalidRequest(
            f"the receiver answers {len(reply.wanted)} segments where {offered} were offered"
        )
    indexes = np.flatnonzero(reply.wanted)
    if len(indexes) and indexes[-1] >= offered:
        raise InvalidRequest(f"the receiver wants segment {indexes[-1]} of {offered}")
    return indexes
