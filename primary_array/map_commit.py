"""Make map changes durable: pending mappings, commits, checkpoints.

Owns: the commit lock, what is mapped in memory and not yet in the journal, and
the slots whose freeing is not yet durable.
Invariants:
  C1 data before map: the slot file is synced after a mapping was taken for a
     commit and before its frame is appended (law 10).
  C2 a slot is released only by a commit that took everything pending after the
     slot was freed: until then a crash brings back a map that names it.
  C3 table events are durable before they are applied.
  C4 a commit that fails for lack of space puts back what it took; nothing is lost.
  C5 a checkpoint captures the maps at the instant at which it takes the pending
     mappings, and is published after their frame is durable.
  C6 older files go only after the checkpoint that replaces them is published.
  C7 after StoreFailed nothing is changed any more; reads go on.
Callers: any thread. The commit lock is taken before the map lock, never after it.
Format: docs/formats/pool-v1.md. Why: docs/decisions/0003-map-journal.md.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arraylift.durable import Files
from arraylift.errors import OutOfSpace, Overloaded, StoreFailed
from arraylift.ids import VolumeId
from arraylift.sizes import MIB
from primary_array import map_checkpoint, map_journal
from primary_array.block_map import NONE_SLOT, U64
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
        journal_bytes_max: int = JOURNAL_BYTES_MAX,
    ) -> None:
        self._files = files
        self._layout = layout
        self._state = state
        self._slots = slots
        self._journal = journal
        self._journal_bytes_max = journal_bytes_max
        self._rotate_at = journal_bytes_max
        self._reserve = Reserve(files, layout)
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
        owner.map.assign(first, np.where(changed, slots, old_slots), births)
        at = np.flatnonzero(changed)
        runs = make_runs(at.astype(np.uint64) + np.uint64(first), slots[at])
        # A slot born after the newest snapshot is named by the living map alone.
        dead = changed & (old_slots != NONE_SLOT) & (old_births > owner.newest_snapshot_birth)
        freed = old_slots[dead]
        if isinstance(owner, Draft):
            owner.runs.extend(runs)
            if len(freed):
                owner.freed.append(freed)
            return
        log = self._pending.setdefault(owner.volume_id, RunLog())
        before = len(log)
        log.extend(runs)
        self._pending_runs += len(log) - before
        if len(freed):
            self._freed.append((freed, not slots.any()))

    def abandon(self, slots: U64) -> None:
        """Free slots that only an unregistered draft named. Map lock held."""
        self._freed.append((slots, True))

    def relieve(self, owner: Volume | Draft) -> None:
        """Commit if too much is pending; before a write, holding nothing. Raises OutOfSpace."""
        if isinstance(owner, Draft):
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

    def commit(self, *events: TableEvent, draft: Draft | None = None) -> None:
        """Make everything pending durable, and ``events``, then apply these. Inside a transaction.

        ``draft`` adds that draft's own mappings. Raises OutOfSpace (nothing happened), StoreFailed.
        """
        assert self._commit_lock.locked()
        if self._journal.size_bytes >= self._rotate_at:
            with suppress(OutOfSpace):  # what follows meets the full disk itself
                self.checkpoint()
        try:
            freed = self._commit_once(events, draft)
        except OutOfSpace:
            if not any(isinstance(event, _SHRINKING) for event in events) or not self._reserve.give_up():
                raise
            freed = self._commit_once(events, draft)
        if freed:  # waits for one more commit (C2), usually an empty one
            with suppress(OutOfSpace):  # the events stand; the slots follow with the next commit
                self._commit_once((), None)

    def commit_draft(self, draft: Draft, *events: TableEvent) -> None:
        """Commit a draft's mappings under its id, introducing it to the journal first."""
        if not draft.registered:
            self.commit(DraftBegun(draft.volume_id, draft.name, draft.size_bytes))
        self.commit(*events, draft=draft)

    def _commit_once(self, events: Sequence[TableEvent], draft: Draft | None) -> bool:
        """Take, store, apply, release. Says whether the events freed slots."""
        with self._state.lock:
            batch = self._take(draft)
        self._store(batch, events)
        with self._state.lock:
            dropped = [slots for event in events if len(slots := self._state.apply(event))]  # C3
            self._freed += [(slots, True) for slots in dropped]
        self._release(batch.freed)
        return bool(dropped)

    def _take(self, draft: Draft | None) -> _Batch:
        """Take everything pending. Map lock held."""
        mapped = []
        for volume_id, log in self._pending.items():
            mapped += _events(volume_id, self._state.by_id[volume_id].epoch, log)
        freed = self._freed
        self._pending, self._pending_runs, self._freed = {}, 0, []
        if draft is not None:
            mapped += _events(draft.volume_id, draft.epoch, draft.runs)
            freed = freed + [(slots, True) for slots in draft.freed]
            draft.freed = []
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
            owner = self._state.by_id[event.owner_id]
            if isinstance(owner, Draft):
                owner.runs.put_back(event.runs)
            else:
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

    # -- checkpoints ------------------------------------------------------------------------

    def checkpoint(self) -> None:
        """Publish the whole state and start a new journal. Inside a transaction.

        A full disk leaves things as they are, to be tried again after more journal.
        """
        assert self._commit_lock.locked()
        with self._state.lock:
            batch = self._take(None)
            captured = map_checkpoint.capture(self._state)  # C5
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
            self._journal.close()
            # From here on frames go to the new journal; recovery reads both until the checkpoint is there.
            self._journal = journal
            self._rotate_at = self._journal_bytes_max
            parts = list(map_checkpoint.encode(captured, number=number, sequence=journal.sequence))
            path = self._layout.checkpoint(number)
            self._files.publish(path, parts, label=map_checkpoint.LABEL)
        except (OutOfSpace, Overloaded):
            self._rotate_at = self._journal.size_bytes + self._journal_bytes_max
            return
        remove_older(self._files, self._layout, number)  # C6
        self._reserve.restore()

    def close(self) -> None:
        """Make everything durable and leave an empty journal. Afterwards nothing may be called."""
        try:
            with self.transaction():
                if self._journal.size_bytes > EMPTY_JOURNAL_BYTES or self._pending:
                    self.checkpoint()
                elif self._kept < self._written:
                    self.commit()
        finally:
            self._journal.close()
            self._slots.close()


def remove_older(files: Files, layout: Layout, number: int) -> None:
    """Remove what checkpoint ``number`` replaced; checkpoints first, so that none stands without
    its journals."""
    for old in layout.checkpoints(files):
        if old < number:
            files.remove(layout.checkpoint(old), label=map_checkpoint.LABEL)
    for old in layout.journals(files):
        if old < number:
            files.remove(layout.journal(old), label=map_journal.LABEL)


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
