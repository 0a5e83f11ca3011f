"""Read nodes and segments by fingerprint, and never hand out a byte that does not match.

Invariants:
  V1 a node or plain segment that leaves this module was fingerprinted after decoding.
  V2 an absent or quarantined fingerprint is Corruption that names it, never a hole.
Reads go by whole containers, through the store's bounded cache: a restore reads
forward in them. Callers: any thread.
"""

from __future__ import annotations

from collections.abc import Sequence

from arraylift.errors import Corruption
from arraylift.ids import Fingerprint, TenantId
from arraylift.segments.codecs import decompress
from arraylift.segments.fingerprint import FingerprintKey
from dedup_target.container_store import ContainerStore
from dedup_target.segment_index import Locator, SegmentIndex


class SegmentReader:
    """Reads of one storage unit."""

    def __init__(self, containers: ContainerStore, index: SegmentIndex) -> None:
        self._containers = containers
        self._index = index

    def locate(self, tenant: TenantId, fingerprints: Sequence[bytes]) -> list[Locator]:
        """Return where each lies. Raises Corruption for the first that does not (V2)."""
        found = self._index.get_many(tenant, fingerprints)
        for fingerprint, locator in zip(fingerprints, found, strict=True):
            if locator is None:
                raise Corruption(
                    f"segment {fingerprint.hex()[:16]} is not in the store",
                    subject=f"segment {fingerprint.hex()}",
                    next_step="scrub the target; the next backup of the same data heals it",
                )
        return [locator for locator in found if locator is not None]

    def stored(self, locator: Locator) -> memoryview:
        """Return a record as it is stored, checksum verified."""
        container = self._containers.read_container(locator.container)
        return container.view(locator.offset, locator.stored_bytes)

    def plain(self, key: FingerprintKey, fingerprint: bytes, locator: Locator) -> bytes | memoryview:
        """Return one segment's plain bytes (V1)."""
        plain = decompress(locator.codec, self.stored(locator), locator.plain_bytes)
        if key.segment(plain) != fingerprint:
            raise _mismatch("segment", fingerprint, locator)
        return plain

    def nodes(
        self, tenant: TenantId, key: FingerprintKey, fingerprints: Sequence[Fingerprint]
    ) -> list[bytes]:
        """Return encoded tree nodes, in order (V1)."""
        nodes = []
        for fingerprint, locator in zip(fingerprints, self.locate(tenant, fingerprints), strict=True):
            node = bytes(decompress(locator.codec, self.stored(locator), locator.plain_bytes))
            if key.node(node) != fingerprint:
                raise _mismatch("node", fingerprint, locator)
            nodes.append(node)
        return nodes

    def prefetch(self, locators: Sequence[Locator]) -> None:
        """Hint which containers are read soon."""
        self._containers.prefetch(dict.fromkeys(locator.container for locator in locators))


def _mismatch(what: str, fingerprint: bytes, locator: Locator) -> Corruption:
    return Corruption(
        f"{what} {fingerprint.hex()[:16]} in container {locator.container} does not match its fingerprint",
        subject=f"container {locator.container}",
        next_step="scrub the target; the next backup of the same data heals it",
    )
