"""The daemons' memory stays inside its bound while an image passes that is much larger."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from arraylift.rpc.channel import stream
from arraylift.sizes import GIB, MIB
from arraylift.v1 import volume_pb2
from tests.e2e.cluster import ARRAY, Cluster

RSS_BYTES_MAX = 512 * MIB
IMAGE_BYTES = 2 * GIB
DENSE_EVERY = 3
"""Every third span is written, every ninth of them twice over."""


def pieces() -> Iterator[tuple[int, bytes]]:
    """(offset, 1 MiB) of the written spans: random, with repeats."""
    draw = np.random.default_rng(1)
    repeated = draw.bytes(MIB)
    for span in range(0, IMAGE_BYTES // MIB, DENSE_EVERY):
        yield span * MIB, repeated if span % 9 == 0 else draw.bytes(MIB)


def peak(cluster: Cluster) -> int:
    return max(cluster.array.rss_bytes_max(), cluster.target.rss_bytes_max())


def test_two_gibibytes_pass_in_less_than_half_of_one(cluster: Cluster) -> None:
    cluster.import_pieces("big", IMAGE_BYTES, pieces())
    full = cluster.back_up("big", "big")
    assert full.figures.bytes_sent > 400 * MIB
    assert peak(cluster) < RSS_BYTES_MAX
    cluster.write("big", 100 * MIB, b"changed")
    assert cluster.back_up("big", "big").figures.spans_read == 1
    cluster.restore(full.image_id, "back")
    assert peak(cluster) < RSS_BYTES_MAX
    expected = pieces()
    offset, data = next(expected)
    request = volume_pb2.ReadExtentsRequest(volume_name="back")
    for piece in stream(cluster.volumes.ReadExtents, request, peer=ARRAY, timeout_seconds=120):
        at, view = piece.extent.offset, memoryview(piece.extent.data)
        while view:
            assert at // MIB * MIB == offset, "only what was written comes back"
            start, length = at - offset, min(MIB - (at - offset), len(view))
            assert data[start : start + length] == view[:length], f"span {offset // MIB}"
            at, view = at + length, view[length:]
            if at == offset + MIB:
                offset, data = next(expected, (-1, b""))
    assert offset == -1, "all of it came back"
    assert peak(cluster) < RSS_BYTES_MAX
