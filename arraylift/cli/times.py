"""Times and durations as an operator writes them.

Callers: main thread.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated

import typer

from arraylift.clock import SYSTEM_CLOCK
from arraylift.errors import InvalidRequest

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400, "y": 365 * 86_400}
_DURATION = re.compile(rf"(\d+(?:\.\d+)?)\s*([{''.join(_UNITS)}])?")

MaxAge = Annotated[
    str,
    typer.Option(
        "--max-age", metavar="AGE", help="Trust what scrub saw so lately, e.g. 7d; 0: read all of it now."
    ),
]
Until = Annotated[
    str, typer.Option("--until", metavar="TIME", help="UTC, e.g. 2030-01-31 or 2030-01-31T12:00.")
]
For = Annotated[str, typer.Option("--for", metavar="DURATION", help="From now, e.g. 90d, 2y.")]


def duration_seconds(text: str) -> int:
    """Return seconds from "90d", "12h", "30m", "45s", "2w", "1y", "0". Raises InvalidRequest."""
    found = _DURATION.fullmatch(text.strip().lower())
    if found is None or (found[2] is None and float(found[1])):
        raise InvalidRequest(f"{text!r} is no duration", next_step="write 90d, 12h, 30m or 45s")
    return int(float(found[1]) * _UNITS[found[2] or "s"])


def lock_end_ns(until: str, duration: str) -> int:
    """Return the UTC nanoseconds of ``--until`` or ``--for``, one of the two. Raises InvalidRequest."""
    if bool(until) == bool(duration):
        raise InvalidRequest("give --until or --for, one of the two", next_step="e.g. --for 90d")
    if duration:
        return SYSTEM_CLOCK.wall_ns() + duration_seconds(duration) * 10**9
    try:
        moment = datetime.fromisoformat(until)
    except ValueError:
        raise InvalidRequest(
            f"{until!r} is no time", next_step="write 2030-01-31, or 2030-01-31T12:00"
        ) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()) * 10**9
