"""A target that receives, over gRPC and TLS: who may open a transfer, which attempt may write, and
what a commit must cover. The sender here is a script that breaks every rule in turn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from arraylift import pki
from arraylift.errors import (
    ArrayliftError,
    Conflict,
    Corruption,
    InvalidRequest,
    LeaseLost,
    NotFound,
    NotPermitted,
    WrongState,
)
from arraylift.exchange.grpc_stream import GrpcLaneStream
from arraylift.exchange.messages import (
    NO_RUNS,
    Commit,
    Committed,
    Durable,
    Figures,
    Missing,
    Offer,
    Open,
    Opened,
    Reply,
    Segments,
)
from arraylift.ids import LineageId as Lineage
from arraylift.ids import PoolId, SourceState, TransferId, random_id
from arraylift.rpc.channel import call, connect
from arraylift.rpc.server import RpcServer
from arraylift.segments.fingerprint import FingerprintKey
from arraylift.segments.segmentation import DEFAULT_SEGMENTATION, Segmenter
from arraylift.sizes import SPAN_BYTES
from arraylift.v1 import image_pb2, image_pb2_grpc, target_admin_pb2, target_admin_pb2_grpc
from dedup_target.__main__ import build
from dedup_target.config import TargetSettings
from tests.wire.stage import PEER, House

SPANS = 3
DISK = np.random.default_rng(1).bytes(SPANS * SPAN_BYTES - 512)
STATE = SourceState(PoolId("a" * 32), Lineage("b" * 32), 7)
REPLY_SECONDS = 20.0


class Target:
    """A target in this process, and the operator's calls to it."""

    def __init__(self, house: House, state: Path) -> None:
        tls = house.identity("target", "server")
        self.built = build(TargetSettings(name="server", state=state), tls)
        self.server = RpcServer("127.0.0.1:0", tls, self.built.services)
        self.server.start()
        self.house = house
        self._channels = [connect(self.server.address, house.identity("operator"), "target")]
        self.admin = target_admin_pb2_grpc.TargetAdminServiceStub(self._channels[0])
        self.images = image_pb2_grpc.ImageServiceStub(self._channels[0])
        self._streams: list[GrpcLaneStream] = []

    def grant(self, *, array: str = "a1", image: str = "image", no_base: bool = True) -> Open:
        """Have a transfer admitted; returns the Open that begins it."""
        request = target_admin_pb2.CreateGrantRequest(
            transfer_id=random_id(), array=array, image_name=image, no_base=no_base
        )
        made = call(self.admin.CreateGrant, request, peer=PEER)
        return Open(
            transfer_id=TransferId(request.transfer_id),
            grant=made.grant,
            attempt=0,
            lane=0,
            image_bytes=len(DISK),
            segmentation=DEFAULT_SEGMENTATION,
            source_state=STATE,
        )

    def stream(self, tls: pki.TlsMaterial) -> GrpcLaneStream:
        self._channels.append(connect(self.server.address, tls, "target"))
        self._streams.append(GrpcLaneStream(self._channels[-1], PEER))
        return self._streams[-1]

    def image_count(self) -> int:
        return len(call(self.images.ListImages, image_pb2.ListImagesRequest(), peer=PEER).images)

    def read(self, image_id: str) -> bytes:
        request = image_pb2.ReadRangeRequest(image_id=image_id)
        pieces = self.images.ReadRange(request, timeout=30)
        return b"".join(piece.data or bytes(piece.zero_bytes) for piece in pieces)

    def close(self) -> None:
        for one in self._streams:
            one.cancel()
        for channel in self._channels:
            channel.close()
        self.server.stop(0)
        self.built.close()


