"""The segment tree: an image's identity as a tree of content-addressed nodes ([0055], [0056]).

Invariants:
  T1 a tree is a pure function of (bytes, size, segmentation, key): zero spans are
     holes, equal subtrees are equal nodes.
  T2 a node names its children by fingerprint; a hole is named by absence and costs
     nothing, however large.
  T3 decoding refuses whatever encoding would not have produced.
Shape: one leaf a span; inner nodes of fan-out 256; the fewest levels that span the
image; a root node that adds size and segmentation. The list of leaf fingerprints
(32 bytes a span) is what a tree is built from: 3.2 MB for 100 GiB. ``tree_view`` reads
trees, ``tree_update`` builds one on another, ``tree_diff`` compares two.
Format: docs/formats/segment-tree-v1.md. Callers: any thread.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arraylift.errors import Corruption, InvalidRequest
from arraylift.ids import FINGERPRINT_BYTES, Fingerprint
from arraylift.segments.fingerprint import ZERO_FINGERPRINT, FingerprintKey
from arraylift.segments.segmentation import Policy, Segmentation
from arraylift.sizes import IMAGE_BYTES_MAX, SEGMENTS_PER_SPAN_MAX, spans_of

FAN_OUT = 256
NODE_BYTES_MAX = 16 * 1024
"""No encoded node is larger: a full leaf has 256 entries of 36 bytes."""

_LEAF, _INNER, _ROOT = 1, 2, 3
_VERSION = 1
_HEAD = struct.Struct("<BBH")
_ROOT_BODY = struct.Struct("<QIIIII32s")
_BITMAP_BYTES = FAN_OUT // 8

Leaves = npt.NDArray[np.uint8]
"""Shape (spans, 32): the fingerprint of each span's leaf, zero for a hole."""

Fetch = Callable[[Sequence[Fingerprint]], Sequence[bytes]]
"""Returns the encoded nodes of these fingerprints, verified, in order."""


@dataclass(frozen=True, slots=True)
class Root:
    """What a root node says of its image."""

    image_bytes: int
    segmentation: Segmentation
    height: int
    top: Fingerprint


@dataclass(frozen=True, slots=True)
class Leaf:
    """The segments of one span, in order."""

    lengths: npt.NDArray[np.uint32]
    fingerprints: bytes


def no_leaves(spans: int) -> Leaves:
    """Leaves of an image that is one hole."""
    return np.zeros((spans, FINGERPRINT_BYTES), dtype=np.uint8)


def holes_of(leaves: Leaves) -> npt.NDArray[np.bool_]:
    """True for each span that is a hole."""
    return np.logical_not(leaves.view(np.uint64).any(axis=1))


# -- leaves -------------------------------------------------------------------------------------


