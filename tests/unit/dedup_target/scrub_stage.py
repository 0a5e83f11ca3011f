"""A small target with images, and its scrub, for tests that damage it."""

from __future__ import annotations

import threading
from functools import partial

from arraylift.ids import ContainerId
from dedup_target.container_format import RECORD, Kind
from dedup_target.scrub import Scrub, ScrubNews
from dedup_target.verify_image import ImageVerifier, Verdict, lost_images
from tests.fakes.disk import FakeFiles
from tests.property.test_commit_states import BACKUPS, Backup, Notes, Target
from tests.property.test_target_storage_crash import IndexDisk
from tests.unit.dedup_target.hand_clock import HandClock

CONTAINERS = "/state/units/active/containers"


class ScrubStage:
    """Three images on a disk in memory. The scrub's clock is turned by hand."""

    def __init__(self, files: FakeFiles | None = None, disk: IndexDisk | None = None) -> None:
        self.files = files or FakeFiles()
        self.disk = disk or Notes().disk
        self.clock = HandClock()
        self.open()

    def open(self) -> None:
        self.target = Target(self.files, self.disk)
        self.store, self.images = self.target.store, self.target.images
        affected = partial(lost_images, self.store.unit)
        self.scrub = Scrub(self.store.unit, self.files, "/state", self.clock, affected=affected)
        self.verifier = ImageVerifier(self.store, lambda _: self.scrub, self.clock)

    def send(self, *backups: Backup) -> None:
        for backup in backups or BACKUPS:
            self.target.send(backup)

    def restart(self, *, kill: bool = True) -> None:
        """Another process on the same disk."""
        self.close()
        self.files = self.files.after_kill()
        self.clock = self.clock.another_process()
        self.open()

    def close(self) -> None:
        self.target.end_threads()

    # -- scrub ------------------------------------------------------------------------------

    def run(self, *, restart: bool = False, rate: int = 0) -> ScrubNews:
        return self.scrub.run(
            bytes_per_second_max=rate,
            restart=restart,
            stopping=threading.Event(),
            report=lambda _news: None,
        )

    def verify(self, backup: Backup, *, max_age_seconds: int = 0) -> Verdict:
        return self.verifier.verify(
            backup.image_id,
            max_age_seconds=max_age_seconds,
            cancelled=threading.Event(),
            report=lambda _verdict: None,
        )

    # -- damage -----------------------------------------------------------------------------

    def path(self, container: ContainerId) -> str:
        return f"{CONTAINERS}/{container >> 12:08x}/{container:016x}.alc"

    def containers(self, kind: Kind) -> list[ContainerId]:
        store = self.store.containers
        return [one for one in store.containers() if store.read_directory(one).kind is kind]

    def damage_record(self, container: ContainerId, slot: int) -> bytes:
        """Flip a bit of one record's stored bytes; returns its fingerprint."""
        row = self.store.containers.read_directory(container).directory[slot]
        self.files.corrupt(self.path(container), int(row["offset"]))
        self.forget_cache()
        fingerprint: bytes = row["fingerprint"].tobytes()
        return fingerprint

    def damage_everything(self, container: ContainerId) -> None:
        """Leave neither directory nor frame whole."""
        path = self.path(container)
        data = self.files.read(path)
        at = data.find(b"ALfr")
        while at >= 0:
            self.files.corrupt(path, at)
            at = data.find(b"ALfr", at + 1)
        self.files.corrupt(path, 0)
        self.forget_cache()

    def damage_directory(self, container: ContainerId) -> None:
        sealed = self.store.containers.read_directory(container)
        table = sealed.directory.tobytes()
        at = self.files.read(self.path(container)).rfind(table)
        self.files.corrupt(self.path(container), at + RECORD.itemsize // 2)
        self.forget_cache()

    def forget_cache(self) -> None:
        """What readers hold in memory is gone."""
        self.store.containers._cache.clear()
        self.store.containers._directories.clear()
        self.images._open.clear()
