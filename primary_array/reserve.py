"""A ballast file: room in which a full pool can still delete (law 17).

Invariants: B1 the reserve is given up only for a deletion that the full disk refused.
B2 it comes back at the next start or checkpoint that finds twice its size free.
Callers: map_commit under the commit lock; pool_open before other threads exist.
"""

from __future__ import annotations

from arraylift.ballast import Ballast
from arraylift.durable import Files
from arraylift.sizes import MIB
from primary_array.superblock import Layout

LABEL = "reserve"
RESERVE_BYTES = 4 * MIB
"""Room for thousands of deletions in the journal."""


class Reserve:
    """The ballast of one pool."""

    def __init__(self, files: Files, layout: Layout) -> None:
        self._files = files
        self._directory = layout.directory
        self._ballast = Ballast(files, layout.reserve, label=LABEL)

    def restore(self) -> None:
        """Lay the ballast down if it is gone and there is room for it."""
        if not self._ballast.laid and self._files.free_bytes(self._directory) >= 2 * RESERVE_BYTES:
            self._ballast.lay(RESERVE_BYTES)

    def give_up(self) -> bool:
        """Free the ballast; False if it was gone already."""
        return self._ballast.give_up()
