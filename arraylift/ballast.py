"""A file that is there only to be given up: room in which a full store can still delete (law 17).

Callers: the store that owns the path; any thread, one at a time.
"""

from __future__ import annotations

from contextlib import suppress

from arraylift.durable import Files
from arraylift.errors import OutOfSpace, Overloaded
from arraylift.sizes import MIB

# Not zeros: a file system that compresses would keep no room for them.
_PART = bytes(range(1, 256)) * (MIB // 255)


class Ballast:
    """The ballast of one store; ``label`` names its steps in failpoints."""

    def __init__(self, files: Files, path: str, *, label: str) -> None:
        self._files = files
        self._path = path
        self._label = label

    @property
    def laid(self) -> bool:
        return self._files.exists(self._path)

    def lay(self, size_bytes: int) -> bool:
        """Make the file; False if the disk has no room for it. Raises StoreFailed."""
        whole, rest = divmod(size_bytes, len(_PART))
        with suppress(OutOfSpace, Overloaded):
            self._files.publish(self._path, [*[_PART] * whole, _PART[:rest]], label=self._label)
            return True
        return False

    def give_up(self) -> bool:
        """Free its room; False if it was gone already."""
        if not self.laid:
            return False
        self._files.remove(self._path, label=self._label)
        return True
