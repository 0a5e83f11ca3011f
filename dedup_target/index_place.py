"""Where a unit's index lies on this machine, and how one takes the place of another.

Owns: ``<index root>/<unit id>`` and ``<unit id>.next``, the two places of an index, and
``<unit id>.place``, a file that says which of the two is current; the first, where it is missing.
Invariants:
  W1 the file is replaced in one step, after the index that it is to name is whole and closed, or at
     least durable: every start opens the old index or the new one.
  W2 what lies in the other place is nothing: it is removed by the next start or rebuild.
A damaged file costs a rebuild, like every other doubt about an index.
Callers: the unit, at start and while it rebuilds; one thread at a time.
Format: docs/formats/index-v2.md
"""

from __future__ import annotations

from arraylift import envelope
from arraylift.durable import Files
from arraylift.errors import Corruption, NotFound
from arraylift.logs import get_logger
from dedup_target import rocks_index
from dedup_target.rebuild import DamageMark
from dedup_target.segment_index import SegmentIndex

_log = get_logger("index_place")

MAGIC = b"ALIDXPLC"
SUFFIX = ".place"
NEXT_SUFFIX = ".next"


class IndexPlace:
    """IndexOpener of the index on disk, and of the one that is to follow it."""

    def __init__(self, files: Files, path: str, mark: DamageMark) -> None:
        self._files = files
        self._places = (path, path + NEXT_SUFFIX)
        self._file = path + SUFFIX
        self._mark = mark
        self._current = self._read()

    @property
    def path(self) -> str:
        """The current index."""
        return self._places[self._current]

    def open(self) -> SegmentIndex:
        """Raises Corruption if only throwing it away helps; other errors need a person."""
        rocks_index.destroy(self._places[1 - self._current])  # W2
        return rocks_index.RocksSegmentIndex(self.path, on_damage=self._mark.set)

    def destroy(self) -> None:
        """REQUIRES the index closed."""
        rocks_index.destroy(self.path)

    def open_next(self) -> SegmentIndex:
        """An empty index in the other place."""
        other = self._places[1 - self._current]
        rocks_index.destroy(other)
        return rocks_index.RocksSegmentIndex(other, on_damage=self._mark.set)

    def switch(self) -> None:
        """Have every later start open the other one (W1). Raises OutOfSpace, StoreFailed."""
        other = 1 - self._current
        body = envelope.canonical_json({"place": other})
        self._files.publish(self._file, [envelope.encode(MAGIC, body)], label="index-place")
        self._current = other

    def destroy_other(self) -> None:
        """Remove what is not current. REQUIRES it closed."""
        try:
            rocks_index.destroy(self._places[1 - self._current])
        except OSError as error:  # the next start tries again (W2)
            _log.warning("old_index_not_removed", error=str(error))

    def _read(self) -> int:
        try:
            fields = envelope.decode_json(
                MAGIC, self._files.read(self._file), what="place of the index", keys=frozenset({"place"})
            )
            if fields["place"] in (0, 1):
                return int(fields["place"])
            why = f"it names place {fields['place']}"
        except NotFound:
            return 0
        except Corruption as error:
            why = error.message
        self._mark.set(f"which index is current is not known: {why}")
        self._files.remove(self._file, label="index-place-remove", missing_ok=True)
        return 0
