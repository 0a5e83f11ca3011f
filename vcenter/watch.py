"""Follow the inventory: first what a watcher missed, then every change; and notice silent hosts.

Invariants:
  W1 a watcher that applies every event in order has the inventory of the last event's revision.
  W2 the revision of an event may be resumed from; an event in several pieces has it on the last
     piece only, the others say 0.
  W3 at most WATCHERS_MAX watch; one that falls behind the event log is ended, and may resume.
Callers: ``follow`` on the thread of each watching call; ``SilenceWatch`` has a thread of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

from arraylift.errors import ArrayliftError, Overloaded, PeerUnavailable
from arraylift.logs import get_logger
from arraylift.vm.types import Vm
from vcenter.event_log import Event
from vcenter.live_inventory import LiveInventory

WATCHERS_MAX = 64
EVENT_PARTS_MAX = 2_000
"""Of one message: VMs, their disks, networks and tags together, each below 1 KiB: half a message."""
POLL_SECONDS = 1.0

_log = get_logger("vcenter")


class Watchers:
    """Everyone who follows one inventory."""

    def __init__(self, live: LiveInventory) -> None:
        self._live = live
        self._lock = threading.Lock()
        self._count = 0
        self._closing = False

    def follow(self, after_revision: int, is_active: Callable[[], bool]) -> Iterator[Event]:
        """Yield events until ``is_active`` says no. 0: begin with a listing.

        Raises Overloaded (too many watchers; this one fell behind), PeerUnavailable (shutting down).
        """
        with self._lock:
            if self._count >= WATCHERS_MAX:
                raise Overloaded(f"{WATCHERS_MAX} watchers follow already", next_step="watch again later")
            self._count += 1
        try:
            yield from self._follow(after_revision, is_active)
        finally:
            with self._lock:
                self._count -= 1

    def _follow(self, revision: int, is_active: Callable[[], bool]) -> Iterator[Event]:
        missed = self._live.changes_after(revision) if revision else None
        if missed is None:
            now = self._live.now
            missed = Event(now.revision, tuple(now.shown.values()), (), listing=True)
        while is_active():
            if missed.vms or missed.gone or missed.listing:
                yield from pieces(missed)
            revision = missed.revision
            self._live.wait_for_change(revision, POLL_SECONDS)
            if self._closing:
                raise PeerUnavailable("the virtual center is shutting down", next_step="watch again later")
            following = self._live.changes_after(revision)
            if following is None:
                raise Overloaded(
                    f"the changes after revision {revision} are no longer kept: this watcher is too slow",
                    next_step="watch again; it begins with a listing",
                )
            missed = following

    def wake(self) -> None:
        """Let every watcher see whether its caller is still there."""
        self._live.wake()

    def close(self) -> None:
        """End every watcher."""
        self._closing = True
        self._live.wake()


def pieces(event: Event) -> Iterator[Event]:
    """Cut an event into messages of EVENT_PARTS_MAX parts (W2)."""
    groups: list[list[Vm]] = [[]]
    parts = 0
    for vm in event.vms:
        config = vm.config
        own = 1 + len(config.disks) + len(config.networks) + len(config.tags)
        if parts + own > EVENT_PARTS_MAX:
            groups.append([])
            parts = 0
        groups[-1].append(vm)
        parts += own
    room = EVENT_PARTS_MAX - parts
    all_pieces = [Event(0, tuple(group), ()) for group in groups]
    all_pieces[-1] = replace(all_pieces[-1], gone=event.gone[:room])
    for start in range(room, len(event.gone), EVENT_PARTS_MAX):
        all_pieces.append(Event(0, (), event.gone[start : start + EVENT_PARTS_MAX]))
    all_pieces[0] = replace(all_pieces[0], listing=event.listing)
    all_pieces[-1] = replace(all_pieces[-1], revision=event.revision)
    yield from all_pieces


class SilenceWatch:
    """Marks silent hosts as lost, about a second late at most."""

    def __init__(self, live: LiveInventory) -> None:
        self._live = live
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="silence-watch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        failed = False
        while not self._stop.wait(POLL_SECONDS):
            try:
                self._live.mark_silent()
                failed = False
            except ArrayliftError as error:  # a full disk passes; a poisoned store needs a person
                if not failed:
                    _log.error("silent_hosts_unmarked", error=str(error))
                failed = True

    def close(self) -> None:
        """Stop, and wait for it."""
        self._stop.set()
        self._thread.join()
