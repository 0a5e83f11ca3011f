"""Run single steps on the disk: failpoints around them, failures translated, poison (D3, D4).

Owns: the poison of one store. ``durable.RealFiles`` is its only subclass; opened files borrow it.
Invariants: D3 and D4 of ``arraylift.durable``. Callers: any thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from arraylift.disk.contracts import Buffer, SystemCalls
from arraylift.errors import ArrayliftError, Corruption, NotFound, OutOfSpace, Overloaded, StoreFailed
from arraylift.failpoints import Failpoints

_SYNC_STEPS = {"fsync", "sync", "fsync_dir"}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_HANDLES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_MISSING = {errno.ENOENT, errno.ENOTDIR}


class Steps:
    """Steps of one store on one disk."""

    def __init__(self, failpoints: Failpoints, system: SystemCalls) -> None:
        self.system = system
        self._failpoints = failpoints
        self._poison = ""

    def check_alive(self) -> None:
        """Raise StoreFailed if an earlier fsync failed (D3)."""
        if self._poison:
            raise self._stopped()

    def _stopped(self) -> StoreFailed:
        return StoreFailed(
            f"the store stopped taking writes: {self._poison}",
            next_step="check the disk, then restart the daemon; it recovers from what is on disk",
        )

    @contextlib.contextmanager
    def step(self, label: str, step: str, path: str) -> Iterator[None]:
        """Run one step between its failpoints and translate what the disk says."""
        self.check_alive()
        try:
            self._failpoints.hit(f"{label}.{step}.before")
            yield
        except OSError as error:
            # Never in a variable: an error that a frame of its own traceback holds is a cycle, and with it
            # stays every frame of the call until Python collects.
            raise self._error_of(step, path, error) from error
        try:
            self._failpoints.hit(f"{label}.{step}.after")
        except OSError as error:
            raise self._failed(step, path, error) from error

    def _error_of(self, step: str, path: str, error: OSError) -> ArrayliftError:
        unchanged = None if step in _SYNC_STEPS else _unchanged(error, path)
        return unchanged or self._failed(step, path, error)

    def _failed(self, step: str, path: str, error: OSError) -> ArrayliftError:
        # The first failure is the cause; those after it are its echoes.
        self._poison = self._poison or f"{step} of {path} failed: {error.strerror}"
        return self._stopped()

    @contextlib.contextmanager
    def parent_of(self, path: str, label: str) -> Iterator[int]:
        """Hold the directory of ``path`` open around a change of its names.

        Opened first: without a handle to sync it the change must not begin (D4).
        """
        descriptor = -1
        try:
            with self.step(label, "open", os.path.dirname(path)):
                descriptor = self.system.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
            yield descriptor
        finally:
            self.close(descriptor)

    def sync_dir(self, descriptor: int, path: str, label: str) -> None:
        """Make the names in the directory of ``path`` durable."""
        with self.step(label, "fsync_dir", os.path.dirname(path)):
            self.system.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        """Close it if it was opened (-1: it was not)."""
        # What matters was synced before, and what was not has already raised.
        with contextlib.suppress(OSError):
            if descriptor >= 0:
                self.system.close(descriptor)

    def write_all(self, descriptor: int, view: memoryview, offset: int) -> None:
        while view.nbytes:
            written = self.system.pwrite(descriptor, view, offset)
            offset, view = offset + written, view[written:]


def byte_view(data: Buffer) -> memoryview:
    """Return ``data`` as flat bytes without a copy; it must be contiguous."""
    return memoryview(data).cast("B") if len(data) else memoryview(b"")


def _unchanged(error: OSError, path: str) -> ArrayliftError | None:
    """The error for a failure that changed nothing (D4), or None where that is not certain."""
    if error.errno in _FULL:
        return OutOfSpace(
            f"the disk is full while writing {path}",
            subject=path,
            next_step="free space on that file system, then repeat",
        )
    if error.errno in _NO_HANDLES:
        return Overloaded(
            f"no file handle or memory is left for {path}",
            subject=path,
            next_step="repeat later, or raise the limit of open files (ulimit -n)",
        )
    if error.errno in _MISSING:
        return NotFound(f"{path} is not there", subject=path)
    return None


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Translate a failed read: NotFound, Overloaded, else Corruption."""
    try:
        yield
    except OSError as error:
        raise _unreadable(error, path) from error


def _unreadable(error: OSError, path: str) -> ArrayliftError:
    return _unchanged(error, path) or Corruption(f"{path} cannot be read: {error.strerror}", subject=path)
