"""Backups as the server knows them: the cache, deletion, verification, files."""

from __future__ import annotations

import pytest

from arraylift import errors
from backup_server.image_access import BLOCK_BYTES, BLOCKS_MAX, RemoteImage
from backup_server.job_rules import JobState
from backup_server.model import PeerKind
from tests.fakes.backup_server import Rig
from tests.fakes.world import Fault
from tests.fakes.world_array import SPAN


def ids(rig: Rig) -> list[str]:
    return [one.backup_id for one in rig.server.backups.all()]


def test_a_lost_database_is_read_from_the_target(rig: Rig) -> None:
    made = [rig.back_up() for _ in range(5)]
    for one in made:
        rig.server.db.forget_backup(one.backup_id)
    assert rig.server.backups.get(made[2].backup_id) == made[2], "all of it is in the manifest"
    assert rig.server.backups.all() == made[::-1]


def test_rows_follow_the_targets(rig: Rig) -> None:
    first, second = rig.back_up(), rig.back_up()
    rig.world.manifests.pop(first.backup_id)
    rig.server.backups.sync()
    assert ids(rig) == [second.backup_id]
    rig.world.fault("ListBackupManifests", "fail")
    rig.world.manifests.clear()
    rig.server.backups.sync()
    assert ids(rig) == [second.backup_id], "a target that does not answer says nothing"


def test_one_unreadable_manifest_hides_no_other(rig: Rig) -> None:
    first, second = rig.back_up(), rig.back_up()
    rig.world.manifests[first.backup_id].attributes = b"\xff\xff"
    rig.server.backups.sync()
    assert ids(rig) == [second.backup_id]


def test_the_manifest_of_a_job_that_failed_is_no_backup(rig: Rig) -> None:
    job_id = rig.order_backup()
    rig.world.fault("PublishBackup", Fault("lost", errors.Corruption("no")))
    rig.world.fault("DeleteBackupManifest", *["fail"] * 10_000)
    assert rig.run(job_id).job.state is JobState.FAILED
    assert list(rig.world.manifests) == [job_id]
    rig.server.backups.sync()
    assert ids(rig) == []
    rig.world.faults.clear()
    rig.sweep()
    assert rig.world.manifests == {}
    assert rig.world.leftovers() == []


def test_deletion_removes_manifest_and_images(rig: Rig) -> None:
    first, second = rig.back_up(), rig.back_up()
    rig.server.backups.delete(first.backup_id)
    assert ids(rig) == list(rig.world.manifests) == [second.backup_id]
    assert set(rig.world.images) == {disk.image_id for disk in second.disks}
    with pytest.raises(errors.NotFound):
        rig.server.backups.delete(first.backup_id)


@pytest.mark.parametrize("method", ["DeleteBackupManifest", "DeleteImage"])
@pytest.mark.parametrize("kind", ["fail", "lost"])
def test_a_deletion_that_was_cut_is_finished_later(rig: Rig, method: str, kind: str) -> None:
    backup = rig.back_up()
    rig.world.fault(method, kind)
    with pytest.raises(errors.PeerUnavailable):
        rig.server.backups.delete(backup.backup_id)
    assert ids(rig) == []
    rig.restart()
    rig.server.backups.sync()
    assert ids(rig) == [], "it does not come back"
    rig.server.backups.finish_deletes()
    assert rig.world.manifests == {}
    assert rig.world.images == {}
    assert rig.server.db.backups(deleting=True) == []


