"""Reads of many records: whatever way they are fetched, the same bytes or an error; ahead in order."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arraylift.durable import RealFiles
from arraylift.errors import Corruption
from arraylift.ids import ContainerId
from arraylift.sizes import KIB, MIB
from dedup_target import read_ahead, record_runs
from dedup_target.container_store import ContainerLimits, ContainerStore
from dedup_target.directory_backend import DirectoryBackend
from dedup_target.image_reader import ImageReader
from dedup_target.read_ahead import Located, ReadAhead
from dedup_target.segment_index import Locator
from tests.fakes.disk import FakeFiles
from tests.fakes.index import MemorySegmentIndex
from tests.property.test_commit_states import FIRST, SECOND, Backup, Target
from tests.property.test_target_storage_crash import IndexDisk
from tests.unit.dedup_target.material import UNIT, fill, make_segments

FULL, CHANGED = Backup(1, FIRST, None), Backup(2, SECOND, frozenset({2}))
SOLID = Backup(3, random.Random(7).randbytes(5 * MIB + 700_000), None)
"""Spans of many segments, without a hole between them."""


class CountingBackend(DirectoryBackend):
    """Counts reads of pieces and of whole objects."""

    def __init__(self, path: Path) -> None:
        super().__init__(RealFiles(), str(path))
        self.pieces: list[tuple[int, int]] = []
        self.wholes = 0

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if length is None:
            self.wholes += 1
        else:
            self.pieces.append((offset, length))
        return super().get(name, offset, length)


def _store(path: Path, **limits: int) -> tuple[ContainerStore, CountingBackend]:
    backend = CountingBackend(path / "unit")
    return ContainerStore(backend, UNIT, ContainerLimits(**limits)), backend


# -- records of one container -------------------------------------------------------------------


@pytest.mark.parametrize("whole_from_bytes", [0, 1 << 30])
def test_records_come_in_the_order_asked_for(tmp_path: Path, whole_from_bytes: int) -> None:
    store, backend = _store(tmp_path, whole_from_bytes=whole_from_bytes)
    segments = make_segments(300, bytes_max=6000)
    sealed = fill(store, [segments[:100], segments[100:]])
    rows = zip(sealed.directory["offset"].tolist(), segments, strict=True)
    locators = [
        Locator(sealed.container_id, at, len(one.stored), one.plain_bytes, one.codec) for at, one in rows
    ]
    draw, backend.wholes = random.Random(5), 0
    for _ in range(20):
        chosen = [draw.randrange(300) for _ in range(draw.randrange(1, 40))]
        found = store.read_records(sealed.container_id, [locators[place] for place in chosen])
        assert [bytes(one) for one in found] == [segments[place].stored for place in chosen]
    assert backend.wholes == (1 if whole_from_bytes == 0 else 0)
    wrong = locators[3]._replace(offset=locators[3].offset + 1)
    short = locators[3]._replace(stored_bytes=locators[3].stored_bytes - 1)
    for bad in (wrong, short):
        with pytest.raises(Corruption):
            store.read_records(sealed.container_id, [locators[2], bad])
    store.close()


def test_neighbours_are_read_in_one_piece(tmp_path: Path) -> None:
    store, backend = _store(tmp_path)
    segments = make_segments(64, bytes_max=16 * KIB)
    sealed = fill(store, [segments[:32], segments[32:]])
    offsets = sealed.directory["offset"].tolist()
    locators = [
        Locator(sealed.container_id, at, len(one.stored), 1, 0)
        for at, one in zip(offsets, segments, strict=True)
    ]
    store.read_directory(sealed.container_id)
    backend.pieces.clear()
    store.read_records(sealed.container_id, locators[4:60])
    assert backend.pieces == [(offsets[4], offsets[60] - offsets[4])]
    store.close()


@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 64 * KIB)), max_size=40))
def test_every_record_lies_in_its_run(places: list[tuple[int, int]]) -> None:
    locators = [Locator(ContainerId(1), offset, size, 1, 0) for offset, size in places]
    runs = record_runs.plan(locators)
    assert sorted(place for run in runs for place in run.places) == list(range(len(locators)))
    for run in runs:
        for place in run.places:
            assert run.start <= locators[place].offset
            assert locators[place].offset + locators[place].stored_bytes <= run.end
    for one, other in itertools.pairwise(runs):
        assert one.end + record_runs.GAP_BYTES_MAX < other.start


# -- ahead --------------------------------------------------------------------------------------


def _located(spans: list[int], container: int, size: int) -> Located:
    return Located(spans, [None], [bytes(32)], [Locator(ContainerId(container), 0, size, size, 0)])


def test_groups_come_in_order_and_an_error_in_its_place() -> None:
    located: list[int] = []

    def locate(spans: list[int]) -> Located:
        located.extend(spans)
        if spans == [20]:
            raise Corruption("group 20")
        return _located(spans, 1, 1)

    groups = ([number] for number in range(30))
    ahead = iter(ReadAhead(groups, locate, lambda _: None, whole_from_bytes=100))
    assert next(ahead).spans == [0]
    assert located == list(range(read_ahead.GROUPS_AHEAD + 1)), "no further than the limit"
    assert [next(ahead).spans for _ in range(19)] == [[number] for number in range(1, 20)]
    with pytest.raises(Corruption, match="group 20"):
        next(ahead)


def test_containers_of_which_much_is_wanted_are_asked_for_once_and_first_the_first() -> None:
    asked: list[int] = []
    # Container 1 is read through, 2 a little of, 3 by many groups a little each, then 1 once more.
    plan = [(1, 60), (1, 60), (2, 30), *[(3, 25)] * 5, *[(4, 1)] * 20, (1, 100)]

    def locate(spans: list[int]) -> Located:
        return _located(spans, *plan[spans[0]])

    groups = ([number] for number in range(len(plan)))
    found = [one.spans[0] for one in ReadAhead(groups, locate, asked.extend, whole_from_bytes=100)]
    assert found == list(range(len(plan)))
    assert asked == [1, 3, 1], "again, since by then it may have left the cache"


# -- images -------------------------------------------------------------------------------------


@pytest.fixture
def target() -> Iterator[Target]:
    made = Target(FakeFiles(), IndexDisk(MemorySegmentIndex()))
    for backup in (FULL, CHANGED, SOLID):
        made.send(backup)
    yield made
    made.end_threads()


@pytest.mark.parametrize("whole_from_bytes", [0, 4 * KIB, 1 << 30])
def test_any_range_is_that_of_the_disk(target: Target, whole_from_bytes: int) -> None:
    target.store.unit.containers._limits = ContainerLimits(whole_from_bytes=whole_from_bytes)

    @settings(max_examples=80)
    @given(st.sampled_from([FULL, CHANGED, SOLID]), st.data())
    def check(backup: Backup, data: st.DataObject) -> None:
        size = len(backup.disk)
        low, high = sorted(data.draw(st.tuples(st.integers(0, size), st.integers(0, size)), "range"))
        if low == high:
            return
        image, at = target.images.open(backup.image_id), low
        for piece in target.images.read(image, low, high - low):
            assert piece.offset == at
            content = bytes(piece.data) or bytes(piece.zero_bytes)
            assert content == backup.disk[at : at + len(content)]
            at += len(content)
        assert at == high

    check()


def test_one_damaged_record_is_condemned_and_no_other(target: Target) -> None:
    unit = target.store.unit
    victim = _noise_locator(target)
    container = unit.containers.read_container(victim.container)
    raw = bytearray(container._data)
    raw[victim.offset] ^= 1
    container._data = memoryview(bytes(raw))
    unit.containers._cache._kept[victim.container] = (container, len(raw))
    with pytest.raises(Corruption):
        target.read(FULL)
    assert unit.quarantine.record_count == 1
    with pytest.raises(Corruption):
        target.read(FULL)
    assert unit.quarantine.record_count == 1


def test_a_container_removed_meanwhile_is_looked_up_again(target: Target) -> None:
    """As after copy-forward: a reader that located before it reads on where the records went."""
    unit = target.store.unit
    images = ImageReader(target.store)
    image = images.open(FULL.image_id)
    pieces = images.read(image, 0, 0)
    taken = [next(pieces)]  # everything is located by now
    victim = _noise_locator(target)
    old = unit.containers.read_container(victim.container)
    buffer = unit.containers.acquire(tenant=old.sealed.tenant, key_id=old.sealed.key_id, kind=old.sealed.kind)
    rows = old.sealed.directory
    buffer.append_frame(
        fingerprints=rows["fingerprint"].tobytes(),
        stored_bytes=rows["stored_bytes"].copy(),
        plain_bytes=rows["plain_bytes"].copy(),
        codecs=rows["codec"].copy(),
        payload=[old.view(int(row["offset"]), int(row["stored_bytes"])) for row in rows],
    )
    target.store.seal_queue.seal_now(buffer)
    unit.remove_container(victim.container)
    taken.extend(pieces)
    assert b"".join(bytes(one.data) or bytes(one.zero_bytes) for one in taken) == FIRST
    assert unit.quarantine.is_empty


def _noise_locator(target: Target) -> Locator:
    """Where a segment of the noise in the third span lies: nothing else refers to it."""
    image = target.images.open(FULL.image_id)
    (leaf,) = target.images.leaves(image, [2])
    assert leaf is not None
    (locator,) = target.store.unit.locate(image.tenant, [leaf.fingerprints[-32:]])
    return locator
