"""A pool against plain lists, under any order of operations, kills and power cuts.

Twice: by hypothesis, which finds short counterexamples, and along seeded histories, which are long.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from arraylift.errors import WrongState
from arraylift.ids import SnapshotId, VolumeId
from primary_array.draft import Draft
from primary_array.pool import Pool
from primary_array.pool_types import VolumeSource
from tests.fakes.disk import FakeFiles, PowerCut
from tests.property.pool_model import UNIT, UNITS_PER_GRANULE, VolumeModel, check_slots, trim, write

DIRECTORY = "/pool"
UNIT_COUNT = 3 * UNITS_PER_GRANULE + 5
NAMES = ("a", "b")
names = st.sampled_from(NAMES)
ranges = st.tuples(st.integers(0, UNIT_COUNT - 1), st.integers(0, UNIT_COUNT - 1)).map(
    lambda pair: (min(pair), abs(pair[0] - pair[1]) + 1)
)
values = st.integers(1, 255)
picks = st.integers(0, 10_000)
cuts = st.integers(0, 12)


@dataclass
class DraftModel:
    handle: Draft
    live: list[int] = field(default_factory=lambda: [0] * UNIT_COUNT)
    saved: list[int] | None = None
    tag: bytes | None = None
    written: set[int] = field(default_factory=set)
    """Units written since the last save: after a crash they may have any value written since."""


class PoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.files = FakeFiles()
        self.pool = Pool.open(self.files, DIRECTORY, journal_bytes_max=1500)
        self.volumes: dict[str, VolumeModel] = {}
        self.drafts: dict[VolumeId, DraftModel] = {}
        self.draft_count = 0
        for name in NAMES:
            self.create(name)

    def create(self, name: str) -> None:
        self.pool.create_volume(name, UNIT_COUNT * UNIT)
        self.volumes[name] = VolumeModel(UNIT_COUNT)

    # -- operations -------------------------------------------------------------------------

    @rule(name=names, where=ranges, value=values)
    def write(self, name: str, where: tuple[int, int], value: int) -> None:
        write(self.pool, self.volumes[name], name, *where, value)

    @rule(name=names, where=ranges)
    def trim(self, name: str, where: tuple[int, int]) -> None:
        trim(self.pool, self.volumes[name], name, *where)

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
        self.create(name)
        for model in self.volumes.values():
            model.flush()

    @rule(name=names)
    def distrust(self, name: str) -> None:
        model = self.volumes[name]
        self.pool.distrust(name)
        for snapshot_id, snapshot in model.snapshots.items():
            assert self.pool.changed_spans(snapshot_id, snapshot.state) is None
            snapshot.state = self.pool.get_snapshot(snapshot_id).state
        for each in self.volumes.values():
            each.flush()

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

    def cut_in(
        self, operation: Callable[[], None], operations: int, seed: int, *, settle: bool = True
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
        assert {draft.draft_id: draft.tag for draft in self.pool.drafts()} == {
            key: model.tag for key, model in self.drafts.items()
        }
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
        check_slots(self.pool)

    @invariant()
    def changes_agree(self) -> None:
        for model in self.volumes.values():
            snapshots = list(model.snapshots.items())
            for (_, older), (newer_id, newer) in itertools.pairwise(snapshots):
                if older.state.lineage_id == newer.state.lineage_id:
                    model.check_changes(self.pool, older, newer_id)


def read_draft(handle: Draft) -> list[int]:
    buffer = bytearray(UNIT_COUNT * UNIT)
    handle.read_into(0, memoryview(buffer))
    return list(buffer[::UNIT])


def read_draft_volume(pool: Pool, name: str) -> list[int]:
    buffer = bytearray(UNIT_COUNT * UNIT)
    pool.read_into(VolumeSource(name), 0, memoryview(buffer))
    return list(buffer[::UNIT])


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=25, stateful_step_count=40, deadline=None, print_blob=True)


def run_history(seed: int, steps: int) -> None:
    """Walk one random path through the same rules."""
    chance = random.Random(seed)
    machine = PoolMachine()

    def where() -> tuple[int, int]:
        first = chance.randrange(UNIT_COUNT)
        longest = chance.choice((1, UNITS_PER_GRANULE, UNIT_COUNT))
        return first, chance.randint(1, min(longest, UNIT_COUNT - first))

    def some() -> int:
        return chance.randrange(10_000)

    def name() -> str:
        return chance.choice(NAMES)

    operations: list[tuple[int, Callable[[], None]]] = [
        (20, lambda: machine.write(name=name(), where=where(), value=chance.randint(1, 255))),
        (8, lambda: machine.trim(name=name(), where=where())),
        (5, lambda: machine.flush(name=name())),
        (8, lambda: machine.snapshot(chosen=set(chance.sample(NAMES, chance.randint(1, 2))))),
        (5, lambda: machine.delete_snapshot(pick=some(), pinned=chance.random() < 0.3)),
        (1, lambda: machine.recreate(name=name())),
        (1, lambda: machine.distrust(name=name())),
        (5, machine.begin_draft),
        (16, lambda: machine.write_draft(pick=some(), where=where(), value=chance.choice((0, 0, 8, 9)))),
        (6, lambda: machine.save_draft(pick=some(), tag=chance.randbytes(3))),
        (2, lambda: machine.end_draft(pick=some(), commit=chance.random() < 0.5)),
        (1, machine.restart),
        (2, machine.kill),
        (2, lambda: machine.cut_power(seed=some())),
        (2, lambda: machine.cut_power_in_flush(name=name(), operations=chance.randrange(12), seed=some())),
        (2, lambda: machine.cut_power_in_delete(pick=some(), operations=chance.randrange(12), seed=some())),
    ]
    weights = [weight for weight, _ in operations]
    for _ in range(steps):
        chance.choices([run for _, run in operations], weights)[0]()
        machine.content_agrees()
        machine.changes_agree()


@pytest.mark.parametrize("seed", range(20))
def test_seeded_history(seed: int) -> None:
    run_history(seed, steps=120)
