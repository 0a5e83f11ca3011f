"""The disk is full from some write on, whichever: nothing false is said, what is there is read and
deleted, damage is recorded, and when there is room all goes on in the same process."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterable

import pytest

from arraylift.errors import Corruption, NotFound, OutOfSpace
from arraylift.sizes import KIB
from dedup_target.backups import Backups
from dedup_target.lock_clock import LockClock
from dedup_target.reserve import Reserve
from tests.fakes.disk import FakeFiles
from tests.property.test_commit_states import BACKUPS, Backup, Notes, Target

STRIDE = 8
LOW_WATER_BYTES = 512 * KIB


class Small:
    """A target with a ballast, and what it acknowledged."""

    def __init__(self, files: FakeFiles) -> None:
        self.files = files
        files.make_dirs("/state")
        reserve = Reserve(files, "/state", low_water_bytes=LOW_WATER_BYTES)
        self.target = Target(files, Notes().disk, reserve=reserve)
        self.store = self.target.store
        self.store.reserve.tend()
        assert files.exists("/state/ballast")
        lock_clock = LockClock(files, "/state", self.target.clock, newest_image_ns=None)
        self.backups = Backups(self.store, self.target.images, lock_clock)
        self.done: list[Backup] = []
        self.refused = 0

    def send_all(self) -> None:
        for backup in BACKUPS:
            if backup in self.done:
                continue
            try:
                self.target.send(backup)
                self.done.append(backup)
            except OutOfSpace:
                self.refused += 1
                return

    def check_reads(self, where: str) -> None:
        assert {one.image_id for one in self.store.manifests.all()} == {one.image_id for one in self.done}, (
            where
        )
        for backup in self.done:
            assert self.target.read(backup) == backup.disk, where

    def close(self) -> None:
        self.target.end_threads()


def _op_count() -> int:
    files = FakeFiles()
    small = Small(files)
    start = files.op_count
    small.send_all()
    small.close()
    assert small.done == BACKUPS
    return files.op_count - start


def _fill_up(places: Iterable[int]) -> None:
    refused = 0
    for at in places:
        files = FakeFiles()
        small = Small(files)
        try:
            files.fill_after(at)
            small.send_all()
            where = f"full from change {at} on, {len(small.done)} done"
            small.check_reads(where)
            small.send_all()
            small.check_reads(where)
            refused += small.refused
            while len(small.done) > 1:  # deletion goes on
                small.backups.delete_image(small.done.pop().image_id)
                small.check_reads(where)
            _damage_is_recorded(small, where)
            for backup in small.done:
                small.backups.delete_image(backup.image_id)
            small.done.clear()
            files.set_capacity(None)
            small.store.reserve.tend()
            assert files.exists("/state/ballast"), f"{where}: it comes back"
            _forget_receipts(small)
            small.send_all()
            assert small.done == BACKUPS, where
            small.check_reads(where)
        finally:
            small.close()
    assert refused > 0


def _damage_is_recorded(small: Small, where: str) -> None:
    if not small.done:
        return
    store = small.store
    container = store.containers.containers()[0]
    first = store.containers.read_directory(container).directory[0]
    record = [first["fingerprint"].tobytes()]
    tenant = store.keys.by_name("").tenant
    store.unit.condemn_records(container, tenant, record, "test")
    assert small.files.exists(f"/state/units/active/quarantine/{container:016x}.alq"), where
    with pytest.raises(Corruption):
        store.unit.locate(tenant, record)


def _forget_receipts(small: Small) -> None:
    """A committed transfer answers its receipt for ever; its image is gone, so ask anew."""
    assert small.target.transfers is not None
    for backup in BACKUPS:
        with contextlib.suppress(NotFound):
            transfer = small.target.transfers._known(backup.transfer_id)
            small.target.transfers._forget(transfer)


@pytest.mark.parametrize("phase", [secrets.randbelow(STRIDE)])
def test_a_disk_that_fills_up_stops_transfers_and_nothing_else(phase: int) -> None:
    _fill_up(range(phase, _op_count(), STRIDE))


@pytest.mark.campaign
def test_a_disk_that_fills_up_at_every_change() -> None:
    _fill_up(range(_op_count()))
