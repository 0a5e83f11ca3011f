"""Version 1 of the exchange's messages, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arraylift.exchange.lane import POLL
from arraylift.exchange.messages import (
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
    Reply,
    Request,
    Segments,
)
from arraylift.exchange.wire import decode_reply, decode_request, encode_reply, encode_request
from arraylift.ids import ImageId, LineageId, PoolId, SourceState, TransferId
from arraylift.segments.segmentation import DEFAULT_SEGMENTATION
from arraylift.sizes import MIB

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[2] / "golden" / "exchange-v1.json").read_text())
KEY = bytes(range(32))
STATE = SourceState(PoolId("0a" * 16), LineageId("0b" * 16), 7)
TRANSFER = TransferId("0c" * 16)
FIGURES = Figures(
    spans_total=3,
    spans_read=2,
    spans_sampled=1,
    spans_hole=1,
    bytes_read=2_106_152,
    segments_offered=5,
    bytes_offered=10_000,
    segments_sent=2,
    bytes_sent=9_000,
    bytes_sent_wire=8_000,
    bytes_stored=8_100,
    attempts=1,
    duration_ns=10**9,
)
RECEIPT = Committed(b"\x06" * 32, ImageId("0d" * 16), FIGURES)


def opening(**more: Any) -> Open:
    return Open(
        transfer_id=TRANSFER,
        grant=b"\1" * 32,
        image_bytes=2 * MIB + 10_000,
        segmentation=DEFAULT_SEGMENTATION,
        **more,
    )


REQUESTS: dict[str, Request] = {
    "open": opening(attempt=0, lane=0, source_state=STATE),
    "open_joining_restore": opening(attempt=2, lane=1, source_state=None, key=KEY, root=b"\5" * 32),
    "offer": Offer(
        batch=1,
        spans=np.array([2], "<u4"),
        counts=np.array([2], "<u2"),
        lengths=np.array([6000, 4000], "<u4"),
        fingerprints=b"\x08" * 32 + b"\x09" * 32,
        hole_runs=np.array([[0, 2]], "<u4"),
        sample=True,
    ),
    "poll": POLL,
    "segments": Segments(1, np.array([0, 1], "u1"), np.array([3, 2], "<u4"), (b"abc", b"de")),
    "commit": Commit(True, FIGURES),
}
REPLIES: dict[str, Reply] = {
    "opened": Opened(
        attempt=2,
        limits=Limits(),
        tenant="tenant-1",
        key=KEY,
        key_id=bytes.fromhex("11480af399c9757e"),
        lease_seconds=600,
        base=Base(b"\7" * 32, 2 * MIB, DEFAULT_SEGMENTATION, STATE),
        durable_spans=b"\5",
    ),
    "opened_committed": Opened(
        attempt=3,
        limits=Limits(),
        tenant="tenant-1",
        key=b"",
        key_id=b"",
        lease_seconds=600,
        committed=RECEIPT,
    ),
    "missing": Missing(1, np.array([True, False]), np.array([2], "<u4")),
    "missing_nothing": Missing(2, None),
    "durable": Durable(1, 8100),
    "committed": RECEIPT,
}


def test_every_kind_is_there() -> None:
    assert GOLDEN["requests"].keys() == REQUESTS.keys()
    assert GOLDEN["replies"].keys() == REPLIES.keys()


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_are_the_golden_ones(name: str) -> None:
    golden = bytes.fromhex(GOLDEN["requests"][name])
    assert encode_request(REQUESTS[name]).hex() == golden.hex()
    found = decode_request(golden)
    assert type(found) is type(REQUESTS[name])
    assert encode_request(found) == golden
    if isinstance(found, Open | Commit):
        assert found == REQUESTS[name]


@pytest.mark.parametrize("name", REPLIES)
def test_replies_are_the_golden_ones(name: str) -> None:
    golden = bytes.fromhex(GOLDEN["replies"][name])
    assert encode_reply(REPLIES[name]).hex() == golden.hex()
    found = decode_reply(golden)
    assert encode_reply(found) == golden
    if not isinstance(found, Missing):
        assert found == REPLIES[name]
