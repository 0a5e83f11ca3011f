"""Trees are pure and canonical, whatever holes they have and wherever a bit flips."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arraylift.errors import Corruption
from arraylift.ids import Fingerprint
from arraylift.segments import tree
from arraylift.segments.fingerprint import FingerprintKey
from arraylift.segments.segmentation import DEFAULT_SEGMENTATION, Policy, Segmentation
from arraylift.segments.tree import FAN_OUT, Leaves, Root
from arraylift.segments.tree_view import TreeView
from arraylift.sizes import IMAGE_BYTES_MAX, SPAN_BYTES, spans_of

KEY = FingerprintKey(bytes(range(32)))
OTHER_KEY = FingerprintKey(bytes(range(1, 33)))

counts = st.one_of(
    st.sampled_from([1, 2, 255, 256, 257, 511, 512, 513]),
    st.integers(1, 1500),
)


def leaves_of(spans: int, seed: int, share: float, runs: list[tuple[int, int]]) -> Leaves:
    """Leaves where ``share`` are solid, except in runs (start, length) of holes."""
    chance = np.random.default_rng(seed)
    leaves = chance.integers(0, 256, (spans, 32), dtype=np.uint8)
    leaves[chance.random(spans) >= share] = 0
    for start, length in runs:
        leaves[start % spans : start % spans + length] = 0
    return leaves


patterns = st.builds(
    leaves_of,
    counts,
    st.integers(0, 99),
    st.sampled_from([0.0, 0.01, 0.5, 1.0]),
    st.lists(st.tuples(st.integers(0, 1500), st.integers(1, 600)), max_size=3),
)


def build(
    leaves: Leaves, short: int = 0, how: Segmentation = DEFAULT_SEGMENTATION
) -> list[tuple[bytes, bytes]]:
    size = len(leaves) * SPAN_BYTES - short
    return list(tree.build(leaves, image_bytes=size, segmentation=how, key=KEY))


def load(nodes: list[tuple[bytes, bytes]]) -> tuple[Root, Leaves, int]:
    """The tree read back, and how many nodes that took."""
    stored, fetched = dict(nodes), 0

    def fetch(names: Sequence[Fingerprint]) -> list[bytes]:
        nonlocal fetched
        fetched += len(names)
        assert len(names) <= 256
        return [stored[name] for name in names]

    view = TreeView(Fingerprint(nodes[-1][0]), fetch)
    return view.info, view.leaves, fetched


def check_round_trip(leaves: Leaves, short: int) -> None:
    nodes = build(leaves, short)
    info, found, fetched = load(nodes)
    assert np.array_equal(found, leaves)
    assert info == Root(
        len(leaves) * SPAN_BYTES - short, DEFAULT_SEGMENTATION, tree.height_of(len(leaves)), info.top
    )
    assert fetched == len(nodes), "each solid node is read once, holes not at all"
    assert all(len(node) <= tree.NODE_BYTES_MAX and KEY.node(node) == name for name, node in nodes)


@given(leaves=patterns, short=st.integers(0, SPAN_BYTES - 1))
def test_what_is_loaded_is_what_was_built(leaves: Leaves, short: int) -> None:
    check_round_trip(leaves, short)


@pytest.mark.parametrize("spans", [1, 255, 256, 257, 65535, 65536, 65537])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_every_height_is_loaded(spans: int, share: float) -> None:
    check_round_trip(leaves_of(spans, spans, share, [(256, 256)]), short=7)


@pytest.mark.parametrize(
    ("spans", "height"), [(1, 0), (2, 1), (256, 1), (257, 2), (65536, 2), (65537, 3), (1 << 24, 3)]
)
def test_height_is_the_fewest_levels(spans: int, height: int) -> None:
    assert tree.height_of(spans) == height


@given(leaves=patterns)
def test_a_tree_is_a_pure_function(leaves: Leaves) -> None:
    assert build(leaves) == build(np.asfortranarray(leaves).copy(order="C"))
    root = tree.root_of(
        leaves, image_bytes=len(leaves) * SPAN_BYTES, segmentation=DEFAULT_SEGMENTATION, key=KEY
    )
    assert root == build(leaves)[-1][0]


def test_everything_that_makes_an_image_makes_its_root() -> None:
    leaves = leaves_of(300, 1, 0.5, [])
    changed = leaves.copy()
    changed[299, 31] ^= 1
    size = 300 * SPAN_BYTES
    fixed = Segmentation(Policy.FIXED)
    roots = {
        tree.root_of(leaves, image_bytes=size, segmentation=DEFAULT_SEGMENTATION, key=KEY),
        tree.root_of(leaves, image_bytes=size - 1, segmentation=DEFAULT_SEGMENTATION, key=KEY),
        tree.root_of(leaves, image_bytes=size, segmentation=fixed, key=KEY),
        tree.root_of(leaves, image_bytes=size, segmentation=DEFAULT_SEGMENTATION, key=OTHER_KEY),
        tree.root_of(changed, image_bytes=size, segmentation=DEFAULT_SEGMENTATION, key=KEY),
        tree.root_of(leaves[::-1].copy(), image_bytes=size, segmentation=DEFAULT_SEGMENTATION, key=KEY),
    }
    assert len(roots) == 6


@given(start=st.integers(0, 70_000), length=st.integers(1, 70_000))
def test_equal_subtrees_are_equal_nodes(start: int, length: int) -> None:
    """A change costs at most the nodes above it."""
    leaves = leaves_of(70_000, 3, 1.0, [])
    before = {name for name, _ in _cached_nodes()}
    end = min(70_000, start + length)
    leaves[start:end] = 0
    new = {name for name, _ in build(leaves)} - before
    assert len(new) <= 2 * tree.height_of(70_000) + 1


def _cached_nodes(memo: list[list[tuple[bytes, bytes]]] = []) -> list[tuple[bytes, bytes]]:  # noqa: B006
    if not memo:
        memo.append(build(leaves_of(70_000, 3, 1.0, [])))
    return memo[0]


def test_an_image_of_holes_is_one_root() -> None:
    for spans in (1, 2, 65537):
        assert len(build(tree.no_leaves(spans))) == 1


# -- T3 -----------------------------------------------------------------------------------------


@st.composite
def mutations(draw: st.DrawFn, node: bytes) -> bytes:
    kind = draw(st.sampled_from(["flip", "cut", "extend", "zero"]))
    if kind == "cut":
        return node[: draw(st.integers(0, len(node) - 1))]
    if kind == "extend":
        return node + draw(st.binary(min_size=1, max_size=40))
    changed = bytearray(node)
    if kind == "zero":
        start = draw(st.integers(0, (len(node) - 1) // 32)) * 32 + 4
        changed[start : start + 32] = bytes(len(changed[start : start + 32]))
    else:
        head = st.integers(0, min(60, len(node) - 1))
        for at in draw(st.lists(head | st.integers(0, len(node) - 1), min_size=1, max_size=3)):
            changed[at] ^= 1 << draw(st.integers(0, 7))
    return bytes(changed)


@given(data=st.data(), count=st.integers(1, 256), seed=st.integers(0, 99))
def test_mutated_leaves_are_refused_or_canonical(data: st.DataObject, count: int, seed: int) -> None:
    chance = np.random.default_rng(seed)
    lengths = chance.integers(1, 9000, count).astype("<u4")
    node = tree.encode_leaf(lengths.tobytes(), chance.bytes(32 * count))
    changed = data.draw(mutations(node))
    for span_bytes in (int(lengths.sum()), data.draw(st.integers(1, SPAN_BYTES))):
        try:
            leaf = tree.decode_leaf(changed, span_bytes)
        except Corruption:
            continue
        assert tree.encode_leaf(leaf.lengths.tobytes(), leaf.fingerprints) == changed
        assert int(leaf.lengths.sum()) == span_bytes


@given(data=st.data(), count=st.integers(1, FAN_OUT), share=st.sampled_from([0.02, 0.5, 1.0]))
def test_mutated_inner_nodes_are_refused_or_canonical(data: st.DataObject, count: int, share: float) -> None:
    leaves = leaves_of(count, count, share, [])
    leaves[0, 0] |= 1
    changed = data.draw(mutations(tree.encode_inner(leaves)))
    for children in {count, data.draw(st.integers(1, FAN_OUT))}:
        try:
            found = tree.decode_inner(changed, children)
        except Corruption:
            continue
        assert tree.encode_inner(found) == changed


@given(data=st.data(), image_bytes=st.integers(1, IMAGE_BYTES_MAX), policy=st.sampled_from(Policy))
def test_mutated_roots_are_refused_or_canonical(
    data: st.DataObject, image_bytes: int, policy: Policy
) -> None:
    height = tree.height_of(spans_of(image_bytes))
    node = tree.encode_root(Root(image_bytes, Segmentation(policy), height, Fingerprint(b"t" * 32)))
    assert tree.decode_root(node).image_bytes == image_bytes
    changed = data.draw(mutations(node))
    try:
        root = tree.decode_root(changed)
    except Corruption:
        return
    assert tree.encode_root(root) == changed


@given(node=st.binary(max_size=200), children=st.integers(1, 256), span_bytes=st.integers(1, SPAN_BYTES))
def test_noise_is_never_more_than_corruption(node: bytes, children: int, span_bytes: int) -> None:
    for kind in (b"\x01\x01", b"\x02\x01", b"\x03\x01", b""):
        for decode in (
            lambda data: tree.decode_leaf(data, span_bytes),
            lambda data: tree.decode_inner(data, children),
            tree.decode_root,
        ):
            with contextlib.suppress(Corruption):
                decode(kind + node)


def test_a_named_hole_is_refused() -> None:
    """Absence is the only way to say it, or one tree would have two roots (T1, T3)."""
    leaves = leaves_of(3, 1, 1.0, [])
    node = bytearray(tree.encode_inner(leaves))
    node[-32:] = bytes(32)
    with pytest.raises(Corruption, match="names a hole"):
        tree.decode_inner(bytes(node), 3)
    leaves[2] = 0
    assert np.array_equal(tree.decode_inner(tree.encode_inner(leaves), 3), leaves)


def test_nodes_do_not_stand_in_for_each_other() -> None:
    """A node of another type or place is refused even when its fingerprint is the right one."""
    nodes = build(leaves_of(300, 1, 1.0, []))
    by_kind = {node[0]: node for _, node in nodes}
    for wrong in (by_kind[2], tree.encode_leaf(b"\1\0\0\0", bytes(32))):
        with pytest.raises(Corruption):
            TreeView(Fingerprint(bytes(32)), functools.partial(lambda node, _: [node], wrong)).load(0, 300)
    with pytest.raises(Corruption):
        TreeView(Fingerprint(nodes[-1][0]), lambda names: [by_kind[3]] * len(names)).load(0, 300)
    inner = [node for _, node in nodes if node[0] == 2]
    with pytest.raises(Corruption, match="children of its place"):
        tree.decode_inner(inner[0], 44)


def test_a_bit_past_the_children_is_refused() -> None:
    """Even where the node has a fingerprint for it."""
    leaves = leaves_of(3, 1, 1.0, [])
    node = bytearray(tree.encode_inner(leaves))
    node[4] |= 1 << 3
    for changed in (bytes(node), bytes(node) + b"f" * 32):
        with pytest.raises(Corruption, match="bitmap"):
            tree.decode_inner(changed, 3)
    assert (
        tree.decode_inner(bytes(node[:2] + b"\x04\x00" + node[4:]) + b"f" * 32, 4)[3].tobytes() == b"f" * 32
    )


def test_an_empty_segment_is_refused() -> None:
    """Else one content would have many leaves (T1)."""
    lengths = np.array([4096, 0, 5000], "<u4")
    with pytest.raises(Corruption, match="add up"):
        tree.decode_leaf(tree.encode_leaf(lengths.tobytes(), bytes(96)), 9096)


def test_leaf_lengths_do_not_wrap() -> None:
    lengths = np.array([2**31, 2**31, 5], "<u4")
    with pytest.raises(Corruption, match="add up"):
        tree.decode_leaf(tree.encode_leaf(lengths.tobytes(), bytes(96)), 5)


@pytest.mark.parametrize("height", [0, 2, 3, 65535])
def test_another_height_is_refused(height: int) -> None:
    """An image of two spans has one inner level, or it would have many roots (T1)."""
    node = tree.encode_root(Root(2 * SPAN_BYTES, DEFAULT_SEGMENTATION, height, Fingerprint(b"t" * 32)))
    with pytest.raises(Corruption, match=f"height {height}"):
        tree.decode_root(node)
