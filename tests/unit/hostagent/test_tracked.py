"""VM snapshots of a guest whose writes are tracked: marks around them, changes in the answer, levels kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from arraylift.errors import PeerUnavailable, WrongState
from arraylift.ids import SourceState, VmId
from arraylift.sizes import MIB
from arraylift.vm.types import (
    CHANGED_RANGES_MAX,
    ConsistencyLevel,
    DiskSnapshot,
    DiskState,
    SuppliedChanges,
)
from hostagent.change_tracking import MarkId, Ranges
from hostagent.vm_types import VmRecord
from tests.unit.hostagent.stage import Stage


class FakeTracker:
    """Notes what it is asked; knows a mebibyte of each disk."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.limits: set[int] = set()
        self.knows = True
        self.tracked = True
        self.settled: list[DiskSnapshot] = []

    def begin(self, vm: VmRecord) -> MarkId | None:
        self.said.append("begin")
        return MarkId("1" * 32) if self.tracked else None

    def settle(self, vm: VmRecord, mark: MarkId, disks: Sequence[DiskSnapshot]) -> None:
        self.said.append("settle")
        self.settled = list(disks)

    def abandon(self, vm: VmRecord, mark: MarkId) -> None:
        self.said.append("abandon")

    def changes(
        self, vm: VmRecord, disk: DiskSnapshot, since: SourceState, *, ranges_max: int
    ) -> Ranges | None:
        self.limits.add(ranges_max)
        return (np.array([0], np.uint64), np.array([MIB], np.uint64)) if self.knows else None

    def forget(self, vm_id: VmId) -> None:
        raise AssertionError


@pytest.fixture
def tracker(stage: Stage) -> FakeTracker:
    made = FakeTracker()
    stage.driver.tracker = made
    return made


def test_states_are_told_and_changes_when_they_are_asked_for(stage: Stage, tracker: FakeTracker) -> None:
    vm = stage.vm()
    first = stage.snapshots.create(vm.vm_id, "one")
    assert tracker.said == ["begin", "settle"]
    assert tracker.settled == list(first.disks)
    states = [disk.state for disk in first.disks]
    assert all(states)
    assert [disk.changes for disk in first.disks] == [None, None]
    since = states[0]
    assert since is not None
    asked = (DiskState("a", since), DiskState("strange", since))
    second = stage.snapshots.create(vm.vm_id, "two", changes_since=asked)
    assert second.disks[0].state != since
    one = SuppliedChanges(since, (0).to_bytes(8, "little"), MIB.to_bytes(8, "little"))
    assert [disk.changes for disk in second.disks] == [one, None]
    assert tracker.limits == {CHANGED_RANGES_MAX}
    # The same again is asked anew; the record keeps the states and no changes.
    assert stage.snapshots.create(vm.vm_id, "two", changes_since=asked) == second
    assert tracker.said == ["begin", "settle"] * 2
    stage.reopen()
    kept = stage.snapshots.get(second.vm_snapshot_id)
    assert [disk.state for disk in kept.disks] == [disk.state for disk in second.disks]
    assert [disk.changes for disk in kept.disks] == [None, None]


def test_what_the_vmm_does_not_know_is_not_told(stage: Stage, tracker: FakeTracker) -> None:
    vm = stage.vm()
    tracker.knows = False
    state = stage.snapshots.create(vm.vm_id, "one").disks[0].state
    assert state is not None
    made = stage.snapshots.create(vm.vm_id, "two", changes_since=[DiskState("a", state)])
    assert [disk.changes for disk in made.disks] == [None, None]
    tracker.tracked = False
    stage.snapshots.create(vm.vm_id, "three")
    assert tracker.said[-2:] == ["settle", "begin"]


def test_a_snapshot_that_fails_abandons_its_mark(stage: Stage, tracker: FakeTracker) -> None:
    vm = stage.vm()

    def refuse() -> None:
        raise PeerUnavailable("no")

    stage.arrays[1].group_hook = refuse
    with pytest.raises(PeerUnavailable):
        stage.snapshots.create(vm.vm_id, "one")
    assert tracker.said == ["begin", "abandon"]


def test_a_guest_that_is_off_has_no_mark(stage: Stage, tracker: FakeTracker) -> None:
    stage.snapshots.create(stage.vm(on=False).vm_id, "one")
    assert tracker.said == []


@pytest.mark.parametrize("kept", [ConsistencyLevel.CRASH, ConsistencyLevel.APPLICATION])
def test_the_driver_says_after_the_thaw_which_level_was_kept(stage: Stage, kept: ConsistencyLevel) -> None:
    vm = stage.vm()
    stage.driver.kept = kept
    assert stage.snapshots.create(vm.vm_id, "any").level is kept
    if kept is ConsistencyLevel.CRASH:
        with pytest.raises(WrongState, match="reached CRASH"):
            stage.snapshots.create(vm.vm_id, "strict", level_min=ConsistencyLevel.FILESYSTEM)
