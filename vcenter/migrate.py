"""Move VMs between hosts, and bring to an end what a crash has left on its way.

Invariants:
  R1 a migration goes on whether or not anybody follows it; whoever asks for the same follows the same.
  R2 every migration that has not ended is taken up by the process that opens the inventory.
  R3 followers are answered as soon as the VM is in a place: the new one, or the old one again.
Threads: one for each migration that moves a VM, ``migrations-left`` for all that are left over.
Limits: moves.py; RETRY_SECONDS between two questions to a host that is awaited.
Callers: the edge, on the threads of its calls.
Failpoints: those of moves.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from arraylift.clock import Clock
from arraylift.errors import ArrayliftError, Conflict, PeerUnavailable, StoreFailed, WrongState
from arraylift.ids import MigrationId, VmId, random_id
from arraylift.logs import get_logger
from arraylift.outcome import attempt
from arraylift.vm.types import Vm
from vcenter.live_inventory import alive
from vcenter.migration import Migration, Phase
from vcenter.migration_steps import MigrationSteps, Progress, Waits
from vcenter.model import Host
from vcenter.moves import Moves
from vcenter.provision import Provisioner
from vcenter.routing import Budget, MemorySent, Router

RETRY_SECONDS = 2.0
POLL_SECONDS = 0.5
JOIN_SECONDS = 5.0

_log = get_logger("vcenter")


@dataclass(frozen=True, slots=True)
class Asked:
    """A VM, and where it is to go; ``host`` empty: where there is room."""

    vm_id: VmId
    host: str = ""
    live: bool = False
    downtime_ms_max: int = 0
    seconds_max: int = 0


@dataclass(frozen=True, slots=True)
class News:
    """What a follower sees. ``moved`` is set in the last one."""

    phase: str
    sent: MemorySent
    waits_for: str = ""
    moved: tuple[Vm, Host] | None = None
    downtime_ns: int = 0


class _Run:
    """A migration that a thread drives, and those who follow it."""

    def __init__(self, progress: Progress, drive: Callable[[_Run], None]) -> None:
        self.progress = progress
        progress.told = self.tell
        name = f"migration {progress.migration.vm_id[:8]}"
        self.thread = threading.Thread(target=drive, args=(self,), name=name, daemon=True)
        self.changed = threading.Condition()
        self.waits_for = ""
        self.settled = False
        self.error: ArrayliftError | None = None

    def tell(self) -> None:
        with self.changed:
            self.changed.notify_all()

    def settle(self, error: ArrayliftError | None = None) -> None:
        """R3."""
        with self.changed:
            if not self.settled:
                self.settled, self.error = True, error
                self.changed.notify_all()


class Migrator:
    """Serves one center. ``start`` once, before anybody calls; then ``close``."""

    def __init__(self, router: Router, moves: Moves, provisioner: Provisioner, clock: Clock) -> None:
        self._router, self._moves, self._provisioner, self._clock = router, moves, provisioner, clock
        self._steps = MigrationSteps(router, moves)
        self._lock = threading.Lock()
        self._runs: dict[MigrationId, _Run] = {}
        self._closing = self._steps.closing
        self._left = threading.Thread(target=self._drive_left, name="migrations-left", daemon=True)
        for migration, _ in moves.all():
            if migration.phase is Phase.FINISH:
                router.live.depart(migration.vm_id, migration.source)

    def start(self) -> None:
        """Take up what is there (R2)."""
        for migration, _ in self._moves.all():
            if not migration.is_left_over:
                _log.info("migration_taken_up", vm=migration.vm_id, phase=migration.phase.value)
                self._drive(Progress(migration))
        self._left.start()

    def close(self) -> None:
        """Stop driving; everything is as it was stored. Calls to hosts end by their channels."""
        self._closing.set()
        with self._lock:
            runs = list(self._runs.values())
        for run in runs:
            run.settle(PeerUnavailable("the virtual center is shutting down", next_step="ask again later"))

    def join(self) -> None:
        """Wait for the threads, for a while: the inventory is to be closed."""
        with self._lock:
            threads = [run.thread for run in self._runs.values()]
        for thread in [*threads, self._left]:
            if thread.is_alive():
                thread.join(timeout=JOIN_SECONDS)

    # -- calls ----------------------------------------------------------------------------------

    def migrate(self, asked: Asked, is_active: Callable[[], bool], budget: Budget) -> Iterator[News]:
        """Begin a migration, or follow the one of the same VM to the same host (R1).

        Raises NotFound, WrongState, Conflict, Overloaded, PeerUnavailable; what a host raised, once the VM
        is where it was.
        """
        run = self._followed(asked)
        if run is None:
            yield News("place", MemorySent(0, 0))
            run = self._begin(asked, budget)
        yield from self._follow(run, is_active)

    def _followed(self, asked: Asked) -> _Run | None:
        with self._lock:
            migration = self._moves.of_vm(asked.vm_id)
            run = self._runs.get(migration.migration_id) if migration else None
        if migration is None or run is None:
            return None
        if asked.host not in ("", migration.destination):
            raise Conflict(
                f"{migration.subject} is being moved to {migration.destination}",
                subject=f"vm {asked.vm_id}",
                next_step="wait for that, then repeat",
            )
        return run

    def _begin(self, asked: Asked, budget: Budget) -> _Run:
        source, _ = self._router.live.locate(asked.vm_id)
        self._router.synchronize(source.name, budget)  # both hosts are told the VM as it is now
        source, vm = self._router.live.locate(asked.vm_id)
        destination = self._destination(asked, vm, source)
        migration = Migration(
            MigrationId(random_id()),
            vm.vm_id,
            vm.config.name,
            source.name,
            destination.name,
            live=asked.live and vm.running,
            revision=vm.revision,
            memory_bytes=vm.config.memory_bytes,
            began_at_ns=self._clock.wall_ns(),
            downtime_ms_max=asked.downtime_ms_max,
            seconds_max=asked.seconds_max,
        )
        self._moves.begin(migration)
        return self._drive(Progress(migration, vm.config))

    def _destination(self, asked: Asked, vm: Vm, source: Host) -> Host:
        subject = f"vm {vm.vm_id}"
        if any(not disk.volume_name for disk in vm.config.disks):
            raise WrongState(
                f"VM {vm.config.name} has a disk that only host {source.name} can read",
                subject=subject,
                next_step="back it up and restore it on an array; then it can be moved",
            )
        if vm.running and not asked.live:
            raise WrongState(
                f"VM {vm.config.name} runs", subject=subject, next_step="move it live, or stop it first"
            )
        if asked.host == source.name:
            raise WrongState(f"VM {vm.config.name} is on host {source.name} already", subject=subject)
        if asked.host:
            wanted = alive(self._router.live.now.host(asked.host))
            if wanted.driver != source.driver:
                raise WrongState(
                    f"host {wanted.name} runs VMs by {wanted.driver}, host {source.name} by {source.driver}",
                    subject=subject,
                    next_step="choose a host with the same VMM, or restore a backup there",
                )
        return self._provisioner.place(
            memory_bytes=vm.config.memory_bytes,
            cpus=vm.config.cpus,
            arrays=vm.config.arrays(),
            among=lambda host: (
                host.name != source.name and host.driver == source.driver and asked.host in ("", host.name)
            ),
        )

    def _follow(self, run: _Run, is_active: Callable[[], bool]) -> Iterator[News]:
        seen: News | None = None
        while is_active():
            with run.changed:
                now = self._news(run)
                if now == seen and not run.settled:
                    run.changed.wait(POLL_SECONDS)
                    continue
                settled, error = run.settled, run.error
            if settled and error is not None:
                raise error
            if settled:
                yield self._last_news(run)
                return
            seen = now
            yield now

    def _news(self, run: _Run) -> News:
        return News(run.progress.migration.phase.value, run.progress.sent, run.waits_for)

    def _last_news(self, run: _Run) -> News:
        progress = run.progress
        assert progress.moved is not None, "it was accepted"
        host = self._router.live.now.host(progress.moved.host)
        moved = progress.moved, host
        return News(Phase.FINISH.value, progress.sent, moved=moved, downtime_ns=progress.downtime_ns)

    # -- driving --------------------------------------------------------------------------------

    def _drive(self, progress: Progress) -> _Run:
        run = _Run(progress, self._run)
        with self._lock:
            self._runs[progress.migration.migration_id] = run
        run.thread.start()
        return run

    def _run(self, run: _Run) -> None:
        _, error = attempt(lambda: self._steps_of(run), "migration")
        if error is not None:
            run.settle(error)
        with self._lock:
            del self._runs[run.progress.migration.migration_id]

    def _steps_of(self, run: _Run) -> None:
        """Take steps until the VM is in a place; what is left over then is ``migrations-left``'s."""
        going = True
        while going and not self._closing.is_set():
            left_over = run.progress.migration.is_left_over
            going, why = self._step(run.progress)
            run.waits_for = why
            run.tell()
            self._settle(run)
            if left_over and going:
                return  # it was tried at once, once
            if why and not run.progress.migration.is_left_over:
                self._closing.wait(RETRY_SECONDS)

    def _settle(self, run: _Run) -> None:
        progress = run.progress
        if not progress.migration.is_left_over:
            return
        if progress.migration.phase is Phase.FINISH:
            run.settle()
        else:
            run.settle(progress.error or WrongState(progress.migration.why, next_step="move it again"))

    def _step(self, progress: Progress) -> tuple[bool, str]:
        """Whether it goes on, and what it waits for before it does."""
        migration = progress.migration
        why = ""
        try:
            going = self._steps.take(progress)
        except Waits as waits:
            going, why = True, str(waits)
        except StoreFailed:
            raise
        except ArrayliftError as error:  # our own disk is full: the step is taken again
            going, why = True, str(error)
        if why:
            _log.info("migration_waits", vm=migration.vm_id, phase=migration.phase.value, waits_for=why)
        if going:
            self._moves.wait(progress.migration, why)
        return going, why

    def _drive_left(self) -> None:
        while not self._closing.wait(RETRY_SECONDS):
            with self._lock:
                driven = set(self._runs)
            for migration, _ in self._moves.all():
                if migration.is_left_over and migration.migration_id not in driven:
                    _, error = attempt(
                        lambda migration=migration: self._step(Progress(migration)),  # type: ignore[misc]
                        "what is left of a migration",
                    )
                    if error is not None:
                        _log.warning("migration_left_waits", vm=migration.vm_id, error=str(error))
                if self._closing.is_set():
                    return
