"""One lock for each VM or VM snapshot, made when it is wanted and forgotten when nobody holds it.

Invariants:
  L1 two holders of one key never overlap; waiting ends after LOCK_SECONDS_MAX with Overloaded.
Lock order: VM, then VM snapshot, then names. Callers: use cases, any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from arraylift.errors import Overloaded

LOCK_SECONDS_MAX = 60.0
"""Longest wait for another call on the same VM."""


class KeyedLocks:
    """Locks by key."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._guard = threading.Lock()
        self._locks: dict[str, tuple[threading.Lock, int]] = {}

    @contextmanager
    def hold(self, key: str, *, seconds: float = LOCK_SECONDS_MAX) -> Iterator[None]:
        """Hold the lock of ``key``. Raises Overloaded."""
        with self._guard:
            lock, users = self._locks.get(key, (threading.Lock(), 0))
            self._locks[key] = lock, users + 1
        try:
            if not lock.acquire(timeout=seconds):
                raise Overloaded(
                    f"{self._what} {key} is busy with another call",
                    subject=f"{self._what} {key}",
                    next_step="repeat later",
                )
            try:
                yield
            finally:
                lock.release()
        finally:
            with self._guard:
                lock, users = self._locks[key]
                if users == 1:
                    del self._locks[key]
                else:
                    self._locks[key] = lock, users - 1
