"""Events keep their meaning through bytes; what is malformed is refused."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arraylift.errors import Corruption
from arraylift.ids import GroupId, LineageId, SnapshotId, VolumeId
from primary_array.map_events import (
    RUN,
    DraftAborted,
    DraftBegun,
    DraftCommitted,
    DraftSaved,
    Event,
    GranulesMapped,
    SnapshotDeleted,
    SnapshotsTaken,
    TrackerDistrusted,
    VolumeCreated,
    VolumeDeleted,
    decode,
    encode,
    expand_runs,
    make_runs,
)
from primary_array.run_log import RunLog

V = VolumeId("0" * 31 + "1")
S = SnapshotId("0" * 31 + "2")
LINEAGE = LineageId("0" * 31 + "3")
EVENTS: list[Event] = [
    VolumeCreated(V, "disk ü", 512, LINEAGE),
    GranulesMapped(V, 3, np.array([(0, 1, 5), (9, 0, 2)], RUN)),
    GranulesMapped(V, 3, np.array([], RUN)),
    SnapshotsTaken(GroupId("4" * 32), "", -5, ((V, S, 3),)),
    TrackerDistrusted(V, LINEAGE, ((S, LINEAGE),)),
    SnapshotDeleted(S),
    DraftBegun(V, "new", 1024),
    DraftSaved(V, "00ff"),
    DraftCommitted(V, LINEAGE, "ab" * 32),
    DraftAborted(V),
    VolumeDeleted(V),
]


def test_round_trip() -> None:
    assert decode(encode(EVENTS)) == EVENTS
    assert decode(b"") == []


def _framed(number: int, body: bytes, reserved: int = 0) -> bytes:
    return struct.pack("<HHI", number, reserved, len(body)) + body


@pytest.mark.parametrize(
    "payload",
    [
        encode(EVENTS)[:-1],
        encode(EVENTS) + b"\0",
        _framed(99, b"{}"),
        _framed(3, b"{}"),
        _framed(3, b"not json"),
        _framed(3, b"[]"),
        _framed(3, b"\xff"),
        _framed(3, json.dumps({"volume_id": V, "more": 1}).encode()),
        _framed(3, json.dumps({"volume_id": V}).encode(), reserved=1),
        _framed(1, b"short"),
        _framed(1, struct.pack("<16sQII", b"v" * 16, 1, 2, 0) + bytes(20)),
        _framed(1, struct.pack("<16sQII", b"v" * 16, 0, 1, 0) + bytes(20)),
        _framed(1, struct.pack("<16sQII", b"v" * 16, 1, 1, 0) + bytes(19)),
    ],
)
def test_malformed_events_are_corruption(payload: bytes) -> None:
    with pytest.raises(Corruption):
        decode(payload)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 4), st.integers(0, 3)), max_size=30))
def test_runs_say_what_the_arrays_said(steps: list[tuple[bool, int, int]]) -> None:
    granules, slots, granule, slot = [], [], 0, 1
    for is_hole, granule_step, slot_step in steps:
        granule += granule_step
        slot += slot_step + 1
        granules.append(granule)
        slots.append(0 if is_hole else slot)
    log = RunLog()
    log.extend(make_runs(np.array(granules, np.uint64), np.array(slots, np.uint64)))
    found = expand_runs(log.take())
    assert found[0].tolist() == granules
    assert found[1].tolist() == slots


def test_run_log_joins_a_sequential_import_into_one_run() -> None:
    log = RunLog()
    for piece in range(100):
        log.extend([(piece * 16, 1 + piece * 16, 16)])
    assert len(log) == 1
    log.extend([(1600, 5000, 1), (1601, 0, 1), (1602, 0, 3)])
    assert log.take().tolist() == [(0, 1, 1600), (1600, 5000, 1), (1601, 0, 4)]
    assert len(log) == 0


def test_put_back_goes_before_what_came_later() -> None:
    log = RunLog()
    log.extend([(1, 1, 1)])
    taken = log.take()
    log.extend([(1, 2, 1)])
    log.put_back(taken)
    assert log.take().tolist() == [(1, 1, 1), (1, 2, 1)]
