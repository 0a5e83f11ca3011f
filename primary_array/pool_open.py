"""Make a pool, or bring one back from its files.

Owns: recovery. Newest valid checkpoint, then the journals from its number on; then the slots are
counted, from the maps alone.
Invariants:
  O1 nothing on disk is changed before everything was read and agreed with
     itself; a contradiction is Corruption and leaves the files as they are.
  O2 a directory with parts of a pool but no pool.json is only made into a pool if
     those parts are what an interrupted creation leaves: empty ones.
  O3 what recovery builds on is durable: files are opened, hence synced, before
     they are read, and names are synced by ``sweep`` before older files go.
  O4 a slot that no map names is free; what contradicts slot_audit U1 is Corruption.
  O5 a draft that never saved progress is void. Nothing is written about that, so that a pool
     opens on a full disk too: its name and slots may be another's in later frames.
  O6 a torn tail may end the last journal that has frames, no other.
  O7 a pool of version 1 is read as it is; the superblock of version 2 is published before
     anything of version 2 is written.
Callers: Pool.open, before any other thread exists.
Format: docs/formats/pool-v2.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arraylift.durable import AppendFile, Files, StoreLock
from arraylift.errors import Corruption, NotFound, OutOfSpace
from arraylift.ids import PoolId, random_id
from arraylift.sizes import GRANULE_BYTES
from primary_array import map_checkpoint, map_journal, page_file, slot_audit, superblock
from primary_array.block_map import U64
from primary_array.checkpointer import Checkpointer, remove_older
from primary_array.map_commit import JOURNAL_BYTES_MAX, MapCommit
from primary_array.map_events import decode
from primary_array.map_journal import MapJournal, Scan
from primary_array.map_state import MapState
from primary_array.map_tables import capture
from primary_array.page_file import PageFile
from primary_array.reserve import Reserve
from primary_array.slot_store import SlotStore
from primary_array.superblock import Layout, publish_superblock, read_superblock

SLOTS_LABEL = "slots"


@dataclass(slots=True)
class OpenedPool:
    """The parts of a pool that is ready for threads."""

    lock: StoreLock
    state: MapState
    slots: SlotStore
    commit: MapCommit
    checkpointer: Checkpointer


@dataclass(slots=True)
class _Recovered:
    state: MapState
    sequence: int
    checkpoint: int
    places: list[int]
    logs: dict[int, AppendFile]
    scans: dict[int, Scan]


def open_pool(
    files: Files, directory: str, *, journal_bytes_max: int = JOURNAL_BYTES_MAX, background: bool = False
) -> OpenedPool:
    """Open the pool in ``directory``, made if there is none.

    Raises WrongState (in use; another version), Corruption (nothing was changed), OutOfSpace.
    """
    layout = Layout(directory)
    files.make_dirs(directory)
    lock = files.lock(directory)
    try:
        files.sweep(directory)
        if not files.exists(layout.superblock):
            _create(files, layout)
        pool_id, version = read_superblock(files, layout)
        found = _recover(files, layout, pool_id)
        try:
            found.state.counts.replace(checked_counts(found.state))
            used = found.state.counts.named()
            _check_data(files, layout, used)
            if version != superblock.VERSION:
                _upgrade(files, layout, pool_id)
            parts = _assemble(files, layout, found, used, journal_bytes_max)
            commit, slots, pages = parts
            checkpointer = Checkpointer(
                files,
                layout,
                commit=commit,
                pages=pages,
                reserve=Reserve(files, layout),
                background=background,
            )
            return OpenedPool(lock, found.state, slots, commit, checkpointer)
        except BaseException:
            for log in found.logs.values():
                log.close()
            raise
    except BaseException:
        lock.close()
        raise


# -- creation -------------------------------------------------------------------------------


def _create(files: Files, layout: Layout) -> None:
    _check_creatable(files, layout)
    pool_id = PoolId(random_id())
    files.random_file(layout.slots, label=SLOTS_LABEL).close()
    files.random_file(layout.pages, label=page_file.LABEL).close()
    MapJournal.create(files, layout, pool_id=pool_id, number=1, sequence=0).close()
    nothing = map_checkpoint.Shared([])
    parts = list(map_checkpoint.encode(capture(MapState(pool_id)), nothing, [], number=1, sequence=0))
    files.publish(layout.checkpoint(1), parts, label=map_checkpoint.LABEL)
    publish_superblock(files, layout, pool_id)


def _check_creatable(files: Files, layout: Layout) -> None:
    """Raise Corruption if the directory holds more than an interrupted creation leaves (O2)."""
    journals = layout.journals(files)
    content = any(files.exists(path) and files.size(path) > 0 for path in (layout.slots, layout.pages))
    content |= bool(journals) and files.size(layout.journal(journals[-1])) > map_journal.HEADER_BYTES
    if content or journals not in ([], [1]) or layout.checkpoints(files) not in ([], [1]):
        raise Corruption(
            f"{layout.directory} holds a pool without its pool.json",
            subject=layout.directory,
            next_step="restore pool.json from a copy, or choose an empty directory",
        )


# -- recovery -------------------------------------------------------------------------------


def _recover(files: Files, layout: Layout, pool_id: PoolId) -> _Recovered:
    """Return the newest state that the files prove (O1, O3)."""
    first = Corruption(
        f"the pool in {layout.directory} has no checkpoint",
        subject=layout.directory,
        next_step="restore the checkpoint files from a copy of this pool; nothing was changed",
    )
    numbers = layout.checkpoints(files)
    for number in reversed(numbers):
        try:
            return _recover_from(files, layout, pool_id, number=number, newest=numbers[-1])
        except Corruption as error:
            # An older checkpoint helps only together with all journals since.
            first = error if number == numbers[-1] else first
    raise first


def _recover_from(files: Files, layout: Layout, pool_id: PoolId, *, number: int, newest: int) -> _Recovered:
    path = layout.checkpoint(number)
    try:
        found = map_checkpoint.read(files, path, layout.pages, pool_id=pool_id, number=number)
    except NotFound as error:
        raise Corruption(f"{layout.pages} is missing", subject=layout.pages) from error
    state, sequence, places = found
    state.counts.replace(slot_audit.count_slots(slot_audit.holders(state)))
    numbers = [journal for journal in layout.journals(files) if journal >= number]
    if numbers != list(range(number, number + len(numbers))) or newest not in numbers:
        raise Corruption(
            f"the pool in {layout.directory} lacks journals: found {numbers}",
            subject=layout.directory,
            next_step="restore the missing files from a copy of this pool; nothing was changed",
        )
    logs: dict[int, AppendFile] = {}
    try:
        scans: dict[int, Scan] = {}
        for journal in numbers:
            log_path = layout.journal(journal)
            logs[journal] = files.append_file(log_path, label=map_journal.LABEL)
            data = files.read(log_path)
            scans[journal] = map_journal.scan(data, pool_id=pool_id, number=journal, path=log_path)
        sequence = _replay(state, scans, sequence, layout)
    except BaseException:
        for log in logs.values():
            log.close()
        raise
    return _Recovered(state, sequence, number, places, logs, scans)


def _replay(state: MapState, scans: dict[int, Scan], sequence: int, layout: Layout) -> int:
    """Apply every frame; returns the last sequence number."""
    torn = ""
    for number, scan in scans.items():
        path = layout.journal(number)
        for frame in scan.frames:
            if torn or frame.sequence != sequence + 1:
                raise Corruption(  # O6, and J2 of map_journal
                    f"{path} continues at frame {frame.sequence}, expected {sequence + 1}{torn}",
                    subject=path,
                    next_step="restore the journals from a copy of this pool; nothing was changed",
                )
            sequence = frame.sequence
            for event in decode(frame.payload):
                state.apply(event)
        if scan.torn_bytes:
            torn = f" and {path} is cut"
    for draft in [draft for draft in state.drafts.values() if draft.tag is None]:
        state.drop_draft(draft)  # O5
    return sequence


def checked_counts(state: MapState) -> npt.NDArray[np.uint32]:
    """Count the pages that name each slot. Raises Corruption (O4)."""
    maps = slot_audit.holders(state)
    counts = slot_audit.count_slots(maps)
    for wrong in slot_audit.contradictions(maps, len(counts) - 1):
        raise Corruption(
            f"the pool's map names one slot {wrong.message}: {int(wrong.slots[0])}, {wrong.owner}",
            subject=wrong.owner,
            next_step="restore the pool's metadata from a copy; nothing was changed",
        )
    return counts


def _check_data(files: Files, layout: Layout, used: U64) -> None:
    """Raise Corruption unless the data file reaches to the end of the highest slot."""
    try:
        data_bytes = files.size(layout.slots)
    except NotFound:
        data_bytes = -1
    if data_bytes < (int(used.max()) + 1 if len(used) else 0) * GRANULE_BYTES:
        raise Corruption(
            f"{layout.slots} is shorter than the map says ({data_bytes} bytes)",
            subject=layout.slots,
            next_step="restore the file from a copy of this pool; nothing was changed",
        )


def _upgrade(files: Files, layout: Layout, pool_id: PoolId) -> None:
    """Declare a pool of version 1 to be one of version 2 (O7)."""
    files.random_file(layout.pages, label=page_file.LABEL).close()
    try:
        publish_superblock(files, layout, pool_id)
    except OutOfSpace:
        if not Reserve(files, layout).give_up():
            raise
        publish_superblock(files, layout, pool_id)


def _assemble(
    files: Files, layout: Layout, found: _Recovered, used: U64, journal_bytes_max: int
) -> tuple[MapCommit, SlotStore, PageFile]:
    """Change what has to change, now that all is read and agreed (O1)."""
    for number, scan in found.scans.items():
        if scan.torn_bytes:
            found.logs[number].truncate(scan.good_bytes)
    last = max(found.logs)
    for number, log in found.logs.items():
        if number != last:
            log.close()
    journal = MapJournal(found.logs[last], last, found.sequence)
    slots = SlotStore(files.random_file(layout.slots, label=SLOTS_LABEL), used)
    pages = PageFile(files.random_file(layout.pages, label=page_file.LABEL), found.places)
    remove_older(files, layout, found.checkpoint)
    reserve = Reserve(files, layout)
    reserve.restore()
    commit = MapCommit(
        files,
        layout,
        state=found.state,
        slots=slots,
        journal=journal,
        reserve=reserve,
        journal_bytes_max=journal_bytes_max,
    )
    return commit, slots, pages
