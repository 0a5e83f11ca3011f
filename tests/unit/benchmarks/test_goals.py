"""A run is held against the goals as they are written."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from arraylift.sizes import MIB
from benchmarks import report
from benchmarks.disks import Disk, Disks
from benchmarks.goals import GOALS, OURS
from benchmarks.peers import Work
from benchmarks.rounds import Results, Sample

DISKS: Disks = {
    name: Disk(name, Path(name), 900 * MIB, 300_000_000, ((0, MIB),)) for name in ("A0", "B0", "A1", "A2")
}


def results(ours: float, theirs: float) -> Results:
    found = Results()
    for work in Work:
        found.samples[work] = {OURS: [Sample(ours, 1, 5)]}
        if work is not Work.PIECE:
            found.samples[work] |= {name: [Sample(theirs, 1, 5)] for name in ("restic", "borg", "cp")}
    found.repository_bytes = {OURS: [100], "restic": [120], "borg": [100], "cp": [400]}
    found.peak_memory_bytes = {"array": 100 * MIB, "target": 500 * MIB}
    found.restored = {OURS: True}
    return found


def verdicts(found: Results) -> dict[tuple[object, object], object]:
    return {(one["work"], one["goal"]): one["reached"] for one in report.goals(found, DISKS)}


def test_all_is_reached_where_everything_is_fast() -> None:
    assert set(verdicts(results(0.1, 10)).values()) == {True}


def test_what_is_slower_than_the_peers_is_not_reached() -> None:
    reached = verdicts(results(1.0, 1.0))
    assert not reached[Work.FIRST_FULL.value, "at least 2.5 times restic"]
    assert not reached[Work.UNCHANGED.value, "at least 1.5 GB/s of data"]
    assert not reached[Work.PIECE.value, "less than 200 ms"]
    assert reached[Work.RESTORE.value, "within 1.5 times of cp and sync"]
    assert reached["memory of any daemon", "less than 512 MiB"]


@pytest.mark.parametrize(("theirs", "expected"), [(2.49, False), (2.5, True)])
def test_a_limit_itself_counts_as_reached(theirs: float, expected: bool) -> None:
    assert verdicts(results(1.0, theirs))[Work.FIRST_FULL.value, "at least 2.5 times restic"] is expected


def test_a_peer_that_is_missing_leaves_its_goals_open() -> None:
    found = results(0.1, 10)
    for samples in found.samples.values():
        samples.pop("borg", None)
    del found.repository_bytes["borg"]
    reached = verdicts(found)
    assert {goal.text: reached[goal.work, goal.text] for goal in GOALS if "borg" in goal.text} == {
        goal.text: None for goal in GOALS if "borg" in goal.text
    }
    assert reached[Work.RESTORE.value, "at least 5 times restic"] is True
    console = Console(file=io.StringIO(), width=200)
    report.show(found, DISKS, console, rounds=1, cold=False)
    assert isinstance(console.file, io.StringIO)
    assert "left out: borg" in console.file.getvalue()


def test_the_median_round_counts() -> None:
    found = Results(samples={Work.RESTORE: {OURS: [Sample(wall, 1, 0) for wall in (9, 1, 2)]}})
    median = found.median(Work.RESTORE, OURS)
    assert median is not None
    assert median.wall_seconds == 2
    assert found.median(Work.FIRST_FULL, OURS) is None
