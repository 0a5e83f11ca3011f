"""kill -9 of a process that writes a pool, at failpoints and at random moments: flushed is kept.

The process tells, on its standard output, what it is about to do and what was answered; the test
replays that into the model of the property tests, reopens the pool and compares. Each pool lives
through many kills.
"""

from __future__ import annotations

import json
import random
import secrets
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from arraylift.durable import RealFiles
from arraylift.failpoints import FAILPOINTS
from arraylift.ids import LineageId, PoolId, SnapshotId, SourceState
from primary_array.pool import Pool
from primary_array.pool_types import SnapshotSource
from tests.property.pool_model import UNIT, UNITS_PER_GRANULE, VolumeModel, check_slots, read_units

NAMES = ("a", "b")
UNIT_COUNT = 5 * UNITS_PER_GRANULE + 3
JOURNAL_BYTES_MAX = 3000
OPERATIONS_MAX = 400
SECONDS_MAX = 60
CYCLES = 10
CAMPAIGN_CYCLES = 300
CAMPAIGN_SEED = secrets.randbits(32)

_PUBLISHED = ("create", "write", "fsync", "rename", "fsync_dir")
# Failpoint -> up to which hit it is worth waiting in one run.
POINTS = {
    **{f"journal.{step}": 60 for step in ("append", "sync")},
    **{f"slots.{step}": 60 for step in ("write", "sync")},
    **{f"pages.{step}": 8 for step in ("write", "sync")},
    "slots.punch": 8,
    **{f"{label}.{step}": 4 for label in ("journal", "checkpoint") for step in (*_PUBLISHED, "remove")},
}


# -- the process that is killed -------------------------------------------------------------


def worker(directory: str, seed: int, failpoint: str) -> None:
    """Work on the pool until killed, or until OPERATIONS_MAX."""
    chance = random.Random(seed)
    background = chance.random() < 0.5
    pool = Pool.open(RealFiles(), directory, journal_bytes_max=JOURNAL_BYTES_MAX, background=background)
    FAILPOINTS.arm(failpoint)
    for _ in range(OPERATIONS_MAX):
        operation = _choose(chance, pool)
        _tell({"begin": operation})
        _tell({"done": _perform(pool, operation)})
    pool.close()
    _tell({"closed": True})


def _choose(chance: random.Random, pool: Pool) -> list[Any]:
    name = chance.choice(NAMES)
    first = chance.randrange(UNIT_COUNT)
    count = chance.randint(1, min(chance.choice((1, UNITS_PER_GRANULE, UNIT_COUNT)), UNIT_COUNT - first))
    snapshots = pool.snapshots()
    kinds = ["write"] * 10 + ["trim"] * 4 + ["flush"] * 3 + ["snapshot"] * 3
    kinds += ["delete"] * (6 if len(snapshots) > 4 else 2)
    kind = chance.choice(kinds)
    if kind == "delete" and snapshots:
        return ["delete", chance.choice(snapshots).snapshot_id]
    if kind == "snapshot":
        return ["snapshot", list(NAMES[: chance.randint(1, 2)])]
    return [kind if kind in {"write", "trim"} else "flush", name, first, count, chance.randint(1, 255)]


def _perform(pool: Pool, operation: list[Any]) -> Any:
    kind, *details = operation
    if kind == "delete":
        pool.delete_snapshot(SnapshotId(details[0]))
    elif kind == "snapshot":
        infos = pool.snapshot(details[0])
        return [
            (info.snapshot_id, info.state.pool_id, info.state.lineage_id, info.state.birth) for info in infos
        ]
    elif kind == "write":
        name, first, count, value = details
        pool.write(name, first * UNIT, bytes([value]) * (count * UNIT))
    elif kind == "trim":
        name, first, count, _ = details
        pool.trim(name, first * UNIT, count * UNIT)
    else:
        pool.flush(details[0])
    return None


