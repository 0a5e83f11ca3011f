"""One step of a migration: what is asked of which host, and what follows from the answer.

Invariants:
  X1 a phase is durable before its host is asked (moves.py V1), so any step may be taken again after a crash.
  X2 an answer that did not come says nothing: the step is repeated until the host answers. Only ``hand over``
     is given up, if a host that lives fails it FAILURES_MAX times: abandoning it is safe, whatever it did.
  X3 the new host's claim is in the inventory before the old one's leaves it: no VM that moves is missing.
  X4 a center that stops leaves each migration in its phase: ``closing`` is set before calls are cut.
Callers: migrate.py, one thread a migration.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from arraylift.errors import ArrayliftError, NotFound, PeerUnavailable, WrongState
from arraylift.logs import get_logger
from arraylift.vm.types import Vm, VmConfig
from vcenter.live_inventory import alive
from vcenter.migration import Migration, Phase
from vcenter.model import Host
from vcenter.moves import Moves
from vcenter.routing import LIST_SECONDS, MAKE_SECONDS, QUICK_SECONDS, HandedOver, MemorySent, Router

FAILURES_MAX = 3
SEND_SECONDS = 600
"""As a host has it that is told nothing."""
SEND_MARGIN_SECONDS = 60.0

_log = get_logger("vcenter")


class Waits(Exception):  # noqa: N818  # no error of anybody: a host is awaited
    """The step was not done; it is to be repeated later. ``why`` names who is awaited."""

    def __init__(self, why: ArrayliftError) -> None:
        super().__init__(str(why))
        self.why = why


@dataclass(slots=True)
class Progress:
    """One migration under way, and what this process alone knows of it. One thread changes it."""

    migration: Migration
    config: VmConfig | None = None
    """As the new host is told; None after a restart, when no place is asked for any more."""
    failures: int = 0
    sent: MemorySent = field(default_factory=lambda: MemorySent(0, 0))
    downtime_ns: int = 0
    moved: Vm | None = None
    error: ArrayliftError | None = None
    """Why it is undone."""
    told: Callable[[], None] = lambda: None
    """Called when more memory was sent."""


class MigrationSteps:
    """Takes steps for one center."""

    def __init__(self, router: Router, moves: Moves) -> None:
        self._router, self._moves = router, moves
        self.closing = threading.Event()
        self._steps = {
            Phase.EXPECT: self._expect,
            Phase.HAND_OVER: self._hand_over,
            Phase.ACCEPT: self._accept,
            Phase.FINISH: self._finish,
            Phase.UNDO: self._undo,
        }

    def take(self, progress: Progress) -> bool:
        """Take the next step; False: it has ended. Raises Waits; OutOfSpace, StoreFailed (our own store)."""
        return self._steps[progress.migration.phase](progress)

    # -- forward --------------------------------------------------------------------------------

    def _expect(self, progress: Progress) -> bool:
        migration, config = progress.migration, progress.config
        try:
            if config is None:
                raise PeerUnavailable(
                    "the virtual center was restarted before the new host had a place",
                    next_step="move it again",
                )
            host = self._alive(migration.destination)
            address = self._router.hosts.expect_vm(host, migration, config, seconds=MAKE_SECONDS)
        except ArrayliftError as error:
            return self._turn(progress, error)
        progress.migration = self._moves.put(migration.expected(address))
        return True

    def _hand_over(self, progress: Progress) -> bool:
        migration = progress.migration
        host = self._source(progress)
        if host is None:
            return True
        seconds = (migration.seconds_max or SEND_SECONDS) + SEND_MARGIN_SECONDS
        handed: HandedOver | None = None
        try:
            for news in self._router.hosts.hand_over_vm(host, migration, seconds=seconds):
                if isinstance(news, HandedOver):
                    handed = news
                else:
                    progress.sent = news
                    progress.told()
            if handed is None:
                raise PeerUnavailable(f"host {host.name} ended its answer early", subject=f"host {host.name}")
        except PeerUnavailable as error:
            self._count_failure(progress, host, error)
            return self._turn(progress, error)
        except ArrayliftError as error:
            return self._turn(progress, error)
        progress.downtime_ns = handed.downtime_ns
        progress.migration = self._moves.put(migration.handed_over(handed.firmware_variables))
        return True

    def _source(self, progress: Progress) -> Host | None:
        """The old host; None if it is forgotten, and so the migration undone. Raises Waits."""
        try:
            return self._alive(progress.migration.source)
        except PeerUnavailable as error:
            raise Waits(_doubt(error, "whether it has handed the VM over is not known")) from None
        except NotFound as error:
            self._turn(progress, error)
            return None

    def _count_failure(self, progress: Progress, host: Host, error: ArrayliftError) -> None:
        """Return if it is to be given up (X2). Raises Waits."""
        try:
            self._router.hosts.list_vms(host, seconds=LIST_SECONDS)
        except ArrayliftError:
            raise Waits(_doubt(error, "whether it has handed the VM over is not known")) from None
        progress.failures += 1
        if progress.failures < FAILURES_MAX:
            raise Waits(error)

    def _accept(self, progress: Progress) -> bool:
        migration = progress.migration
        try:
            host = self._router.live.now.host(migration.destination)
        except NotFound as error:
            _log.warning("migration_given_back", vm=migration.vm_id, host=migration.destination)
            progress.migration = self._moves.put(migration.given_back())
            progress.error = error
            return True
        try:
            vm = self._router.hosts.accept_vm(alive(host), migration, seconds=MAKE_SECONDS)
            progress.moved = self._router.take(vm, host, migration.vm_id)  # X3
        except ArrayliftError as error:
            raise Waits(_doubt(error, "whether it has the VM is not known")) from None
        progress.migration = self._moves.put(migration.accepted())
        self._router.live.depart(migration.vm_id, migration.source)
        _log.info(
            "vm_moved",
            vm=migration.vm_id,
            source=migration.source,
            destination=host.name,
            live=migration.live,
        )
        return True

    def _finish(self, progress: Progress) -> bool:
        migration = progress.migration
        try:
            host = self._alive(migration.source)
            self._router.hosts.finish_migration(host, migration, seconds=QUICK_SECONDS)
        except ArrayliftError as error:
            raise Waits(error) from None
        self._router.live.departed(migration.vm_id, migration.source)
        self._moves.drop(migration)
        return False

    # -- backward -------------------------------------------------------------------------------

    def _turn(self, progress: Progress, error: ArrayliftError) -> bool:
        """From here on nobody will be asked to accept. Raises Waits: we cut the call ourselves (X4)."""
        if self.closing.is_set():
            raise Waits(error)
        _log.warning("migration_undone", vm=progress.migration.vm_id, error=str(error))
        progress.error = error
        progress.migration = self._moves.put(progress.migration.undone(error.message))
        return True

    def _undo(self, progress: Progress) -> bool:
        """The new host first; one that does not answer keeps nobody from letting the old one go on."""
        failed: ArrayliftError | None = None
        for name in (progress.migration.destination, progress.migration.source):
            migration = progress.migration
            if migration.source_done if name == migration.source else migration.destination_done:
                continue
            try:
                self._abandon(name, migration)
            except ArrayliftError as error:
                failed = error
                if (
                    name == migration.source
                    and name not in self._router.live.now.hosts
                    and not migration.source_gone
                ):
                    progress.migration = self._moves.put(migration.lost_source())
            else:
                progress.migration = self._moves.put(migration.abandoned_at(name))
        if failed is not None:
            raise Waits(failed)
        self._moves.drop(progress.migration)
        return False

    def _abandon(self, name: str, migration: Migration) -> None:
        host = self._alive(name)
        try:
            self._router.hosts.abandon_migration(host, migration, seconds=QUICK_SECONDS)
        except WrongState as error:
            if name != migration.destination:
                raise
            # Only after an operator had a living host forgotten: both have the VM now, and both say so.
            _log.error("vm_accepted_and_given_back", vm=migration.vm_id, host=name, error=str(error))

    def _alive(self, name: str) -> Host:
        """Raises NotFound (forgotten), PeerUnavailable (lost)."""
        return alive(self._router.live.now.host(name))


def _doubt(error: ArrayliftError, what: str) -> ArrayliftError:
    return PeerUnavailable(f"{error.message}; {what}", subject=error.subject, next_step=error.next_step)
