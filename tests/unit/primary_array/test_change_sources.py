"""Each source vouches for one state of the base only; whoever cannot makes the run read everything."""

from __future__ import annotations

import numpy as np
import pytest

from arraylift.errors import InvalidRequest
from arraylift.exchange.messages import Base
from arraylift.ids import LineageId, SnapshotId, SourceState
from arraylift.segments.segmentation import DEFAULT_SEGMENTATION
from arraylift.sizes import GRANULE_BYTES, MIB
from primary_array.change_sources import (
    SUPPLIED_RANGES_MAX,
    ChangeRequest,
    Supplied,
    changed_since,
)
from primary_array.change_types import ChangeSource
from primary_array.pool import Pool
from primary_array.pool_types import SnapshotInfo
from primary_array.volume_ops import Swap
from tests.fakes.disk import FakeFiles

G = GRANULE_BYTES
ROOT = b"r" * 32


@pytest.fixture
def pool() -> Pool:
    made = Pool.open(FakeFiles(), "/pool")
    made.create_volume("a", 8 * MIB)
    made.write("a", 0, b"1" * (4 * MIB))
    return made


def base_of(info: SnapshotInfo) -> Base:
    return Base(ROOT, info.size_bytes, DEFAULT_SEGMENTATION, info.state)


def supplied(since: SourceState, *ranges: tuple[int, int]) -> ChangeRequest:
    offsets = np.array([offset for offset, _ in ranges], np.uint64)
    lengths = np.array([length for _, length in ranges], np.uint64)
    return ChangeRequest(ChangeSource.SUPPLIED, supplied=Supplied(since, offsets, lengths))


def spans(pool: Pool, info: SnapshotInfo, base: Base, request: ChangeRequest) -> list[int] | None:
    found = changed_since(pool, info, base, request)
    assert found is None or found.source is not ChangeSource.ANY
    return None if found is None else found.spans.tolist()


def step(pool: Pool) -> tuple[SnapshotInfo, SnapshotInfo]:
    """Two snapshots: spans 1 and 6 differ, granule 3 MiB was written with what it had."""
    (old,) = pool.snapshot(["a"])
    pool.write("a", MIB, b"2" * G)
    pool.write("a", 3 * MIB, b"1" * 512)
    pool.write("a", 6 * MIB, b"3" * G)
    pool.trim("a", 7 * MIB, MIB)  # nothing was there
    (new,) = pool.snapshot(["a"])
    return old, new


def test_births_diff_and_supplied_agree_on_what_changed(pool: Pool) -> None:
    old, new = step(pool)
    base = base_of(old)
    assert spans(pool, new, base, ChangeRequest()) == [1, 3, 6]
    assert spans(pool, new, base, ChangeRequest(ChangeSource.BIRTHS)) == [1, 3, 6]
    assert spans(pool, new, base, ChangeRequest(ChangeSource.DIFF, old.snapshot_id)) == [1, 3, 6]
    told = supplied(old.state, (MIB + 5, 10), (6 * MIB - 1, 2))
    assert spans(pool, new, base, told) == [1, 3, 5, 6]
    assert spans(pool, new, base, ChangeRequest(ChangeSource.FULL_READ)) is None


def test_a_write_that_the_supplier_did_not_see_counts_too(pool: Pool) -> None:
    """An operator wrote while the VM was off, or another host did: the VMM's bitmap knows nothing of it."""
    old, new = step(pool)
    assert spans(pool, new, base_of(old), supplied(old.state)) == [1, 3, 6]


def test_a_diff_needs_the_snapshot_that_the_base_was_taken_from(pool: Pool) -> None:
    old, new = step(pool)
    wrong = base_of(new)
    nobody = SnapshotId("0" * 32)
    assert spans(pool, new, wrong, ChangeRequest(ChangeSource.DIFF, old.snapshot_id)) is None
    assert spans(pool, new, base_of(old), ChangeRequest(ChangeSource.DIFF, nobody)) is None
    pool.create_volume("b", 8 * MIB)
    (other,) = pool.snapshot(["b"])
    assert spans(pool, new, base_of(other), ChangeRequest(ChangeSource.DIFF, other.snapshot_id)) is None


def test_a_diff_sees_across_a_rollback_where_births_cannot(pool: Pool) -> None:
    old, new = step(pool)
    pool.rollback_volume("a", old.snapshot_id)
    pool.write("a", 2 * MIB, b"9" * G)
    (back,) = pool.snapshot(["a"])
    base = base_of(new)  # of the branch that was left
    assert spans(pool, back, base, ChangeRequest()) is None
    assert spans(pool, back, base, ChangeRequest(ChangeSource.DIFF, new.snapshot_id)) == [1, 2, 3, 6]
    assert spans(pool, back, base, supplied(new.state, (2 * MIB, G))) is None
    assert spans(pool, back, base_of(old), ChangeRequest()) == [2]
    assert spans(pool, back, base_of(old), supplied(old.state, (2 * MIB, G))) is None, "a fork it did not see"


