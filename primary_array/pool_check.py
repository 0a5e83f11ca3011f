"""Check everything that a pool keeps, and mend what can be mended, if told.

Owns: the order of a check and of a repair.
Invariants:
  Z1 without ``repair`` nothing changes, in memory or on the disk.
  Z2 a repair runs while nothing is written, over findings of that very moment; what it replaces on the
     disk is in the folder ``damaged`` first, durably, as far as the disk can read it.
  Z3 what is reported as repaired was looked for again, and is gone.
  Z4 one check at a time; flushes and snapshots wait for none of it but the reading of the journal.
  Z5 a repair writes, counts and frees from what is in memory: where that contradicts itself in a way
     that nothing mends it only distrusts births, for the disk may have the better copy.
Callers: pool, any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import numpy as np

from arraylift.durable import Files
from arraylift.errors import Conflict, Corruption
from arraylift.ids import LineageId, VolumeId, random_id
from arraylift.logs import get_logger
from primary_array import map_check
from primary_array.block_map import U64
from primary_array.checkpointer import Checkpointer
from primary_array.file_check import FileCheck
from primary_array.findings import Finding, Remedy, Severity
from primary_array.map_commit import MapCommit
from primary_array.map_events import TrackerDistrusted
from primary_array.map_state import MapState
from primary_array.slot_store import SlotStore
from primary_array.superblock import Layout, publish_superblock

LABEL = "damaged"
TRIES = 3

_log = get_logger("pool_check")


@dataclass(frozen=True, slots=True)
class CheckNews:
    """``findings`` are gravest first, and come with ``done``."""

    granules_checked: int
    granules_total: int
    findings: tuple[Finding, ...] = ()
    done: bool = False
    memory_sound: bool = True
    """No error was found in memory that is not repairable (Z5)."""


class PoolCheck:
    """For one pool."""

    def __init__(
        self,
        files: Files,
        layout: Layout,
        *,
        state: MapState,
        slots: SlotStore,
        commit: MapCommit,
        checkpointer: Checkpointer,
    ) -> None:
        self._files = files
        self._layout = layout
        self._state = state
        self._slots = slots
        self._commit = commit
        self._checkpointer = checkpointer
        self._one = threading.Lock()

    def run(self, *, repair: bool, report: Callable[[CheckNews], None]) -> CheckNews:
        """Check, and repair if told (Z1). Raises Conflict (Z4); of a repair OutOfSpace, StoreFailed."""
        if not self._one.acquire(blocking=False):
            raise Conflict("a check of this pool is running", next_step="wait for its end")
        try:
            return self._repaired(report) if repair else self._checked(report)
        finally:
            self._one.release()

    # -- looking ----------------------------------------------------------------------------

    def _checked(self, report: Callable[[CheckNews], None]) -> CheckNews:
        with self._state.lock:
            taken = map_check.take(self._state)
            lost, stolen = self._slot_sets()
        if len(lost):
            lost = self._lost_for_sure()
        return self._conclude(taken, lost, stolen, report)

    def _conclude(
        self, taken: map_check.Taken, lost: U64, stolen: U64, report: Callable[[CheckNews], None]
    ) -> CheckNews:
        total = sum(one.granule_count for one in taken.maps)
        findings = list(map_check.check(taken, progress=lambda done: report(CheckNews(done, total))))
        sound = all(each.repairable or each.severity is not Severity.ERROR for each in findings)
        findings += _slots(lost, stolen)
        named = np.flatnonzero(taken.counts)
        with self._checkpointer.held_back():
            files = FileCheck(self._files, self._layout, self._state.pool_id)
            findings += files.check(int(named.max()) if len(named) else 0)
            with self._commit.reading_journal() as (number, sequence):
                journals = files.read_journals(number)
            findings += files.check_journals(journals, sequence)
        findings.sort(key=lambda finding: (-finding.severity, finding.kind, finding.subject))
        return CheckNews(total, total, tuple(findings), done=True, memory_sound=sound)

    def _slot_sets(self) -> tuple[U64, U64]:
        """Lost and stolen slots of this moment. Map lock held."""
        named = self._state.counts.named()
        waiting = np.concatenate([*self._commit.waiting_slots(), self._slots.waiting()])
        return map_check.lost_and_stolen(named, waiting, self._slots.allocated())

    def _lost_for_sure(self) -> U64:
        """Lost slots while no write and no commit has any in its hands (map_check X2)."""
        for _ in range(TRIES):
            with self._all_gates() as held, self._commit.reading_journal(), self._state.lock:
                if not set(self._state.by_id) - held:
                    return self._slot_sets()[0]
        return np.empty(0, np.uint64)  # volumes come and go: the next check may tell

    @contextmanager
    def _all_gates(self) -> Iterator[set[VolumeId]]:
        """Hold every write back. A volume that is made meanwhile is not among them."""
        with self._state.lock:
            records = sorted(self._state.by_id.values(), key=lambda record: record.volume_id)
        with ExitStack() as stack:
            for record in records:
                stack.enter_context(record.gate.hold())
            yield {record.volume_id for record in records}

    # -- mending ----------------------------------------------------------------------------

    def _repaired(self, report: Callable[[CheckNews], None]) -> CheckNews:
        before = self._look_and_mend(report)
        after = {(finding.kind, finding.subject) for finding in self._checked(report).findings}
        told = tuple(
            replace(finding, repaired=finding.repairable and (finding.kind, finding.subject) not in after)
            for finding in before.findings
        )
        _log.info("pool_repaired", findings=len(told), repaired=sum(one.repaired for one in told))
        return replace(before, findings=told)

    def _look_and_mend(self, report: Callable[[CheckNews], None]) -> CheckNews:
        """Find out and mend while nothing is written (Z2)."""
        with self._all_gates() as held:
            with self._commit.reading_journal(), self._state.lock:
                taken = map_check.take(self._state)
                lost, stolen = self._slot_sets()
            news = self._conclude(taken, lost, stolen, report)
            wrong = [finding for finding in news.findings if finding.repairable]
            if not news.memory_sound:  # Z5
                _log.error("pool_not_repaired", why="what is in memory is wrong itself")
                named = {finding.kind for finding in news.findings}
                wrong = [f for f in wrong if f.remedy is Remedy.DISTRUST and "tables_disagree" not in named]
            self._keep_damaged(wrong)
            remedies = {finding.remedy for finding in wrong}
            with self._commit.transaction():
                if set(self._state.by_id) - held:
                    # Its writes are not held back: what they took would look lost.
                    raise Conflict("a volume was made meanwhile", next_step="repeat the repair")
                if remedies & {Remedy.RECOUNT, Remedy.REMEASURE, Remedy.RECLAIM}:
                    self._mend_memory(remedies)
                for name in sorted({f.remedy_for for f in wrong if f.remedy is Remedy.DISTRUST}):
                    self._distrust(name)
                if Remedy.REDECLARE in remedies:
                    publish_superblock(self._files, self._layout, self._state.pool_id)
            if Remedy.REWRITE in remedies:
                self._checkpointer.rewrite()
            return news

    def _mend_memory(self, remedies: set[Remedy]) -> None:
        with self._state.lock:
            if Remedy.REMEASURE in remedies:
                map_check.remeasure(self._state)
            if Remedy.RECOUNT in remedies:
                map_check.recount(self._state)
            if remedies & {Remedy.RECLAIM, Remedy.RECOUNT}:
                held = [self._state.counts.named(), *self._commit.waiting_slots()]
                self._slots.reclaim(np.concatenate(held))

    def _distrust(self, name: str) -> None:
        volume = self._state.volumes.get(name)
        if volume is not None:
            renewed = tuple((s.snapshot_id, LineageId(random_id())) for s in volume.snapshots)
            self._commit.commit(TrackerDistrusted(volume.volume_id, LineageId(random_id()), renewed))

    def _keep_damaged(self, findings: list[Finding]) -> None:
        """Copy what will be replaced (Z2), but what the disk cannot read: memory has the only copy."""
        wanted = {part for finding in findings for part in finding.files}
        if not wanted:
            return
        self._files.make_dirs(self._layout.damaged)
        for path, offset, length in sorted(wanted):
            if not self._files.exists(path):
                continue
            try:
                data = self._files.read(path, offset, length or None)
            except Corruption as error:
                _log.error("damaged_not_kept", path=path, error=str(error))
                continue
            name = f"{path.rpartition('/')[2]}-{offset}-{random_id()[:8]}"
            self._files.publish(f"{self._layout.damaged}/{name}", [data], label=LABEL)


def _slots(lost: U64, stolen: U64) -> Iterator[Finding]:
    if len(stolen):
        yield Finding(
            Severity.ERROR,
            "slot_free_but_named",
            f"slot {int(stolen[0])}",
            f"{len(stolen)} slots are free for new data although a map names them, the first is "
            f"{int(stolen[0])}",
            "repair at once: the next write could overwrite them",
            Remedy.RECLAIM,
        )
    if len(lost):
        yield Finding(
            Severity.WARNING,
            "slot_lost",
            f"slot {int(lost[0])}",
            f"{len(lost)} slots are in use although no map names them, the first is {int(lost[0])}",
            "repair frees them, as does the next start",
            Remedy.RECLAIM,
        )
