"""Pages, freezing, and what only one map names."""

from __future__ import annotations

import numpy as np
import pytest

from primary_array.block_map import PAGE_GRANULES, U64, BlockMap, only_in, without_repeats


def u64(*values: int) -> U64:
    return np.array(values, np.uint64)


def put(view: BlockMap, first: int, slots: list[int], birth: int) -> None:
    view.assign(first, u64(*slots), np.full(len(slots), birth, np.uint64))


def test_lookup_crosses_pages_and_holes() -> None:
    view = BlockMap(3 * PAGE_GRANULES)
    put(view, PAGE_GRANULES - 2, [5, 6, 7, 8], 3)
    slots, births = view.lookup(PAGE_GRANULES - 3, 6)
    assert slots.tolist() == [0, 5, 6, 7, 8, 0]
    assert births.tolist() == [0, 3, 3, 3, 3, 0]
    assert view.lookup(2 * PAGE_GRANULES, PAGE_GRANULES)[0].any() == np.False_
    assert view.mapped_count == 4


def test_last_page_may_be_used_in_part() -> None:
    view = BlockMap(PAGE_GRANULES + 1)
    put(view, PAGE_GRANULES, [9], 1)
    assert view.lookup(PAGE_GRANULES, 1)[0].tolist() == [9]
    with pytest.raises(AssertionError):
        view.lookup(PAGE_GRANULES, 2)
    with pytest.raises(AssertionError):
        put(view, PAGE_GRANULES, [9, 10], 1)


def test_frozen_pages_never_change_and_untouched_ones_stay_shared() -> None:
    view = BlockMap(2 * PAGE_GRANULES)
    put(view, 0, [1], 1)
    put(view, PAGE_GRANULES, [2], 1)
    frozen = view.freeze()
    put(view, 0, [3], 2)
    assert frozen.lookup(0, 1)[0].tolist() == [1]
    assert view.lookup(0, 1)[0].tolist() == [3]
    assert frozen.pages()[1] is view.pages()[1]
    page = frozen.pages()[0]
    assert page is not None
    with pytest.raises(ValueError, match="read-only"):
        page.slots[0] = 7


def test_second_freeze_shares_all_that_was_not_written() -> None:
    view = BlockMap(PAGE_GRANULES)
    put(view, 0, [1], 1)
    assert view.freeze().pages()[0] is view.freeze().pages()[0]


def test_scatter_takes_the_last_of_repeats_and_counts_right() -> None:
    view = BlockMap(4 * PAGE_GRANULES)
    put(view, 7, [70], 1)
    granules = u64(3 * PAGE_GRANULES, 7, 5, 7, 5)
    view.scatter(granules, u64(1, 2, 3, 0, 4), 9)
    assert view.lookup(5, 3)[0].tolist() == [4, 0, 0]
    assert view.lookup(5, 3)[1].tolist() == [9, 0, 9]
    assert view.mapped_count == 2
    assert sorted(view.slots().tolist()) == [1, 4]


def test_scatter_equals_assign_on_random_input() -> None:
    rng = np.random.default_rng(5)
    one, other = BlockMap(5000), BlockMap(5000)
    for birth in range(1, 30):
        first = int(rng.integers(0, 4000))
        slots = rng.integers(0, 1 << 40, int(rng.integers(1, 900)), dtype=np.uint64)
        one.assign(first, slots, np.full(len(slots), birth, np.uint64))
        other.scatter(np.arange(first, first + len(slots), dtype=np.uint64), slots, birth)
        if birth % 5 == 0:
            one.freeze()
    for mine, theirs in zip(one.lookup(0, 5000), other.lookup(0, 5000), strict=True):
        assert np.array_equal(mine, theirs)
    assert one.mapped_count == other.mapped_count == int(np.count_nonzero(one.lookup(0, 5000)[0]))


def test_only_in_finds_what_no_neighbour_names() -> None:
    view = BlockMap(2 * PAGE_GRANULES)
    put(view, 0, [1, 2, 3, 0], 1)
    put(view, PAGE_GRANULES, [4], 1)
    older = view.freeze()
    put(view, 0, [11], 2)
    put(view, 2, [0], 2)
    middle = view.freeze()
    put(view, 1, [12], 3)
    assert only_in(older, [middle]).tolist() == [1, 3]
    assert only_in(middle, [older]).tolist() == [11]
    assert only_in(middle, [view]).tolist() == [2]
    assert sorted(only_in(older, []).tolist()) == [1, 2, 3, 4]


@pytest.mark.parametrize("values", [[], [3], [3, 3], [1, 1, 2, 5, 5, 5, 9]])
def test_without_repeats(values: list[int]) -> None:
    assert without_repeats(u64(*values)).tolist() == sorted(set(values))
