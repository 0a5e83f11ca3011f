"""Version 1 of fingerprints and trees, as it was first written, is what this code writes and reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arraylift.ids import Fingerprint
from arraylift.segments.fingerprint import FingerprintKey, key_id_of, unpack
from arraylift.segments.segmentation import DEFAULT_SEGMENTATION, Policy, Segmentation, Segmenter
from arraylift.segments.tree import (
    build,
    decode_leaf,
    decode_root,
    encode_leaf,
    holes_of,
    no_leaves,
)
from arraylift.segments.tree_view import TreeView
from arraylift.sizes import SPAN_BYTES, spans_of
from tests.unit.segments import blake3_reference
from tests.unit.segments.golden_bytes import named, stretch

GOLDEN = Path(__file__).parents[2] / "golden"
PRINTS: dict[str, Any] = json.loads((GOLDEN / "fingerprint-v1.json").read_text())
TREES: dict[str, Any] = json.loads((GOLDEN / "segment-tree-v1.json").read_text())
KEY = bytes.fromhex(TREES["key"])
TYPES = ("segment", "node", "manifest")


def written(image: bytes) -> list[dict[str, str]]:
    """Every node of an image: its leaves, then its inner nodes, then its root."""
    key, segmenter = FingerprintKey(KEY), Segmenter(DEFAULT_SEGMENTATION)
    leaves, nodes = no_leaves(spans_of(len(image))), []
    for span in range(len(leaves)):
        plain = image[span * SPAN_BYTES : (span + 1) * SPAN_BYTES]
        if any(plain):
            pieces = segmenter.cut(memoryview(plain))
            lengths = np.array([len(piece) for piece in pieces], "<u4").tobytes()
            node = encode_leaf(lengths, key.segments(pieces))
            leaves[span] = np.frombuffer(key.node(node), np.uint8)
            nodes.append((key.node(node), node))
    nodes += build(leaves, image_bytes=len(image), segmentation=DEFAULT_SEGMENTATION, key=key)
    return as_text(nodes)


def as_text(nodes: Sequence[tuple[bytes, bytes]]) -> list[dict[str, str]]:
    return [{"fingerprint": name.hex(), "node": node.hex()} for name, node in nodes]


# -- fingerprints -------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", PRINTS["vectors"], ids=lambda vector: f"{len(vector['input']) // 2} bytes")
def test_fingerprints_are_the_golden_ones(vector: dict[str, str]) -> None:
    key, data = FingerprintKey(bytes.fromhex(PRINTS["key"])), bytes.fromhex(vector["input"])
    assert key.segment(data).hex() == vector["segment"]
    assert key.segment(memoryview(data)).hex() == vector["segment"]
    assert key.segments([data, b"x", data])[:32].hex() == vector["segment"]
    assert key.node(data).hex() == vector["node"]
    assert key.manifest(data).hex() == vector["manifest"]
    assert len({vector[kind] for kind in TYPES}) == 3, "types never share a fingerprint"


@pytest.mark.parametrize("vector", PRINTS["vectors"], ids=lambda vector: f"{len(vector['input']) // 2} bytes")
def test_another_implementation_finds_the_same(vector: dict[str, str]) -> None:
    for kind in TYPES:
        subkey = blake3_reference.derived(f"arraylift 2026 v1 {kind}", bytes.fromhex(PRINTS["key"]))
        assert subkey.hex() == PRINTS["subkeys"][kind]
        assert blake3_reference.keyed(subkey, bytes.fromhex(vector["input"])).hex() == vector[kind]


def test_fingerprints_of_many_chunks_are_the_golden_ones() -> None:
    key = FingerprintKey(bytes.fromhex(PRINTS["key"]))
    for vector in PRINTS["long"]:
        assert key.segment(named(vector["input"])).hex() == vector["segment"]


def test_a_keys_name_is_the_golden_one() -> None:
    key = bytes.fromhex(PRINTS["key"])
    assert key_id_of(key).hex() == PRINTS["key_id"] == FingerprintKey(key).key_id.hex()
    assert blake3_reference.derived("arraylift 2026 v1 key id", key)[:8].hex() == PRINTS["key_id"]


def test_keys_of_another_length_are_our_mistake() -> None:
    for size in (0, 16, 31, 33):
        with pytest.raises(AssertionError):
            FingerprintKey(bytes(size))


def test_packed_fingerprints_come_apart() -> None:
    packed = stretch(96)
    for form in (packed, memoryview(packed)):
        assert unpack(form) == [packed[:32], packed[32:64], packed[64:]]
    assert unpack(b"") == []


# -- segmentation and trees ---------------------------------------------------------------------


@pytest.mark.parametrize("cut", TREES["cuts"], ids=lambda cut: f"{cut['average']} {cut['input']}")
def test_boundaries_are_the_golden_ones(cut: dict[str, Any]) -> None:
    """If a new pyfastcdc fails here, it must not be used: nothing would deduplicate any more."""
    segmentation = Segmentation(Policy(cut["policy"]), cut["min"], cut["average"], cut["max"])
    pieces = Segmenter(segmentation).cut(memoryview(named(cut["input"])))
    assert [len(piece) for piece in pieces] == cut["lengths"]


@pytest.mark.parametrize("image", TREES["images"], ids=lambda image: image["name"])
def test_images_are_written_as_the_golden_ones(image: dict[str, Any]) -> None:
    assert len(named(image["image"])) == image["image_bytes"]
    assert written(named(image["image"])) == image["nodes"]


@pytest.mark.parametrize("image", TREES["images"], ids=lambda image: image["name"])
def test_golden_images_are_read(image: dict[str, Any]) -> None:
    stored = {bytes.fromhex(one["fingerprint"]): bytes.fromhex(one["node"]) for one in image["nodes"]}
    root = Fingerprint(bytes.fromhex(image["nodes"][-1]["fingerprint"]))
    view = TreeView(root, lambda names: [stored[name] for name in names])
    info, leaves = view.info, view.leaves
    assert info.image_bytes == image["image_bytes"]
    assert info.segmentation == DEFAULT_SEGMENTATION
    plain = named(image["image"])
    for span, hole in enumerate(holes_of(leaves)):
        here = plain[span * SPAN_BYTES : (span + 1) * SPAN_BYTES]
        assert hole == (not any(here))
        if not hole:
            leaf = decode_leaf(stored[leaves[span].tobytes()], len(here))
            ends = np.cumsum(leaf.lengths)
            pieces = [here[end - size : end] for end, size in zip(ends, leaf.lengths, strict=True)]
            assert FingerprintKey(KEY).segments(pieces) == leaf.fingerprints


def test_a_tall_tree_is_the_golden_one() -> None:
    tall = TREES["tall"]
    leaves = no_leaves(257)
    for span, name in tall["leaves"].items():
        leaves[int(span)] = np.frombuffer(bytes.fromhex(name), np.uint8)
    how = Segmentation(Policy(tall["policy"]))
    nodes = list(build(leaves, image_bytes=tall["image_bytes"], segmentation=how, key=FingerprintKey(KEY)))
    assert as_text(nodes) == tall["nodes"]
    stored: dict[bytes, bytes] = dict(nodes)
    view = TreeView(nodes[-1][0], lambda names: [stored[name] for name in names])
    info = view.info
    assert np.array_equal(view.leaves, leaves)
    assert info == decode_root(nodes[-1][1])
    assert info.height == 2
