"""Seal, read, number, remove; damage is an error, never wrong bytes."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from arraylift.durable import RealFiles
from arraylift.errors import Corruption, NotFound, OutOfSpace, Overloaded, PeerUnavailable
from arraylift.ids import ContainerId
from arraylift.sizes import CONTAINER_BYTES
from dedup_target.container_format import HEADER_BYTES, RECORDS_MAX, Kind
from dedup_target.container_store import IDS_SKIPPED_WITHOUT_MARK, ContainerLimits, ContainerStore, name_of
from dedup_target.directory_backend import DirectoryBackend
from dedup_target.segment_index import Locator
from tests.fakes.backend import MemoryBackend
from tests.fakes.disk import FakeFiles
from tests.unit.dedup_target.material import KEY_ID, TENANT, UNIT, Segment, append, fill, make_segments


def _store(path: Path, **limits: float) -> ContainerStore:
    return ContainerStore(
        DirectoryBackend(RealFiles(), str(path)),
        UNIT,
        ContainerLimits(**limits),  # type: ignore[arg-type]
    )


def _locators(container: ContainerId, segments: list[Segment], offsets: list[int]) -> list[Locator]:
    return [
        Locator(container, offset, len(segment.stored), segment.plain_bytes, segment.codec)
        for segment, offset in zip(segments, offsets, strict=True)
    ]


def _flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 4
    path.write_bytes(content)


def test_what_is_sealed_reads_back_record_by_record_and_whole(tmp_path: Path) -> None:
    store = _store(tmp_path)
    segments = make_segments(40)
    buffer = store.acquire(tenant=TENANT, key_id=KEY_ID, kind=Kind.NODES)
    offsets = append(buffer, segments[:25]) + append(buffer, segments[25:])
    assert [bytes(buffer.record_at(number).data) for number in range(40)] == [one.stored for one in segments]
    sealed = store.seal(buffer)
    store.release(buffer)
    assert sealed.directory["fingerprint"].tolist() == [segment.fingerprint for segment in segments]
    assert (
        tmp_path / f"containers/00000000/{sealed.container_id:016x}.alc"
    ).stat().st_size == sealed.file_bytes
    locators = _locators(sealed.container_id, segments, offsets)
    again = _store(tmp_path)
    for locator, segment in zip(locators, segments, strict=True):
        record = again.read_record(locator)
        assert (bytes(record.data), record.plain_bytes, record.codec) == (
            segment.stored,
            segment.plain_bytes,
            segment.codec,
        )
    loaded = again.read_container(sealed.container_id)
    assert loaded.sealed.kind is Kind.NODES
    assert [bytes(loaded.view(one.offset, one.stored_bytes)) for one in locators] == [
        segment.stored for segment in segments
    ]
    assert bytes(again.read_record(locators[3]).data) == segments[3].stored  # now from the cache
    assert again.verify(sealed.container_id) == []


def test_ids_are_never_given_out_twice(tmp_path: Path) -> None:
    store = _store(tmp_path)
    first = fill(store, [make_segments(1)]).container_id
    second = fill(store, [make_segments(1)]).container_id
    assert (first, second) == (1, 2)
    store.remove(second)
    store.close()
    orderly = _store(tmp_path)
    assert fill(orderly, [make_segments(1)]).container_id == 3
    orderly.remove(ContainerId(3))  # no close: as after a crash
    assert fill(_store(tmp_path), [make_segments(1)]).container_id > 3


@pytest.mark.parametrize("loss", ["missing", "damaged"])
def test_without_the_high_water_mark_ids_jump_far_ahead(tmp_path: Path, loss: str) -> None:
    store = _store(tmp_path)
    fill(store, [make_segments(1)])
    store.close()
    mark = tmp_path / "high-water.alu"
    mark.unlink() if loss == "missing" else _flip(mark, 50)
    assert fill(_store(tmp_path), [make_segments(1)]).container_id > IDS_SKIPPED_WITHOUT_MARK


def test_buffers_are_bounded_and_come_back(tmp_path: Path) -> None:
    store = _store(tmp_path, buffers_max=2, buffer_wait_seconds=0.05)
    first = store.acquire(tenant=TENANT, key_id=KEY_ID, kind=Kind.DATA)
    store.acquire(tenant=TENANT, key_id=KEY_ID, kind=Kind.DATA)
    with pytest.raises(Overloaded, match="2 container buffers"):
        store.acquire(tenant=TENANT, key_id=KEY_ID, kind=Kind.DATA)
    store.release(first)
    assert store.acquire(tenant=TENANT, key_id=KEY_ID, kind=Kind.DATA) is first
    assert store.stats().buffers_in_use == 2


def test_a_buffer_says_when_it_is_full(tmp_path: Path) -> None:
    store = _store(tmp_path)
    buffer = store.acquire(tenant=TENANT, key_id=KEY_ID, kind=Kind.DATA)
    room = CONTAINER_BYTES - HEADER_BYTES - 64 - 56
    assert buffer.fits(1, room)
    assert not buffer.fits(1, room + 1)
    assert not buffer.fits(RECORDS_MAX + 1, 0)
    append(buffer, [Segment(b"f" * 32, bytes(room), 1, 0)])
    assert not buffer.fits(1, 0)
    assert store.seal(buffer).file_bytes == CONTAINER_BYTES + 4096
    assert store.verify(buffer.container_id) == []


def test_a_damaged_record_is_an_error_and_its_neighbours_are_not(tmp_path: Path) -> None:
    store = _store(tmp_path)
    segments = make_segments(3)
    sealed = fill(store, [segments])
    offsets = sealed.directory["offset"].tolist()
    _flip(tmp_path / name_of(sealed.container_id), offsets[1])
    locators = _locators(sealed.container_id, segments, offsets)
    with pytest.raises(Corruption, match=f"container {sealed.container_id:016x} is damaged"):
        store.read_record(locators[1])
    assert bytes(store.read_record(locators[2]).data) == segments[2].stored
    loaded = store.read_container(sealed.container_id)
    with pytest.raises(Corruption, match="checksum"):
        loaded.view(locators[1].offset, locators[1].stored_bytes)
    assert bytes(loaded.view(locators[0].offset, locators[0].stored_bytes)) == segments[0].stored
    assert store.verify(sealed.container_id) == [segments[1].fingerprint]


@pytest.mark.parametrize("place", ["header", "directory"])
def test_frames_stand_in_for_a_damaged_header_or_directory(tmp_path: Path, place: str) -> None:
    store = _store(tmp_path)
    segments = make_segments(9)
    sealed = fill(store, [segments[:4], segments[4:]])
    end = int(sealed.directory["offset"][-1] + sealed.directory["stored_bytes"][-1])
    _flip(tmp_path / name_of(sealed.container_id), 20 if place == "header" else end + 7)
    found = store.read_directory(sealed.container_id)
    assert found.damage
    assert found.directory.tobytes() == sealed.directory.tobytes()
    assert (found.tenant, found.key_id, found.kind) == (TENANT, KEY_ID, Kind.DATA)
    for locator, segment in zip(
        _locators(sealed.container_id, segments, sealed.directory["offset"].tolist()), segments, strict=True
    ):
        assert bytes(store.read_record(locator).data) == segment.stored


def test_wrong_locators_are_refused(tmp_path: Path) -> None:
    store = _store(tmp_path)
    sealed = fill(store, [make_segments(2)])
    offset, size = int(sealed.directory["offset"][0]), int(sealed.directory["stored_bytes"][0])
    for wrong in ((offset + 1, size), (offset, size - 1 or 2)):
        with pytest.raises(Corruption):
            store.read_record(Locator(sealed.container_id, *wrong, 1, 0))
        with pytest.raises(Corruption):
            store.read_container(sealed.container_id).view(*wrong)
    with pytest.raises(NotFound):
        store.read_record(Locator(ContainerId(99), offset, size, 1, 0))


def test_a_removed_container_is_gone_from_disk_and_cache(tmp_path: Path) -> None:
    store = _store(tmp_path)
    sealed = fill(store, [make_segments(2)])
    store.read_container(sealed.container_id)
    store.remove(sealed.container_id)
    assert store.containers() == []
    with pytest.raises(NotFound):
        store.read_container(sealed.container_id)


def test_a_full_disk_keeps_the_buffer_for_another_try() -> None:
    files = FakeFiles()
    store = ContainerStore(DirectoryBackend(files, "/unit"), UNIT)
    buffer = store.acquire(tenant=TENANT, key_id=KEY_ID, kind=Kind.DATA)
    segments = make_segments(30)
    append(buffer, segments)
    files.set_capacity(16 << 10)
    with pytest.raises(OutOfSpace):
        store.seal(buffer)
    assert store.containers() == []
    files.set_capacity(None)
    sealed = store.seal(buffer)
    assert store.verify(sealed.container_id) == []


def test_prefetch_fills_the_cache_and_forgets_what_it_cannot_load(tmp_path: Path) -> None:
    store = _store(tmp_path)
    sealed = fill(store, [make_segments(2)])
    store.prefetch([ContainerId(77), sealed.container_id])
    store._prefetcher.shutdown()  # waits for what was asked for
    assert store.stats().cache_bytes == sealed.file_bytes
    store.close()


def test_concurrent_fillers_get_containers_of_their_own(tmp_path: Path) -> None:
    store = _store(tmp_path, buffers_max=3)
    done: list[int] = []

    def work(seed: int) -> None:
        for number in range(3):
            done.append(fill(store, [make_segments(5, seed=seed * 10 + number)]).container_id)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == store.containers()
    assert len(set(done)) == 12
    assert all(store.verify(ContainerId(container)) == [] for container in done)


def test_a_container_whose_removal_failed_is_none_of_ours() -> None:
    """It may be gone: an index made anew must not say that what it held is present."""
    there = MemoryBackend()
    store = ContainerStore(there, UNIT)
    sealed = fill(store, [make_segments(3)])
    there.fail("remove", PeerUnavailable("the answer was lost"), effect=True)
    with pytest.raises(PeerUnavailable):
        store.remove(sealed.container_id)
    assert store.containers() == []
    assert not store.holds(sealed.container_id)
