"""Where the space goes: numbers that add up, and a preview that the deletion then keeps."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from arraylift.errors import Conflict, NotFound
from arraylift.ids import ImageId
from dedup_target.backups import Backups
from dedup_target.lock_clock import LockClock
from dedup_target.mark import Mark, NoTransfers
from dedup_target.survey import SpaceUse, Survey, Surveyor
from tests.property.gc_content import BIG_COUNT, SMALL_POOL
from tests.property.gc_world import GcWorld
from tests.unit.dedup_target.material import backup
from tests.unit.dedup_target.units_world import BACKUPS, UnitsWorld

A, B = ((0, 1, 2, 3, 4, 5),), ((6, 7, 8, 9, 10, 11),)
HALF = ((0, 1, 2, 12, 13, 14),)
TREE = ((SMALL_POOL, SMALL_POOL + 1) * (BIG_COUNT // 2), (), (0, 1, 2, 3, 4, 5))
VM1, VM2 = "1" * 32, "2" * 32


@pytest.fixture
def world() -> Iterator[GcWorld]:
    made = GcWorld(random.Random(7))
    yield made
    made.end_threads()


def surveyor(world: GcWorld) -> Surveyor:
    return Surveyor(lambda: [world.store.unit], lambda _: world.transfers)


def publish(world: GcWorld, number: int, vm_id: str, images: list[ImageId], tenant: str = "") -> None:
    backups = Backups(
        world.store, world.reader, LockClock(world.files, "/state", world.clock, newest_image_ns=None)
    )
    named = tuple((f"disk{at}", image) for at, image in enumerate(images))
    backups.publish(
        replace(backup(number), vm_id=vm_id, images=named, tenant_name=world.tenants[tenant].name)
    )


def check_adds_up(world: GcWorld, found: Survey) -> None:
    files = sum(world.files.size(f"/state/units/active/containers/{one}") for one in _container_files(world))
    assert found.total.container_bytes == files
    for use in (found.total, *found.tenants, *found.units):
        assert use.stored_bytes + use.metadata_bytes + use.garbage_bytes == use.container_bytes, use
        assert use.plain_bytes >= use.stored_bytes, use
    for group in (found.tenants, found.units):
        summed = SpaceUse()
        for use in group:
            summed.add(use)
        assert summed == found.total


def _container_files(world: GcWorld) -> list[str]:
    root, files = "/state/units/active/containers", world.files
    return [
        f"{folder}/{name}" for folder in files.list_dir(root) for name in files.list_dir(f"{root}/{folder}")
    ]


def test_an_empty_target_has_nothing(world: GcWorld) -> None:
    found = surveyor(world).survey(by_vm=True)
    assert found.total == SpaceUse()
    assert found.vms == []


def test_the_parts_add_up_to_the_containers(world: GcWorld) -> None:
    world.image(TREE)
    world.image(A, tenant="acme")
    world.image(A)
    world.delete(world.image(B))
    progress: list[tuple[int, int]] = []
    found = surveyor(world).survey(by_vm=False, progress=lambda done, total: progress.append((done, total)))
    check_adds_up(world, found)
    assert progress[-1] == (3, 3)
    total = found.total
    assert (total.image_count, total.logical_bytes) == (3, (2 << 20) + 3 * 900)
    assert total.mapped_bytes == (1 << 20) + 3 * 900
    assert total.plain_bytes == 2 * 65536 + 2 * 900, "each tenant's segments once"
    assert [use.name for use in found.tenants] == sorted(known.name for known in world.tenants.values())
    assert total.garbage_bytes == 2 * 8192, "the last image's containers"


def test_collecting_turns_garbage_into_nothing_else(world: GcWorld) -> None:
    world.image(((1, 3, 5, 1, 3, 5),))
    world.delete(world.image(TREE))
    before = surveyor(world).survey(by_vm=False).total
    assert before.garbage_bytes > 0
    for _ in range(3):
        world.collect()
    found = surveyor(world).survey(by_vm=False)
    check_adds_up(world, found)
    after = found.total
    assert after.garbage_bytes == 0
    assert (after.plain_bytes, after.stored_bytes) == (before.plain_bytes, before.stored_bytes)


@pytest.mark.parametrize("seed", range(12))
def test_what_a_preview_says_is_what_a_collection_then_frees(world: GcWorld, seed: int) -> None:
    draw = random.Random(seed)
    contents = [A, B, HALF, TREE, (*TREE[:2], B[0])]
    images = [world.image(draw.choice(contents), tenant=draw.choice(("", "acme"))) for _ in range(6)]
    chosen = draw.sample(images, draw.randrange(1, 6))
    live = live_plain_bytes(world)
    told = surveyor(world).preview(chosen)
    assert told.image_count == len(chosen)
    for image in chosen:
        world.delete(image)
    assert live - live_plain_bytes(world) == told.plain_bytes
    assert world.collect().dead_bytes == told.stored_bytes


def live_plain_bytes(world: GcWorld) -> int:
    mark = Mark(world.store.unit, world.transfers)
    mark.run()
    return int(mark.live_plain_bytes.sum())


def test_by_vm_says_what_only_it_needs(world: GcWorld) -> None:
    one, other, loose = world.image(A), world.image(HALF), world.image(B)
    shared = world.image(TREE)
    publish(world, 1, VM1, [one, shared])
    publish(world, 2, VM2, [other])
    publish(world, 3, VM2, [other, shared])
    found = surveyor(world).survey(by_vm=True)
    check_adds_up(world, found)
    tenant = world.tenants[""].name
    assert [use.name for use in found.vms] == [f"{tenant}/{VM1}", f"{tenant}/{VM2}"]
    assert [use.image_count for use in found.vms] == [2, 2]
    first, second = found.vms
    for use, ids in ((first, [one]), (second, [other])):
        assert use.unique_stored_bytes == surveyor(world).preview(ids).stored_bytes > 0
    assert first.garbage_bytes == first.container_bytes == 0
    assert surveyor(world).images_of(tenant, VM2) == sorted([other, shared])
    assert loose in world.images
    with pytest.raises(NotFound, match="has no backup here"):
        surveyor(world).images_of(tenant, "3" * 32)


def test_what_transfers_hold_is_not_unique(world: GcWorld) -> None:
    image = world.image(A)
    alone = surveyor(world).preview([image])
    transfer = world.begin("", A, "b", full=True)
    world.open(transfer)
    world.offer(transfer)
    world.advance(transfer)
    assert surveyor(world).preview([image]).stored_bytes < alone.stored_bytes
    assert surveyor(world).preview([image]).stored_bytes == alone.stored_bytes - 6 * 150


def test_a_preview_of_what_is_not_there(world: GcWorld) -> None:
    image = world.image(A)
    with pytest.raises(NotFound, match="1 of these images"):
        surveyor(world).preview([image, ImageId("f" * 32)])


def test_surveys_exclude_other_maintenance(world: GcWorld) -> None:
    image = world.image(A)
    with world.store.unit.maintenance.begin("a move"):
        with pytest.raises(Conflict):
            surveyor(world).survey(by_vm=False)
        with pytest.raises(Conflict):
            surveyor(world).preview([image])


def test_the_preview_of_an_image_in_two_units_counts_it_once() -> None:
    """As a move leaves it that broke off between its two manifests."""
    world = UnitsWorld()
    world.send(*BACKUPS[:2])
    world.add()
    image = world.store.manifests.get(BACKUPS[0].image_id)
    here = world.store.unit
    world.archive(image.image_id)
    here.manifests.publish(image)
    every = Surveyor(lambda: list(world.store.units.open_units()), lambda _: NoTransfers())
    alone = Surveyor(lambda: [here], lambda _: NoTransfers()).preview([image.image_id])
    both = every.preview([image.image_id])
    assert (alone.image_count, both.image_count) == (1, 1)
    assert both.stored_bytes > alone.stored_bytes > 0
    with pytest.raises(NotFound, match="1 of these"):
        every.preview([image.image_id, ImageId("f" * 32)])
    world.close()
