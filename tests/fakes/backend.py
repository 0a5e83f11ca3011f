"""A storage unit's place in memory; passes the same contract suite as the real ones.

``fail`` makes the next calls of a kind meet an error: before anything happened, or, for changes, after
it did and the answer was lost. ``calls`` lists what was asked, for tests that count requests.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from arraylift.durable import Buffer
from arraylift.errors import ArrayliftError, Corruption, NotFound, PeerUnavailable


class MemoryBackend:
    """UnitBackend over a dict."""

    def __init__(self, location: str = "memory://unit") -> None:
        self._location = location
        self._lock = threading.RLock()
        self.objects: dict[str, bytes] = {}
        self.calls: list[tuple[str, str]] = []
        self.is_down = False
        self._faults: dict[str, list[tuple[ArrayliftError, bool]]] = {}

    @property
    def location(self) -> str:
        return self._location

    def fail(self, call: str, error: ArrayliftError, *, effect: bool = False) -> None:
        """Have the next ``call`` raise; with ``effect`` it happened all the same."""
        self._faults.setdefault(call, []).append((error, effect))

    def _enter(self, call: str, name: str) -> ArrayliftError | None:
        """Note the call; returns what to raise after its effect."""
        self.calls.append((call, name))
        if self.is_down:
            raise PeerUnavailable(f"{self._location} does not answer", subject=f"unit at {self._location}")
        error, effect = self._faults[call].pop(0) if self._faults.get(call) else (None, False)
        if error is not None and not effect:
            raise error
        return error

    def put(self, name: str, parts: Sequence[Buffer], *, label: str) -> None:
        assert label
        with self._lock:
            lost = self._enter("put", name)
            self.objects[name] = b"".join(map(bytes, parts))
            if lost is not None:
                raise lost

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        with self._lock:
            self._enter("get", name)
            data = self._found(name)
        end = len(data) if length is None else offset + length
        if end > len(data) or offset > end:
            raise Corruption(f"{name} is too short", subject=name)
        return data[offset:end]

    def size(self, name: str) -> int:
        with self._lock:
            self._enter("size", name)
            return len(self._found(name))

    def _found(self, name: str) -> bytes:
        if name not in self.objects:
            raise NotFound(f"there is no {name} at {self._location}", subject=name)
        return self.objects[name]

    def exists(self, name: str) -> bool:
        with self._lock:
            self._enter("exists", name)
            return name in self.objects

    def list(self, folder: str) -> list[str]:
        prefix = f"{folder}/" if folder else ""
        with self._lock:
            self._enter("list", folder)
            return sorted(
                {name[len(prefix) :].partition("/")[0] for name in self.objects if name.startswith(prefix)}
            )

    def remove(self, name: str, *, label: str, missing_ok: bool = False) -> None:
        assert label
        with self._lock:
            lost = self._enter("remove", name)
            if not missing_ok:
                self._found(name)
            self.objects.pop(name, None)
            if lost is not None:
                raise lost

    def sweep(self, folder: str) -> int:
        self._enter("sweep", folder)
        return 0

    def free_bytes(self) -> int | None:
        return None

    def close(self) -> None:
        pass
