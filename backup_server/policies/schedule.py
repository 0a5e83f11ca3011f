"""When a policy runs: cron lines in a time zone, windows, and a start put off for each VM. Pure.

Cron lines are those of Debian's cron, read by cronsim: what is due in an hour that a clock set forward
leaves out runs right after it, what is due in one that comes twice runs once; lines with "*" minutes or
hours go by real time.
Invariants:
  S1 the runs of a schedule are the same whatever instant one asks from, forwards and backwards.
  S2 runs that were missed are caught up once: ``due`` names the last of them.
  S3 a VM's jitter is the same each time, so that the distance of its backups is that of the runs.
Times: UTC nanoseconds since 1970. Callers: any thread.
Why: docs/decisions/0114-schedules-by-cronsim.md
"""

from __future__ import annotations

import zoneinfo
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from itertools import islice

from cronsim import CronSim, CronSimError

from arraylift.errors import InvalidRequest

NS = 1_000_000_000
LINES_MAX = 16
WINDOWS_MAX = 16
LINE_BYTES_MAX = 200
JITTER_SECONDS_MAX = 86_400
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_NS = 86_400 * NS


@dataclass(frozen=True, slots=True)
class Schedule:
    """``lines``: "minute hour day month weekday"; none: only when asked for. ``time_zone``: IANA; "": UTC."""

    lines: tuple[str, ...] = ()
    time_zone: str = ""
    jitter_seconds: int = 0

    @property
    def zone(self) -> zoneinfo.ZoneInfo:
        """Raises InvalidRequest."""
        return zone_named(self.time_zone)


@dataclass(frozen=True, slots=True)
class Window:
    """When jobs may start, in the schedule's zone: from ``from_minute`` of the day on each of ``weekdays``
    (0 is Monday; none: all) until ``to_minute``, on the next day if that is not later."""

    weekdays: frozenset[int]
    from_minute: int
    to_minute: int


def zone_named(name: str) -> zoneinfo.ZoneInfo:
    """Raises InvalidRequest."""
    try:
        return zoneinfo.ZoneInfo(name or "UTC")
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidRequest(
            f"there is no time zone {name[:80]!r}",
            subject="time zone",
            next_step="write a name of the IANA database, e.g. Europe/Berlin",
        ) from None


def check_schedule(schedule: Schedule) -> None:
    """Raises InvalidRequest."""
    if len(schedule.lines) > LINES_MAX:
        raise InvalidRequest(f"a schedule has at most {LINES_MAX} lines")
    if schedule.jitter_seconds > JITTER_SECONDS_MAX:
        raise InvalidRequest(f"a start is put off by at most {JITTER_SECONDS_MAX} s")
    zone = schedule.zone
    for line in schedule.lines:
        if len(line.encode()) > LINE_BYTES_MAX or len(line.split()) != 5:
            raise _bad_line(line, "it has five fields: minute hour day month weekday")
        try:
            next(CronSim(line, datetime(2024, 1, 1, tzinfo=zone)))
        except CronSimError as error:
            raise _bad_line(line, str(error).lower()) from None
        except StopIteration:
            raise _bad_line(line, "no day is ever like this") from None


def _bad_line(line: str, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"{line[:LINE_BYTES_MAX]!r} is no line of a schedule: {why}",
        subject="schedule",
        next_step='write it like a cron line, e.g. "30 2 * * 1-5" for 02:30 on working days',
    )


def runs_after(schedule: Schedule, after_ns: int) -> Iterator[int]:
    """Yield the instants of all runs later than ``after_ns``, ascending, each once (S1)."""
    streams = [_steps(line, schedule.zone, after_ns, reverse=False) for line in schedule.lines]
    heads = [next(stream, None) for stream in streams]
    while any(head is not None for head in heads):
        earliest = min(head for head in heads if head is not None)
        for index, head in enumerate(heads):
            if head == earliest:
                heads[index] = next(streams[index], None)
        yield earliest


def next_runs(schedule: Schedule, after_ns: int, count: int) -> list[int]:
    """The first ``count`` runs later than ``after_ns``."""
    return list(islice(runs_after(schedule, after_ns), count))


def due(schedule: Schedule, last_ns: int, now_ns: int) -> int | None:
    """The last run later than ``last_ns`` and not later than ``now_ns``; None: there is none (S2)."""
    found = [next(_steps(line, schedule.zone, now_ns, reverse=True), None) for line in schedule.lines]
    latest = max((at for at in found if at is not None), default=None)
    return latest if latest is not None and latest > last_ns else None


def _steps(line: str, zone: zoneinfo.ZoneInfo, from_ns: int, *, reverse: bool) -> Iterator[int]:
    """Runs of one line: later than ``from_ns``, or in reverse not later than it."""
    # cronsim goes on from whole seconds, and leaves out the one that it starts at.
    second = from_ns // NS + (1 if reverse else 0)
    for at in CronSim(line, datetime.fromtimestamp(second, zone), reverse=reverse):
        at_ns = int(at.astimezone(UTC).timestamp()) * NS
        if (at_ns <= from_ns) is reverse:
            yield at_ns


def jitter_ns(schedule: Schedule, key: str) -> int:
    """How long the start of ``key`` (policy and VM) is put off, 0 <= it <= the schedule's maximum (S3)."""
    if not schedule.jitter_seconds:
        return 0
    drawn = int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big")
    return drawn % (schedule.jitter_seconds * NS + 1)


# -- windows ------------------------------------------------------------------------------------


def parse_window(weekdays: Sequence[str], from_time: str, to_time: str) -> Window:
    """Raises InvalidRequest."""
    days = set()
    for day in weekdays:
        if day.lower() not in WEEKDAYS:
            raise InvalidRequest(
                f"{day[:20]!r} is no day of the week",
                subject="window",
                next_step=f"write {', '.join(WEEKDAYS)}",
            )
        days.add(WEEKDAYS.index(day.lower()))
    return Window(frozenset(days), _minute(from_time), _minute(to_time))


def _minute(text: str) -> int:
    hour, colon, minute = text.partition(":")
    if colon and hour.isdecimal() and minute.isdecimal() and len(hour) <= 2 and len(minute) == 2:
        value = int(hour) * 60 + int(minute)
        if int(minute) < 60 and value <= 24 * 60:
            return value
    raise InvalidRequest(
        f"{text[:20]!r} is no time of day", subject="window", next_step="write it like 22:00, up to 24:00"
    )


def open_from(windows: Sequence[Window], zone: zoneinfo.ZoneInfo, at_ns: int) -> int:
    """The first instant, ``at_ns`` or later, at which a job may start. Without a window: ``at_ns``."""
    if not windows:
        return at_ns
    today = datetime.fromtimestamp(at_ns // NS, zone).replace(tzinfo=None, hour=0, minute=0, second=0)
    best: int | None = None
    for shift in range(
        -1, 9
    ):  # a window of yesterday may still be open; each weekday comes within eight days
        day = today + timedelta(days=shift)
        for window in windows:
            if window.weekdays and day.weekday() not in window.weekdays:
                continue
            length = window.to_minute - window.from_minute
            opens = _instant(day + timedelta(minutes=window.from_minute), zone)
            closes = _instant(day + timedelta(minutes=window.to_minute, days=int(length <= 0)), zone)
            if closes > at_ns and closes > opens and (best is None or opens < best):
                best = opens
    assert best is not None, "a window opens in every week"
    return max(best, at_ns)


def _instant(local: datetime, zone: zoneinfo.ZoneInfo) -> int:
    return int(local.replace(tzinfo=zone).timestamp()) * NS
