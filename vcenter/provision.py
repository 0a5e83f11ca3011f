"""Make, power, extend and remove VMs on their hosts, and show it at once.

Invariants:
  P1 a VM id is asked of one host only: which one is durable before that host is asked, and
     forgotten when it is known what came of it. So a retry after any crash makes no second VM.
  P2 what a host answered is in the inventory before the caller is answered.
  P3 no two VMs are made under one name at the same time.
Callers: the edge, on the threads of its calls.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from arraylift.clock import Clock
from arraylift.errors import (
    AlreadyExists,
    ArrayliftError,
    Conflict,
    InvalidRequest,
    NotFound,
    NotPermitted,
    OutOfSpace,
    Overloaded,
    WrongState,
)
from arraylift.ids import VmId
from arraylift.logs import get_logger
from arraylift.vm.types import GRACE_SECONDS, Disk, PowerState, Vm, VmConfig
from vcenter.inventory_store import PLACEMENTS_MAX, InventoryStore, Placement
from vcenter.live_inventory import alive
from vcenter.model import Host
from vcenter.moves import Moves
from vcenter.placement import choose_host
from vcenter.routing import MAKE_SECONDS, QUICK_SECONDS, Budget, Router

POWER_SECONDS = 60.0
"""On top of the guest's own time to shut down."""

PLACEMENT_SECONDS = 600.0
"""Longer than any host works on a request whose deadline, MAKE_SECONDS, has passed."""

_NOTHING_MADE = (InvalidRequest, NotFound, AlreadyExists, WrongState, NotPermitted, OutOfSpace, Overloaded)
"""After these the host has no VM of ours: its contract says that nothing is left."""

_log = get_logger("vcenter")


