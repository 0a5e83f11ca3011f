"""Start and end daemons' processes, and know them again.

Owns: ``run/<name>.pid``: JSON with pid, start time in clock ticks since boot, boot id, version.
Invariants:
  P1 a process is signalled only while its pid, start time and boot are those of the record: a pid
     that the system gave to another process is never touched.
  P2 every wait has a stated end.
Callers: main thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from arraylift import __version__
from arraylift.durable import RealFiles
from arraylift.errors import NotFound, NotPermitted

STOP_SECONDS = 30.0
"""How long a daemon may take to end cleanly before it is killed."""

KILL_SECONDS = 10.0

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_LABEL = "pid"


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """Names one process, for ever."""

    pid: int
    started_ticks: int
    boot_id: str
    version: str

    def is_alive(self) -> bool:
        """Whether that very process still runs; a zombie does not."""
        return _started_ticks(self.pid) == self.started_ticks and self.boot_id == _boot_id()


def spawn(arguments: Sequence[str], environment: dict[str, str], log_descriptor: int) -> ProcessRecord:
    """Start ``python ARGUMENTS`` in a session of its own, both outputs into the log."""
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, *arguments],
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, log_descriptor, 1),
            (os.POSIX_SPAWN_DUP2, log_descriptor, 2),
        ],
        setsid=True,
        setsigmask=(),
        setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE),
    )
    return ProcessRecord(pid, _started_ticks(pid) or 0, _boot_id(), __version__)


def write_record(path: Path, record: ProcessRecord) -> None:
    """Keep the record until ``forget``."""
    RealFiles().publish(str(path), [json.dumps(asdict(record)).encode()], label=_LABEL)


def read_record(path: Path) -> ProcessRecord | None:
    """Return the record of a process that is alive, else None."""
    try:
        found = json.loads(RealFiles().read(str(path)))
        record = ProcessRecord(**found)
        return record if record.is_alive() else None
    except (NotFound, ValueError, TypeError):
        return None  # a file that says nothing names no process


def forget(path: Path) -> None:
    """Remove the record; fine if there is none."""
    RealFiles().remove(str(path), label=_LABEL, missing_ok=True)


def exited_within(record: ProcessRecord, seconds: float) -> bool:
    """Wait until the process has ended, at most ``seconds``; return whether it has."""
    try:
        descriptor = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return True
    try:
        if not record.is_alive():
            return True
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(descriptor)


def exit_status(record: ProcessRecord) -> int | None:
    """Return the exit code of our own child that has ended (negative: the signal), and reap it."""
    try:
        pid, status = os.waitpid(record.pid, os.WNOHANG)
    except ChildProcessError:
        return None
    return os.waitstatus_to_exitcode(status) if pid else None


def stop(record: ProcessRecord, *, wait_seconds: float = STOP_SECONDS) -> str:
    """End the process: SIGTERM, then SIGKILL to its whole session; return "stopped" or "killed"."""
    _signal(record, signal.SIGTERM)
    how = "stopped"
    if not exited_within(record, wait_seconds):
        _signal(record, signal.SIGKILL)
        how = "killed"
        exited_within(record, KILL_SECONDS)
    exit_status(record)
    return how


def _signal(record: ProcessRecord, number: signal.Signals) -> None:
    """P1: the descriptor pins which process is meant; then look whether it is ours; then signal."""
    try:
        descriptor = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return
    try:
        if not record.is_alive():
            return
        if number is signal.SIGKILL:
            # Its workers too: it leads a session and group that no other process can have joined.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(record.pid, number)
        else:
            signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return
    except PermissionError:
        raise NotPermitted(
            f"process {record.pid} belongs to another user",
            subject=f"process {record.pid}",
            next_step="run this as the user who started it",
        ) from None
    finally:
        os.close(descriptor)


def _started_ticks(pid: int) -> int | None:
    """Field 22 of /proc/<pid>/stat; None for a zombie or no process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def _boot_id() -> str:
    return _BOOT_ID.read_text(encoding="ascii").strip()
