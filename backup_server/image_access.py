"""Random reads of an image, block by block, for parsers of file systems.

Owns: a cache of BLOCKS_MAX blocks, least recently used first out (16 MiB an image).
Invariants:
  A1 a read yields the image's bytes or an error, never zeros instead of what is missing.
Callers: one thread at a time.
"""

from __future__ import annotations

from collections import OrderedDict

from arraylift.errors import Corruption, InvalidRequest
from backup_server.ports import Target

BLOCK_BYTES = 64 * 1024
BLOCKS_MAX = 256
RUN_BLOCKS_MAX = 64
"""Blocks that one call fetches at most: 4 MiB."""


class RemoteImage:
    """An image on a target (catalog.ImageAccess)."""

    def __init__(self, target: Target, image_id: str, size_bytes: int) -> None:
        self._target = target
        self._image_id = image_id
        self.size_bytes = size_bytes
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes. Raises InvalidRequest (range), Corruption, PeerUnavailable."""
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise InvalidRequest(
                f"range {offset}+{length} is outside the image's {self.size_bytes} bytes",
                subject=f"image {self._image_id}",
            )
        parts = []
        at, end = offset, offset + length
        while at < end:
            number = at // BLOCK_BYTES
            block = self._block(number, -(-end // BLOCK_BYTES))
            low = at - number * BLOCK_BYTES
            part = block[low : low + end - at]
            parts.append(part)
            at += len(part)
        return b"".join(parts)

    def _block(self, number: int, until: int) -> bytes:
        """A block; those that follow and are wanted soon come by the same call."""
        known = self._blocks.get(number)
        if known is not None:
            self._blocks.move_to_end(number)
            return known
        count = 1
        while number + count < until and count < RUN_BLOCKS_MAX and number + count not in self._blocks:
            count += 1
        self._fetch(number, count)
        return self._blocks[number]

    def _fetch(self, number: int, count: int) -> None:
        start = number * BLOCK_BYTES
        length = min(count * BLOCK_BYTES, self.size_bytes - start)
        fetched = bytearray()
        with self._target.read_range(self._image_id, start, length) as pieces:
            for data, hole_bytes in pieces:
                if len(fetched) + len(data) + hole_bytes > length:
                    break
                fetched += data or bytes(hole_bytes)
        if len(fetched) != length:  # A1
            raise Corruption(
                f"image {self._image_id}: {len(fetched)} of {length} bytes came at {start}",
                subject=f"image {self._image_id}",
            )
        # Backwards, so that the first, which is read next, is the last to go.
        for index in reversed(range(count)):
            part = fetched[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
            self._blocks[number + index] = bytes(part)
        while len(self._blocks) > BLOCKS_MAX:
            self._blocks.popitem(last=False)
