"""Garbage collection: what goes, when, and what stays whatever happens around it."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
from collections.abc import Iterator

import pytest

from arraylift.errors import Cancelled, Conflict, Corruption, OutOfSpace
from arraylift.ids import ContainerId
from dedup_target import collect as collect_module
from dedup_target.collect import CollectFigures, CollectOptions
from dedup_target.container_format import Kind
from dedup_target.container_store import name_of
from dedup_target.gc_state import GcState
from tests.fakes.disk import FakeFiles
from tests.property.gc_content import BIG_COUNT, SMALL_POOL
from tests.property.gc_world import GcWorld

A, B = ((0, 1, 2, 3, 4, 5),), ((6, 7, 8, 9, 10, 11),)
MIXED = ((0, 1, 2, 6, 7, 8),)
TREE = ((SMALL_POOL,) * BIG_COUNT, (), (0, 1, 2, 3, 4, 5))


@pytest.fixture
def world() -> Iterator[GcWorld]:
    made = GcWorld(random.Random(7))
    yield made
    made.end_threads()


def containers(world: GcWorld) -> list[ContainerId]:
    return world.store.containers.containers()


def of_kind(world: GcWorld, kind: Kind) -> list[ContainerId]:
    return [one for one in containers(world) if world.store.containers.read_directory(one).kind is kind]


def damage(world: GcWorld, container: ContainerId, offset: int) -> None:
    world.files.corrupt(f"/state/units/active/{name_of(container)}", offset)
    world.store.containers._cache.drop(container)
    world.store.containers._directories.drop(container)


def test_what_is_dead_goes_two_cycles_after_it_was_condemned(world: GcWorld) -> None:
    kept, gone = world.image(A), world.image(B)
    dead = containers(world)[2:]
    world.delete(gone)
    first, second, third = world.collect(), world.collect(), world.collect()
    assert [one.cycle for one in (first, second, third)] == [1, 2, 3]
    assert (first.condemned_count, first.deleted_count) == (2, 0)
    assert (second.condemned_count, second.deleted_count) == (0, 0)
    assert (third.deleted_count, third.deleted_bytes) == (2, 2 * 8192)
    assert not set(dead) & set(containers(world))
    assert world.store.unit.gc_state.count == 0
    assert list(world.images) == [kept]
    world.check()
    assert world.collect().dead_bytes == 0


def test_a_dry_run_tells_the_plan_and_changes_nothing(world: GcWorld) -> None:
    world.image(MIXED)
    world.delete(world.image(A))
    world.delete(world.image(B))
    options = CollectOptions(dry_run=True, live_percent_min=100)
    before, ops = containers(world), world.files.op_count
    first = world.collector.collect(world.store.unit, options)
    assert (first.phase, first.cycle, first.container_count) == ("done", 1, len(before))
    assert (first.condemned_count, first.deleted_count, first.copied_container_count) == (4, 0, 0)
    assert (containers(world), world.files.op_count) == (before, ops)
    world.collect(live_percent_min=0)
    world.collect(live_percent_min=0)
    told = world.collector.collect(world.store.unit, options)
    done = world.collect(live_percent_min=0)
    assert (
        (told.deleted_count, told.deleted_bytes) == (done.deleted_count, done.deleted_bytes) == (4, 4 * 8192)
    )


def test_sparse_containers_are_copied_forward_as_they_are(world: GcWorld) -> None:
    gone = world.image(((0, 1, 2, 3, 4, 5),))
    kept = world.image(((1, 3, 5, 1, 3, 5),))
    source = of_kind(world, Kind.DATA)[0]
    rows = world.store.containers.read_directory(source).directory[[1, 3, 5]]
    world.delete(gone)
    figures = world.collect(live_percent_min=51)
    assert figures.copied_bytes == int(rows["stored_bytes"].sum())
    assert figures.copied_container_count == 1
    new = of_kind(world, Kind.DATA)[-1]
    assert new > source
    copied = world.store.containers.read_directory(new).directory
    for name in ("fingerprint", "stored_bytes", "plain_bytes", "codec", "checksum"):
        assert copied[name].tolist() == rows[name].tolist(), name
    world.collect()
    world.collect()
    assert source not in containers(world)
    assert list(world.images) == [kept]
    world.check()


def test_enough_that_is_alive_stays_where_it_is(world: GcWorld) -> None:
    world.delete(world.image(((0, 1, 2, 3, 4, 5),)))
    world.image(((1, 3, 5, 1, 3, 5),))
    before = of_kind(world, Kind.DATA)
    for percent in (0, 49, 50):
        assert world.collect(live_percent_min=percent).copied_container_count == 0
    assert of_kind(world, Kind.DATA) == before


def test_nodes_are_copied_and_checked_as_nodes(world: GcWorld) -> None:
    world.image(TREE)
    changed = (*TREE[:2], (7, 8, 9, 7, 8, 9))
    world.delete(next(iter(world.images)))
    world.image(changed, full=False)
    world.check_no_garbage()
    world.check()


def test_the_log_of_a_transfer_is_a_root_also_after_a_restart(world: GcWorld) -> None:
    transfer = world.begin("", TREE, "a", full=True)
    world.open(transfer)
    while transfer.left:
        world.offer(transfer)
        while transfer.asked:
            world.send(transfer)
    world.advance(transfer)
    for _ in range(4):
        assert world.collect().deleted_count == 0  # pinned
    world.crash(power=True)
    for _ in range(4):
        figures = world.collect()
        assert (figures.deleted_count, figures.dead_bytes, figures.pinned_count) == (0, 0, 0)
    world.open(transfer)
    assert transfer.left == []
    world.commit(transfer)
    world.check()


def test_the_base_of_a_transfer_outlives_its_image(world: GcWorld) -> None:
    base = world.image(TREE)
    transfer = world.begin("", (*TREE[:2], B[0]), "a", full=False)
    world.delete(base)
    for _ in range(3):
        assert world.collect().deleted_count == 0
    world.open(transfer)
    for _ in range(3):
        world.collect()
    while transfer.transfer_id in world.sending:
        world.next_step(transfer)
    world.check_no_garbage()
    world.check()


def test_an_image_being_read_outlives_its_deletion(world: GcWorld) -> None:
    image = world.image(TREE)
    world.start_reading(image)
    world.delete(image)
    for _ in range(4):
        world.collect()
    assert world.holds("", TREE)
    while world.reading:
        world.go_on_reading()
    assert world.restores == 1
    for _ in range(3):
        world.collect()
    assert containers(world) == []


def test_what_is_offered_after_the_mark_and_committed_before_the_deletion_stays(world: GcWorld) -> None:
    """The image that the mark did not see, and that leaves no pin behind."""
    world.delete(world.image(A))
    world.collect()
    world.collect()
    made = False

    def between() -> None:
        nonlocal made
        if not made and world.where[-1].startswith("  gc plan"):
            made = True
            world.image(A)

    figures = world.collect(between=between)
    assert made
    assert figures.deleted_count == 0
    assert figures.pinned_count >= 1
    world.check()
    world.check_no_garbage()


def test_a_promise_of_a_condemned_container_revives_it(world: GcWorld) -> None:
    world.delete(world.image(A))
    world.collect()
    assert world.store.unit.gc_state.count == 2
    world.image(A)
    world.collect()
    assert world.store.unit.gc_state.count == 0
    for _ in range(3):
        assert world.collect().deleted_count == 0
    world.check()


@pytest.mark.parametrize("phase", ["gc mark 1/", "gc plan", "gc delete 0/", "gc delete 1/", ""])
def test_a_hidden_copy_that_a_promise_rests_on_comes_back(world: GcWorld, phase: str) -> None:
    """Two transfers send the same segments. The second one's image is deleted; its container, which the
    index names, goes while the first transfer commits, or before."""
    first = world.begin("", A, "a", full=True)
    second = world.begin("", ((0, 1, 20, 0, 1, 20),), "b", full=True)
    for transfer in (first, second):
        world.open(transfer)
        world.offer(transfer)
    world.send(first, 3)
    world.advance(first)  # sealed, not logged: the batch is not whole
    while second.transfer_id in world.sending:
        world.next_step(second)
    older, newer = of_kind(world, Kind.DATA)
    world.delete(second.image_id)
    world.collect()
    world.collect()

    def commit() -> None:
        if phase and world.where[-1].strip().startswith(phase) and first.transfer_id in world.sending:
            world.send(first, 3)
            world.commit(first)

    world.collect(between=commit)
    assert newer not in containers(world)
    assert older in containers(world)
    if not phase:
        world.send(first, 3)
        world.commit(first)
    assert (first.image_id in world.images, world.conflicts) == (True, 0)
    world.check()
    world.check_no_garbage()
    world.check()


def test_a_node_that_cannot_be_read_ends_the_cycle_before_it_changes_anything(world: GcWorld) -> None:
    world.image(TREE)
    world.delete(world.image(B))
    world.collect()
    world.collect()
    nodes = of_kind(world, Kind.NODES)[0]
    row = world.store.containers.read_directory(nodes).directory[0]
    damage(world, nodes, int(row["offset"]) + 3)
    before, state = containers(world), dict(world.store.unit.gc_state.condemned)
    for _ in range(2):  # found; then known
        with pytest.raises(Corruption, match="cannot be walked"):
            world.collect()
    assert containers(world) == before
    assert world.store.unit.gc_state.condemned == state
    assert world.store.unit.gc_state.cycle == 2
    assert world.store.unit.maintenance.running == ""


def test_a_manifest_that_cannot_be_read_ends_the_cycle(world: GcWorld) -> None:
    image = world.image(A)
    world.files.corrupt(f"/state/units/active/manifests/{image}.alm", 40)
    world.end_threads()
    world.files = world.files.after_kill()
    world.open_store()
    with pytest.raises(Corruption, match="1 manifests cannot be read"):
        world.collect()
    assert len(containers(world)) == 2


def test_a_damaged_record_is_not_copied_and_its_container_stays(world: GcWorld) -> None:
    gone = world.image(((0, 1, 2, 3, 4, 5),))
    world.image(((1, 3, 1, 3, 1, 3),))
    world.delete(gone)
    source = of_kind(world, Kind.DATA)[0]
    row = world.store.containers.read_directory(source).directory[1]
    damage(world, source, int(row["offset"]) + 1)
    for _ in range(4):
        world.collect()
    assert world.store.unit.quarantine.bad_of(source) == {row["fingerprint"].tobytes()}
    assert source in containers(world), "the only copy of a live record, damaged or not"
    world.image(((1, 1, 1, 1, 1, 1),))  # brings it again: the image heals
    for _ in range(3):
        world.collect()
    assert source not in containers(world)
    world.check()


def test_what_was_quarantined_since_the_mark_stops_deletion(world: GcWorld) -> None:
    world.image(A)
    world.delete(world.image(B))
    world.collect()
    world.collect()
    live = of_kind(world, Kind.DATA)[0]
    name = world.store.containers.read_directory(live).directory[0]["fingerprint"].tobytes()

    def between() -> None:
        if world.where[-1].startswith("  gc plan"):
            world.store.unit.condemn_records(live, world.tenants[""].tenant, [name], "met by a reader")

    assert world.collect(between=between).deleted_count == 0
    assert world.collect().deleted_count == 2


def test_an_older_copy_of_a_lost_record_is_found_before_its_container_goes(world: GcWorld) -> None:
    """Two transfers sent the same data; the newer copy counts, turns out damaged, and the older heals."""
    first, second = (world.begin("", A, name, full=True) for name in "ab")
    for transfer in (first, second):
        world.open(transfer)
    for transfer in (first, second):
        world.offer(transfer)
    for transfer in (first, second):
        while transfer.transfer_id in world.sending:
            world.next_step(transfer)
    older, newer = of_kind(world, Kind.DATA)
    world.collect()
    world.collect()
    directory = world.store.containers.read_directory(newer).directory
    name = directory[0]["fingerprint"].tobytes()
    damage(world, newer, int(directory[0]["offset"]))
    world.store.unit.condemn_records(newer, world.tenants[""].tenant, [name], "found by a scrub")
    figures = world.collect()
    assert (figures.deleted_count, figures.spared_count) == (0, 1)
    assert world.store.unit.index.get_many(world.tenants[""].tenant, [name])[0].container == older  # type: ignore[union-attr]
    world.store.unit.quarantine.drop_container(newer)
    world.check()


def test_a_dead_container_with_a_damaged_directory_stays(world: GcWorld) -> None:
    world.delete(world.image(A))
    data = of_kind(world, Kind.DATA)[0]
    world.collect()
    world.collect()
    damage(world, data, 100)
    assert world.collect().spared_count == 1
    assert containers(world) == [data]


def test_the_state_survives_a_restart_and_is_voided_by_a_loss(world: GcWorld) -> None:
    world.image(B)
    world.delete(world.image(A))
    world.collect()
    world.crash(power=True)
    assert (world.store.unit.gc_state.cycle, world.store.unit.gc_state.count) == (1, 2)
    world.crash(power=True, index_lost=True)
    assert (world.store.unit.gc_state.cycle, world.store.unit.gc_state.count) == (1, 0)
    assert [world.collect().deleted_count for _ in range(3)] == [0, 0, 2]


def test_cycles_go_on_in_memory_while_nothing_can_be_written(world: GcWorld) -> None:
    world.image(B)
    world.delete(world.image(A))
    world.files.set_capacity(0)
    assert [world.collect().deleted_count for _ in range(3)] == [0, 0, 2]
    assert not world.files.exists(world.store.unit.gc_state._path)
    world.files.set_capacity(None)
    world.collect()
    assert GcState(world.files, world.store.unit.gc_state._path).cycle == 4


def test_nothing_is_copied_without_room(world: GcWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world.delete(world.image(((0, 1, 2, 3, 4, 5),)))
    world.image(((1, 3, 1, 3, 1, 3),))
    for _ in range(3):
        world.collect(live_percent_min=0)
    world.files.set_capacity(1 << 20)
    assert world.collect().copied_container_count == 0
    monkeypatch.setattr(collect_module, "COPY_FREE_BYTES_MIN", 0)
    world.files.set_capacity(1)
    assert world.collect().copied_container_count == 0
    assert world.store.containers.stats().buffers_in_use == 0
    world.files.set_capacity(None)
    assert world.collect().copied_container_count == 1
    world.check()


def test_units_are_collected_each_for_itself(world: GcWorld) -> None:
    world.delete(world.image(A))
    unit, stopping = world.store.unit, threading.Event()
    with unit.maintenance.begin("a move"):
        world.collector.collect_all([unit, unit], CollectOptions(), stopping)
    assert unit.gc_state.cycle == 0
    world.collector.collect_all([unit, unit], CollectOptions(), stopping)
    assert unit.gc_state.cycle == 2
    stopping.set()
    world.collector.collect_all([unit, unit], CollectOptions(), stopping)
    assert unit.gc_state.cycle == 2


def test_one_maintenance_at_a_time(world: GcWorld) -> None:
    with world.store.unit.maintenance.begin("a move"), pytest.raises(Conflict, match="a move of unit"):
        world.collect()


def _stopped_at(step: int) -> str:
    """Stop a cycle that marks, deletes and copies at one of its steps; returns its phase."""
    world, stopping, seen, phase = GcWorld(random.Random(step)), threading.Event(), itertools.count(), ""
    world.image(((1, 3, 1, 3, 1, 3),))
    world.delete(world.image(((0, 1, 2, 3, 4, 5),), tenant="acme"))
    world.delete(world.image(((8, 1, 2, 3, 4, 5),)))
    world.image(TREE)
    for _ in range(2):
        world.collect(live_percent_min=0)

    def report(figures: CollectFigures) -> None:
        nonlocal phase
        if next(seen) == step:
            phase = figures.phase
            stopping.set()

    options = CollectOptions(live_percent_min=100)
    with contextlib.suppress(Cancelled):
        world.collector.collect(world.store.unit, options, report=report, stopping=stopping)
    assert world.store.containers.stats().buffers_in_use == 0
    world.check()
    world.check_no_garbage()
    world.check()
    world.end_threads()
    return phase


def test_a_cycle_can_be_stopped_anywhere() -> None:
    phases = list(itertools.takewhile(bool, map(_stopped_at, itertools.count())))
    assert set(phases) == {"mark", "plan", "delete", "copy", "done"}


def test_copying_keeps_to_its_rate(world: GcWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world.delete(world.image(((0, 1, 2, 3, 4, 5),)))
    world.image(((1, 3, 1, 3, 1, 3),))
    waited: list[float] = []
    monkeypatch.setattr(threading.Event, "wait", lambda _, seconds: waited.append(seconds))
    figures = world.collector.collect(
        world.store.unit, CollectOptions(live_percent_min=100, bytes_per_second_max=1000)
    )
    monkeypatch.undo()
    assert figures.copied_bytes > 0
    assert sum(waited) >= figures.copied_bytes / 1000 * 0.99


def test_a_gentle_cycle_rests_as_long_as_it_works(world: GcWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world.image(TREE)
    rests: list[float] = []
    monkeypatch.setattr(threading.Event, "wait", lambda _, seconds: rests.append(seconds))

    def work(_figures: CollectFigures) -> None:
        world.clock.now += 0.03

    world.collector.collect(world.store.unit, CollectOptions(gentle=True), report=work)
    hard = len(rests)
    world.collector.collect(world.store.unit, CollectOptions(), report=work)
    monkeypatch.undo()
    assert len(rests) == hard > 0
    assert all(0.02 <= rest <= 1.0 for rest in rests)


# -- the state ----------------------------------------------------------------------------------


def test_the_state_reads_back(world: GcWorld) -> None:
    files = FakeFiles()
    files.make_dirs("/gc")
    state = GcState(files, "/gc/x.alg")
    state.cycle = 5
    for container in (9, 7, 8):
        assert state.condemn(ContainerId(container))
    state.cycle = 6
    assert state.condemn(ContainerId(7)), "the first condemnation counts"
    state.save()
    again = GcState(files, "/gc/x.alg")
    assert (again.cycle, again.condemned) == (6, {7: 5, 8: 5, 9: 5})
    data = files.read("/gc/x.alg")
    for place in range(len(data)):
        files.publish("/gc/y.alg", [data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]], label="t")
        assert GcState(files, "/gc/y.alg").condemned == {}, place
    again.void("test")
    assert GcState(files, "/gc/x.alg").condemned == {}


def test_the_state_is_voided_on_a_full_disk_too() -> None:
    files = FakeFiles()
    files.make_dirs("/gc")
    state = GcState(files, "/gc/x.alg")
    state.condemn(ContainerId(7))
    state.save()
    files.set_capacity(0)
    with pytest.raises(OutOfSpace):
        state.save()
    state.void("test")
    assert GcState(files, "/gc/x.alg").condemned == {}


def test_condemnations_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    files = FakeFiles()
    files.make_dirs("/gc")
    state = GcState(files, "/gc/x.alg")
    monkeypatch.setattr("dedup_target.gc_state.CONDEMNED_MAX", 2)
    assert [state.condemn(ContainerId(one)) for one in (1, 2, 3)] == [True, True, False]