def test_nobody_vouches_after_distrust(pool: Pool) -> None:
    old, new = step(pool)
    base = base_of(old)
    pool.distrust("a")
    new = pool.get_snapshot(new.snapshot_id)
    requests = (
        ChangeRequest(),
        ChangeRequest(ChangeSource.DIFF, old.snapshot_id),
        supplied(old.state, (MIB, G)),
    )
    assert [spans(pool, new, base, request) for request in requests] == [None, None, None]


def test_supplied_changes_hold_since_one_state(pool: Pool) -> None:
    old, new = step(pool)
    assert spans(pool, new, base_of(old), supplied(new.state, (MIB, G))) is None
    strange = SourceState(pool.pool_id, LineageId("0" * 32), old.state.birth)
    base = Base(ROOT, old.size_bytes, DEFAULT_SEGMENTATION, strange)
    assert spans(pool, new, base, supplied(strange, (MIB, G))) is None
    assert spans(pool, old, base_of(new), supplied(new.state)) is None, "the base is younger"
    no_state = Base(ROOT, old.size_bytes, DEFAULT_SEGMENTATION, None)
    assert spans(pool, new, no_state, supplied(old.state)) is None


def test_a_resize_is_seen_by_all_sources(pool: Pool) -> None:
    (old,) = pool.snapshot(["a"])
    pool.resize_volume("a", 6 * MIB + 512)
    (less,) = pool.snapshot(["a"])
    pool.resize_volume("a", 9 * MIB)
    (more,) = pool.snapshot(["a"])
    base = base_of(old)
    for request in (ChangeRequest(), ChangeRequest(ChangeSource.DIFF, old.snapshot_id)):
        assert spans(pool, less, base, request) == [6]
        assert spans(pool, more, base, request) in ([6, 7, 8], [7, 8])
    assert spans(pool, more, base, ChangeRequest()) == [6, 7, 8]
    for cut in (less, more):
        assert spans(pool, cut, base, supplied(old.state)) is None, "a cut that nobody outside saw"
    pool.resize_volume("a", 11 * MIB)
    (largest,) = pool.snapshot(["a"])
    assert spans(pool, largest, base_of(more), supplied(more.state, (MIB, G))) == [1, 8, 9, 10]


@pytest.mark.parametrize(
    "ranges",
    [[(0, 0)], [(5, 5), (9, 1)], [(9, 1), (5, 1)], [(2**64 - 1, 2)], [(0, 1)] * 2],
)
def test_supplied_ranges_are_checked(pool: Pool, ranges: list[tuple[int, int]]) -> None:
    old, _ = step(pool)
    with pytest.raises(InvalidRequest):
        supplied(old.state, *ranges)


def test_supplied_ranges_are_bounded(pool: Pool) -> None:
    old, new = step(pool)
    with pytest.raises(InvalidRequest, match="past the end"):
        spans(pool, new, base_of(old), supplied(old.state, (8 * MIB, 1)))
    with pytest.raises(InvalidRequest, match="at most"):
        supplied(old.state, *((2 * number, 1) for number in range(SUPPLIED_RANGES_MAX + 1)))


def test_a_request_says_one_thing(pool: Pool) -> None:
    old, _ = step(pool)
    told = supplied(old.state).supplied
    for wrong in (
        lambda: ChangeRequest(ChangeSource.DIFF),
        lambda: ChangeRequest(ChangeSource.BIRTHS, old.snapshot_id),
        lambda: ChangeRequest(ChangeSource.SUPPLIED),
        lambda: ChangeRequest(ChangeSource.ANY, supplied=told),
    ):
        with pytest.raises(InvalidRequest):
            wrong()


def test_state_and_root_of_a_base_vouch_together(pool: Pool) -> None:
    """A volume that was set back in place to the image that the base is."""
    (old,) = pool.snapshot(["a"])
    pool.write("a", MIB, b"2" * G)
    draft = pool.begin_clone_of("a", "restore", 8 * MIB)
    draft.write(MIB, b"1" * G)
    draft.save_progress(b"whole")
    line = LineageId("b" * 32)
    pool.swap_drafts([Swap(draft.draft_id, "a", ROOT, line)], safety_name="before")
    pool.write("a", 3 * MIB, b"3" * G)
    (new,) = pool.snapshot(["a"])
    assert pool.changed_spans(new.snapshot_id, old.state) is not None
    assert spans(pool, new, base_of(old), ChangeRequest()) == [3]
    other = Base(b"o" * 32, old.size_bytes, DEFAULT_SEGMENTATION, old.state)
    assert spans(pool, new, other, ChangeRequest()) == [1, 3]