class Lane:
    """A lane that sends what it is told to, right or wrong."""

    def __init__(self, target: Target, opening: Open, *, array: str = "a1") -> None:
        self.stream = target.stream(target.house.identity("array", array))
        self.stream.send(opening)
        opened = self.reply()
        assert isinstance(opened, Opened)
        self.opened = opened
        self.batch = 0

    def say(self, request: Commit | Segments) -> None:
        """Send; where the target has ended the lane already, ``reply`` and ``error`` say how."""
        with suppress(ArrayliftError):
            self.stream.send(request)

    def reply(self) -> Reply:
        """The next reply; raises the lane's error, EOFError at its end."""
        reply = self.stream.receive(REPLY_SECONDS)
        assert reply is not None, "the target answers in time"
        return reply

    def offer(self, spans: list[int]) -> tuple[Offer, list[memoryview], Missing]:
        """Offer spans of DISK; returns the offer, its segments, and the answer."""
        self.batch += 1
        pieces = [list(Segmenter(DEFAULT_SEGMENTATION).cut(_span(span))) for span in spans]
        flat = [piece for of_span in pieces for piece in of_span]
        key = FingerprintKey(self.opened.key)
        offer = Offer(
            batch=self.batch,
            spans=np.array(spans, dtype="<u4"),
            counts=np.array([len(of_span) for of_span in pieces], dtype="<u2"),
            lengths=np.array([len(piece) for piece in flat], dtype="<u4"),
            fingerprints=key.segments(flat),
            hole_runs=NO_RUNS,
        )
        self.stream.send(offer)
        reply = self.reply()
        while isinstance(reply, Durable):
            reply = self.reply()
        assert isinstance(reply, Missing)
        return offer, flat, reply

    def send(self, pieces: list[memoryview], missing: Missing, *, count: int | None = None) -> None:
        """Send the wanted segments as they are, or the first ``count`` of them."""
        if missing.wanted is None:
            return
        wanted = [pieces[index] for index in np.flatnonzero(missing.wanted).tolist()][:count]
        self.say(
            Segments(
                missing.batch,
                np.zeros(len(wanted), np.uint8),
                np.array([len(piece) for piece in wanted], dtype="<u4"),
                wanted,
            )
        )

    def deliver(self, spans: list[int]) -> None:
        """Offer and send."""
        _, pieces, missing = self.offer(spans)
        self.send(pieces, missing)

    def finish(self) -> None:
        """End the lane; everything on it is durable then."""
        self.stream.close_sending()
        with suppress(EOFError):
            while True:
                assert isinstance(self.reply(), Durable)

    def commit(self, *, inherit: bool = False) -> Committed:
        self.stream.send(Commit(inherit, Figures()))
        reply = self.reply()
        while isinstance(reply, Durable):
            reply = self.reply()
        assert isinstance(reply, Committed)
        return reply

    def error(self) -> ArrayliftError:
        """What ends the lane."""
        try:
            while True:
                self.reply()
        except ArrayliftError as error:
            return error
        except EOFError:
            raise AssertionError("the lane ended without an error") from None


def _span(span: int) -> memoryview:
    return memoryview(DISK)[span * SPAN_BYTES : (span + 1) * SPAN_BYTES]


@pytest.fixture
def target(house: House, tmp_path: Path) -> Iterator[Target]:
    made = Target(house, tmp_path / "state")
    yield made
    made.close()


# -- who may open -------------------------------------------------------------------------------


def test_the_wrong_secret(target: Target) -> None:
    opening = target.grant()
    for wrong in (bytes(32), target.grant().grant):
        with pytest.raises(NotPermitted):
            Lane(target, replace(opening, grant=wrong))
    for malformed in (b"", opening.grant[:31], opening.grant + b"x"):
        with pytest.raises(InvalidRequest):
            Lane(target, replace(opening, grant=malformed))


def test_the_certificate_of_another_array(target: Target) -> None:
    opening = target.grant(array="a1")
    with pytest.raises(NotPermitted, match="a2"):
        Lane(target, opening, array="a2")
    Lane(target, opening)


def test_a_transfer_that_nobody_granted_or_that_was_revoked(target: Target) -> None:
    opening = target.grant()
    with pytest.raises(NotFound):
        Lane(target, replace(opening, transfer_id=TransferId(random_id())))
    lane = Lane(target, opening)
    lane.deliver([0])
    revoke = target_admin_pb2.RevokeGrantRequest(transfer_id=opening.transfer_id)
    call(target.admin.RevokeGrant, revoke, peer=PEER)
    lane.say(Commit(False, Figures()))
    assert isinstance(lane.error(), LeaseLost)
    with pytest.raises(NotFound):
        Lane(target, opening)
    assert target.image_count() == 0


