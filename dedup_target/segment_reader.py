"""Read nodes and segments by fingerprint, and never hand out a byte that does not match.

Invariants:
  V1 a node or plain segment that leaves this module was fingerprinted after decoding.
  V2 an absent or quarantined fingerprint is Corruption that names it, never a hole.
  V3 a record found damaged is quarantined before the error leaves, unless the disk refuses: it
     counts as missing from then on, so the next backup of the same data brings it again (law 7).
  V4 a record whose container was removed meanwhile is looked up again: whoever removes one
     has put every live record elsewhere first.
Many records are read at a time, by container; where anything of them is wrong, one by one,
so that the record at fault is found. Callers: any thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

from arraylift.errors import Corruption, NotFound, OutOfSpace, StoreFailed
from arraylift.ids import ContainerId, Fingerprint, TenantId
from arraylift.logs import get_logger
from arraylift.segments.codecs import decompress
from arraylift.segments.fingerprint import FingerprintKey
from dedup_target.container_buffer import StoredRecord
from dedup_target.segment_index import Locator
from dedup_target.storage_unit import StorageUnit

_log = get_logger("segment_reader")

_HEALS = "back the same data up again: the record is then asked for, and old images heal"


class SegmentReader:
    """Reads of one storage unit."""

    def __init__(self, unit: StorageUnit) -> None:
        self._unit = unit

    def locate(self, tenant: TenantId, fingerprints: Sequence[bytes]) -> list[Locator]:
        """Return where each lies. Raises Corruption for the first that does not (V2)."""
        return self._unit.locate(tenant, fingerprints)

    def stored(
        self, tenant: TenantId, fingerprints: Sequence[bytes], locators: Sequence[Locator]
    ) -> list[StoredRecord]:
        """Return records as they are stored, in order, checksums verified (V3, V4)."""
        try:
            return self._stored(locators)
        except (Corruption, NotFound):
            pairs = zip(fingerprints, locators, strict=True)
            records = [self._one(tenant, fingerprint, locator) for fingerprint, locator in pairs]
            return [StoredRecord(data, where.plain_bytes, where.codec) for data, where in records]

    def plain(
        self,
        tenant: TenantId,
        key: FingerprintKey,
        fingerprints: Sequence[bytes],
        locators: Sequence[Locator],
    ) -> list[bytes | memoryview]:
        """Return the plain bytes of segments, in order (V1, V3, V4)."""
        try:
            plain = [decompress(codec, data, size) for data, size, codec in self._stored(locators)]
            if key.segments(plain) == b"".join(fingerprints):
                return plain
        except (Corruption, NotFound):
            pass
        return list(self._each(tenant, fingerprints, locators, key.segment, "segment"))

    def nodes(
        self, tenant: TenantId, key: FingerprintKey, fingerprints: Sequence[Fingerprint]
    ) -> list[bytes]:
        """Return encoded tree nodes, in order (V1, V3, V4)."""
        locators = self.locate(tenant, fingerprints)
        try:
            nodes = [bytes(decompress(codec, data, size)) for data, size, codec in self._stored(locators)]
            if list(map(key.node, nodes)) == list(fingerprints):
                return nodes
        except (Corruption, NotFound):
            pass
        return self._each(tenant, fingerprints, locators, key.node, "node")

    def prefetch(self, containers: Iterable[ContainerId]) -> None:
        """Hint which containers are read soon."""
        self._unit.containers.prefetch(containers)

    @property
    def whole_from_bytes(self) -> int:
        """A container of which so much is wanted is worth reading ahead."""
        return self._unit.containers.whole_from_bytes

    # -- many at a time ---------------------------------------------------------------------

    def _stored(self, locators: Sequence[Locator]) -> list[StoredRecord]:
        by_container: dict[ContainerId, list[int]] = {}
        for place, locator in enumerate(locators):
            by_container.setdefault(locator.container, []).append(place)
        found: list[StoredRecord | None] = [None] * len(locators)
        for container, places in by_container.items():
            wanted = [locators[place] for place in places]
            records = self._unit.containers.read_records(container, wanted)
            for place, locator, data in zip(places, wanted, records, strict=True):
                found[place] = StoredRecord(data, locator.plain_bytes, locator.codec)
        return cast("list[StoredRecord]", found)

    # -- one by one -------------------------------------------------------------------------

    def _each(
        self,
        tenant: TenantId,
        fingerprints: Sequence[bytes],
        locators: Sequence[Locator],
        fingerprint_of: Callable[[bytes], bytes],
        what: str,
    ) -> list[bytes]:
        """Read and decode records; condemns the first that is damaged, and raises Corruption."""
        found = []
        for fingerprint, known in zip(fingerprints, locators, strict=True):
            data, locator = self._one(tenant, fingerprint, known)
            with self._condemning(tenant, fingerprint, locator):
                plain = bytes(decompress(locator.codec, data, locator.plain_bytes))
                if fingerprint_of(plain) != fingerprint:
                    raise _mismatch(what, fingerprint, locator)
            found.append(plain)
        return found

    def _one(self, tenant: TenantId, fingerprint: bytes, known: Locator) -> tuple[memoryview, Locator]:
        """Return one record as it is stored, and where it lay (V3, V4)."""
        with contextlib.suppress(NotFound), self._condemning(tenant, fingerprint, known, also_gone=False):
            return self._unit.containers.read_record(known).data, known
        (locator,) = self.locate(tenant, [fingerprint])
        with self._condemning(tenant, fingerprint, locator):
            return self._unit.containers.read_record(locator).data, locator

    @contextlib.contextmanager
    def _condemning(
        self, tenant: TenantId, fingerprint: bytes, locator: Locator, *, also_gone: bool = True
    ) -> Iterator[None]:
        """Quarantine the record if what happens inside finds it damaged (V3)."""
        try:
            yield
        except Corruption as error:
            self._condemn(tenant, fingerprint, locator, error)
            raise
        except NotFound as error:
            if not also_gone:
                raise
            self._condemn(tenant, fingerprint, locator, error)
            raise Corruption(
                f"container {locator.container} is gone",
                subject=f"container {locator.container}",
                next_step=_HEALS,
            ) from error

    def _condemn(self, tenant: TenantId, fingerprint: bytes, locator: Locator, error: Exception) -> None:
        try:
            self._unit.condemn_records(locator.container, tenant, [fingerprint], str(error))
        except (OutOfSpace, StoreFailed) as refused:  # the next reader finds it as we did
            _log.error("record_not_quarantined", error=str(refused))


def _mismatch(what: str, fingerprint: bytes, locator: Locator) -> Corruption:
    return Corruption(
        f"{what} {fingerprint.hex()[:16]} in container {locator.container} does not match its fingerprint",
        subject=f"container {locator.container}",
        next_step=_HEALS,
    )
