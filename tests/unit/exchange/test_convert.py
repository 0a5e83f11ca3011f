"""What a message alone can show is checked before a machine sees it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from arraylift.errors import InvalidRequest
from arraylift.exchange.convert import open_from_pb, reply_from_pb
from arraylift.exchange.messages import (
    LANES_MAX,
    SPANS_PER_OFFER_MAX,
    WINDOW_BATCHES_MAX,
    Missing,
    Opened,
)
from arraylift.sizes import IMAGE_BYTES_MAX
from arraylift.v1 import common_pb2
from arraylift.v1 import exchange_pb2 as pb


def segmentation() -> common_pb2.Segmentation:
    return common_pb2.Segmentation(
        policy=common_pb2.SEGMENTATION_POLICY_CONTENT_DEFINED,
        segment_bytes_min=4096,
        segment_bytes_average=16384,
        segment_bytes_max=65536,
        span_bytes=1 << 20,
    )


def opening() -> pb.Open:
    return pb.Open(
        protocol_version=1, transfer_id="a" * 32, grant=bytes(32), image_bytes=5, segmentation=segmentation()
    )


def opened() -> pb.Opened:
    return pb.Opened(
        attempt=1,
        limits=pb.Limits(window_batches=8, spans_per_offer_max=4, undurable_bytes_max=1, lanes_max=2),
        key=bytes(32),
        key_id=bytes(8),
        base_root=bytes(32),
        base_image_bytes=7,
        base_segmentation=segmentation(),
        committed=pb.Committed(root=bytes(32), image_id="b" * 32),
    )


def set_field(path: str, value: object) -> Callable[[object], None]:
    *parents, name = path.split(".")

    def change(message: object) -> None:
        for parent in parents:
            message = getattr(message, parent)
        setattr(message, name, value)

    return change


BAD_OPENS = [
    ("transfer_id", ""),
    ("transfer_id", "A" * 32),
    ("transfer_id", "../" + "a" * 29),
    ("grant", b""),
    ("grant", bytes(31)),
    ("grant", bytes(33)),
    ("image_bytes", 0),
    ("image_bytes", IMAGE_BYTES_MAX + 1),
    ("key", bytes(16)),
    ("root", bytes(33)),
    ("segmentation.policy", 0),
    ("segmentation.policy", 77),
    ("segmentation.segment_bytes_min", 4095),
    ("segmentation.segment_bytes_max", 65537),
    ("segmentation.segment_bytes_average", 4000),
    ("segmentation.span_bytes", 1 << 21),
    ("source_state.pool_id", "x"),
    ("source_state.lineage_id", "../../etc/passwd"),
]


@pytest.mark.parametrize(("path", "value"), BAD_OPENS)
def test_bad_opens_are_refused(path: str, value: object) -> None:
    message = opening()
    assert open_from_pb(message).image_bytes == 5
    set_field(path, value)(message)
    with pytest.raises(InvalidRequest):
        open_from_pb(message)


BAD_OPENEDS = [
    ("limits.window_batches", 0),
    ("limits.spans_per_offer_max", 0),
    ("limits.lanes_max", 0),
    ("key", bytes(31)),
    ("key_id", bytes(7)),
    ("base_root", bytes(5)),
    ("base_image_bytes", 0),
    ("base_image_bytes", IMAGE_BYTES_MAX + 1),
    ("base_segmentation.policy", 9),
    ("base_state.pool_id", "x"),
    ("committed.root", b""),
    ("committed.image_id", "../x"),
]


@pytest.mark.parametrize(("path", "value"), BAD_OPENEDS)
def test_bad_openeds_are_refused(path: str, value: object) -> None:
    message = pb.ExchangeReply(opened=opened())
    assert isinstance(reply_from_pb(message), Opened)
    set_field("opened." + path, value)(message)
    with pytest.raises(InvalidRequest):
        reply_from_pb(message)


def test_limits_that_would_fill_the_senders_memory_are_cut_to_the_maxima() -> None:
    message = opened()
    message.limits.window_batches = message.limits.spans_per_offer_max = message.limits.lanes_max = 2**32 - 1
    found = reply_from_pb(pb.ExchangeReply(opened=message))
    assert isinstance(found, Opened)
    limits = found.limits
    assert (limits.window_batches, limits.spans_per_offer_max, limits.lanes_max) == (
        WINDOW_BATCHES_MAX,
        SPANS_PER_OFFER_MAX,
        LANES_MAX,
    )


def test_a_bitmap_unpacks_to_no_more_than_an_offer() -> None:
    top = SPANS_PER_OFFER_MAX * 256 // 8
    found = reply_from_pb(pb.ExchangeReply(missing=pb.Missing(batch=1, bitmap=bytes(top))))
    assert isinstance(found, Missing)
    for bad in (
        pb.Missing(batch=1, bitmap=bytes(top + 1)),
        pb.Missing(batch=1, mismatched_spans=bytes(4 * SPANS_PER_OFFER_MAX + 4)),
        pb.Missing(batch=1, mismatched_spans=bytes(5)),
    ):
        with pytest.raises(InvalidRequest):
            reply_from_pb(pb.ExchangeReply(missing=bad))


def test_secrets_stay_out_of_texts() -> None:
    message = opening()
    message.grant, message.key = b"G" * 32, b"K" * 32
    assert "GGGG" not in repr(open_from_pb(message))
    assert "KKKK" not in repr(open_from_pb(message))
    reply = opened()
    reply.key = b"K" * 32
    assert "KKKK" not in repr(reply_from_pb(pb.ExchangeReply(opened=reply)))
