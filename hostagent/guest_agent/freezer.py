"""Freezes through guest agents: held in bounds, thawed whatever dies, their level known and not assumed.

Invariants:
  F1 a guest is asked to freeze only when a guard watches (guard_process W3), which thaws when this process
     dies or is late; the guard goes only when the agent has said that it thawed.
  F2 in every order of events the last thing asked of an agent is a thaw: one that comes while a freeze
     is under way only ends that, which then raises; the thaw that must follow it is the last word.
  F3 a thaw that the agent did not confirm is asked for again, KEEP_TRIES times, by a thread of its own.
  F4 FILESYSTEM: as many file systems were still frozen at the thaw as had been frozen. APPLICATION: besides,
     the guest's hook has left this freeze's own number behind (docs/protocols/fsfreeze-hook.md).
Callers: drivers; freeze and kept_level on the thread that holds the VM's lock, thaw on any.
Why: docs/decisions/0090-the-guest-agent.md, docs/decisions/0091-the-guard-of-a-freeze.md
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from arraylift.clock import SYSTEM_CLOCK, Clock
from arraylift.errors import ArrayliftError, DeadlineExceeded, Overloaded
from arraylift.failpoints import FAILPOINTS
from arraylift.ids import VmId, random_id
from arraylift.logs import get_logger
from arraylift.vm.types import ConsistencyLevel
from hostagent.guest_agent.agent import GuestAgent
from hostagent.guest_agent.channel import AgentRefused
from hostagent.guest_agent.guard_process import Guard
from hostagent.vm_types import FREEZE_SECONDS_MAX

GUARD_SECONDS = FREEZE_SECONDS_MAX - 0.5
"""When a guard thaws behind the back of a process that lives and does not."""

THAW_SECONDS = 3.0
RESUME_SECONDS = 0.5
"""How long a start waits for one guest's thaw; asked it is in any case, before anything else."""

KEEP_TRIES, KEEP_SECONDS_MAX = 20, 60.0
HELD_SECONDS_MAX = 30.0
"""Longest time that a file's piece waits for a thaw."""

HOOK_REQUEST = "/run/arraylift-freeze-request"
HOOK_EVIDENCE = "/run/arraylift-freeze-done"

_log = get_logger("freezer")


class _Freeze:
    """One guest's last freeze. ``busy``, ``sent`` and ``ended`` under ``lock``."""

    def __init__(self, agent: GuestAgent) -> None:
        self.agent = agent
        self.lock = threading.Lock()
        self.busy = self.sent = self.ended = False
        self.holds_files = True
        self.thawed = threading.Event()
        self.number = ""
        self.frozen_count = self.freed_count = 0
        self.guard: Guard | None = None


