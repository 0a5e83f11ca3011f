"""Parts of a target come back from different times: index, containers, manifests, the mark of ids given out.

Whatever the mixture, a start notices: images that are whole read bit-exact, the others say that they are
damaged, no base that may be damaged is believed in, and the next backup heals what it brings again.
"""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass

import pytest

from arraylift.errors import ArrayliftError, Corruption
from dedup_target.container_store import name_of
from dedup_target.doubt import settle_doubt
from tests.fakes.disk import FakeFiles
from tests.fakes.index import MemorySegmentIndex
from tests.property.test_commit_states import FIRST, SECOND, Backup, Target
from tests.property.test_target_storage_crash import IndexDisk

UNIT = "/state/units/active"
ONE, TWO = Backup(1, FIRST, None), Backup(2, SECOND, None)
AGAIN = Backup(9, SECOND, None)


@dataclass
class Moment:
    """What was on disk at one time."""

    files: FakeFiles
    index: MemorySegmentIndex
    containers: dict[str, bytes]
    high_water: bytes


def _moments() -> list[Moment]:
    """Empty, after the first backup, after the second; each closed in good order."""
    files, disk, found = FakeFiles(), IndexDisk(MemorySegmentIndex()), list[Moment]()
    for backup in (None, ONE, TWO):
        target = Target(files, disk)
        if backup:
            target.send(backup)
        names = [name_of(one) for one in target.store.containers.containers()]
        close_target(target)
        containers = {name: files.read(f"{UNIT}/{name}") for name in names}
        mark = files.read(f"{UNIT}/high-water.alu") if files.exists(f"{UNIT}/high-water.alu") else b""
        found.append(Moment(copy_of(files), disk.batches[-1].copy(), containers, mark))
    return found


def close_target(target: Target) -> None:
    target.end_threads()
    target.store.unit.close()
    target.store._lock.close()


def copy_of(files: FakeFiles) -> FakeFiles:
    """The same disk in another machine: all of it is synced."""
    return next(files.post_crash_states(maximum=1))


MOMENTS = _moments()
EMPTY, OLD, NEW = range(3)


def _mixed(containers: int, high_water: int | None) -> FakeFiles:
    """The newest files, but containers and the mark of other times."""
    files = copy_of(MOMENTS[NEW].files)
    for name in MOMENTS[NEW].containers.keys() - MOMENTS[containers].containers.keys():
        files.remove(f"{UNIT}/{name}", label="test")
    path = f"{UNIT}/high-water.alu"
    if high_water is None:
        files.remove(path, label="test")
    elif MOMENTS[high_water].high_water:
        files.publish(path, [MOMENTS[high_water].high_water], label="test")
    return files


@pytest.mark.parametrize("high_water", [None, OLD, NEW])
@pytest.mark.parametrize(("containers", "index"), list(itertools.product(range(3), range(3))))
def test_a_mixture_of_times_is_noticed(containers: int, index: int, high_water: int | None) -> None:
    files = _mixed(containers, high_water)
    disk = IndexDisk(MOMENTS[index].index.copy())
    target = Target(files, disk)
    try:
        store = target.store
        assert {one.image_id for one in store.manifests.all()} == {ONE.image_id, TWO.image_id}
        assert store.index.indexed_containers() == set(store.containers.containers())
        for number, backup in ((OLD, ONE), (NEW, TWO)):
            if containers >= number:
                assert target.read(backup) == backup.disk
            else:
                with pytest.raises(Corruption):
                    target.read(backup)
        whole = containers == NEW
        assert store.in_doubt == (not whole or index != NEW), "doubt from the start, without reading anything"
        settle_doubt(store, target.images, threading.Event())
        assert store.in_doubt == (not whole), "and for as long as an image is damaged"

        names = [name_of(container) for container in store.containers.containers()]
        known = {name: files.read(f"{UNIT}/{name}") for name in names}
        target.send(AGAIN)
        for backup in (TWO, AGAIN):
            assert target.read(backup) == backup.disk, "healed by the next backup"
        for name, content in known.items():
            assert files.read(f"{UNIT}/{name}") == content, "no id is given out twice"
    finally:
        close_target(target)


@pytest.mark.parametrize("victim", range(len(MOMENTS[NEW].containers)))
@pytest.mark.parametrize("index", [EMPTY, OLD, NEW])
def test_each_container_that_goes_behind_our_back(victim: int, index: int) -> None:
    """Also together with a lost or old index: the other image stays whole, or says what it lacks."""
    files = _mixed(NEW, NEW)
    files.remove(f"{UNIT}/{sorted(MOMENTS[NEW].containers)[victim]}", label="test")
    target = Target(files, IndexDisk(MOMENTS[index].index.copy()))
    try:
        assert target.store.in_doubt
        assert not target.store.all_healthy
        damaged = 0
        for backup in (ONE, TWO):
            try:
                assert target.read(backup) == backup.disk
            except Corruption:
                damaged += 1
        assert damaged, "something rested on it"
        settle_doubt(target.store, target.images, threading.Event())
        assert target.store.in_doubt
        again = [target.send(Backup(10 + number, one.disk, None)) for number, one in enumerate((ONE, TWO))]
        assert [one.image_id for one in again] == [
            Backup(10, FIRST, None).image_id,
            Backup(11, SECOND, None).image_id,
        ]
        for backup in (ONE, TWO):
            assert target.read(backup) == backup.disk, "healed"
        settle_doubt(target.store, target.images, threading.Event())
        assert not target.store.in_doubt
    except ArrayliftError as error:
        raise AssertionError(f"container {victim}, index {index}: {error}") from error
    finally:
        close_target(target)
