"""What every segment index must do; the real one and the fake pass the same suite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from arraylift.errors import WrongState
from arraylift.ids import ContainerId, KeyId, TenantId
from dedup_target.container_buffer import ContainerBuffer
from dedup_target.container_format import Kind, SealedContainer
from dedup_target.rocks_index import RocksSegmentIndex
from dedup_target.segment_index import IndexTotals, Locator, SegmentIndex
from tests.fakes.index import MemorySegmentIndex
from tests.unit.dedup_target.material import KEY_ID, TENANT, UNIT, Segment, append, make_segments

OTHER = TenantId(1)


@pytest.fixture(params=["rocks", "memory"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], SegmentIndex]]:
    """Opens the index; for RocksDB, calling again opens what is on disk."""
    opened: list[SegmentIndex] = []

    def open_() -> SegmentIndex:
        index: SegmentIndex = (
            RocksSegmentIndex(str(tmp_path / "index")) if request.param == "rocks" else MemorySegmentIndex()
        )
        opened.append(index)
        return index

    yield open_
    for index in opened:
        index.close()


def sealed_of(container: int, segments: list[Segment], tenant: TenantId = TENANT) -> SealedContainer:
    buffer = ContainerBuffer(UNIT)
    buffer.begin(ContainerId(container), tenant, KeyId(KEY_ID), Kind.DATA)
    append(buffer, segments)
    return SealedContainer(
        ContainerId(container), Kind.DATA, tenant, KEY_ID, buffer.directory(), 4096 * container
    )


def fingerprints(segments: list[Segment]) -> list[bytes]:
    return [segment.fingerprint for segment in segments]


def test_finds_what_was_added_where_it_lies(make: Callable[[], SegmentIndex]) -> None:
    index, segments = make(), make_segments(300)
    sealed = sealed_of(5, segments)
    index.add_containers([sealed])
    absent = make_segments(3, seed=9)
    expected = [
        Locator(
            ContainerId(5),
            int(row["offset"]),
            int(row["stored_bytes"]),
            int(row["plain_bytes"]),
            int(row["codec"]),
        )
        for row in sealed.directory
    ]
    assert index.get_many(TENANT, fingerprints(segments + absent)) == [*expected, None, None, None]
    packed = b"".join(fingerprints(absent[:1] + segments[:2] + absent[1:]))
    assert index.contains_many(TENANT, packed).tolist() == [False, True, True, False, False]
    assert index.get_many(TENANT, []) == []
    assert index.contains_many(TENANT, b"").dtype == np.bool_


def test_many_are_found_at_once_with_their_slots(make: Callable[[], SegmentIndex]) -> None:
    index, segments = make(), make_segments(20)
    sealed = sealed_of(5, segments)
    kept = np.arange(20) % 3 > 0  # as if every third were quarantined
    index.add_containers([replace(sealed, directory=sealed.directory[kept], kept=kept)])
    found = index.find_many(TENANT, b"".join(fingerprints(segments)))
    assert found["container"].tolist() == [5 if here else 0 for here in kept]
    assert found["slot"][kept].tolist() == np.flatnonzero(kept).tolist()
    for name in ("offset", "stored_bytes", "plain_bytes", "codec"):
        assert found[name][kept].tolist() == sealed.directory[name][kept].tolist()
    mark = index.marks()[ContainerId(5)]
    assert (mark.record_count, mark.slot_count) == (int(kept.sum()), 20)
    assert len(index.find_many(TENANT, b"")) == 0
    assert index.find_many(OTHER, segments[1].fingerprint)["container"].tolist() == [0]


def test_tenants_do_not_see_each_other(make: Callable[[], SegmentIndex]) -> None:
    index, segments = make(), make_segments(4)
    index.add_containers([sealed_of(5, segments), sealed_of(6, segments[:1], OTHER)])
    found = [one.container for one in index.get_many(OTHER, fingerprints(segments)) if one]
    assert found == [6]
    assert index.contains_many(TENANT, b"".join(fingerprints(segments))).all()


def test_the_container_added_last_wins_and_adding_twice_changes_nothing(
    make: Callable[[], SegmentIndex],
) -> None:
    index, segments = make(), make_segments(4)
    index.add_containers([sealed_of(5, segments)])
    index.add_containers([sealed_of(6, segments[2:])])
    index.add_containers([sealed_of(6, segments[2:])])
    assert [one.container for one in index.get_many(TENANT, fingerprints(segments)) if one] == [5, 5, 6, 6]
    assert index.indexed_containers() == {5, 6}
    assert index.count() == 4
    assert index.totals().record_count == 6


def test_totals_add_up(make: Callable[[], SegmentIndex]) -> None:
    index, segments = make(), make_segments(4)
    index.add_containers([sealed_of(1, segments), sealed_of(2, make_segments(2, seed=3))])
    index.remove_container(ContainerId(2), [])
    assert index.totals() == IndexTotals(
        container_count=1,
        record_count=4,
        file_bytes=4096,
        stored_bytes=sum(len(segment.stored) for segment in segments),
        plain_bytes=sum(segment.plain_bytes for segment in segments),
        tenant_bytes={TENANT: 4096},
    )
    index.remove_container(ContainerId(1), [])
    assert index.totals() == IndexTotals()


def test_removing_takes_only_entries_that_still_point_there(make: Callable[[], SegmentIndex]) -> None:
    index, segments = make(), make_segments(4)
    index.add_containers([sealed_of(5, segments), sealed_of(6, segments[2:])])
    index.remove_container(ContainerId(5), fingerprints(segments))
    index.remove_container(ContainerId(77), fingerprints(segments))
    assert [one and one.container for one in index.get_many(TENANT, fingerprints(segments))] == [
        None,
        None,
        6,
        6,
    ]
    assert index.indexed_containers() == {6}


def test_forgetting_records_keeps_the_container(make: Callable[[], SegmentIndex]) -> None:
    index, segments = make(), make_segments(4)
    index.add_containers([sealed_of(5, segments), sealed_of(6, segments[3:])])
    assert index.forget_records(TENANT, ContainerId(5), fingerprints(segments[2:])) == 1
    assert index.forget_records(OTHER, ContainerId(5), fingerprints(segments)) == 0
    assert index.contains_many(TENANT, b"".join(fingerprints(segments))).tolist() == [True, True, False, True]
    assert index.indexed_containers() == {5, 6}


def test_entries_come_in_key_order_and_all_of_them(make: Callable[[], SegmentIndex]) -> None:
    index, segments = make(), make_segments(500)
    index.add_containers([sealed_of(5, segments), sealed_of(6, segments[:10], OTHER)])
    entries = list(index.entries())
    keys = [(tenant, fingerprint) for tenant, fingerprint, _ in entries]
    assert keys == sorted(
        [(TENANT, one.fingerprint) for one in segments] + [(OTHER, one.fingerprint) for one in segments[:10]]
    )
    assert index.count() == 510
    for tenant, fingerprint, locator in entries[::50]:
        assert index.get_many(tenant, [fingerprint]) == [locator]


def test_a_fresh_index_takes_over_at_one_instant(make: Callable[[], SegmentIndex], tmp_path: Path) -> None:
    index, old, new = make(), make_segments(30), make_segments(30, seed=4)
    index.add_containers([sealed_of(5, old)])
    fresh = make_next(index, tmp_path)
    fresh.add_containers([sealed_of(7, new)])
    with pytest.raises(RuntimeError, match="not ready"):
        index.take_over(fresh, not_ready)
    assert index.indexed_containers() == {5}

    def last() -> None:
        assert index.indexed_containers() == {5}
        fresh.add_containers([sealed_of(8, old[:3])])

    index.take_over(fresh, last)
    assert index.indexed_containers() == {7, 8}
    assert index.count() == index.totals().record_count == 33
    assert index.contains_many(TENANT, b"".join(fingerprints(old))).tolist() == [True] * 3 + [False] * 27
    index.add_containers([sealed_of(9, old)])
    assert index.contains_many(TENANT, b"".join(fingerprints(old + new))).all()
    index.close()
    with pytest.raises(WrongState):
        index.take_over(make_next(index, tmp_path), lambda: None)


def not_ready() -> NoReturn:
    raise RuntimeError("not ready")


def make_next(index: SegmentIndex, path: Path) -> SegmentIndex:
    """An empty index of the same kind, elsewhere."""
    if isinstance(index, MemorySegmentIndex):
        return MemorySegmentIndex()
    return RocksSegmentIndex(str(path / f"next{len(list(path.iterdir()))}"))


def test_a_container_without_records_is_marked(make: Callable[[], SegmentIndex]) -> None:
    index = make()
    sealed = sealed_of(5, make_segments(1))
    index.add_containers([replace(sealed, directory=sealed.directory[:0])])
    index.add_containers([])
    assert index.indexed_containers() == {5}
    assert index.count() == 0


def test_a_closed_index_says_so(make: Callable[[], SegmentIndex]) -> None:
    index = make()
    index.close()
    index.close()
    with pytest.raises(WrongState, match="closed"):
        index.get_many(TENANT, [b"f" * 32])
    with pytest.raises(WrongState, match="closed"):
        index.add_containers([sealed_of(5, make_segments(1))])
