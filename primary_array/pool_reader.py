"""Read granules out of the pool's data file, in a worker process.

Invariants: B2 a slot is read whole or not at all.
Callers: span_source, the worker's main thread. A place is a slot.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass

from arraylift.errors import Corruption
from arraylift.sizes import GRANULE_BYTES
from primary_array.send_plan import Slots, place_runs


@dataclass(frozen=True, slots=True)
class PoolFile:
    """A DiskReader."""

    path: str

    def open(self, cancelled: threading.Event) -> PoolReader:  # noqa: ARG002 - a disk does not keep one waiting
        return PoolReader(os.open(self.path, os.O_RDONLY | os.O_CLOEXEC))


class PoolReader:
    """A GranuleReader; owns the descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read_ahead(self, places: Slots) -> None:
        for _, slot, count in place_runs(places):
            os.posix_fadvise(
                self._descriptor, slot * GRANULE_BYTES, count * GRANULE_BYTES, os.POSIX_FADV_WILLNEED
            )

    def read(self, places: Slots, buffer: memoryview) -> int:
        bytes_read = 0
        for index, slot, count in place_runs(places):
            view = buffer[index * GRANULE_BYTES : (index + count) * GRANULE_BYTES]
            read_fully(self._descriptor, slot * GRANULE_BYTES, view)
            bytes_read += len(view)
        return bytes_read

    def close(self) -> None:
        os.close(self._descriptor)


def read_fully(descriptor: int, offset: int, into: memoryview) -> None:
    """Fill ``into`` from the pool's data file. Raises Corruption if the disk cannot, or if the file
    ends before the slot does: a mapped slot was written whole, so nothing is zero-filled."""
    while len(into):
        try:
            count = os.preadv(descriptor, [into], offset)
        except OSError as error:
            raise Corruption(
                f"the pool's data cannot be read at {offset}: {error.strerror}",
                next_step="check the array's disk; the backup stopped, earlier images are not affected",
            ) from error
        if count == 0:
            raise Corruption(
                f"the pool's data file ends before {offset}",
                next_step="check the pool; the backup stopped, earlier images are not affected",
            )
        offset, into = offset + count, into[count:]
