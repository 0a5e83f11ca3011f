"""The time by which locks are judged: it advances with monotonic time, not with the wall clock (law 16).

Owns: ``<state>/lock-clock.ald``, the last moment that is known to have come.
Invariants:
  L1 between two confirmations this time gains at most STEP_NS_MAX on monotonic time, restarts
     included: what the wall clock says beyond that is not followed, it lags and says so.
  L2 a step, and a confirmation, are durable before anybody is told of them.
  L3 only a confirmation sets it back, and that needs another daemon whose clock agrees with ours.
  L4 where the file is lost, it goes on from the newest image: never later than the wall clock.
So with a clock that was right once, no lock ends more than a day early, whatever the wall clock does.
Callers: any thread. Format: docs/formats/lock-clock-v1.md
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from arraylift import envelope
from arraylift.clock import Clock, utc_text
from arraylift.durable import Files
from arraylift.errors import ArrayliftError, Corruption, InvalidRequest, NotFound, WrongState
from arraylift.logs import get_logger

MAGIC = b"ALLOCKCK"
_KEYS = frozenset({"steps_ns", "time_ns"})

SECOND_NS = 10**9
DAY_NS = 24 * 3600 * SECOND_NS
STEP_NS_MAX = DAY_NS
"""What the wall clock may add on its own, all steps since the last confirmation together: restarts,
suspended machines, drift."""
STEP_NS_MIN = 60 * SECOND_NS
"""Smaller differences are left alone: each step is a write."""
SAVE_NS = 600 * SECOND_NS
"""The file is at most this far behind."""
AGREEMENT_NS_MAX = 3600 * SECOND_NS
LOCK_NS_MAX = 100 * 366 * DAY_NS

_log = get_logger("lock_clock")


@dataclass(frozen=True, slots=True)
class LockTime:
    """What the clock says now."""

    time_ns: int
    lags: bool
    """The wall clock says something else, and nobody has confirmed it."""


class LockClock:
    """One target's judge of locks."""

    def __init__(self, files: Files, state_path: str, clock: Clock, *, newest_image_ns: int | None) -> None:
        """``newest_image_ns`` is the newest commit, None for a store without images (L4).

        Raises WrongState for a newer format, OutOfSpace, StoreFailed.
        """
        self._files = files
        self._path = f"{state_path}/lock-clock.ald"
        self._clock = clock
        self._lock = threading.Lock()
        self._lags = self._unsaved = False
        found = self._load()
        if found is not None:
            self._time_ns, self._steps_ns = found
        elif newest_image_ns is None:
            self._time_ns, self._steps_ns = clock.wall_ns(), 0
        else:
            self._time_ns, self._steps_ns = min(clock.wall_ns(), newest_image_ns), 0
            _log.error("lock_clock_lost", goes_on_from=utc_text(self._time_ns))
        self._at = clock.monotonic()
        if found is None:
            self._publish(self._time_ns, self._steps_ns)
        self._saved_ns = self._time_ns
        self.now()

    def now(self) -> LockTime:
        """The time, and whether it lags; follows the wall clock as far as L1 lets it."""
        with self._lock:
            return self._follow()

    def tick(self) -> None:
        """Look at the clocks, so that what is to be told is told."""
        self.now()

    def confirm(self, wall_ns: int) -> LockTime:
        """Another daemon tells its time: if it is ours, go by it. Raises WrongState if it is not (L3)."""
        ours = self._clock.wall_ns()
        if abs(ours - wall_ns) > AGREEMENT_NS_MAX:
            raise WrongState(
                f"this target's clock says {utc_text(ours)}, the caller's {utc_text(wall_ns)}",
                subject="lock clock",
                next_step="set both by NTP, then confirm again",
            )
        with self._lock:
            present = self._follow()
            if self._steps_ns or abs(ours - present.time_ns) >= STEP_NS_MIN:
                self._save(ours, 0)
                if present.lags:
                    _log.info("lock_clock_confirmed", time=utc_text(ours))
            return self._follow()

    # -- locks ------------------------------------------------------------------------------

    def holds(self, lock_until_ns: int | None) -> bool:
        """Whether a lock of that time is still one."""
        return bool(lock_until_ns) and self.now().time_ns < (lock_until_ns or 0)

    def check_unlocked(self, what: str, lock_until_ns: int | None) -> None:
        """Raise WrongState while the lock holds: against every role."""
        if self.holds(lock_until_ns):
            assert lock_until_ns is not None
            raise WrongState(
                f"{what} is locked until {utc_text(lock_until_ns)}",
                subject=what,
                next_step="wait; nobody can shorten a lock",
            )

    def check_extension(self, what: str, present_ns: int | None, until_ns: int) -> None:
        """Raise unless a lock may be made or extended so: InvalidRequest, WrongState (shorter)."""
        now = self.now().time_ns
        if not now < until_ns <= now + LOCK_NS_MAX:
            raise InvalidRequest(
                f"{utc_text(until_ns)} is in the past, or more than 100 years away",
                subject=what,
                next_step=f"for this target it is {utc_text(now)} now",
            )
        if until_ns < (present_ns or 0):
            raise WrongState(
                f"{what} is locked until {utc_text(present_ns or 0)} already",
                subject=what,
                next_step="a lock is extended, never shortened",
            )

    # -- inside: all REQUIRE the lock ---------------------------------------------------------

    def _follow(self) -> LockTime:
        wall = self._clock.wall_ns()
        time_ns = self._time_ns + int((self._clock.monotonic() - self._at) * SECOND_NS)
        ahead = wall - time_ns
        steps, goal = self._steps_ns, time_ns
        if STEP_NS_MIN <= ahead <= STEP_NS_MAX - steps:  # L1
            steps, goal = steps + ahead, wall
        if goal != time_ns or time_ns - self._saved_ns >= SAVE_NS:
            try:
                self._save(goal, steps)
                time_ns = goal
            except ArrayliftError as error:  # a full disk: then no step counts (L2), reads go on
                if not self._unsaved:
                    _log.warning("lock_clock_not_saved", error=str(error))
                self._unsaved = True
        self._tell(wall, time_ns)
        return LockTime(time_ns, self._lags)

    def _tell(self, wall: int, time_ns: int) -> None:
        lags = wall - time_ns >= STEP_NS_MIN or time_ns - wall > STEP_NS_MAX
        if lags and not self._lags:
            _log.error("lock_clock_lags", time=utc_text(time_ns), wall_clock=utc_text(wall))
        elif self._lags and not lags:
            _log.info("lock_clock_agrees", time=utc_text(time_ns))
        self._lags = lags

    def _save(self, time_ns: int, steps_ns: int) -> None:
        self._publish(time_ns, steps_ns)  # L2
        self._time_ns = self._saved_ns = time_ns
        self._steps_ns, self._at = steps_ns, self._clock.monotonic()
        self._unsaved = False

    def _publish(self, time_ns: int, steps_ns: int) -> None:
        body = envelope.canonical_json({"steps_ns": steps_ns, "time_ns": time_ns})
        self._files.publish(self._path, [envelope.encode(MAGIC, body)], label="lock-clock")

    def _load(self) -> tuple[int, int] | None:
        try:
            data = self._files.read(self._path)
            return decode(data)
        except NotFound:
            return None
        except Corruption as error:
            _log.error("lock_clock_damaged", why=str(error))
            return None


def decode(data: bytes) -> tuple[int, int]:
    """Time and steps of a whole file. Raises Corruption, WrongState (newer format)."""
    fields = envelope.decode_json(MAGIC, data, what="lock clock", keys=_KEYS)
    values = fields["time_ns"], fields["steps_ns"]
    if not all(isinstance(one, int) and not isinstance(one, bool) and 0 <= one < 1 << 63 for one in values):
        raise Corruption("the lock clock's times make no sense", subject="lock clock")
    return values