class AgentFreezer:
    """All guests of one driver. ``agent_of`` raises PeerUnavailable for one without a channel."""

    def __init__(
        self,
        agent_of: Callable[[VmId], GuestAgent],
        *,
        clock: Clock = SYSTEM_CLOCK,
        guard_seconds: float = GUARD_SECONDS,
    ) -> None:
        self._agent_of, self._clock, self._guard_seconds = agent_of, clock, guard_seconds
        self._changed = threading.Condition()
        self._freezes: dict[VmId, _Freeze] = {}

    # -- freezing -------------------------------------------------------------------------------

    def freeze(self, vm_id: VmId, subject: str, *, timeout_seconds: float) -> ConsistencyLevel:
        """D1. Returns FILESYSTEM, or CRASH where nothing is mounted.

        Raises DeadlineExceeded, PeerUnavailable (no agent), AgentRefused (a hook failed).
        """
        deadline = self._clock.monotonic() + timeout_seconds
        freeze = self._begin(vm_id, _Freeze(self._agent_of(vm_id)))
        freeze.busy = True
        try:
            self._prepare(freeze, subject)
            with freeze.lock:
                self._refuse_ended(freeze, subject)
                freeze.sent = True
            FAILPOINTS.hit("guest-agent.freeze.before")
            left = max(0.1, deadline - self._clock.monotonic())
            freeze.frozen_count = freeze.agent.freeze(timeout_seconds=left)
            FAILPOINTS.hit("guest-agent.freeze.after")
        finally:
            with freeze.lock:
                freeze.busy = False
        self._refuse_ended(freeze, subject)
        return ConsistencyLevel.FILESYSTEM if freeze.frozen_count else ConsistencyLevel.CRASH

    def _prepare(self, freeze: _Freeze, subject: str) -> None:
        """Tell the guest's hook this freeze's number, and set a guard (F1)."""
        with contextlib.suppress(AgentRefused):  # its files are closed to us: no hook will say a thing
            number = random_id()
            freeze.agent.write_small(HOOK_REQUEST, number.encode())
            freeze.number = number
        target = freeze.agent.channel.guard()
        freeze.guard = Guard.started(target, seconds=self._guard_seconds, subject=subject)

    def thaw(self, vm_id: VmId) -> None:
        """D2. No effect on a guest that this process has not frozen."""
        with self._changed:
            freeze = self._freezes.get(vm_id)
        if freeze is None:
            return
        with freeze.lock:
            freeze.ended, busy = True, freeze.busy
        if busy:
            with contextlib.suppress(ArrayliftError):
                freeze.agent.thaw(timeout_seconds=THAW_SECONDS)
        elif not self._try_thaw(vm_id, freeze):
            self._keep_thawing(vm_id, freeze)

    def kept_level(self, vm_id: VmId, reached: ConsistencyLevel) -> ConsistencyLevel:
        """D5, F4: after the thaw."""
        with self._changed:
            freeze = self._freezes.get(vm_id)
        if freeze is None or reached <= ConsistencyLevel.CRASH or not freeze.thawed.is_set():
            return ConsistencyLevel.CRASH
        if freeze.freed_count < freeze.frozen_count:
            _log.warning(
                "guest_thawed_by_another",
                vm=vm_id,
                frozen_count=freeze.frozen_count,
                freed_count=freeze.freed_count,
            )
            return ConsistencyLevel.CRASH
        if freeze.number:
            with contextlib.suppress(ArrayliftError):
                if freeze.agent.read_small(HOOK_EVIDENCE).strip() == freeze.number.encode():
                    return ConsistencyLevel.APPLICATION
        return ConsistencyLevel.FILESYSTEM

    # -- other processes, other calls -----------------------------------------------------------

    def resume(self, vm_id: VmId) -> None:
        """D3: a process before this one may have frozen it. Never raises for the guest."""
        try:
            freeze = _Freeze(self._agent_of(vm_id))
        except ArrayliftError as error:
            _log.info("guest_without_agent", vm=vm_id, error=str(error))
            return
        freeze.sent = freeze.ended = True
        freeze.holds_files = False  # there may be no agent; if there is, it thaws before it does anything
        self._begin(vm_id, freeze)
        self._keep_thawing(vm_id, freeze)
        freeze.thawed.wait(RESUME_SECONDS)

    def forget(self, vm_id: VmId) -> None:
        """The guest does not run any more."""
        with self._changed:
            freeze = self._freezes.pop(vm_id, None)
            self._changed.notify_all()
        if freeze is not None:
            freeze.thawed.set()
            if freeze.guard is not None:
                freeze.guard.release()

    def wait_for_thaw(self, vm_id: VmId, subject: str) -> object:
        """For files: return when the guest is not frozen, with its last freeze. Raises Overloaded."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._frozen(vm_id), HELD_SECONDS_MAX):
                raise Overloaded(f"{subject} is frozen", subject=subject, next_step="repeat later")
            return self._freezes.get(vm_id)

    def has_frozen_since(self, vm_id: VmId, last: object) -> bool:
        """Another freeze has begun."""
        with self._changed:
            return self._freezes.get(vm_id) is not last

    # -- inside ---------------------------------------------------------------------------------

    def _begin(self, vm_id: VmId, freeze: _Freeze) -> _Freeze:
        with self._changed:
            self._freezes[vm_id] = freeze
        return freeze

    def _frozen(self, vm_id: VmId) -> bool:
        freeze = self._freezes.get(vm_id)
        return freeze is not None and freeze.holds_files and not freeze.thawed.is_set()

    def _try_thaw(self, vm_id: VmId, freeze: _Freeze) -> bool:
        """Ask once; True if the agent has confirmed it, or was never asked to freeze."""
        if not freeze.thawed.is_set():
            try:
                if freeze.sent:
                    freeze.freed_count += freeze.agent.thaw(timeout_seconds=THAW_SECONDS)
            except ArrayliftError as error:
                _log.warning("thaw_unconfirmed", vm=vm_id, error=str(error))
                return False
            with self._changed:
                freeze.thawed.set()
                self._changed.notify_all()
        if freeze.guard is not None:
            freeze.guard.release()  # F1
        return True

    def _keep_thawing(self, vm_id: VmId, freeze: _Freeze) -> None:
        """F3."""

        def keep() -> None:
            seconds = 0.5
            for _ in range(KEEP_TRIES):
                with self._changed:
                    if self._freezes.get(vm_id) is not freeze:
                        return  # a later one: before it began the agent had answered, and so had thawed
                if self._try_thaw(vm_id, freeze) or freeze.thawed.wait(seconds):
                    return
                seconds = min(KEEP_SECONDS_MAX, seconds * 2)
            _log.error("thaw_given_up", vm=vm_id, tries=KEEP_TRIES)

        threading.Thread(target=keep, name="thaw-keeper", daemon=True).start()

    @staticmethod
    def _refuse_ended(freeze: _Freeze, subject: str) -> None:
        if freeze.ended:
            raise DeadlineExceeded(
                f"{subject} did not stand still in time",
                subject=subject,
                next_step="look what holds the guest's disks up",
            )
