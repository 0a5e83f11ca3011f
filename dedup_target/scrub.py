"""Read every container of a unit once a period, and quarantine what is damaged.

Owns: ``<state>/scrub/<unit id>.als``, how far it has come.
Invariants:
  B1 damage that stays is quarantined before the position passes it: a kill repeats work, never skips it.
  B2 one scrub of a unit at a time. One that an operator starts takes over from the background's, which
     leaves after the container in hand.
  B3 a damaged container is never removed or changed here (law 15): its records are absent from now
     on, so that the next backup of the same data heals what needs them.
Limits: one container in memory; SEEN_MAX containers that verifications read are remembered, until a restart.
Callers: ``run`` from the edge, ``run_in_background`` from housekeeping, ``check`` and ``seen_at`` from
verifications: any thread. Formats: docs/formats/scrub-v1.md
"""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from arraylift.clock import Clock
from arraylift.durable import Files
from arraylift.errors import Cancelled, Conflict, Corruption, NotFound, OutOfSpace
from arraylift.ids import ContainerId, ImageId, TenantId
from arraylift.logs import get_logger
from arraylift.sizes import MIB
from dedup_target import scrub_state
from dedup_target.container_check import CheckedContainer, check_container
from dedup_target.container_format import subject_of
from dedup_target.rate_limit import RateLimit
from dedup_target.scrub_state import Figures, Period, ScrubState
from dedup_target.storage_unit import StorageUnit

SAVE_SECONDS = 10.0
"""A kill costs the reading of so long."""
REPORT_SECONDS = 0.5
TAKE_OVER_SECONDS_MAX = 60.0
SEEN_MAX = 65_536
BACKGROUND_BYTES_PER_SECOND_MIN = 16 * MIB
DAY_SECONDS = 24 * 3600

_log = get_logger("scrub")


@dataclass(frozen=True, slots=True)
class ScrubNews:
    """How far a period is."""

    containers_done: int
    containers_total: int
    period: Period

    @property
    def done(self) -> bool:
        return self.period.done


