"""Every unit keeps the others' manifests and keys: what one lost comes back, what was removed does not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from arraylift.errors import OutOfSpace
from dedup_target.directory_backend import DirectoryBackend
from dedup_target.rebuild_unit import RebuildNews, UnitRebuilder
from dedup_target.replica_view import ReplicaBackend
from dedup_target.superblock import Role
from dedup_target.unit_backend import UnitBackend, walk
from tests.unit.dedup_target.material import backup
from tests.unit.dedup_target.units_world import ARCHIVE, BACKUPS, UnitsWorld

ONE, TWO, THREE, FOUR = (one.image_id for one in BACKUPS)


@pytest.fixture
def world() -> Iterator[UnitsWorld]:
    """Images one to three in the archive, four and a backup in the first unit."""
    made = UnitsWorld()
    made.add()
    made.send()
    made.archive()
    tenant = made.store.keys.by_name("default")
    made.backups.publish(replace(backup(1, images=(1, 4)), tenant=tenant.tenant, tenant_name=tenant.name))
    yield made
    made.close()


def _keep(world: UnitsWorld) -> None:
    world.store.replicas.catch_up(threading.Event())


def _replica(world: UnitsWorld, of: str, by: str) -> UnitBackend:
    units = world.store.units
    return ReplicaBackend(units.member(by).opened().backend, units.member(of).entry.unit_id)


def _content(place: UnitBackend) -> dict[str, bytes]:
    return {name: place.get(name) for name in walk(place)}


def _own(world: UnitsWorld, name: str) -> dict[str, bytes]:
    """What of a unit is to be replicated."""
    backend = world.store.units.member(name).opened().backend
    folders = ("manifests", "backups", "keys")
    names = ["unit.alu", *(f"{folder}/{one}" for folder in folders for one in backend.list(folder))]
    return {one: backend.get(one) for one in names}


def _check_level(world: UnitsWorld) -> None:
    for of, by in (("active", "archive"), ("archive", "active")):
        assert _content(_replica(world, of, by)) == _own(world, of)


def _rebuild(world: UnitsWorld, name: str) -> RebuildNews:
    news: list[RebuildNews] = []
    unit = world.store.units.member(name).opened()
    return UnitRebuilder(world.store, world.images).rebuild(
        unit, report=news.append, cancelled=threading.Event()
    )


def test_replicas_follow_every_change(world: UnitsWorld) -> None:
    _keep(world)
    _check_level(world)
    world.backups.delete_image(TWO)
    world.backups.lock_image(ONE, world.lock_clock.now().time_ns + 10**15)
    world.store.keys.get_or_create("acme")
    _keep(world)
    _check_level(world)
    assert "manifests/" + TWO + ".alm" not in _content(_replica(world, "archive", "active"))
    assert world.store.replica_journal.removed(world.store.units.member("archive").entry.unit_id) == set()


def test_changes_are_copied_alone_and_all_after_a_restart(world: UnitsWorld) -> None:
    _keep(world)
    replica = _replica(world, "archive", "active")
    replica.remove(f"manifests/{ONE}.alm", label="test")
    _keep(world)
    assert not replica.exists(f"manifests/{ONE}.alm"), "what did not change is not looked at"
    world.restart()
    _keep(world)
    _check_level(world)


def test_what_a_unit_lost_its_replicas_keep_and_give_back(world: UnitsWorld) -> None:
    _keep(world)
    world.close()
    files = world.files.after_kill()
    archive = "/archive"
    cache = f"/state/cache/{world.store.units.member('archive').entry.unit_id}"
    for folder in (archive, cache):
        files.move(f"{folder}/manifests", f"{folder}.lost-manifests", label="test")
        files.move(f"{folder}/keys", f"{folder}.lost-keys", label="test")
    world.restart(files)
    assert sorted(world.places()) == [4]
    _keep(world)
    news = _rebuild(world, "archive")
    assert news.done
    assert news.manifests_restored == 4
    assert sorted(world.places()) == [1, 2, 3, 4]
    world.check()
    world.restart()
    world.check()
    _keep(world)
    _check_level(world)


def test_the_unit_that_takes_backups_gets_its_own_back(world: UnitsWorld) -> None:
    _keep(world)
    world.close()
    files = world.files.after_kill()
    for name in (f"manifests/{FOUR}.alm", f"backups/{backup(1).backup_id}.alb"):
        files.corrupt(f"/state/units/active/{name}", 40)
    world.restart(files)
    assert len(world.store.manifests.damaged) == len(world.store.backups.damaged_names) == 1
    assert sorted(world.places()) == [1, 2, 3]
    news = _rebuild(world, "active")
    assert news.manifests_restored == 2
    assert world.store.manifests.damaged == []
    assert world.store.backups.damaged_names == []
    assert not world.store.in_doubt
    assert world.store.backups.key(backup(1).backup_id).image_ids == (ONE, FOUR)
    world.check()


def test_what_was_removed_does_not_come_back(world: UnitsWorld) -> None:
    _keep(world)
    world.backups.delete_image(TWO)
    assert _rebuild(world, "archive").manifests_restored == 0
    world.restart()
    assert _rebuild(world, "archive").manifests_restored == 0
    assert sorted(world.places()) == [1, 3, 4]
    _keep(world)
    _check_level(world)


def test_a_removal_that_did_not_happen_leaves_no_mark(world: UnitsWorld) -> None:
    unit_id = world.store.units.member("archive").entry.unit_id
    journal = world.store.replica_journal
    journal.removing(unit_id, f"manifests/{ONE}.alm")
    _keep(world)
    assert journal.removed(unit_id) == {f"manifests/{ONE}.alm"}, "it may still be under way"
    world.restart()
    assert world.store.replica_journal.removed(unit_id) == set()
    _keep(world)
    _check_level(world)


def test_an_image_whose_root_is_gone_is_not_restored(world: UnitsWorld) -> None:
    _keep(world)
    unit = world.store.units.member("archive").opened()
    image = unit.manifests.get(TWO)
    (root,) = unit.locate(image.tenant, [image.root])
    unit.condemn_records(root.container, image.tenant, [image.root], "test")
    unit.backend.inner.remove(f"manifests/{TWO}.alm", label="test")  # type: ignore[attr-defined]
    world.restart()
    assert _rebuild(world, "archive").manifests_restored == 0
    assert sorted(world.places()) == [1, 3, 4]


def test_an_absent_unit_is_brought_up_to_date_when_it_is_back(world: UnitsWorld) -> None:
    _keep(world)
    world.unmount()
    world.store.units.look_after()
    world.store.keys.get_or_create("acme")
    _keep(world)
    world.mount()
    world.store.units.look_after()
    _keep(world)
    _check_level(world)


def test_a_holder_that_refuses_is_tried_again(world: UnitsWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    _keep(world)
    backend = world.store.units.member("archive").opened().backend
    put = backend.put

    def refuse(name: str, parts: list[bytes], *, label: str) -> None:
        if name.startswith("replicas/"):
            raise OutOfSpace("full")
        put(name, parts, label=label)

    monkeypatch.setattr(backend, "put", refuse)
    world.store.keys.get_or_create("acme")
    _keep(world)
    monkeypatch.undo()
    _keep(world)
    _check_level(world)


def test_a_lost_target_is_rebuilt_from_its_units(world: UnitsWorld) -> None:
    """The state directory is gone, but for the wrapping key from its safe copy."""
    world.close()
    files = world.files.after_kill()
    files.move("/state", "/lost", label="test")
    files.make_dirs("/state")
    files.publish("/state/wrapping.key", [files.read("/lost/wrapping.key")], label="test")
    world.indexes.disks.clear()
    world.restart(files)
    assert world.places() == {}

    world.admin.add("old", Role.ACTIVE, "/lost/units/active", "")
    world.admin.add("archive", Role.ARCHIVE, "/archive", "")
    assert world.places() == {1: ["archive"], 2: ["archive"], 3: ["archive"], 4: ["old"]}
    assert world.store.backups.key(backup(1).backup_id).image_ids == (ONE, FOUR)
    world.check()
    assert world.admin.drain("old").images_done == 1
    world.check()


def test_what_a_crash_left_half_copied_is_swept(world: UnitsWorld) -> None:
    _keep(world)
    unit_id = world.store.units.member("archive").entry.unit_id
    folder = f"/state/units/active/replicas/{unit_id}"
    world.close()
    world.files = world.files.after_kill()
    for path in (f"{folder}/unit.alu.7.tmp", f"{folder}/manifests/{ONE}.alm.8.tmp"):
        world.files.append_file(path, label="test").close()
    world.restart()
    assert world.store.unit.report.swept_files == 2


def test_a_retired_unit_leaves_no_replica(world: UnitsWorld) -> None:
    _keep(world)
    replica = _replica(world, "archive", "active")
    assert _content(replica)
    world.admin.drain("archive")
    _keep(world)
    world.admin.retire("archive", lose_images=False)
    assert _content(replica) == {}


def test_a_retired_unit_keeps_no_replicas_either(world: UnitsWorld) -> None:
    """Added again, it would bring back what was deleted while it was not one of ours."""
    _keep(world)
    world.admin.drain("archive")
    world.admin.retire("archive", lose_images=False)
    assert list(walk(DirectoryBackend(world.files, ARCHIVE), "replicas")) == []


def test_an_image_that_came_back_is_kept_by_replicas_when_it_is_lost(world: UnitsWorld) -> None:
    """It was removed on purpose once: moved away."""
    world.admin.drain("archive")
    unit_id = world.store.unit.unit_id
    assert not world.store.replica_journal.removed(unit_id)
    _keep(world)
    world.close()
    files = world.files.after_kill()
    files.move(f"/state/units/active/manifests/{ONE}.alm", "/lost", label="test")
    world.restart(files)
    _keep(world)
    assert _rebuild(world, "active").manifests_restored == 1
    assert sorted(world.places()) == [1, 2, 3, 4]


def test_of_two_copies_the_longer_lock_is_restored(world: UnitsWorld) -> None:
    """One holder was away when the lock grew."""
    world.add("second", path="/second")
    _keep(world)
    older = {by: _content(_replica(world, "active", by)) for by in ("archive", "second")}
    until = world.lock_clock.now().time_ns + 10**15
    world.backups.lock_backup(backup(1).backup_id, until)
    _keep(world)
    names = (f"manifests/{FOUR}.alm", f"backups/{backup(1).backup_id}.alb")
    for name, by in zip(names, older, strict=True):
        _replica(world, "active", by).put(name, [older[by][name]], label="test")
    world.close()
    files = world.files.after_kill()
    for name in names:
        files.corrupt(f"/state/units/active/{name}", 40)
    world.restart(files)
    assert _rebuild(world, "active").manifests_restored == 2
    assert world.store.manifests.get(FOUR).lock_until_ns == until
    assert world.store.backups.key(backup(1).backup_id).lock_until_ns == until
