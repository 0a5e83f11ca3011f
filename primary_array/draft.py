"""A volume in the making: restores and imports write it, nobody sees it before its commit.

Invariants:
  V1 before ``commit`` the draft's name is reserved and no volume; after it the volume
     is whole and durable. A crash in between leaves one of the two.
  V2 after ``save_progress(tag)`` everything written before it survives any crash, under
     the draft's id and with that tag; a draft that never saved is void after a crash.
  V3 what a draft wrote is born in its one epoch, above every birth that it took over from the
     snapshot it is a clone of, if it is; the volume goes on in the next epoch.
Callers: any thread; writes of disjoint ranges may run beside each other.
"""

from __future__ import annotations

from arraylift.durable import Buffer
from arraylift.errors import InvalidRequest
from arraylift.ids import LineageId, VolumeId, random_id
from primary_array import map_state
from primary_array.granule_io import GranuleIo, check_not_gone, check_range
from primary_array.map_commit import MapCommit
from primary_array.map_events import DraftAborted, DraftCommitted, DraftSaved
from primary_array.map_state import MapState
from primary_array.pool_types import ROOT_BYTES, TAG_BYTES_MAX
from primary_array.slot_store import SlotStore


class Draft:
    """Handle of one draft. Ends with ``commit`` or ``abort``; afterwards calls raise NotFound."""

    def __init__(
        self, record: map_state.Draft, *, state: MapState, slots: SlotStore, commit: MapCommit, io: GranuleIo
    ) -> None:
        self._record = record
        self._state = state
        self._slots = slots
        self._commit = commit
        self._io = io

    @property
    def draft_id(self) -> VolumeId:
        """The id that the volume will have."""
        return self._record.volume_id

    @property
    def name(self) -> str:
        return self._record.name

    @property
    def size_bytes(self) -> int:
        return self._record.size_bytes

    @property
    def tag(self) -> bytes | None:
        """The progress note of the last ``save_progress``; None without one."""
        return self._record.tag

    def write(self, offset: int, data: Buffer) -> None:
        """Write ``data`` at byte ``offset``; what is never written is zero.

        Ascending writes of 1 MiB and more, aligned to granules, cost least.
        Raises InvalidRequest, NotFound, OutOfSpace, StoreFailed.
        """
        self._io.write(self._record, offset, data)

    def trim(self, offset: int, length: int) -> None:
        """Make a range zero again. Errors as ``write``."""
        self._io.trim(self._record, offset, length)

    def read_into(self, offset: int, into: memoryview) -> None:
        """Fill ``into`` with what was written so far. Raises InvalidRequest, NotFound, Corruption."""
        with self._slots.reading():
            with self._state.lock:
                check_not_gone(self._record)
                check_range(self._record, offset, into.nbytes)
                view = self._record.map
            self._io.read_into(view, offset, into)

    def save_progress(self, tag: bytes) -> None:
        """Make everything written so far durable, with ``tag`` (V2). Raises InvalidRequest, NotFound,
        OutOfSpace (the last progress stands), StoreFailed."""
        if len(tag) > TAG_BYTES_MAX:
            raise InvalidRequest(f"a progress note has at most {TAG_BYTES_MAX} bytes, got {len(tag)}")
        with self._commit.transaction():
            self._check_open()
            self._commit.commit_draft(self._record, DraftSaved(self.draft_id, tag.hex()))

    def commit(self, *, root: bytes = b"") -> VolumeId:
        """Turn the draft into a volume, durably (V1).

        ``root`` is the root of the image that it was restored from: the first backup of the volume
        against that image is then an incremental. Raises NotFound, OutOfSpace (still a draft).
        """
        if root and len(root) != ROOT_BYTES:
            raise InvalidRequest(f"a root has {ROOT_BYTES} bytes, got {len(root)}")
        with self._record.gate.hold(), self._commit.transaction():
            self._check_open()
            event = DraftCommitted(self.draft_id, LineageId(random_id()), root.hex())
            self._commit.commit_draft(self._record, event)
        return self.draft_id

    def abort(self) -> None:
        """Remove the draft and free its space; does nothing if it has ended."""
        with self._record.gate.hold(), self._commit.transaction():
            if self._record.gone:
                return
            if self._record.registered:
                self._commit.commit(DraftAborted(self.draft_id))
                return
            with self._state.lock:
                for slots in (self._state.drop_draft(self._record), *self._record.freed):
                    self._commit.abandon(slots)
            self._commit.commit()

    def _check_open(self) -> None:
        with self._state.lock:
            check_not_gone(self._record)
