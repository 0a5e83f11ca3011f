"""How far the collection of a unit has come: the number of its cycle, and what is condemned.

Owns: ``<state>/index/<unit id>.alg``. It is kept so that garbage goes also where the daemon
restarts often; it is never needed: losing it costs two cycles.
Invariants:
  J1 a condemnation is void as soon as something of the unit may be lost or was made anew:
     what was judged then is judged again.
  J2 what is in memory may be ahead of the file, e.g. on a full disk; never behind it.
Limits: CONDEMNED_MAX condemnations, 16 bytes each; the rest waits for the next cycle.
Callers: the collector, under the unit's maintenance; ``count`` from any thread.
Format: docs/formats/gc-state-v1.md
"""

from __future__ import annotations

import struct
from collections.abc import Collection

import numpy as np

from arraylift import envelope
from arraylift.durable import Files
from arraylift.errors import Corruption, NotFound, OutOfSpace, WrongState
from arraylift.ids import ContainerId
from arraylift.logs import get_logger

MAGIC = b"ALGCSTAT"
SUFFIX = ".alg"
CONDEMNED_MAX = 1_000_000
"""16 TiB of full containers."""

_HEAD = struct.Struct("<QQ")
_ROWS = np.dtype([("container", "<u8"), ("cycle", "<u8")])

_log = get_logger("gc_state")

assert _HEAD.size + CONDEMNED_MAX * _ROWS.itemsize <= envelope.BODY_BYTES_MAX


class GcState:
    """Of one unit."""

    def __init__(self, files: Files, path: str) -> None:
        """Read the file; what cannot be read is begun anew (J1)."""
        self._files = files
        self._path = path
        self.cycle = 0
        """The last cycle whose mark was completed."""
        self.condemned: dict[ContainerId, int] = {}
        """Containers, and the cycle that condemned each."""
        try:
            self.cycle, self.condemned = decode(files.read(path), what=path)
        except NotFound:
            pass
        except (Corruption, WrongState) as error:
            _log.warning("gc_state_begun_anew", path=path, why=str(error))

    @property
    def count(self) -> int:
        """Condemned containers."""
        return len(self.condemned)

    def condemn(self, container: ContainerId) -> bool:
        """Condemn in the current cycle, in memory. False: there is no room for more."""
        if len(self.condemned) >= CONDEMNED_MAX:
            return False
        self.condemned.setdefault(container, self.cycle)
        return True

    def spare(self, containers: Collection[ContainerId]) -> None:
        """Take condemnations back, in memory."""
        for container in containers:
            self.condemned.pop(container, None)

    def save(self) -> None:
        """Make it durable. Raises OutOfSpace (J2), StoreFailed."""
        self._files.publish(self._path, [encode(self.cycle, self.condemned)], label="gc-state")

    def void(self, why: str) -> None:
        """Take all condemnations back, durably (J1), also on a full disk. Raises StoreFailed."""
        if not self.condemned:
            return
        _log.warning("condemnations_voided", count=len(self.condemned), why=why)
        self.condemned = {}
        try:
            self.save()
        except OutOfSpace:  # the number of the cycle is worth less than the room for it
            self._files.remove(self._path, label="gc-state-remove", missing_ok=True)


def encode(cycle: int, condemned: dict[ContainerId, int]) -> bytes:
    """Return the whole file."""
    rows = np.array(sorted(condemned.items()), dtype="<u8").reshape(-1, 2)
    return envelope.encode(MAGIC, _HEAD.pack(cycle, len(rows)) + rows.tobytes())


def decode(data: bytes, *, what: str) -> tuple[int, dict[ContainerId, int]]:
    """Return (cycle, condemned). Raises Corruption, WrongState."""
    body, _ = envelope.decode(MAGIC, data, what=what)
    if len(body) < _HEAD.size:
        raise Corruption(f"{what} is damaged: it is cut short", subject=what)
    cycle, count = _HEAD.unpack_from(body)
    if len(body) != _HEAD.size + count * _ROWS.itemsize:
        raise Corruption(f"{what} is damaged: its count does not match its size", subject=what)
    rows = np.frombuffer(body, dtype=_ROWS, offset=_HEAD.size)
    ascending = bool((rows["container"][1:] > rows["container"][:-1]).all())
    if not ascending or (rows["cycle"] > cycle).any():
        raise Corruption(f"{what} is damaged: its condemnations make no sense", subject=what)
    return cycle, {
        ContainerId(one): at
        for one, at in zip(*map(np.ndarray.tolist, (rows["container"], rows["cycle"])), strict=True)
    }
