"""Collect the garbage of one unit: mark, plan, delete, condemn, copy forward (law 8).

A cycle: mark what is alive; delete what an older cycle condemned, if it is still dead; condemn what
is dead now; copy what is alive out of sparse containers, and condemn those. Deleting comes first,
as it needs no room. A kill at any point leaves a store that the next cycle finds in order: whatever
a cycle did is done, and what it knew it learns again.
Invariants:
  G1 a container is deleted only if it was condemned two cycles ago or earlier, is dead in this
     cycle's own mark, and was not pinned at any moment of this cycle; the last is looked at under the
     lock under which "present" is said and images are published.
  G2 only containers that were indexed when the cycle began are judged.
  G3 a mark that fails changes nothing. If anything was quarantined since the mark began, the cycle
     deletes nothing more: an older copy may be needed after all.
  G4 a container that still has a record which a live image lost is kept, and its healthy records
     are indexed again: so the image heals.
Limits: memory as slots.py and tree_walk.py say, and one container buffer.
Callers: the edge and the schedule, one cycle a unit at a time (maintenance.py).
Source: US 2016/0170666 [0029]. Decision: docs/decisions/0047-collection-by-cycles.md
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from arraylift.clock import Clock
from arraylift.errors import ArrayliftError, Cancelled, Corruption, NotFound, OutOfSpace, Overloaded
from arraylift.ids import ContainerId
from arraylift.logs import get_logger
from arraylift.sizes import MIB
from dedup_target.copy_forward import CopyForward
from dedup_target.mark import LiveTransfers, Mark
from dedup_target.rate_limit import RateLimit
from dedup_target.rebuild import without
from dedup_target.storage_unit import StorageUnit

CYCLES_CONDEMNED = 2
"""A container condemned in cycle n is deleted in n + 2."""
LIVE_PERCENT_MIN = 50
COPY_FREE_BYTES_MIN = 512 * MIB
"""Nothing is copied forward below this much free: its room comes back two cycles later."""
WORK_SECONDS, REST_SECONDS_MAX = 0.02, 1.0
"""A gentle cycle works so long, then rests as long as that took."""
SAVE_EVERY = 64
"""Containers copied between two saves of the state."""

_log = get_logger("collect")


@dataclass(frozen=True, slots=True)
class CollectOptions:
    """How to collect."""

    dry_run: bool = False
    live_percent_min: int = LIVE_PERCENT_MIN
    """A container with fewer of its stored bytes alive is copied forward; 0: none is."""
    bytes_per_second_max: int = 0
    """Of copying; 0: as fast as it goes."""
    gentle: bool = False
    """Rest as long as it works, so that backups and restores come first."""


@dataclass(frozen=True, slots=True)
class CollectFigures:
    """Progress, and at the end what a cycle found and did; with a dry run, what it would do."""

    phase: str = "mark"
    done: int = 0
    """Of the phase: roots, containers."""
    total: int = 0
    cycle: int = 0
    container_count: int = 0
    live_bytes: int = 0
    dead_bytes: int = 0
    condemned_count: int = 0
    copied_container_count: int = 0
    copied_bytes: int = 0
    deleted_count: int = 0
    deleted_bytes: int = 0
    pinned_count: int = 0
    spared_count: int = 0
    """Dead containers kept because of damage (G4)."""


@dataclass(slots=True)
class CollectPlan:
    """What a mark leads to; rows of its slots."""

    due: list[int] = field(default_factory=list)
    """To be deleted now (G1)."""
    dead: list[int] = field(default_factory=list)
    """To be condemned now."""
    sparse: list[int] = field(default_factory=list)
    """To be copied forward, by tenant, kind and age."""
    revived: list[ContainerId] = field(default_factory=list)
    """Condemned once, and alive or pinned now."""
    pinned: int = 0


Report = Callable[[CollectFigures], None]


class Collector:
    """Collects the units of one target."""

    def __init__(self, live: Callable[[StorageUnit], LiveTransfers], clock: Clock) -> None:
        """``live`` says which transfers have a unit for their own."""
        self._live = live
        self._clock = clock

    def collect(
        self,
        unit: StorageUnit,
        options: CollectOptions,
        *,
        report: Report = lambda _: None,
        stopping: threading.Event | None = None,
    ) -> CollectFigures:
        """Run one cycle. Raises Conflict (maintenance runs), Corruption (nothing was deleted, G3),
        Cancelled, StoreFailed."""
        with unit.maintenance.begin("garbage collection"), unit.pins.watching():
            cycle = _Cycle(
                unit, self._live(unit), options, self._clock, report, stopping or threading.Event()
            )
            return cycle.run()

    def collect_all(
        self, units: Iterable[StorageUnit], options: CollectOptions, stopping: threading.Event
    ) -> None:
        """Run a cycle of each; what is wrong with one, or runs in it, keeps none of the others."""
        for unit in units:
            try:
                self.collect(unit, options, stopping=stopping)
            except Cancelled:
                return
            except ArrayliftError as error:
                _log.warning("not_collected", unit=unit.name, why=str(error))


class _Cycle:
    """One cycle of one unit."""

    def __init__(
        self,
        unit: StorageUnit,
        live: LiveTransfers,
        options: CollectOptions,
        clock: Clock,
        report: Report,
        stopping: threading.Event,
    ) -> None:
        self._unit = unit
        self._state = unit.gc_state
        self._options = options
        self._clock = clock
        self._report = report
        self._stopping = stopping
        self._rested_at = clock.monotonic()
        self._additions = unit.quarantine.additions  # before the mark (G3)
        self._mark = Mark(unit, live, check=self._check)
        self._limit = RateLimit(clock, options.bytes_per_second_max)
        self._figures = CollectFigures(cycle=self._state.cycle + 1)

    def run(self) -> CollectFigures:
        mark, slots = self._mark, self._mark.slots
        mark.run(lambda progress: self._tell("mark", progress.done, progress.total))
        live_bytes = int(mark.live_bytes.sum())
        self._note(
            container_count=len(slots),
            live_bytes=live_bytes,
            dead_bytes=int(slots.stored_bytes.sum()) - live_bytes,
        )
        plan = self._plan()
        self._note(condemned_count=len(plan.dead), pinned_count=plan.pinned)
        self._tell("plan", 0, len(plan.due) + len(plan.dead) + len(plan.sparse))
        if self._options.dry_run:
            return self._foretell(plan)
        self._check()
        self._state.cycle = self._figures.cycle
        self._state.spare(plan.revived)
        self._delete(plan)
        self._condemn(plan)
        self._copy(plan)
        self._unit.pins.forget_hidden(self._unit.containers.containers)
        self._tell("done", 0, 0)
        _log.info("garbage_collected", unit=self._unit.unit_id, **_facts(self._figures))
        return self._figures

    # -- planning ---------------------------------------------------------------------------

    def _plan(self) -> CollectPlan:
        mark, slots, condemned = self._mark, self._mark.slots, self._state.condemned
        plan = CollectPlan()
        live, stored = mark.live_bytes, slots.stored_bytes
        dead = mark.live_records == 0
        sparse = ~dead & (live * 100 < stored * self._options.live_percent_min)
        for row in np.lexsort((slots.containers, slots.kinds, slots.tenants)).tolist():
            container = slots.container(row)
            if self._unit.pins.is_spared(container):
                plan.pinned += bool(dead[row] or sparse[row])
            elif dead[row]:
                cycle = condemned.get(container)
                if cycle is None:
                    plan.dead.append(row)
                elif cycle + CYCLES_CONDEMNED <= self._figures.cycle:
                    plan.due.append(row)
                continue
            elif sparse[row]:
                plan.sparse.append(row)
            if container in condemned:
                plan.revived.append(container)
        return plan

    def _foretell(self, plan: CollectPlan) -> CollectFigures:
        rows = self._mark
        self._note(
            copied_container_count=len(plan.sparse),
            copied_bytes=int(rows.live_bytes[plan.sparse].sum()),
            deleted_count=len(plan.due),
            deleted_bytes=int(rows.slots.file_bytes[plan.due].sum()),
        )
        self._tell("done", 0, 0)
        return self._figures

    # -- deleting ---------------------------------------------------------------------------

    def _delete(self, plan: CollectPlan) -> None:
        for done, row in enumerate(plan.due):
            self._check()
            self._tell("delete", done, len(plan.due))
            container = self._mark.slots.container(row)
            with self._unit.quarantine.lock:
                if self._unit.quarantine.additions != self._additions:
                    _log.warning("deletion_stopped", unit=self._unit.unit_id, why="records were quarantined")
                    return  # G3
                if self._is_needed(container):
                    self._note(spared_count=self._figures.spared_count + 1)
                elif self._unit.remove_container(container):
                    self._state.spare([container])
                    self._note(
                        deleted_count=self._figures.deleted_count + 1,
                        deleted_bytes=self._figures.deleted_bytes + int(self._mark.slots.file_bytes[row]),
                    )
                else:  # pinned since the plan
                    self._state.spare([container])
                    self._note(pinned_count=self._figures.pinned_count + 1)

    def _is_needed(self, container: ContainerId) -> bool:
        """Whether a dead container must be kept: its directory is damaged, so nobody can say which entries
        to take away, or it has what a live image lost (G4)."""
        try:
            sealed = self._unit.containers.read_directory(container)
        except (Corruption, NotFound) as error:
            _log.error("dead_container_kept", container=container, why=str(error))
            return True
        if sealed.damage:
            _log.error("dead_container_kept", container=container, why=sealed.damage)
            return True
        if not self._mark.lost:
            return False
        names = set(sealed.directory["fingerprint"].tolist())
        lost = {name for tenant, name in self._mark.lost if tenant == sealed.tenant} & names
        if not lost:
            return False
        bad = self._unit.quarantine.bad_of(container)
        if lost - bad:
            self._unit.add_sealed(without(sealed, bad))
            self._state.spare([container])
            _log.warning("older_copies_found", container=container, count=len(lost - bad))
        return True

    # -- condemning -------------------------------------------------------------------------

    def _condemn(self, plan: CollectPlan) -> None:
        for row in plan.dead:
            self._state.condemn(self._mark.slots.container(row))
        self._save()

    def _save(self) -> None:
        known = set(self._unit.containers.containers())
        self._state.spare([one for one in self._state.condemned if one not in known])
        try:
            self._state.save()
        except OutOfSpace as error:  # the cycles go on in memory (gc_state.py J2)
            _log.warning("gc_state_not_saved", unit=self._unit.unit_id, why=str(error))

    # -- copying ----------------------------------------------------------------------------

    def _copy(self, plan: CollectPlan) -> None:
        copier = CopyForward(self._unit, pace=self._pay)
        unsaved = 0
        try:
            for done, row in enumerate(plan.sparse):
                self._check()
                self._tell("copy", done, len(plan.sparse))
                free = self._unit.backend.free_bytes()
                if free is not None and free < COPY_FREE_BYTES_MIN:
                    _log.warning("copying_stopped", unit=self._unit.unit_id, free_bytes=free)
                    break
                unsaved += self._emptied(self._copy_one(copier, row))
                if unsaved >= SAVE_EVERY:
                    self._save()
                    unsaved = 0
            unsaved += self._emptied(copier.finish())
        except (OutOfSpace, Overloaded) as error:
            _log.warning("copying_stopped", unit=self._unit.unit_id, why=str(error))
        finally:
            copier.abandon()
            self._note(copied_bytes=copier.figures.stored_bytes)
            if unsaved:
                self._save()

    def _pay(self, size: int) -> None:
        self._limit.pay(size, self._stopping)
        self._check()

    def _copy_one(self, copier: CopyForward, row: int) -> list[ContainerId]:
        slots, container = self._mark.slots, self._mark.slots.container(row)
        try:
            return copier.copy(container, slots.live_slots(row, self._mark.bits))
        except (Corruption, NotFound) as error:
            _log.error("container_not_copied", container=container, why=str(error))
            return []

    def _emptied(self, sources: list[ContainerId]) -> int:
        """Condemn sources that are done; returns how many."""
        for container in sources:
            self._state.condemn(container)
        self._note(
            copied_container_count=self._figures.copied_container_count + len(sources),
            condemned_count=self._figures.condemned_count + len(sources),
        )
        return len(sources)

    # -- inside -----------------------------------------------------------------------------

    def _check(self) -> None:
        worked = self._clock.monotonic() - self._rested_at
        if self._options.gentle and worked >= WORK_SECONDS:
            self._stopping.wait(min(worked, REST_SECONDS_MAX))
            self._rested_at = self._clock.monotonic()
        if self._stopping.is_set():
            raise Cancelled("the collection was stopped; what it did stays")

    def _note(self, **changes: int) -> None:
        self._figures = replace(self._figures, **changes)  # type: ignore[arg-type]

    def _tell(self, phase: str, done: int, total: int) -> None:
        self._figures = replace(self._figures, phase=phase, done=done, total=total)
        self._report(self._figures)


def _facts(figures: CollectFigures) -> dict[str, int]:
    names = ("cycle", "container_count", "live_bytes", "dead_bytes", "condemned_count", "pinned_count")
    more = ("copied_container_count", "copied_bytes", "deleted_count", "deleted_bytes", "spared_count")
    return {name: getattr(figures, name) for name in (*names, *more)}
