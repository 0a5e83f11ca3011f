"""What a pool must hold, as plain lists: the model of the property and power-cut tests.

Content is counted in units of 4 KiB, each filled with one byte value. What was acknowledged and
not flushed may be old or new after a crash, sector by sector; all else is exact.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from arraylift.ids import SnapshotId, SourceState
from arraylift.sizes import GRANULE_BYTES, SPAN_BYTES
from primary_array.map_state import MapState
from primary_array.pool import Pool
from primary_array.pool_open import checked_counts
from primary_array.pool_types import SnapshotSource, VolumeSource

UNIT = 4096
SECTOR = 512
UNITS_PER_GRANULE = GRANULE_BYTES // UNIT
UNITS_PER_SPAN = SPAN_BYTES // UNIT


@dataclass
class SnapshotModel:
    content: list[int]
    state: SourceState
    sure: list[int]
    """Epoch in which each granule certainly changed last."""
    maybe: list[int]
    """Epoch in which it may have changed last: later than ``sure`` only where a crash blurred it."""
    mapped: list[bool] = field(default_factory=list)
    ancestry: list[SnapshotModel] = field(default_factory=list)
    """Older states that may vouch for what did not change since, oldest first."""


@dataclass
class VolumeModel:
    unit_count: int
    epoch: int = 1
    live: list[int] = field(default_factory=list)
    mapped: list[bool] = field(default_factory=list)
    sure: list[int] = field(default_factory=list)
    maybe: list[int] = field(default_factory=list)
    allowed: dict[int, set[int]] = field(default_factory=dict)
    """Units written since the last flush: every value that they had since then."""
    kept_sure: list[int] = field(default_factory=list)
    """``sure`` at the last flush."""
    snapshots: dict[SnapshotId, SnapshotModel] = field(default_factory=dict)
    ancestry: list[SnapshotModel] = field(default_factory=list)

    def __post_init__(self) -> None:
        granules = -(-self.unit_count // UNITS_PER_GRANULE)
        self.live = self.live or [0] * self.unit_count
        for name in ("mapped", "sure", "maybe", "kept_sure"):
            if not getattr(self, name):
                setattr(self, name, [False if name == "mapped" else 0] * granules)

    @property
    def size_bytes(self) -> int:
        return self.unit_count * UNIT

    def _set(self, unit: int, value: int) -> None:
        self.allowed.setdefault(unit, {self.live[unit]}).add(value)
        self.live[unit] = value

    def _touch(self, granule: int) -> None:
        self.sure[granule] = self.maybe[granule] = self.epoch

    def write(self, first: int, count: int, value: int) -> None:
        for unit in range(first, first + count):
            self._set(unit, value)
        for granule in range(first // UNITS_PER_GRANULE, -(-(first + count) // UNITS_PER_GRANULE)):
            self.mapped[granule] = True
            self._touch(granule)

    def trim(self, first: int, count: int) -> None:
        for unit in range(first, first + count):
            self._set(unit, 0)
        stop = first + count
        for granule in range(first // UNITS_PER_GRANULE, -(-stop // UNITS_PER_GRANULE)):
            start = granule * UNITS_PER_GRANULE
            end = min(start + UNITS_PER_GRANULE, self.unit_count)
            if self.mapped[granule]:
                self._touch(granule)
                self.mapped[granule] = not (first <= start and end <= stop)

    def flush(self) -> None:
        self.allowed.clear()
        self.kept_sure = list(self.sure)

    def snapshot(self, snapshot_id: SnapshotId, state: SourceState) -> None:
        assert state.birth == self.epoch
        frozen = SnapshotModel(
            list(self.live),
            state,
            list(self.sure),
            list(self.maybe),
            list(self.mapped),
            list(self.ancestry),
        )
        self.snapshots[snapshot_id] = frozen
        self.ancestry.append(frozen)
        self.epoch += 1
        self.flush()

    # -- forks and sizes --------------------------------------------------------------------

    def become(self, frozen: SnapshotModel, *, epoch: int) -> None:
        """Hold what a snapshot holds, in a lineage that forks from its."""
        self.live, self.unit_count = list(frozen.content), len(frozen.content)
        self.sure, self.maybe, self.mapped = list(frozen.sure), list(frozen.maybe), list(frozen.mapped)
        self.ancestry = [*frozen.ancestry, frozen]
        self.epoch = epoch
        self.flush()

    def resize(self, unit_count: int) -> None:
        granules = -(-unit_count // UNITS_PER_GRANULE)
        grown = granules - len(self.mapped)
        if unit_count > self.unit_count and self.unit_count % UNITS_PER_GRANULE and self.mapped[-1]:
            self._touch(len(self.mapped) - 1)  # its tail is zeroed
        self.live = self.live[:unit_count] + [0] * (unit_count - self.unit_count)
        added = [self.epoch] * max(0, grown)
        self.sure = self.sure[:granules] + added
        self.maybe = self.maybe[:granules] + added
        self.mapped = self.mapped[:granules] + [False] * max(0, grown)
        self.unit_count = unit_count
        self.flush()

    # -- comparing --------------------------------------------------------------------------

    def check_exact(self, pool: Pool, name: str) -> None:
        """The pool was not crashed since the model was true: content and snapshots agree."""
        assert read_units(pool, VolumeSource(name), self.unit_count) == self.live
        assert pool.volume(name).state.birth == self.epoch
        assert pool.volume(name).mapped_bytes == sum(self.mapped) * GRANULE_BYTES
        assert _mapped(pool, name) == self.mapped
        self.check_snapshots(pool, name)

    def check_snapshots(self, pool: Pool, name: str) -> None:
        assert [info.snapshot_id for info in pool.snapshots(name)] == list(self.snapshots)
        for snapshot_id, model in self.snapshots.items():
            content = read_units(pool, SnapshotSource(snapshot_id), len(model.content))
            assert content == model.content

    def check_changes(self, pool: Pool, older: SnapshotModel, newer_id: SnapshotId) -> None:
        """Promise TRACK: reported >= real, and equal at granule grain."""
        newer = self.snapshots[newer_id]
        base_bytes = len(older.content) * UNIT
        ranges = pool.changed_ranges(newer_id, older.state, base_bytes=base_bytes)
        assert ranges is not None
        reported = {
            granule
            for offset, length in zip(ranges[0].tolist(), ranges[1].tolist(), strict=True)
            for granule in range(offset // GRANULE_BYTES, -(-(offset + length) // GRANULE_BYTES))
        }
        old = older.content + [-1] * (len(newer.content) - len(older.content))
        real = {unit // UNITS_PER_GRANULE for unit, value in enumerate(newer.content) if old[unit] != value}
        resized: set[int] = set()
        if len(older.content) != len(newer.content):
            last = (min(len(older.content), len(newer.content)) - 1) // UNITS_PER_SPAN
            end = last + 1 if len(newer.content) < len(older.content) else 1 << 30
            resized = {granule for granule in range(len(newer.sure)) if last <= granule // 16 < end}
        birth = older.state.birth
        assert real <= reported
        assert {granule for granule, epoch in enumerate(newer.sure) if epoch > birth} | resized <= reported
        assert reported <= {granule for granule, epoch in enumerate(newer.maybe) if epoch > birth} | resized
        spans = pool.changed_spans(newer_id, older.state, base_bytes=base_bytes)
        assert spans is not None
        assert spans.tolist() == sorted({granule // 16 for granule in reported})

    def check_difference(
        self, pool: Pool, base_id: SnapshotId, base: SnapshotModel, newer_id: SnapshotId
    ) -> None:
        """The diff of two snapshots of a family tells all that differs, lineages or not."""
        newer = self.snapshots[newer_id]
        ranges = pool.diff(newer_id, base_id)
        assert ranges is not None
        told: set[int] = set()
        for offset, length in zip(ranges[0].tolist(), ranges[1].tolist(), strict=True):
            told.update(range(offset // UNIT, (offset + length) // UNIT))
        old = base.content + [0] * (len(newer.content) - len(base.content))
        assert {unit for unit, value in enumerate(newer.content) if old[unit] != value} <= told

    def settle(self, pool: Pool, name: str) -> None:
        """After a crash: check that each sector is one of those allowed, then believe the pool."""
        data = read_bytes(pool, VolumeSource(name), self.size_bytes)
        for unit in range(self.unit_count):
            allowed = self.allowed.get(unit, {self.live[unit]})
            for at in range(unit * UNIT, (unit + 1) * UNIT, SECTOR):
                sector = data[at : at + SECTOR]
                assert sector[0] in allowed, f"{name}: byte {at} is {sector[0]}, not one of {allowed}"
                assert sector.count(sector[0]) == SECTOR
        # Torn units would blur the model: write them whole, and flush.
        for unit in self.allowed:
            value = data[unit * UNIT]
            self.live[unit] = value
        self.sure = list(self.kept_sure)
        self.mapped = _mapped(pool, name)
        for unit in sorted(self.allowed):
            if data[unit * UNIT : (unit + 1) * UNIT].count(self.live[unit]) != UNIT:
                pool.write(name, unit * UNIT, bytes([self.live[unit]]) * UNIT)
                self.write(unit, 1, self.live[unit])
        pool.flush(name)
        self.flush()
        self.check_exact(pool, name)


def write(pool: Pool, model: VolumeModel, name: str, first: int, count: int, value: int) -> None:
    """Write to the model first: what is in flight when the power goes is allowed, not promised."""
    model.write(first, count, value)
    pool.write(name, first * UNIT, bytes([value]) * (count * UNIT))


def trim(pool: Pool, model: VolumeModel, name: str, first: int, count: int) -> None:
    model.trim(first, count)
    pool.trim(name, first * UNIT, count * UNIT)


def read_bytes(pool: Pool, source: VolumeSource | SnapshotSource, length: int) -> bytes:
    buffer = bytearray(length)
    pool.read_into(source, 0, memoryview(buffer))
    return bytes(buffer)


def read_units(pool: Pool, source: VolumeSource | SnapshotSource, unit_count: int) -> list[int]:
    data = read_bytes(pool, source, unit_count * UNIT)
    units = [data[at : at + UNIT] for at in range(0, len(data), UNIT)]
    assert all(unit.count(unit[0]) == UNIT for unit in units)
    return [unit[0] for unit in units]


def used_slots(state: MapState) -> list[int]:
    """Every slot that a map names."""
    found: list[int] = np.flatnonzero(checked_counts(state)).tolist()
    return found


def check_slots(pool: Pool) -> None:
    """No slot is lost, none has two owners, none waits when nobody reads."""
    state = pool._state
    stats = pool.stats()
    counts = checked_counts(state)
    kept = state.counts.as_array()
    assert np.array_equal(np.trim_zeros(kept, "b"), np.trim_zeros(counts, "b"))
    used = np.flatnonzero(counts)
    for _, view in state.maps():
        assert view.mapped_count == sum(page.mapped_count() for _, page in view.pages())
    pending = [slots for draft in state.drafts.values() for slots in draft.freed]
    freed = sum(len(slots) for slots, _ in pool._commit._freed) + sum(len(slots) for slots in pending)
    assert stats.slots_waiting == 0
    assert stats.slots_used == len(used) + freed


def _mapped(pool: Pool, name: str) -> list[bool]:
    size = pool.volume(name).size_bytes
    mapped: list[bool] = []
    end = 0
    for offset, length, is_hole in pool.extents(VolumeSource(name), 0, size):
        assert offset == end
        end = offset + length
        mapped += [not is_hole] * -(-length // GRANULE_BYTES)
    assert end == size
    return mapped
