"""Make map changes durable: pending mappings, commits, and the change to a new journal.

Owns: the commit lock, what is mapped in memory and not yet in the journal, and
the slots whose freeing is not yet durable.
Invariants:
  C1 data before map: the slot file is synced after a mapping was taken for a
     commit and before its frame is appended (law 10).
  C2 a slot is released only by a commit that took everything pending after the
     slot was freed: until then a crash brings back a map that names it.
  C3 table events are durable before they are applied.
  C4 a commit that fails for lack of space puts back what it took; nothing is lost.
  C5 a rotation captures the maps at the instant at which it takes the pending mappings, after
     whose frame the new journal begins.
  C7 after StoreFailed nothing is changed any more; reads go on.
  C8 a commit takes the pending mappings of everything that the journal knows, drafts too: a slot
     may have been shared by several of them, and is released after all have left it durably.
Callers: any thread. The commit lock is taken before the map lock, never after it.
Format: docs/formats/pool-v2.md. Why: docs/decisions/0003-map-journal.md, 0075-counts-of-sharing.md.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arraylift.durable import Files
from arraylift.errors import OutOfSpace, Overloaded, StoreFailed
from arraylift.ids import VolumeId
from arraylift.sizes import MIB
from primary_array.block_map import U64
from primary_array.map_events import (
    DraftAborted,
    DraftBegun,
    Event,
    GranulesMapped,
    SnapshotDeleted,
    TableEvent,
    VolumeDeleted,
    encode,
    make_runs,
)
from primary_array.map_journal import HEADER_BYTES, MapJournal
from primary_array.map_state import Draft, MapState, Volume
from primary_array.map_tables import Capture, capture
from primary_array.reserve import Reserve
from primary_array.run_log import RunLog
from primary_array.slot_store import SlotStore
from primary_array.superblock import Layout

JOURNAL_BYTES_MAX = 64 * MIB
"""A journal beyond this is replaced by a checkpoint."""

PENDING_RUNS_MAX = 1 << 16
"""A write that finds this many pending runs commits them first."""

RUNS_PER_FRAME_MAX = 1 << 18
"""About 5 MiB, well inside a frame."""

EMPTY_JOURNAL_BYTES = HEADER_BYTES

_SHRINKING = (VolumeDeleted, SnapshotDeleted, DraftAborted)

Freed = tuple[U64, bool]
"""Slots, and whether their space goes back to the file system. That is for what was deleted or
trimmed; the slots of overwritten granules are soon used again."""


@dataclass(slots=True)
class _Batch:
    """What one commit took: mappings not yet durable, slots to release after it, the write count."""

    mapped: list[GranulesMapped]
    freed: list[Freed]
    written: int


@dataclass(frozen=True, slots=True)
class Rotation:
    """A checkpoint that can be written: ``captured`` is what the journals before ``number`` led to."""

    captured: Capture
    number: int
    sequence: int


class MapCommit:
    """The way from memory to the journal, for one pool."""

    def __init__(
        self,
        files: Files,
        layout: Layout,
        *,
        state: MapState,
        slots: SlotStore,
        journal: MapJournal,
        reserve: Reserve,
        journal_bytes_max: int = JOURNAL_BYTES_MAX,
    ) -> None:
        self._files = files
        self._layout = layout
        self._state = state
        self._slots = slots
        self._journal = journal
        self._journal_bytes_max = journal_bytes_max
        self._rotate_at = journal_bytes_max
        self._reserve = reserve
        self.on_journal_full: Callable[[], None] = lambda: None
        """Called inside a transaction, before a commit that finds the journal long enough."""
        self._commit_lock = threading.Lock()
        self._failed: StoreFailed | None = None
        # Under the map lock:
        self._pending: dict[VolumeId, RunLog] = {}
        self._pending_runs = 0
        self._freed: list[Freed] = []
        self._written = 0  # writes and trims acknowledged so far
        # Under the commit lock:
        self._synced = 0  # the slot file is durable up to this write
        self._kept = 0  # data and map are durable up to this write

    @property
    def journal_bytes(self) -> int:
        return self._journal.size_bytes

    def check_alive(self) -> None:
        """Raise StoreFailed if the disk failed before (C7)."""
        if self._failed is not None:
            raise self._failed

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Run changes of the disk; remember StoreFailed (C7)."""
        self.check_alive()
        try:
            yield
        except StoreFailed as error:
            self._failed = error
            raise

    # -- mappings ---------------------------------------------------------------------------

    def note(
        self,
        owner: Volume | Draft,
        first: int,
        *,
        old: tuple[U64, U64],
        slots: U64,
        changed: npt.NDArray[np.bool_],
    ) -> None:
        """Map granules from ``first``, where ``changed`` (bool), to ``slots`` (NONE_SLOT: tombstone).

        ``old`` is the (slots, births) that the caller looked up under its gate. Map lock held;
        the data is written already (C1 syncs it).
        """
        self._written += 1
        if not changed.any():
            return
        old_slots, old_births = old
        births = np.where(changed, np.uint64(owner.epoch), old_births)
        freed = owner.map.assign(first, np.where(changed, slots, old_slots), births)
        at = np.flatnonzero(changed)
        runs = make_runs(at.astype(np.uint64) + np.uint64(first), slots[at])
        if isinstance(owner, Draft) and not owner.registered:
            owner.runs.extend(runs)
            if len(freed):
                owner.freed.append(freed)
            return
        self._add_pending(owner.volume_id, runs)
        if len(freed):
            self._freed.append((freed, not slots.any()))

    def _add_pending(self, volume_id: VolumeId, runs: list[tuple[int, int, int]]) -> None:
        log = self._pending.setdefault(volume_id, RunLog())
        before = len(log)
        log.extend(runs)
        self._pending_runs += len(log) - before

    def waiting_slots(self) -> list[U64]:
        """Slots that are freed and not yet released. Map lock held."""
        drafts = [slots for draft in self._state.drafts.values() for slots in draft.freed]
        return [slots for slots, _ in self._freed] + drafts

    def abandon(self, slots: U64) -> None:
        """Free slots that only an unregistered draft named. Map lock held."""
        self._freed.append((slots, True))

    def relieve(self, owner: Volume | Draft) -> None:
        """Commit if too much is pending; before a write, holding nothing. Raises OutOfSpace."""
        if isinstance(owner, Draft) and not owner.registered:
            if len(owner.runs) >= PENDING_RUNS_MAX:
                with self.transaction():
                    if not owner.gone:
                        self.commit_draft(owner)
        elif self._pending_runs >= PENDING_RUNS_MAX:
            self.flush()

    # -- commits ----------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Hold the commit lock: tables change only inside, so what is checked inside stays true."""
        with self._commit_lock, self.guarded():
            yield

    def flush(self) -> None:
        """Make every acknowledged write and trim durable. Threads that wait here share a commit."""
        with self._state.lock:
            target = self._written
        with self.transaction():
            if self._kept < target:
                self.commit()

    def commit(self, *events: TableEvent) -> None:
        """Make everything pending durable, and ``events``, then apply these. Inside a transaction.

        Raises OutOfSpace (nothing happened), StoreFailed.
        """
        assert self._commit_lock.locked()
        if self._journal.size_bytes >= self._rotate_at:
            with suppress(OutOfSpace):  # what follows meets the full disk itself
                self.on_journal_full()
        try:
            freed = self._commit_once(events)
        except OutOfSpace:
            deletes = bool(events) and all(isinstance(event, _SHRINKING) for event in events)
            if not deletes or not self._reserve.give_up():
                raise
            freed = self._commit_once(events)
        if freed:  # waits for one more commit (C2), usually an empty one
            with suppress(OutOfSpace):  # the events stand; the slots follow with the next commit
                self._commit_once(())

    def commit_draft(self, draft: Draft, *events: TableEvent) -> None:
        """Commit with a draft's mappings, introducing it to the journal first (C8)."""
        if not draft.registered:
            self.commit(DraftBegun(draft.volume_id, draft.name, draft.size_bytes))
            with self._state.lock:
                draft.registered = True
                self._add_pending(draft.volume_id, draft.runs.take_list())
                self._freed += [(slots, True) for slots in draft.freed]
                draft.freed = []
        self.commit(*events)

    def _commit_once(self, events: Sequence[TableEvent]) -> bool:
        """Take, store, apply, release. Says whether the events freed slots."""
        with self._state.lock:
            batch = self._take()
        self._store(batch, events)
        with self._state.lock:
            dropped = [slots for event in events if len(slots := self._state.apply(event))]  # C3
            self._freed += [(slots, True) for slots in dropped]
        self._release(batch.freed)
        return bool(dropped)

    def _take(self) -> _Batch:
        """Take everything pending. Map lock held."""
        mapped: list[GranulesMapped] = []
        for volume_id, log in self._pending.items():
            mapped += _events(volume_id, self._state.by_id[volume_id].epoch, log)
        freed = self._freed
        self._pending, self._pending_runs, self._freed = {}, 0, []
        return _Batch(mapped, freed, self._written)

    def _store(self, batch: _Batch, events: Sequence[TableEvent]) -> None:
        """Sync the data, then append the frames (C1). Puts back what did not become durable (C4)."""
        try:
            if batch.written != self._synced:
                self._slots.sync()
                self._synced = batch.written
            while batch.mapped or events:
                chosen, rest = _frame_of(batch.mapped)
                frame: list[Event] = [*chosen, *events] if not rest else [*chosen]
                self._journal.append(encode(frame))
                batch.mapped = rest
                if not rest:
                    break
            self._kept = batch.written
        except BaseException:
            with self._state.lock:
                self._put_back(batch)
            raise

    def _put_back(self, batch: _Batch) -> None:
        for event in reversed(batch.mapped):
            log = self._pending.setdefault(event.owner_id, RunLog())
            log.put_back(event.runs)
            self._pending_runs += len(event.runs)
        self._freed[:0] = batch.freed

    def _release(self, freed: list[Freed]) -> None:
        for punch in (False, True):
            chosen = [slots for slots, punched in freed if punched is punch]
            if chosen:
                self._slots.release(np.concatenate(chosen), punch=punch)
        self._slots.drain()

    # -- rotation ---------------------------------------------------------------------------

    def rotate(self) -> Rotation | None:
        """Begin a new journal, and capture what the older ones led to (C5). Inside a transaction.

        None where the disk is full: the journal that there is goes on. Raises OutOfSpace, StoreFailed.
        """
        assert self._commit_lock.locked()
        with self._state.lock:
            batch = self._take()
            captured = capture(self._state)
        self._store(batch, ())
        self._release(batch.freed)
        number = self._journal.number + 1
        try:
            journal = MapJournal.create(
                self._files,
                self._layout,
                pool_id=captured.pool_id,
                number=number,
                sequence=self._journal.sequence,
            )
        except (OutOfSpace, Overloaded):
            self.put_rotation_off()
            return None
        self._journal.close()
        # From here on frames go to the new journal; recovery reads both until the checkpoint is there.
        self._journal = journal
        self._rotate_at = self._journal_bytes_max
        return Rotation(captured, number, journal.sequence)

    def put_rotation_off(self) -> None:
        """Try again after as much journal again."""
        self._rotate_at = self._journal.size_bytes + self._journal_bytes_max

    @property
    def worth_a_checkpoint(self) -> bool:
        """Something happened since the last one. Inside a transaction."""
        return self._journal.size_bytes > EMPTY_JOURNAL_BYTES or bool(self._pending)

    @contextmanager
    def reading_journal(self) -> Iterator[tuple[int, int]]:
        """Hold commits back; gives the number of the journal and the sequence that it ends with."""
        with self._commit_lock:
            yield self._journal.number, self._journal.sequence

    def close(self) -> None:
        """Make what is pending durable and close the files. Afterwards nothing may be called."""
        try:
            with self.transaction():
                if self._kept < self._written:
                    self.commit()
        finally:
            self._journal.close()
            self._slots.close()


def _events(volume_id: VolumeId, epoch: int, log: RunLog) -> list[GranulesMapped]:
    runs = log.take()
    parts = np.split(runs, range(RUNS_PER_FRAME_MAX, len(runs), RUNS_PER_FRAME_MAX)) if len(runs) else []
    return [GranulesMapped(volume_id, epoch, part) for part in parts]


def _frame_of(mapped: list[GranulesMapped]) -> tuple[list[GranulesMapped], list[GranulesMapped]]:
    """Split off what one frame takes: at most 2 * RUNS_PER_FRAME_MAX runs."""
    total = 0
    for index, event in enumerate(mapped):
        if total and total + len(event.runs) > 2 * RUNS_PER_FRAME_MAX:
            return mapped[:index], mapped[index:]
        total += len(event.runs)
    return mapped, []
