"""Which backups are kept, by which rule, and which go. Pure.

Invariants:
  T1 what any rule keeps is kept; without a rule everything is.
  T2 the newest backup of a VM that is not known to be damaged never goes, nor one that is locked or in use.
  T3 every decision has its reasons, and the digest of a plan changes with every backup that is kept or
     goes: whoever applies a plan applies the one that was read.
  T4 a rule never makes two backups of one period stay, and time zones decide only where periods begin.
Callers: any thread.
"""

from __future__ import annotations

import zoneinfo
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from itertools import groupby

NS = 1_000_000_000
COUNT_MAX = 100_000
"""Of each rule."""
GOES = ("no rule keeps it",)
WITHIN_SECONDS_MAX = 100 * 366 * 86_400


@dataclass(frozen=True, slots=True)
class Retention:
    """How many backups of each kind of period are kept, 0: the rule does not exist.

    ``keep_hourly`` counts hours that have a backup, and so on. ``keep_within_seconds`` is counted back
    from the VM's newest backup, so that a VM which is no longer backed up keeps what it has.
    """

    keep_last: int = 0
    keep_hourly: int = 0
    keep_daily: int = 0
    keep_weekly: int = 0
    keep_monthly: int = 0
    keep_yearly: int = 0
    keep_within_seconds: int = 0

    @property
    def keeps_all(self) -> bool:
        """There is no rule (T1)."""
        return self == Retention()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backup as retention sees it. ``held``: why it cannot go now, e.g. "locked until 2027-01-01"."""

    backup_id: str
    vm_id: str
    vm_name: str
    taken_at_ns: int
    damaged: bool = False
    held: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """``reasons``: the rules that keep it, in the order of the rules; or why it goes."""

    candidate: Candidate
    kept: bool
    reasons: tuple[str, ...]


def plan(candidates: Iterable[Candidate], retention: Retention, *, zone: zoneinfo.ZoneInfo) -> list[Decision]:
    """Decide on every backup: by VM (name, then id), newest first."""
    by_vm = sorted(candidates, key=lambda one: (one.vm_name, one.vm_id, -one.taken_at_ns, one.backup_id))
    decisions = []
    for _, group in groupby(by_vm, key=lambda one: (one.vm_name, one.vm_id)):
        decisions += _plan_vm(list(group), retention, zone)
    return decisions


def digest(decisions: Iterable[Decision]) -> bytes:
    """Return 32 bytes that name this plan (T3)."""
    hasher = blake2b(digest_size=32)
    for one in decisions:
        hasher.update(f"{one.candidate.backup_id} {one.kept:d}\n".encode())
    return hasher.digest()


def _plan_vm(
    newest_first: Sequence[Candidate], retention: Retention, zone: zoneinfo.ZoneInfo
) -> list[Decision]:
    if retention.keeps_all:
        return [Decision(one, True, ("no rule",)) for one in newest_first]
    reasons: list[list[str]] = [[] for _ in newest_first]
    for why in reasons[: retention.keep_last]:
        why.append(f"last {retention.keep_last}")
    times = [datetime.fromtimestamp(one.taken_at_ns // NS, zone) for one in newest_first]
    for rule, count, period, name in _periods(retention):
        for index in _newest_of_each(times, count, period):
            reasons[index].append(f"{rule} {times[index]:{name}}")
    oldest_ns = newest_first[0].taken_at_ns - retention.keep_within_seconds * NS
    good = next((one for one in newest_first if not one.damaged), None)
    for one, why in zip(newest_first, reasons, strict=True):
        if retention.keep_within_seconds and one.taken_at_ns >= oldest_ns:
            why.append(f"within {retention.keep_within_seconds} s of the newest")
        if one.held:
            why.append(one.held)  # T2
        if one is good and not why:
            why.append("newest good one")  # T2
    return [
        Decision(one, bool(why), tuple(why) or GOES) for one, why in zip(newest_first, reasons, strict=True)
    ]


def _periods(retention: Retention) -> list[tuple[str, int, Callable[[datetime], Hashable], str]]:
    """(rule, count, what is the same for all local times of a period, how the period is written)."""
    return [
        # An hour that a clock set back shows twice is two hours.
        ("hourly", retention.keep_hourly, lambda at: (at.date(), at.hour, at.utcoffset()), "%Y-%m-%d %Hh%z"),
        ("daily", retention.keep_daily, datetime.toordinal, "%Y-%m-%d"),
        ("weekly", retention.keep_weekly, lambda at: at.isocalendar()[:2], "%G-W%V"),
        ("monthly", retention.keep_monthly, lambda at: (at.year, at.month), "%Y-%m"),
        ("yearly", retention.keep_yearly, lambda at: at.year, "%Y"),
    ]


def _newest_of_each(
    times: Sequence[datetime], count: int, period: Callable[[datetime], Hashable]
) -> list[int]:
    """Where the newest backup of each of the ``count`` newest periods is that have one (T4)."""
    found: dict[Hashable, int] = {}
    for index, at in enumerate(times):
        if len(found) == count:
            break
        found.setdefault(period(at), index)
    return list(found.values())