def test_a_grant_is_for_what_it_was_asked_for(target: Target) -> None:
    opening = target.grant(image="image")
    request = target_admin_pb2.CreateGrantRequest(
        transfer_id=opening.transfer_id, array="a1", image_name="image", no_base=True
    )
    assert call(target.admin.CreateGrant, request, peer=PEER).grant == opening.grant
    for field, value in (("array", "a2"), ("image_name", "other"), ("tenant", "other")):
        other = target_admin_pb2.CreateGrantRequest()
        other.CopyFrom(request)
        setattr(other, field, value)
        with pytest.raises(ArrayliftError, match="something else"):
            call(target.admin.CreateGrant, other, peer=PEER)


# -- which attempt may write --------------------------------------------------------------------


def test_a_newer_attempt_fences_the_older_lanes(target: Target) -> None:
    opening = target.grant()
    old = [Lane(target, opening)]
    old.append(Lane(target, replace(opening, attempt=old[0].opened.attempt, lane=1)))
    old[1].deliver([0])
    new = Lane(target, opening)
    assert new.opened.attempt == old[0].opened.attempt + 1
    for lane in old:
        lane.say(Commit(False, Figures()))
        assert isinstance(lane.error(), LeaseLost)
    with pytest.raises(LeaseLost):
        Lane(target, replace(opening, attempt=old[0].opened.attempt, lane=2))
    new.deliver([0, 1, 2])
    receipt = new.commit()
    assert target.read(receipt.image_id) == DISK


def test_a_fenced_lane_cannot_commit_what_another_attempt_made_durable(target: Target) -> None:
    opening = target.grant()
    old = Lane(target, opening)
    worker = Lane(target, replace(opening, attempt=old.opened.attempt, lane=1))
    worker.deliver([0, 1, 2])
    worker.finish()
    new = Lane(target, opening)
    assert new.opened.durable_spans == bytes([0b111])
    old.say(Commit(False, Figures()))
    assert isinstance(old.error(), LeaseLost)
    assert target.image_count() == 0
    assert target.read(new.commit().image_id) == DISK


def test_what_a_fenced_lane_sends_late_changes_nothing(target: Target) -> None:
    opening = target.grant()
    old = Lane(target, opening)
    _, pieces, missing = old.offer([0, 1])
    new = Lane(target, opening)
    old.send(pieces, missing)
    assert isinstance(old.error(), LeaseLost)
    new.deliver([0, 1, 2])
    assert target.read(new.commit().image_id) == DISK


def test_a_lane_number_is_used_once(target: Target) -> None:
    first = Lane(target, target.grant())
    opening = target.grant()
    first = Lane(target, opening)
    with pytest.raises(InvalidRequest, match="open already"):
        Lane(target, replace(opening, attempt=first.opened.attempt))
    with pytest.raises(InvalidRequest, match="limit"):
        Lane(target, replace(opening, attempt=first.opened.attempt, lane=first.opened.limits.lanes_max))


def test_another_snapshot_under_the_same_transfer(target: Target) -> None:
    opening = target.grant()
    Lane(target, opening)
    for other in (
        replace(opening, source_state=replace(STATE, birth=8)),
        replace(opening, image_bytes=len(DISK) - 512),
    ):
        with pytest.raises(WrongState, match="another snapshot"):
            Lane(target, other)


def test_a_lane_that_is_cut_ends_the_others_and_the_next_attempt_goes_on(target: Target) -> None:
    opening = target.grant()
    control = Lane(target, opening)
    attempt = control.opened.attempt
    cut, other = (Lane(target, replace(opening, attempt=attempt, lane=number)) for number in (1, 2))
    other.deliver([2])
    other.finish()
    _, pieces, missing = cut.offer([0, 1])
    cut.send(pieces, missing, count=5)
    cut.stream.cancel()
    while True:  # the cut is noticed by the target in its own time
        try:
            control.stream.send(_poll())
            control.stream.receive(0.05)
        except Conflict:
            break
    again = Lane(target, opening)
    assert again.opened.durable_spans == bytes([0b100]), "what had become durable stays"
    again.deliver([0, 1])
    assert target.read(again.commit().image_id) == DISK


