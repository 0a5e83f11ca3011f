"""Pages and nodes: freezing, sharing, sizes, and which slots nobody names any more."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest

from primary_array.block_map import (
    NODE_PAGES,
    PAGE_GRANULES,
    U64,
    BlockMap,
    MapView,
    without_repeats,
)
from primary_array.slot_counts import SlotCounts


def new_map(granule_count: int, counts: SlotCounts | None = None) -> BlockMap:
    return BlockMap(granule_count, counts or SlotCounts())


def u64(*values: int) -> U64:
    return np.array(values, np.uint64)


def put(view: BlockMap, first: int, slots: list[int], birth: int) -> None:
    view.assign(first, u64(*slots), np.full(len(slots), birth, np.uint64))


def test_lookup_crosses_pages_and_holes() -> None:
    view = new_map(3 * PAGE_GRANULES)
    put(view, PAGE_GRANULES - 2, [5, 6, 7, 8], 3)
    slots, births = view.lookup(PAGE_GRANULES - 3, 6)
    assert slots.tolist() == [0, 5, 6, 7, 8, 0]
    assert births.tolist() == [0, 3, 3, 3, 3, 0]
    assert view.lookup(2 * PAGE_GRANULES, PAGE_GRANULES)[0].any() == np.False_
    assert view.mapped_count == 4


def test_last_page_may_be_used_in_part() -> None:
    view = new_map(PAGE_GRANULES + 1)
    put(view, PAGE_GRANULES, [9], 1)
    assert view.lookup(PAGE_GRANULES, 1)[0].tolist() == [9]
    with pytest.raises(AssertionError):
        view.lookup(PAGE_GRANULES, 2)
    with pytest.raises(AssertionError):
        put(view, PAGE_GRANULES, [9, 10], 1)


def test_frozen_pages_never_change_and_untouched_ones_stay_shared() -> None:
    view = new_map(2 * PAGE_GRANULES)
    put(view, 0, [1], 1)
    put(view, PAGE_GRANULES, [2], 1)
    frozen = view.freeze()
    put(view, 0, [3], 2)
    assert frozen.lookup(0, 1)[0].tolist() == [1]
    assert view.lookup(0, 1)[0].tolist() == [3]
    assert frozen.page(1) is view.page(1)
    page = frozen.page(0)
    assert page is not None
    with pytest.raises(ValueError, match="read-only"):
        page.slots[0] = 7


def test_second_freeze_shares_all_that_was_not_written() -> None:
    view = new_map(PAGE_GRANULES)
    put(view, 0, [1], 1)
    assert view.freeze().page(0) is view.freeze().page(0)


def test_scatter_takes_the_last_of_repeats_and_counts_right() -> None:
    view = new_map(4 * PAGE_GRANULES)
    put(view, 7, [70], 1)
    granules = u64(3 * PAGE_GRANULES, 7, 5, 7, 5)
    view.scatter(granules, u64(1, 2, 3, 0, 4), 9)
    assert view.lookup(5, 3)[0].tolist() == [4, 0, 0]
    assert view.lookup(5, 3)[1].tolist() == [9, 0, 9]
    assert view.mapped_count == 2
    assert view.lookup(3 * PAGE_GRANULES, 1)[0].tolist() == [1]


def test_scatter_equals_assign_on_random_input() -> None:
    rng = np.random.default_rng(5)
    one, other = new_map(5000), new_map(5000)
    for birth in range(1, 30):
        first = int(rng.integers(0, 4000))
        slots = rng.permutation(np.arange(1, 6000, dtype=np.uint64))[: int(rng.integers(1, 900))]
        slots += np.uint64(6000 * birth)
        one.assign(first, slots, np.full(len(slots), birth, np.uint64))
        other.scatter(np.arange(first, first + len(slots), dtype=np.uint64), slots, birth)
        if birth % 5 == 0:
            one.freeze()
    for mine, theirs in zip(one.lookup(0, 5000), other.lookup(0, 5000), strict=True):
        assert np.array_equal(mine, theirs)
    assert one.mapped_count == other.mapped_count == int(np.count_nonzero(one.lookup(0, 5000)[0]))


def test_release_tells_what_nobody_names() -> None:
    view = new_map(2 * PAGE_GRANULES)
    put(view, 0, [1, 2, 3, 0], 1)
    put(view, PAGE_GRANULES, [4], 1)
    older = view.freeze()
    put(view, 0, [11], 2)
    put(view, 2, [0], 2)
    middle = view.freeze()
    put(view, 1, [12], 3)
    assert older.unique_count() == 2
    assert sorted(older.release().tolist()) == [1, 3]
    assert sorted(middle.release().tolist()) == [2]
    assert older.lookup(0, 3)[0].tolist() == [1, 2, 3]  # who still reads it, may
    assert sorted(view.release().tolist()) == [4, 11, 12]


def test_snapshot_shares_the_nodes_that_are_not_written() -> None:
    view = new_map(4 * NODE_PAGES * PAGE_GRANULES)
    for node in range(4):
        put(view, node * NODE_PAGES * PAGE_GRANULES, [node + 1], 1)
    frozen = view.freeze()
    put(view, 0, [9], 2)
    shared = [mine is theirs for mine, theirs in zip(view.nodes(), frozen.nodes(), strict=True)]
    assert shared == [False, True, True, True]


def test_growing_a_tebibyte_costs_a_page() -> None:
    view = new_map(5)
    put(view, 0, [1, 2, 3, 4, 5], 1)
    view.resize(1 << 24, 7)
    assert len({id(page) for _, page in view.pages()}) == 2
    assert view.lookup(3, 4)[0].tolist() == [4, 5, 0, 0]
    assert view.lookup(3, 4)[1].tolist() == [1, 1, 7, 7]
    assert view.lookup((1 << 24) - 1, 1)[1].tolist() == [7]
    assert view.mapped_count == 5
    put(view, 1 << 20, [6], 8)
    assert view.lookup((1 << 20) - 1, 3)[1].tolist() == [7, 8, 7]
    assert sorted(view.resize(3, 9).tolist()) == [4, 5, 6]


@dataclass
class Model:
    view: MapView
    slots: list[int]
    births: list[int]


SIZES = (1, 700, PAGE_GRANULES, 3 * PAGE_GRANULES - 1, NODE_PAGES * PAGE_GRANULES + 5)


@pytest.mark.parametrize("seed", range(12))
def test_random_histories_of_sharing_against_lists(seed: int) -> None:
    """Writes, snapshots, clones, resizes and releases in any order: every map has its content, and a
    slot is told as free exactly when the last map that names it lets it go."""
    chance = random.Random(seed)
    counts = SlotCounts()
    size = chance.choice(SIZES)
    models = [Model(new_map(size, counts), [0] * size, [0] * size)]
    next_slot = birth = 1
    for _ in range(120):
        before = {slot for model in models for slot in model.slots if slot}
        model = chance.choice(models)
        birth += 1
        action = chance.choice(("write", "write", "write", "freeze", "fork", "resize", "release"))
        given: set[int] = set()
        freed: list[int] = []
        if action == "write" and isinstance(model.view, BlockMap):
            first = chance.randrange(len(model.slots))
            count = min(len(model.slots) - first, chance.choice((1, 3, PAGE_GRANULES)))
            slots = [0] * count if chance.random() < 0.3 else list(range(next_slot, next_slot + count))
            next_slot += count
            given = set(slots) - {0}
            model.slots[first : first + count] = slots
            model.births[first : first + count] = [birth] * count
            array = u64(*slots)
            if chance.random() < 0.5:
                freed = model.view.assign(first, array, np.full(count, birth, np.uint64)).tolist()
            else:
                granules = np.arange(first, first + count, dtype=np.uint64)
                freed = model.view.scatter(granules, array, birth).tolist()
        elif action == "freeze" and isinstance(model.view, BlockMap) and len(models) < 8:
            models.append(Model(model.view.freeze(), list(model.slots), list(model.births)))
        elif action == "fork" and len(models) < 8:
            models.append(Model(model.view.fork(), list(model.slots), list(model.births)))
        elif action == "resize" and isinstance(model.view, BlockMap):
            size = chance.choice(SIZES)
            grown = size - len(model.slots)
            freed = model.view.resize(size, birth).tolist()
            model.slots = model.slots[:size] + [0] * max(0, grown)
            model.births = model.births[:size] + [birth] * max(0, grown)
        elif action == "release" and len(models) > 1:
            models.remove(model)
            freed = model.view.release().tolist()
        after = {slot for model in models for slot in model.slots if slot}
        assert sorted(freed) == sorted((before | given) - after)
        assert counts.named().tolist() == sorted(after)
    total = Counter(slot for model in models for slot in set(model.slots) if slot)
    for model in models:
        found = model.view.lookup(0, len(model.slots))
        assert [part.tolist() for part in found] == [model.slots, model.births]
        assert model.view.mapped_count == sum(1 for slot in model.slots if slot)
        assert model.view.unique_count() == sum(1 for slot in model.slots if slot and total[slot] == 1)


@pytest.mark.parametrize("values", [[], [3], [3, 3], [1, 1, 2, 5, 5, 5, 9]])
def test_without_repeats(values: list[int]) -> None:
    assert without_repeats(u64(*values)).tolist() == sorted(set(values))
