"""VMs that move between hosts, as one host sees it: at every instant at most one host can run a VM.

The virtual center leads (``vcenter/migrate.py``): the new host keeps a place (``expect``), the old one hands
over, the new one accepts, the old one finishes; or both abandon. This host can run a VM
  as the old one: until HANDED_OVER is durable, and again once the migration was abandoned here;
  as the new one: from ``accept`` on.
The center never has ``accept`` called before it was told HANDED_OVER, nor after it decided to abandon.
Invariants:
  M1 what is answered is durable. Each step is one record, replaced whole; a step again has no other effect.
  M2 from the first durable step to the end nobody else starts, changes or captures the VM here (``usable``).
  M3 a migration that has ended here is refused from then on, however late its messages come.
  M4 a VM that was handed over is told of as it was before, under the same revision, until it is forgotten:
     so what the new host says of it is always the later word.
  M5 once accepted the VM is this host's own, whether or not its guest could be made to run.
Lock order: VM, then names; ``send`` of a live move runs without. Callers: the edge, any thread.
Failpoints, in order: ``migration.expected``; ``.handing``, ``.sent``, ``.handed-over``; ``.accepting``,
``.running``, ``.accepted``; ``.ended`` (of ``abandon`` and ``finish``), ``.undone``, ``.let-go``; and
those of arraylift.durable under ``vm`` and ``ended-migrations``.
Why: docs/decisions/0099-who-can-run-a-moving-vm.md
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from arraylift.errors import AlreadyExists, ArrayliftError, NotFound, PeerUnavailable, WrongState
from arraylift.failpoints import FAILPOINTS
from arraylift.ids import MigrationId, VmId
from arraylift.logs import get_logger
from arraylift.vm.types import VmConfig
from hostagent.driver import Driver
from hostagent.live_move import DOWNTIME_MS, SEND_SECONDS, LiveMover, MoveProgress
from hostagent.locks import KeyedLocks
from hostagent.machines import Machines, told_of, usable
from hostagent.vm_rules import check_whole_config
from hostagent.vm_store import VmStore
from hostagent.vm_types import Move, VmRecord, VmState

_log = get_logger("migration")


@dataclass(frozen=True, slots=True)
class HandOver:
    """What the old host is asked; ``address`` and limits are of a live move, 0 for the default."""

    vm_id: VmId
    migration_id: MigrationId
    revision: int
    live: bool = False
    address: str = ""
    downtime_ms_max: int = 0
    seconds_max: int = 0


@dataclass(frozen=True, slots=True)
class HandedOver:
    """What goes to the new host, and how long the guest stood still, as far as this host knows."""

    firmware_variables: bytes
    downtime_ns: int


class Migrations:
    """All VMs that come to this host or leave it."""

    def __init__(self, store: VmStore, driver: Driver, locks: KeyedLocks, machines: Machines) -> None:
        self._store, self._vms, self._ended = store, store.vms, store.ended
        self._driver, self._locks, self._machines = driver, locks, machines

    # -- the new host ---------------------------------------------------------------------------

    def expect(
        self, vm_id: VmId, migration_id: MigrationId, config: VmConfig, *, revision: int, live: bool
    ) -> str:
        """Keep a place for a VM; returns where its memory is waited for, "" unless ``live``.

        Raises InvalidRequest, AlreadyExists (name, volume, VM), NotFound (volume), Overloaded, WrongState
        (this VMM cannot; ended), PeerUnavailable (array).
        """
        check_whole_config(config)
        with self._locks.hold(vm_id):
            self._refuse_ended(migration_id)
            wanted = Move(migration_id, live)
            vm = VmRecord(vm_id, config, VmState.EXPECTED, revision, "", (), wanted)
            known = self._vms.find(vm_id)
            if known is None:
                if live:
                    self._mover(vm)
                self._machines.keep_place(vm)
                _log.info("vm_expected", vm=vm_id, migration=migration_id, live=live)
            elif known != vm:
                raise AlreadyExists(
                    f"this host has {known.subject} already, or a place for it",
                    subject=known.subject,
                    next_step="choose another host, or remove what this one has of it",
                )
            FAILPOINTS.hit("migration.expected")
            return self._mover(vm).expect(vm, migration_id) if live else ""

    def accept(self, vm_id: VmId, migration_id: MigrationId, firmware_variables: bytes) -> VmRecord:
        """Take over a VM that was handed over; what ran runs on (M5).

        REQUIRES that the old host said HANDED_OVER. Raises NotFound (no place), PeerUnavailable.
        """
        with self._locks.hold(vm_id):
            vm = self._vms.find(vm_id)
            if vm is not None and vm.came_by == migration_id:
                return vm
            if vm is None or vm.state is not VmState.EXPECTED or vm.in_move.migration_id != migration_id:
                raise NotFound(
                    f"this host keeps no place for VM {vm_id} in migration {migration_id}",
                    subject=f"VM {vm_id}",
                    next_step="if this host lost its state, have the center forget it: the VM goes back",
                )
            FAILPOINTS.hit("migration.accepting")
            self._store.firmware.put(vm_id, firmware_variables)
            if vm.in_move.live and not vm.in_move.handed_over:
                # Before its guest runs: an ``expect`` that comes late must not begin anew with it (M3).
                vm = replace(vm, move=replace(vm.in_move, handed_over=True))
                self._vms.put(vm)
            runs = vm.in_move.live and self._run(vm)
            FAILPOINTS.hit("migration.running")
            state = VmState.ON if runs else VmState.OFF
            vm = replace(vm, state=state, move=None, came_by=migration_id, revision=vm.revision + 1)
            self._vms.put(vm)  # M1
            FAILPOINTS.hit("migration.accepted")
        self._machines.tell()
        _log.info("vm_accepted", vm=vm_id, migration=migration_id, state=state)
        return vm

    def _run(self, vm: VmRecord) -> bool:
        """Let the guest that came run. One whose VMM died here begins anew, as after a power cut (M5)."""
        try:
            self._mover(vm).accept(vm, vm.in_move.migration_id)
        except NotFound as lost:
            _log.warning("moved_guest_lost", vm=vm.vm_id, error=str(lost))
            self._mover(vm).dismiss(vm, vm.in_move.migration_id)  # what waits there waits for nothing
        else:
            return True
        try:
            self._driver.start(vm)
        except PeerUnavailable:
            raise  # an array is away: the center calls again
        except ArrayliftError as error:
            _log.error("moved_vm_stays_off", vm=vm.vm_id, error=str(error))
            return False
        return True

    # -- the old host ---------------------------------------------------------------------------

    def hand_over(self, asked: HandOver, report: Callable[[MoveProgress], None]) -> HandedOver:
        """Give up a VM, a running one by sending its memory; goes on where a call before was cut.

        Raises NotFound, WrongState (runs, and not ``live``; off, and ``live``; changed; another migration;
        ended), PeerUnavailable, DeadlineExceeded: the VM is as before once ``abandon`` was called.
        """
        with self._locks.hold(asked.vm_id):
            vm = self._leaving(asked)
            if not asked.live and not vm.in_move.handed_over:
                vm = self._give_up(vm)
            if vm.in_move.handed_over:
                return self._handed_over(vm)
        sending = self._mover(vm).send(
            vm,
            asked.migration_id,
            asked.address,
            downtime_ms_max=asked.downtime_ms_max or DOWNTIME_MS,
            seconds_max=asked.seconds_max or SEND_SECONDS,
        )
        try:
            for progress in sending:
                report(progress)
            FAILPOINTS.hit("migration.sent")
        finally:
            self._end_late_sending(vm, asked.migration_id)
        with self._locks.hold(asked.vm_id):
            vm = self._leaving(asked)
            if not vm.in_move.handed_over:
                if not self._mover(vm).is_sent(vm, asked.migration_id):
                    raise PeerUnavailable(f"{vm.subject} did not reach the new host", subject=vm.subject)
                vm = self._give_up(vm)
            return self._handed_over(vm)

    def _end_late_sending(self, vm: VmRecord, migration_id: MigrationId) -> None:
        """Abandoned just before it began, or just before it ended, it has left a guest to be let run."""
        with self._locks.hold(vm.vm_id):
            abandoned = migration_id in self._ended and self._vms.find(vm.vm_id) is not None
            # A finish that was cut has ended it as well, and keeps the VM in it: that guest runs elsewhere.
            if abandoned and self._moving(vm.vm_id, migration_id) is None:
                self._mover(vm).take_back(vm, migration_id)

    def _leaving(self, asked: HandOver) -> VmRecord:
        """Return the VM of this migration, from now on nobody else's (M2). Under the VM's lock."""
        self._refuse_ended(asked.migration_id)
        vm = told_of(self._vms.get(asked.vm_id))
        if vm.move is not None:
            if vm.move.migration_id != asked.migration_id:
                raise WrongState(
                    f"{vm.subject} is in migration {vm.move.migration_id} already", subject=vm.subject
                )
            return vm
        usable(vm)
        self._check_leaves(vm, asked)
        vm = replace(vm, move=Move(asked.migration_id, asked.live))
        self._vms.put(vm)
        FAILPOINTS.hit("migration.handing")
        _log.info("vm_leaves", vm=vm.vm_id, migration=asked.migration_id, live=asked.live)
        return vm

    def _check_leaves(self, vm: VmRecord, asked: HandOver) -> None:
        runs = vm.state is VmState.ON
        if vm.revision != asked.revision:
            raise WrongState(
                f"{vm.subject} was changed since its move began",
                subject=vm.subject,
                next_step="move it again",
            )
        if vm.adopted:
            raise WrongState(
                f"{vm.subject} is a guest that this host's admin made, and may start",
                subject=vm.subject,
                next_step="restore a backup of it elsewhere, then remove it here",
            )
        if any(not disk.volume_name for disk in vm.config.disks):
            raise WrongState(f"{vm.subject} has a disk that no array has", subject=vm.subject)
        # Also one that only the VMM knows of: started past us, or by a process that a crash cut.
        if not asked.live and (runs or self._driver.is_running(vm.vm_id)):
            raise WrongState(
                f"{vm.subject} runs", subject=vm.subject, next_step="move it live, or power it off first"
            )
        if asked.live and (not runs or not self._driver.is_running(vm.vm_id)):
            raise WrongState(f"{vm.subject} is off", subject=vm.subject, next_step="move it again")
        if asked.live:
            self._mover(vm)

    def _give_up(self, vm: VmRecord) -> VmRecord:
        """From here on this host does not run the VM (M1, M4). Under the VM's lock."""
        vm = replace(vm, move=replace(vm.in_move, handed_over=True))
        self._vms.put(vm)
        FAILPOINTS.hit("migration.handed-over")
        _log.info("vm_handed_over", vm=vm.vm_id, migration=vm.in_move.migration_id)
        return vm

    def _handed_over(self, vm: VmRecord) -> HandedOver:
        move = vm.in_move
        downtime_ns = self._mover(vm).downtime_ns(vm, move.migration_id) if move.live else 0
        return HandedOver(self._driver.firmware_variables(vm), downtime_ns)

    def finish(self, vm_id: VmId, migration_id: MigrationId) -> None:
        """Forget a VM that the new host has accepted; no error if it is forgotten.

        Raises WrongState (it was not handed over), PeerUnavailable (an array; call again).
        """
        with self._locks.hold(vm_id):
            vm = self._moving(vm_id, migration_id)
            if vm is None:
                return
            if vm.state is VmState.EXPECTED or not vm.in_move.handed_over:
                raise WrongState(f"{vm.subject} was not handed over", subject=vm.subject)
            self._ended.add(migration_id)  # M3
            FAILPOINTS.hit("migration.ended")
            if vm.in_move.live:
                self._mover(vm).let_go(vm, migration_id)
            self._driver.release(vm)
            FAILPOINTS.hit("migration.let-go")
            self._machines.forget(vm)
        _log.info("vm_moved_away", vm=vm_id, migration=migration_id)

    # -- either host ----------------------------------------------------------------------------

    def abandon(self, vm_id: VmId, migration_id: MigrationId) -> None:
        """As if the migration had not begun; no error if it had not.

        REQUIRES that ``accept`` was not and will not be called. Raises WrongState (it was), PeerUnavailable.
        """
        with self._locks.hold(vm_id):
            known = self._vms.find(vm_id)
            if known is not None and known.came_by == migration_id:
                raise WrongState(
                    f"{known.subject} was accepted here in migration {migration_id}", subject=known.subject
                )
            self._ended.add(migration_id)  # M3
            FAILPOINTS.hit("migration.ended")
            vm = self._moving(vm_id, migration_id)
            if vm is None:
                return
            if vm.state is VmState.EXPECTED:
                if vm.in_move.live:
                    self._mover(vm).dismiss(vm, migration_id)
                    if vm.in_move.handed_over:  # an operator took this host for dead while it accepted
                        self._driver.stop(vm, grace_seconds=0, force=True)
                self._driver.release(vm)
                FAILPOINTS.hit("migration.undone")
                self._machines.forget(vm)
            else:
                if vm.in_move.live:
                    self._mover(vm).take_back(vm, migration_id)
                FAILPOINTS.hit("migration.undone")
                self._vms.put(replace(vm, move=None))
        _log.info("migration_abandoned", vm=vm_id, migration=migration_id)

    def _moving(self, vm_id: VmId, migration_id: MigrationId) -> VmRecord | None:
        vm = self._vms.find(vm_id)
        return vm if vm is not None and vm.move is not None and vm.move.migration_id == migration_id else None

    def _refuse_ended(self, migration_id: MigrationId) -> None:
        if migration_id in self._ended:
            raise WrongState(
                f"migration {migration_id} has ended at this host", subject=f"migration {migration_id}"
            )

    def _mover(self, vm: VmRecord) -> LiveMover:
        if self._driver.mover is None:
            raise WrongState(
                f"the VMM {self._driver.name} cannot move a running guest",
                subject=vm.subject,
                next_step="power the VM off and move it then",
            )
        return self._driver.mover
