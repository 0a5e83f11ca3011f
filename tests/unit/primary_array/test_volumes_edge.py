"""What VolumeService writes, beside who has a volume open by NBD."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest

from arraylift.errors import InvalidRequest, WrongState
from arraylift.rpc.identity import Peer
from arraylift.sizes import GRANULE_BYTES
from arraylift.v1 import volume_pb2 as pb
from primary_array.exports import ArrayExports
from primary_array.pool import Pool
from primary_array.pool_types import VolumeSource
from primary_array.service.volumes import VolumeEdge
from tests.fakes.disk import FakeFiles

G = GRANULE_BYTES
NOTHING = cast("Any", None)
HOST = Peer("host", "h")


class Stage:
    def __init__(self) -> None:
        files = FakeFiles()
        self.pool = Pool.open(files, "/pool")
        self.pool.create_volume("v", 4 * G)
        self.exports = ArrayExports(self.pool, files, "/pool")
        self.exports.create("e", volume_name="v", read_only=False)
        self.edge = VolumeEdge(self.pool, NOTHING, self.exports, lambda _: "nbd://h/e")

    def write(self, *extents: tuple[int, bytes]) -> pb.WriteExtentsResponse:
        def requests() -> Iterator[pb.WriteExtentsRequest]:
            yield pb.WriteExtentsRequest(volume_name="v")
            for offset, data in extents:
                yield pb.WriteExtentsRequest(extent=pb.Extent(offset=offset, data=data))

        return self.edge.WriteExtents(requests(), NOTHING)

    def head(self) -> bytes:
        into = bytearray(4)
        self.pool.read_into(VolumeSource("v"), 0, memoryview(into))
        return bytes(into)


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_nothing_is_written_beside_a_client_that_writes(stage: Stage) -> None:
    device = stage.exports.open("e", HOST, lambda: None)
    device.write(0, b"host")
    with pytest.raises(WrongState, match="open for writing"):
        stage.write((0, b"over"))
    assert stage.head() == b"host"
    device.close()
    reader = stage.exports.open("e", Peer("array", "a"), lambda: None)
    assert stage.write((0, b"over"), (G, b"x")).extent_count == 2
    assert stage.head() == b"over"
    reader.close()


def test_nobody_opens_for_writing_what_is_being_written(stage: Stage) -> None:
    def requests() -> Iterator[pb.WriteExtentsRequest]:
        yield pb.WriteExtentsRequest(volume_name="v")
        stage.write((G, b"another"))  # that is no client that keeps what it read
        with pytest.raises(WrongState, match="being changed"):
            stage.exports.open("e", HOST, lambda: None)
        yield pb.WriteExtentsRequest(extent=pb.Extent(offset=0, data=b"over"))

    stage.edge.WriteExtents(requests(), NOTHING)
    stage.exports.open("e", HOST, lambda: None).close()
    with pytest.raises(InvalidRequest, match="outside"):
        stage.write((4 * G, b"x"))
    stage.exports.open("e", HOST, lambda: None).close()


def test_a_write_names_its_volume_first(stage: Stage) -> None:
    extent = pb.WriteExtentsRequest(extent=pb.Extent(offset=0, data=b"x"))
    for requests in ([], [extent, pb.WriteExtentsRequest(volume_name="v")]):
        with pytest.raises(InvalidRequest, match="names the volume"):
            stage.edge.WriteExtents(iter(requests), NOTHING)
    assert stage.head() == bytes(4)
