"""Both machines against dictionaries, over lanes that duplicate, reorder, cut and resume.

Whatever the lanes do: nothing is committed that is not the source, what was answered
Durable is not offered again, the limits hold, and once the faults stop the transfer commits.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from arraylift.errors import ArrayliftError, Conflict, Corruption, InvalidRequest, LeaseLost
from arraylift.exchange.coverage import Coverage
from arraylift.exchange.lane import POLL
from arraylift.exchange.messages import (
    Commit,
    Committed,
    Durable,
    Figures,
    Limits,
    Opened,
    Request,
    Segments,
)
from arraylift.exchange.sender import Phase, SenderLane, Wanted
from arraylift.exchange.wire import decode_reply, decode_request, encode_reply, encode_request
from arraylift.segments.fingerprint import unpack
from arraylift.sizes import MIB, SPAN_BYTES
from tests.unit.exchange.stage import PALETTE, Call, DictReceiver, Disk, Prepared, is_hole, opening, palette

SEGMENTS_TAG = b"\x1a"
CLOSE = b""
"""Stands in a request queue where the sender closed its side."""


@dataclass(slots=True, eq=False)
class Lane:
    """A sender's lane and the wire in both directions."""

    number: int
    call: Call
    machine: SenderLane = field(default_factory=SenderLane)
    todo: deque[Prepared] = field(default_factory=deque)
    held: dict[int, Prepared] = field(default_factory=dict)
    requests: deque[bytes] = field(default_factory=deque)
    replies: deque[bytes] = field(default_factory=deque)
    exposure: dict[int, int] = field(default_factory=dict)  # batch -> bytes a cut may cost
    closed: bool = False
    ended: bool = False

    def say(self, request: Request) -> None:
        self.requests.append(encode_request(request))


