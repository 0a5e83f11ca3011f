"""Look at a pool's files as a start would, while it is open.

Owns: nothing; it reads. Invariant: Y1 the bytes of journals are read while commits are held back, and all
else while new checkpoints are, so nothing is half written; commits wait for no more than that.
Callers: pool_check, inside the checkpointer's hold; ``read_journals`` between two commits.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress

import numpy as np

from arraylift.durable import Files
from arraylift.errors import ArrayliftError
from arraylift.ids import PoolId
from arraylift.sizes import GRANULE_BYTES
from primary_array import map_checkpoint, map_journal, superblock
from primary_array.findings import Finding, Remedy, Severity
from primary_array.map_events import decode
from primary_array.page_file import PAGE_BYTES, Home, checksum_of, read_places
from primary_array.superblock import Layout

KNOWN_FILES = frozenset({"pool.json", "slots.data", "map.pages", "reserve.bin", "lock", "damaged"})
OTHERS_FILES = frozenset({"grant.secret", "exports.ale", "doubts.alf"})
"""What else an array keeps in the directory."""

Journals = dict[int, bytes | ArrayliftError]
"""What each holds, or why that cannot be read; ascending."""

ANEW = "repair writes it anew from memory, and keeps the damaged one"


class FileCheck:
    """For one pool."""

    def __init__(self, files: Files, layout: Layout, pool_id: PoolId) -> None:
        self._files = files
        self._layout = layout
        self._pool_id = pool_id

    def check(self, highest_slot: int) -> Iterator[Finding]:
        """Yield what is wrong, but with journals."""
        yield from self._superblock()
        yield from self._data(highest_slot)
        yield from self._checkpoints()
        yield from self._names()

    def _superblock(self) -> Iterator[Finding]:
        try:
            found, version = superblock.read_superblock(self._files, self._layout)
            right = (found, version) == (self._pool_id, superblock.VERSION)
            why = "it says another pool or version"
        except ArrayliftError as error:
            right, why = False, str(error)
        if not right:
            yield self._damaged("superblock_damaged", self._layout.superblock, why, Remedy.REDECLARE)

    def _data(self, highest_slot: int) -> Iterator[Finding]:
        path = self._layout.slots
        size = 0
        with suppress(ArrayliftError):
            size = self._files.size(path)
        if size < (highest_slot + 1) * GRANULE_BYTES * (highest_slot > 0):
            yield Finding(
                Severity.ERROR,
                "data_file_short",
                path,
                f"{path} has {size} bytes, and slot {highest_slot} is in use",
                "restore the volumes from their backups",
            )

    def _checkpoints(self) -> Iterator[Finding]:
        numbers = self._layout.checkpoints(self._files)
        if not numbers:
            yield self._damaged(
                "checkpoint_damaged", self._layout.checkpoint(self._newest()), "it is missing"
            )
            return
        path = self._layout.checkpoint(numbers[-1])
        try:
            data = self._files.read(path)
            if map_checkpoint.is_version_1(data):
                return  # pages lie in it, and the next one replaces it
            content = map_checkpoint.parse(data, pool_id=self._pool_id, number=numbers[-1])
        except (ArrayliftError, ValueError, KeyError, TypeError, IndexError, struct.error) as error:
            yield self._damaged("checkpoint_damaged", path, str(error))
            return
        yield from self._pages(content.homes)
        for number in numbers[:-1]:
            yield self._leftover(self._layout.checkpoint(number))

    def _pages(self, homes: list[Home]) -> Iterator[Finding]:
        path = self._layout.pages
        checksums = dict(homes)
        places = np.array(list(checksums), np.uint64)
        try:
            for place, data in read_places(self._files, path, places):
                if checksum_of(data) != checksums[place]:
                    why = f"page {place} is not what was written"
                    where = ((path, place * PAGE_BYTES, PAGE_BYTES),)
                    yield self._damaged("page_damaged", path, why, files=where)
        except ArrayliftError as error:
            yield self._damaged("page_damaged", path, str(error), files=())

    def _newest(self) -> int:
        """The number of the journal that is written now, as the disk has it."""
        return max(self._layout.journals(self._files), default=1)

    def read_journals(self, number: int) -> Journals:
        """Return what the journals up to ``number``, which is written now, hold. Between two commits."""
        found: Journals = {}
        for each in range(self._first_journal(), number + 1):
            try:
                found[each] = self._files.read(self._layout.journal(each))
            except ArrayliftError as error:
                found[each] = error
        return found

    def _first_journal(self) -> int:
        return max([1, *self._layout.checkpoints(self._files)[-1:]])

    def check_journals(self, journals: Journals, sequence: int) -> Iterator[Finding]:
        """Yield what is wrong with journals, the last of which ends with frame ``sequence``."""
        for number in self._layout.journals(self._files):
            if number < min(journals):
                yield self._leftover(self._layout.journal(number))
        last = 0
        for number, data in journals.items():
            path = self._layout.journal(number)
            try:
                if isinstance(data, ArrayliftError):
                    raise data
                scan = map_journal.scan(data, pool_id=self._pool_id, number=number, path=path)
                for frame in scan.frames:
                    decode(frame.payload)
                    last = frame.sequence
                if scan.torn_bytes:
                    raise ValueError(f"{scan.torn_bytes} bytes at its end are no frame")
            except (ArrayliftError, ValueError) as error:
                yield self._damaged("journal_damaged", path, str(error))
                return
        if last and last != sequence:
            path = self._layout.journal(max(journals))
            why = f"it ends with frame {last}, not {sequence}"
            yield self._damaged("journal_damaged", path, why)

    def _names(self) -> Iterator[Finding]:
        layout = self._layout
        ours = {layout.checkpoint(number) for number in layout.checkpoints(self._files)}
        ours |= {layout.journal(number) for number in layout.journals(self._files)}
        names = {path.rpartition("/")[2] for path in ours} | KNOWN_FILES | OTHERS_FILES
        for name in self._files.list_dir(layout.directory):
            if name not in names:
                yield Finding(
                    Severity.NOTE,
                    "file_unknown",
                    name,
                    f"{name} is no file of a pool",
                    "move it elsewhere if nobody needs it here",
                )
        if not self._files.exists(layout.reserve):
            yield Finding(
                Severity.NOTE,
                "reserve_missing",
                layout.reserve,
                "the ballast was given up",
                "free space: it comes back with the next checkpoint",
            )

    def _damaged(
        self,
        kind: str,
        path: str,
        why: str,
        remedy: Remedy = Remedy.REWRITE,
        *,
        files: tuple[tuple[str, int, int], ...] | None = None,
    ) -> Finding:
        kept = ((path, 0, 0),) if files is None else files
        return Finding(Severity.ERROR, kind, path, f"{path} is damaged: {why}", ANEW, remedy, "", kept)

    def _leftover(self, path: str) -> Finding:
        step = "repair removes it with a new checkpoint"
        return Finding(
            Severity.WARNING, "file_leftover", path, f"{path} is no longer needed", step, Remedy.REWRITE
        )
