"""What the lanes of one attempt share: coverage, pending segments, and how it ends.

Invariants:
  A1 a fingerprint is asked for once an attempt; whoever else offers it meanwhile waits for
     that copy (its ``Pending``), never for a promise.
  A2 an attempt that has failed or was fenced by a newer one changes nothing any more.
  A3 ``pins`` holds every container that its answers rest on or that it fills, until it ends.
Limits: pending segments are bounded by the lanes' windows and undurable bytes.
Callers: the lanes' handler threads and the writer thread; ``changed`` guards all.
"""

from __future__ import annotations

import threading

from arraylift.errors import ArrayliftError
from arraylift.exchange.coverage import Coverage
from dedup_target.pins import PinHolder
from dedup_target.seal_queue import Ticket


class Pending:
    """A segment that was asked for; ``ticket`` is its container once it has arrived."""

    __slots__ = ("ticket",)

    def __init__(self) -> None:
        self.ticket: Ticket | None = None

    @property
    def sealed(self) -> bool:
        return self.ticket is not None and self.ticket.sealed


class Attempt:
    """One run of a transfer, over all its lanes."""

    def __init__(self, number: int, coverage: Coverage, generation: int, pins: PinHolder) -> None:
        self.number = number
        self.coverage = coverage
        self.generation = generation
        """The store's generation when the first promise was made (law 7)."""
        self.pins = pins
        self.pending: dict[bytes, Pending] = {}
        self.changed = threading.Condition()
        self.lanes: set[int] = set()
        self._error: ArrayliftError | None = None

    def check(self) -> None:
        """Raise what ended this attempt, if it has ended (A2)."""
        if self._error is not None:
            raise self._error

    def fail(self, error: ArrayliftError) -> None:
        """End the attempt; the first reason stays."""
        with self.changed:
            self._error = self._error or error
            self.changed.notify_all()
        self.pins.release()

    def want(self, fingerprint: bytes) -> Pending | None:
        """Return the Pending of a copy that is already under way, or None after noting that the
        caller asks for it now (A1). Caller holds ``changed``."""
        found = self.pending.get(fingerprint)
        if found is None:
            self.pending[fingerprint] = Pending()
        return found

    def settle(self, fingerprints: list[bytes]) -> None:
        """Their container is sealed and indexed: from now on the index answers for them."""
        with self.changed:
            for fingerprint in fingerprints:
                self.pending.pop(fingerprint, None)
            self.changed.notify_all()
