"""Who may touch the disks of an emulated guest, and when: the whole of its power and its freeze.

An operation (one file put, got, listed, removed) holds the gate from its beginning to its end;
it is *writing* only while bytes go to a volume. Reading a copy and changing it need no disk, so a
freeze waits for writing alone, and a large disk's copy does not hold a snapshot up.
Invariants:
  G1 nothing is written while frozen; ``freeze`` returns only when the last write has ended.
  G2 one operation at a time; none of a guest that is off.
  G3 every wait ends: operations after HOLD_SECONDS_MAX, a stop after its grace and CUT_SECONDS_MAX.
Callers: emulated, any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from arraylift.clock import Clock
from arraylift.errors import Cancelled, DeadlineExceeded, Overloaded, WrongState

HOLD_SECONDS_MAX = 30.0
"""Longest time that an operation waits for another one, or for a thaw."""

CUT_SECONDS_MAX = 60.0
"""Longest time that a forced stop waits for a write that has begun."""


class GuestGate:
    """One guest's. ``subject`` names it in errors."""

    def __init__(self, subject: str, clock: Clock) -> None:
        self._subject = subject
        self._clock = clock
        self._changed = threading.Condition()
        self._running = self._frozen = self._busy = self._writing = self._cut = False

    @property
    def running(self) -> bool:
        with self._changed:
            return self._running

    def start(self) -> None:
        with self._changed:
            self._running, self._frozen, self._cut = True, False, False
            self._changed.notify_all()

    def stop(self, *, grace_seconds: float) -> None:
        """Refuse operations, let the running one end, then cut it. Raises DeadlineExceeded."""
        with self._changed:
            was_running, self._running = self._running, False
            self._changed.notify_all()
            if not self._wait(lambda: not self._busy, grace_seconds):
                self._cut = True
                self._changed.notify_all()
                if not self._wait(lambda: not self._busy, CUT_SECONDS_MAX):
                    self._running, self._cut = was_running, False
                    raise DeadlineExceeded(f"{self._subject} is still writing", subject=self._subject)
            self._cut = False

    def freeze(self, timeout_seconds: float) -> None:
        """Hold writes back; wait for the one under way (G1). Raises DeadlineExceeded."""
        with self._changed:
            self._frozen = True
            done = self._wait(lambda: not self._writing or not self._frozen, timeout_seconds)
            if not done or not self._frozen:
                raise DeadlineExceeded(
                    f"{self._subject} did not stand still within {timeout_seconds:.1f} s",
                    subject=self._subject,
                    next_step="repeat when fewer files are being written into it",
                )

    def thaw(self) -> None:
        with self._changed:
            self._frozen = False
            self._changed.notify_all()

    @contextmanager
    def operation(self, *, seconds: float = HOLD_SECONDS_MAX) -> Iterator[None]:
        """Hold the gate (G2); ``seconds``: longest wait for it. Raises WrongState (off), Overloaded."""
        with self._changed:
            free = self._wait(lambda: not self._running or not (self._busy or self._frozen), seconds)
            if not self._running:
                raise WrongState(f"{self._subject} is off", subject=self._subject, next_step="start it first")
            if not free:
                raise Overloaded(f"{self._subject} is busy", subject=self._subject, next_step="repeat later")
            self._busy = True
        try:
            yield
        finally:
            self._end_operation()

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Hold the gate against operations, whether the guest runs or not. Raises Overloaded."""
        with self._changed:
            if not self._wait(lambda: not self._busy, HOLD_SECONDS_MAX):
                raise Overloaded(f"{self._subject} is busy", subject=self._subject, next_step="repeat later")
            self._busy = True
        try:
            yield
        finally:
            self._end_operation()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Inside an operation: write to volumes (G1). Raises Cancelled (power cut), Overloaded."""
        with self._changed:
            assert self._busy, "only an operation writes"
            thawed = self._wait(lambda: self._cut or not self._frozen, HOLD_SECONDS_MAX)
            if self._cut:
                raise Cancelled(f"{self._subject} was powered off", subject=self._subject)
            if not thawed:
                raise Overloaded(
                    f"{self._subject} is frozen", subject=self._subject, next_step="repeat later"
                )
            self._writing = True
        try:
            yield
        finally:
            with self._changed:
                self._writing = False
                self._changed.notify_all()

    def _end_operation(self) -> None:
        with self._changed:
            self._busy = False
            self._changed.notify_all()

    def _wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Under the lock; False if the time ran out first (G3)."""
        deadline = self._clock.monotonic() + seconds
        while not condition():
            left = deadline - self._clock.monotonic()
            if left <= 0:
                return False
            self._changed.wait(left)
        return True