def _poll() -> Offer:
    nothing = NO_RUNS[:, 0]
    return Offer(0, nothing, nothing.astype("<u2"), nothing, b"", NO_RUNS)


def test_a_lane_that_ends_in_the_middle_of_a_batch_counts_as_cut(target: Target) -> None:
    opening = target.grant()
    lane = Lane(target, opening)
    _, pieces, missing = lane.offer([0])
    lane.send(pieces, missing, count=3)
    lane.stream.close_sending()
    assert isinstance(lane.error(), Conflict)
    again = Lane(target, opening)
    assert again.opened.durable_spans == b""


# -- what a commit must cover -------------------------------------------------------------------


def test_a_commit_while_other_lanes_are_open(target: Target) -> None:
    opening = target.grant()
    first = Lane(target, opening)
    Lane(target, replace(opening, attempt=first.opened.attempt, lane=1))
    first.deliver([0, 1, 2])
    with pytest.raises(InvalidRequest, match="other lanes"):
        first.commit()
    assert target.image_count() == 0


def test_a_commit_that_does_not_cover_the_image(target: Target) -> None:
    opening = target.grant()
    lane = Lane(target, opening)
    lane.deliver([0, 2])
    with pytest.raises(InvalidRequest, match="1 of 3 spans"):
        lane.commit()
    assert target.image_count() == 0
    again = Lane(target, opening)
    assert again.opened.durable_spans == bytes([0b101])
    again.deliver([1])
    assert target.read(again.commit().image_id) == DISK


def test_inheriting_without_a_base(target: Target) -> None:
    lane = Lane(target, target.grant())
    lane.deliver([0])
    with pytest.raises(InvalidRequest, match="no base"):
        lane.commit(inherit=True)
    assert target.image_count() == 0


def test_inheriting_from_a_base(target: Target) -> None:
    first = Lane(target, target.grant())
    first.deliver([0, 1, 2])
    base = first.commit()
    second = Lane(target, target.grant(no_base=False))
    assert second.opened.base is not None
    assert second.opened.base.root == base.root
    assert second.opened.base.state == STATE
    receipt = second.commit(inherit=True)
    assert receipt.root == base.root
    assert receipt.image_id != base.image_id
    assert target.image_count() == 2


def test_a_span_that_is_offered_twice(target: Target) -> None:
    lane = Lane(target, target.grant())
    lane.deliver([0])
    with pytest.raises(InvalidRequest, match="already has"):
        lane.offer([0])


def test_a_segment_that_is_not_what_was_promised(target: Target) -> None:
    opening = target.grant()
    lane = Lane(target, opening)
    _, pieces, missing = lane.offer([0])
    pieces[3] = memoryview(bytes(len(pieces[3])))
    lane.send(pieces, missing)
    assert isinstance(lane.error(), Corruption)
    again = Lane(target, opening)
    assert again.opened.durable_spans == b""
    _, pieces, missing = again.offer([0, 1, 2])
    assert missing.wanted is not None
    assert missing.wanted[: len(pieces)].all(), "nothing of the refused message was kept"
    again.send(pieces, missing)
    assert target.read(again.commit().image_id) == DISK


def test_a_committed_transfer_answers_with_its_receipt(target: Target) -> None:
    opening = target.grant()
    lane = Lane(target, opening)
    lane.deliver([0, 1, 2])
    receipt = lane.commit()
    for _ in range(2):
        assert Lane(target, opening).opened.committed == receipt
    revoke = target_admin_pb2.RevokeGrantRequest(transfer_id=opening.transfer_id)
    with pytest.raises(ArrayliftError, match="committed"):
        call(target.admin.RevokeGrant, revoke, peer=PEER)
    assert target.image_count() == 1
