"""Whose turn it is: how many jobs use one host, array or target at once, and in which order they wait. Pure.

A job asks once, for all that it needs, gets all of it at one instant, and gives all back at once.
Invariants:
  Q1 never more jobs hold a resource than its limit, but for those that held it before a restart (``resume``).
  Q2 nobody holds one thing while it waits for another: jobs cannot block each other in a ring.
  Q3 whoever waits gets its turn. Lines (``line``: a policy's jobs, those started by hand, restores) take
     turns, each in the order of asking, so a bounded number is before it; and what the first in that order
     lacks, or will need then, is kept for it from those behind it.
  Q4 of those who wait for one thing only the first keeps places in others: a busy array stops nobody else.
Callers: the engine, under its lock.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

JOBS_RUNNING_MAX = 8
"""Jobs that run at once, by default; image data does not pass through this process."""

JOBS_PER_HOST_MAX = 4
JOBS_PER_ARRAY_MAX = 4
JOBS_PER_TARGET_MAX = 8
LIMIT_MAX = 256
"""Of each of these; a running job has a thread here and a stream at its array and target."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Jobs at once: in all, and on each host, array and target."""

    running: int = JOBS_RUNNING_MAX
    per_host: int = JOBS_PER_HOST_MAX
    per_array: int = JOBS_PER_ARRAY_MAX
    per_target: int = JOBS_PER_TARGET_MAX


@dataclass(frozen=True, slots=True)
class Demand:
    """What a job uses while it runs; names of peers."""

    host: str = ""
    arrays: tuple[str, ...] = ()
    target: str = ""

    def __str__(self) -> str:
        return ", ".join(f"{kind} {name}" for kind, name in _named(self))


Resource = tuple[str, str]
"""Kind and name."""


_PLACE: Resource = ("all", "")
"""That every job needs."""


def _named(demand: Demand) -> list[Resource]:
    named = [("host", demand.host), *(("array", name) for name in demand.arrays), ("target", demand.target)]
    return list(dict.fromkeys(one for one in named if one[1]))


@dataclass(order=True, slots=True)
class _Waiting:
    position: int
    asked: int
    job_id: str = field(compare=False)
    needs: tuple[Resource, ...] = field(compare=False)


class Turns:
    """See the module's invariants."""

    def __init__(self, limits: Limits) -> None:
        self._limits = {
            "all": limits.running,
            "host": limits.per_host,
            "array": limits.per_array,
            "target": limits.per_target,
        }
        assert all(limit >= 1 for limit in self._limits.values()), "nobody would ever have a turn"
        self._held: dict[str, tuple[Resource, ...]] = {}
        self._used: Counter[Resource] = Counter()
        self._waiting: dict[str, _Waiting] = {}
        self._order: list[_Waiting] = []
        """Those who wait, the first first."""
        self._last_of_line: dict[str, int] = {}
        self._now = 0
        """Position of the latest that was given its turn: a line that was empty begins here."""
        self._asked = 0

    def ask(self, job_id: str, demand: Demand, *, line: str) -> bool:
        """Wait for a turn, or keep the one it has; True: it has it. ``leave`` gives it back."""
        if job_id in self._held:
            return True
        if job_id not in self._waiting:
            position = max(self._last_of_line.get(line, 0), self._now) + 1
            self._last_of_line[line] = position
            self._asked += 1
            one = _Waiting(position, self._asked, job_id, (_PLACE, *_named(demand)))
            self._waiting[job_id] = one
            insort(self._order, one)
        return job_id in self._give()

    def resume(self, job_id: str, demand: Demand) -> None:
        """It had its turn before a restart, and may have a guest's snapshot: it goes on, whatever the limits
        are now."""
        if job_id not in self._held:
            self._forget(job_id)
            self._hold(job_id, (_PLACE, *_named(demand)))

    def leave(self, job_id: str) -> list[str]:
        """Give back what it holds, or wait no longer; returns those whose turn has come. Idempotent."""
        self._forget(job_id)
        self._used.subtract(self._held.pop(job_id, ()))
        self._used += Counter()  # forget those at zero
        return self._give()

    def lacks(self, job_id: str) -> list[str]:
        """What a waiting job waits for, as people say it; empty: others are before it."""
        waiting = self._waiting.get(job_id)
        full = [one for one in waiting.needs if self._used[one] >= self._limits[one[0]]] if waiting else []
        return ["a free place" if kind == "all" else f"{kind} {name}" for kind, name in full]

    def _hold(self, job_id: str, needs: tuple[Resource, ...]) -> None:
        self._held[job_id] = needs
        self._used.update(needs)

    def _forget(self, job_id: str) -> None:
        one = self._waiting.pop(job_id, None)
        if one is not None:
            self._order.remove(one)

    def _give(self) -> list[str]:
        """Give turns, in order (Q3)."""
        given: list[str] = []
        kept: Counter[Resource] = Counter()
        for one in list(self._order):
            lacks = [need for need in one.needs if self._used[need] + kept[need] >= self._limits[need[0]]]
            if not lacks:
                self._forget(one.job_id)
                self._hold(one.job_id, one.needs)
                self._now = max(self._now, one.position)
                given.append(one.job_id)
            elif not any(kept[need] for need in lacks):
                kept.update(one.needs)  # of those who lack this, only the first (Q4)
            if self._used[_PLACE] + kept[_PLACE] >= self._limits[_PLACE[0]]:
                break
        if not self._order:
            self._last_of_line.clear()
        return given


def distinct(names: Iterable[str]) -> tuple[str, ...]:
    """The names, each once, in order; without empty ones."""
    return tuple(dict.fromkeys(name for name in names if name))
