"""QEMU processes: started apart from this one, found again, ended.

A process is known by its number and the time at which it started, so that another which was given the same
number is never taken for it. One that runs for a VM holds an flock on the VM's lock file, through a
descriptor that it inherited and knows nothing of: the lock ends with the process, however that ends.
Invariants:
  J1 two processes never run under one lock file; who cannot take the lock starts nothing.
  J2 only a process whose number and start match is signalled: through a pidfd, between two looks.
  J3 ours die of no terminal and no end of this process: each leads a session of its own.
Callers: any thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from arraylift.errors import WrongState
from arraylift.sizes import MIB

FILE_BYTES_MAX = 64 * MIB
"""What a QEMU may make of any file: its logs and its firmware's variables."""

POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Process:
    """``started`` in clock ticks since the machine's own start."""

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        """A zombie is dead."""
        found = _look(self.pid)
        return found is not None and found == (self.started, True)


@dataclass(frozen=True, slots=True)
class Account:
    """Whom a QEMU runs as."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def _look(pid: int) -> tuple[int, bool] | None:
    """(start, lives) of whoever has that number."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read(4096)
    except OSError:
        return None
    fields = text.rpartition(b")")[2].split()  # the name before it may hold anything
    return (int(fields[19]), fields[0] not in b"ZX") if len(fields) > 19 else None


def identify(pid: int) -> Process | None:
    """The living process of that number."""
    found = _look(pid)
    return Process(pid, found[0]) if found is not None and found[1] else None


def take_lock(path: str) -> int | None:
    """Return a descriptor that holds the lock of that file, or None: somebody runs under it (J1)."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def holders(file_name: str) -> dict[tuple[int, int], Process]:
    """Processes, other than this one, that have files of that name open; by device and inode."""
    found: dict[tuple[int, int], Process] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            process = identify(int(name))
            if process is not None:
                found |= dict.fromkeys(_open_files(process.pid, file_name), process)
    return found


def holder_of(path: str) -> Process | None:
    """The process that has that lock file open; None: there is none that we see."""
    wanted = os.stat(path)
    return holders(os.path.basename(path)).get((wanted.st_dev, wanted.st_ino))


def _open_files(pid: int, file_name: str) -> Iterator[tuple[int, int]]:
    with contextlib.suppress(OSError):  # it ended, or is not ours to look at
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                link = f"/proc/{pid}/fd/{name}"
                if os.readlink(link).endswith(f"/{file_name}"):
                    found = os.stat(link)
                    yield found.st_dev, found.st_ino


_children: dict[int, subprocess.Popen[bytes]] = {}
"""What this process has started: let go when it has ended, not when who started it is forgotten."""
_children_lock = threading.Lock()


class Processes:
    """Starts, finds and ends processes; takes note of the end of its own children."""

    def __init__(self, account: Account | None = None) -> None:
        self._account = account
        self._lock = threading.Lock()
        self._seen: dict[tuple[int, int], Process] = {}
        """Holders of locks, of one look at all processes: a start asks for each VM's."""

    def spawn(self, argv: Sequence[str], *, inherited: Iterable[int], log: int) -> Process:
        """Start one, which outlives us (J3). ``log`` takes what it prints. Raises WrongState."""
        account = self._account
        self.collect()
        try:
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=tuple(inherited),
                start_new_session=True,
                cwd="/",
                umask=0o077,
                # SIGXFSZ stays ignored, as Python has it: a log that is full ends no guest.
                restore_signals=False,
                user=None if account is None else account.uid,
                group=None if account is None else account.gid,
                extra_groups=None if account is None else account.groups,
            )
        except OSError as error:
            raise WrongState(
                f"{argv[0]} does not start: {error}",
                subject=argv[0],
                next_step="install QEMU, or name its program in the host's settings",
            ) from error
        with _children_lock:
            _children[child.pid] = child
        found = _look(child.pid)
        assert found is not None, "a child is there until we collect it"
        with contextlib.suppress(OSError):  # ended already
            resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (FILE_BYTES_MAX, FILE_BYTES_MAX))
            resource.prlimit(child.pid, resource.RLIMIT_CORE, (0, 0))  # it would be the guest's memory
        return Process(child.pid, found[0])

    def find(self, lock_path: str) -> Process | None:
        """The process that runs under that lock file; None: nothing does."""
        descriptor = take_lock(lock_path)
        if descriptor is not None:
            os.close(descriptor)
            return None
        wanted = os.stat(lock_path)
        inode = wanted.st_dev, wanted.st_ino
        with self._lock:
            found = self._seen.get(inode)
            if found is None or not found.alive:
                self._seen = holders(os.path.basename(lock_path))
            return self._seen.get(inode)

    def collect(self) -> None:
        """Let children go that have ended."""
        with _children_lock:
            for pid in [pid for pid, child in _children.items() if child.poll() is not None]:
                del _children[pid]

    def exit_code(self, process: Process) -> int | None:
        """Of a child that has ended; None: it lives, or is nobody's child of ours."""
        with _children_lock:
            child = _children.get(process.pid)
            return None if child is None else child.poll()

    def wait(self, process: Process, *, seconds: float) -> bool:
        """Whether it has ended within that time."""
        until = time.monotonic() + seconds
        while process.alive:
            if time.monotonic() >= until:
                return False
            time.sleep(POLL_SECONDS)
        self.collect()
        return True

    def kill(self, process: Process, *, seconds: float = 10.0) -> bool:
        """End it by force (J2); whether it is gone. One that waits for a disk in the kernel may not be."""
        try:
            descriptor = os.pidfd_open(process.pid)
        except OSError:
            return self.wait(process, seconds=0)
        try:
            if process.alive:  # the pidfd is of whoever has the number now
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)
        return self.wait(process, seconds=seconds)
