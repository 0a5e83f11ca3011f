"""Resize, clone, rollback and swap, cut at every change to the disk, on every disk that may be left."""

from __future__ import annotations

import pytest

from arraylift.ids import LineageId, SnapshotId, random_id
from primary_array.draft import Draft
from primary_array.pool_types import SnapshotSource, VolumeSource
from primary_array.volume_ops import Swap
from tests.property.pool_model import (
    UNIT,
    UNITS_PER_GRANULE,
    SnapshotModel,
    VolumeModel,
    check_slots,
    read_units,
)
from tests.property.test_pool_power_cuts import UNIT_COUNT, Outcome, Scene, every_cut, journal_sizes

LARGER, SMALLER = UNIT_COUNT + 2 * UNITS_PER_GRANULE, UNITS_PER_GRANULE + 5


def first_snapshot(scene: Scene) -> tuple[SnapshotId, SnapshotModel]:
    return next(iter(scene.models["a"].snapshots.items()))


def check_lineages(outcome: Outcome) -> None:
    """Whatever is there: the next snapshot of a volume tells changes since those that may vouch."""
    for name, model in outcome.models.items():
        (info,) = outcome.pool.snapshot([name])
        model.snapshot(info.snapshot_id, info.state)
        model.check_exact(outcome.pool, name)
        for older in model.snapshots[info.snapshot_id].ancestry:
            model.check_changes(outcome.pool, older, info.snapshot_id)


@journal_sizes
@pytest.mark.parametrize("units", [LARGER, SMALLER])
def test_volume_has_one_of_the_two_sizes(units: int, journal_bytes_max: int) -> None:
    def resize(scene: Scene) -> None:
        scene.pool.resize_volume("a", units * UNIT)

    for outcome in every_cut(resize, journal_bytes_max=journal_bytes_max):
        size = outcome.pool.volume("a").size_bytes
        assert size in ({units * UNIT} if outcome.finished else {units * UNIT, UNIT_COUNT * UNIT})
        if size == units * UNIT:
            outcome.models["a"].resize(units)
        outcome.settle()
        check_lineages(outcome)


def test_volume_that_grew_again_is_zero_there_on_every_disk() -> None:
    def shrink(scene: Scene) -> None:
        scene.pool.resize_volume("a", SMALLER * UNIT)
        scene.models["a"].resize(SMALLER)
        scene.flushed()

    def grow(scene: Scene) -> None:
        scene.pool.resize_volume("a", LARGER * UNIT)

    for outcome in every_cut(grow, prepare=shrink):
        if outcome.pool.volume("a").size_bytes == LARGER * UNIT:
            outcome.models["a"].resize(LARGER)
            found = read_units(outcome.pool, VolumeSource("a"), LARGER)
            assert set(found[SMALLER:]) == {0}
        else:
            assert not outcome.finished
        outcome.settle()
        check_lineages(outcome)


def test_clone_is_there_whole_or_not_at_all() -> None:
    def clone(scene: Scene) -> None:
        scene.pool.clone_volume(first_snapshot(scene)[0], "c")

    for outcome in every_cut(clone):
        there = [info.name for info in outcome.pool.volumes()]
        frozen = first_snapshot(outcome.scene)[1]
        assert there == ["a", "b", "c"] or (there == ["a", "b"] and not outcome.finished)
        if "c" in there:
            model = outcome.models["c"] = VolumeModel(UNIT_COUNT)
            model.become(frozen, epoch=frozen.state.birth + 1)
            outcome.pool.delete_volume("a", cascade=True)  # the clone does not need its source
            del outcome.models["a"]
        outcome.settle()
        check_lineages(outcome)


@journal_sizes
@pytest.mark.parametrize("safety_name", ["", "safe"])
def test_rollback_happens_with_its_safety_snapshot_or_not(safety_name: str, journal_bytes_max: int) -> None:
    def rollback(scene: Scene) -> None:
        scene.pool.rollback_volume("a", first_snapshot(scene)[0], safety_name=safety_name)

    for outcome in every_cut(rollback, journal_bytes_max=journal_bytes_max):
        model = outcome.models["a"]
        old = list(model.live)
        key, frozen = first_snapshot(outcome.scene)
        fresh = [s for s in outcome.pool.snapshots("a") if s.snapshot_id not in model.snapshots]
        lineage = outcome.pool.get_snapshot(key).state.lineage_id
        happened = outcome.pool.volume("a").state.lineage_id != lineage
        assert len(fresh) == (1 if happened and safety_name else 0)
        assert happened or not outcome.finished
        if happened:
            for info in fresh:
                assert read_units(outcome.pool, SnapshotSource(info.snapshot_id), UNIT_COUNT) == old
                model.snapshot(info.snapshot_id, info.state)
            model.become(frozen, epoch=model.epoch + 1)
        outcome.settle()
        check_lineages(outcome)


