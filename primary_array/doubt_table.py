"""States since which a foreign disk's bitmap missed a write: it vouches for nothing any more.

Owns: ``doubts.alf`` in the pool's directory; nobody else opens it.
Invariants:
  D1 what ``add`` has answered survives any crash; what it could not keep is doubted until a restart.
  D2 DOUBTED_MAX of them; the oldest is forgotten for a newer one.
Callers: foreign_disk, any thread. Failpoints: those of arraylift.durable under the label ``doubts``.
Format: docs/formats/doubts-v1.md
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from arraylift import envelope
from arraylift.durable import Files
from arraylift.errors import ArrayliftError, Corruption
from arraylift.ids import LineageId, PoolId, SourceState, check_id

DOUBTED_MAX = 1024
MAGIC = b"ALDOUBTS"
FILE_NAME = "doubts.alf"
LABEL = "doubts"

_BIRTH_MAX = (1 << 64) - 1


def encode(states: Sequence[SourceState]) -> bytes:
    """Return the file, oldest first."""
    rows = [[state.pool_id, state.lineage_id, state.birth] for state in states]
    return envelope.encode(MAGIC, envelope.canonical_json({"states": rows}))


def decode(data: bytes, *, what: str) -> list[SourceState]:
    """Raises Corruption, WrongState (a newer format)."""
    rows = envelope.decode_json(MAGIC, data, what=what, keys=frozenset({"states"}))["states"]
    try:
        return [_state(*row) for row in rows]
    except (ArrayliftError, TypeError, ValueError) as error:
        raise Corruption(f"{what} is damaged: {error}", subject=what) from error


def _state(pool_id: str, lineage_id: str, birth: int) -> SourceState:
    if type(birth) is not int or not 0 <= birth <= _BIRTH_MAX:
        raise ValueError(f"{birth!r} is no birth")
    return SourceState(
        PoolId(check_id(pool_id, "pool id")), LineageId(check_id(lineage_id, "lineage id")), birth
    )


class DoubtTable:
    """All of them, in memory and on disk."""

    def __init__(self, files: Files, directory: str) -> None:
        """Read it; no file is an empty table. Raises Corruption, WrongState."""
        self._files = files
        self._path = os.path.join(directory, FILE_NAME)
        self._lock = threading.Lock()
        found = decode(files.read(self._path), what=self._path) if files.exists(self._path) else []
        self._states = dict.fromkeys(found)

    def add(self, state: SourceState) -> None:
        """Doubt whatever counts since this state (D1). Raises OutOfSpace, StoreFailed."""
        with self._lock:
            self._states.pop(state, None)
            self._states[state] = None
            while len(self._states) > DOUBTED_MAX:
                del self._states[next(iter(self._states))]  # D2
            self._files.publish(self._path, [encode(list(self._states))], label=LABEL)

    def __contains__(self, state: SourceState) -> bool:
        with self._lock:
            return state in self._states
