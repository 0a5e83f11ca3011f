"""A guest that stands still for the time of a block, and for FREEZE_SECONDS_MAX at most.

Invariants:
  Z1 the watchdog runs before the freeze begins, and thaws so early that a thaw has time to take effect
     before the time is up, whatever hangs (law 11). Who outlives this process is the driver's business.
  Z2 a guest is thawed when the block ends, however it ends.
  Z3 the level that is told was true for the whole block: a watchdog that fired leaves CRASH, and the driver
     says after the thaw what held.
Callers: vm_snapshots, the thread that holds the VM's lock; the watchdog is a thread of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from arraylift.clock import Clock
from arraylift.errors import ArrayliftError
from arraylift.failpoints import FAILPOINTS
from arraylift.logs import get_logger
from arraylift.vm.types import ConsistencyLevel
from hostagent.driver import Driver
from hostagent.vm_types import FREEZE_SECONDS_MAX, VmRecord

WATCHDOG_SHARE = 0.9
"""Part of the time after which the watchdog thaws; the rest is for the thaw."""

QUIESCE_SHARE = 0.5
"""Part of the time that the guest has to come to a stop; the rest is for the snapshots."""

_log = get_logger("freezing")


class FrozenGuest:
    """What is known of one freeze; ``level`` and ``frozen_ns`` are final when the block has ended."""

    def __init__(self, driver: Driver, vm: VmRecord, clock: Clock, seconds_max: float) -> None:
        self._driver, self._vm, self._clock = driver, vm, clock
        self._seconds_max = seconds_max
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._began = clock.monotonic()
        self._watched = False
        self.level = ConsistencyLevel.FILESYSTEM
        self.frozen_ns = 0

    def left_seconds(self) -> float:
        """Time until the watchdog thaws."""
        return self._seconds_max * WATCHDOG_SHARE - (self._clock.monotonic() - self._began)

    def freeze(self) -> None:
        """Start the watchdog, then freeze (Z1). A guest that will not stand still is thawed: CRASH."""
        self._watched = True
        threading.Thread(target=self._watch, name="freeze-watchdog", daemon=True).start()
        try:
            level = self._driver.freeze(self._vm, timeout_seconds=self._seconds_max * QUIESCE_SHARE)
        except ArrayliftError as error:
            _log.warning("freeze_failed", vm=self._vm.vm_id, error=str(error))
            self._end(ConsistencyLevel.CRASH)
            self.frozen_ns = 0
            return
        with self._lock:
            if not self._done.is_set():
                self.level = level

    def thaw(self) -> None:
        """End the freeze (Z2), and learn which level it had (Z3). Once."""
        if self._watched:
            self._end(None)
            if self.level > ConsistencyLevel.CRASH:
                self.level = self._driver.kept_level(self._vm, self.level)

    def _watch(self) -> None:
        if not self._done.wait(self._seconds_max * WATCHDOG_SHARE):
            _log.warning("freeze_timed_out", vm=self._vm.vm_id, seconds=self._seconds_max)
            self._end(ConsistencyLevel.CRASH)

    def _end(self, level: ConsistencyLevel | None) -> None:
        with self._lock:
            # Under the lock: nobody is told that the guest runs while another thread still thaws it.
            self._driver.thaw(self._vm.vm_id)
            if self._done.is_set():
                return
            self._done.set()
            self.frozen_ns = max(1, int((self._clock.monotonic() - self._began) * 1e9))
            if level is not None:
                self.level = level  # Z3


@contextmanager
def frozen_guest(
    driver: Driver, vm: VmRecord, clock: Clock, *, seconds_max: float = FREEZE_SECONDS_MAX
) -> Iterator[FrozenGuest]:
    """Freeze a running guest for the block; one that is off needs no freeze."""
    guest = FrozenGuest(driver, vm, clock, seconds_max)
    try:
        if driver.is_running(vm.vm_id):
            FAILPOINTS.hit("vm-snapshot.freeze.before")
            guest.freeze()
            FAILPOINTS.hit("vm-snapshot.freeze.after")
        yield guest
    finally:
        guest.thaw()
