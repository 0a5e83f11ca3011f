"""Run work in a thread of ours and bring its failure to whoever waits for it.

The one place that catches everything: an exception that ends a thread is seen by nobody.
Callers: any thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from arraylift.errors import ArrayliftError, StoreFailed
from arraylift.logs import get_logger

_log = get_logger("outcome")

T = TypeVar("T")


def attempt(work: Callable[[], T], what: str) -> tuple[T | None, ArrayliftError | None]:
    """Return (result, None) or (None, error); a defect of ours becomes StoreFailed, with a traceback
    in the log. For threads, whose exceptions nobody else sees."""
    try:
        return work(), None
    except ArrayliftError as error:
        return None, error
    except Exception as error:  # noqa: BLE001 - reported to whoever waits for this thread
        _log.exception("work_failed", what=what)
        return None, StoreFailed(f"{what} failed: {error!r}", next_step="see the daemon's log")
