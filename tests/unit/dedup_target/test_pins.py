"""Pins and maintenance: what a promise rests on stays, and one worker at a time moves containers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from arraylift.durable import Buffer
from arraylift.errors import Conflict
from arraylift.ids import ContainerId, Fingerprint, TenantId
from dedup_target.maintenance import Maintenance
from dedup_target.pins import LOOK_UPS_MAX
from dedup_target.segment_index import Entries
from tests.unit.dedup_target.material import make_segments
from tests.unit.dedup_target.test_storage_unit import Stage

ROOT = Fingerprint(b"r" * 32)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    made.some(2)
    yield made
    made.unit.close()


def _packed(stage: Stage, number: int) -> bytes:
    return b"".join(segment.fingerprint for segment in stage.stored[number][1])


def test_what_was_called_present_stays_until_the_holder_lets_go(stage: Stage) -> None:
    unit, first = stage.unit, stage.stored[0][0].container_id
    holder = unit.pins.holder()
    absent = make_segments(1, seed=99)[0].fingerprint
    assert unit.present(stage.key.tenant, _packed(stage, 0) + absent, holder).tolist() == [True] * 20 + [
        False
    ]
    assert holder.containers == {first}
    assert not unit.remove_container(first)
    stage.check()
    holder.release()
    holder.release()
    assert unit.remove_container(first)
    assert not unit.contains(stage.key.tenant, _packed(stage, 0)).any()


def test_two_holders_of_one_container(stage: Stage) -> None:
    unit, first = stage.unit, stage.stored[0][0].container_id
    one, other = unit.pins.holder(), unit.pins.holder()
    for holder in (one, other, one):
        unit.present(stage.key.tenant, _packed(stage, 0), holder)
    one.release()
    assert unit.pins.is_spared(first)
    other.release()
    assert not unit.pins.is_spared(first)


def test_a_released_holder_pins_nothing_any_more(stage: Stage) -> None:
    holder = stage.unit.pins.holder()
    holder.release()
    assert stage.unit.present(stage.key.tenant, _packed(stage, 0), holder).all()
    holder.add([ContainerId(7)])
    assert not holder.containers
    assert not stage.unit.pins.is_spared(ContainerId(7))


def test_a_pin_of_the_cycle_counts_to_its_end(stage: Stage) -> None:
    unit, first, second = stage.unit, *(sealed.container_id for sealed, _ in stage.stored)
    before, meanwhile = unit.pins.holder(), unit.pins.holder()
    unit.present(stage.key.tenant, _packed(stage, 0), before)
    with unit.pins.watching():
        unit.present(stage.key.tenant, _packed(stage, 1), meanwhile)
        before.release()
        meanwhile.release()
        assert not unit.remove_container(first)
        assert not unit.remove_container(second)
    with unit.pins.watching():
        assert unit.remove_container(first)


@pytest.mark.parametrize("removals", range(1, LOOK_UPS_MAX + 2))
def test_a_container_removed_between_look_up_and_pin_is_not_promised(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, removals: int
) -> None:
    """Each look-up but the one under the lock meets a removal right after it."""
    stage.some(LOOK_UPS_MAX + 1)
    unit, find = stage.unit, stage.unit.index.find_many
    victims = [sealed.container_id for sealed, _ in stage.stored[:removals]]
    packed = b"".join(_packed(stage, number) for number in range(len(stage.stored)))
    lock_free = LOOK_UPS_MAX

    def racing(tenant: int, asked: bytes) -> object:
        nonlocal lock_free
        found = find(tenant, asked)  # type: ignore[arg-type]
        lock_free -= 1
        if victims and lock_free >= 0:
            assert unit.remove_container(victims.pop(0))
        return found

    monkeypatch.setattr(unit.index, "find_many", racing)
    holder = unit.pins.holder()
    found = unit.present(stage.key.tenant, packed, holder)
    assert found.tolist() == unit.contains(stage.key.tenant, packed).tolist()
    assert holder.containers == set(unit.containers.containers())


@pytest.mark.parametrize("change", ["removal", "quarantine"])
def test_a_look_up_in_the_middle_of_a_change_is_not_believed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """It began after the change did, and found what the change takes away a moment later."""
    unit, first, packed = stage.unit, stage.stored[0][0].container_id, _packed(stage, 0)
    holder, looked, answers = unit.pins.holder(), threading.Event(), []
    generations = []
    find = unit.index.find_many

    def finding(tenant: TenantId, asked: Buffer) -> Entries:
        found = find(tenant, asked)
        looked.set()
        return found

    def ask() -> None:
        generations.append(unit.quarantine.generation)  # of an attempt that begins now
        answers.append(unit.present(stage.key.tenant, packed, holder).any())

    asker = threading.Thread(target=ask)
    method = {"removal": "remove_container", "quarantine": "forget_records"}[change]
    change_index = getattr(unit.index, method)

    def changing(*arguments: object) -> object:
        asker.start()
        assert looked.wait(10)
        return change_index(*arguments)

    monkeypatch.setattr(unit.index, "find_many", finding)
    monkeypatch.setattr(unit.index, method, changing)
    if change == "removal":
        assert unit.remove_container(first)
    else:
        names = [segment.fingerprint for segment in stage.stored[0][1]]
        unit.condemn_records(first, stage.key.tenant, names, "a test")
    asker.join(10)
    assert answers == [False]
    assert not holder.containers
    assert unit.quarantine.generation > generations[0], "its commit looks again"


def test_held_roots_are_counted(stage: Stage) -> None:
    pins, tenant = stage.unit.pins, stage.key.tenant
    with pins.hold_root(tenant, ROOT):
        with pins.hold_root(tenant, ROOT):
            pass
        assert pins.held_roots() == [(tenant, ROOT)]
    assert pins.held_roots() == []


def test_one_maintenance_at_a_time() -> None:
    maintenance = Maintenance("unit 7")
    with maintenance.begin("collection"):
        assert maintenance.running == "collection"
        with pytest.raises(Conflict, match="collection of unit 7 is under way, so move cannot begin"):
            maintenance.begin("move").__enter__()
    with pytest.raises(ZeroDivisionError), maintenance.begin("move"):
        raise ZeroDivisionError
    assert maintenance.running == ""
