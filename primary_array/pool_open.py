"""Make a pool, or bring one back from its files.

Owns: recovery. Newest valid checkpoint, then the journals from its number on.
Invariants:
  O1 nothing on disk is changed before everything was read and agreed with
     itself; a contradiction is Corruption and leaves the files as they are.
  O2 a directory with parts of a pool but no pool.json is only made into a pool if
     those parts are what an interrupted creation leaves: empty ones.
  O3 what recovery builds on is durable: files are opened, hence synced, before
     they are read, and names are synced by ``sweep`` before older files go.
  O4 a slot that no map names is free; two families of maps that name one slot,
     or one slot at two granules, are Corruption.
  O5 a draft that never saved progress is void. Nothing is written about that, so that a pool
     opens on a full disk too: its name and slots may be another's in later frames.
  O6 a torn tail may end the last journal that has frames, no other.
Callers: Pool.open, before any other thread exists.
Format: docs/formats/pool-v1.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from arraylift.durable import AppendFile, Files, StoreLock
from arraylift.errors import Corruption, NotFound
from arraylift.ids import PoolId, random_id
from arraylift.sizes import GRANULE_BYTES
from primary_array import map_checkpoint, map_journal
from primary_array.block_map import NONE_SLOT, PAGE_GRANULES, U64, without_repeats
from primary_array.map_checkpoint import capture, encode
from primary_array.map_commit import JOURNAL_BYTES_MAX, MapCommit, remove_older
from primary_array.map_events import decode
from primary_array.map_journal import MapJournal, Scan
from primary_array.map_state import MapState
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


@dataclass(slots=True)
class _Recovered:
    state: MapState
    sequence: int
    checkpoint: int
    logs: dict[int, AppendFile]
    scans: dict[int, Scan]


def open_pool(files: Files, directory: str, *, journal_bytes_max: int = JOURNAL_BYTES_MAX) -> OpenedPool:
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
        pool_id = read_superblock(files, layout)
        found = _recover(files, layout, pool_id)
        try:
            return _assemble(files, layout, found, lock, journal_bytes_max)
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
    MapJournal.create(files, layout, pool_id=pool_id, number=1, sequence=0).close()
    parts = list(encode(capture(MapState(pool_id)), number=1, sequence=0))
    files.publish(layout.checkpoint(1), parts, label=map_checkpoint.LABEL)
    publish_superblock(files, layout, pool_id)


def _check_creatable(files: Files, layout: Layout) -> None:
    """Raise Corruption if the directory holds more than an interrupted creation leaves (O2)."""
    journals = layout.journals(files)
    content = (files.exists(layout.slots) and files.size(layout.slots) > 0) or (
        journals and files.size(layout.journal(journals[-1])) > map_journal.HEADER_BYTES
    )
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
    state, sequence = map_checkpoint.decode(files.read(path), pool_id=pool_id, number=number, path=path)
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
    return _Recovered(state, sequence, number, logs, scans)


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


def _assemble(
    files: Files, layout: Layout, found: _Recovered, lock: StoreLock, journal_bytes_max: int
) -> OpenedPool:
    """Check what was recovered against the data file, then change what has to change (O1)."""
    used = used_slots(found.state)
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
    for number, scan in found.scans.items():
        if scan.torn_bytes:
            found.logs[number].truncate(scan.good_bytes)
    last = max(found.logs)
    for number, log in found.logs.items():
        if number != last:
            log.close()
    journal = MapJournal(found.logs[last], last, found.sequence)
    slots = SlotStore(files.random_file(layout.slots, label=SLOTS_LABEL), used)
    remove_older(files, layout, found.checkpoint)
    Reserve(files, layout).restore()
    commit = MapCommit(
        files, layout, state=found.state, slots=slots, journal=journal, journal_bytes_max=journal_bytes_max
    )
    return OpenedPool(lock, found.state, slots, commit)


def used_slots(state: MapState) -> U64:
    """Return every slot that a map names, ascending. Raises Corruption (O4)."""
    families = []
    for maps in state.families():
        pages = {
            id(page): (number * PAGE_GRANULES, page)
            for view in maps
            for number, page in enumerate(view.pages())
            if page is not None
        }
        if not pages:
            continue
        slots = np.concatenate([page.slots for _, page in pages.values()])
        firsts = np.repeat(np.array([first for first, _ in pages.values()], np.uint64), PAGE_GRANULES)
        granules = firsts + np.tile(np.arange(PAGE_GRANULES, dtype=np.uint64), len(pages))
        mapped = slots != NONE_SLOT
        slots, granules = slots[mapped], granules[mapped]
        order = np.argsort(slots, kind="stable")
        slots, granules = slots[order], granules[order]
        repeated = np.flatnonzero(slots[1:] == slots[:-1])
        if np.any(granules[repeated] != granules[repeated + 1]):
            raise Corruption("the pool's map names one slot at two places of a volume")
        families.append(without_repeats(slots))
    used = np.sort(np.concatenate(families)) if families else np.empty(0, np.uint64)
    if np.any(used[1:] == used[:-1]):
        raise Corruption("the pool's map names one slot in two volumes")
    return used