def encode_leaf(lengths: bytes | memoryview, fingerprints: bytes | memoryview) -> bytes:
    """Encode one span's segments: packed u32 lengths and packed fingerprints."""
    return b"".join((_HEAD.pack(_LEAF, _VERSION, len(lengths) // 4), lengths, fingerprints))


def decode_leaf(node: bytes, span_bytes: int) -> Leaf:
    """Decode the leaf of a span of ``span_bytes``. Raises Corruption (T3)."""
    count = _head(node, _LEAF)
    if not 1 <= count <= SEGMENTS_PER_SPAN_MAX or len(node) != _HEAD.size + count * 36:
        raise Corruption(f"a leaf node of {len(node)} bytes cannot hold {count} segments")
    lengths = np.frombuffer(node, dtype="<u4", count=count, offset=_HEAD.size)
    if not lengths.all() or int(lengths.sum(dtype=np.uint64)) != span_bytes:
        raise Corruption(f"a leaf node's segments do not add up to its span of {span_bytes} bytes")
    return Leaf(lengths, node[_HEAD.size + 4 * count :])


def _head(node: bytes, kind: int) -> int:
    if len(node) < _HEAD.size:
        raise Corruption("a tree node is shorter than its head")
    found, version, count = _HEAD.unpack_from(node)
    if (found, version) != (kind, _VERSION):
        raise Corruption(f"a tree node has type {found} version {version} where {kind} was expected")
    return int(count)


def names_in(node: bytes) -> tuple[bool, bytes]:
    """Return what a node names, wherever in a tree it stands: whether that is segments, and their
    packed fingerprints, holes left out. Raises Corruption (T3)."""
    kind = node[0] if node else 0
    if kind == _LEAF:
        count = _head(node, _LEAF)
        if len(node) != _HEAD.size + count * 36:
            raise Corruption(f"a leaf node of {len(node)} bytes cannot hold {count} segments")
        return True, node[_HEAD.size + 4 * count :]
    if kind == _INNER:
        decode_inner(node, _head(node, _INNER))
        return False, node[_HEAD.size + _BITMAP_BYTES :]
    top = decode_root(node).top
    return False, b"" if top == ZERO_FINGERPRINT else top


# -- building -----------------------------------------------------------------------------------


def build(
    leaves: Leaves, *, image_bytes: int, segmentation: Segmentation, key: FingerprintKey
) -> Iterator[tuple[Fingerprint, bytes]]:
    """Yield (fingerprint, encoded node) of every inner node, children first, the root last.

    ``leaves`` has one row a span. Equal nodes may be yielded more than once.
    """
    assert len(leaves) == spans_of(image_bytes), "one leaf a span"
    height, level = 0, leaves
    while len(level) > 1:
        height += 1
        above = []
        for start in range(0, len(level), FAN_OUT):
            node = encode_inner(level[start : start + FAN_OUT])
            fingerprint = key.node(node) if node else ZERO_FINGERPRINT
            if node:
                yield fingerprint, node
            above.append(fingerprint)
        level = np.frombuffer(b"".join(above), dtype=np.uint8).reshape(-1, FINGERPRINT_BYTES)
    root = encode_root(Root(image_bytes, segmentation, height, Fingerprint(level[0].tobytes())))
    yield key.node(root), root


def root_of(
    leaves: Leaves, *, image_bytes: int, segmentation: Segmentation, key: FingerprintKey
) -> Fingerprint:
    """Return the root fingerprint alone."""
    *_, (root, _) = build(leaves, image_bytes=image_bytes, segmentation=segmentation, key=key)
    return root


def encode_inner(children: Leaves) -> bytes:
    """Encode up to 256 children; empty bytes for a subtree that is one hole (T2)."""
    present = ~holes_of(np.ascontiguousarray(children))
    if not present.any():
        return b""
    bitmap = np.zeros(FAN_OUT, dtype=np.bool_)
    bitmap[: len(children)] = present
    packed = np.packbits(bitmap, bitorder="little").tobytes()
    return _HEAD.pack(_INNER, _VERSION, len(children)) + packed + children[present].tobytes()


def decode_inner(node: bytes, child_count: int) -> Leaves:
    """Decode an inner node at a place of ``child_count`` children. Raises Corruption (T3)."""
    if _head(node, _INNER) != child_count:
        raise Corruption(f"an inner node does not have the {child_count} children of its place")
    bitmap = np.frombuffer(node, np.uint8, _BITMAP_BYTES, _HEAD.size) if len(node) > _HEAD.size + 32 else None
    if bitmap is None:
        raise Corruption("an inner node is shorter than its bitmap")
    present = np.unpackbits(bitmap, bitorder="little").astype(np.bool_)
    start = _HEAD.size + _BITMAP_BYTES
    if present[child_count:].any() or len(node) - start != int(present.sum()) * FINGERPRINT_BYTES:
        raise Corruption("an inner node's bitmap does not match its children")
    named = np.frombuffer(node, np.uint8, -1, start).reshape(-1, FINGERPRINT_BYTES)
    if not named.any(axis=1).all():
        raise Corruption("an inner node names a hole, which only absence may say")
    children = no_leaves(child_count)
    children[present[:child_count]] = named
    return children


def encode_root(root: Root) -> bytes:
    """Encode a root node."""
    how = root.segmentation
    return _HEAD.pack(_ROOT, _VERSION, root.height) + _ROOT_BODY.pack(
        root.image_bytes,
        how.policy,
        how.segment_bytes_min,
        how.segment_bytes_average,
        how.segment_bytes_max,
        how.span_bytes,
        root.top,
    )


def decode_root(node: bytes) -> Root:
    """Decode a root node. Raises Corruption (T3)."""
    height = _head(node, _ROOT)
    if len(node) != _HEAD.size + _ROOT_BODY.size:
        raise Corruption(f"a root node has {len(node)} bytes")
    image_bytes, policy, low, average, high, span, top = _ROOT_BODY.unpack_from(node, _HEAD.size)
    if not 1 <= image_bytes <= IMAGE_BYTES_MAX or height != height_of(spans_of(image_bytes)):
        raise Corruption(f"a root node of {image_bytes} bytes cannot have height {height}")
    try:
        segmentation = Segmentation(Policy(policy), low, average, high, span)
    except (ValueError, InvalidRequest) as error:
        raise Corruption(f"a root node names an impossible segmentation: {error}") from error
    return Root(image_bytes, segmentation, height, Fingerprint(top))


def height_of(spans: int) -> int:
    """Inner levels above ``spans`` leaves: the fewest that join them."""
    height = 0
    while spans > 1:
        spans, height = -(-spans // FAN_OUT), height + 1
    return height


def width_of(spans: int, level: int) -> int:
    """Nodes on a level of a tree of that many spans; level 0 is the leaves."""
    per_node: int = FAN_OUT**level
    return -(-spans // per_node)