class Exchange(RuleBasedStateMachine):
    """One transfer, from first Open to Committed."""

    @initialize(
        contents=st.integers(1, 9).flatmap(
            lambda size: st.lists(st.integers(0, PALETTE - 1), min_size=size, max_size=size)
        ),
        short=st.sampled_from([0, 1, 5000, MIB - 1]),
        with_base=st.booleans(),
        lanes=st.integers(1, 3),
        limits=st.builds(
            Limits,
            window_batches=st.integers(1, 3),
            spans_per_offer_max=st.integers(1, 3),
            undurable_bytes_max=st.sampled_from([1, 2 * MIB, 7 * MIB, 64 * MIB]),
            lanes_max=st.just(3),
        ),
        changed=st.integers(0, 2**9 - 1),
    )
    def begin(
        self, contents: list[int], short: int, with_base: bool, lanes: int, limits: Limits, changed: int
    ) -> None:
        image_bytes = len(contents) * SPAN_BYTES - short
        before = Disk(image_bytes, {i: palette(c) for i, c in enumerate(contents)})
        after = {i: palette(c + 3) if changed >> i & 1 else palette(c) for i, c in enumerate(contents)}
        self.disk = Disk(image_bytes, after)
        self.base = before if with_base else None
        self.changed = {i for i in after if self.disk.span(i) != before.span(i)}
        self.lane_count = lanes
        self.limits = limits
        self.receiver = DictReceiver(self.disk, limits, base=self.base)
        self.lanes: list[Lane] = []
        self.durable: set[int] = set()  # spans answered Durable and not lost since
        self.stale: list[tuple[Call, bytes]] = []  # requests of attempts that were cut
        self.receipt: Committed | None = None
        self.start()

    # -- the sender -----------------------------------------------------------------------------

    def start(self) -> None:
        """Begin an attempt: lane 0 opens it, the others join once it is open."""
        for lane in self.lanes:
            self.stale += [(lane.call, data) for data in lane.requests if data]
        self.stale = self.stale[-20:]
        self.lanes = [Lane(0, self.receiver.call())]
        self.lanes[0].say(self.lanes[0].machine.open(opening(self.disk)))

    def opened(self, lane: Lane, reply: Opened) -> None:
        if reply.committed is not None:
            self.receipt = reply.committed
            return
        lane.machine.use_lanes(self.lane_count)
        if lane.number:
            return
        listed = Coverage.from_bitmap(reply.durable_spans, self.disk.span_count).flags
        assert self.durable <= set(np.flatnonzero(listed).tolist()), "a span answered Durable was forgotten"
        offer = [i for i in range(self.disk.span_count) if not listed[i]]
        sample: list[int] = []
        self.inherit = reply.base is not None
        if self.inherit:
            sample = [i for i in offer if i not in self.changed and i % 3 == 0]
            offer = [i for i in offer if i in self.changed]
        for number in range(1, self.lane_count):
            other = Lane(number, self.receiver.call())
            other.say(other.machine.open(opening(self.disk, attempt=reply.attempt, lane=number)))
            self.lanes.append(other)
        size = self.limits.spans_per_offer_max
        batches = [Prepared(self.disk, offer[at : at + size]) for at in range(0, len(offer), size)]
        batches += [Prepared(self.disk, [index], sample=True) for index in sample]
        for index, batch in enumerate(batches):
            self.lanes[index % self.lane_count].todo.append(batch)

    def step(self, lane: Lane) -> bool:
        """Do the next thing that a sender does by itself; False if it can only wait."""
        machine = lane.machine
        if lane.closed or machine.phase is not Phase.OPEN:
            return False
        if lane.todo and machine.may_offer:
            prepared = lane.todo.popleft()
            offer = machine.offer(prepared.offer(machine.next_batch))
            lane.held[offer.batch] = prepared
            lane.exposure[offer.batch] = int(offer.lengths.sum())
            lane.say(offer)
        elif lane.todo or not machine.answered:
            if machine.answered and not lane.requests:
                lane.say(POLL)
            else:
                return False
        elif lane.number:
            lane.closed = True
            lane.requests.append(CLOSE)
        elif not machine.durable:
            if lane.requests:
                return False
            lane.say(POLL)
        elif all(other.ended for other in self.lanes[1:]) and len(self.lanes) == self.lane_count:
            lane.say(machine.commit(Commit(self.inherit, Figures())))
        else:
            return False
        return True

    def take(self, lane: Lane, data: bytes) -> None:
        event = lane.machine.receive(decode_reply(data))
        if isinstance(event, Opened):
            self.opened(lane, event)
        elif isinstance(event, Wanted):
            prepared = lane.held.pop(event.batch)
            odd = event.mismatched_spans
            assert odd is None or not len(odd), "an honest sample equals the base"
            lane.exposure[event.batch] = 0
            for message, plain_bytes in prepared.segments(event):
                lane.exposure[event.batch] += int(message.stored_lengths.sum())
                lane.say(lane.machine.segments(message, plain_bytes))
            prepared.release()
        elif isinstance(event, Durable):
            lane.exposure = {batch: cost for batch, cost in lane.exposure.items() if batch > event.batch}
        else:
            assert isinstance(event, Committed)
            self.receipt = event

    # -- the wire -------------------------------------------------------------------------------

    def deliver(self, lane: Lane) -> None:
        """Hand the next request to the receiver; a refusal ends the attempt."""
        data = lane.requests.popleft()
        try:
            if data == CLOSE:
                answers = self.receiver.flush(lane.call)
            else:
                answers = self.receiver.receive(lane.call, decode_request(data))
        except (InvalidRequest, LeaseLost, Corruption, Conflict) as error:
            if isinstance(error, Conflict):
                self.durable &= self.receiver.durable_spans.keys()
            self.start()
            return
        for reply in answers:
            self.remember(lane, reply)
            lane.replies.append(encode_reply(reply))
        if data == CLOSE:
            lane.ended = True

    def remember(self, lane: Lane, reply: object) -> None:
        if isinstance(reply, Durable):
            for batch in lane.call.batches:
                if batch.number <= reply.batch:
                    self.durable |= set(batch.offer.spans.tolist())

    def answer(self, lane: Lane) -> None:
        try:
            self.take(lane, lane.replies.popleft())
        except InvalidRequest:
            self.start()

    def lane(self, pick: int) -> Lane:
        return self.lanes[pick % len(self.lanes)]

    def turn(self, *, eager: bool = False) -> None:
        """Every lane does what it can; an eager sender fills its window before it listens."""
        for lane in list(self.lanes):
            if lane not in self.lanes:
                break  # a new attempt began
            if eager and len(lane.requests) < 8 and self.step(lane):
                self.limits_hold()
            elif lane.replies:
                self.answer(lane)
            elif lane.requests:
                self.deliver(lane)
            else:
                self.step(lane)

    # -- rules ----------------------------------------------------------------------------------

    @rule(pick=st.integers(0, 2), times=st.integers(1, 4))
    def sender_works(self, pick: int, times: int) -> None:
        lane = self.lane(pick)
        for _ in range(times):
            self.step(lane)

    @rule(pick=st.integers(0, 2), times=st.integers(1, 6))
    def requests_arrive(self, pick: int, times: int) -> None:
        lane = self.lane(pick)
        while times and lane.requests and lane in self.lanes:
            self.deliver(lane)
            times -= 1

    @rule(pick=st.integers(0, 2), times=st.integers(1, 6))
    def replies_arrive(self, pick: int, times: int) -> None:
        lane = self.lane(pick)
        while times and lane.replies and lane in self.lanes:
            self.answer(lane)
            times -= 1

    @rule(turns=st.sampled_from([3, 10, 30]), eager=st.booleans())
    def time_passes(self, turns: int, eager: bool) -> None:
        """Nothing goes wrong for a while."""
        for _ in range(turns):
            self.turn(eager=eager)

    @rule(
        pick=st.integers(0, 2),
        at=st.integers(0, 50),
        requests=st.booleans(),
        how=st.sampled_from(["twice", "swapped", "lost"]),
    )
    def a_message_suffers(self, pick: int, at: int, requests: bool, how: str) -> None:
        lane = self.lane(pick)
        line = lane.requests if requests else lane.replies
        assume(line)
        at %= len(line)
        if how == "lost":
            if line[at] == CLOSE:
                lane.closed = False
            del line[at]
            return
        assume(line[at] != CLOSE)
        if how == "twice":
            line.insert(at, line[at])
        else:
            assume(at + 1 < len(line) and line[at + 1] != CLOSE)
            line[at], line[at + 1] = line[at + 1], line[at]

    @rule(pick=st.integers(0, 2), at=st.integers(0, 400))
    def a_segment_is_bent(self, pick: int, at: int) -> None:
        """A bit of the next payload flips, as in a sender whose memory is bad."""
        lane = self.lane(pick)
        for _ in range(30):
            lane = lane if lane in self.lanes else self.lane(pick)
            if lane.requests and lane.requests[0][:1] == SEGMENTS_TAG:
                bent = bytearray(lane.requests[0])
                message = decode_request(bytes(bent))
                assert isinstance(message, Segments)
                bent[-1 - at % len(message.payload[0])] ^= 0x40  # the payload comes last
                lane.requests[0] = bytes(bent)
                break
            self.turn(eager=True)

    @rule(crash=st.booleans())
    def lanes_are_cut(self, crash: bool) -> None:
        """With the receiver, or without."""
        if crash:
            self.receiver.crash()
        self.start()

    @precondition(lambda self: self.stale)
    @rule(pick=st.integers(0, 19))
    def old_attempt_speaks(self, pick: int) -> None:
        call, data = self.stale[pick % len(self.stale)]
        assume(call.attempt != 0)  # an old Open is a new attempt, see lanes_are_cut
        before = self.snapshot()
        try:
            self.receiver.receive(call, decode_request(data))
        except ArrayliftError:
            assert self.snapshot() == before
        else:
            assert call.attempt == self.receiver.durable_attempt  # the next has not been opened yet

    @precondition(lambda self: self.receipt is None and self.receiver.durable_receipt is None)
    @rule(pick=st.integers(0, 1000))
    def segment_is_damaged(self, pick: int) -> None:
        names = sorted(self.receiver.durable_segments)
        assume(names)
        lost = names[pick % len(names)]
        self.receiver.lose(lost)

    def snapshot(self) -> tuple[object, ...]:
        here = self.receiver
        return set(here.durable_segments), set(here.durable_spans), here.durable_attempt, here.durable_receipt

    # -- what must hold -------------------------------------------------------------------------

    @invariant()
    def limits_hold(self) -> None:
        for lane in self.lanes:
            machine = lane.machine
            assert len(lane.held) <= machine.limits.window_batches, "E1"
            if machine.phase is Phase.OPEN:
                share = machine.limits.undurable_bytes_max // self.lane_count
                one_offer = machine.limits.spans_per_offer_max * SPAN_BYTES
                assert sum(lane.exposure.values()) <= max(share, one_offer), "E1"
            assert len(lane.call.machine._incomplete) <= self.limits.window_batches, "R2"

    @invariant()
    def only_the_source_is_committed(self) -> None:
        if self.receiver.durable_receipt is not None and self.receipt is not None:
            assert self.receipt.root == self.receiver.durable_receipt.root
        for span, content in self.receiver.durable_spans.items():
            assert (content is None) == is_hole(self.disk.span(span))

    def teardown(self) -> None:
        """The faults stop: at most a few attempts later, the transfer has committed."""
        if not hasattr(self, "receiver"):
            return
        self.start()
        for _ in range(4000):
            if self.receipt is not None:
                break
            self.turn()
        assert self.receipt is not None, "the transfer never committed"
        self.check_committed()

    def check_committed(self) -> None:
        for content in self.receiver.durable_spans.values():
            names = unpack(content[1]) if content else []
            assert self.receiver.durable_segments.keys() >= set(names)
        assert self.receiver.read() == self.disk.read()


TestExchange = Exchange.TestCase
