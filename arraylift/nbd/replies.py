"""Pack replies one after the other into one buffer that is sent whole.

Owns: the memory of a connection's replies. Data are read into their place behind their header, so
that a batch of small replies, or a piece of a large one, is one call of the system.
Invariants:
  O1 nothing is packed beyond the buffer: whoever packs has asked for ``room`` first.
Callers: transmission, its thread.
"""

from __future__ import annotations

from typing import Final

from arraylift.nbd import wire
from arraylift.sizes import KIB

OUT_BYTES: Final = 512 * KIB + 256
HEAD_BYTES: Final = wire.CHUNK.size + wire.U64.size
"""The longest head of data."""
TEXT_BYTES_MAX: Final = 160
SMALL_BYTES: Final = wire.CHUNK.size + wire.ERROR.size + TEXT_BYTES_MAX + wire.U64.size + wire.CHUNK.size
"""Room for any reply without data."""


class Replies:
    """One buffer."""

    __slots__ = ("_memory", "_view", "filled", "structured")

    def __init__(self, *, structured: bool) -> None:
        self._memory = bytearray(OUT_BYTES)
        self._view = memoryview(self._memory)
        self.filled = 0
        self.structured = structured

    @property
    def room(self) -> int:
        return OUT_BYTES - self.filled

    def take(self) -> memoryview:
        """Return what is packed; valid until the next reply is packed."""
        taken = self._view[: self.filled]
        self.filled = 0
        return taken

    # -- replies without data -------------------------------------------------------------------

    def simple(self, cookie: int, error: int = 0) -> None:
        wire.SIMPLE.pack_into(self._memory, self.filled, wire.SIMPLE_MAGIC, error, cookie)
        self.filled += wire.SIMPLE.size

    def error(self, cookie: int, error: int, text: str) -> None:
        """A failed request none of whose data have been packed; O1 by ``SMALL_BYTES``."""
        if not self.structured:
            self.simple(cookie, error)
            return
        said = text.encode()[:TEXT_BYTES_MAX]
        self._chunk(wire.CHUNK_DONE, wire.CHUNK_ERROR, cookie, wire.ERROR.size + len(said))
        self._append(wire.ERROR.pack(error, len(said)) + said)

    def error_at(self, cookie: int, error: int, text: str, offset: int) -> None:
        """A read that failed at ``offset``, after chunks of it were packed."""
        said = text.encode()[:TEXT_BYTES_MAX]
        length = wire.ERROR.size + len(said) + wire.U64.size
        self._chunk(wire.CHUNK_DONE, wire.CHUNK_ERROR_OFFSET, cookie, length)
        self._append(wire.ERROR.pack(error, len(said)) + said + wire.U64.pack(offset))

    def nothing(self, cookie: int) -> None:
        """A read of no bytes."""
        if self.structured:
            self._chunk(wire.CHUNK_DONE, wire.CHUNK_NONE, cookie, 0)
        else:
            self.simple(cookie)

    def hole(self, cookie: int, offset: int, length: int, *, done: bool) -> None:
        self._chunk(wire.CHUNK_DONE if done else 0, wire.CHUNK_HOLE, cookie, wire.HOLE.size)
        self._append(wire.HOLE.pack(offset, length))

    def status(self, cookie: int, context: int, packed: bytes, *, done: bool) -> None:
        self._chunk(wire.CHUNK_DONE if done else 0, wire.CHUNK_STATUS, cookie, wire.U32.size + len(packed))
        self._append(wire.U32.pack(context) + packed)

    # -- data -----------------------------------------------------------------------------------

    def data_head(self, cookie: int, offset: int, length: int, *, done: bool) -> None:
        """The head of ``length`` bytes of data, which follow."""
        if self.structured:
            flags = wire.CHUNK_DONE if done else 0
            self._chunk(flags, wire.CHUNK_DATA, cookie, wire.U64.size + length)
            self._append(wire.U64.pack(offset))
        else:
            self.simple(cookie)

    def space(self, length: int) -> memoryview:
        """Return the next ``length`` bytes of the buffer, to be filled now."""
        assert length <= self.room  # O1
        start = self.filled
        self.filled += length
        return self._view[start : self.filled]

    def _chunk(self, flags: int, kind: int, cookie: int, length: int) -> None:
        wire.CHUNK.pack_into(self._memory, self.filled, wire.CHUNK_MAGIC, flags, kind, cookie, length)
        self.filled += wire.CHUNK.size

    def _append(self, data: bytes) -> None:
        assert len(data) <= self.room  # O1
        self._view[self.filled : self.filled + len(data)] = data
        self.filled += len(data)
