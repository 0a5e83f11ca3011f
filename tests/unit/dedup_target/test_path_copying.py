"""What is read for a range, and read and written for a change: the paths to it, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from arraylift.errors import Conflict, Corruption
from arraylift.ids import ContainerId
from arraylift.sizes import KIB, MIB
from dedup_target.container_format import Kind
from dedup_target.container_store import name_of
from dedup_target.image_diff import diff_images
from dedup_target.image_reader import ImageReader, OpenImage
from dedup_target.local_ingest import FilePatch
from dedup_target.manifest_format import ImageManifest
from dedup_target.segment_index import Locator
from tests.fakes.disk import FakeFiles
from tests.fakes.index import MemorySegmentIndex
from tests.property.test_commit_states import FIRST, Backup, Target
from tests.property.test_local_ingest import World
from tests.property.test_target_storage_crash import IndexDisk

SPANS = 600
SOLID_MIB = 20
NOISE = np.random.default_rng(11).bytes(SOLID_MIB * MIB)
AT = 280 * MIB
"""Where the noise lies: in two of the three inner nodes' halves, and in two containers."""


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    made = World(Target(FakeFiles(), IndexDisk(MemorySegmentIndex())))
    yield made
    made.target.end_threads()


@pytest.fixture(scope="module")
def image(world: World) -> ImageManifest:
    patches = [FilePatch(AT + at, MIB, NOISE[at : at + MIB]) for at in range(0, len(NOISE), MIB)]
    return world.take_in(world.order(SPANS * MIB), patches)


class Watch:
    """Which records are read, and from which containers."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        containers = world.target.store.unit.containers
        self._containers = containers
        self._read = containers.read_records
        self.records: list[Locator] = []
        self.touched: list[ContainerId] = []
        monkeypatch.setattr(containers, "read_records", self._watched)

    def _watched(self, container: ContainerId, locators: Sequence[Locator]) -> list[memoryview]:
        self.records += locators
        self.touched.append(container)
        return self._read(container, locators)

    def take(self) -> tuple[int, int, set[ContainerId]]:
        """Nodes read, segments read, containers touched since the last time."""
        kinds = {one: self._containers.read_directory(one).kind for one in self.touched}
        nodes = sum(kinds[locator.container] is Kind.NODES for locator in self.records)
        found = nodes, len(self.records) - nodes, set(self.touched)
        self.records, self.touched = [], []
        return found


@pytest.fixture
def watch(world: World, monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(world, monkeypatch)


def read(reader: ImageReader, image: OpenImage, offset: int, length: int) -> bytes:
    pieces = list(reader.read(image, offset, length))
    return b"".join(bytes(piece.data) or bytes(piece.zero_bytes) for piece in pieces)


def test_a_small_read_reads_its_path_and_its_segments(
    world: World, image: ImageManifest, watch: Watch
) -> None:
    reader = ImageReader(world.target.store)
    opened = reader.open(image.image_id)
    assert watch.take()[:2] == (1, 0), "the root"
    offset = 3 * MIB + 777 * KIB
    assert read(reader, opened, AT + offset, 4 * KIB) == NOISE[offset : offset + 4 * KIB]
    nodes, segments, touched = watch.take()
    assert nodes == 3, "two inner nodes and a leaf"
    assert 1 <= segments <= 2
    assert len(touched) <= 1 + segments, "one container of nodes, and those of the segments"
    again = reader.leaves(opened, [(AT + offset) // MIB])
    watch.take()
    assert again[0] is not None
    assert read(reader, opened, AT + offset + MIB, 1) == NOISE[offset + MIB : offset + MIB + 1]
    assert watch.take()[:2] == (1, 1), "the neighbour's leaf and segment: nodes above are known"


def test_holes_are_free(world: World, image: ImageManifest, watch: Watch) -> None:
    reader = ImageReader(world.target.store)
    opened = reader.open(image.image_id)
    watch.take()
    assert read(reader, opened, 10 * MIB + 5, 9 * MIB) == bytes(9 * MIB)
    assert watch.take()[:2] == (1, 0), "one inner node says that the first 256 spans are a hole"
    (piece,) = reader.read(opened, 0, AT)
    assert (piece.offset, piece.zero_bytes) == (0, AT)
    (piece,) = reader.read(opened, AT + len(NOISE), 0)
    assert piece.zero_bytes == SPANS * MIB - AT - len(NOISE)
    assert watch.take()[1] == 0, "no data is read for a hole"


def test_a_change_reads_and_writes_the_nodes_above_it(
    world: World, image: ImageManifest, watch: Watch
) -> None:
    containers = world.target.store.unit.containers
    before = set(containers.containers())
    world.target.images.forget(image.image_id)
    order = world.order(SPANS * MIB, base=image.image_id)
    made = world.take_in(order, [FilePatch(AT + 5 * MIB + 9, 4, b"work")])
    nodes, segments, _ = watch.take()
    assert nodes <= 2 * 4, "by the transfer's base and by the reader of its bytes: root, two inner, leaf"
    assert segments <= 256
    written = [containers.read_directory(one) for one in sorted(set(containers.containers()) - before)]
    assert sum(len(one.directory) for one in written if one.kind is Kind.NODES) == 4
    assert sum(len(one.directory) for one in written if one.kind is Kind.DATA) <= 3
    expected = bytearray(NOISE[5 * MIB : 6 * MIB])
    expected[9:13] = b"work"
    assert world.read(made, AT + 5 * MIB, MIB) == bytes(expected)
    assert world.read(made, AT + 6 * MIB, MIB) == NOISE[6 * MIB : 7 * MIB]


def test_a_diff_reads_what_differs(world: World, image: ImageManifest, watch: Watch) -> None:
    order = world.order(SPANS * MIB, base=image.image_id)
    made = world.take_in(order, [FilePatch(AT + 7 * MIB + 100 * KIB, 4, b"work")])
    for one in (image, made):
        world.target.images.forget(one.image_id)
    watch.take()
    ((start, end),) = diff_images(world.target.images, image.image_id, made.image_id)
    assert start <= AT + 7 * MIB + 100 * KIB < end <= start + 3 * 64 * KIB
    assert watch.take()[:2] == (8, 0), "root, two inner nodes and a leaf of each; no segment"


# -- a base that is rotten where nobody looked -----------------------------------------------------


def test_a_rotten_node_of_the_base_ends_the_attempt_and_the_next_one_has_no_base() -> None:
    files = FakeFiles()
    target = Target(files, IndexDisk(MemorySegmentIndex()))
    try:
        first = Backup(1, FIRST, None)
        target.send(first)
        opened = target.images.open(first.image_id)
        inner = opened.tree.info.top
        target.images.forget(first.image_id)
        unit = target.store.unit
        (locator,) = unit.locate(opened.tenant, [inner])
        path = f"/state/units/active/{name_of(locator.container)}"
        files.corrupt(path, locator.offset + 7)
        unit.containers._cache.clear()
        changed = Backup(2, FIRST, frozenset({2}))
        with pytest.raises(Conflict, match="base"):
            target.send(changed)
        assert not target.store.all_healthy
        with pytest.raises(AssertionError):  # the script of these tests demands a base
            target.send(changed)
        with pytest.raises(Corruption):
            target.read(first)
        target.send(Backup(3, FIRST, None))
        assert target.read(first) == FIRST, "what was read whole brought the node again"
    finally:
        target.end_threads()
