"""Copy what is alive out of sparse containers into full ones, so that the rest can go (law 8).

A record is copied as it is stored, codec and all, after its plain bytes were fingerprinted: what
turns out damaged is quarantined, not copied. Records keep the order in which they were stored,
so a restore still reads forward.
Invariants:
  F1 a source is given back as done only when everything alive in it lies in sealed containers
     whose index batches are synced: from then on no look-up leads to it but for what is dead.
  F2 only records that the index still finds in the source are copied: what has moved since the
     mark has moved for good.
Limits: one container buffer. Callers: the collector's thread, containers in ascending order of
(tenant, kind, id). Decision: docs/decisions/0048-copy-forward.md
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arraylift.errors import Corruption
from arraylift.ids import ContainerId, KeyId, TenantId
from arraylift.segments.codecs import decompress
from arraylift.segments.fingerprint import FingerprintKey
from arraylift.sizes import MIB
from dedup_target.container_buffer import ContainerBuffer
from dedup_target.container_format import Directory, Kind, SealedContainer
from dedup_target.container_store import LoadedContainer
from dedup_target.storage_unit import StorageUnit

FRAME_RECORDS_MAX = 256
FRAME_BYTES_MAX = MIB


@dataclass(slots=True)
class CopyFigures:
    """What was copied so far."""

    records: int = 0
    stored_bytes: int = 0
    damaged: int = 0
    """Records that did not match; they are in quarantine."""


class CopyForward:
    """Fills containers with records of others."""

    def __init__(self, unit: StorageUnit, *, pace: Callable[[int], None] = lambda _: None) -> None:
        """``pace`` is told of the bytes of each frame; it may wait, and raise to end the work."""
        self._unit = unit
        self._pace = pace
        self._buffer: ContainerBuffer | None = None
        self._whole: list[ContainerId] = []
        """Sources whose every live record is in the buffer or sealed."""
        self._keys: dict[TenantId, FingerprintKey] = {}
        self.figures = CopyFigures()

    def copy(self, container: ContainerId, slots: npt.NDArray[np.int64]) -> list[ContainerId]:
        """Copy the records of these slots; returns sources that are done now (F1), not always this one.

        Raises OutOfSpace, Overloaded (no buffer), StoreFailed, Corruption (the container cannot be read).
        """
        loaded = self._unit.containers.read_container(container)
        sealed = loaded.sealed
        if sealed.damage:
            raise Corruption(
                f"container {container} has a damaged directory", subject=f"container {container}"
            )
        done = self._ready_for(sealed)
        records = self._still_there(sealed, slots)
        for frame in _frames(records):
            payload = [self._sound(loaded, row) for row in frame]
            sound = frame[np.array([stored is not None for stored in payload])]
            if len(sound):
                done += self._append(sealed, sound, [stored for stored in payload if stored is not None])
        self._whole.append(container)
        return done

    def finish(self) -> list[ContainerId]:
        """Seal what is left; returns the sources that are done now (F1)."""
        if self._buffer is not None:
            buffer, self._buffer = self._buffer, None
            try:
                if buffer.record_count:
                    self._unit.add_sealed(self._unit.containers.seal(buffer))
            finally:
                self._unit.containers.release(buffer)
        done, self._whole = self._whole, []
        return done

    def abandon(self) -> None:
        """Give the buffer up; sources that are not done stay as they are."""
        self._whole = []
        if self._buffer is not None:
            self._unit.containers.release(self._buffer)
            self._buffer = None

    # -- inside -----------------------------------------------------------------------------

    def _ready_for(self, sealed: SealedContainer) -> list[ContainerId]:
        """Have a buffer of the tenant and kind; tenants and kinds never mix."""
        buffer = self._buffer
        if buffer is not None and (buffer.tenant, buffer.kind) == (sealed.tenant, sealed.kind):
            return []
        done = self.finish()
        self._acquire(sealed.tenant, sealed.key_id, sealed.kind)
        return done

    def _acquire(self, tenant: TenantId, key_id: KeyId, kind: Kind) -> ContainerBuffer:
        self._buffer = self._unit.containers.acquire(tenant=tenant, key_id=key_id, kind=kind)
        return self._buffer

    def _still_there(self, sealed: SealedContainer, slots: npt.NDArray[np.int64]) -> Directory:
        rows = sealed.directory[slots]
        found = self._unit.index.find_many(sealed.tenant, rows["fingerprint"].tobytes())
        here = (found["container"] == sealed.container_id) & (found["offset"] == rows["offset"])
        kept: Directory = rows[here]
        return kept

    def _sound(self, loaded: LoadedContainer, row: np.void) -> memoryview | None:
        """The stored bytes of a record that is what its fingerprint says; None after quarantining it."""
        sealed, fingerprint = loaded.sealed, row["fingerprint"].tobytes()
        key = self._key(sealed.tenant)
        try:
            stored = loaded.view(int(row["offset"]), int(row["stored_bytes"]))
            plain = decompress(int(row["codec"]), stored, int(row["plain_bytes"]))
            found = key.segment(plain) if sealed.kind is Kind.DATA else key.node(bytes(plain))
            if found == fingerprint:
                return stored
            why = "it does not match its fingerprint"
        except Corruption as error:
            why = error.message
        self.figures.damaged += 1
        self._unit.condemn_records(sealed.container_id, sealed.tenant, [fingerprint], why)
        return None

    def _append(
        self, sealed: SealedContainer, frame: Directory, payload: list[memoryview]
    ) -> list[ContainerId]:
        buffer, size = self._buffer, sum(map(len, payload))
        assert buffer is not None
        done: list[ContainerId] = []
        if not buffer.fits(len(frame), size):
            done = self.finish()
            buffer = self._acquire(sealed.tenant, sealed.key_id, sealed.kind)
        buffer.append_frame(
            fingerprints=frame["fingerprint"].tobytes(),
            stored_bytes=frame["stored_bytes"],
            plain_bytes=frame["plain_bytes"],
            codecs=frame["codec"],
            payload=payload,
        )
        self.figures.records += len(frame)
        self.figures.stored_bytes += size
        self._pace(size)
        return done

    def _key(self, tenant: TenantId) -> FingerprintKey:
        if tenant not in self._keys:
            self._keys[tenant] = self._unit.fingerprint_key(tenant)
        return self._keys[tenant]


def _frames(records: Directory) -> Iterator[Directory]:
    """Split records into what one frame takes."""
    start = size = 0
    for place, stored in enumerate(records["stored_bytes"].tolist()):
        if place > start and (size + stored > FRAME_BYTES_MAX or place - start == FRAME_RECORDS_MAX):
            yield records[start:place]
            start, size = place, 0
        size += stored
    if start < len(records):
        yield records[start:]
