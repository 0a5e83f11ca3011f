"""Units are added, go away, come back, are drained and retired; the rest is served all the while."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from arraylift.errors import (
    AlreadyExists,
    Conflict,
    Corruption,
    InvalidRequest,
    LeaseLost,
    NotFound,
    PeerUnavailable,
    WrongState,
)
from arraylift.ids import ImageId, TransferId
from dedup_target.directory_backend import DirectoryBackend
from dedup_target.seal_queue import SealJob, SealQueue, Ticket
from dedup_target.superblock import Role
from dedup_target.transfers import GrantRequest
from dedup_target.unit_backend import walk
from dedup_target.unit_registry import UNITS_MAX, UnitEntry
from dedup_target.units import Member
from tests.property.test_commit_states import PEER, Backup
from tests.unit.dedup_target.material import backup
from tests.unit.dedup_target.units_world import ARCHIVE, BACKUPS, DISKS, UnitsWorld

ONE, TWO, THREE, FOUR = (one.image_id for one in BACKUPS)


@pytest.fixture
def world() -> Iterator[UnitsWorld]:
    made = UnitsWorld()
    yield made
    made.close()


def _states(world: UnitsWorld) -> dict[str, str]:
    return {member.entry.name: member.problem for member in world.store.units.members}


def _publish_backup(world: UnitsWorld, number: int, *images: int) -> None:
    tenant = world.store.keys.by_name("default")
    made = replace(backup(number, images=images), tenant=tenant.tenant, tenant_name=tenant.name)
    world.backups.publish(made)


# -- adding -------------------------------------------------------------------------------------


def test_an_added_unit_is_there_after_a_restart_and_adding_again_is_no_error(world: UnitsWorld) -> None:
    unit = world.add()
    assert world.admin.add("archive", Role.ARCHIVE, ARCHIVE, "").unit is unit
    world.restart()
    assert _states(world) == {"active": "", "archive": ""}
    again = world.store.units.member("archive").opened()
    assert again.unit_id == unit.unit_id
    assert again.superblock.container_bytes == 32 << 20
    with pytest.raises(AlreadyExists):
        world.admin.add("archive", Role.ARCHIVE, "/other", "")


def test_places_that_will_not_do_are_refused(world: UnitsWorld) -> None:
    add = world.admin.add
    with pytest.raises(PeerUnavailable, match="no directory"):
        add("a", Role.ARCHIVE, "/missing", "")
    for location in ("relative", "/a/../b", "", "s3://"):
        with pytest.raises(InvalidRequest):
            add("a", Role.ARCHIVE, location, "")
    with pytest.raises(InvalidRequest, match="no endpoint"):
        add("a", Role.ARCHIVE, ARCHIVE, "http://host")
    with pytest.raises(InvalidRequest, match="directory"):
        add("a", Role.ACTIVE, "s3://bucket", "")
    world.files.make_dirs("/foreign")
    world.files.publish("/foreign/letter.txt", [b"x"], label="test")
    with pytest.raises(WrongState, match="not empty"):
        add("a", Role.ARCHIVE, "/foreign", "")
    world.add()
    with pytest.raises(WrongState, match="already"):
        add("b", Role.ARCHIVE, ARCHIVE, "")
    assert _states(world) == {"active": "", "archive": ""}


def test_a_unit_that_lost_its_superblock_gets_no_new_one(world: UnitsWorld) -> None:
    world.add()
    world.send()
    world.archive()
    world.store.units.drop("archive")
    world.files.remove(f"{ARCHIVE}/unit.alu", label="test")
    with pytest.raises(Corruption, match=r"unit\.alu is missing"):
        world.admin.add("archive", Role.ARCHIVE, ARCHIVE, "")


def test_a_unit_of_another_target_is_refused(world: UnitsWorld) -> None:
    world.add()
    world.send(BACKUPS[0], BACKUPS[1])
    world.archive()
    world.store.units.drop("archive")
    world.close()
    files = world.files.after_kill()
    files.move("/state", "/state.kept", label="test")
    stranger = UnitsWorld(files)
    with pytest.raises(WrongState, match="another target"):
        stranger.admin.add("archive", Role.ARCHIVE, ARCHIVE, "")
    stranger.close()
    files = files.after_kill()
    files.move("/state", "/state.stranger", label="test")
    files.move("/state.kept", "/state", label="test")
    world.restart(files)
    member = world.admin.add("archive", Role.ARCHIVE, ARCHIVE, "")
    assert [image.image_id for image in member.manifests.all()] == [ONE]
    world.check()


def test_the_first_unit_of_another_target_is_refused_untouched(world: UnitsWorld) -> None:
    world.send(BACKUPS[0])
    world.close()
    files = world.files.after_kill()
    files.move("/state", "/other", label="test")
    stranger = UnitsWorld(files)
    with pytest.raises(WrongState, match="another wrapping key"):
        stranger.admin.add("theirs", Role.ACTIVE, "/other/units/active", "")
    assert _states(stranger) == {"active": ""}
    assert not files.exists("/other/units/active/owner.alu")
    stranger.close()


def test_there_is_a_most_of_units(world: UnitsWorld) -> None:
    for number in range(1, UNITS_MAX):
        world.add(f"archive{number}", path=f"/archive{number}")
    with pytest.raises(InvalidRequest, match="at most 16"):
        world.add("one-more", path="/more")


# -- absence ------------------------------------------------------------------------------------


def test_an_absent_unit_leaves_the_rest_and_says_what_it_holds(world: UnitsWorld) -> None:
    world.add()
    world.send()
    world.archive()
    _publish_backup(world, 1, 1, 4)
    world.close()
    world.unmount()
    world.restart()
    assert "no storage unit" in _states(world)["archive"]
    assert sorted(world.places()) == [1, 2, 3, 4]
    assert world.target.read(BACKUPS[3]) == DISKS[4]
    with pytest.raises(PeerUnavailable, match="unit archive is absent") as raised:
        world.images.open(ONE)
    assert ARCHIVE in raised.value.next_step
    for change in (
        lambda: world.backups.delete_image(TWO),
        lambda: world.backups.remove(backup(1).backup_id),
        lambda: world.backups.lock_image(TWO, world.lock_clock.now().time_ns + 10**15),
    ):
        with pytest.raises(PeerUnavailable):
            change()
    assert world.store.backups.key(backup(1).backup_id).image_ids == (ONE, FOUR)
    world.send(Backup(5, DISKS[1], None))
    assert world.target.read(Backup(5, DISKS[1], None)) == DISKS[1]
    with pytest.raises(PeerUnavailable):
        world.archive()
    world.mount()
    world.store.units.look_after()
    assert _states(world) == {"active": "", "archive": ""}
    for number in (1, 2, 3, 4):
        assert world.target.read(BACKUPS[number - 1]) == DISKS[number]


def test_a_unit_that_goes_away_under_a_running_target_condemns_nothing(world: UnitsWorld) -> None:
    unit = world.add()
    world.send()
    world.archive()
    world.unmount()
    unit.containers._cache.clear()
    with pytest.raises(PeerUnavailable, match="no storage unit"):
        world.target.read(BACKUPS[0])
    assert unit.quarantine.is_empty
    world.store.units.look_after()
    assert _states(world)["archive"]
    world.mount()
    world.store.units.look_after()
    world.check()


def test_another_disk_in_its_place_is_not_taken_for_the_unit(world: UnitsWorld) -> None:
    world.add()
    world.send()
    world.archive()
    world.add("second", path="/second")
    world.close()
    world.unmount()
    world.files.move(ARCHIVE, "/nothing", label="test")
    world.files.move("/second", ARCHIVE, label="test")
    world.restart()
    states = _states(world)
    assert "another unit, second" in states["archive"]
    assert states["second"]
    with pytest.raises(PeerUnavailable):
        world.images.open(ONE)


def test_without_its_cache_an_absent_unit_is_listed_from_its_replica(world: UnitsWorld) -> None:
    unit = world.add()
    world.send()
    world.archive()
    receiving = world.store.unit.backend
    for name in unit.backend.list("manifests"):
        data = unit.backend.get(f"manifests/{name}")
        receiving.put(f"replicas/{unit.unit_id}/manifests/{name}", [data], label="test")
    world.close()
    world.unmount()
    world.files.move(f"/state/cache/{unit.unit_id}", "/state/lost", label="test")
    world.restart()
    assert world.store.units.member("archive").unit is None
    assert sorted(world.places()) == [1, 2, 3, 4]
    with pytest.raises(PeerUnavailable, match="unit archive is absent"):
        world.images.open(ONE)
    assert world.target.read(BACKUPS[3]) == DISKS[4]
    world.mount()
    world.store.units.look_after()
    world.check()


def test_without_the_unit_that_takes_backups_the_target_does_not_start(world: UnitsWorld) -> None:
    world.send()
    world.close()
    world.unmount("/state/units/active")
    world.files = world.files.after_kill()
    with pytest.raises(PeerUnavailable, match="no storage unit"):
        world.open()
    world.files = world.files.after_kill()
    world.mount("/state/units/active")
    world.open()
    world.check()


# -- draining and retiring ----------------------------------------------------------------------


def test_an_archive_is_drained_and_retired(world: UnitsWorld) -> None:
    world.add()
    world.send()
    world.archive()
    with pytest.raises(WrongState, match="drain it first"):
        world.admin.retire("archive", lose_images=False)
    unit_id = world.store.units.member("archive").entry.unit_id
    done = world.admin.drain("archive")
    assert done.images_done == 3
    assert all(places == ["active"] for places in world.places().values())
    assert world.store.units.member("archive").entry.draining
    with pytest.raises(WrongState):
        world.archive()
    world.admin.retire("archive", lose_images=False)
    world.check()
    world.restart()
    assert _states(world) == {"active": ""}
    world.check()
    assert world.files.exists(f"{ARCHIVE}/unit.alu"), "its data stay"
    assert list(walk(DirectoryBackend(world.files, f"/state/cache/{unit_id}"))) == []


def test_a_drained_archive_prefers_another_archive(world: UnitsWorld) -> None:
    world.add()
    world.send()
    world.archive()
    world.add("second", path="/second")
    world.admin.drain("archive")
    assert world.places() == {1: ["second"], 2: ["second"], 3: ["second"], 4: ["active"]}
    world.check()


def test_the_unit_that_takes_backups_gives_way_to_another(world: UnitsWorld) -> None:
    world.send()
    _publish_backup(world, 1, 1, 2)
    with pytest.raises(WrongState, match="only active"):
        world.admin.drain("active")
    with pytest.raises(WrongState, match="takes the backups"):
        world.admin.retire("active", lose_images=True)
    unfinished = GrantRequest(TransferId("9" * 32), PEER, "", "disk", None, no_base=True)
    grant = world.transfers.create_grant(unfinished)
    based = replace(unfinished, transfer_id=TransferId("8" * 32), no_base=False)
    assert world.transfers.create_grant(based)[1] == FOUR
    new = world.add("new", Role.ACTIVE, "/new")
    assert world.admin.drain("active").images_done == 4
    assert world.store.unit is new
    assert all(places == ["new"] for places in world.places().values())
    assert [key.backup_id for key in new.backups.keys()] == [backup(1).backup_id]  # noqa: SIM118
    assert world.transfers.create_grant(unfinished) == grant
    assert world.transfers.open_count == 1, "what builds on a base that moved is given up"
    assert not world.store.in_doubt
    world.admin.retire("active", lose_images=False)
    world.check()
    world.restart()
    assert world.store.unit.name == "new"
    world.send(Backup(5, DISKS[1], frozenset()))
    world.check(iter([1, 2, 3, 4]))
    assert world.target.read(Backup(5, DISKS[4], None)) == DISKS[4]


def test_an_absent_unit_takes_over_from_nobody_when_it_comes_back(world: UnitsWorld) -> None:
    """It is the next in turn: were the one after it receiving, its return would change that in mid-backup,
    and no promise would be looked up."""
    world.add("b", Role.ACTIVE, "/b")
    world.add("c", Role.ACTIVE, "/c")
    world.send(BACKUPS[0])
    world.close()
    world.unmount("/b")
    world.restart()
    with pytest.raises(PeerUnavailable, match="unit b is absent"):
        world.admin.drain("active")
    assert world.store.unit.name == "active"
    assert not world.store.units.member("active").entry.draining
    world.mount("/b")
    world.store.units.look_after()
    world.admin.drain("active")
    assert world.store.unit.name == "b"
    world.check()


def test_the_next_unit_has_every_key_before_it_takes_backups(world: UnitsWorld) -> None:
    """Else the first backup there would make a tenant a second key, and no start would bear that."""
    world.send(BACKUPS[0])
    world.store.keys.get_or_create("other")
    known = world.store.keys.all()
    new = world.add("new", Role.ACTIVE, "/new")
    world.store.receive_elsewhere("active")
    assert world.store.unit is new
    assert new.keys.all() == known
    world.store.seal_queue.submit = world.target._seal_at_once  # type: ignore[method-assign]


def test_an_attempt_is_fenced_when_another_unit_takes_over(world: UnitsWorld) -> None:
    world.send(BACKUPS[0])
    queue = world.store.seal_queue
    world.add("new", Role.ACTIVE, "/new")
    world.admin.drain("active")
    containers = world.store.units.member("active").opened().containers
    buffer = containers.acquire(tenant=world.store.keys.by_name("").tenant, key_id=b"k" * 8, kind=1)  # type: ignore[arg-type]
    refused: list[Exception | None] = []
    SealQueue.submit(queue, SealJob(buffer, Ticket(), lambda _, error: refused.append(error)))
    assert isinstance(refused[0], LeaseLost)
    assert containers.stats().buffers_in_use == 0


def test_a_drain_that_broke_off_is_repeated(world: UnitsWorld) -> None:
    world.add()
    world.send()
    world.archive()
    with world.store.unit.maintenance.begin("a survey"), pytest.raises(Conflict):
        world.admin.drain("archive")
    world.restart()
    assert world.store.units.member("archive").entry.draining
    assert world.admin.drain("archive").images_done == 3
    world.check()


def test_a_drain_that_is_repeated_takes_no_lock_from_a_backup(world: UnitsWorld) -> None:
    world.send(*BACKUPS[:2])
    _publish_backup(world, 1, 1, 2)
    old, new, one = world.store.unit, world.add("new", Role.ACTIVE, "/new"), backup(1).backup_id
    remove = old.backups.remove

    def refuse(_: object) -> None:
        raise PeerUnavailable("the disk went away")

    old.backups.remove = refuse  # type: ignore[method-assign, assignment]
    with pytest.raises(PeerUnavailable):
        world.admin.drain("active")
    until = world.lock_clock.now().time_ns + 10**15
    world.backups.lock_backup(one, until)
    old.backups.remove = remove  # type: ignore[method-assign]
    world.admin.drain("active")
    assert new.backups.key(one).lock_until_ns == until
    assert not old.backups.has(one)


def test_a_unit_to_which_an_image_is_moved_is_not_retired(world: UnitsWorld) -> None:
    """It looks empty until the image is published there, and is removed here a moment later."""
    unit = world.add()
    with unit.maintenance.begin("move"), pytest.raises(Conflict, match="move of unit"):
        world.admin.retire("archive", lose_images=False)
    world.admin.retire("archive", lose_images=False)


def test_a_unit_that_is_retired_while_it_is_opened_again_is_closed(
    world: UnitsWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add()
    world.send()
    world.archive()
    world.close()
    world.unmount()
    world.restart()
    units = world.store.units
    opened, fresh = units._opened_or_absent, []

    def retire_meanwhile(entry: UnitEntry) -> Member:
        fresh.append(opened(entry))
        world.admin.retire("archive", lose_images=True)
        return fresh[0]

    world.mount()
    monkeypatch.setattr(units, "_opened_or_absent", retire_meanwhile)
    units.look_after()
    assert _states(world) == {"active": ""}
    assert fresh[0].unit is not None
    with pytest.raises(WrongState, match="closed"):
        fresh[0].unit.index.add_containers([])


def test_a_unit_that_is_added_brings_no_cache_of_an_earlier_stay(world: UnitsWorld) -> None:
    """A removal of the cache that broke off leaves it with its mark of being whole."""
    unit_id = world.add().unit_id
    world.send()
    world.archive()
    kept = {name: world.files.read(f"/state/cache/{unit_id}/{name}") for name in ("whole.mark", "unit.alu")}
    world.close()
    world.unmount()
    world.restart()
    world.admin.retire("archive", lose_images=True)
    for name, data in kept.items():
        world.files.publish(f"/state/cache/{unit_id}/{name}", [data], label="test")
    world.mount()
    world.admin.add("archive", Role.ARCHIVE, ARCHIVE, "")
    assert sorted(world.places()) == [1, 2, 3, 4]
    world.check()


def test_an_absent_unit_is_given_up_only_on_demand_and_unlocked(world: UnitsWorld) -> None:
    world.add()
    world.send()
    until = world.lock_clock.now().time_ns + 10**15
    world.backups.lock_image(ONE, until)
    world.archive()
    world.close()
    world.unmount()
    world.restart()
    with pytest.raises(WrongState, match="would be lost"):
        world.admin.retire("archive", lose_images=False)
    with pytest.raises(WrongState, match="locked"):
        world.admin.retire("archive", lose_images=True)
    world.clock.pass_seconds(2 * 10**6)
    world.admin.retire("archive", lose_images=True)
    assert sorted(world.places()) == [4]
    with pytest.raises(NotFound):
        world.images.open(ImageId(ONE))


def test_a_registry_that_is_damaged_stops_the_start(world: UnitsWorld) -> None:
    world.close()
    world.files.corrupt("/state/units.alr", 60)
    world.files = world.files.after_kill()
    with pytest.raises(Corruption, match=r"units\.alr") as raised:
        world.open()
    assert "add the units again" in raised.value.next_step
    world.files = world.files.after_kill()
    world.files.move("/state/units.alr", "/state/damaged", label="test")
    world.open()
    assert _states(world) == {"active": ""}
