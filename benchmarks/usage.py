"""What work costs: wall seconds, CPU seconds of processes and their children, bytes on disk.

Callers: one thread.
"""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from arraylift.errors import ArrayliftError, NotPermitted
from arraylift.sizes import MIB

COMMAND_SECONDS_MAX = 1800.0
"""No program that is measured may take longer; then it is killed."""

_POLL_SECONDS = 0.002
_TICKS = os.sysconf("SC_CLK_TCK")
_DROP_CACHES = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True, slots=True)
class Usage:
    """The cost of one piece of work."""

    wall_seconds: float
    cpu_seconds: float

    def plus(self, other: Usage) -> Usage:
        return Usage(self.wall_seconds + other.wall_seconds, self.cpu_seconds + other.cpu_seconds)


def run(arguments: Sequence[str], *, environment: Mapping[str, str], folder: Path) -> Usage:
    """Run a program to its end and return what it and its children used.

    Raises ArrayliftError with the end of its output where it fails. Whatever interrupts the wait,
    the program does not outlive it.
    """
    with tempfile.TemporaryFile() as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(environment),
            cwd=folder,
        )
        try:
            used = _wait(process.pid, began + COMMAND_SECONDS_MAX)
        except BaseException:
            process.kill()
            process.wait()
            raise
        wall_seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(used[0])
        if process.returncode:
            output.seek(max(0, output.seek(0, os.SEEK_END) - 2000))
            said = output.read().decode(errors="replace").strip()
            raise ArrayliftError(f"{' '.join(arguments[:2])} ended with {process.returncode}: {said}")
    return Usage(wall_seconds, used[1].ru_utime + used[1].ru_stime)


def _wait(pid: int, deadline: float) -> tuple[int, resource.struct_rusage]:
    """Wait for the child; the rusage is that of itself and of the children it waited for."""
    descriptor = os.pidfd_open(pid)
    try:
        while True:
            found, status, used = os.wait4(pid, os.WNOHANG)
            if found:
                return status, used
            if time.perf_counter() > deadline:
                raise ArrayliftError(f"process {pid} took more than {COMMAND_SECONDS_MAX:.0f} s")
            time.sleep(_POLL_SECONDS)
    finally:
        os.close(descriptor)


def timed(work: Callable[[], object], cpu_seconds: Callable[[], float]) -> Usage:
    """Do work that other processes do for us; ``cpu_seconds`` reads their clocks."""
    cpu_before = cpu_seconds()
    began = time.perf_counter()
    work()
    wall_seconds = time.perf_counter() - began
    return Usage(wall_seconds, cpu_seconds() - cpu_before)


# -- processes ----------------------------------------------------------------------------------


def tree_of(pid: int) -> list[int]:
    """Return the process and its descendants."""
    found = [pid]
    for one in found:  # grows while it is walked
        for task in _tasks(one):
            try:
                found += map(int, Path(f"/proc/{one}/task/{task}/children").read_text().split())
            except FileNotFoundError:
                continue
    return found


def _tasks(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")
    except FileNotFoundError:
        return []


def cpu_seconds_of(pid: int) -> float:
    """User and system seconds of one process, and of its children that have ended."""
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    fields = text.rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS


def memory_of(pid: int) -> int:
    """Bytes that the process has in memory now."""
    return _status_bytes(pid, "VmRSS:")


def peak_memory_of(pid: int) -> int:
    """Most bytes that the process ever had in memory."""
    return _status_bytes(pid, "VmHWM:")


def _status_bytes(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise ArrayliftError(f"process {pid} has no figures of memory: it has ended")


# -- files --------------------------------------------------------------------------------------


def disk_bytes(directory: Path) -> int:
    """Bytes that the files of a tree take on disk, as du counts."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(f"{folder}/{name}").st_blocks * 512
            except FileNotFoundError:
                continue  # a database's, which lives on
    return total


def warm(paths: Iterable[Path]) -> None:
    """Read every file once, trees whole, so that it lies in the page cache."""
    buffer = bytearray(4 * MIB)
    for path in paths:
        files = [path] if path.is_file() else [found for found in path.rglob("*") if found.is_file()]
        for one in files:
            try:
                with one.open("rb", buffering=0) as file:
                    for start, end in data_ranges(file.fileno()):
                        file.seek(start)
                        while file.tell() < end and file.readinto(buffer):
                            pass
            except FileNotFoundError:
                continue


def data_ranges(descriptor: int) -> Iterable[tuple[int, int]]:
    """Yield (start, end) of what is no hole."""
    end = 0
    while True:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end


def chill() -> None:
    """Empty the page cache. Raises NotPermitted for who is not root."""
    os.sync()
    try:
        _DROP_CACHES.write_text("3\n", encoding="ascii")
    except PermissionError:
        raise NotPermitted("only root can empty the page cache", next_step="run it without --cold") from None


def same(one: Path, other: Path) -> bool:
    """Whether two files are equal, bit by bit."""
    if one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as left, other.open("rb") as right:
        while True:
            a, b = left.read(4 * MIB), right.read(4 * MIB)
            if a != b:
                return False
            if not a:
                return True
