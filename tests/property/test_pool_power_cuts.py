"""Every commit sequence of a pool, cut at every change to the disk, on every disk that may be left."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from arraylift.ids import VolumeId
from primary_array.draft import Draft
from primary_array.pool import Pool
from primary_array.pool_types import SnapshotSource, VolumeSource
from tests.fakes.disk import FakeFiles, PowerCut
from tests.property.pool_model import (
    UNIT,
    UNITS_PER_GRANULE,
    VolumeModel,
    check_slots,
    read_units,
    trim,
    write,
)

DIRECTORY = "/pool"
UNIT_COUNT = 2 * UNITS_PER_GRANULE + 3
STATES_MAX = 20
ROTATE_ALWAYS = 100
"""Journals are replaced at nearly every commit."""


@dataclass
class Scene:
    """A pool with a history: two volumes, snapshots, unflushed writes in both."""

    files: FakeFiles
    journal_bytes_max: int
    models: dict[str, VolumeModel] = field(default_factory=dict)
    pool: Pool = field(init=False)

    def __post_init__(self) -> None:
        self.pool = Pool.open(self.files, DIRECTORY, journal_bytes_max=self.journal_bytes_max)
        for name in ("a", "b"):
            self.pool.create_volume(name, UNIT_COUNT * UNIT)
            self.models[name] = VolumeModel(UNIT_COUNT)
        self.write("a", 0, UNIT_COUNT, 1)
        self.write("b", 3, UNITS_PER_GRANULE, 2)
        self.snapshot("a", "b")
        self.write("a", 0, UNITS_PER_GRANULE, 3)
        self.write("b", 0, 1, 4)
        self.snapshot("a")
        self.write("a", 2, UNITS_PER_GRANULE, 5)
        self.flush()
        self.write("a", 5, 2, 6)  # in place
        trim(self.pool, self.models["a"], "a", UNITS_PER_GRANULE, UNITS_PER_GRANULE)
        self.write("b", UNITS_PER_GRANULE, 2, 7)  # to a new slot

    def write(self, name: str, first: int, count: int, value: int) -> None:
        write(self.pool, self.models[name], name, first, count, value)

    def flush(self) -> None:
        self.pool.flush("a")
        self.flushed()

    def flushed(self) -> None:
        for model in self.models.values():
            model.flush()

    def snapshot(self, *names: str) -> None:
        for name, info in zip(names, self.pool.snapshot(names, "s"), strict=True):
            self.models[name].snapshot(info.snapshot_id, info.state)
        self.flushed()


@dataclass
class Outcome:
    """One disk after one cut. ``models`` may be changed."""

    finished: bool
    scene: Scene
    models: dict[str, VolumeModel]
    pool: Pool
    files: FakeFiles

    def settle(self) -> None:
        """Compare all volumes, then see that the pool goes on and comes back once more."""
        for name, model in self.models.items():
            model.settle(self.pool, name)
        check_slots(self.pool)
        for name, model in self.models.items():
            write(self.pool, model, name, 1, UNITS_PER_GRANULE, 9)
            model.check_snapshots(self.pool, name)
            self.pool.flush(name)
        self.files = self.files.after_kill()
        self.pool = Pool.open(self.files, DIRECTORY)
        for name, model in self.models.items():
            model.flush()
            model.check_exact(self.pool, name)
        check_slots(self.pool)


def every_cut(
    operation: Callable[[Scene], object],
    *,
    prepare: Callable[[Scene], object] = lambda scene: None,
    journal_bytes_max: int = 1 << 20,
) -> Iterator[Outcome]:
    """Cut the power at each change that ``operation`` makes, and once after it."""
    finished, operations = False, 0
    while not finished:
        scene = Scene(FakeFiles(), journal_bytes_max)
        prepare(scene)
        scene.files.crash_after(operations)
        try:
            operation(scene)
            finished = True
        except PowerCut:
            pass
        for files in scene.files.post_crash_states(maximum=STATES_MAX, seed=operations):
            pool = Pool.open(files, DIRECTORY)
            models = {name: copy.deepcopy(model) for name, model in scene.models.items()}
            yield Outcome(finished, scene, models, pool, files)
        operations += 1
    assert operations > 1, "the operation changes nothing on the disk"


journal_sizes = pytest.mark.parametrize(
    "journal_bytes_max", [1 << 20, ROTATE_ALWAYS], ids=["plain", "rotating"]
)


@journal_sizes
def test_flush_keeps_what_was_acknowledged(journal_bytes_max: int) -> None:
    for outcome in every_cut(Scene.flush, journal_bytes_max=journal_bytes_max):
        outcome.settle()


@journal_sizes
def test_group_snapshot_is_there_for_all_volumes_or_none(journal_bytes_max: int) -> None:
    for outcome in every_cut(lambda scene: scene.snapshot("a", "b"), journal_bytes_max=journal_bytes_max):
        counts = {}
        for name, model in outcome.models.items():
            fresh = [s for s in outcome.pool.snapshots(name) if s.snapshot_id not in model.snapshots]
            counts[name] = len(fresh)
            for info in fresh:  # not answered, yet whole
                assert read_units(outcome.pool, SnapshotSource(info.snapshot_id), UNIT_COUNT) == model.live
                model.snapshot(info.snapshot_id, info.state)
        assert counts["a"] == counts["b"]
        outcome.settle()


@journal_sizes
def test_deleted_snapshot_is_there_whole_or_gone(journal_bytes_max: int) -> None:
    def delete(scene: Scene) -> None:
        scene.pool.delete_snapshot(next(iter(scene.models["a"].snapshots)))

    for outcome in every_cut(delete, journal_bytes_max=journal_bytes_max):
        model = outcome.models["a"]
        first = next(iter(model.snapshots))
        there = {info.snapshot_id for info in outcome.pool.snapshots("a")}
        assert not (outcome.finished and first in there)
        if first not in there:
            del model.snapshots[first]
        outcome.settle()


@journal_sizes
def test_deleted_volume_is_there_whole_or_gone(journal_bytes_max: int) -> None:
    def delete(scene: Scene) -> None:
        scene.pool.delete_volume("a", cascade=True)

    for outcome in every_cut(delete, journal_bytes_max=journal_bytes_max):
        there = {info.name for info in outcome.pool.volumes()}
        assert "b" in there
        assert not (outcome.finished and "a" in there)
        if "a" not in there:
            del outcome.models["a"]
            assert all(info.volume_name == "b" for info in outcome.pool.snapshots())
        outcome.settle()


def test_distrust_is_whole_or_not_at_all() -> None:
    for outcome in every_cut(lambda scene: scene.pool.distrust("a")):
        infos = outcome.pool.snapshots("a")
        told = [
            outcome.pool.changed_spans(info.snapshot_id, model.state) is not None
            for info, model in zip(infos, outcome.models["a"].snapshots.values(), strict=True)
        ]
        assert len(set(told)) == 1
        assert not (outcome.finished and any(told))
        outcome.settle()


@journal_sizes
def test_draft_commit_shows_the_whole_volume_or_none(journal_bytes_max: int) -> None:
    content = [7] * UNIT_COUNT

    def commit(scene: Scene) -> None:
        draft = scene.pool.begin_volume("restored", UNIT_COUNT * UNIT)
        draft.write(0, bytes([7]) * (UNIT_COUNT * UNIT))
        draft.commit(root=b"r" * 32)

    for outcome in every_cut(commit, journal_bytes_max=journal_bytes_max):
        assert outcome.pool.drafts() == []
        there = {info.name for info in outcome.pool.volumes()}
        assert not (outcome.finished and "restored" not in there)
        if "restored" in there:
            assert read_units(outcome.pool, VolumeSource("restored"), UNIT_COUNT) == content
            info = outcome.pool.volume("restored")
            assert info.origin is not None
            assert info.origin.root == b"r" * 32
            (snapshot,) = outcome.pool.snapshot(["restored"])
            assert outcome.pool.changed_spans(snapshot.snapshot_id, b"r" * 32).tolist() == []  # type: ignore[union-attr]
        else:
            outcome.pool.create_volume("restored", UNIT)  # the name is free again
        outcome.settle()


def _begin(scene: Scene) -> Draft:
    draft = scene.pool.begin_volume("restored", UNIT_COUNT * UNIT)
    draft.write(0, bytes([7]) * (UNITS_PER_GRANULE * UNIT))
    draft.write(UNITS_PER_GRANULE * UNIT, bytes([8]) * (UNITS_PER_GRANULE * UNIT))
    draft.save_progress(b"one")
    return draft


def _save_more(scene: Scene) -> None:
    draft = scene.pool.resume_draft(scene.pool.drafts()[0].draft_id)
    draft.trim(UNITS_PER_GRANULE * UNIT, UNITS_PER_GRANULE * UNIT)
    # The freed slot must not be given to "a" before the tombstone is durable.
    scene.write("a", UNITS_PER_GRANULE, UNITS_PER_GRANULE, 5)
    scene.flush()
    scene.write("a", 2 * UNITS_PER_GRANULE, 3, 6)
    scene.flush()
    draft.write(2 * UNITS_PER_GRANULE * UNIT, bytes([9]) * (3 * UNIT))
    draft.save_progress(b"two")


@journal_sizes
def test_saved_progress_survives_and_never_goes_back(journal_bytes_max: int) -> None:
    for outcome in every_cut(_save_more, prepare=_begin, journal_bytes_max=journal_bytes_max):
        (info,) = outcome.pool.drafts()
        assert info.tag in ({b"two"} if outcome.finished else {b"one", b"two"})
        found = _content(outcome.pool, info.draft_id)
        assert found[:UNITS_PER_GRANULE] == [7] * UNITS_PER_GRANULE
        if info.tag == b"two":
            assert found[UNITS_PER_GRANULE:] == [0] * UNITS_PER_GRANULE + [9] * 3
        else:
            assert set(found[UNITS_PER_GRANULE : 2 * UNITS_PER_GRANULE]) <= {0, 8}
        outcome.pool.resume_draft(info.draft_id).abort()
        outcome.settle()


@journal_sizes
def test_first_save_makes_a_draft_or_leaves_none(journal_bytes_max: int) -> None:
    for outcome in every_cut(_begin, journal_bytes_max=journal_bytes_max):
        drafts = outcome.pool.drafts()
        assert len(drafts) == 1 or not (drafts or outcome.finished)
        if drafts:
            assert drafts[0].tag == b"one"
            assert _content(outcome.pool, drafts[0].draft_id)[: UNITS_PER_GRANULE * 2] == (
                [7] * UNITS_PER_GRANULE + [8] * UNITS_PER_GRANULE
            )
            outcome.pool.resume_draft(drafts[0].draft_id).commit()
        else:
            outcome.pool.create_volume("restored", UNIT)
        outcome.settle()


@journal_sizes
def test_aborted_draft_is_there_or_gone(journal_bytes_max: int) -> None:
    def abort(scene: Scene) -> None:
        scene.pool.resume_draft(scene.pool.drafts()[0].draft_id).abort()

    for outcome in every_cut(abort, prepare=_begin, journal_bytes_max=journal_bytes_max):
        drafts = outcome.pool.drafts()
        assert not (outcome.finished and drafts)
        for info in drafts:
            outcome.pool.resume_draft(info.draft_id).abort()
        assert outcome.pool.drafts() == []
        outcome.settle()


def test_close_keeps_everything() -> None:
    def close(scene: Scene) -> None:
        scene.pool.close()
        scene.flushed()

    for outcome in every_cut(close):
        outcome.settle()


def test_recovery_may_itself_be_cut() -> None:
    """Kill a pool with a torn journal tail, then cut the power in each step of its next start."""

    journal = f"{DIRECTORY}/journal-0000000001.alj"

    def reopen(scene: Scene) -> None:
        Pool.open(scene.files, DIRECTORY, journal_bytes_max=ROTATE_ALWAYS).flush("a")

    def kill(scene: Scene) -> None:
        scene.files.crash_after(2)  # in the sync of the journal
        with pytest.raises(PowerCut):
            scene.pool.flush("a")
        states = list(scene.files.post_crash_states(maximum=STATES_MAX, seed=1))
        sizes = sorted({files.size(journal) for files in states})
        assert len(sizes) > 2, "no disk with a torn tail"
        scene.files = next(files for files in states if files.size(journal) == sizes[1])

    for outcome in every_cut(reopen, prepare=kill):
        outcome.settle()


def test_creation_may_be_cut_anywhere() -> None:
    finished, operations = False, 0
    while not finished:
        files = FakeFiles()
        files.crash_after(operations)
        try:
            Pool.open(files, DIRECTORY)
            finished = True
        except PowerCut:
            pass
        for state in files.post_crash_states(maximum=STATES_MAX, seed=operations):
            pool = Pool.open(state, DIRECTORY)
            assert pool.volumes() == []
            pool.create_volume("a", UNIT)
        operations += 1


def _content(pool: Pool, draft_id: VolumeId) -> list[int]:
    buffer = bytearray(UNIT_COUNT * UNIT)
    pool.resume_draft(draft_id).read_into(0, memoryview(buffer))
    return list(buffer[::UNIT])
