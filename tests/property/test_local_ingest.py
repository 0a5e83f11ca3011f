"""What is written, synthesized and composed on the target, against plain bytes.

The target is the real one over a disk in memory; the writer thread's work is done where it is asked for.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arraylift.errors import AlreadyExists, Corruption, InvalidRequest, LeaseLost, NotFound
from arraylift.ids import ContainerId, ImageId, SourceState, TransferId
from arraylift.segments.fingerprint import unpack
from arraylift.segments.segmentation import DEFAULT_SEGMENTATION, Policy, Segmentation
from arraylift.sizes import KIB, MIB, SPAN_BYTES, spans_of
from dedup_target.local_ingest import FileOrder, FilePatch, LocalIngest
from dedup_target.manifest_format import ImageManifest
from dedup_target.segment_index import Locator
from dedup_target.transfers import IDLE_SECONDS
from tests.fakes.disk import FakeFiles
from tests.fakes.index import MemorySegmentIndex
from tests.property.test_commit_states import Target
from tests.property.test_target_storage_crash import IndexDisk
from tests.unit.dedup_target.hand_clock import HandClock

FIXED = Segmentation(Policy.FIXED)
SIZES = [1, 5 * KIB, MIB - 1, MIB, MIB + 1, 2 * MIB + 300 * KIB, 3 * MIB]
PIECE_MAX = MIB


@dataclass(repr=False)
class World:
    """A target and what it ought to hold."""

    target: Target
    model: dict[ImageId, bytes] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def local(self) -> LocalIngest:
        target = self.target
        assert target.transfers is not None
        return LocalIngest(target.store, target.images, target.transfers, target.clock)

    def order(
        self,
        size: int,
        *,
        base: ImageId | None = None,
        how: Segmentation = DEFAULT_SEGMENTATION,
        tenant: str = "",
    ) -> FileOrder:
        transfer_id = TransferId(f"{next(self.numbers):032x}")
        return FileOrder(transfer_id, tenant, f"files/{transfer_id[-4:]}", size, how, None, base)

    def take_in(self, order: FileOrder, patches: list[FilePatch]) -> ImageManifest:
        return self.local.take_in(order, iter(patches), cancelled=threading.Event())

    def write(self, plain: bytes, *, how: Segmentation = DEFAULT_SEGMENTATION) -> ImageManifest:
        patches = [
            FilePatch(at, len(plain[at : at + PIECE_MAX]), plain[at : at + PIECE_MAX])
            for at in range(0, len(plain), PIECE_MAX)
        ]
        made = self.take_in(self.order(len(plain), how=how), patches)
        self.model[made.image_id] = plain
        return made

    def read(self, made: ImageManifest, offset: int = 0, length: int = 0) -> bytes:
        pieces = self.target.images.read(self.target.images.open(made.image_id), offset, length)
        return b"".join(bytes(piece.data) or bytes(piece.zero_bytes) for piece in pieces)

    def check(self, made: ImageManifest, plain: bytes) -> None:
        """It reads back, and is the very tree that writing these bytes makes."""
        assert same(self.read(made), plain)
        if made.image_id not in self.model:
            self.model[made.image_id] = plain
            again, root = self.write(plain, how=made.segmentation).root, made.root
            assert again == root
        assert self.target.store.transfers.list() == [], "no transfer outlives its call"


def same(one: bytes, other: bytes) -> bool:
    """Equal? Megabytes are not worth showing."""
    return one == other


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    made = World(Target(FakeFiles(), IndexDisk(MemorySegmentIndex())))
    yield made
    made.target.end_threads()


def content(seed: int, size: int, hole_share: float = 0.4) -> bytes:
    """Bytes with runs of zeros, some of them whole spans."""
    draw = np.random.default_rng(seed)
    out = bytearray(draw.bytes(size))
    at = 0
    while at < size:
        run = int(draw.choice([7 * KIB, 100 * KIB, MIB, 2 * MIB]))
        if draw.random() < hole_share:
            out[at : at + run] = bytes(len(out[at : at + run]))
        at += run
    return bytes(out)


@st.composite
def patch_lists(draw: st.DrawFn, size: int, sources: list[tuple[ImageId, bytes]]) -> list[FilePatch]:
    """Ascending patches of all kinds, some aligned to spans."""
    patches: list[FilePatch] = []
    at = 0
    while at < size and len(patches) < 8:
        at += draw(st.sampled_from([0, 0, 1, 5000, MIB - at % MIB]))
        length = draw(st.sampled_from([1, 4 * KIB, 300_001, MIB, 2 * MIB, size]))
        length = min(length, size - at)
        if length <= 0:
            break
        kind = draw(st.sampled_from(["data", "zeros", "image"] if sources else ["data", "zeros"]))
        if kind == "data":
            length = min(length, PIECE_MAX)
            patches.append(FilePatch(at, length, content(draw(st.integers(0, 9)), length, 0.2)))
        elif kind == "zeros":
            patches.append(FilePatch(at, length))
        else:
            image_id, plain = draw(st.sampled_from(sources))
            aligned = at % MIB if draw(st.booleans()) else draw(st.integers(0, 2 * MIB))
            start = min(aligned, len(plain) - 1)
            length = min(length, len(plain) - start)
            patches.append(FilePatch(at, length, None, image_id, start))
        at += length
    return patches


def laid(background: bytes, size: int, patches: list[FilePatch], model: dict[ImageId, bytes]) -> bytes:
    """The model: bytes and slices."""
    out = bytearray(background[:size].ljust(size, b"\0"))
    for patch in patches:
        here = bytes(patch.length)
        if patch.data is not None:
            here = patch.data
        elif patch.image_id is not None:
            here = model[patch.image_id][patch.image_offset : patch.image_offset + patch.length]
        out[patch.offset : patch.offset + patch.length] = here
    return bytes(out)


slow = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)


@slow
@given(
    size=st.sampled_from(SIZES), seed=st.integers(0, 5), how=st.sampled_from([DEFAULT_SEGMENTATION, FIXED])
)
def test_a_file_reads_back_as_it_was_written(world: World, size: int, seed: int, how: Segmentation) -> None:
    plain = content(seed, size)
    made = world.write(plain, how=how)
    world.check(made, plain)
    assert (made.image_bytes, made.segmentation, made.tenant_name) == (size, how, "default")
    assert made.base_image_id is None


@pytest.mark.parametrize("size", SIZES)
def test_any_range_of_an_image_is_that_of_its_bytes(world: World, size: int) -> None:
    """Ranges that begin and end anywhere, over one span or several, holes and data."""
    plain = content(size % 7, size)
    made = world.write(plain)
    draw = np.random.default_rng(size)
    edges = [0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB, size - 1, size, *draw.integers(0, size, 20).tolist()]
    edges = sorted({edge for edge in edges if 0 <= edge <= size})
    for start, end in itertools.combinations(edges, 2):
        assert same(world.read(made, start, end - start), plain[start:end]), (start, end)


@slow
@given(data=st.data(), size=st.sampled_from(SIZES), new=st.sampled_from(SIZES), same=st.booleans())
def test_changes_over_a_base_are_what_they_are_over_its_bytes(
    world: World, data: st.DataObject, size: int, new: int, same: bool
) -> None:
    before = content(data.draw(st.integers(0, 5)), size)
    base = world.write(before)
    new = size if same else new
    patches = data.draw(patch_lists(new, []))
    how = data.draw(st.sampled_from([DEFAULT_SEGMENTATION, DEFAULT_SEGMENTATION, FIXED]))
    made = world.take_in(world.order(new, base=base.image_id, how=how), patches)
    assert made.base_image_id == base.image_id
    world.check(made, laid(before, new, patches, world.model))
    touched = {
        span
        for patch in patches
        for span in range(patch.offset // MIB, spans_of(patch.offset + patch.length))
    }
    if how == base.segmentation:
        assert made.figures["spans_read"] <= len(touched) + 1, "only what changes is cut"


@slow
@given(data=st.data(), size=st.sampled_from(SIZES))
def test_a_composition_is_that_of_the_bytes(world: World, data: st.DataObject, size: int) -> None:
    sources = []
    for seed in (1, 2):
        plain = content(seed, data.draw(st.sampled_from(SIZES)))
        how = data.draw(st.sampled_from([DEFAULT_SEGMENTATION, DEFAULT_SEGMENTATION, FIXED]))
        sources.append((world.write(plain, how=how).image_id, plain))
    patches = data.draw(patch_lists(size, sources))
    made = world.take_in(world.order(size), patches)
    world.check(made, laid(b"", size, patches, world.model))


def test_whole_spans_that_are_cut_alike_are_taken_over_unread(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = content(7, 6 * MIB + 77, 0.0)
    source = world.write(plain)
    leaves = world.target.images.leaves(world.target.images.open(source.image_id), list(range(7)))
    segments = {print_ for leaf in leaves if leaf for print_ in unpack(leaf.fingerprints)}
    unit, read = world.target.store.unit, set[Locator]()
    records = unit.containers.read_records

    def watched(container: ContainerId, locators: Sequence[Locator]) -> list[memoryview]:
        read.update(locators)
        return records(container, locators)

    monkeypatch.setattr(unit.containers, "read_records", watched)
    patches = [
        FilePatch(0, 2 * MIB, None, source.image_id, 3 * MIB),
        FilePatch(4 * MIB, 2 * MIB + 77, None, source.image_id, 4 * MIB),
    ]
    made = world.take_in(world.order(6 * MIB + 77), patches)
    monkeypatch.undo()
    assert read
    assert not read & set(unit.locate(source.tenant, list(segments))), "nodes alone"
    assert (made.figures["segments_sent"], made.figures["bytes_read"], made.figures["spans_read"]) == (
        0,
        0,
        0,
    )
    world.check(made, laid(b"", 6 * MIB + 77, patches, world.model))


# -- what is refused, and what is left ------------------------------------------------------------


@pytest.mark.parametrize(
    "patches",
    [
        [FilePatch(0, 10, b"0123456789"), FilePatch(9, 1, b"x")],
        [FilePatch(MIB, 10)],
        [FilePatch(MIB - 5, 6, b"012345")],
        [FilePatch(5, 0, b"")],
    ],
)
def test_patches_out_of_order_or_bounds_are_refused(world: World, patches: list[FilePatch]) -> None:
    before = len(world.target.store.manifests.all())
    order = world.order(MIB)
    with pytest.raises(InvalidRequest):
        world.take_in(order, patches)
    assert len(world.target.store.manifests.all()) == before
    assert world.target.store.transfers.list() == []
    world.check(world.take_in(order, []), bytes(MIB))


def test_a_stream_that_is_cut_leaves_nothing_and_its_id_is_free(world: World) -> None:
    def cut() -> Iterator[FilePatch]:
        yield FilePatch(0, MIB, content(1, MIB, 0.0))
        yield FilePatch(MIB, MIB, content(2, MIB, 0.0))
        raise InvalidRequest("the stream was cut")

    order = world.order(3 * MIB)
    with pytest.raises(InvalidRequest, match="cut"):
        world.local.take_in(order, cut(), cancelled=threading.Event())
    with pytest.raises(NotFound):
        world.target.store.manifests.get(ImageId(order.transfer_id))
    assert world.target.store.transfers.list() == []
    assert world.target.store.containers.stats().buffers_in_use == 0
    plain = content(3, 3 * MIB)
    patches = [FilePatch(at, MIB, plain[at : at + MIB]) for at in range(0, 3 * MIB, MIB)]
    made = world.take_in(order, patches)
    world.check(made, plain)


def test_a_retry_of_what_was_committed_is_its_image_and_reads_nothing(world: World) -> None:
    order = world.order(5)
    made = world.take_in(order, [FilePatch(0, 5, b"hello")])

    def never() -> Iterator[FilePatch]:
        yield from map(int, ["nothing is read"])

    assert world.local.take_in(order, never(), cancelled=threading.Event()) == made
    for other in (
        FileOrder(order.transfer_id, "", "other", 5, DEFAULT_SEGMENTATION),
        FileOrder(order.transfer_id, "", order.name, 6, DEFAULT_SEGMENTATION),
        FileOrder(order.transfer_id, "", order.name, 5, FIXED),
        FileOrder(order.transfer_id, "stranger", order.name, 5, DEFAULT_SEGMENTATION),
    ):
        with pytest.raises(AlreadyExists):
            world.local.take_in(other, never(), cancelled=threading.Event())


def test_a_second_call_of_one_id_fences_the_first(world: World) -> None:
    size = 6 * MIB
    order, plain, other = world.order(size), content(4, size, 0.0), content(5, size, 0.0)
    made: list[ImageManifest] = []
    local = world.local
    local._clock = HandClock()  # its containers do not come of age

    def overtaken() -> Iterator[FilePatch]:
        for at in range(0, size, MIB):
            if at == 5 * MIB:  # four spans were offered, and lie in a buffer
                assert world.target.store.containers.stats().buffers_in_use == 1
                pieces = [FilePatch(start, MIB, plain[start : start + MIB]) for start in range(0, size, MIB)]
                made.append(world.take_in(order, pieces))
                assert world.target.store.containers.stats().buffers_in_use == 0, "nobody waits for the dead"
            yield FilePatch(at, MIB, other[at : at + MIB])

    # The first call's turn comes again after the second one has committed.
    with pytest.raises(LeaseLost):
        local.take_in(order, overtaken(), cancelled=threading.Event())
    world.check(made[0], plain)


def test_a_silent_call_gives_its_container_buffer_up(world: World) -> None:
    """Eight of them serve all backups, and a caller may be slow."""
    target, plain = world.target, content(6, 6 * MIB, 0.0)
    transfers, clock, in_use = target.transfers, HandClock(), list[int]()
    assert transfers is not None
    local = LocalIngest(target.store, target.images, transfers, clock)

    def slow_caller() -> Iterator[FilePatch]:
        for at in range(0, len(plain), MIB):
            if at == 5 * MIB:  # four spans were offered, and lie in a buffer
                in_use.append(target.store.containers.stats().buffers_in_use)
                clock.pass_seconds(IDLE_SECONDS)
                transfers.reap()
                in_use.append(target.store.containers.stats().buffers_in_use)
            yield FilePatch(at, MIB, plain[at : at + MIB])

    made = local.take_in(world.order(len(plain)), slow_caller(), cancelled=threading.Event())
    assert in_use == [1, 0]
    world.check(made, plain)


def test_images_of_another_tenant_are_not_there(world: World) -> None:
    secret = world.take_in(world.order(5, tenant="other"), [FilePatch(0, 5, b"hello")])
    with pytest.raises(NotFound):
        world.take_in(world.order(5), [FilePatch(0, 5, None, secret.image_id)])
    with pytest.raises(NotFound):
        world.take_in(world.order(5, base=secret.image_id), [])
    with pytest.raises(NotFound):
        world.take_in(world.order(5, base=ImageId("9" * 32)), [])


def test_a_source_state_is_kept_with_the_image(world: World) -> None:
    state = SourceState("a" * 32, "b" * 32, 7)  # type: ignore[arg-type]
    order = FileOrder(TransferId("f" * 32), "", "vm/disk", 5, DEFAULT_SEGMENTATION, state)
    assert world.take_in(order, [FilePatch(0, 5, b"hello")]).source_state == state
    assert SPAN_BYTES == MIB


def test_damage_in_a_source_is_an_error_and_no_image(world: World) -> None:
    plain = content(9, MIB, 0.0)
    source = world.write(plain)
    store = world.target.store
    leaf = world.target.images.leaves(world.target.images.open(source.image_id), [0])[0]
    assert leaf is not None
    victim = leaf.fingerprints[:32]
    (locator,) = store.unit.locate(source.tenant, [victim])
    store.unit.condemn_records(locator.container, source.tenant, [victim], "damaged by the test")
    before = len(store.manifests.all())
    for order, patches in (
        (world.order(MIB), [FilePatch(0, MIB, None, source.image_id)]),
        (world.order(MIB), [FilePatch(5, 100, None, source.image_id)]),
        (world.order(MIB, base=source.image_id), [FilePatch(0, 1, b"x")]),
        (world.order(MIB, base=source.image_id), []),
    ):
        with pytest.raises(Corruption):
            world.take_in(order, patches)
    assert len(store.manifests.all()) == before
    world.check(world.write(plain), plain)
    assert world.read(source) == plain, "the same bytes, written again, heal it"
