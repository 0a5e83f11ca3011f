"""Spans and ranges since a birth, tombstones and resizes included."""

from __future__ import annotations

import numpy as np
import pytest

from arraylift.sizes import GRANULE_BYTES, MIB
from primary_array.block_map import PAGE_GRANULES, U64, BlockMap, MapView
from primary_array.changes import (
    changed_granules,
    differing_granules,
    ranges_of_granules,
    spans_of_granules,
)
from tests.unit.primary_array.test_block_map import new_map, put

SIZE = 200 * MIB


def changed_spans(view: MapView, since: int, *, size_bytes: int, base_bytes: int) -> U64:
    granules = changed_granules(view, since)
    return spans_of_granules(granules, size_bytes=size_bytes, base_bytes=base_bytes)


def changed_ranges(view: MapView, since: int, *, size_bytes: int, base_bytes: int) -> tuple[U64, U64]:
    granules = changed_granules(view, since)
    return ranges_of_granules(granules, size_bytes=size_bytes, base_bytes=base_bytes)


@pytest.fixture
def view() -> BlockMap:
    """Granules 0-3 born at 1, 2 again at 3, 20 trimmed at 4, one far away at 2."""
    made = new_map(SIZE // GRANULE_BYTES)
    put(made, 0, [1, 2, 3, 4], 1)
    put(made, 2, [5], 3)
    put(made, 20, [0], 4)
    put(made, 2 * PAGE_GRANULES, [6], 2)
    return made


@pytest.mark.parametrize(
    ("since", "granules", "spans"),
    [
        (0, [0, 1, 2, 3, 20, 2048], [0, 1, 128]),
        (1, [2, 20, 2048], [0, 1, 128]),
        (2, [2, 20], [0, 1]),
        (3, [20], [1]),
        (4, [], []),
    ],
)
def test_changes_since(view: BlockMap, since: int, granules: list[int], spans: list[int]) -> None:
    assert changed_granules(view, since).tolist() == granules
    assert changed_spans(view, since, size_bytes=SIZE, base_bytes=SIZE).tolist() == spans


def test_ranges_join_neighbours_and_end_with_the_volume() -> None:
    size = 5 * GRANULE_BYTES + 512
    view = new_map(6)
    put(view, 1, [1, 2], 2)
    put(view, 4, [3, 4], 2)
    offsets, lengths = changed_ranges(view, 1, size_bytes=size, base_bytes=size)
    assert offsets.tolist() == [GRANULE_BYTES, 4 * GRANULE_BYTES]
    assert lengths.tolist() == [2 * GRANULE_BYTES, GRANULE_BYTES + 512]
    assert [part.tolist() for part in changed_ranges(view, 2, size_bytes=size, base_bytes=size)] == [[], []]


@pytest.mark.parametrize(
    ("base_bytes", "size_bytes", "spans"),
    [
        (4 * MIB, 4 * MIB, []),
        (3 * MIB + 512, 6 * MIB, [3, 4, 5]),  # the base's last span was short
        (3 * MIB, 6 * MIB, [2, 3, 4, 5]),
        (6 * MIB, 3 * MIB + 512, [3]),
        (6 * MIB, 512, [0]),
    ],
)
def test_resizes_change_the_last_span_of_the_smaller_size(
    base_bytes: int, size_bytes: int, spans: list[int]
) -> None:
    view = new_map(-(-size_bytes // GRANULE_BYTES))
    assert changed_spans(view, 5, size_bytes=size_bytes, base_bytes=base_bytes).tolist() == spans
    offsets, lengths = changed_ranges(view, 5, size_bytes=size_bytes, base_bytes=base_bytes)
    if spans:
        assert offsets.tolist() == [spans[0] * MIB]
        assert (offsets + lengths).tolist() == [min(size_bytes, (spans[-1] + 1) * MIB)]
    else:
        assert not len(offsets)


def test_spans_are_unsigned_and_sorted(view: BlockMap) -> None:
    spans = changed_spans(view, 0, size_bytes=SIZE, base_bytes=SIZE - MIB)
    assert spans.dtype == np.uint64
    assert spans.tolist() == [0, 1, 128, 198, 199]


def test_maps_differ_where_their_slots_do(view: BlockMap) -> None:
    older = view.freeze()
    put(view, 1, [9], 5)
    put(view, 3, [0], 5)
    put(view, 21, [0], 5)  # a tombstone where nothing was: still zeros
    put(view, PAGE_GRANULES, [10], 5)
    assert differing_granules(view, older).tolist() == [1, 3, PAGE_GRANULES]
    assert differing_granules(older, view).tolist() == [1, 3, PAGE_GRANULES]
    assert differing_granules(older, older).tolist() == []
    larger = view.fork()
    larger.resize(view.granule_count + 3 * PAGE_GRANULES, 6)
    put(larger, view.granule_count + 5, [11], 6)
    assert differing_granules(larger, view).tolist() == [view.granule_count + 5]
    assert differing_granules(view, larger).tolist() == []
