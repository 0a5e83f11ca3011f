"""A target with several units on a disk in memory, and the use cases that move things between them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from arraylift.ids import ImageId, UnitId
from dedup_target.backups import Backups
from dedup_target.lock_clock import LockClock
from dedup_target.move_images import MoveProgress, Mover
from dedup_target.storage_unit import StorageUnit
from dedup_target.superblock import Role
from dedup_target.unit_admin import UnitAdmin
from tests.fakes.disk import FakeFiles
from tests.fakes.index import MemorySegmentIndex
from tests.property.test_commit_states import FIRST, SECOND, Backup, Target
from tests.property.test_target_storage_crash import IndexDisk
from tests.unit.dedup_target.hand_clock import HandClock

ARCHIVE = "/archive"
DISKS = {1: FIRST, 2: SECOND, 3: FIRST[: len(FIRST) // 2], 4: SECOND}
BACKUPS = [Backup(number, disk, None) for number, disk in DISKS.items()]
"""Four full backups of one disk: the newest never moves."""


class IndexDisks:
    """What each unit's index keeps."""

    def __init__(self) -> None:
        self.disks: dict[UnitId, IndexDisk] = {}

    def __call__(self, unit_id: UnitId) -> IndexDisk:
        return self.disks.setdefault(unit_id, IndexDisk(MemorySegmentIndex()))

    def after_crash(self, *, lost: bool = False) -> IndexDisks:
        """Another process's view of what was durable, or of nothing."""
        other = IndexDisks()
        if not lost:
            other.disks = {
                unit_id: IndexDisk(disk.batches[-1].copy()) for unit_id, disk in self.disks.items()
            }
        return other


class UnitsWorld:
    """One target; ``restart`` makes the next process's."""

    def __init__(self, files: FakeFiles | None = None, indexes: IndexDisks | None = None) -> None:
        self.files = files or FakeFiles()
        self.indexes = indexes or IndexDisks()
        self.clock = HandClock()
        self.open()

    def open(self) -> None:
        self.target = Target(self.files, self.indexes)
        self.store, self.images = self.target.store, self.target.images
        assert self.target.transfers is not None
        self.transfers = self.target.transfers
        self.lock_clock = LockClock(self.files, "/state", self.clock, newest_image_ns=None)
        self.backups = Backups(self.store, self.images, self.lock_clock)
        self.mover = Mover(
            self.store, self.images, bases=lambda: self.transfers.bases, clock=self.target.clock
        )
        self.admin = UnitAdmin(
            self.store,
            self.images,
            backups=self.backups,
            transfers=self.transfers,
            mover=self.mover,
            lock_clock=self.lock_clock,
        )

    def restart(self, files: FakeFiles | None = None) -> None:
        """Another process, on this disk or what a crash left of it."""
        self.close()
        self.files = files or self.files.after_kill()
        self.indexes = self.indexes.after_crash()
        self.open()

    def close(self) -> None:
        self.target.end_threads()

    # -- doing ------------------------------------------------------------------------------

    def send(self, *backups: Backup) -> None:
        for backup in backups or BACKUPS:
            self.target.send(backup)

    def add(self, name: str = "archive", role: Role = Role.ARCHIVE, path: str = ARCHIVE) -> StorageUnit:
        self.files.make_dirs(path)
        return self.admin.add(name, role, path, "").opened()

    def archive(self, *image_ids: ImageId, **options: object) -> MoveProgress:
        if not image_ids:
            options.setdefault("older_than_seconds", 0)
        return self.mover.archive("", image_ids=image_ids, **options)  # type: ignore[arg-type]

    def unmount(self, path: str = ARCHIVE) -> None:
        """The place is an empty directory from now on."""
        self.files.move(path, f"{path}.away", label="test")
        self.files.make_dirs(path)

    def mount(self, path: str = ARCHIVE) -> None:
        """It is back."""
        self.files.move(path, f"{path}.empty", label="test")
        self.files.move(f"{path}.away", path, label="test")

    # -- looking ----------------------------------------------------------------------------

    def places(self) -> dict[int, list[str]]:
        """Which units hold each image, by its number."""
        manifests = self.store.manifests
        return {
            int(image.image_id, 16): [one.entry.name for one in manifests.holders(image.image_id)]
            for image in manifests.all()
        }

    def check(self, numbers: Iterator[int] | None = None, where: str = "") -> None:
        """Every image that exists reads back."""
        for number in numbers or self.places():
            assert self.target.read(Backup(number, DISKS[number], None)) == DISKS[number], where

    def interrupted(self) -> threading.Event:
        event = threading.Event()
        event.set()
        return event
