"""Collection where a target has several units: each is marked by its own images alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dedup_target.collect import CollectOptions, Collector
from dedup_target.mark import LiveTransfers, NoTransfers
from dedup_target.storage_unit import StorageUnit
from dedup_target.survey import Surveyor
from tests.unit.dedup_target.units_world import UnitsWorld


@pytest.fixture
def world() -> Iterator[UnitsWorld]:
    made = UnitsWorld()
    made.send()
    made.add()
    yield made
    made.close()


def live(world: UnitsWorld, unit: StorageUnit) -> LiveTransfers:
    return world.transfers if unit is world.store.unit else NoTransfers()


def collect(world: UnitsWorld) -> None:
    collector = Collector(lambda unit: live(world, unit), world.clock)
    for _ in range(3):
        for unit in world.store.units.open_units():
            collector.collect(unit, CollectOptions(live_percent_min=100))


def test_what_was_moved_is_collected_where_it_was_and_stays_where_it_is(world: UnitsWorld) -> None:
    world.archive()
    places = world.places()
    assert {tuple(units) for units in places.values()} == {("active",), ("archive",)}
    collect(world)
    assert world.places() == places
    world.check()
    surveyor = Surveyor(lambda: list(world.store.units.open_units()), lambda unit: live(world, unit))
    found = surveyor.survey(by_vm=False)
    assert {use.name: use.image_count for use in found.units} == {"active": 1, "archive": 3}
    for use in (*found.units, found.total):
        assert use.garbage_bytes == 0
        assert use.stored_bytes + use.metadata_bytes == use.container_bytes
    assert found.total.container_bytes == sum(use.container_bytes for use in found.units)


def test_an_archive_is_copied_forward_in_its_own_codec(world: UnitsWorld) -> None:
    world.archive()
    archive = next(unit for unit in world.store.units.open_units() if unit is not world.store.unit)
    before = {name: archive.index.get_many(tenant, [name])[0] for tenant, name, _ in archive.index.entries()}
    for number in (1, 3):
        image = next(one for one in archive.manifests.all() if int(one.image_id, 16) == number)
        archive.manifests.remove(image.image_id)
        world.images.forget(image.image_id)
    collect(world)
    left = list(archive.index.entries())
    assert 0 < len(left) < len(before)
    moved = 0
    for _, name, locator in left:
        old = before[name]
        assert old is not None
        assert locator.codec == old.codec
        assert locator.stored_bytes == old.stored_bytes
        moved += locator.container != old.container
    assert moved
    world.check()
