"""Read nodes and segments by fingerprint, and never hand out a byte that does not match.

Invariants:
  V1 a node or plain segment that leaves this module was fingerprinted after decoding.
  V2 an absent or quarantined fingerprint is Corruption that names it, never a hole.
  V3 a record found damaged is quarantined before the error leaves, unless the disk refuses: it
     counts as missing from then on, so the next backup of the same data brings it again (law 7).
Reads go by whole containers, through the store's bounded cache: a restore reads
forward in them. Callers: any thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from arraylift.errors import Corruption, NotFound, OutOfSpace, StoreFailed
from arraylift.ids import Fingerprint, TenantId
from arraylift.logs import get_logger
from arraylift.segments.codecs import decompress
from arraylift.segments.fingerprint import FingerprintKey
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

    def stored(self, tenant: TenantId, fingerprint: bytes, locator: Locator) -> memoryview:
        """Return a record as it is stored, checksum verified (V3)."""
        with self._condemning(tenant, fingerprint, locator):
            container = self._unit.containers.read_container(locator.container)
            return container.view(locator.offset, locator.stored_bytes)

    def plain(
        self, tenant: TenantId, key: FingerprintKey, fingerprint: bytes, locator: Locator
    ) -> bytes | memoryview:
        """Return one segment's plain bytes (V1, V3)."""
        with self._condemning(tenant, fingerprint, locator):
            plain = decompress(locator.codec, self.stored(tenant, fingerprint, locator), locator.plain_bytes)
            if key.segment(plain) != fingerprint:
                raise _mismatch("segment", fingerprint, locator)
            return plain

    def nodes(
        self, tenant: TenantId, key: FingerprintKey, fingerprints: Sequence[Fingerprint]
    ) -> list[bytes]:
        """Return encoded tree nodes, in order (V1, V3)."""
        nodes = []
        for fingerprint, locator in zip(fingerprints, self.locate(tenant, fingerprints), strict=True):
            with self._condemning(tenant, fingerprint, locator):
                stored = self.stored(tenant, fingerprint, locator)
                node = bytes(decompress(locator.codec, stored, locator.plain_bytes))
                if key.node(node) != fingerprint:
                    raise _mismatch("node", fingerprint, locator)
                nodes.append(node)
        return nodes

    @contextlib.contextmanager
    def _condemning(self, tenant: TenantId, fingerprint: bytes, locator: Locator) -> Iterator[None]:
        """Quarantine the record if what happens inside finds it damaged (V3)."""
        try:
            yield
        except (Corruption, NotFound) as error:
            try:
                self._unit.condemn_records(locator.container, tenant, [fingerprint], str(error))
            except (OutOfSpace, StoreFailed) as refused:  # the next reader finds it as we did
                _log.error("record_not_quarantined", error=str(refused))
            if isinstance(error, Corruption):
                raise
            raise Corruption(
                f"container {locator.container} is gone",
                subject=f"container {locator.container}",
                next_step=_HEALS,
            ) from error

    def prefetch(self, locators: Sequence[Locator]) -> None:
        """Hint which containers are read soon."""
        self._unit.containers.prefetch(dict.fromkeys(locator.container for locator in locators))


def _mismatch(what: str, fingerprint: bytes, locator: Locator) -> Corruption:
    return Corruption(
        f"{what} {fingerprint.hex()[:16]} in container {locator.container} does not match its fingerprint",
        subject=f"container {locator.container}",
        next_step=_HEALS,
    )
