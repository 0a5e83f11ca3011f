"""Who may take which slot, and where bytes land."""

from __future__ import annotations

import os

import numpy as np
import pytest

from arraylift.errors import OutOfSpace, Overloaded
from arraylift.sizes import GRANULE_BYTES
from primary_array.block_map import U64
from primary_array.slot_store import SlotStore, stretches
from tests.fakes.disk import FakeFiles


def u64(*values: int) -> U64:
    return np.array(values, np.uint64)


@pytest.fixture
def files() -> FakeFiles:
    made = FakeFiles()
    made.make_dirs("/p")
    return made


def open_store(files: FakeFiles, *used: int) -> SlotStore:
    return SlotStore(files.random_file("/p/slots", label="slots"), u64(*used))


def test_gaps_below_the_highest_used_slot_are_free(files: FakeFiles) -> None:
    store = open_store(files, 2, 5)
    assert store.allocate(2).tolist() == [1, 3]
    assert store.allocate(3).tolist() == [4, 6, 7]
    assert store.counts() == (7, 0)


def test_new_slots_are_consecutive(files: FakeFiles) -> None:
    store = open_store(files)
    assert store.allocate(16).tolist() == list(range(1, 17))
    assert store.allocate(16).tolist() == list(range(17, 33))


def test_released_slots_wait_for_the_readers_that_were_there(files: FakeFiles) -> None:
    store = open_store(files)
    slots = store.allocate(4)
    with store.reading():
        store.release(slots[:2], punch=False)
        assert store.counts() == (2, 2)
        assert store.allocate(1).tolist() == [5]
        with store.reading():  # a later reader cannot have seen them, but the first still may
            store.drain()
            assert store.counts()[1] == 2
    with store.reading():
        store.drain()
        assert store.counts() == (3, 0)
    assert sorted(store.allocate(2).tolist()) == [1, 2]


def test_later_readers_do_not_hold_back_earlier_releases(files: FakeFiles) -> None:
    store = open_store(files)
    slots = store.allocate(2)
    outer = store.reading()
    with outer:
        store.release(slots, punch=False)
        inner = store.reading()
        inner.__enter__()
    store.drain()
    assert store.counts() == (0, 0)
    inner.__exit__(None, None, None)


def test_punched_slots_give_space_back_and_read_as_zero(files: FakeFiles) -> None:
    store = open_store(files)
    slots = store.allocate(4)
    store.write(slots, memoryview(b"x" * (4 * GRANULE_BYTES)))
    store.release(slots[1:3], punch=True)
    assert store.allocated_bytes() == 2 * GRANULE_BYTES
    into = bytearray(4 * GRANULE_BYTES)
    store.read_into(slots, 0, memoryview(into))
    assert into == b"x" * GRANULE_BYTES + bytes(2 * GRANULE_BYTES) + b"x" * GRANULE_BYTES


def test_given_back_slots_come_again_at_once(files: FakeFiles) -> None:
    store = open_store(files)
    with store.reading():
        store.give_back(store.allocate(3))
        assert store.allocate(3).tolist() == [1, 2, 3]


@pytest.mark.parametrize("order", [[1, 2, 3, 4], [4, 3, 2, 1], [1, 2, 0, 3], [0, 0, 4, 1], [2, 0, 0, 0]])
@pytest.mark.parametrize(("skip", "cut"), [(0, 0), (1, 0), (GRANULE_BYTES - 1, 7), (100, GRANULE_BYTES + 5)])
def test_reads_gather_slots_in_any_order(files: FakeFiles, order: list[int], skip: int, cut: int) -> None:
    store = open_store(files)
    content = os.urandom(4 * GRANULE_BYTES)
    store.write(store.allocate(4), memoryview(content))
    whole = b"".join(
        content[(slot - 1) * GRANULE_BYTES : slot * GRANULE_BYTES] if slot else bytes(GRANULE_BYTES)
        for slot in order
    )
    into = bytearray(b"?" * (4 * GRANULE_BYTES - skip - cut))
    store.read_into(u64(*order), skip, memoryview(into))
    assert into == whole[skip : len(whole) - cut]


def test_consecutive_slots_are_written_in_one_call(files: FakeFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(files, 20)
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(store._data, "write", lambda offset, data: calls.append((offset, data.nbytes)))
    store.write(u64(*range(1, 17), 30), memoryview(bytes(17 * GRANULE_BYTES)))
    assert calls == [(GRANULE_BYTES, 16 * GRANULE_BYTES), (30 * GRANULE_BYTES, GRANULE_BYTES)]


def test_full_disk_is_said(files: FakeFiles) -> None:
    store = open_store(files)
    files.set_capacity(2 * GRANULE_BYTES)
    slots = store.allocate(3)
    with pytest.raises(OutOfSpace):
        store.write(slots, memoryview(b"y" * (3 * GRANULE_BYTES)))
    store.give_back(slots)
    assert store.allocated_bytes() == 0


@pytest.mark.parametrize(
    ("slots", "expected"),
    [
        ([], []),
        ([7], [(0, 1)]),
        ([0, 0], [(0, 2)]),
        ([0, 1, 2], [(0, 1), (1, 3)]),
        ([1, 2, 4, 0, 0, 1], [(0, 2), (2, 3), (3, 5), (5, 6)]),
    ],
)
def test_stretches(slots: list[int], expected: list[tuple[int, int]]) -> None:
    assert stretches(u64(*slots)) == expected


def test_a_hole_for_which_there_is_no_memory_loses_no_slot(
    files: FakeFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(files)
    slots = store.allocate(2)

    def refused(offset: int, length: int) -> None:
        raise Overloaded("no memory")

    monkeypatch.setattr(store._data, "punch", refused)
    store.release(slots, punch=True)  # an error here would be the answer to a deletion that was done
    assert store.counts() == (0, 0)
    assert store.allocate(2).tolist() == [1, 2]
