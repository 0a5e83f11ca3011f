"""A diff reports what differs, and reads nothing that both trees share."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arraylift.segments.segmentation import DEFAULT_SEGMENTATION, Segmentation, Segmenter
from arraylift.segments.tree import Leaf, Leaves, decode_leaf, encode_leaf, height_of
from arraylift.segments.tree_diff import differing_ranges, differing_spans, joined
from arraylift.sizes import KIB, SPAN_BYTES
from tests.property.test_tree import KEY, build, counts, leaves_of, patterns
from tests.property.test_tree_update import Shelf, edits_of, resized, shorts


def spans_found(one: Shelf, other: Shelf) -> list[int]:
    pieces = list(differing_spans(one.view(), other.view()))
    found = np.concatenate(pieces).tolist() if pieces else []
    assert found == sorted(set(found)), "ascending, once each"
    return found


@given(leaves=patterns, short=shorts, spans=counts, new_short=shorts, edits=edits_of)
def test_the_differing_spans_are_those_whose_leaves_differ(
    leaves: Leaves, short: int, spans: int, new_short: int, edits: dict[int, bytes]
) -> None:
    other = resized(leaves, short, spans, new_short, edits)
    kept = min(len(leaves), spans)
    expected = np.flatnonzero((leaves[:kept] != other[:kept]).any(axis=1)).tolist()
    one, two = Shelf(build(leaves, short)), Shelf(build(other, new_short))
    assert spans_found(one, two) == expected
    assert spans_found(two, one) == expected


@given(
    start=st.integers(0, 69_999),
    length=st.integers(1, 2000),
    hole=st.booleans(),
)
def test_equal_subtrees_are_not_read(start: int, length: int, hole: bool) -> None:
    """Of 276 nodes on each side, those above the change; none of what it made a hole."""
    leaves = _large()
    other = leaves.copy()
    end = min(70_000, start + length)
    other[start:end] = 0 if hole else 7
    one, two = Shelf(_nodes(leaves)), Shelf(build(other))
    assert spans_found(one, two) == list(range(start, end))
    places = np.arange(start, end)
    above = len(np.unique(places // 256)) + len(np.unique(places // 65_536)) + 1 + 1
    assert len(one.fetched) == above
    assert len(two.fetched) <= above
    assert not set(one.fetched) & set(two.fetched), "what both have is read from neither"


def _large(memo: list[Leaves] = []) -> Leaves:  # noqa: B006
    if not memo:
        memo.append(leaves_of(70_000, 3, 1.0, []))
    return memo[0]


def _nodes(leaves: Leaves, memo: list[list[tuple[bytes, bytes]]] = []) -> list[tuple[bytes, bytes]]:  # noqa: B006
    if not memo:
        memo.append(build(leaves))
    return memo[0]


@pytest.mark.parametrize(("small", "large"), [(1, 257), (256, 65_537), (257, 65_537), (1, 65_537)])
def test_of_a_taller_tree_only_its_beginning_is_read(small: int, large: int) -> None:
    leaves = leaves_of(large, 1, 1.0, [])
    beginning = leaves[:small].copy()
    beginning[-1, 0] ^= 1
    one, two = Shelf(build(beginning)), Shelf(build(leaves))
    assert spans_found(one, two) == [small - 1]
    # A root, what leads down, and the one node of each level where the difference lies.
    assert len(one.fetched) == height_of(small) + 1
    assert len(two.fetched) == height_of(large) + 1


def test_an_image_does_not_differ_from_itself() -> None:
    shelf = Shelf(_nodes(_large()))
    assert spans_found(shelf, Shelf(_nodes(_large()))) == []
    assert len(shelf.fetched) == 1


# -- segments of one span -----------------------------------------------------------------------


def leaf_of(plain: bytes, how: Segmentation = DEFAULT_SEGMENTATION) -> Leaf | None:
    if not any(plain):
        return None
    pieces = Segmenter(how).cut(memoryview(plain))
    lengths = np.array([len(piece) for piece in pieces], "<u4").tobytes()
    return decode_leaf(encode_leaf(lengths, KEY.segments(pieces)), len(plain))


coarse = Segmentation(segment_bytes_average=32 * KIB)


@given(
    seed=st.integers(0, 99),
    changes=st.lists(st.tuples(st.integers(0, 300 * KIB), st.integers(1, 5000)), max_size=4),
    cut=st.integers(0, 100 * KIB),
    how=st.sampled_from([DEFAULT_SEGMENTATION, coarse]),
)
def test_outside_the_differing_ranges_the_bytes_are_equal(
    seed: int, changes: list[tuple[int, int]], cut: int, how: Segmentation
) -> None:
    one = np.random.default_rng(seed).bytes(300 * KIB)
    two = bytearray(one)
    for at, length in changes:
        two[at : at + length] = bytes(value ^ 255 for value in two[at : at + length])
    other = bytes(two[: len(two) - cut])
    found = differing_ranges(leaf_of(one), leaf_of(other, how), len(other))
    assert found == list(joined(found))
    assert all(0 <= start < end <= len(other) for start, end in found)
    left = np.ones(len(other), dtype=np.bool_)
    for start, end in found:
        left[start:end] = False
    a, b = np.frombuffer(one[: len(other)], np.uint8), np.frombuffer(other, np.uint8)
    assert np.array_equal(a[left], b[left])
    if how is DEFAULT_SEGMENTATION:
        changed = np.flatnonzero(a != b)
        grain = DEFAULT_SEGMENTATION.segment_bytes_max
        limit = (len(changes) + 1) * 3 * grain
        assert sum(end - start for start, end in found) <= limit
        if not len(changed) and not cut:
            assert found == []


def test_a_hole_differs_from_data_as_a_whole() -> None:
    some = leaf_of(b"x" * 5000)
    assert differing_ranges(None, None, SPAN_BYTES) == []
    assert differing_ranges(some, None, 5000) == [(0, 5000)]
    assert differing_ranges(None, some, 4000) == [(0, 4000)]
    assert differing_ranges(some, leaf_of(b"x" * 5000), 5000) == []
