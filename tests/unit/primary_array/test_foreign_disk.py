"""What a foreign disk's extents say of granules and spans, and when its bitmap may vouch."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Iterator
from typing import Self

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arraylift.errors import InvalidRequest, TrackerMismatch
from arraylift.exchange.messages import Base
from arraylift.ids import LineageId, PoolId, SourceState
from arraylift.nbd import wire
from arraylift.nbd.device import BASE_ALLOCATION
from arraylift.nbd.grains import mark
from arraylift.nbd.uri import parse_uri
from arraylift.segments.segmentation import DEFAULT_SEGMENTATION
from arraylift.sizes import GIB, GRANULE_BYTES, MIB
from primary_array import foreign_disk
from primary_array.doubt_table import DoubtTable
from primary_array.foreign_disk import Bitmap, ForeignDisk, ForeignSource
from tests.fakes.disk import FakeFiles

URI = parse_uri("nbd://h/disk")


def state(number: int) -> SourceState:
    return SourceState(PoolId(f"{number:032x}"), LineageId(f"{number:032x}"), number)


@given(
    grain=st.integers(1, 9),
    start=st.integers(0, 20),
    extents=st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=12),
)
def test_a_grain_is_marked_if_a_chosen_extent_touches_it(
    grain: int, start: int, extents: list[tuple[int, bool]]
) -> None:
    marks = np.zeros(-(-60 // grain), np.bool_)
    marks[0] = True  # what was marked stays
    lengths = np.array([(length, 0) for length, _ in extents], np.uint64)
    mark(marks, grain, start, lengths, np.array([chosen for _, chosen in extents]))
    expected, at = {0}, start
    for length, chosen in extents:
        if chosen:
            expected |= {byte // grain for byte in range(at, at + length)}
        at += length
    assert set(np.flatnonzero(marks).tolist()) == {grain for grain in expected if grain < len(marks)}


class Sparse:
    """A client of a large disk, whose server answers 1 GiB at a time: data and zeros by turns."""

    multi_conn = True
    contexts = frozenset({BASE_ALLOCATION})

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def status(self) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        for at in range(0, self.size_bytes, GIB):
            zero = wire.STATE_ZERO if at // GIB % 2 else 0
            yield at, {BASE_ALLOCATION: np.array([(GIB, zero)], np.uint64)}


def test_a_survey_of_a_large_disk_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may call its disk as large as it likes: each answer costs what it tells."""
    size_bytes = 256 * GIB
    monkeypatch.setattr(foreign_disk, "NbdClient", lambda *_, **__: Sparse(size_bytes))
    disk = ForeignDisk(ForeignSource(URI, None, state(99), None, no_doubts()), threading.Event())
    tracemalloc.start()
    try:
        disk.survey()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    granules = GIB // GRANULE_BYTES
    assert peak < 2 * (size_bytes // GRANULE_BYTES)
    assert disk.places(granules - 2, 4).tolist() == [granules - 1, granules, 0, 0]
    assert disk.places(2 * granules - 1, 2).tolist() == [0, 2 * granules + 1]


def no_doubts() -> DoubtTable:
    files = FakeFiles()
    files.make_dirs("/pool")
    return DoubtTable(files, "/pool")


def surveyed(since: int, doubts: DoubtTable, *, exported: bool = True) -> ForeignDisk:
    source = ForeignSource(URI, None, state(99), Bitmap("b", state(since)), doubts)
    disk = ForeignDisk(source, threading.Event())
    disk.size_bytes = 4 * MIB
    disk._dirty = np.array([False, True, False, True]) if exported else None
    return disk


def base(number: int, size_bytes: int = 4 * MIB) -> Base:
    return Base(b"r" * 32, size_bytes, DEFAULT_SEGMENTATION, state(number))


def test_a_bitmap_vouches_for_its_own_state_and_no_other() -> None:
    doubts = no_doubts()
    changed = surveyed(1, doubts).changed_since(base(1))
    assert changed is not None
    assert changed.spans.tolist() == [1, 3]
    assert surveyed(1, doubts).changed_since(base(2)) is None, "another state"
    assert surveyed(1, doubts).changed_since(base(1, 5 * MIB)) is None, "another size"
    assert surveyed(1, doubts, exported=False).changed_since(base(1)) is None, "no such bitmap"
    without = Base(b"r" * 32, 4 * MIB, DEFAULT_SEGMENTATION, None)
    assert surveyed(1, doubts).changed_since(without) is None


def test_a_bitmap_that_missed_a_write_is_doubted() -> None:
    doubts = no_doubts()
    with pytest.raises(TrackerMismatch, match="'b'"):
        surveyed(1, doubts).distrust()
    assert surveyed(1, doubts).changed_since(base(1)) is None
    assert surveyed(2, doubts).changed_since(base(2)) is not None, "another state is another matter"


def test_names_that_say_nothing() -> None:
    for name in ("", "x" * 1024, "a\n"):
        with pytest.raises(InvalidRequest):
            Bitmap(name, state(1))
    with pytest.raises(InvalidRequest, match="of its own"):
        ForeignSource(URI, None, state(1), Bitmap("b", state(1)), no_doubts())
