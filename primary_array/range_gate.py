"""Who may write which granules of one volume right now: a fair lock over ranges.

Two writes of one granule must not both copy the old content; a snapshot must
wait for the writes that are on their way and hold back new ones.
Invariants:
  R1 no two holders overlap.
  R2 first come, first served among those that overlap, so a snapshot (which
     overlaps all) is never starved.
  R3 at most HOLDERS_MAX threads hold or wait; one more gets Overloaded.
Callers: any thread; holds are not re-entrant. Lock order: gates in the order of
volume ids, then the commit lock, then the map lock (primary_array/__init__.py).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from arraylift.errors import Overloaded

HOLDERS_MAX = 1024
EVERYTHING = 1 << 62
"""End of a range that overlaps every other."""


class RangeGate:
    """One gate a volume or draft."""

    __slots__ = ("_changed", "_queue")

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._queue: list[list[int]] = []  # [first, end), in order of arrival

    @contextmanager
    def hold(self, first: int = 0, end: int = EVERYTHING) -> Iterator[None]:
        """Wait until no earlier holder or waiter overlaps granules ``first`` .. ``end`` - 1."""
        mine = [first, end]
        with self._changed:
            if len(self._queue) >= HOLDERS_MAX:  # R3
                raise Overloaded("too many writes at once to one volume", next_step="repeat later")
            self._queue.append(mine)
            try:
                while self._blocked(mine):  # R2
                    self._changed.wait()
            except BaseException:
                self._leave(mine)
                raise
        try:
            yield
        finally:
            with self._changed:
                self._leave(mine)

    def _blocked(self, mine: list[int]) -> bool:
        for other in self._queue:
            if other is mine:
                return False
            if other[0] < mine[1] and mine[0] < other[1]:
                return True
        raise AssertionError("a holder is not in its own queue")

    def _leave(self, mine: list[int]) -> None:
        position = next(index for index, other in enumerate(self._queue) if other is mine)
        del self._queue[position]
        if self._queue:
            self._changed.notify_all()
