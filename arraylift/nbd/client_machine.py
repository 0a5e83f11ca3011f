"""The client's side of the transmission, sans I/O: reads, writes, block status, several at once.

Owns: where each byte that comes goes, and what a reply must be to be believed.
Invariants:
  M1 a read is done only when each of its bytes came exactly once, as data or as a hole that the server
     named: what did not come is an error, never a zero.
  M2 no length that the server names is believed beyond what was asked: memory is bounded by our requests
     and STATUS_BYTES_MAX, time by CHUNKS of a request.
  M3 after a breach of the protocol nothing more is believed: the caller drops the connection.
Callers: client, one thread: send what the requests return, fill ``window``, say ``filled``, take
``finished``. Protocol: docs/protocols/nbd.md
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from arraylift.errors import ArrayliftError, Corruption, NotPermitted, OutOfSpace, PeerUnavailable
from arraylift.nbd import wire
from arraylift.nbd.client_handshake import Negotiated, broken, said
from arraylift.sizes import MIB

STATUS_BYTES_MAX = 8 * MIB
"""One reply to BLOCK_STATUS: a million extents."""
TEXT_BYTES_MAX = 4096
_CHUNKS_FREE = 64

Extents = np.ndarray
"""(n, 2) u4: length, state."""


@dataclass(slots=True)
class Asked:
    """One request on its way, and in the end what became of it."""

    offset: int
    length: int
    into: memoryview | None = None
    """Of a read."""
    is_status: bool = False
    error: ArrayliftError | None = None
    states: dict[str, Extents] = field(default_factory=dict)
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    """What of a read has come: disjoint ranges, ascending (M1)."""
    chunks: int = 0

    def cover(self, offset: int, length: int) -> memoryview:
        """Return where these bytes go, once (M1, M2)."""
        start, end = offset - self.offset, offset - self.offset + length
        if self.into is None or not 0 <= start < end <= self.length:
            raise broken("it answers with bytes that were not asked for")
        at = bisect_left(self.starts, start)
        if (at and self.ends[at - 1] > start) or (at < len(self.starts) and self.starts[at] < end):
            raise broken("it answers a byte twice")
        if at and self.ends[at - 1] == start:
            self.ends[at - 1] = end
        else:
            self.starts.insert(at, start)
            self.ends.insert(at, end)
        return self.into[start:end]

    @property
    def whole(self) -> bool:
        return sum(self.ends) - sum(self.starts) == self.length


class ClientMachine:
    """One connection after its negotiation."""

    def __init__(self, export: Negotiated) -> None:
        self._export = export
        self._head = memoryview(bytearray(wire.CHUNK.size))
        self._asked: dict[int, Asked] = {}
        self._cookie = 0
        self.finished: deque[Asked] = deque()
        self.window = self._head[: wire.SIMPLE.size]
        """What the next bytes are to be received into; never empty."""
        self._then: Callable[[], None] = self._on_head
        self._whole = self.window

    @property
    def unanswered(self) -> int:
        """Requests on their way."""
        return len(self._asked)

    # -- requests -------------------------------------------------------------------------------

    def read(self, offset: int, into: memoryview) -> bytes:
        """Return the request that fills ``into``: in one piece, where the server can, for QEMU tells of an
        error in the middle of pieces by hanging up."""
        whole = wire.CMD_FLAG_DF if self._export.structured and self._export.flags & wire.SEND_DF else 0
        return self._ask(wire.CMD_READ, Asked(offset, len(into), into), whole)

    def status(self, offset: int, length: int) -> bytes:
        """Return the request for what the contexts say of a range."""
        return self._ask(wire.CMD_BLOCK_STATUS, Asked(offset, length, is_status=True))

    def write(self, offset: int, length: int) -> bytes:
        """Return the head of a write, whose bytes are to follow it."""
        return self._ask(wire.CMD_WRITE, Asked(offset, length))

    def flush(self) -> bytes:
        """Return the request that keeps what was written."""
        return self._ask(wire.CMD_FLUSH, Asked(0, 0))

    def _ask(self, command: int, asked: Asked, flags: int = 0) -> bytes:
        assert 0 < asked.length < 1 << 32 or command == wire.CMD_FLUSH
        assert asked.offset + asked.length <= self._export.size_bytes
        self._cookie += 1
        self._asked[self._cookie] = asked
        return wire.REQUEST.pack(wire.REQUEST_MAGIC, flags, command, self._cookie, asked.offset, asked.length)

    @staticmethod
    def goodbye() -> bytes:
        """The last request."""
        return wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, wire.CMD_DISC, 0, 0, 0)

    # -- replies --------------------------------------------------------------------------------

    def filled(self, count: int) -> None:
        """So many bytes came into ``window``. Raises Corruption (M3)."""
        assert 0 < count <= len(self.window)
        self.window = self.window[count:]
        if not len(self.window):
            self._then()
        assert len(self.window)

    def _expect(self, view: memoryview, then: Callable[[], None]) -> None:
        self.window = self._whole = view
        self._then = then

    def _next_head(self) -> None:
        self._expect(self._head[: wire.SIMPLE.size], self._on_head)

    def _on_head(self) -> None:
        magic = int.from_bytes(self._head[:4], "big")
        if magic == wire.CHUNK_MAGIC and self._export.structured:
            self._expect(self._head[wire.SIMPLE.size :], self._on_chunk)
        elif magic == wire.SIMPLE_MAGIC:
            _, error, cookie = wire.SIMPLE.unpack(self._head[: wire.SIMPLE.size])
            self._simple(self._find(cookie), cookie, error)
        else:
            raise broken(f"{magic:#x} begins no reply")

    def _find(self, cookie: int) -> Asked:
        asked = self._asked.get(cookie)
        if asked is None:
            raise broken("it answers what was not asked")
        return asked

    def _simple(self, asked: Asked, cookie: int, error: int) -> None:
        if error:
            asked.error = failure(asked, error, "")
            self._finish(cookie)
        elif asked.into is None and not asked.is_status:
            self._finish(cookie)
        elif asked.into is None or self._export.structured:
            raise broken("a simple reply where a structured one is due")
        else:
            self._expect(asked.cover(asked.offset, asked.length), lambda: self._finish(cookie))

    def _finish(self, cookie: int) -> None:
        asked = self._asked.pop(cookie)
        if asked.error is None:
            if asked.into is not None and not asked.whole:
                raise broken("it ends a read before all of its bytes came")  # M1
            if asked.is_status and asked.states.keys() != set(self._export.contexts.values()):
                raise broken("it leaves contexts out of a block status")
        self.finished.append(asked)
        self._next_head()

    def _on_chunk(self) -> None:
        _, flags, kind, cookie, length = wire.CHUNK.unpack(self._head)
        asked = self._find(cookie)
        asked.chunks += 1
        if asked.chunks > asked.length // 512 + _CHUNKS_FREE:
            raise broken("a reply has no end")  # M2

        def done() -> None:
            if flags & wire.CHUNK_DONE:
                self._finish(cookie)
            else:
                self._next_head()

        if kind == wire.CHUNK_NONE:
            if length or not flags & wire.CHUNK_DONE:
                raise broken("an empty chunk that is not one")
            done()
        elif kind == wire.CHUNK_DATA:
            self._take(length, wire.U64.size + 1, asked.length + wire.U64.size, wire.U64.size)
            self._then = lambda: self._on_data(asked, length - wire.U64.size, done)
        elif kind == wire.CHUNK_HOLE:
            self._take(length, wire.HOLE.size, wire.HOLE.size)
            self._then = lambda: self._on_hole(asked, done)
        elif kind == wire.CHUNK_STATUS:
            least = wire.U32.size + wire.STATUS.size
            self._take(length, least, STATUS_BYTES_MAX)
            self._then = lambda: self._on_status(asked, done)
        elif kind & wire.CHUNK_IS_ERROR:
            self._take(length, wire.ERROR.size, wire.ERROR.size + TEXT_BYTES_MAX + wire.U64.size)
            self._then = lambda: self._on_error(asked, done)
        else:
            raise broken(f"a chunk of type {kind}")

    def _take(self, length: int, least: int, most: int, part: int = 0) -> None:
        """Have the payload of a chunk, or its first ``part``, come into memory of its own (M2)."""
        if not least <= length <= most:
            raise broken(f"a chunk of {length} bytes")
        self._expect(memoryview(bytearray(part or length)), self._next_head)

    def _on_data(self, asked: Asked, length: int, done: Callable[[], None]) -> None:
        offset = int.from_bytes(self._whole, "big")
        self._expect(asked.cover(offset, length), done)

    def _on_hole(self, asked: Asked, done: Callable[[], None]) -> None:
        offset, length = wire.HOLE.unpack(self._whole)
        view = asked.cover(offset, length) if length else None
        if view is None:
            raise broken("a hole of no bytes")
        view[:] = bytes(length)
        done()

    def _on_status(self, asked: Asked, done: Callable[[], None]) -> None:
        context = self._export.contexts.get(int.from_bytes(self._whole[:4], "big"))
        payload = self._whole[4:]
        if not asked.is_status or context is None or context in asked.states or len(payload) % 8:
            raise broken("a block status that was not asked for")
        extents = np.frombuffer(payload, ">u4").reshape(-1, 2).astype(np.uint64)
        lengths = extents[:, 0]
        if not lengths.all() or int(lengths[:-1].sum()) >= asked.length:
            raise broken("a block status of ranges that make no sense")
        asked.states[context] = extents
        done()

    def _on_error(self, asked: Asked, done: Callable[[], None]) -> None:
        number, text = wire.ERROR.unpack(self._whole[: wire.ERROR.size])
        told = said(bytes(self._whole[wire.ERROR.size : wire.ERROR.size + text]))
        if asked.error is None:
            asked.error = failure(asked, number or wire.EIO, told)
        done()


def failure(asked: Asked, number: int, told: str) -> ArrayliftError:
    """What a caller is told of a request that the server could not carry out."""
    why = told or f"error {number}"
    where = f"bytes {asked.offset:,} to {asked.offset + asked.length:,}"
    if number in {wire.ESHUTDOWN, wire.ENOMEM}:
        return PeerUnavailable(f"the NBD server does not serve {where} now: {why}", next_step="retry")
    if number == wire.EPERM:
        return NotPermitted(f"the NBD server refuses {where}: {why}")
    if number == wire.ENOSPC:
        return OutOfSpace(f"the NBD server has no room for {where}: {why}", next_step="free space there")
    doing = "write" if asked.into is None and not asked.is_status else "read"
    return Corruption(
        f"the NBD server cannot {doing} {where}: {why}",
        next_step="look at the disk behind it; nothing was filled in",
    )
