"""A disk of a foreign storage system as what is sent, read through its NBD export ([0039], [0043], [0044]).

The array stands in for a storage system that cannot speak the exchange. The export is to show one state
of the disk until its backup has ended (a snapshot, a fleecing node, a stopped VM): nobody here can hold it
still.
Invariants:
  G1 only ranges that the server says read as zeros are left out; without block status everything is read.
  G2 a dirty bitmap vouches only if the base at the target is exactly the state at which it was cleared
     (``since``), if it is there under its name, and if the disk has the base's size; else all is read.
  G3 a bitmap that a sample caught missing a write vouches for nothing that is based on that state
     (doubt_table).
Limits: a byte of memory a granule, 256 MiB for the largest disk. Callers: send, the transfer's thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from arraylift.errors import InvalidRequest, TrackerMismatch
from arraylift.exchange.messages import Base, Flags
from arraylift.ids import SourceState
from arraylift.logs import get_logger
from arraylift.nbd import wire
from arraylift.nbd.client import NbdClient
from arraylift.nbd.client_tls import ClientCredentials
from arraylift.nbd.device import BASE_ALLOCATION
from arraylift.nbd.grains import mark as mark_grains
from arraylift.nbd.uri import NbdUri
from arraylift.outcome import attempt
from arraylift.sizes import GRANULE_BYTES, SPAN_BYTES, spans_of
from primary_array.change_types import Changed, ChangeSource
from primary_array.doubt_table import DoubtTable
from primary_array.foreign_reader import NbdExport, other_disk
from primary_array.send_plan import Slots

READERS_MAX = 4
"""Connections of one transfer: what a server must take at once, where it says that it takes several."""
BITMAP_CHARS_MAX = 1023
"""QEMU's own limit for a bitmap's name."""

_log = get_logger("foreign_disk")


@dataclass(frozen=True, slots=True)
class Bitmap:
    """A dirty bitmap of the VMM's, and the state at which it was cleared."""

    name: str
    since: SourceState

    def __post_init__(self) -> None:
        if not 1 <= len(self.name.encode()) <= BITMAP_CHARS_MAX or not self.name.isprintable():
            raise InvalidRequest(f"a bitmap's name has 1 to {BITMAP_CHARS_MAX} printable bytes")

    @property
    def context(self) -> str:
        return f"qemu:dirty-bitmap:{self.name}"


@dataclass(frozen=True, slots=True)
class ForeignSource:
    """A DiskSource of one export."""

    uri: NbdUri
    credentials: ClientCredentials | None
    state: SourceState
    """What the caller calls the state that the export shows."""
    bitmap: Bitmap | None
    doubts: DoubtTable

    def __post_init__(self) -> None:
        if self.bitmap is not None and self.bitmap.since == self.state:
            raise InvalidRequest("a state that differs from another has a name of its own")

    @property
    def label(self) -> str:
        return f"foreign disk {self.uri}"

    @contextmanager
    def open(self, cancelled: threading.Event) -> Iterator[ForeignDisk]:
        """Raises what NbdClient raises."""
        disk = ForeignDisk(self, cancelled)
        disk.survey()
        yield disk


class ForeignDisk:
    """A SentDisk."""

    base_demanded = False

    def __init__(self, source: ForeignSource, cancelled: threading.Event) -> None:
        self._source = source
        self._cancelled = cancelled
        self._fresh = False
        self._data: Flags = np.empty(0, np.bool_)
        self._dirty: Flags | None = None
        self.label = source.label
        self.state = source.state
        self.size_bytes = 0
        self.readers_max = 1

    @property
    def reader(self) -> NbdExport:
        return NbdExport(self._source.uri, self._source.credentials, self.size_bytes)

    def begin_attempt(self) -> None:
        """Look again, unless it was only just looked at: the server may have been another meanwhile."""
        if not self._fresh:
            self.survey()
        self._fresh = False

    def survey(self) -> None:
        """Learn size, zeros (G1) and what the bitmap says. Raises WrongState (another size than before)."""
        bitmap = self._source.bitmap
        contexts = [BASE_ALLOCATION, *([bitmap.context] if bitmap else [])]
        with NbdClient(
            self._source.uri, self._source.credentials, contexts=contexts, cancelled=self._cancelled
        ) as client:
            if self.size_bytes and client.size_bytes != self.size_bytes:
                raise other_disk(self._source.uri, self.size_bytes, client.size_bytes)
            self.size_bytes = client.size_bytes
            self.readers_max = READERS_MAX if client.multi_conn else 1
            data, dirty = _survey(client, bitmap)
        self._data, self._dirty, self._fresh = data, dirty, True
        _log.info(
            "foreign_disk_surveyed",
            uri=str(self._source.uri),
            size_bytes=self.size_bytes,
            data_bytes=int(data.sum()) * GRANULE_BYTES,
            bitmap=None if bitmap is None else bitmap.name,
            dirty_spans=None if dirty is None else int(dirty.sum()),
        )

    def places(self, first_granule: int, count: int) -> Slots:
        data = self._data[first_granule : first_granule + count]
        return np.where(data, np.arange(first_granule + 1, first_granule + 1 + len(data), dtype=np.uint64), 0)

    def changed_since(self, base: Base) -> Changed | None:
        bitmap = self._source.bitmap
        if bitmap is None:
            return None
        same = base.state == bitmap.since and base.image_bytes == self.size_bytes
        if self._dirty is None or not same or bitmap.since in self._source.doubts:  # G2, G3
            _log.warning(
                "bitmap_does_not_vouch",
                bitmap=bitmap.name,
                exported=self._dirty is not None,
                base_matches=same,
            )
            return None
        return Changed(np.flatnonzero(self._dirty).astype(np.uint64), ChangeSource.BITMAP)

    def distrust(self) -> None:
        """Raises TrackerMismatch, which says what to do here."""
        bitmap = self._source.bitmap
        assert bitmap is not None, "nothing is sampled without a bitmap"
        _, error = attempt(lambda: self._source.doubts.add(bitmap.since), "to note a doubt")
        if error is not None:
            _log.error("doubt_not_kept", bitmap=bitmap.name, error=str(error))
        raise TrackerMismatch(
            f"bitmap {bitmap.name!r} does not know of a write that came after the last backup",
            subject=self.label,
            next_step="send it once more, which reads everything; then clear the bitmap at the next backup's "
            "instant, in one transaction with it",
        )


def _survey(client: NbdClient, bitmap: Bitmap | None) -> tuple[Flags, Flags | None]:
    """Return which granules may hold data, and which spans the bitmap calls dirty, if it is there."""
    granules = -(-client.size_bytes // GRANULE_BYTES)
    has_zeros = BASE_ALLOCATION in client.contexts
    has_dirty = bitmap is not None and bitmap.context in client.contexts
    data: Flags = np.full(granules, not has_zeros, dtype=np.bool_)
    dirty: Flags = np.zeros(spans_of(client.size_bytes), dtype=np.bool_)
    if has_zeros or has_dirty:
        for offset, states in client.status():
            if has_zeros:
                flags = states[BASE_ALLOCATION][:, 1]
                mark_grains(
                    data, GRANULE_BYTES, offset, states[BASE_ALLOCATION], flags & wire.STATE_ZERO == 0
                )
            if has_dirty:
                assert bitmap is not None
                extents = states[bitmap.context]
                # Whatever it says that we do not know counts as dirty.
                mark_grains(dirty, SPAN_BYTES, offset, extents, extents[:, 1] != 0)
    return data, dirty if has_dirty else None
