"""The thread that finishes what failures, crashes and lapsed leases have left.

Owns: the rhythm; the use cases know what is due. Runs at once after a start, then every second.
Callers: the composition root; the work runs on the reaper's own thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from arraylift.logs import get_logger
from arraylift.outcome import attempt

REAP_SECONDS = 1.0

_log = get_logger("reaper")


class Reaper:
    """Calls one piece of work until it is closed. A failure that gets here waits for the next turn."""

    def __init__(self, work: Callable[[], None], *, seconds: float = REAP_SECONDS) -> None:
        self._work, self._seconds = work, seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            _, error = attempt(self._work, "reaper")
            if error is not None:
                _log.debug("reaper_waits", error=str(error))
            if self._stopping.wait(self._seconds):
                return

    def close(self) -> None:
        """Stop; waits for the work under way, for a while."""
        self._stopping.set()
        self._thread.join(timeout=10)
