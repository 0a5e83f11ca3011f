"""Any bytes: cut, put into a tree, read back, joined, are the same bytes."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arraylift.errors import Corruption, InvalidRequest
from arraylift.ids import Fingerprint
from arraylift.segments.codecs import Codec, compress_lz4, compress_zstandard, decompress
from arraylift.segments.fingerprint import FingerprintKey, unpack
from arraylift.segments.segmentation import DEFAULT_SEGMENTATION, Policy, Segmentation, Segmenter
from arraylift.segments.tree import build, decode_leaf, encode_leaf, holes_of, no_leaves
from arraylift.segments.tree_view import TreeView
from arraylift.sizes import KIB, MIB, SPAN_BYTES, span_length, spans_of

KEY = FingerprintKey(bytes(32))

segmentations = st.one_of(
    st.just(DEFAULT_SEGMENTATION),
    st.just(Segmentation(Policy.FIXED)),
    st.builds(
        lambda policy, sizes: Segmentation(policy, *sorted(sizes)),
        st.sampled_from(Policy),
        st.tuples(*[st.integers(4 * KIB, 64 * KIB)] * 3),
    ),
)


@st.composite
def pieces(draw: st.DrawFn) -> bytes:
    """A run of one kind of content, of a length near where something changes."""
    near = draw(st.sampled_from([0, 1, 4 * KIB, 16 * KIB, 64 * KIB, MIB, 2 * MIB]))
    length = max(0, near + draw(st.integers(-2, 2)))
    kind = draw(st.sampled_from(["zero", "noise", "repeat", "byte"]))
    seed = draw(st.integers(0, 3))
    if kind == "zero":
        return bytes(length)
    if kind == "byte":
        return bytes([seed + 1]) * length
    chance = random.Random(seed)
    if kind == "noise":
        return chance.randbytes(length)
    pattern = chance.randbytes(draw(st.sampled_from([3, 512, 16 * KIB])))
    return (pattern * (length // len(pattern) + 1))[:length]


images = st.lists(pieces(), min_size=1, max_size=6).map(b"".join).filter(len)


def store(image: bytes, segmentation: Segmentation) -> tuple[Fingerprint, dict[bytes, bytes]]:
    """Everything of an image by fingerprint, and its root."""
    found: dict[bytes, bytes] = {}
    segmenter = Segmenter(segmentation)
    leaves = no_leaves(spans_of(len(image)))
    for span in range(len(leaves)):
        plain = memoryview(image)[span * SPAN_BYTES : (span + 1) * SPAN_BYTES]
        if plain == bytes(len(plain)):
            continue
        cut = segmenter.cut(plain)
        packed = KEY.segments(cut)
        found |= zip(unpack(packed), map(bytes, cut), strict=True)
        leaf = encode_leaf(np.array([len(piece) for piece in cut], "<u4").tobytes(), packed)
        leaves[span] = np.frombuffer(KEY.node(leaf), np.uint8)
        found[KEY.node(leaf)] = leaf
    root = Fingerprint(b"")
    for root, node in build(leaves, image_bytes=len(image), segmentation=segmentation, key=KEY):
        found[root] = node
    return root, found


def read(root: Fingerprint, found: dict[bytes, bytes]) -> bytes:
    def fetch(names: Sequence[Fingerprint]) -> list[bytes]:
        return [found[name] for name in names]

    view = TreeView(root, fetch)
    info, leaves = view.info, view.leaves
    out = []
    for span, hole in enumerate(holes_of(leaves)):
        length = span_length(span, info.image_bytes)
        if hole:
            out.append(bytes(length))
        else:
            leaf = decode_leaf(found[leaves[span].tobytes()], length)
            parts = [found[name] for name in unpack(leaf.fingerprints)]
            assert [len(part) for part in parts] == leaf.lengths.tolist()
            out += parts
    return b"".join(out)


@given(image=images, segmentation=segmentations)
def test_what_is_read_is_what_was_cut(image: bytes, segmentation: Segmentation) -> None:
    root, found = store(image, segmentation)
    assert read(root, found) == image


@given(image=images, segmentation=segmentations)
def test_sizes_keep_the_segmentation(image: bytes, segmentation: Segmentation) -> None:
    span = image[:SPAN_BYTES]
    lengths = [len(piece) for piece in Segmenter(segmentation).cut(memoryview(span))]
    assert sum(lengths) == len(span)
    assert len(lengths) <= 256
    if segmentation.policy is Policy.FIXED:
        assert set(lengths[:-1]) <= {segmentation.segment_bytes_average}
        assert 1 <= lengths[-1] <= segmentation.segment_bytes_average
    else:
        assert all(length >= segmentation.segment_bytes_min for length in lengths[:-1])
        assert all(1 <= length <= segmentation.segment_bytes_max for length in lengths)


def in_bytearray(span: bytes) -> memoryview:
    return memoryview(bytearray(span))


def in_array(span: bytes) -> memoryview:
    return np.frombuffer(span, np.uint8).copy().data


def in_the_middle(span: bytes) -> memoryview:
    return memoryview(b"\xaa" * 4097 + span + b"\x55" * 999)[4097 : 4097 + len(span)]


def in_odd_memory(span: bytes) -> memoryview:
    room = np.zeros(len(span) + 64, np.uint8)
    start = 3 + (-room.ctypes.data) % 32
    room[start : start + len(span)] = np.frombuffer(span, np.uint8)
    return room.data[start : start + len(span)]


@given(
    image=images,
    before=images,
    segmentation=segmentations,
    place=st.sampled_from([in_bytearray, in_array, in_the_middle, in_odd_memory]),
)
def test_boundaries_depend_on_the_content_alone(
    image: bytes, before: bytes, segmentation: Segmentation, place: Callable[[bytes], memoryview]
) -> None:
    span = image[:SPAN_BYTES]
    used = Segmenter(segmentation)
    used.cut(memoryview(before[:SPAN_BYTES]))
    expected = [bytes(piece) for piece in Segmenter(segmentation).cut(memoryview(span))]
    assert [bytes(piece) for piece in used.cut(place(span))] == expected
    assert b"".join(expected) == span


def test_segments_are_views_and_not_copies() -> None:
    span = bytearray(random.Random(5).randbytes(MIB))
    cut = Segmenter(DEFAULT_SEGMENTATION).cut(memoryview(span))
    span[0] ^= 0xFF
    assert cut[0][0] == span[0]


# -- codecs -------------------------------------------------------------------------------------

compressors = st.sampled_from([compress_lz4, compress_zstandard])
plains = pieces().filter(lambda plain: 0 < len(plain) <= 64 * KIB)


@given(plain=plains, compress=compressors)
def test_stored_forms_give_back_the_plain_bytes(
    plain: bytes, compress: Callable[[bytes], tuple[Codec, bytes]]
) -> None:
    codec, stored = compress(plain)
    assert decompress(codec, stored, len(plain)) == plain
    assert len(stored) <= len(plain)
    if codec is Codec.PLAIN:
        assert stored is plain


@given(plain=plains, compress=compressors, promised=st.integers(1, 64 * KIB))
def test_only_the_promised_length_is_given(
    plain: bytes, compress: Callable[[bytes], tuple[Codec, bytes]], promised: int
) -> None:
    codec, stored = compress(plain)
    if promised == len(plain):
        assert decompress(codec, stored, promised) == plain
    else:
        with pytest.raises(Corruption):
            decompress(codec, stored, promised)


@given(data=st.data(), plain=plains, codec=st.sampled_from(Codec), promised=st.integers(1, 64 * KIB))
def test_damaged_forms_give_the_promised_length_or_corruption(
    data: st.DataObject, plain: bytes, codec: Codec, promised: int
) -> None:
    compress = compress_zstandard if codec is Codec.ZSTANDARD else compress_lz4
    stored = bytearray(compress(plain)[1])
    for at, bit in data.draw(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 7)), max_size=8)):
        stored[at % len(stored)] ^= 1 << bit
    cut = data.draw(st.integers(0, len(stored)))
    try:
        found = decompress(codec, bytes(stored[:cut]) + data.draw(st.binary(max_size=9)), promised)
    except Corruption:
        return
    assert len(found) == promised


@given(codec=st.integers(3, 255), stored=st.binary(max_size=30))
def test_unknown_codecs_are_named(codec: int, stored: bytes) -> None:
    with pytest.raises(InvalidRequest, match=f"codec {codec} is unknown"):
        decompress(codec, stored, 10)
