"""``python -m benchmarks``: see docs/performance.md."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from arraylift import config

config.quiet_grpc()

from rich.console import Console

from arraylift.cli import interrupts
from arraylift.errors import ArrayliftError, OutOfSpace
from arraylift.exit_codes import exit_code
from arraylift.exit_codes import report as report_error
from arraylift.sizes import MIB, human, parse_size
from benchmarks import (
    backup_server,
    catalog,
    catalog_search,
    disks,
    file_restore,
    index_memory,
    inventory,
    kernels,
    mark_speed,
    memory_curve,
    nbd,
    pool,
    report,
    restore_speed,
)
from benchmarks.arraylift_peer import Arraylift
from benchmarks.peers import PROGRAMS, Peer, version_of
from benchmarks.rounds import measure

QUICK_BYTES, DEFAULT_BYTES = 200 * MIB, 700 * MIB
WHAT = {
    "compare": "with other programs (default)",
    "kernels": "time each stage alone",
    "disks": "only make the disks",
    "index": "memory and speed of the segment index",
    "inventory": "a virtual center with thousands of VMs",
    "mark": "how fast a collection marks, and its memory",
    "memory": "the target's memory while images pass",
    "nbd": "fio through NBD, beside qemu-nbd",
    "search": "the catalog's store: files taken in, backups that follow, searches",
    "catalog": "how fast the files of an image come out of a parser, and its memory",
    "file": "one file of 1 MiB out of an image of 20 GiB",
    "pool": "snapshots, tracker and writes of a large volume",
    "server": "a backup server with a month of backups of a thousand VMs",
    "restore": "reading an image, beside cat, lz4 and b3sum",
}
ROOM = 14
"""Free bytes needed, in times the bytes of a guest's files: disks, and every peer's repository."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns the exit code: 1 if a restore differed from its disk, else 0."""
    parsed = _parser().parse_args(arguments)
    interrupts.install()
    console, errors = Console(), Console(stderr=True)
    try:
        return _run(parsed, console, errors)
    except ArrayliftError as error:
        report_error(error, sys.stderr)
        return exit_code(error)
    except KeyboardInterrupt:
        errors.print("interrupted; everything that was started is stopped and removed")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    what = parser.add_argument("what", nargs="?", choices=WHAT, default="compare")
    what.help = "; ".join(f"{name}: {about}" for name, about in WHAT.items())
    parser.add_argument(
        "--work", type=Path, default=_default_work(), help="where disks are kept: %(default)s"
    )
    parser.add_argument("--size", type=_size, help="bytes of a guest's files; 700M")
    parser.add_argument("--quick", action="store_true", help="guests of 200M and one round")
    parser.add_argument("--seed", type=int, default=1, help="of everything that is generated")
    parser.add_argument("--rounds", type=int, choices=range(1, 10), metavar="1-9", help="2; 1 with --quick")
    parser.add_argument("--cold", action="store_true", help="empty the page cache before each measurement")
    parser.add_argument("--peers", default="restic,borg,cp", help="which to compare with: %(default)s")
    parser.add_argument(
        "--entries", type=int, default=index_memory.ENTRIES, help="entries of the index: %(default)s"
    )
    parser.add_argument(
        "--segments", type=int, default=mark_speed.SEGMENTS, help="mark: records of the unit: %(default)s"
    )
    parser.add_argument(
        "--vms",
        type=int,
        default=inventory.VMS,
        help="inventory: how many: %(default)s",
    )
    parser.add_argument(
        "--logical",
        type=_gibibytes,
        default=memory_curve.MARKS_GIB,
        metavar="1,10,100",
        help="memory: GiB of images that pass before each look",
    )
    parser.add_argument(
        "--files", type=int, default=catalog.FILES, help="catalog: files of the image: %(default)s"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    return parser


def _size(text: str) -> int:
    try:
        size = parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not 50 * MIB <= size <= 64 << 30:
        raise argparse.ArgumentTypeError("a guest has 50M to 64G of files")
    return size


def _gibibytes(text: str) -> tuple[int, ...]:
    try:
        marks = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not a list of whole GiB: {text}") from error
    if not all(1 <= mark <= 10_000 for mark in marks):
        raise argparse.ArgumentTypeError("marks are from 1 to 10000 GiB")
    return marks


def _default_work() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "arraylift-benchmarks"


def _run(parsed: argparse.Namespace, console: Console, errors: Console) -> int:
    parsed.work.mkdir(parents=True, exist_ok=True)
    ended = _run_by_itself(parsed, console)
    return _run_on_disks(parsed, console, errors) if ended is None else ended


def _run_by_itself(parsed: argparse.Namespace, console: Console) -> int | None:
    """Run a benchmark that makes what it needs; None if this is one on disks of guests."""
    if parsed.what == "index":
        return index_memory.run(console, parsed.work, entries=parsed.entries, json_path=parsed.json)
    if parsed.what == "inventory":
        rounds = inventory.ROUNDS // (10 if parsed.quick else 1)
        return inventory.run(console, parsed.work, vms=parsed.vms, rounds=rounds, json_path=parsed.json)
    if parsed.what == "server":
        vms = min(parsed.vms, backup_server.VMS)
        rounds = backup_server.ROUNDS // (10 if parsed.quick else 1)
        return backup_server.run(console, parsed.work, vms=vms, rounds=rounds, json_path=parsed.json)
    if parsed.what == "mark":
        return mark_speed.run(console, parsed.work, segments=parsed.segments, json_path=parsed.json)
    if parsed.what == "nbd":
        rounds = parsed.rounds or (1 if parsed.quick else 3)
        return nbd.run(console, parsed.work, rounds=rounds, quick=parsed.quick, json_path=parsed.json)
    if parsed.what == "memory":
        return memory_curve.run(
            console, parsed.work, marks_gib=parsed.logical, json_path=parsed.json, seed=parsed.seed
        )
    if parsed.what == "search":
        vms, backups = (2, 3) if parsed.quick else (10, 3)
        files = parsed.files if parsed.quick else 10 * parsed.files
        return catalog_search.run(
            console, parsed.work, files=files, vms=vms, backups=backups, json_path=parsed.json
        )
    if parsed.what == "catalog":
        return catalog.run(console, parsed.work, files=parsed.files, json_path=parsed.json)
    if parsed.what == "file":
        image_bytes = file_restore.IMAGE_BYTES // (20 if parsed.quick else 1)
        return file_restore.run(console, parsed.work, image_bytes=image_bytes, json_path=parsed.json)
    if parsed.what == "pool":
        return pool.run(console, parsed.work, seed=parsed.seed, json_path=parsed.json)
    return None


def _run_on_disks(parsed: argparse.Namespace, console: Console, errors: Console) -> int:
    count_bytes = parsed.size or (QUICK_BYTES if parsed.quick else DEFAULT_BYTES)
    free = shutil.disk_usage(parsed.work).free
    if free < ROOM * count_bytes:
        raise OutOfSpace(
            f"{parsed.work} has {human(free)} free of the {human(ROOM * count_bytes)} that this needs",
            subject=str(parsed.work),
            next_step="give another --work, or a smaller --size",
        )
    about = report.machine()
    with errors.status("making disks") as status:
        made = disks.get(parsed.work, count_bytes=count_bytes, seed=parsed.seed, note=status.update)
    if parsed.what == "kernels":
        return kernels.run(made["A0"], console, json_path=parsed.json)
    if parsed.what == "restore":
        rounds = parsed.rounds or restore_speed.ROUNDS
        return restore_speed.run(made, console, parsed.work, rounds=rounds, json_path=parsed.json)
    if parsed.what == "compare":
        return _compare(parsed, made, about, console, errors)
    for disk in made.values():
        console.print(f"{disk.path}  {human(disk.data_bytes)} of data, {human(disk.changed_bytes)} changed")
    return 0


def _compare(
    parsed: argparse.Namespace,
    made: disks.Disks,
    about: dict[str, object],
    console: Console,
    errors: Console,
) -> int:
    rounds = parsed.rounds or (1 if parsed.quick else 2)
    with errors.status("starting") as status:
        results = measure(
            made,
            _peers(parsed.peers.split(",")),
            rounds=rounds,
            cold=parsed.cold,
            work_directory=parsed.work,
            note=status.update,
        )
    report.show(results, made, console, rounds=rounds, cold=parsed.cold)
    if parsed.json:
        found = report.document(results, made, rounds=rounds, cold=parsed.cold, about=about)
        parsed.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if all(results.restored.values()) else 1


def _peers(asked: Sequence[str]) -> Callable[[], list[Peer]]:
    programs = [one for one in PROGRAMS if one.name in asked and version_of(one.name)]
    return lambda: [Arraylift(), *(program() for program in programs)]


if __name__ == "__main__":
    sys.exit(main())