class Scrub:
    """The scrub of one unit."""

    def __init__(
        self,
        unit: StorageUnit,
        files: Files,
        state_path: str,
        clock: Clock,
        *,
        affected: Callable[[], list[ImageId]],
    ) -> None:
        """``affected`` looks all images of the unit up, for those that have lost something."""
        self._unit = unit
        self._files = files
        self._folder = f"{state_path}/scrub"
        self._path = f"{self._folder}/{unit.unit_id}.als"
        self._clock = clock
        self._affected = affected
        self._turn = threading.Lock()
        self._wanted = threading.Event()
        """An operator waits for the background's scrub to leave (B2)."""
        self._lock = threading.Lock()
        self._seen: OrderedDict[ContainerId, int] = OrderedDict()
        self._state = self._load()

    # -- what is known ----------------------------------------------------------------------

    def seen_at(self, container: ContainerId) -> int | None:
        """When a container was last read whole, at the earliest; None if that is not known."""
        with self._lock:
            found = self._state.seen_at(container), self._seen.get(container)
        return max((at for at in found if at is not None), default=None)

    def news(self) -> ScrubNews | None:
        """The present period, or the last one; None before the first."""
        period = self._state.period
        if period is None:
            return None
        known = [container for container in self._unit.containers.containers() if container <= period.last_id]
        done = sum(container <= period.cursor for container in known)
        return ScrubNews(done, len(known), period)

    # -- running ----------------------------------------------------------------------------

    def run(
        self,
        *,
        bytes_per_second_max: int,
        restart: bool,
        stopping: threading.Event,
        report: Callable[[ScrubNews], None],
    ) -> ScrubNews:
        """Go on to the end of the period, or begin one if the last is over.

        Raises Conflict (another runs, B2), Cancelled (``stopping``; the place is kept), PeerUnavailable.
        """
        with self._taking_over():
            period = self._state.period
            if restart or period is None or period.done:
                self._begin()
            self._advance(RateLimit(self._clock, bytes_per_second_max), stopping.is_set, stopping, report)
            news = self.news()
            assert news is not None
            if not news.done:
                raise Cancelled("the scrub was stopped", next_step="start it again: it goes on from there")
            return news

    def run_in_background(self, stopping: threading.Event, *, period_days: float) -> None:
        """Begin a period when it is due, and go on with one that is not over; leave when asked to."""
        if not self._turn.acquire(blocking=False):
            return
        try:
            if not self._is_due(period_days * DAY_SECONDS):
                return
            stored = self._unit.index.totals().file_bytes
            rate = max(BACKGROUND_BYTES_PER_SECOND_MIN, int(2 * stored / (period_days * DAY_SECONDS)))
            limit = RateLimit(self._clock, rate)
            self._advance(
                limit, lambda: stopping.is_set() or self._wanted.is_set(), stopping, lambda _news: None
            )
        finally:
            self._turn.release()

    def _is_due(self, period_seconds: float) -> bool:
        period = self._state.period
        now = self._clock.wall_ns()
        if period is None or (
            period.done and not 0 <= now - period.started_at_ns < period_seconds * 1_000_000_000
        ):
            self._begin()
        assert self._state.period is not None
        return not self._state.period.done

    @contextmanager
    def _taking_over(self) -> Iterator[None]:
        """Hold the turn; only the background's gives it up for that."""
        if self._wanted.is_set():
            raise self._busy()
        self._wanted.set()
        try:
            if not self._turn.acquire(timeout=TAKE_OVER_SECONDS_MAX):
                raise self._busy()
        except BaseException:
            self._wanted.clear()
            raise
        try:
            yield
        finally:
            self._turn.release()
            self._wanted.clear()

    def _busy(self) -> Conflict:
        return Conflict(
            f"a scrub of unit {self._unit.unit_id} runs",
            subject=f"unit {self._unit.unit_id}",
            next_step="let it end, or stop it: the place is kept",
        )

    def _begin(self) -> None:
        last_id = self._unit.containers.settled_end - 1
        with self._lock:
            self._state = self._state.begun(self._clock.wall_ns(), last_id)
        self._save()
        _log.info("scrub_begun", unit=self._unit.unit_id, last_container=last_id)

    def _advance(
        self,
        limit: RateLimit,
        leave: Callable[[], bool],
        stopping: threading.Event,
        report: Callable[[ScrubNews], None],
    ) -> None:
        """Check container after container, until the end or ``leave``. Holds the turn."""
        period = self._state.period
        assert period is not None
        ids = [one for one in self._unit.containers.containers() if period.cursor < one <= period.last_id]
        saved_at = told_at = self._clock.monotonic()
        try:
            for container in ids:
                if leave():
                    return
                at_ns = self._clock.wall_ns()
                figures, unreadable = self._check_one(container)
                with self._lock:
                    assert self._state.period is not None
                    moved = self._state.period.advanced(container, at_ns, figures, unreadable=unreadable)
                    self._state = replace(self._state, period=moved)  # B1
                now = self._clock.monotonic()
                if now - saved_at >= SAVE_SECONDS:
                    self._save()
                    saved_at = now
                if now - told_at >= REPORT_SECONDS:
                    self._tell(report)
                    told_at = now
                limit.pay(figures.bytes_read, stopping)
            if not leave():
                self._finish()
        finally:
            self._save()

    def _finish(self) -> None:
        period = self._state.period
        assert period is not None
        damaged = period.figures.records_damaged or period.unreadable or not self._unit.quarantine.is_empty
        affected = self._affected() if damaged else []
        with self._lock:
            finished = period.finished(self._clock.wall_ns(), affected)
            self._state = replace(self._state, period=finished)
        _log.info(
            "scrub_done",
            unit=self._unit.unit_id,
            unreadable_count=len(period.unreadable),
            affected_images=len(affected),
            **{name: getattr(period.figures, name) for name in Figures.__slots__},
        )

    def _tell(self, report: Callable[[ScrubNews], None]) -> None:
        news = self.news()
        if news is not None:
            report(news)

    # -- one container ----------------------------------------------------------------------

    def check(self, container: ContainerId) -> int:
        """Read one container now, for a verification; returns the bytes read. Raises as the unit does."""
        at_ns = self._clock.wall_ns()
        figures, _ = self._check_one(container)
        with self._lock:
            self._seen[container] = at_ns
            self._seen.move_to_end(container)
            while len(self._seen) > SEEN_MAX:
                self._seen.popitem(last=False)
        return figures.bytes_read

    def _check_one(self, container: ContainerId) -> tuple[Figures, bool]:
        """Returns what it cost and found, and whether nothing of it is whole."""
        unit = self._unit
        try:
            found = check_container(lambda: unit.containers.read_fresh(container), unit.fingerprint_key)
        except NotFound as error:
            if not unit.containers.holds(container):
                return Figures(), False  # collected meanwhile
            found = CheckedContainer(0, 0, None, problem=str(error))
        if found.sealed is None:
            _log.error("container_unreadable", container=subject_of(container), why=found.problem)
            lost = self._lose_entries(
                container, frozenset(), f"nothing of its container is whole: {found.problem}"
            )
            return Figures(found.file_bytes, 0, lost), True
        new = self._quarantine(container, found)
        if found.problem:
            _log.error("container_worn", container=subject_of(container), why=found.problem)
        if found.sealed.damage:
            kept = frozenset(found.sealed.directory["fingerprint"].tolist())
            new += self._lose_entries(container, kept, f"its container lost it: {found.problem}")
        return Figures(found.file_bytes, found.record_count, new, int(bool(found.problem))), False

    def _quarantine(self, container: ContainerId, found: CheckedContainer) -> int:
        assert found.sealed is not None
        known = self._unit.quarantine.bad_of(container)
        by_reason: dict[str, list[bytes]] = defaultdict(list)
        for fingerprint, why in found.bad.items():
            if fingerprint not in known:
                by_reason[why].append(fingerprint)
        return sum(
            self._condemn(container, found.sealed.tenant, fingerprints, why)
            for why, fingerprints in by_reason.items()
        )

    def _condemn(self, container: ContainerId, tenant: TenantId, fingerprints: list[bytes], why: str) -> int:
        with self._unit.quarantine.lock:  # it may be collected at any moment
            if not self._unit.containers.holds(container):
                return 0
            self._unit.condemn_records(container, tenant, fingerprints, f"scrub: {why}")
        return len(fingerprints)

    def _lose_entries(self, container: ContainerId, kept: frozenset[bytes], why: str) -> int:
        """Quarantine what the index says of a container, besides ``kept``: reads the whole index."""
        lost: dict[TenantId, list[bytes]] = defaultdict(list)
        for tenant, fingerprint, locator in self._unit.index.entries():
            if locator.container == container and fingerprint not in kept:
                lost[tenant].append(fingerprint)
        return sum(
            self._condemn(container, tenant, fingerprints, why) for tenant, fingerprints in lost.items()
        )

    # -- the file ---------------------------------------------------------------------------

    def _load(self) -> ScrubState:
        self._files.make_dirs(self._folder)
        try:
            return scrub_state.decode(self._files.read(self._path), self._unit.unit_id)
        except NotFound:
            return ScrubState()
        except Corruption as error:
            _log.warning("scrub_position_lost", why=error.message)
            return ScrubState()

    def _save(self) -> None:
        """A full disk loses the position, and nothing else."""
        try:
            data = scrub_state.encode(self._state, self._unit.unit_id)
            self._files.publish(self._path, [data], label="scrub")
        except OutOfSpace as error:
            _log.warning("scrub_position_not_saved", error=str(error))