class Provisioner:
    """Serves one center."""

    def __init__(self, router: Router, store: InventoryStore, moves: Moves, clock: Clock) -> None:
        self._router = router
        self._moves = moves
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._placements = {placement.vm_id: placement for placement in store.placements()}
        self._asked_at = dict.fromkeys(self._placements, clock.monotonic())
        self._running: dict[VmId, str] = {}

    # -- making ---------------------------------------------------------------------------------

    def place(
        self,
        *,
        memory_bytes: int,
        cpus: int,
        arrays: frozenset[str],
        among: Callable[[Host], bool] = lambda _: True,
    ) -> Host:
        """Return the host that a VM would go to now. Raises Overloaded, PeerUnavailable."""
        with self._lock:
            promised = self._promised()
        now = self._router.live.now
        return choose_host(
            now, memory_bytes=memory_bytes, cpus=cpus, arrays=arrays, promised=promised, among=among
        )

    def provision(
        self,
        vm_id: VmId,
        config: VmConfig,
        host_name: str,
        budget: Budget,
        *,
        firmware_variables: bytes = b"",
    ) -> tuple[Vm, Host]:
        """Make a VM on the named host, or on a chosen one if the name is empty. Idempotent by id.

        Raises AlreadyExists (name, or the id on another host), Conflict (being made right now),
        NotFound (host), Overloaded, PeerUnavailable, and what the host raises.
        """
        with self._reserved(vm_id, config.name):
            host = self._host_for(vm_id, config, host_name)
            try:
                made = self._router.hosts.create_vm(
                    host,
                    vm_id,
                    config,
                    firmware_variables=firmware_variables,
                    seconds=budget.at_most(MAKE_SECONDS),
                )
            except ArrayliftError as error:
                if isinstance(error, _NOTHING_MADE):
                    self._settle(vm_id)
                raise
            vm = self._router.take(made, host, vm_id)
            self._settle(vm_id)
        _log.info("vm_provisioned", vm=vm_id, name=config.name, host=host.name)
        return vm, host

    def _host_for(self, vm_id: VmId, config: VmConfig, wanted: str) -> Host:
        """Return the host that is asked, and note that it is (P1)."""
        now = self._router.live.now
        with self._lock:
            self._drop_ended()
            asked_before = self._placements.get(vm_id)
            promised = self._promised()
        known = now.shown.get(vm_id)
        name = known.host if known else asked_before.host if asked_before else ""
        if name and wanted not in ("", name):
            raise AlreadyExists(
                f"VM {vm_id} is on host {name}, or may be: that host was asked for it before",
                subject=f"vm {vm_id}",
                next_step="name that host or none; if it is gone for good, remove it",
            )
        if name or wanted:
            host = alive(now.host(name or wanted))
        else:
            host = choose_host(
                now,
                memory_bytes=config.memory_bytes,
                cpus=config.cpus,
                arrays=config.arrays(),
                promised=promised,
            )
        if known is None and asked_before is None:
            self._promise(Placement(vm_id, host.name, config.memory_bytes))
        return host

    @contextlib.contextmanager
    def _reserved(self, vm_id: VmId, name: str) -> Iterator[None]:
        """P3; and one request for a VM id at a time."""
        with self._lock:
            if vm_id in self._running or name in self._running.values():
                raise Conflict(
                    f"a VM named {name}, or with the id {vm_id}, is being made right now",
                    subject=f"vm {name}",
                    next_step="wait for that, then repeat",
                )
            taken = [other for other in self._router.live.now.ids_by_name.get(name, ()) if other != vm_id]
            if taken:
                raise AlreadyExists(
                    f"VM {taken[0]} is named {name}", subject=f"vm {name}", next_step="choose another name"
                )
            self._running[vm_id] = name
        try:
            yield
        finally:
            with self._lock:
                del self._running[vm_id]

    # -- placements -----------------------------------------------------------------------------

    def _promised(self) -> dict[str, int]:
        """Return promised bytes by host. Under the lock."""
        now = self._router.live.now
        promised = self._moves.promised()
        for placement in self._placements.values():
            if placement.vm_id not in now.shown:
                promised[placement.host] = promised.get(placement.host, 0) + placement.memory_bytes
        return promised

    def _drop_ended(self) -> None:
        """Forget the placements whose end shows in the inventory. Under the lock.

        A VM that a living host does not show, PLACEMENT_SECONDS after we asked, it never made.
        """
        now, time = self._router.live.now, self._clock.monotonic()

        def ended(one: Placement) -> bool:
            host = now.hosts.get(one.host)
            if one.vm_id in now.shown or host is None:
                return True
            return not host.lost and time - self._asked_at[one.vm_id] > PLACEMENT_SECONDS

        self._forget([one.vm_id for one in self._placements.values() if ended(one)])

    def _promise(self, placement: Placement) -> None:
        with self._lock:
            if len(self._placements) >= PLACEMENTS_MAX:
                raise Overloaded(
                    f"of {PLACEMENTS_MAX} VMs it is not known whether they were made",
                    next_step="repeat those requests, or remove the hosts that do not answer",
                )
            self._store.note_placement(placement)
            self._placements[placement.vm_id] = placement
            self._asked_at[placement.vm_id] = self._clock.monotonic()

    def _settle(self, vm_id: VmId) -> None:
        with self._lock:
            self._forget([vm_id] if vm_id in self._placements else [])

    def _forget(self, vm_ids: list[VmId]) -> None:
        if vm_ids:
            self._store.forget_placements(vm_ids)
        for vm_id in vm_ids:
            del self._placements[vm_id], self._asked_at[vm_id]

    # -- what is there --------------------------------------------------------------------------

    def attach(self, vm_id: VmId, disk: Disk, budget: Budget) -> Vm:
        """Add a volume to a VM. Idempotent. Raises NotFound, PeerUnavailable, what the host raises."""

        def ask(host: Host, _vm: Vm) -> Vm:
            seconds = budget.at_most(QUICK_SECONDS)
            answered = self._router.hosts.attach_volume(host, vm_id, disk, seconds=seconds)
            return self._router.take(answered, host, vm_id)

        return self._router.at_host(vm_id, ask, budget)

    def power(self, vm_id: VmId, power: PowerState, *, grace_seconds: int, force: bool, budget: Budget) -> Vm:
        """Switch a VM on or off; off asks the guest first. Idempotent. Raises as ``attach``."""
        hosts = self._router.hosts
        grace = grace_seconds or GRACE_SECONDS

        def ask(host: Host, _vm: Vm) -> Vm:
            if power is PowerState.ON:
                answered = hosts.power_on(host, vm_id, seconds=budget.at_most(POWER_SECONDS))
            else:
                seconds = budget.at_most(POWER_SECONDS + grace)
                answered = hosts.power_off(host, vm_id, grace_seconds=grace, force=force, seconds=seconds)
            return self._router.take(answered, host, vm_id)

        return self._router.at_host(vm_id, ask, budget)

    def remove(self, vm_id: VmId, *, keep_volumes: bool, missing_ok: bool, budget: Budget) -> None:
        """Remove a VM from its host. Raises NotFound (unless missing_ok), PeerUnavailable, the host's."""

        def ask(host: Host, _vm: Vm) -> None:
            # Never missing_ok at the host: a VM that moved must be looked for, not taken for gone.
            seconds = budget.at_most(MAKE_SECONDS)
            self._router.hosts.delete_vm(host, vm_id, keep_volumes=keep_volumes, seconds=seconds)
            self._router.live.apply_removal(host.name, vm_id)

        if missing_ok and vm_id not in self._router.live.now.shown:
            return
        self._router.at_host(vm_id, ask, budget)
        _log.info("vm_removed", vm=vm_id, keep_volumes=keep_volumes)
