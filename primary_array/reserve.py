"""A ballast file: room in which a full pool can still delete (law 17).

Invariants: B1 the reserve is given up only for a deletion that the full disk refused.
B2 it comes back at the next start or checkpoint that finds twice its size free.
Callers: map_commit under the commit lock; pool_open before other threads exist.
"""

from __future__ import annotations

from contextlib import suppress

from arraylift.durable import Files
from arraylift.errors import OutOfSpace, Overloaded
from arraylift.sizes import MIB
from primary_array.superblock import Layout

LABEL = "reserve"
RESERVE_BYTES = 4 * MIB
"""Room for thousands of deletions in the journal."""


class Reserve:
    """The ballast of one pool."""

    def __init__(self, files: Files, layout: Layout) -> None:
        self._files = files
        self._path = layout.reserve
        self._directory = layout.directory

    def restore(self) -> None:
        """Lay the ballast down if it is gone and there is room for it."""
        if self._files.exists(self._path) or self._files.free_bytes(self._directory) < 2 * RESERVE_BYTES:
            return
        # Not zeros: a file system that compresses would keep no room for them.
        part = bytes(range(1, 256)) * (MIB // 255)
        with suppress(OutOfSpace, Overloaded):
            self._files.publish(self._path, [part] * (RESERVE_BYTES // MIB), label=LABEL)

    def give_up(self) -> bool:
        """Free the ballast; False if it was gone already."""
        if not self._files.exists(self._path):
            return False
        self._files.remove(self._path, label=LABEL)
        return True
