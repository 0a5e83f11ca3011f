"""The speed to reach, as numbers that a run can be held against.

A ratio is the peer's seconds over ours: 3 means that we take a third of its time.
Callers: any.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from arraylift.sizes import MIB
from benchmarks.disks import Disks
from benchmarks.peers import DISK_OF, Work
from benchmarks.rounds import Results

OURS = "arraylift"
Measure = Callable[[Results, Disks], float | None]


@dataclass(frozen=True, slots=True)
class Goal:
    """``measure`` gives the value, None where what it compares with was not there."""

    work: str
    text: str
    unit: str
    measure: Measure
    least: float | None = None
    most: float | None = None

    def reached(self, value: float | None) -> bool | None:
        """Whether the value is good enough; None if there is none."""
        if value is None:
            return None
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


def _faster(work: Work, peer: str, least: float) -> Goal:
    def measure(results: Results, _disks: Disks) -> float | None:
        ours, theirs = results.median(work, OURS), results.median(work, peer)
        return theirs.wall_seconds / ours.wall_seconds if ours and theirs else None

    return Goal(work.value, f"at least {least:g} times {peer}", "times", measure, least=least)


def _smaller(peer: str) -> Goal:
    def measure(results: Results, _disks: Disks) -> float | None:
        ours, theirs = results.repository(OURS), results.repository(peer)
        return ours / theirs if ours and theirs else None

    return Goal("bytes after four backups", f"fewer than {peer}", "of its bytes", measure, most=1.0)


def _within_copy(results: Results, _disks: Disks) -> float | None:
    ours, copied = results.median(Work.RESTORE, OURS), results.median(Work.RESTORE, "cp")
    return ours.wall_seconds / copied.wall_seconds if ours and copied else None


def _comparison_rate(results: Results, disks: Disks) -> float | None:
    ours = results.median(Work.UNCHANGED, OURS)
    return disks[DISK_OF[Work.UNCHANGED]].data_bytes / ours.wall_seconds / 1e9 if ours else None


def _piece_seconds(results: Results, _disks: Disks) -> float | None:
    ours = results.median(Work.PIECE, OURS)
    return ours.wall_seconds * 1000 if ours else None


def _memory(results: Results, _disks: Disks) -> float | None:
    return max(results.peak_memory_bytes.values(), default=0) / MIB or None


GOALS = (
    _faster(Work.FIRST_FULL, "restic", 2.5),
    _faster(Work.FIRST_FULL, "borg", 2),
    _faster(Work.SECOND_DISK, "restic", 3),
    _faster(Work.SECOND_DISK, "borg", 3),
    _faster(Work.DAY_1, "restic", 10),
    _faster(Work.DAY_1, "borg", 10),
    _faster(Work.DAY_2, "restic", 10),
    _faster(Work.DAY_2, "borg", 10),
    Goal(Work.UNCHANGED.value, "at least 1.5 GB/s of data", "GB/s", _comparison_rate, least=1.5),
    _smaller("restic"),
    _smaller("borg"),
    _faster(Work.RESTORE, "restic", 5),
    _faster(Work.RESTORE, "borg", 2),
    Goal(Work.RESTORE.value, "within 1.5 times of cp and sync", "of its time", _within_copy, most=1.5),
    Goal(Work.PIECE.value, "less than 200 ms", "ms", _piece_seconds, most=200),
    Goal("memory of any daemon", "less than 512 MiB", "MiB", _memory, most=512),
)
