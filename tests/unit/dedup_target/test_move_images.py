"""Images go to the archive whole, or stay whole where they are, with the reason."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from arraylift.errors import (
    Cancelled,
    Conflict,
    Corruption,
    InvalidRequest,
    NotFound,
    PeerUnavailable,
    WrongState,
)
from arraylift.ids import ImageId, TransferId
from arraylift.segments.codecs import Codec
from dedup_target.container_buffer import ContainerBuffer
from dedup_target.container_format import SealedContainer
from dedup_target.image_reader import OpenImage
from dedup_target.move_images import BASE, NEWEST, MoveProgress
from dedup_target.superblock import Role
from dedup_target.transfers import GrantRequest
from tests.property.test_commit_states import PEER, Backup
from tests.unit.dedup_target.units_world import ARCHIVE, BACKUPS, DISKS, UnitsWorld

ONE, TWO, THREE, FOUR = (backup.image_id for backup in BACKUPS)


@pytest.fixture
def world() -> Iterator[UnitsWorld]:
    made = UnitsWorld()
    made.add()
    made.send()
    yield made
    made.close()


def test_all_but_the_newest_move_and_read_the_same(world: UnitsWorld) -> None:
    seen: list[MoveProgress] = []
    done = world.archive(report=seen.append)
    assert (done.images_done, done.images_total, done.done) == (3, 3, True)
    assert done.kept == ((FOUR, NEWEST),)
    assert next(one.image_id for one in seen if one.image_id) == ONE, "oldest first"
    assert world.places() == {1: ["archive"], 2: ["archive"], 3: ["archive"], 4: ["active"]}
    world.check()
    world.restart()
    assert world.places() == {1: ["archive"], 2: ["archive"], 3: ["archive"], 4: ["active"]}
    world.check()


def test_the_archive_has_each_segment_once_in_its_own_codec(world: UnitsWorld) -> None:
    done = world.archive()
    unit = world.store.units.member("archive").opened()
    codecs: set[int] = set()
    fingerprints: list[bytes] = []
    for container in unit.containers.containers():
        directory = unit.containers.read_directory(container).directory
        codecs |= set(directory["codec"].tolist())
        fingerprints += directory["fingerprint"].tolist()
        assert unit.containers.verify(container) == []
    assert Codec.ZSTANDARD in codecs
    assert Codec.LZ4 not in codecs
    assert len(fingerprints) == len(set(fingerprints)) == unit.index.count()
    assert 0 < done.bytes_stored < done.bytes_read < sum(map(len, DISKS.values()))
    again = world.store.unit.index.count()
    assert again > 0, "the other unit keeps its copies until they are collected"


def test_named_images_move_and_others_are_told_why_not(world: UnitsWorld) -> None:
    done = world.archive(TWO, FOUR)
    assert done.images_done == 1
    assert done.kept == ((FOUR, NEWEST),)
    assert world.places()[2] == ["archive"]
    done = world.archive(TWO)
    assert done.kept == ((TWO, "it lies in another unit"),)
    with pytest.raises(NotFound):
        world.archive(ImageId("f" * 32))
    with pytest.raises(InvalidRequest):
        world.archive(TWO, older_than_seconds=5)


def test_an_image_that_a_transfer_builds_on_stays(world: UnitsWorld) -> None:
    request = GrantRequest(TransferId("9" * 32), PEER, "", "disk", TWO, no_base=False)
    assert world.transfers.create_grant(request)[1] == TWO
    done = world.archive()
    assert dict(done.kept) == {TWO: BASE, FOUR: NEWEST}
    world.transfers.revoke(request.transfer_id)
    assert dict(world.archive().kept) == {FOUR: NEWEST}


def test_a_base_in_the_archive_is_no_base(world: UnitsWorld) -> None:
    world.archive()
    request = GrantRequest(TransferId("9" * 32), PEER, "", "disk", TWO, no_base=False)
    first = world.transfers.create_grant(request)
    assert first[1] is None
    assert world.transfers.create_grant(request) == first
    with pytest.raises(NotFound):
        world.transfers.create_grant(
            replace(request, transfer_id=TransferId("8" * 32), base_image_id=ImageId("f" * 32))
        )


def test_only_old_images_move(world: UnitsWorld) -> None:
    assert world.archive(older_than_seconds=3600).images_total == 0
    assert all(places == ["active"] for places in world.places().values())


def test_a_dry_run_says_which_and_moves_nothing(world: UnitsWorld) -> None:
    seen: list[MoveProgress] = []
    done = world.archive(dry_run=True, report=seen.append)
    assert [one.image_id for one in seen] == [ONE, TWO, THREE]
    assert done.images_done == 0
    assert all(places == ["active"] for places in world.places().values())


def test_a_damaged_image_stays_and_the_others_go(world: UnitsWorld) -> None:
    unit = world.store.unit
    image = world.images.open(THREE)
    only_three = {
        fingerprint
        for leaf in world.images.leaves(image, list(range(image.tree.spans)))
        if leaf is not None
        for fingerprint in [leaf.fingerprints[-32:]]
    }
    locators = unit.locate(image.tenant, sorted(only_three))
    unit.condemn_records(locators[-1].container, image.tenant, [max(only_three)], "test")
    before = world.places()
    done = world.archive()
    kept = dict(done.kept)
    assert THREE in kept
    assert "cannot be read whole" in kept[THREE]
    assert world.places()[3] == before[3]
    assert done.images_done + len(kept) == 4


def test_a_stopped_move_leaves_every_image_readable_and_can_be_repeated(world: UnitsWorld) -> None:
    stopping = world.interrupted()
    with pytest.raises(Cancelled):
        world.archive(stopping=stopping)
    world.check()
    assert world.archive().images_done == 3
    world.check()


def test_what_an_earlier_move_copied_is_not_copied_again(world: UnitsWorld) -> None:
    goal = world.store.units.member("archive").opened()
    publish = goal.manifests.publish

    def refuse(_manifest: object) -> None:
        raise PeerUnavailable("the store went away")

    goal.manifests.publish = refuse  # type: ignore[method-assign,assignment]
    with pytest.raises(PeerUnavailable):
        world.archive(ONE)
    goal.manifests.publish = publish  # type: ignore[method-assign]
    assert world.places()[1] == ["active"]
    done = world.archive(ONE)
    assert (done.images_done, done.bytes_read, done.bytes_stored) == (1, 0, 0)
    world.check()


def test_what_does_not_read_back_is_not_believed(world: UnitsWorld) -> None:
    goal = world.store.units.member("archive").opened()
    seal = goal.containers.seal

    def seal_badly(buffer: object) -> object:
        sealed = seal(buffer)  # type: ignore[arg-type]
        name = f"{ARCHIVE}/containers/00000000/{sealed.container_id:016x}.alc"
        world.files.corrupt(name, int(sealed.directory["offset"][0]))
        return sealed

    goal.containers.seal = seal_badly  # type: ignore[method-assign,assignment]
    with pytest.raises(Corruption, match="does not read back"):
        world.archive(ONE)
    assert world.places()[1] == ["active"]
    world.check()


def test_an_image_deleted_while_it_is_copied_is_gone(world: UnitsWorld) -> None:
    goal = world.store.units.member("archive").opened()
    publish = goal.manifests.publish

    def delete_first(manifest: object) -> None:
        publish(manifest)  # type: ignore[arg-type]
        world.store.unit.manifests.remove(ONE)

    goal.manifests.publish = delete_first  # type: ignore[method-assign]
    done = world.archive(ONE)
    assert done.images_done == 0
    assert 1 not in world.places()


def test_a_lock_that_comes_while_an_image_is_copied_comes_along(world: UnitsWorld) -> None:
    goal = world.store.units.member("archive").opened()
    until = world.lock_clock.now().time_ns + 10**15
    publish = goal.manifests.publish

    def lock_first(manifest: object) -> None:
        publish(manifest)  # type: ignore[arg-type]
        source = world.store.unit.manifests
        source.replace(replace(source.get(ONE), lock_until_ns=until))

    goal.manifests.publish = lock_first  # type: ignore[method-assign]
    assert world.archive(ONE).images_done == 1
    assert world.places()[1] == ["archive"]
    assert world.store.manifests.get(ONE).lock_until_ns == until
    with pytest.raises(WrongState, match="locked"):
        world.backups.delete_image(ONE)
    world.backups.lock_image(ONE, until + 10**9)
    assert goal.manifests.get(ONE).lock_until_ns == until + 10**9


def test_an_image_deleted_while_it_is_copied_is_never_published_again(world: UnitsWorld) -> None:
    """A crash right after that would leave it where it was deleted."""
    goal = world.store.units.member("archive").opened()
    seal = goal.containers.seal
    published: list[object] = []

    def delete_first(buffer: ContainerBuffer) -> SealedContainer:
        if 1 in world.places():
            world.backups.delete_image(ONE)
        return seal(buffer)

    goal.containers.seal = delete_first  # type: ignore[method-assign]
    goal.manifests.publish = published.append  # type: ignore[method-assign, assignment]
    assert world.archive(ONE).images_done == 0
    assert published == []
    assert 1 not in world.places()


def test_a_lock_that_comes_while_an_image_is_copied_back_holds_at_every_moment(world: UnitsWorld) -> None:
    """The copy in the unit that takes backups answers first, but knows nothing of the lock yet."""
    archive, active = world.store.units.member("archive").opened(), world.store.unit
    world.archive(ONE)
    until = world.lock_clock.now().time_ns + 10**15
    lost_spans = world.images.lost_spans
    refused: list[ImageId] = []

    def lock_and_delete(image: OpenImage) -> list[int]:
        if image.manifest.image_id == ONE and not refused:
            unlocked = active.manifests.get(ONE)
            world.backups.lock_image(ONE, until)
            active.manifests.replace(unlocked)  # as if it had been published just after
            with pytest.raises(WrongState, match="locked"):
                world.backups.delete_image(ONE)
            with pytest.raises(WrongState, match="locked"):
                world.backups.lock_image(ONE, until - 1)
            refused.append(ONE)
        return lost_spans(image)

    world.images.lost_spans = lock_and_delete  # type: ignore[method-assign, assignment]
    world.mover.empty(archive, active)
    assert refused == [ONE]
    assert world.places()[1] == ["active"]
    assert active.manifests.get(ONE).lock_until_ns == until


def test_a_move_that_broke_off_is_finished_in_the_background(world: UnitsWorld) -> None:
    goal = world.store.units.member("archive").opened()
    world.archive(ONE)
    world.store.unit.manifests.publish(goal.manifests.get(ONE))
    assert world.places()[1] == ["active", "archive"]
    world.mover.finish(threading.Event())
    assert world.places()[1] == ["archive"]
    world.check()


def test_maintenance_of_either_unit_keeps_a_move_out(world: UnitsWorld) -> None:
    for unit in (world.store.unit, world.store.units.member("archive").opened()):
        with (
            unit.maintenance.begin("garbage collection"),
            pytest.raises(Conflict, match="garbage collection"),
        ):
            world.archive()
    assert world.archive().images_done == 3


def test_images_in_the_archive_are_deleted_and_named_as_others(world: UnitsWorld) -> None:
    world.archive()
    world.backups.delete_image(ONE)
    assert 1 not in world.places()
    with pytest.raises(NotFound):
        world.backups.delete_image(ONE)
    with pytest.raises(NotFound):
        world.images.open(ONE)
    world.restart()
    assert sorted(world.places()) == [2, 3, 4]


def test_a_goal_must_be_an_archive_and_named_where_there_are_two(world: UnitsWorld) -> None:
    with pytest.raises(WrongState, match="takes no images"):
        world.mover.archive("active", older_than_seconds=0)
    with pytest.raises(NotFound):
        world.mover.archive("nowhere", older_than_seconds=0)
    world.add("second", Role.ARCHIVE, "/second")
    with pytest.raises(WrongState, match="2 archive units"):
        world.archive()
    assert world.mover.archive("second", older_than_seconds=0).images_done == 3
    world.check()


def test_a_later_backup_of_the_disk_lets_the_next_one_go(world: UnitsWorld) -> None:
    world.archive()
    five = Backup(5, DISKS[1], frozenset())
    world.send(Backup(5, DISKS[2], frozenset()))
    assert world.archive().images_done == 1
    assert world.places()[4] == ["archive"]
    assert world.target.read(replace(five, disk=DISKS[2])) == DISKS[2]
