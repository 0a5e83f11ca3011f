"""K1: what the marks tell is never less than what changed, over any history of guest, VMM, host and table.

The model keeps what each state of each disk held. The VMM's bitmaps record a write when it is answered,
which is later than when the array has it. Every call to bitmaps and table may fail or end the process, before
its effect or after it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arraylift.errors import ArrayliftError, PeerUnavailable
from arraylift.ids import LineageId, PoolId, SnapshotId, SourceState, VmId
from arraylift.sizes import SPAN_BYTES
from arraylift.vm.types import Disk, DiskSnapshot, VmConfig
from hostagent import marks
from hostagent.change_tracking import MARKS_MAX, MarkId
from hostagent.mark_record import Place, VmMarks, decode_marks, encode_marks
from hostagent.marks import MarkKeeper, Spans, ranges_of
from hostagent.vm_types import VmRecord, VmState

SPANS = 8
VM_ID = VmId("a" * 32)


class Died(BaseException):
    """The host agent was killed."""


@dataclass
class Volume:
    """On its array: the version of each span, and what each state held."""

    place: Place
    spans: list[int] = field(default_factory=lambda: [0] * SPANS)
    states: list[tuple[SourceState, list[int]]] = field(default_factory=list)
    lineage: int = 0

    def take(self) -> SourceState:
        state = SourceState(PoolId("b" * 32), LineageId(f"{self.lineage:032x}"), len(self.states))
        self.states.append((state, list(self.spans)))
        return state


@dataclass
class Node:
    """A disk in the VMM: its bitmaps, as (records, dirty spans), and the size that it was opened with."""

    size: int
    bitmaps: dict[MarkId, tuple[bool, set[int]]] = field(default_factory=dict)
    attached: bool = True


class World:
    """One VM with its disks; the Bitmaps and the MarkTable of the keeper."""

    def __init__(self, draw: random.Random, *, trouble: float) -> None:
        self.draw, self.trouble = draw, trouble
        self.volumes = [Volume(Place("array:1", f"{index}" * 32)) for index in range(3)]
        self.nodes: dict[Place, Node] = {}
        self.answered_late: list[tuple[Place, int]] = []
        self.version = 0
        self.revision = 1
        self.table: bytes | None = None
        self.old_tables: list[bytes | None] = [None]
        self.told = self.asked = 0
        self.boot()

    # -- the world's doings ---------------------------------------------------------------------

    @property
    def vm(self) -> VmRecord:
        disks = tuple(
            Disk(
                f"d{index}", "array", volume.place.array_address, volume.place.volume_name, self.size(volume)
            )
            for index, volume in enumerate(self.volumes)
            if volume.place in self.nodes and self.nodes[volume.place].attached
        )
        return VmRecord(VM_ID, VmConfig("vm", "", 1, 1, disks), VmState.ON, self.revision, "", ())

    def size(self, volume: Volume) -> int:
        return len(volume.spans) * SPAN_BYTES

    def boot(self) -> None:
        """A VMM begins: no bitmap survives."""
        self.answered_late.clear()
        attached = [
            one for one in self.volumes if one.place not in self.nodes or self.nodes[one.place].attached
        ]
        self.nodes = {one.place: Node(self.size(one)) for one in attached}
        self.revision += 1

    def write(self, volume: Volume, *, by_guest: bool = True) -> None:
        span = self.draw.randrange(len(volume.spans))
        self.version += 1
        volume.spans[span] = self.version
        if by_guest:
            self.answered_late.append((volume.place, span))
            if self.draw.random() < 0.6:
                self.answer_all()

    def answer_all(self) -> None:
        for place, span in self.answered_late:
            for records, dirty in self.nodes[place].bitmaps.values():
                if records:
                    dirty.add(span)
        self.answered_late.clear()

    def guest_writes(self) -> None:
        for _ in range(self.draw.randrange(4)):
            running = [one for one in self.volumes if self.is_attached(one)]
            if running:
                self.write(self.draw.choice(running))

    def is_attached(self, volume: Volume) -> bool:
        return volume.place in self.nodes and self.nodes[volume.place].attached

    def take_away(self) -> None:
        """Detach; the node may linger, with its bitmaps. Somebody else may write. It may come back."""
        volume = self.draw.choice(self.volumes)
        if not self.is_attached(volume):
            return
        self.answer_all()
        self.nodes[volume.place].attached = False
        self.revision += 1
        if self.draw.random() < 0.7:
            del self.nodes[volume.place]
        if self.draw.random() < 0.7:
            self.write(volume, by_guest=False)

    def bring_back(self) -> None:
        for volume in self.volumes:
            if not self.is_attached(volume) and self.draw.random() < 0.7:
                self.nodes.setdefault(volume.place, Node(self.size(volume))).attached = True
                self.revision += 1

    def away_and_back(self) -> None:
        """Between two snapshots."""
        self.take_away()
        self.bring_back()

    def resize(self) -> None:
        volume = self.draw.choice(self.volumes)
        count = self.draw.choice([SPANS - 2, SPANS, SPANS + 2])
        volume.lineage += count < len(volume.spans)  # cut off: gone, and the array knows it
        volume.spans = (volume.spans + [0] * count)[:count]
        self.answered_late = [one for one in self.answered_late if one[1] < count or one[0] != volume.place]
        if volume.place in self.nodes and self.draw.random() < 0.5:
            self.nodes[volume.place].size = count * SPAN_BYTES

    def lose_a_mark(self) -> None:
        node = self.draw.choice(list(self.nodes.values()) or [Node(0)])
        if node.bitmaps:
            del node.bitmaps[self.draw.choice(list(node.bitmaps))]

    def restore_old_table(self) -> None:
        self.table = self.draw.choice(self.old_tables)

    # -- Bitmaps --------------------------------------------------------------------------------

    def _perhaps(self) -> None:
        chance = self.draw.random()
        if chance < self.trouble:
            raise PeerUnavailable("no answer")
        if chance < self.trouble * 1.5:
            raise Died

    def look(self, vm: VmRecord) -> Mapping[Place, Mapping[MarkId, bool]]:
        self._perhaps()
        return {
            place: {mark: records for mark, (records, _) in node.bitmaps.items()}
            for place, node in self.nodes.items()
            if node.attached
        }

    def add(self, vm: VmRecord, mark: MarkId) -> None:
        self._perhaps()
        for node in self.nodes.values():
            if node.attached:
                node.bitmaps[mark] = (True, set())
        self._perhaps()

    def stop(self, vm: VmRecord, marks: Collection[MarkId]) -> None:
        self._perhaps()
        self.answer_all()
        for node in self.nodes.values():
            for mark in marks:
                if mark in node.bitmaps:
                    node.bitmaps[mark] = (False, node.bitmaps[mark][1])
        self._perhaps()

    def drop(self, vm: VmRecord, marks: Collection[MarkId]) -> None:
        self._perhaps()
        for node in self.nodes.values():
            for mark in marks:
                node.bitmaps.pop(mark, None)
        self._perhaps()

    def read(self, vm: VmRecord, place: Place, marks: Sequence[MarkId]) -> tuple[Spans, int]:
        self._perhaps()
        node = self.nodes[place]
        spans = np.zeros(node.size // SPAN_BYTES, np.bool_)
        for mark in marks:
            records, dirty = node.bitmaps[mark]
            assert not records, "the VMM exports only bitmaps that stand still"
            spans[[span for span in dirty if span < len(spans)]] = True
        return spans, node.size

    # -- MarkTable ------------------------------------------------------------------------------

    def find(self, record_id: VmId) -> VmMarks | None:
        return None if self.table is None else decode_marks(self.table, what="marks")

    def put(self, record: VmMarks) -> None:
        assert len(record.marks) <= MARKS_MAX
        self._perhaps()
        self.table = encode_marks(record)
        self.old_tables.append(self.table)
        self._perhaps()

    def remove(self, record_id: VmId) -> None:
        self._perhaps()
        self.table = None
        self._perhaps()


def snapshot(world: World, keeper: MarkKeeper) -> None:
    """One VM snapshot, as vm_snapshots takes it, and the question what changed since each state known."""
    vm = world.vm
    mark = keeper.begin(vm)
    world.guest_writes()
    if world.draw.random() < 0.15:  # an array failed
        if mark is not None:
            keeper.abandon(vm, mark)
        return
    chosen = [one for one in world.volumes if world.is_attached(one) and world.draw.random() < 0.9]
    disks = {}
    for volume in chosen:
        state = volume.take()
        disks[volume.place] = DiskSnapshot(
            "d", "array", volume.place.array_address, volume.place.volume_name, SnapshotId("c" * 32),
            world.size(volume), state,
        )  # fmt: skip
    world.guest_writes()
    if mark is not None:
        keeper.settle(vm, mark, list(disks.values()))
    if world.draw.random() < 0.5:
        world.guest_writes()
    for volume in chosen:
        check(world, keeper, vm, volume, disks[volume.place])


def check(world: World, keeper: MarkKeeper, vm: VmRecord, volume: Volume, disk: DiskSnapshot) -> None:
    """K1, for every state that there ever was."""
    now = next(held for state, held in volume.states if state == disk.state)
    for state, held in volume.states:
        found = keeper.changes(vm, disk, state, ranges_max=world.draw.choice([1, 2, SPANS]))
        world.asked += 1
        if found is None:
            continue
        world.told += 1
        offsets, lengths = found
        told = {
            span
            for offset, length in zip(offsets.tolist(), lengths.tolist(), strict=True)
            for span in range(offset // SPAN_BYTES, -(-(offset + length) // SPAN_BYTES))
        }
        assert len(held) == len(now), "another size is never told of"
        missed = {index for index, (old, new) in enumerate(zip(held, now, strict=True)) if old != new} - told
        assert not missed, f"since {state.birth} of {disk.state}: {missed}"
        assert not len(offsets) or int(offsets[-1] + lengths[-1]) <= disk.size_bytes


def history(seed: int, *, steps: int, trouble: float) -> World:
    world = World(random.Random(seed), trouble=trouble)
    keeper = MarkKeeper(world, world)
    for _ in range(steps):
        world.guest_writes()
        try:
            snapshot(world, keeper)
        except Died:
            keeper = MarkKeeper(world, world)
        doing = world.draw.random()
        if doing < trouble * 8:
            world.draw.choice(
                [
                    world.boot,
                    world.take_away,
                    world.bring_back,
                    world.away_and_back,
                    world.resize,
                    world.lose_a_mark,
                    world.restore_old_table,
                    world.answer_all,
                ]
            )()
    return world


@pytest.fixture(autouse=True)
def no_defect_hides(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the keeper survives are errors of the world, never ours."""

    def attempt(work: Callable[[], object], what: str) -> tuple[object, ArrayliftError | None]:
        try:
            return work(), None
        except ArrayliftError as error:
            return None, error

    monkeypatch.setattr(marks, "attempt", attempt)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.01, 0.03, 0.08]))
