"""The hand-written codec and the generated classes are the same format, both ways."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from arraylift.errors import InvalidRequest
from arraylift.exchange import wire
from arraylift.exchange.lane import POLL
from arraylift.exchange.messages import (
    NO_RUNS,
    Base,
    Commit,
    Committed,
    Durable,
    Figures,
    Limits,
    Missing,
    Offer,
    Open,
    Opened,
    Segments,
)
from arraylift.ids import ImageId, LineageId, PoolId, SourceState, TransferId
from arraylift.segments.segmentation import Policy, Segmentation
from arraylift.sizes import IMAGE_BYTES_MAX
from arraylift.v1 import exchange_pb2 as pb

u32 = st.one_of(st.sampled_from([0, 1, 127, 128, 2**31, 2**32 - 1]), st.integers(0, 2**32 - 1))
u64 = st.one_of(st.sampled_from([0, 1, 127, 128, 2**32, 2**63, 2**64 - 1]), st.integers(0, 2**64 - 1))
ids = st.text("0123456789abcdef", min_size=32, max_size=32)
b32 = st.binary(min_size=32, max_size=32)


def view(data: bytes) -> memoryview:
    return memoryview(data)


def packed(kind: str, top: int, size: int = 20) -> st.SearchStrategy[np.ndarray]:
    return st.lists(st.integers(0, top), max_size=size).map(lambda items: np.array(items, dtype=kind))


offers = st.builds(
    Offer,
    batch=u64,
    spans=packed("<u4", 2**32 - 1),
    counts=packed("<u2", 2**16 - 1),
    lengths=packed("<u4", 2**32 - 1, 200),
    fingerprints=st.binary(max_size=300),
    hole_runs=st.lists(st.tuples(u32, u32), max_size=5).map(
        lambda runs: np.array(runs, dtype="<u4").reshape(-1, 2) if runs else NO_RUNS
    ),
    sample=st.booleans(),
)
segments = st.builds(
    Segments,
    batch=u64,
    codecs=packed("u1", 255, 200),
    stored_lengths=packed("<u4", 2**32 - 1),
    payload=st.lists(st.one_of(st.binary(max_size=200), st.binary().map(view)), max_size=5),
)
segmentations = st.builds(
    lambda policy, sizes: Segmentation(policy, *sorted(sizes)),
    st.sampled_from(Policy),
    st.tuples(*[st.integers(4096, 65536)] * 3),
)
states = st.none() | st.builds(SourceState, pool_id=ids.map(PoolId), lineage_id=ids.map(LineageId), birth=u64)
figures = st.builds(Figures, **{name: u32 if name == "attempts" else u64 for name in Figures.__slots__})
opens = st.builds(
    Open,
    transfer_id=ids.map(TransferId),
    grant=b32,
    attempt=u64,
    lane=u32,
    image_bytes=st.integers(1, IMAGE_BYTES_MAX),
    segmentation=segmentations,
    source_state=states,
    key=st.just(b"") | b32,
    root=st.just(b"") | b32,
    protocol_version=u32,
)
commits = st.builds(Commit, st.booleans(), figures)
receipts = st.builds(Committed, root=b32, image_id=ids.map(ImageId), figures=figures)
replies = st.one_of(
    st.builds(Durable, u64, u64),
    receipts,
    st.builds(
        Opened,
        attempt=u64,
        limits=st.builds(Limits, st.integers(1, 16), st.integers(1, 16), u64, st.integers(1, 16)),
        tenant=st.text(max_size=9),
        key=st.just(b"") | b32,
        key_id=st.just(b"") | st.binary(min_size=8, max_size=8),
        lease_seconds=u64,
        base=st.none()
        | st.builds(
            Base,
            root=b32,
            image_bytes=st.integers(1, IMAGE_BYTES_MAX),
            segmentation=segmentations,
            state=states,
        ),
        durable_spans=st.binary(max_size=9),
        committed=st.none() | receipts,
    ),
)


def same_offer(one: Offer, other: Offer) -> bool:
    return (
        (one.batch, one.sample, bytes(one.fingerprints))
        == (other.batch, other.sample, bytes(other.fingerprints))
        and np.array_equal(one.spans, other.spans)
        and np.array_equal(one.counts, other.counts)
        and np.array_equal(one.lengths, other.lengths)
        and np.array_equal(one.hole_runs, other.hole_runs)
    )


def same_segments(one: Segments, other: Segments) -> bool:
    return (
        one.batch == other.batch
        and np.array_equal(one.codecs, other.codecs)
        and np.array_equal(one.stored_lengths, other.stored_lengths)
        and b"".join(one.payload) == b"".join(other.payload)
    )


def generated_offer(offer: Offer) -> pb.Offer:
    return pb.Offer(
        batch=offer.batch,
        sample=offer.sample,
        spans=offer.spans.tobytes(),
        segment_counts=offer.counts.tobytes(),
        fingerprints=bytes(offer.fingerprints),
        lengths=offer.lengths.tobytes(),
        hole_runs=offer.hole_runs.tobytes(),
    )


def generated_segments(message: Segments) -> pb.Segments:
    return pb.Segments(
        batch=message.batch,
        codecs=message.codecs.tobytes(),
        stored_lengths=message.stored_lengths.tobytes(),
        payload=b"".join(message.payload),
    )


@given(offer=offers)
def test_offers_are_the_same_bytes(offer: Offer) -> None:
    generated = pb.ExchangeRequest(offer=generated_offer(offer))
    by_hand = wire.encode_request(offer)
    assert by_hand == generated.SerializeToString(deterministic=True)
    found = wire.decode_request(by_hand)
    assert isinstance(found, Offer)
    assert same_offer(found, offer)


@given(message=segments)
def test_segments_are_the_same_bytes(message: Segments) -> None:
    generated = pb.ExchangeRequest(segments=generated_segments(message))
    by_hand = wire.encode_request(message)
    assert by_hand == generated.SerializeToString(deterministic=True)
    found = wire.decode_request(by_hand)
    assert isinstance(found, Segments)
    assert same_segments(found, message)


def test_bulk_fields_are_views_of_the_message() -> None:
    """The hand-written path was taken, not the generated one, and it copied nothing."""
    data = wire.encode_request(Segments(1, np.zeros(1, "u1"), np.array([5], "<u4"), (b"12345",)))
    found = wire.decode_request(data)
    assert isinstance(found, Segments)
    (payload,) = found.payload
    assert isinstance(payload, memoryview)
    assert payload.obj is data


@given(message=st.one_of(opens, commits))
def test_other_requests_come_back(message: Open | Commit) -> None:
    assert wire.decode_request(wire.encode_request(message)) == message


@given(message=replies)
def test_replies_come_back(message: Opened | Durable | Committed) -> None:
    assert wire.decode_reply(wire.encode_reply(message)) == message


@given(batch=u64, wanted=st.lists(st.booleans(), max_size=300), odd=st.lists(u32, max_size=16))
def test_missing_comes_back_padded(batch: int, wanted: list[bool], odd: list[int]) -> None:
    message = Missing(batch, np.array(wanted, dtype=np.bool_), np.array(odd, "<u4"))
    found = wire.decode_reply(wire.encode_reply(message))
    assert isinstance(found, Missing)
    assert found.batch == batch
    flags = [] if found.wanted is None else found.wanted.tolist()
    assert len(flags) == -(-len(wanted) // 8) * 8
    assert flags[: len(wanted)] == wanted
    assert not any(flags[len(wanted) :])
    assert ([] if found.mismatched_spans is None else found.mismatched_spans.tolist()) == odd


def test_a_poll_is_two_bytes() -> None:
    data = wire.encode_request(POLL)
    assert data == b"\x12\x00"
    found = wire.decode_request(data)
    assert isinstance(found, Offer)
    assert same_offer(found, POLL)


# -- what other writers of the same format may send ---------------------------------------------


def varint(value: int, extra: int = 0) -> bytes:
    """``extra`` adds bytes that say nothing, as the format permits."""
    out = bytearray()
    while value >= 0x80 or extra:
        out.append(value & 0x7F | 0x80)
        extra = max(0, extra - (value < 0x80))
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, value: int | bytes, extra: int = 0) -> bytes:
    if isinstance(value, int):
        return varint(number << 3, extra) + varint(value, extra)
    return varint(number << 3 | 2, extra) + varint(len(value), extra) + value


whole_items = st.integers(0, 3).flatmap(lambda n: st.binary(min_size=8 * n, max_size=8 * n))
any_field = st.one_of(
    st.builds(field, st.sampled_from([1, 2]), u64, st.integers(0, 2)),
    st.builds(field, st.integers(3, 7), whole_items, st.integers(0, 2)),
    st.builds(field, st.integers(1, 9), st.one_of(u64, st.binary(max_size=9)), st.just(0)),  # odd types
    st.builds(field, st.integers(8, 2**29 - 1), st.one_of(u64, st.binary(max_size=9))),  # unknown
    st.builds(
        lambda number, rest: varint(number << 3 | 5) + rest,
        st.integers(1, 9),
        st.binary(min_size=4, max_size=4),
    ),
    st.builds(
        lambda number, rest: varint(number << 3 | 1) + rest,
        st.integers(1, 9),
        st.binary(min_size=8, max_size=8),
    ),
)
bodies = st.lists(any_field, max_size=9).map(b"".join)
damage: st.SearchStrategy[Callable[[bytes], bytes]] = st.one_of(
    st.just(lambda data: data),
    st.integers(1, 9).map(lambda n: lambda data: data[:-n]),
    st.binary(min_size=1, max_size=9).map(lambda tail: lambda data: data + tail),
)


def check_like_generated(data: bytes) -> None:
    """decode_request gives what the generated class gives, or both refuse."""
    expected = pb.ExchangeRequest()
    try:
        expected.ParseFromString(data)
    except DecodeError:
        with pytest.raises(InvalidRequest):
            wire.decode_request(data)
        return
    try:
        found = wire.decode_request(data)
    except InvalidRequest:
        which = expected.WhichOneof("message")
        items = {
            "offer": lambda m: (
                len(m.spans) % 4,
                len(m.segment_counts) % 2,
                len(m.lengths) % 4,
                len(m.hole_runs) % 8,
            ),
            "segments": lambda m: (len(m.stored_lengths) % 4,),
        }
        if which in items:
            assert any(items[which](getattr(expected, which))), "refused without a reason"
        return
    if isinstance(found, Offer):
        assert generated_offer(found).SerializeToString() == _known(expected.offer)
    elif isinstance(found, Segments):
        assert generated_segments(found).SerializeToString() == _known(expected.segments)


def _known(message: pb.Offer | pb.Segments) -> bytes:
    message.DiscardUnknownFields()
    return message.SerializeToString()


@given(tag=st.sampled_from([0x12, 0x1A]), body=bodies, change=damage, extra=st.integers(0, 2))
def test_any_order_repeats_and_unknown_fields(
    tag: int, body: bytes, change: Callable[[bytes], bytes], extra: int
) -> None:
    check_like_generated(change(bytes((tag,)) + varint(len(body), extra) + body))


@given(parts=st.lists(st.tuples(st.sampled_from([0x0A, 0x12, 0x1A, 0x22, 0x2A]), bodies), max_size=3))
def test_several_messages_in_one(parts: list[tuple[int, bytes]]) -> None:
    check_like_generated(b"".join(bytes((tag,)) + varint(len(body)) + body for tag, body in parts))


@given(offer=offers, order=st.permutations(range(1, 8)), twice=st.integers(1, 7))
def test_fields_in_another_order_the_last_counts(offer: Offer, order: list[int], twice: int) -> None:
    fields: dict[int, int | bytes] = {
        1: offer.batch,
        2: int(offer.sample),
        3: offer.spans.tobytes(),
        4: offer.counts.tobytes(),
        5: bytes(offer.fingerprints),
        6: offer.lengths.tobytes(),
        7: offer.hole_runs.tobytes(),
    }
    stale = field(twice, 7 if twice < 3 else b"12345678")
    body = stale + b"".join(field(number, fields[number]) for number in order)
    found = wire.decode_request(b"\x12" + varint(len(body)) + body)
    assert isinstance(found, Offer)
    assert same_offer(found, offer)


@pytest.mark.parametrize(
    "data",
    [
        field(2, field(1, 2**64 - 1) + field(1, 1)),
        b"\x12\x0b\x08" + b"\xff" * 9 + b"\x01",
        b"\x12\x0b\x08" + b"\xff" * 9 + b"\x7f",
        b"\x12\x0c\x08" + b"\xff" * 10 + b"\x01",
        b"\x12\x02\x00\x01",
        b"\x12\x06\x88\x80\x80\x80\x40\x01",
        field(2, field(1, 1) * 65),
        field(2, field(1, b"text")),
        field(3, field(4, 9) + field(4, b"stored")),
        field(2, b"\x0b\x0c"),
        b"\x92\x00\x02\x08\x01",
    ],
    ids=repr,
)
def test_odd_encodings_mean_what_they_mean_to_the_generated_code(data: bytes) -> None:
    check_like_generated(data)


# -- fuzz ---------------------------------------------------------------------------------------


@given(data=st.binary(max_size=80))
def test_noise_raises_only_invalid_request(data: bytes) -> None:
    for tag in (b"", b"\x0a", b"\x12", b"\x1a", b"\x22"):
        for decode in (wire.decode_request, wire.decode_reply):
            with contextlib.suppress(InvalidRequest):
                decode(tag + data)


@given(
    message=st.one_of(opens, offers, segments, commits),
    flips=st.lists(st.tuples(st.integers(0), st.integers(0, 7)), max_size=4),
    cut=st.integers(0, 3),
)
def test_damaged_requests_raise_only_invalid_request(
    message: Open | Offer | Segments | Commit, flips: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(wire.encode_request(message))
    for at, bit in flips:
        data[at % len(data)] ^= 1 << bit
    check_like_generated(bytes(data[: len(data) - cut]))


@given(message=replies, flips=st.lists(st.tuples(st.integers(0), st.integers(0, 7)), max_size=4))
def test_damaged_replies_raise_only_invalid_request(
    message: Opened | Durable | Committed, flips: list[tuple[int, int]]
) -> None:
    data = bytearray(wire.encode_reply(message))
    for at, bit in flips:
        data[at % len(data)] ^= 1 << bit
    with contextlib.suppress(InvalidRequest):
        wire.decode_reply(bytes(data))
