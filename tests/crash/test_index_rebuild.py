"""The index is deleted, damaged, aged and made anew, over and over, and says what the containers say.

What is right follows from the containers' directories alone, read here without any index. Damage that
RocksDB does not meet while it opens must be met by the first look at everything, and the start after that
mends it; a wrong or missing entry that nobody hears of is a failure whatever the damage was.
"""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

from arraylift.errors import Corruption
from arraylift.sizes import KIB, MIB
from dedup_target.segment_index import Locator
from tests import campaign
from tests.unit.dedup_target.material import Segment, make_segments
from tests.unit.dedup_target.test_storage_unit import Stage

GOAL_BYTES_PER_SECOND = 200e6
NAME = "index rebuild"
SMALL, BIG, BIG_IN_CAMPAIGN = 20, 1, 16


class World(Stage):
    """A unit whose index is going to suffer."""

    def __init__(self, path: Path, *, big: int, seed: int) -> None:
        super().__init__(path / "state")
        self.aside = path / "aside"
        self.draw = random.Random(seed)
        self.scanned_bytes, self.scan_seconds = 0, 0.0
        for number in range(SMALL // 2):
            self.store(make_segments(30, seed=number))
        self.close()
        shutil.copytree(self.path / "index", self.aside / "old")
        self.open()
        for number in range(SMALL // 2, SMALL):
            self.store(make_segments(30, seed=number))
        self.store(make_segments(30, seed=3))  # once more, in a newer container
        for number in range(big):
            self.store(_big_segments(seed + number))
        sealed, segments = self.stored[1]
        self.bad = (sealed.container_id, segments[7].fingerprint)
        self.unit.condemn_records(sealed.container_id, self.key.tenant, [self.bad[1]], "for the test")
        shutil.copytree(self.path / "index", self.aside / "crashed")  # as a kill leaves it: tables and a log
        self.container_bytes = sum(sealed.file_bytes for sealed, _ in self.stored)
        self.truth = self._truth()

    def _truth(self) -> dict[tuple[int, bytes], Locator]:
        """What an index has to say, from the directories."""
        found: dict[tuple[int, bytes], Locator] = {}
        for container in self.unit.containers.containers():
            sealed = self.unit.containers.read_directory(container)
            for row in sealed.directory:
                fingerprint = row["fingerprint"].tobytes()
                if (container, fingerprint) != self.bad:
                    sizes = (int(row[name]) for name in Locator._fields[1:])
                    found[sealed.tenant, fingerprint] = Locator(container, *sizes)
        return found

    def start(self) -> None:
        """Open, and note how fast containers were scanned if all of them were."""
        began = time.perf_counter()
        self.open()
        seconds = time.perf_counter() - began
        report = self.unit.report.index
        if report.containers_added == len(self.stored):
            self.scanned_bytes += self.container_bytes
            self.scan_seconds += seconds

    def settle(self) -> bool:
        """Look at everything; whether it took one more start to say the truth."""
        for attempt in range(2):
            try:
                found = {
                    (tenant, fingerprint): where for tenant, fingerprint, where in self.unit.index.entries()
                }
                assert found.keys() == self.truth.keys(), "the same fingerprints"
                assert found == self.truth
                assert self.unit.index.indexed_containers() == set(self.unit.containers.containers())
                return attempt > 0
            except Corruption:
                self.close()
                self.start()
                assert self.unit.report.index.rebuilt, "what was met is mended at the next start"
        raise AssertionError("damage was met twice")


def _big_segments(seed: int) -> list[Segment]:
    """Nearly a whole container of 16 KiB records."""
    raw = np.random.default_rng(seed).bytes(15 * MIB)
    pieces = [raw[at : at + 16 * KIB] for at in range(0, len(raw), 16 * KIB)]
    return [Segment(blake3(piece).digest(), piece, len(piece), 0) for piece in pieces]


# -- what happens to an index -------------------------------------------------------------------


def _files(world: World) -> list[Path]:
    root = world.path / "index"
    return sorted(path for path in root.rglob("*") if path.is_file() and path.stat().st_size)


def deleted(world: World) -> None:
    shutil.rmtree(world.path / "index")


def stale(world: World) -> None:
    """An old copy was brought back."""
    shutil.rmtree(world.path / "index")
    shutil.copytree(world.aside / "old", world.path / "index")


def without_log(world: World) -> None:
    """A crash, and the write-ahead log is gone."""
    shutil.rmtree(world.path / "index")
    shutil.copytree(world.aside / "crashed", world.path / "index")
    for log in (world.path / "index").rglob("*.log"):
        log.unlink()


def flipped(world: World) -> None:
    """One to three bits, in a closed index or in one with a log."""
    if world.draw.random() < 0.5:
        shutil.rmtree(world.path / "index")
        shutil.copytree(world.aside / "crashed", world.path / "index")
    for _ in range(world.draw.randrange(1, 4)):
        path = world.draw.choice(_files(world))
        content = bytearray(path.read_bytes())
        content[world.draw.randrange(len(content))] ^= 1 << world.draw.randrange(8)
        path.write_bytes(content)


def torn(world: World) -> None:
    path = world.draw.choice(_files(world))
    path.write_bytes(path.read_bytes()[: world.draw.randrange(path.stat().st_size)])


def file_missing(world: World) -> None:
    world.draw.choice(_files(world)).unlink()


def rubbish(world: World) -> None:
    path = world.draw.choice(_files(world))
    path.write_bytes(world.draw.randbytes(path.stat().st_size))


DAMAGES: list[Callable[[World], None]] = [
    deleted, stale, without_log, flipped, flipped, torn, file_missing, rubbish,
]  # fmt: skip


def _suffer(path: Path, *, rounds: int, big: int, seed: int) -> World:
    world = World(path, big=big, seed=seed)
    try:
        later = online = 0
        for number in range(rounds):
            damage = DAMAGES[number % len(DAMAGES)]
            where = f"seed {seed}, round {number}: {damage.__name__}"
            world.close()
            damage(world)
            world.start()
            try:
                later += world.settle()
                if number % 4 == 3:  # and once more while it is open
                    world.unit.rebuild_index(report=lambda _: None, cancelled=threading.Event())
                    assert not world.settle()
                    online += 1
            except AssertionError as error:
                raise AssertionError(where) from error
        rate = world.scanned_bytes / world.scan_seconds if world.scan_seconds else 0.0
        campaign.report(
            NAME, seed=seed, rounds=rounds, online=online, not_equal=0, met_by_a_read=later,
            MB_scanned_per_second=f"{rate / 1e6:,.0f}",
        )  # fmt: skip
    finally:
        world.close()
    return world


def test_an_index_that_suffers_says_what_the_containers_say(tmp_path: Path) -> None:
    _suffer(tmp_path, rounds=2 * len(DAMAGES), big=BIG, seed=campaign.seed_of(NAME))


@pytest.mark.campaign
@pytest.mark.timeout(0)
def test_a_hundred_times(tmp_path: Path) -> None:
    rounds = campaign.scaled(104)
    world = _suffer(tmp_path, rounds=rounds, big=BIG_IN_CAMPAIGN, seed=campaign.seed_of(NAME))
    assert world.scanned_bytes / world.scan_seconds >= GOAL_BYTES_PER_SECOND
