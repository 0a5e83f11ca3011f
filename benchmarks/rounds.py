"""Run every peer through the same work, in turn, and keep what each piece cost.

Invariants:
  R1 peers alternate at every piece of work, in an order that turns with it: what the machine does
     meanwhile hits all of them.
  R2 before each piece the same is done for every peer: pending writes are waited for, then what
     it will read is read once (warm) or the page cache is emptied (cold).
  R3 however a round ends, its processes are stopped and its files removed.
Callers: one thread.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from arraylift.cli.interrupts import shielded
from benchmarks import usage
from benchmarks.arraylift_peer import Arraylift
from benchmarks.disks import Disks
from benchmarks.peers import BACKUPS, DISK_OF, Peer, Work

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Sample:
    """One piece of work of one peer in one round."""

    wall_seconds: float
    cpu_seconds: float
    added_bytes: int
    """What the repository grew by on disk."""


@dataclass(slots=True)
class Results:
    """Everything that was measured."""

    samples: dict[Work, dict[str, list[Sample]]] = field(default_factory=dict)
    repository_bytes: dict[str, list[int]] = field(default_factory=dict)
    """After the four backups."""
    restored: dict[str, bool] = field(default_factory=dict)
    """Whether every restore was bit-identical."""
    peak_memory_bytes: dict[str, int] = field(default_factory=dict)
    """Of Arraylift's daemons."""
    figures: list[dict[str, dict[str, float]]] = field(default_factory=list)
    """Of Arraylift, a round each: work -> figure -> value."""

    def median(self, work: Work, peer: str) -> Sample | None:
        """The median of each value, over the rounds."""
        found = self.samples.get(work, {}).get(peer)
        if not found:
            return None
        return Sample(
            statistics.median(one.wall_seconds for one in found),
            statistics.median(one.cpu_seconds for one in found),
            int(statistics.median(one.added_bytes for one in found)),
        )

    def repository(self, peer: str) -> float | None:
        """Median size after the four backups."""
        found = self.repository_bytes.get(peer)
        return statistics.median(found) if found else None


def measure(
    disks: Disks,
    make_peers: Callable[[], Sequence[Peer]],
    *,
    rounds: int,
    cold: bool,
    work_directory: Path,
    note: Note,
) -> Results:
    """Run ``rounds`` rounds; errors of any peer end all of them (R3)."""
    results = Results()
    for number in range(rounds):
        scratch = Path(tempfile.mkdtemp(prefix="round-", dir=work_directory))
        peers = list(make_peers())
        try:
            _round(disks, peers, scratch, results, number=number, cold=cold, note=note)
        finally:
            with shielded():
                for peer in peers:
                    with contextlib.suppress(Exception):
                        peer.end()
                shutil.rmtree(scratch, ignore_errors=True)
    return results


def _round(
    disks: Disks,
    peers: list[Peer],
    scratch: Path,
    results: Results,
    *,
    number: int,
    cold: bool,
    note: Note,
) -> None:
    for peer in peers:
        note(f"round {number + 1}: {peer.name} begins")
        home = scratch / peer.name
        home.mkdir()
        peer.begin(home, disks)
    for turn, work in enumerate(Work):
        first = (turn + number) % len(peers)
        for peer in [*peers[first:], *peers[:first]]:  # R1
            note(f"round {number + 1}: {work.value}: {peer.name}")
            sample = _measure_one(peer, work, cold=cold)
            if sample is not None:
                results.samples.setdefault(work, {}).setdefault(peer.name, []).append(sample)
        if work is BACKUPS[-1]:
            for peer in peers:
                size = usage.disk_bytes(peer.repository)
                results.repository_bytes.setdefault(peer.name, []).append(size)
    for peer in peers:
        note(f"round {number + 1}: comparing what {peer.name} restored")
        whole = peer.restored(disks[DISK_OF[Work.RESTORE]])
        results.restored[peer.name] = results.restored.get(peer.name, True) and whole
        if isinstance(peer, Arraylift):
            _keep_figures(peer, results)


def _measure_one(peer: Peer, work: Work, *, cold: bool) -> Sample | None:
    peer.prepare(work)
    os.sync()
    if cold:
        usage.chill()
    else:
        usage.warm(peer.reads(work))
    before = usage.disk_bytes(peer.repository)
    used = peer.run(work)
    if used is None:
        return None
    return Sample(used.wall_seconds, used.cpu_seconds, usage.disk_bytes(peer.repository) - before)


def _keep_figures(peer: Arraylift, results: Results) -> None:
    results.figures.append({work.name.lower(): figures for work, figures in peer.figures.items()})
    for name, peak in peer.peak_memory_bytes().items():
        results.peak_memory_bytes[name] = max(peak, results.peak_memory_bytes.get(name, 0))