def _tell(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


# -- the test -------------------------------------------------------------------------------


class Story:
    """One pool through many kills, and the model of what it must hold."""

    def __init__(self, directory: Path) -> None:
        self.directory = str(directory)
        self.models = {name: VolumeModel(UNIT_COUNT) for name in NAMES}
        self.kills = 0
        pool = Pool.open(RealFiles(), self.directory)
        for name in NAMES:
            pool.create_volume(name, UNIT_COUNT * UNIT)
        pool.close()

    def cycle(self, seed: int) -> None:
        chance = random.Random(seed)
        failpoint, lines_max = "", 1 << 30
        if chance.random() < 0.75:
            point = chance.choice(list(POINTS))
            failpoint = (
                f"{point}.{chance.choice(('before', 'after'))}=kill@{chance.randint(1, POINTS[point])}"
            )
        else:
            lines_max = chance.randint(1, OPERATIONS_MAX)
        told = self._run(seed, failpoint, lines_max)
        pool = Pool.open(RealFiles(), self.directory)
        self._replay(told, pool)
        for name, model in self.models.items():
            model.settle(pool, name)
            for (_, older), (newer_id, _) in zip(
                list(model.snapshots.items())[:-1], list(model.snapshots.items())[1:], strict=True
            ):
                model.check_changes(pool, older, newer_id)
        check_slots(pool)
        if chance.random() < 0.5:
            pool.close()
        else:  # as if killed in its sleep
            pool._lock_file.close()

    def _run(self, seed: int, failpoint: str, lines_max: int) -> list[dict[str, Any]]:
        """Run one worker to its death; returns what it told."""
        command = [sys.executable, "-m", "tests.crash.test_pool_kill", self.directory, str(seed), failpoint]
        root = Path(__file__).parents[2]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
            assert process.stdout is not None
            told: list[dict[str, Any]] = []
            for line in process.stdout:
                told.append(json.loads(line))
                if len(told) == lines_max:
                    process.send_signal(signal.SIGKILL)
            status = process.wait(SECONDS_MAX)
        finished = bool(told) and "closed" in told[-1]
        self.kills += not finished
        assert status == (0 if finished else -signal.SIGKILL), f"the worker ended with {status}"
        return told

    def _replay(self, told: list[dict[str, Any]], pool: Pool) -> None:
        """Bring the models to what was answered; what was in flight may have happened or not."""
        pending: list[Any] | None = None
        for message in told:
            if "begin" in message:
                pending = message["begin"]
                self._begin(pending)
            elif "done" in message:
                assert pending is not None
                self._done(pending, message["done"])
                pending = None
            else:
                self._flushed()
        if pending is not None and pending[0] == "snapshot":
            self._adopt(pending[1], pool)
        elif pending is not None and pending[0] == "delete":
            there = {info.snapshot_id for info in pool.snapshots()}
            for model in self.models.values():
                if pending[1] in model.snapshots and pending[1] not in there:
                    del model.snapshots[pending[1]]

    def _begin(self, operation: list[Any]) -> None:
        if operation[0] in {"write", "trim"}:
            kind, name, first, count, value = operation
            if kind == "write":
                self.models[name].write(first, count, value)
            else:
                self.models[name].trim(first, count)

    def _done(self, operation: list[Any], answer: Any) -> None:
        if operation[0] == "delete":
            for model in self.models.values():
                model.snapshots.pop(operation[1], None)
        elif operation[0] == "snapshot":
            for name, (snapshot_id, pool_id, lineage_id, birth) in zip(operation[1], answer, strict=True):
                state = SourceState(PoolId(pool_id), LineageId(lineage_id), birth)
                self.models[name].snapshot(SnapshotId(snapshot_id), state)
        if operation[0] not in {"write", "trim"}:
            self._flushed()

    def _flushed(self) -> None:
        for model in self.models.values():
            model.flush()

    def _adopt(self, names: list[str], pool: Pool) -> None:
        """A snapshot whose answer was lost is there for all its volumes or for none, and whole."""
        found = []
        for name in names:
            fresh = [s for s in pool.snapshots(name) if s.snapshot_id not in self.models[name].snapshots]
            found.append(len(fresh))
            for info in fresh:
                model = self.models[name]
                assert read_units(pool, SnapshotSource(info.snapshot_id), UNIT_COUNT) == model.live
                model.snapshot(info.snapshot_id, info.state)
        assert found in ([0] * len(names), [1] * len(names))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_writer_loses_nothing_that_was_flushed(tmp_path: Path, seed: int) -> None:
    story = Story(tmp_path / "pool")
    for cycle in range(CYCLES):
        story.cycle(seed * 1_000_000 + cycle)
    assert story.kills > CYCLES // 2, "most runs must end by a kill"


@pytest.mark.campaign
@pytest.mark.timeout(0)
def test_campaign_of_kills(tmp_path: Path) -> None:
    sys.stdout.write(f"seed {CAMPAIGN_SEED}\n")
    for pool in range(10):
        story = Story(tmp_path / f"pool{pool}")
        for cycle in range(CAMPAIGN_CYCLES // 10):
            story.cycle(CAMPAIGN_SEED * 1_000_000 + pool * 1000 + cycle)


if __name__ == "__main__":
    worker(sys.argv[1], int(sys.argv[2]), sys.argv[3])
