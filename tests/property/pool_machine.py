"""A pool against plain lists: the rules of a state machine."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from arraylift.errors import WrongState
from arraylift.ids import LineageId, SnapshotId, SourceState, VolumeId, random_id
from primary_array.draft import Draft
from primary_array.pool import Pool
from primary_array.pool_types import VolumeSource
from primary_array.volume_ops import Swap
from tests.fakes.disk import FakeFiles, PowerCut
from tests.property.pool_model import (
    UNIT,
    UNITS_PER_GRANULE,
    SnapshotModel,
    VolumeModel,
    check_slots,
    trim,
    write,
)

DIRECTORY = "/pool"
UNIT_COUNT = 3 * UNITS_PER_GRANULE + 5
NAMES = ("a", "b")
names = st.sampled_from(NAMES)
ranges = st.tuples(st.integers(0, UNIT_COUNT - 1), st.integers(0, UNIT_COUNT - 1)).map(
    lambda pair: (min(pair), abs(pair[0] - pair[1]) + 1)
)
values = st.integers(1, 255)
picks = st.integers(0, 10_000)
SIZES = (UNIT_COUNT, UNIT_COUNT, 2 * UNIT_COUNT, UNITS_PER_GRANULE + 3, 2 * UNITS_PER_GRANULE)
"""Few, so that a volume is often of a size that it had before."""
sizes = st.sampled_from(SIZES)
cuts = st.integers(0, 12)


@dataclass
class DraftModel:
    handle: Draft
    live: list[int] = field(default_factory=lambda: [0] * UNIT_COUNT)
    saved: list[int] | None = None
    tag: bytes | None = None
    written: set[int] = field(default_factory=set)
    """Units written since the last save: after a crash they may have any value written since."""


@dataclass
class CloneModel:
    """A draft on a snapshot: saved after every write, so exact whatever happens."""

    handle: Draft
    name: str
    fork: SnapshotModel
    shape: VolumeModel
    orphaned: bool = False


class PoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.files = FakeFiles()
        self.pool = Pool.open(self.files, DIRECTORY, journal_bytes_max=1500)
        self.volumes: dict[str, VolumeModel] = {}
        self.drafts: dict[VolumeId, DraftModel] = {}
        self.draft_count = 0
        self.parents: dict[LineageId, LineageId | None] = {}
        self.clones: dict[VolumeId, CloneModel] = {}
        for name in NAMES:
            self.create(name)

    def create(self, name: str) -> None:
        self.pool.create_volume(name, UNIT_COUNT * UNIT)
        self.volumes[name] = VolumeModel(UNIT_COUNT)

    # -- operations -------------------------------------------------------------------------

    def fitted(self, name: str, where: tuple[int, int]) -> tuple[int, int]:
        """The range, moved into the size that the volume has now."""
        size = self.volumes[name].unit_count
        first = where[0] % size
        return first, min(where[1], size - first)

    @rule(name=names, where=ranges, value=values)
    def write(self, name: str, where: tuple[int, int], value: int) -> None:
        write(self.pool, self.volumes[name], name, *self.fitted(name, where), value)

    @rule(name=names, where=ranges)
    def trim(self, name: str, where: tuple[int, int]) -> None:
        trim(self.pool, self.volumes[name], name, *self.fitted(name, where))

    @rule(name=names)
    def flush(self, name: str) -> None:
        self.pool.flush(name)
        for model in self.volumes.values():
            model.flush()

    @rule(chosen=st.sets(names, min_size=1))
    def snapshot(self, chosen: set[str]) -> None:
        order = sorted(chosen)
        for name, info in zip(order, self.pool.snapshot(order, "s"), strict=True):
            self.volumes[name].snapshot(info.snapshot_id, info.state)
        for model in self.volumes.values():
            model.flush()

    @rule(pick=picks, pinned=st.booleans())
    def delete_snapshot(self, pick: int, pinned: bool) -> None:
        if not (there := self.all_snapshots()):
            return
        name, snapshot_id = there[pick % len(there)]
        if pinned:
            with self.pool.pin(snapshot_id), pytest.raises(WrongState):
                self.pool.delete_snapshot(snapshot_id)
        self.pool.delete_snapshot(snapshot_id)
        del self.volumes[name].snapshots[snapshot_id]
        for model in self.volumes.values():
            model.flush()

    @rule(name=names)
    def recreate(self, name: str) -> None:
        self.pool.delete_volume(name, cascade=True)
        for key in [key for key, clone in self.clones.items() if clone.name == name]:
            self.clones.pop(key).handle.abort()
        self.create(name)
        for model in self.volumes.values():
            model.flush()

    @rule(name=names)
    def distrust(self, name: str) -> None:
        model = self.volumes[name]
        own = {self.pool.volume(name).state.lineage_id}
        own |= {snapshot.state.lineage_id for snapshot in model.snapshots.values()}
        doubted: set[LineageId | None] = set()
        for lineage_id in own:
            line: LineageId | None = lineage_id
            while line is not None:
                doubted.add(line)
                line = self.parents.get(line)
        self.pool.distrust(name)
        self.forget(doubted)
        for snapshot_id, snapshot in model.snapshots.items():
            assert self.pool.changed_spans(snapshot_id, snapshot.state) is None
            fresh = self.pool.get_snapshot(snapshot_id).state
            mine = SnapshotModel(snapshot.content, fresh, snapshot.sure, snapshot.maybe, snapshot.mapped, [])
            model.snapshots[snapshot_id] = mine  # others may still know it by its old state
        model.ancestry = []
        for clone in self.clones.values():
            if clone.fork.state.lineage_id in doubted:
                clone.orphaned = True
        for each in self.volumes.values():
            each.flush()

    def forget(self, doubted: set[LineageId | None]) -> None:
        """Cut every line of descent that leads through a doubted lineage, but where it is the own."""
        for name, volume in self.volumes.items():
            holders: list[tuple[VolumeModel | SnapshotModel, LineageId]]
            holders = [(volume, self.pool.volume(name).state.lineage_id)]
            holders += [(frozen, frozen.state.lineage_id) for frozen in volume.snapshots.values()]
            for holder, lineage_id in holders:
                line: LineageId | None = lineage_id
                own = set()
                while line is not None:
                    own.add(line)
                    parent = self.parents.get(line)
                    if parent in doubted:
                        break
                    line = parent
                holder.ancestry = [old for old in holder.ancestry if old.state.lineage_id in own]
        self.parents = {line: None if parent in doubted else parent for line, parent in self.parents.items()}

    # -- forks and sizes --------------------------------------------------------------------

    @rule(name=names, units=sizes)
    def resize(self, name: str, units: int) -> None:
        before = self.pool.volume(name)
        after = self.pool.resize_volume(name, units * UNIT)
        cut = after.size_bytes < before.size_bytes
        assert (after.state.lineage_id != before.state.lineage_id) == cut
        if cut:
            self.parents[after.state.lineage_id] = before.state.lineage_id
        if units != self.volumes[name].unit_count:
            self.volumes[name].resize(units)
            self.flushed()

    def flushed(self) -> None:
        for model in self.volumes.values():
            model.flush()

    @rule(name=names, pick=picks)
    def clone_over(self, name: str, pick: int) -> None:
        """Replace a volume, with all it had, by a clone of any snapshot, its own perhaps."""
        if not (there := self.all_snapshots()):
            return
        source, snapshot_id = there[pick % len(there)]
        frozen = self.volumes[source].snapshots[snapshot_id]
        info = self.pool.clone_volume(snapshot_id, "fresh")
        self.parents[info.state.lineage_id] = frozen.state.lineage_id
        self.pool.delete_volume(name, cascade=True)
        (taken,) = self.pool.snapshot(["fresh"])
        again = self.pool.clone_volume(taken.snapshot_id, name)
        self.parents[again.state.lineage_id] = info.state.lineage_id
        middle = VolumeModel(len(frozen.content))
        middle.become(frozen, epoch=frozen.state.birth + 1)
        middle.snapshot(taken.snapshot_id, taken.state)
        self.pool.delete_volume("fresh", cascade=True)
        self.volumes[name] = VolumeModel(len(frozen.content))
        self.volumes[name].become(middle.ancestry[-1], epoch=taken.state.birth + 1)
        self.clones = {key: clone for key, clone in self.clones.items() if clone.name != name}
        for draft in self.pool.drafts():
            if draft.name.startswith(f"clone-{name}-"):
                self.pool.resume_draft(draft.draft_id).abort()
        self.flushed()

    @rule(name=names, pick=picks, safe=st.booleans())
    def rollback(self, name: str, pick: int, safe: bool) -> None:
        model = self.volumes[name]
        if not model.snapshots:
            return
        snapshot_id = list(model.snapshots)[pick % len(model.snapshots)]
        frozen = model.snapshots[snapshot_id]
        info, safety = self.pool.rollback_volume(name, snapshot_id, safety_name="safe" if safe else "")
        self.parents[info.state.lineage_id] = frozen.state.lineage_id
        assert (safety is not None) == safe
        if safety is not None:
            model.snapshot(safety.snapshot_id, safety.state)
        model.become(frozen, epoch=model.epoch + 1)
        self.flushed()

    @rule(name=names, pick=picks, units=sizes)
    def begin_restore(self, name: str, pick: int, units: int) -> None:
        """Begin a draft on one of the volume's snapshots."""
        model = self.volumes[name]
        if not model.snapshots or len(self.clones) == 2:
            return
        snapshot_id = list(model.snapshots)[pick % len(model.snapshots)]
        frozen = model.snapshots[snapshot_id]
        self.draft_count += 1
        label = f"clone-{name}-{self.draft_count}"
        handle = self.pool.begin_clone(label, snapshot_id, units * UNIT)
        shape = VolumeModel(len(frozen.content))
        shape.become(frozen, epoch=frozen.state.birth + 1)
        shape.resize(units)
        old = len(frozen.content)
        if old % UNITS_PER_GRANULE and units > old:  # what is there is undefined
            count = min(units - old, UNITS_PER_GRANULE - old % UNITS_PER_GRANULE)
            handle.write(old * UNIT, bytes(count * UNIT))
            shape.write(old, count, 0)
        handle.save_progress(b"begun")
        self.clones[handle.draft_id] = CloneModel(handle, name, frozen, shape)
        self.flushed()

    @rule(pick=picks, where=ranges, value=values | st.just(0))
    def write_restore(self, pick: int, where: tuple[int, int], value: int) -> None:
        if not self.clones:
            return
        clone = list(self.clones.values())[pick % len(self.clones)]
        size = clone.shape.unit_count
        first = where[0] % size
        count = min(where[1], size - first)
        if value:
            clone.handle.write(first * UNIT, bytes([value]) * (count * UNIT))
            clone.shape.write(first, count, value)
        else:
            clone.handle.trim(first * UNIT, count * UNIT)
            clone.shape.trim(first, count)
        clone.handle.save_progress(b"on")
        self.flushed()

    @rule(pick=picks, commit=st.booleans())
    def end_restore(self, pick: int, commit: bool) -> None:
        if not self.clones:
            return
        key, clone = list(self.clones.items())[pick % len(self.clones)]
        del self.clones[key]
        if not commit:
            clone.handle.abort()
            self.flushed()
            return
        model, shape = self.volumes[clone.name], clone.shape
        (safety,) = self.pool.swap_drafts(
            [Swap(key, clone.name, b"r" * 32, LineageId(random_id()))], safety_name="safety"
        )
        model.snapshot(safety.snapshot_id, safety.state)
        line = self.pool.volume(clone.name).state.lineage_id
        self.parents[line] = None if clone.orphaned else clone.fork.state.lineage_id
        epoch = max(model.epoch, shape.epoch) + 1
        ancestry = [] if clone.orphaned else [*clone.fork.ancestry, clone.fork]
        state = SourceState(self.pool.pool_id, line, shape.epoch)
        model.become(
            SnapshotModel(shape.live, state, shape.sure, shape.maybe, shape.mapped, ancestry), epoch=epoch
        )
        model.ancestry = ancestry
        self.flushed()

    # -- drafts -----------------------------------------------------------------------------

    @rule()
    def begin_draft(self) -> None:
        if len(self.drafts) == 2:
            return
        self.draft_count += 1
        handle = self.pool.begin_volume(f"draft{self.draft_count}", UNIT_COUNT * UNIT)
        self.drafts[handle.draft_id] = DraftModel(handle)

    @rule(pick=picks, where=ranges, value=values | st.just(0))
    def write_draft(self, pick: int, where: tuple[int, int], value: int) -> None:
        if not self.drafts:
            return
        model = self.pick_draft(pick)
        first, count = where
        if not value:  # a whole granule at least, else nothing is freed
            first -= first % UNITS_PER_GRANULE
            count = min(UNIT_COUNT - first, count + UNITS_PER_GRANULE)
        if value:
            model.handle.write(first * UNIT, bytes([value]) * (count * UNIT))
        else:
            model.handle.trim(first * UNIT, count * UNIT)
        model.live[first : first + count] = [value] * count
        model.written.update(range(first, first + count))

    @rule(pick=picks, tag=st.binary(max_size=5))
    def save_draft(self, pick: int, tag: bytes) -> None:
        if not self.drafts:
            return
        model = self.pick_draft(pick)
        model.handle.save_progress(tag)
        model.saved, model.tag, model.written = list(model.live), tag, set()
        for volume in self.volumes.values():
            volume.flush()

    @rule(pick=picks, commit=st.booleans())
    def end_draft(self, pick: int, commit: bool) -> None:
        if not self.drafts:
            return
        model = self.pick_draft(pick)
        del self.drafts[model.handle.draft_id]
        if commit:
            model.handle.commit(root=b"r" * 32)
            buffer = read_draft_volume(self.pool, model.handle.name)
            assert buffer == model.live
            self.pool.delete_volume(model.handle.name)
        else:
            model.handle.abort()
        for volume in self.volumes.values():
            volume.flush()

    def pick_draft(self, pick: int) -> DraftModel:
        return list(self.drafts.values())[pick % len(self.drafts)]

    # -- stops ------------------------------------------------------------------------------

    @rule()
    def restart(self) -> None:
        self.pool.close()
        for model in self.volumes.values():
            model.flush()
        self.reopen(self.files, exact=True)

    @rule()
    def kill(self) -> None:
        self.reopen(self.files.after_kill(), exact=False)

    @rule(seed=picks)
    def cut_power(self, seed: int) -> None:
        states = list(self.files.post_crash_states(maximum=8, seed=seed))
        self.reopen(states[seed % len(states)], exact=False)

    @rule(name=names, operations=cuts, seed=picks)
    def cut_power_in_flush(self, name: str, operations: int, seed: int) -> None:
        self.cut_in(lambda: self.pool.flush(name), operations, seed)

    @rule(pick=picks, operations=cuts, seed=picks)
    def cut_power_in_delete(self, pick: int, operations: int, seed: int) -> None:
        if not (snapshots := self.all_snapshots()):
            return
        name, snapshot_id = snapshots[pick % len(snapshots)]
        finished = self.cut_in(lambda: self.pool.delete_snapshot(snapshot_id), operations, seed, settle=False)
        there = [info.snapshot_id for info in self.pool.snapshots(name)]
        assert not (finished and snapshot_id in there)
        if snapshot_id not in there:
            del self.volumes[name].snapshots[snapshot_id]
        self.settle()

    @rule(operations=cuts, seed=picks)
    def cut_power_in_snapshot(self, operations: int, seed: int) -> None:
        before = {name: list(model.snapshots) for name, model in self.volumes.items()}
        self.cut_in(lambda: self.pool.snapshot(NAMES, "s"), operations, seed, settle=False)
        fresh = [
            [info for info in self.pool.snapshots(name) if info.snapshot_id not in before[name]]
            for name in NAMES
        ]
        assert len({len(infos) for infos in fresh}) == 1, "a group has all its volumes, or none"
        for name, infos in zip(NAMES, fresh, strict=True):
            for info in infos:  # not answered perhaps, yet whole
                self.volumes[name].snapshot(info.snapshot_id, info.state)
        self.settle()

    def cut_in(
        self, operation: Callable[[], object], operations: int, seed: int, *, settle: bool = True
    ) -> bool:
        self.files.crash_after(operations)
        finished = False
        with contextlib.suppress(PowerCut):
            operation()
            finished = True
        if finished:
            for model in self.volumes.values():
                model.flush()
        states = list(self.files.post_crash_states(maximum=8, seed=seed))
        self.reopen(states[seed % len(states)], exact=False, settle=settle)
        return finished

    def reopen(self, files: FakeFiles, *, exact: bool, settle: bool = True) -> None:
        self.files = files
        self.pool = Pool.open(files, DIRECTORY, journal_bytes_max=1500)
        self.drafts = {key: model for key, model in self.drafts.items() if model.tag is not None}
        found_drafts = {draft.draft_id: draft.tag for draft in self.pool.drafts()}
        assert self.clones.keys() <= found_drafts.keys()
        for key, clone in self.clones.items():
            clone.handle = self.pool.resume_draft(key)
            del found_drafts[key]
        assert found_drafts == {key: model.tag for key, model in self.drafts.items()}
        for key, model in self.drafts.items():
            model.handle = self.pool.resume_draft(key)
            found = read_draft(model.handle)
            assert model.saved is not None
            for unit in set(range(UNIT_COUNT)) - model.written:
                assert found[unit] == model.saved[unit]
            for unit in model.written:  # as a resumed restore does, write again what was not saved
                model.handle.write(unit * UNIT, bytes([model.live[unit]]) * UNIT)
        if settle and not exact:
            self.settle()

    def settle(self) -> None:
        for name, model in self.volumes.items():
            model.settle(self.pool, name)

    # -- what always holds ------------------------------------------------------------------

    def all_snapshots(self) -> list[tuple[str, SnapshotId]]:
        return [(name, key) for name, model in self.volumes.items() for key in model.snapshots]

    @invariant()
    def content_agrees(self) -> None:
        for name, model in self.volumes.items():
            model.check_exact(self.pool, name)
        for draft in self.drafts.values():
            assert read_draft(draft.handle) == draft.live
        for clone in self.clones.values():
            assert read_draft(clone.handle, clone.shape.unit_count) == clone.shape.live
        check_slots(self.pool)

    comparisons = 0
    """Answers of the tracker that were compared with the truth."""

    @invariant()
    def changes_agree(self) -> None:
        everyone = [frozen for model in self.volumes.values() for frozen in model.snapshots.values()]
        for model in self.volumes.values():
            for newer_id, newer in list(model.snapshots.items())[-3:]:
                for older in newer.ancestry[-3:]:
                    model.check_changes(self.pool, older, newer_id)
                    self.comparisons += 1
                strangers = [one for one in everyone if one is not newer and one not in newer.ancestry]
                for other in strangers[:3]:
                    assert self.pool.changed_ranges(newer_id, other.state) is None
            for (base_id, base), (newer_id, _) in itertools.pairwise(list(model.snapshots.items())[-3:]):
                model.check_difference(self.pool, base_id, base, newer_id)


def read_draft(handle: Draft, unit_count: int = UNIT_COUNT) -> list[int]:
    buffer = bytearray(unit_count * UNIT)
    handle.read_into(0, memoryview(buffer))
    return list(buffer[::UNIT])


def read_draft_volume(pool: Pool, name: str) -> list[int]:
    buffer = bytearray(UNIT_COUNT * UNIT)
    pool.read_into(VolumeSource(name), 0, memoryview(buffer))
    return list(buffer[::UNIT])
