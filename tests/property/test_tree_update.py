"""A tree built on another is the tree built from nothing, whatever changed, and costs what changed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arraylift.ids import Fingerprint
from arraylift.segments import tree
from arraylift.segments.segmentation import DEFAULT_SEGMENTATION
from arraylift.segments.tree import Leaves
from arraylift.segments.tree_update import update
from arraylift.segments.tree_view import TreeView
from arraylift.sizes import SPAN_BYTES, spans_of
from tests.property.test_tree import KEY, build, counts, leaves_of, patterns


class Shelf:
    """Nodes by name, and how many were asked for."""

    def __init__(self, nodes: Sequence[tuple[bytes, bytes]]) -> None:
        self.nodes = dict(nodes)
        self.root = Fingerprint(nodes[-1][0])
        self.fetched: list[bytes] = []

    def fetch(self, names: Sequence[Fingerprint]) -> list[bytes]:
        assert len(names) <= 256
        self.fetched += names
        return [self.nodes[name] for name in names]

    def view(self) -> TreeView:
        """The tree, of which nothing was read yet."""
        self.fetched = []
        return TreeView(self.root, self.fetch)


def resized(leaves: Leaves, short: int, spans: int, new_short: int, edits: dict[int, bytes]) -> Leaves:
    """The leaves of the new image; a span whose length changed has another leaf, unless it is a hole."""
    new = tree.no_leaves(spans)
    kept = min(spans, len(leaves))
    new[:kept] = leaves[:kept]
    for span, leaf in edits.items():
        new[span % spans] = np.frombuffer(leaf, np.uint8)
    if (len(leaves), short) != (spans, new_short) and new[kept - 1].any():
        new[kept - 1, 0] ^= 1
    return new


leaf_bytes = st.one_of(st.just(bytes(32)), st.integers(1, 255).map(lambda value: bytes([value]) * 32))
edits_of = st.dictionaries(st.integers(0, 1500), leaf_bytes, max_size=5)
shorts = st.sampled_from([0, 1, SPAN_BYTES - 1])


def check(
    leaves: Leaves, short: int, spans: int, new_short: int, edits: dict[int, bytes]
) -> tuple[Shelf, list[tuple[Fingerprint, bytes]], int]:
    shelf = Shelf(build(leaves, short))
    new = resized(leaves, short, spans, new_short, edits)
    size = spans * SPAN_BYTES - new_short
    kept = min(spans, len(leaves))
    changed = {span % spans for span in edits}
    if size != len(leaves) * SPAN_BYTES - short:
        changed.add(kept - 1)
    changed |= {span for span in range(kept, spans) if new[span].any()}
    places = np.array(sorted(changed), dtype=np.int64)
    view = shelf.view()
    made = list(update(view, image_bytes=size, changed=places, leaves=new[places], key=KEY))
    expected = build(new, new_short)
    assert made[-1] == expected[-1], "the root of a build from all leaves"
    together: dict[bytes, bytes] = dict(shelf.nodes)
    together.update(made)
    assert together.items() >= dict(expected).items(), "and every node of it"
    assert set(expected) >= set(made), "and none besides"
    read_back = TreeView(made[-1][0], lambda names: [together[name] for name in names])
    assert np.array_equal(read_back.leaves, new)
    return shelf, made, len(places)


@given(leaves=patterns, short=shorts, edits=edits_of)
def test_changes_make_the_tree_of_a_whole_build(leaves: Leaves, short: int, edits: dict[int, bytes]) -> None:
    shelf, made, changed = check(leaves, short, len(leaves), short, edits)
    height = tree.height_of(len(leaves))
    assert len(made) <= changed * height + 1
    assert len(shelf.fetched) <= changed * height + 2
    assert len(set(shelf.fetched)) == len(shelf.fetched), "each node is read once"


@given(leaves=patterns, short=shorts, spans=counts, new_short=shorts, edits=edits_of)
def test_another_size_makes_the_tree_of_a_whole_build(
    leaves: Leaves, short: int, spans: int, new_short: int, edits: dict[int, bytes]
) -> None:
    check(leaves, short, spans, new_short, edits)


@pytest.mark.parametrize("before", [1, 256, 257, 65536, 65537])
@pytest.mark.parametrize("after", [1, 2, 256, 257, 65536, 65537])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_every_change_of_height(before: int, after: int, share: float) -> None:
    leaves = leaves_of(before, before, share, [(256, 256)])
    kept = min(before, after)
    _, made, _ = check(leaves, 0, after, 0, {kept - 1: bytes(32), kept // 2: b"x" * 32})
    assert len(made) <= 4 * tree.height_of(after) + 1


@given(start=st.integers(0, 69_999), length=st.integers(1, 300))
def test_work_follows_the_change(start: int, length: int) -> None:
    """70,000 spans have 276 nodes; a run of changes reads and makes those above it."""
    shelf = _large()
    places = np.arange(start, min(70_000, start + length))
    view = shelf.view()
    leaves = np.full((len(places), 32), 7, dtype=np.uint8)
    made = list(update(view, image_bytes=70_000 * SPAN_BYTES, changed=places, leaves=leaves, key=KEY))
    limit = len(np.unique(places // 256)) + len(np.unique(places // 65_536)) + 1 + 1
    assert len(made) == limit
    assert len(shelf.fetched) == limit


def _large(memo: list[Shelf] = []) -> Shelf:  # noqa: B006
    if not memo:
        memo.append(Shelf(build(leaves_of(70_000, 3, 1.0, []))))
    return memo[0]


def test_what_is_offered_as_it_was_makes_nothing() -> None:
    shelf = _large()
    view = shelf.view()
    places = np.arange(500, 600)
    same = view.leaves_at(places)
    made = list(update(view, image_bytes=70_000 * SPAN_BYTES, changed=places, leaves=same, key=KEY))
    assert [name for name, _ in made] == [shelf.root]


def test_a_view_reads_only_the_paths_that_it_is_asked_for() -> None:
    shelf = _large()
    view = shelf.view()
    assert len(shelf.fetched) == 1, "the root"
    view.leaves_of(300, 310)
    assert len(shelf.fetched) == 4, "one node a level"
    view.leaves_of(256, 512)
    assert len(shelf.fetched) == 4, "nothing twice"
    assert view.info.segmentation == DEFAULT_SEGMENTATION
    assert len(view.leaves) == spans_of(view.info.image_bytes)
    assert len(shelf.fetched) == len(shelf.nodes)