def test_verification_asks_the_target(rig: Rig) -> None:
    backup = rig.back_up()
    news = list(rig.server.backups.verify(backup.backup_id, 3600))
    assert [(one.disk_name, one.bytes_verified, one.bytes_total) for one in news] == [
        ("disk0", 0, 3 * SPAN),
        ("disk0", 3 * SPAN // 4, 3 * SPAN),
        ("disk0", 3 * SPAN, 3 * SPAN),
        ("disk1", 0, 4 * SPAN),
        ("disk1", SPAN, 4 * SPAN),
        ("disk1", 4 * SPAN, 4 * SPAN),
    ]
    assert (news[-1].oldest_check_at_ns, news[-1].bytes_read) == (7, 0)
    assert list(rig.server.backups.verify(backup.backup_id, 0))[-1].bytes_read == SPAN
    rig.world.damaged_images.add(backup.disks[1].image_id)
    with pytest.raises(errors.Corruption, match=r"12 spans .* of disk1 are damaged: 0, 1, .*7, \.\.\."):
        list(rig.server.backups.verify(backup.backup_id, 0))


def test_a_target_that_ends_without_a_verdict_vouches_for_nothing(rig: Rig) -> None:
    backup = rig.back_up("db1")
    rig.world.fault("VerifyImage", Fault("cut"))
    with pytest.raises(errors.PeerUnavailable):
        list(rig.server.backups.verify(backup.backup_id, 0))


def test_a_lock_is_shown_kept_and_refuses_deletion(rig: Rig) -> None:
    backup = rig.back_up("db1")
    until = 10**19 // 2
    rig.server.backups.lock(backup.backup_id, until)
    assert rig.server.backups.get(backup.backup_id).lock_until_ns == until
    with pytest.raises(errors.WrongState, match="longer"):
        rig.server.backups.lock(backup.backup_id, until - 1)
    with pytest.raises(errors.WrongState, match="locked"):
        rig.server.backups.delete(backup.backup_id)
    assert ids(rig) == [backup.backup_id], "a refused deletion hides nothing"
    rig.world.manifests[backup.backup_id].lock_until_ns = 0  # the lock ends
    rig.restart()
    rig.server.backups.finish_deletes()
    assert ids(rig) == [backup.backup_id], "and is not done later by itself"
    rig.server.backups.sync()
    assert rig.server.backups.get(backup.backup_id).lock_until_ns == 0
    rig.server.backups.delete(backup.backup_id)
    assert ids(rig) == []


def test_a_locked_manifest_is_read_again_with_its_lock(rig: Rig) -> None:
    backup = rig.back_up("db1")
    rig.world.manifests[backup.backup_id].lock_until_ns = 5
    rig.server.db.forget_backup(backup.backup_id)
    assert rig.server.backups.get(backup.backup_id).lock_until_ns == 5


def test_the_time_is_confirmed_to_targets_that_lag(rig: Rig) -> None:
    rig.server.reaper.round()
    assert rig.world.count("ConfirmTime") == 0
    rig.world.clock_lags = True
    rig.server.reaper.round()
    rig.server.reaper.round()
    assert rig.world.count("ConfirmTime") == 1
    rig.world.fault("GetTargetStats", "fail")
    rig.server.backups.confirm_times()


def test_what_is_being_verified_is_not_deleted(rig: Rig) -> None:
    backup = rig.back_up()
    news = rig.server.backups.verify(backup.backup_id, 0)
    next(news)
    with pytest.raises(errors.WrongState, match="verification"):
        rig.server.backups.delete(backup.backup_id)
    news.close()
    rig.server.backups.delete(backup.backup_id)


# -- reading pieces of an image -----------------------------------------------------------------


def image_of(rig: Rig, content: bytes) -> RemoteImage:
    rig.world.images["a" * 32] = ("x", len(content))
    rig.world.image_content["a" * 32] = content
    target = rig.server.peers.target(rig.server.registry.find(PeerKind.TARGET, "target1"))
    return RemoteImage(target, "a" * 32, len(content))


def test_pieces_of_an_image_are_its_bytes(rig: Rig) -> None:
    content = b"".join(number.to_bytes(4, "big") for number in range(600_000)) + b"tail"
    image = image_of(rig, content)
    for offset, length in (
        *((0, 1), (5, 0), (BLOCK_BYTES - 1, 2), (3, 1 << 20), (len(content) - 9, 9)),
        *((0, len(content)), (len(content), 0)),
    ):
        assert image.read(offset, length) == content[offset : offset + length]
    for offset, length in ((-1, 2), (0, len(content) + 1), (len(content), 1)):
        with pytest.raises(errors.InvalidRequest):
            image.read(offset, length)


def test_blocks_are_read_once_and_bounded(rig: Rig) -> None:
    image = image_of(rig, bytes(40 << 20))
    image.read(0, 4 << 20)
    count = rig.world.count("ReadRange")
    assert count == 1
    for offset in range(0, 4 << 20, 4096):
        image.read(offset, 512)
    assert rig.world.count("ReadRange") == count
    image.read(0, 40 << 20)
    assert len(image._blocks) <= BLOCKS_MAX


def test_missing_bytes_are_never_zeros(rig: Rig) -> None:
    image = image_of(rig, b"x" * (2 << 20))
    rig.world.fault("ReadRange", "cut")
    with pytest.raises(errors.PeerUnavailable):
        image.read(0, 2 << 20)
    name, size = rig.world.images["a" * 32]
    rig.world.images["a" * 32] = (name, size)
    longer = RemoteImage(image._target, "a" * 32, (2 << 20) + 5)
    with pytest.raises(errors.ArrayliftError):
        longer.read(2 << 20, 5)
