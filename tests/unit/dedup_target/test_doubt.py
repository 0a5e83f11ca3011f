"""Doubt: what ends it, and what does not. While there is none, roots are believed without a look."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from arraylift.durable import Buffer
from arraylift.ids import TenantId
from arraylift.segments.fingerprint import unpack
from dedup_target import image_reader
from dedup_target.container_store import name_of
from dedup_target.doubt import settle_doubt
from dedup_target.image_reader import OpenImage
from dedup_target.rebuild_unit import UnitRebuilder
from dedup_target.store import Store
from dedup_target.superblock import Role
from tests.unit.dedup_target.units_world import BACKUPS, UnitsWorld

NEVER = threading.Event()


@pytest.fixture
def world() -> Iterator[UnitsWorld]:
    made = UnitsWorld()
    made.send(*BACKUPS[:2])
    yield made
    made.close()


def _in_doubt(world: UnitsWorld) -> bool:
    return world.store.in_doubt


def _wear_out_nodes(world: UnitsWorld) -> None:
    """Nothing of the container that holds the first image's root can be read any more."""
    unit, image = world.store.unit, world.store.manifests.get(BACKUPS[0].image_id)
    (found,) = unit.locate(image.tenant, [image.root])
    name = name_of(found.container)
    unit.backend.put(name, [bytes(unit.backend.size(name))], label="test")
    unit.containers._directories.drop(found.container)


def test_an_index_that_is_made_anew_for_damage_leaves_a_doubt(world: UnitsWorld) -> None:
    rebuilder, unit = UnitRebuilder(world.store, world.images), world.store.unit
    rebuilder.mend(unit, NEVER)
    assert not _in_doubt(world)
    unit._mark.set("a read met damage")
    rebuilder.mend(unit, NEVER)
    assert not _in_doubt(world), "every image is whole"
    _wear_out_nodes(world)
    unit._mark.set("a read met damage")
    rebuilder.mend(unit, NEVER)
    assert unit.quarantine.is_empty
    assert _in_doubt(world)
    assert not world.store.all_healthy


def test_a_root_that_was_read_before_is_looked_up_all_the_same(world: UnitsWorld) -> None:
    unit, image = world.store.unit, world.store.manifests.get(BACKUPS[0].image_id)
    assert world.images.open(image.image_id).leaves.any()
    (found,) = unit.locate(image.tenant, [image.root])
    unit.index.forget_records(image.tenant, found.container, [image.root])
    world.store.begin_doubt("the root is nowhere")
    settle_doubt(world.store, world.images, NEVER)
    assert _in_doubt(world)


def test_the_doubt_is_there_before_the_index_is(world: UnitsWorld) -> None:
    """An attempt that begins in between would believe its base."""
    unit, healthy = world.store.unit, []
    switch = unit._place.switch

    def look() -> None:
        healthy.append(world.store.all_healthy)
        switch()

    unit._place.switch = look  # type: ignore[method-assign]
    unit.rebuild_index(report=lambda _: None, cancelled=NEVER)
    assert healthy == [False]


def test_a_start_that_is_killed_leaves_the_doubt_of_what_it_found(
    world: UnitsWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has made the index anew without a container that is gone; the next start sees nothing of that."""
    unit, image = world.store.unit, world.store.manifests.get(BACKUPS[0].image_id)
    opened = world.images.open(image.image_id)
    leaf = next(filter(None, world.images.leaves(opened, list(range(opened.tree.spans)))))
    (found,) = unit.locate(image.tenant, unpack(leaf.fingerprints)[:1])
    unit.gc_state.condemn(found.container)
    unit.gc_state.save()
    world.files.remove(f"/state/units/active/{name_of(found.container)}", label="test")

    def killed(_: Store) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Store, "_find_doubt", killed)
        with pytest.raises(KeyboardInterrupt):
            world.restart()
    world.indexes = world.indexes.after_crash()
    world.files = world.files.after_kill()
    world.open()
    assert not world.store.unit.report.index.rebuilt
    assert world.store.unit.gc_state.condemned == {}
    assert _in_doubt(world)


def test_a_look_that_began_before_a_doubt_does_not_end_it(
    world: UnitsWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost_spans, store = world.images.lost_spans, world.store

    def lose_meanwhile(image: OpenImage, **_: object) -> list[int]:
        found = lost_spans(image)
        store.begin_doubt("of another loss")
        return found

    monkeypatch.setattr(world.images, "lost_spans", lose_meanwhile)
    store.begin_doubt("of one loss")
    settle_doubt(store, world.images, NEVER)
    assert store.in_doubt
    monkeypatch.undo()
    settle_doubt(store, world.images, NEVER)
    assert not store.in_doubt


def test_a_look_at_a_large_image_holds_no_stop_up(world: UnitsWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_reader, "SPANS_AT_ONCE", 1)
    stopping, asked, contains = threading.Event(), [], world.store.unit.contains

    def stop_at_once(tenant: TenantId, packed: Buffer) -> object:
        asked.append(tenant)
        stopping.set()
        return contains(tenant, packed)

    monkeypatch.setattr(world.store.unit, "contains", stop_at_once)
    world.store.begin_doubt("of a loss")
    settle_doubt(world.store, world.images, stopping)
    assert len(asked) <= 2, "one span, of four, and its segments"
    assert world.store.in_doubt


def test_the_images_of_one_unit_say_nothing_of_the_next(world: UnitsWorld) -> None:
    """The look begins when the doubt is there, and the other unit does not receive yet."""
    store = world.store
    world.add("new", Role.ACTIVE, "/new")
    mark_draining, numbers = store.units.mark_draining, []

    def note(name: str) -> None:
        numbers.append(store.doubt_number)
        mark_draining(name)

    store.units.mark_draining = note  # type: ignore[method-assign]
    store.receive_elsewhere("active")
    world.target.store.seal_queue.submit = world.target._seal_at_once  # type: ignore[method-assign]
    store.end_doubt(numbers[0])
    assert store.in_doubt
