"""Backup manifests: the word that makes a backup exist, and the order in which things go."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from arraylift.durable import Files, RealFiles
from arraylift.envelope import canonical_json, decode_json
from arraylift.envelope import encode as envelope_encode
from arraylift.errors import (
    AlreadyExists,
    ArrayliftError,
    Corruption,
    InvalidRequest,
    NotFound,
    WrongState,
)
from arraylift.failpoints import Failpoints
from arraylift.ids import ImageId
from dedup_target import backup_manifest_format as form
from dedup_target import manifest_format
from dedup_target.backup_manifest_format import BackupId
from dedup_target.backup_manifest_store import BackupManifestStore
from dedup_target.backups import Backups
from dedup_target.directory_backend import DirectoryBackend
from dedup_target.lock_clock import DAY_NS, LockClock
from dedup_target.manifest_store import ManifestStore
from dedup_target.reserve import Reserve
from tests.unit.dedup_target.hand_clock import START_NS, HandClock
from tests.unit.dedup_target.material import TENANT, backup, manifest, toy_sealer


class _Images(ManifestStore):
    """Of a target with one unit."""

    def check_reachable(self, image_id: ImageId) -> None:
        """It always is."""


class Rig:
    """Both stores of one directory, under the use case; no index or containers are needed."""

    def __init__(self, path: Path, *, files: Files | None = None, clock: HandClock | None = None) -> None:
        self.failpoints = Failpoints()
        files = files or RealFiles(self.failpoints)
        backend = DirectoryBackend(files, str(path))
        self.images = _Images(backend, toy_sealer)
        self.manifests = BackupManifestStore(backend, toy_sealer)
        self.forgotten: list[str] = []
        tenant = SimpleNamespace(tenant=TENANT, name="default")
        store: Any = SimpleNamespace(
            manifests=self.images,
            keys=SimpleNamespace(by_name=lambda _name: tenant),
            backups=self.manifests,
            commit_lock=threading.RLock(),
            reserve=Reserve(files, str(path)),
        )
        reader: Any = SimpleNamespace(forget=self.forgotten.append)
        self.clock = clock or HandClock()
        self.lock_clock = LockClock(files, str(path), self.clock, newest_image_ns=None)
        self.backups = Backups(store, reader, self.lock_clock)

    def image_numbers(self) -> list[int]:
        return sorted(int(image.image_id, 16) for image in self.images.all())


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    made = Rig(tmp_path)
    for number in (1, 2, 3):
        made.images.publish(manifest(number))
    return made


def image(number: int) -> ImageId:
    return ImageId(f"{number:032x}")


def test_what_is_published_is_there_after_a_restart(rig: Rig, tmp_path: Path) -> None:
    rig.backups.publish(backup(1))
    rig.backups.publish(backup(1))
    for one in (rig, Rig(tmp_path)):
        assert one.backups.page(10, "") == ([backup(1)], "")
        assert one.manifests.damaged_names == []


def test_another_content_under_the_same_id_is_refused(rig: Rig) -> None:
    rig.backups.publish(backup(1))
    with pytest.raises(AlreadyExists):
        rig.backups.publish(backup(1, images=(3,)))
    assert rig.manifests.read(backup(1).backup_id) == backup(1)


def test_a_backup_needs_its_images(rig: Rig) -> None:
    with pytest.raises(NotFound, match=image(9)):
        rig.backups.publish(backup(1, images=(1, 9)))
    foreign = replace(manifest(8), tenant=manifest(8).tenant + 1)  # type: ignore[arg-type]
    rig.images.publish(foreign)
    with pytest.raises(NotFound):
        rig.backups.publish(backup(1, images=(8,)))
    assert rig.backups.page(10, "") == ([], "")


def test_removal_takes_the_images_that_no_other_backup_names(rig: Rig) -> None:
    rig.backups.publish(backup(1, images=(1, 2)))
    rig.backups.publish(backup(2, images=(2, 3)))
    rig.backups.remove(backup(1).backup_id)
    assert rig.image_numbers() == [2, 3]
    assert rig.forgotten == [image(1)]
    with pytest.raises(NotFound):
        rig.backups.remove(backup(1).backup_id)


def test_an_image_that_a_backup_names_stays(rig: Rig) -> None:
    rig.backups.publish(backup(1, images=(1, 2)))
    with pytest.raises(WrongState, match=f"backup {backup(1).backup_id} names"):
        rig.backups.delete_image(image(1))
    rig.backups.delete_image(image(3))
    assert rig.image_numbers() == [1, 2]
    with pytest.raises(NotFound):
        rig.backups.delete_image(image(3))


def test_a_locked_image_and_its_backup_stay_until_the_lock_ends(rig: Rig, tmp_path: Path) -> None:
    until = START_NS + 10 * DAY_NS
    rig.backups.publish(backup(1, images=(1, 2)))
    rig.backups.lock_image(image(3), until)
    rig.backups.lock_backup(backup(1).backup_id, until)
    again = Rig(tmp_path)
    locked = replace(backup(1, images=(1, 2)), lock_until_ns=until)
    assert again.manifests.read(backup(1).backup_id) == locked
    assert {one.lock_until_ns for one in again.images.all()} == {until}
    for one in (rig, again):
        with pytest.raises(WrongState, match="locked until 2026"):
            one.backups.remove(backup(1).backup_id)
        with pytest.raises(WrongState, match="locked until 2026"):
            one.backups.delete_image(image(3))
        assert one.image_numbers() == [1, 2, 3]
    rig.backups.publish(backup(1, images=(1, 2)))  # a replay changes nothing
    assert rig.manifests.read(backup(1).backup_id) == locked
    rig.clock.pass_seconds(10 * 86_400)
    rig.backups.remove(backup(1).backup_id)
    rig.backups.delete_image(image(3))
    assert rig.image_numbers() == []


def test_one_locked_image_keeps_its_backup(rig: Rig) -> None:
    rig.backups.publish(backup(1, images=(1, 2)))
    rig.backups.lock_image(image(2), START_NS + DAY_NS)
    with pytest.raises(WrongState, match="locked"):
        rig.backups.remove(backup(1).backup_id)
    assert rig.image_numbers() == [1, 2, 3]


def test_a_lock_only_grows(rig: Rig) -> None:
    rig.backups.publish(backup(1, images=(1, 2)))
    rig.backups.lock_image(image(1), START_NS + 5 * DAY_NS)
    rig.backups.lock_image(image(1), START_NS + 5 * DAY_NS)
    with pytest.raises(WrongState, match="never shortened"):
        rig.backups.lock_image(image(1), START_NS + 4 * DAY_NS)
    with pytest.raises(WrongState, match="never shortened"):
        rig.backups.lock_backup(backup(1).backup_id, START_NS + 4 * DAY_NS)
    assert rig.images.get(image(2)).lock_until_ns is None, "all of it or nothing"
    for absurd in (START_NS, 0, -1, START_NS + 40_000 * DAY_NS):
        with pytest.raises(InvalidRequest):
            rig.backups.lock_image(image(3), absurd)
    with pytest.raises(NotFound):
        rig.backups.lock_image(image(9), START_NS + DAY_NS)


def test_while_a_manifest_cannot_be_read_no_image_goes(rig: Rig, tmp_path: Path) -> None:
    rig.backups.publish(backup(1, images=(1, 2)))
    rig.backups.publish(backup(2, images=(3,)))
    path = tmp_path / "backups" / f"{backup(1).backup_id}.alb"
    path.write_bytes(path.read_bytes()[:-1])
    (tmp_path / "backups" / "README").write_text("hello")
    again = Rig(tmp_path)
    assert again.manifests.damaged_names == [path.name, "README"]
    with pytest.raises(WrongState, match="cannot be read"):
        again.backups.delete_image(image(1))
    again.backups.remove(backup(2).backup_id)
    assert again.image_numbers() == [1, 2, 3]
    assert path.exists()


def test_pages_are_newest_first_and_bounded(rig: Rig) -> None:
    for number, at_ns in ((1, 50), (2, 70), (3, 70), (4, 60)):
        rig.backups.publish(backup(number, at_ns=at_ns))
    seen, token = [], ""
    while True:
        page, token = rig.backups.page(3, token)
        seen += [int(one.backup_id, 16) for one in page]
        if not token:
            break
    assert seen == [3, 2, 4, 1]
    with pytest.raises(InvalidRequest):
        rig.backups.page(3, "x.y")


def test_a_page_fits_into_a_message(rig: Rig) -> None:
    for number in (1, 2, 3, 4):
        rig.backups.publish(replace(backup(number), attributes=bytes(form.ATTRIBUTES_BYTES_MAX)))
    first, token = rig.backups.page(10, "")
    second, end = rig.backups.page(10, token)
    assert (len(first), len(second), end) == (2, 2, "")


def test_every_flipped_bit_is_an_error() -> None:
    data = form.encode(backup(1), toy_sealer)
    for place in range(len(data) * 8):
        content = bytearray(data)
        content[place // 8] ^= 1 << place % 8
        with pytest.raises(ArrayliftError):
            form.decode(bytes(content), toy_sealer, what="manifest")


def test_an_image_manifest_never_passes_for_a_backup() -> None:
    body = canonical_json(form._to_fields(backup(1)))
    sealed_as_image = envelope_encode(form.MAGIC, body, toy_sealer(TENANT, body))
    with pytest.raises(Corruption, match="seal"):
        form.decode(sealed_as_image, toy_sealer, what="manifest")
    with pytest.raises(Corruption):
        form.decode(manifest_format.encode(manifest(1), toy_sealer), toy_sealer, what="manifest")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("backup_id", "../../etc/passwd"),
        ("vm_id", ""),
        ("vm_name", "a/b"),
        ("tenant_name", 7),
        ("images", []),
        ("images", [["disk0", "0" * 32], ["disk1", "0" * 32]]),
        ("images", [["disk0", "0" * 32], ["disk0", "1" * 32]]),
        ("images", [["disk0"]]),
        ("attributes", "no base64!"),
        ("snapshot_at_ns", True),
        ("snapshot_at_ns", 1 << 64),
    ],
)
def test_senseless_fields_are_corruption(field: str, value: object) -> None:
    fields = decode_json(form.MAGIC, form.encode(backup(1), toy_sealer), what="m", keys=form._KEYS)
    fields[field] = value
    body = canonical_json(fields)
    with pytest.raises(Corruption):
        form.decode(
            envelope_encode(form.MAGIC, body, toy_sealer(TENANT, form.MAGIC + body)), toy_sealer, what="m"
        )


@pytest.mark.parametrize(
    "change",
    [
        lambda one: replace(one, images=()),
        lambda one: replace(one, images=tuple((f"d{at}", image(at)) for at in range(65))),
        lambda one: replace(one, attributes=bytes(form.ATTRIBUTES_BYTES_MAX + 1)),
        lambda one: replace(one, vm_name="../x"),
        lambda one: replace(one, backup_id=BackupId("x")),
    ],
)
def test_limits_are_checked_before_anything_is_written(
    rig: Rig, change: Callable[[form.BackupManifest], form.BackupManifest]
) -> None:
    with pytest.raises(InvalidRequest):
        rig.backups.publish(change(backup(1)))
    assert rig.backups.page(10, "") == ([], "")