def test_what_is_told_is_never_less_than_what_changed(seed: int, trouble: float) -> None:
    history(seed, steps=25, trouble=trouble)


@pytest.mark.campaign
@pytest.mark.timeout(0)
def test_ten_thousand_histories() -> None:
    told = sum(history(seed, steps=40, trouble=0.02).told for seed in range(10_000))
    assert told > 100_000


def test_without_trouble_the_last_states_are_told_of() -> None:
    """The law would hold of a tracker that never says a thing."""
    world = World(random.Random(7), trouble=0)
    keeper = MarkKeeper(world, world)
    volume = world.volumes[0]
    for round_ in range(7):
        mark = keeper.begin(world.vm)
        assert mark is not None
        state = volume.take()
        disk = DiskSnapshot("d0", "array", *_where(volume), SnapshotId("c" * 32), world.size(volume), state)
        keeper.settle(world.vm, mark, [disk])
        for back in range(round_ + 1):
            found = keeper.changes(world.vm, disk, volume.states[-1 - back][0], ranges_max=SPANS)
            assert (found is not None) == (back < MARKS_MAX)
            if found is not None:
                assert found[0].tolist() == sorted(
                    (round_ - 1 - one) * 2 % SPANS * SPAN_BYTES for one in range(back)
                )
        world.version += 1
        span = round_ * 2 % SPANS
        volume.spans[span] = world.version
        world.answered_late.append((volume.place, span))
        world.answer_all()
    assert sum(len(node.bitmaps) for node in world.nodes.values()) == 3 * MARKS_MAX


