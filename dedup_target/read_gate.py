"""Many who use a handle, or one who takes it away.

RocksDB's binding refuses a call that meets another one's closing, with an error that cannot be told from
damage; so nobody closes while anybody reads.
Invariants:
  E1 nobody is inside ``using`` while somebody is inside ``alone``.
  E2 who waits for ``alone`` goes before those who come for ``using`` later: it is not starved.
Callers: any thread; neither may be entered inside the other.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class ReadGate:
    """See the module."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._users = 0
        self._shut = False

    @contextlib.contextmanager
    def using(self) -> Iterator[None]:
        """Use the handle; waits while somebody is alone or about to be."""
        with self._changed:
            while self._shut:
                self._changed.wait()
            self._users += 1
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                if not self._users:
                    self._changed.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Take the handle away, when the last user has left (E1). One caller at a time."""
        with self._changed:
            assert not self._shut, "one caller at a time"
            self._shut = True  # E2
            while self._users:
                self._changed.wait()
        try:
            yield
        finally:
            with self._changed:
                self._shut = False
                self._changed.notify_all()
