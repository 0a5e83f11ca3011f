"""VM snapshots over two arrays in process: failures in mid-snapshot, freezes, leases."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from arraylift.errors import (
    ArrayliftError,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    OutOfSpace,
    PeerUnavailable,
    WrongState,
)
from arraylift.ids import VmId
from arraylift.vm.types import ConsistencyLevel
from hostagent import vm_snapshots
from hostagent.vm_types import FREEZE_SECONDS_MAX, SnapshotRecord, SnapshotState
from tests.e2e.daemon import wait_until
from tests.unit.hostagent.stage import Stage


def settle(stage: Stage, done: Callable[[], bool]) -> None:
    """Let time pass and the reaper work until ``done``."""

    def step() -> bool:
        stage.clock.now += 3
        stage.snapshots.reap()
        return done()

    wait_until(step, "the reaper is done", seconds=20)


def test_one_group_on_each_array_under_one_freeze(stage: Stage) -> None:
    vm = stage.vm()
    frozen_during: list[bool] = []
    for array in stage.arrays:
        array.group_hook = lambda: frozen_during.append(vm.vm_id in stage.driver.frozen)
    made = stage.snapshots.create(vm.vm_id, "job")
    assert frozen_during == [True, True]
    assert stage.driver.frozen == set()
    assert stage.driver.freezes == 1
    assert (made.level, len(made.disks)) == (ConsistencyLevel.FILESYSTEM, 2)
    assert stage.labels() == [made.vm_snapshot_id] * 2
    assert made.config == vm.config
    assert stage.snapshots.create(vm.vm_id, "job") == made
    assert len(stage.labels()) == 2


@pytest.mark.parametrize("error", [OutOfSpace("full"), WrongState("no"), ArrayliftError("a fault")])
def test_an_array_that_refuses_leaves_nothing_on_the_other(stage: Stage, error: ArrayliftError) -> None:
    vm = stage.vm()

    def refuse() -> None:
        raise error

    stage.arrays[1].group_hook = refuse
    with pytest.raises(type(error)):
        stage.snapshots.create(vm.vm_id, "job")
    assert stage.driver.frozen == set()
    assert stage.snapshots.listed(None) == []
    settle(stage, lambda: stage.records() == 0)
    assert stage.labels() == []


def test_an_array_that_hangs_and_acts_late_is_undone(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = stage.vm()
    wake = threading.Event()

    def hang() -> None:
        wake.wait(20)

    stage.arrays[1].group_hook = hang
    monkeypatch.setattr(vm_snapshots, "GROUP_MARGIN_SECONDS", FREEZE_SECONDS_MAX - 0.5)
    began = time.monotonic()
    with pytest.raises(PeerUnavailable):
        stage.snapshots.create(vm.vm_id, "job")
    assert time.monotonic() - began < 5
    assert stage.driver.frozen == set()
    stage.snapshots.reap()  # finds nothing on the second array: it has not acted yet
    wait_until(lambda: stage.arrays[0].labels() == [], "the first array is clean")
    assert stage.records() == 1
    wake.set()
    wait_until(lambda: stage.arrays[1].labels() != [], "the late group")
    settle(stage, lambda: stage.records() == 0)
    assert stage.labels() == []


def test_a_watchdog_thaws_under_a_group_that_takes_too_long(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = stage.vm()
    stage.snapshots._freeze_seconds_max = 0.3
    monkeypatch.setattr(vm_snapshots, "GROUP_MARGIN_SECONDS", -10.0)  # a group that outlives the freeze
    thawed: list[bool] = []

    def slow() -> None:
        wait_until(lambda: not stage.driver.frozen, "the watchdog thaws", seconds=5)
        thawed.append(True)

    stage.arrays[0].group_hook = slow
    with pytest.raises(WrongState, match="CRASH"):
        stage.snapshots.create(vm.vm_id, "strict", level_min=ConsistencyLevel.FILESYSTEM)
    assert stage.labels() == []
    assert stage.records() == 0
    assert stage.snapshots.create(vm.vm_id, "lax").level is ConsistencyLevel.CRASH
    assert thawed == [True, True]


def test_a_guest_that_will_not_freeze_is_thawed_and_the_level_is_told(stage: Stage) -> None:
    vm = stage.vm()
    stage.driver.freeze_error = DeadlineExceeded("hung agent")
    with pytest.raises(WrongState):
        stage.snapshots.create(vm.vm_id, "strict", level_min=ConsistencyLevel.FILESYSTEM)
    assert stage.driver.frozen == set()
    assert (stage.labels(), stage.records()) == ([], 0)
    lax = stage.snapshots.create(vm.vm_id, "lax")
    assert (lax.level, lax.frozen_ns) == (ConsistencyLevel.CRASH, 0)
    assert stage.driver.frozen == set()


def test_a_vm_that_is_off_is_consistent_without_a_freeze(stage: Stage) -> None:
    vm = stage.vm(on=False)
    made = stage.snapshots.create(vm.vm_id, "job", exclude_disks=["b"])
    assert (made.level, made.frozen_ns, stage.driver.freezes) == (ConsistencyLevel.FILESYSTEM, 0, 0)
    assert [disk.disk_name for disk in made.disks] == ["a"]
    with pytest.raises(InvalidRequest):
        stage.snapshots.create(vm.vm_id, "other", exclude_disks=["zzz"])
    with pytest.raises(InvalidRequest):
        stage.snapshots.create(vm.vm_id, "other", lease_seconds=9)


def test_leases_lapse_by_the_monotonic_clock_and_are_fenced_first(stage: Stage) -> None:
    vm = stage.vm()
    made = stage.snapshots.create(vm.vm_id, "job", lease_seconds=60)
    stage.clock.now += 50
    stage.snapshots.renew(made.vm_snapshot_id)
    stage.clock.now += 50
    stage.snapshots.reap()
    assert stage.snapshots.get(made.vm_snapshot_id) == made
    pinned = stage.arrays[0].pinned
    pinned.add(made.disks[0].snapshot_id)
    settle(stage, lambda: stage.arrays[1].labels() == [])
    with pytest.raises(NotFound):
        stage.snapshots.renew(made.vm_snapshot_id)
    assert stage.store.snapshots.get(made.vm_snapshot_id).state is SnapshotState.RELEASING
    with pytest.raises(WrongState):
        stage.snapshots.delete(made.vm_snapshot_id)
    pinned.clear()
    settle(stage, lambda: stage.records() == 0)
    assert stage.labels() == []


def test_a_reaper_that_looks_as_one_is_recorded_leaves_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm, put = stage.vm(), stage.store.snapshots.put

    def put_and_reap(snapshot: SnapshotRecord) -> None:
        put(snapshot)
        if snapshot.state is SnapshotState.READY:
            stage.snapshots._reap_locked(
                snapshot.vm_snapshot_id, stage.snapshots._care_of(snapshot.vm_snapshot_id)
            )

    monkeypatch.setattr(stage.store.snapshots, "put", put_and_reap)
    made = stage.snapshots.create(vm.vm_id, "job")
    assert stage.snapshots.get(made.vm_snapshot_id) == made
    assert len(stage.labels()) == 2


def test_one_that_lapses_while_it_is_asked_for_again_is_taken_anew(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = stage.vm()
    made = stage.snapshots.create(vm.vm_id, "job", lease_seconds=60)
    of = stage.snapshots._of

    def lapses(vm_id: VmId) -> list[SnapshotRecord]:
        found = of(vm_id)
        stage.clock.now += 61
        stage.snapshots._reap_locked(made.vm_snapshot_id, stage.snapshots._care_of(made.vm_snapshot_id))
        return found

    monkeypatch.setattr(stage.snapshots, "_of", lapses)
    again = stage.snapshots.create(vm.vm_id, "job", lease_seconds=60)
    assert stage.labels() == [again.vm_snapshot_id] * 2
    assert stage.snapshots.get(again.vm_snapshot_id) == again != made


def test_a_restart_restarts_leases_and_undoes_what_was_half_made(stage: Stage) -> None:
    vm = stage.vm()
    made = stage.snapshots.create(vm.vm_id, "job", lease_seconds=60)
    stage.clock.now += 59
    half = stage.snapshots._intent(vm, "half", 60, [])
    stage.store.snapshots.put(half)
    stage.volumes.snapshot_group(
        stage.arrays[0].address, [vm.config.disks[0].volume_name], half.vm_snapshot_id, timeout_seconds=5
    )
    stage.driver.frozen.add(vm.vm_id)
    stage.reopen()
    assert stage.driver.frozen == set()
    stage.clock.now += 50
    settle(stage, lambda: half.vm_snapshot_id not in stage.labels())
    assert made.vm_snapshot_id in stage.labels()


def test_delete_is_idempotent_and_outlives_an_absent_array(stage: Stage) -> None:
    vm = stage.vm()
    made = stage.snapshots.create(vm.vm_id, "job")
    stage.arrays[0].error = PeerUnavailable("away")
    with pytest.raises(PeerUnavailable):
        stage.snapshots.delete(made.vm_snapshot_id)
    assert stage.arrays[1].labels() == []
    stage.arrays[0].error = None
    stage.snapshots.delete(made.vm_snapshot_id)
    stage.snapshots.delete(made.vm_snapshot_id)
    assert (stage.labels(), stage.records()) == ([], 0)
    again = stage.snapshots.create(vm.vm_id, "job")
    assert again.vm_snapshot_id != made.vm_snapshot_id