def test_histories_with_trouble_still_tell_something() -> None:
    worlds = [history(seed, steps=25, trouble=0.02) for seed in range(40)]
    assert sum(world.told for world in worlds) > sum(world.asked for world in worlds) // 20


def test_what_has_no_state_or_is_of_another_is_not_told() -> None:
    world = World(random.Random(1), trouble=0)
    keeper = MarkKeeper(world, world)
    volume = world.volumes[0]
    mark = keeper.begin(world.vm)
    assert mark is not None
    state = volume.take()
    disk = DiskSnapshot("d0", "array", *_where(volume), SnapshotId("c" * 32), world.size(volume), state)
    keeper.settle(world.vm, mark, [disk, replace(disk, volume_name="x", state=None)])
    stranger = replace(state, lineage_id=LineageId("f" * 32))
    assert keeper.changes(world.vm, disk, stranger, ranges_max=9) is None
    assert keeper.changes(world.vm, replace(disk, state=stranger), state, ranges_max=9) is None
    assert keeper.changes(world.vm, replace(disk, volume_name="y"), state, ranges_max=9) is None
    keeper.forget(VM_ID)
    assert keeper.changes(world.vm, disk, state, ranges_max=9) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.booleans(), min_size=1, max_size=200), st.integers(1, 9), st.integers(1, SPAN_BYTES))
def test_ranges_are_few_and_cover_what_is_dirty(spans: list[bool], most: int, tail: int) -> None:
    size = (len(spans) - 1) * SPAN_BYTES + tail
    offsets, lengths = ranges_of(np.array(spans, np.bool_), size, ranges_max=most)
    assert len(offsets) == len(lengths) <= most
    covered = np.zeros(len(spans), np.bool_)
    end = -1
    for offset, length in zip(offsets.tolist(), lengths.tolist(), strict=True):
        assert offset > end
        assert length > 0
        end = offset + length
        assert end <= size
        covered[offset // SPAN_BYTES : -(-end // SPAN_BYTES)] = True
    assert not np.any(np.array(spans) & ~covered)
    if sum(spans) == 0:
        assert not len(offsets)
    groups = "".join("x" if one else " " for one in spans).split()
    if len(groups) <= most:
        assert np.array_equal(covered, np.array(spans, np.bool_))


def _where(volume: Volume) -> tuple[str, str]:
    return volume.place.array_address, volume.place.volume_name