def begin(scene: Scene) -> Draft:
    draft = scene.pool.begin_clone("restore", first_snapshot(scene)[0], LARGER * UNIT)
    draft.write(UNITS_PER_GRANULE * UNIT, bytes([8]) * (2 * UNITS_PER_GRANULE * UNIT))
    draft.trim(0, UNITS_PER_GRANULE * UNIT)
    draft.save_progress(b"whole")
    return draft


def shape_of(scene: Scene) -> VolumeModel:
    frozen = first_snapshot(scene)[1]
    shape = VolumeModel(UNIT_COUNT)
    shape.become(frozen, epoch=frozen.state.birth + 1)
    shape.resize(LARGER)
    shape.write(UNITS_PER_GRANULE, 2 * UNITS_PER_GRANULE, 8)
    shape.trim(0, UNITS_PER_GRANULE)
    return shape


def test_cloned_draft_is_saved_or_void() -> None:
    for outcome in every_cut(begin):
        drafts = outcome.pool.drafts()
        assert drafts or not outcome.finished
        for info in drafts:
            draft = outcome.pool.resume_draft(info.draft_id)
            found = bytearray(LARGER * UNIT)
            draft.read_into(0, memoryview(found))
            assert list(found[::UNIT]) == shape_of(outcome.scene).live
            draft.abort()
        outcome.settle()


def swap(scene: Scene) -> None:
    (info,) = scene.pool.drafts()
    scene.pool.swap_drafts(
        [Swap(info.draft_id, "a", b"r" * 32, LineageId(random_id()))], safety_name="safety"
    )


@journal_sizes
def test_swap_happens_with_its_safety_snapshot_or_not(journal_bytes_max: int) -> None:
    for outcome in every_cut(swap, prepare=begin, journal_bytes_max=journal_bytes_max):
        model, shape = outcome.models["a"], shape_of(outcome.scene)
        fresh = [s for s in outcome.pool.snapshots("a") if s.snapshot_id not in model.snapshots]
        drafts = outcome.pool.drafts()
        assert len(fresh) + len(drafts) == 1
        assert fresh or not outcome.finished
        for info in fresh:
            assert read_units(outcome.pool, SnapshotSource(info.snapshot_id), UNIT_COUNT) == model.live
            model.snapshot(info.snapshot_id, info.state)
            base = first_snapshot(outcome.scene)[1]
            ancestry = [*base.ancestry, base]
            state = outcome.pool.volume("a").state
            frozen = SnapshotModel(shape.live, state, shape.sure, shape.maybe, shape.mapped, ancestry)
            model.become(frozen, epoch=max(model.epoch, shape.epoch) + 1)
            model.ancestry = ancestry
            (now,) = outcome.pool.snapshot(["a"])
            assert outcome.pool.changed_spans(now.snapshot_id, b"r" * 32) is not None
            outcome.pool.delete_snapshot(now.snapshot_id)
            model.epoch += 1
        for draft in drafts:
            outcome.pool.resume_draft(draft.draft_id).abort()
        outcome.settle()
        check_lineages(outcome)


def test_slot_shared_by_a_draft_and_a_volume_waits_for_both() -> None:
    """Both leave it, one commit after the other; on no disk is it another's while one still names it."""

    def leave(scene: Scene) -> None:
        (info,) = scene.pool.drafts()
        draft = scene.pool.resume_draft(info.draft_id)
        draft.write(2 * UNITS_PER_GRANULE * UNIT, bytes([9]) * (3 * UNIT))
        for snapshot_id in list(scene.models["a"].snapshots):
            scene.pool.delete_snapshot(snapshot_id)
            del scene.models["a"].snapshots[snapshot_id]
        scene.flushed()
        scene.write("a", 0, UNIT_COUNT, 7)
        scene.flush()
        scene.write("b", 0, UNIT_COUNT, 6)
        scene.flush()

    def clone(scene: Scene) -> None:
        draft = scene.pool.begin_clone("restore", first_snapshot(scene)[0], UNIT_COUNT * UNIT)
        draft.save_progress(b"begun")

    for outcome in every_cut(leave, prepare=clone):
        there = {info.snapshot_id for info in outcome.pool.snapshots("a")}
        for gone in [key for key in outcome.models["a"].snapshots if key not in there]:
            del outcome.models["a"].snapshots[gone]
        for extra in there - outcome.models["a"].snapshots.keys():
            outcome.pool.delete_snapshot(extra)
        (info,) = outcome.pool.drafts()
        found = bytearray(UNIT_COUNT * UNIT)
        outcome.pool.resume_draft(info.draft_id).read_into(0, memoryview(found))
        assert set(found[: 2 * UNITS_PER_GRANULE * UNIT]) == {1}
        assert set(found[2 * UNITS_PER_GRANULE * UNIT :]) <= {1, 9}
        check_slots(outcome.pool)
        outcome.pool.resume_draft(info.draft_id).abort()
        outcome.settle()
