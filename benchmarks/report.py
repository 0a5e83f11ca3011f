"""Results as tables for people and as JSON for machines.

Callers: main thread.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from arraylift import __version__
from arraylift.sizes import human
from benchmarks.disks import Disks
from benchmarks.goals import GOALS, OURS
from benchmarks.peers import Work, version_of
from benchmarks.rounds import Results

COMPARED = ("restic", "borg", "cp")


def machine() -> dict[str, object]:
    """What the figures depend on."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }


def document(
    results: Results, disks: Disks, *, rounds: int, cold: bool, about: dict[str, object]
) -> dict[str, object]:
    """Everything, as JSON takes it."""
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "machine": about,
        "peers": {name: version_of(name) for name in COMPARED},
        "cache": "cold" if cold else "warm",
        "rounds": rounds,
        "disks": {
            disk.name: {
                "size_bytes": disk.size_bytes,
                "data_bytes": disk.data_bytes,
                "changed_bytes": disk.changed_bytes,
            }
            for disk in disks.values()
        },
        "samples": {
            work.name.lower(): {
                peer: [
                    {
                        "wall_seconds": round(one.wall_seconds, 4),
                        "cpu_seconds": round(one.cpu_seconds, 3),
                        "added_bytes": one.added_bytes,
                    }
                    for one in samples
                ]
                for peer, samples in by_peer.items()
            }
            for work, by_peer in results.samples.items()
        },
        "repository_bytes": results.repository_bytes,
        "restored_bit_identical": results.restored,
        "peak_memory_bytes": results.peak_memory_bytes,
        "arraylift_figures": results.figures,
        "goals": goals(results, disks),
    }


def goals(results: Results, disks: Disks) -> list[dict[str, object]]:
    """Each goal with its value and whether it was reached; None where it cannot be told."""
    found: list[dict[str, object]] = []
    for goal in GOALS:
        value = goal.measure(results, disks)
        found.append(
            {
                "work": goal.work,
                "goal": goal.text,
                "value": None if value is None else round(value, 3),
                "unit": goal.unit,
                "reached": goal.reached(value),
            }
        )
    return found


def show(results: Results, disks: Disks, console: Console, *, rounds: int, cold: bool) -> None:
    """Print the tables."""
    peers = [OURS, *(name for name in COMPARED if name in results.repository_bytes)]
    console.print(_disks_line(disks, rounds=rounds, cold=cold))
    console.print(_work_table(results, peers))
    missing = [name for name in COMPARED if name not in peers]
    if missing:
        console.print(f"left out: {', '.join(missing)} (not installed, or not asked for)")
    console.print(_goal_table(results, disks))
    for peer, whole in results.restored.items():
        console.print(f"restore by {peer}: {'bit-identical' if whole else 'DIFFERS from the disk'}")
    peaks = ", ".join(f"{name} {human(peak)}" for name, peak in results.peak_memory_bytes.items())
    console.print(f"peak memory: {peaks}")


def _disks_line(disks: Disks, *, rounds: int, cold: bool) -> str:
    described = ", ".join(
        f"{disk.name} {human(disk.data_bytes)}"
        + (f" ({human(disk.changed_bytes)} in changed granules)" if disk.changed else "")
        for disk in disks.values()
    )
    size = human(disks["A0"].size_bytes)
    cache = "cold" if cold else "warm"
    return f"disks of {size}: {described}; {cache} cache; median of {rounds} round{'s' * (rounds > 1)}"


def _work_table(results: Results, peers: Sequence[str]) -> Table:
    table = Table(title="seconds (CPU seconds) +added to the repository, and how many times ours")
    table.add_column("work")
    for peer in peers:
        table.add_column(peer, justify="right")
    for work in Work:
        ours = results.median(work, OURS)
        cells = []
        for peer in peers:
            one = results.median(work, peer)
            if one is None:
                cells.append("-" if peer not in results.samples.get(work, {}) else "")
                continue
            text = f"{one.wall_seconds:.2f} ({one.cpu_seconds:.2f}) +{human(max(0, one.added_bytes))}"
            if peer != OURS and ours:
                text += f"  [bold]x{one.wall_seconds / ours.wall_seconds:.1f}[/bold]"
            cells.append(text)
        table.add_row(work.value, *cells)
    sizes = [results.repository(peer) or 0 for peer in peers]
    ratios = [f"{human(size)}  [bold]x{size / sizes[0]:.2f}[/bold]" for size in sizes[1:]]
    table.add_row("repository after four backups", human(sizes[0]), *ratios)
    return table


def _goal_table(results: Results, disks: Disks) -> Table:
    table = Table(title="goals")
    for title in ("work", "goal", "measured", "reached"):
        table.add_column(title)
    for goal in GOALS:
        value = goal.measure(results, disks)
        reached = goal.reached(value)
        verdict = {None: "cannot be told", True: "[green]yes[/green]", False: "[red]no[/red]"}[reached]
        table.add_row(goal.work, goal.text, "-" if value is None else f"{value:.2f} {goal.unit}", verdict)
    return table
