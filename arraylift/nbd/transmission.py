"""Requests of one connection, in order: bytes in, calls of the device, replies out.

A machine without sockets, threads or clock. Who holds it receives into ``window``, tells ``received`` how
much came, and sends every buffer that this yields before it asks for the next. What must wait
for a flush is left in ``take_deferred``; the holder has the device flushed wherever it likes, and comes
back with ``flushed``.
Invariants:
  T1 a request is answered once, and never before what it asks for is done: a flush, and a change with
     FUA, only by ``flushed``, after a flush that began when the request had been carried out.
  T2 memory is bounded: IN_BYTES here and OUT_BYTES in replies, whatever is asked for. Longer writes are
     carried out in pieces as they arrive, longer reads in pieces as they are sent.
  T3 the device is only asked for ranges inside it, and for no change of a read-only one.
  T4 a write that is refused has its payload skipped; where a client could not follow any more (a
     read that fails after its head has gone) BrokenReplyError ends the connection.
Callers: connection, its thread. Protocol: docs/protocols/nbd.md
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from arraylift.errors import ArrayliftError, InvalidRequest
from arraylift.logs import get_logger
from arraylift.nbd import wire
from arraylift.nbd.device import BASE_ALLOCATION, PAYLOAD_BYTES_MAX, Device, errno_of
from arraylift.nbd.replies import HEAD_BYTES, SMALL_BYTES, Replies
from arraylift.sizes import KIB

PIECE_BYTES: Final = 512 * KIB
"""Data that a longer request moves at once."""
IN_BYTES: Final = PIECE_BYTES + 64 * KIB
WINDOW_BYTES_MIN: Final = 16 * KIB
SPARSE_BYTES_MIN: Final = 64 * KIB
"""A read as long as this is looked up for holes first."""
EXTENTS_MAX: Final = 2048
"""Of one context in one answer about block status."""

_ALLOWED: Final = {
    wire.CMD_READ: wire.CMD_FLAG_FUA | wire.CMD_FLAG_DF,
    wire.CMD_WRITE: wire.CMD_FLAG_FUA,
    wire.CMD_FLUSH: wire.CMD_FLAG_FUA,
    wire.CMD_TRIM: wire.CMD_FLAG_FUA,
    wire.CMD_CACHE: wire.CMD_FLAG_FUA,
    wire.CMD_WRITE_ZEROES: wire.CMD_FLAG_FUA | wire.CMD_FLAG_NO_HOLE | wire.CMD_FLAG_FAST_ZERO,
    wire.CMD_BLOCK_STATUS: wire.CMD_FLAG_FUA | wire.CMD_FLAG_REQ_ONE,
}
_CHANGES: Final = (wire.CMD_WRITE, wire.CMD_TRIM, wire.CMD_WRITE_ZEROES)

_log = get_logger("nbd")


class BrokenReplyError(Exception):
    """A promised reply cannot be finished: only hanging up is left (T4)."""


@dataclass(frozen=True, slots=True)
class _Request:
    kind: int
    flags: int
    cookie: int
    offset: int
    length: int


@dataclass(slots=True)
class _Incoming:
    """A write whose payload is arriving. ``error`` set: it is only skipped (T4)."""

    cookie: int
    fua: bool
    offset: int
    remaining: int
    error: tuple[int, str] | None = None


class Transmission:
    """One connection's requests, with counts of them, of those answered with an error, and of bytes."""

    def __init__(
        self, device: Device, *, structured: bool, contexts: Sequence[tuple[int, str]], rest: bytes = b""
    ) -> None:
        """``rest`` arrived together with the last option; ``received(0)`` looks at it."""
        self.ended = False
        self.requests = self.errors = self.bytes_read = self.bytes_written = 0
        self._device = device
        self._size = device.size_bytes
        self._contexts = contexts
        self._block = device.block_bytes
        self._replies = Replies(structured=structured)
        self._deferred: list[int] = []
        self._told = False
        self._incoming: _Incoming | None = None
        self._memory = bytearray(max(IN_BYTES, len(rest) + WINDOW_BYTES_MIN))
        self._view = memoryview(self._memory)
        self._view[: len(rest)] = rest
        self._low, self._high = 0, len(rest)

    # -- what the holder does -------------------------------------------------------------------

    @property
    def between_requests(self) -> bool:
        """Whether the client owes nothing: it may be silent for as long as it likes."""
        return self._incoming is None and self._low == self._high

    def window(self) -> memoryview:
        """Return where the next bytes are to be received; never empty."""
        held = self._high - self._low
        if not held:
            self._low = self._high = 0
        elif len(self._memory) - self._high < WINDOW_BYTES_MIN or self._must_fit():
            self._view[:held] = self._view[self._low : self._high]
            self._low, self._high = 0, held
        return self._view[self._high :]

    def _must_fit(self) -> bool:
        """Whether the payload that is awaited does not fit behind what is held."""
        coming = self._incoming
        return coming is not None and self._low > 0 and coming.remaining > len(self._memory) - self._low

    def received(self, count: int) -> Iterator[memoryview]:
        """Carry out what is complete; yields buffers to be sent before the next is asked for."""
        self._high += count
        replies = self._replies
        while not self.ended:
            if self._incoming is not None:
                if not self._take_payload(self._incoming):
                    break
            elif self._high - self._low >= wire.REQUEST.size:
                yield from self._next_request()
            else:
                break
            if replies.room < SMALL_BYTES:
                yield replies.take()
        if replies.filled:
            yield replies.take()

    def take_deferred(self) -> list[int]:
        """Return, and forget, the requests that a flush beginning now will answer (T1)."""
        taken, self._deferred = self._deferred, []
        return taken

    @property
    def deferred_count(self) -> int:
        return len(self._deferred)

    def flushed(self, cookies: Sequence[int], error: ArrayliftError | None) -> Iterator[memoryview]:
        """Answer requests that waited; yields as ``received``."""
        for cookie in cookies:
            if self._replies.room < SMALL_BYTES:
                yield self._replies.take()
            if error is None:
                self._replies.simple(cookie)
            else:
                self._fail(cookie, error)
        if self._replies.filled:
            yield self._replies.take()

    # -- requests -------------------------------------------------------------------------------

    def _next_request(self) -> Iterator[memoryview]:
        magic, flags, kind, cookie, offset, length = wire.REQUEST.unpack_from(self._memory, self._low)
        if magic != wire.REQUEST_MAGIC:
            raise InvalidRequest("a request does not begin as one")
        self._low += wire.REQUEST.size
        self.requests += 1
        error = self._refusal(kind, flags, offset, length)
        if kind == wire.CMD_WRITE:
            if length > PAYLOAD_BYTES_MAX:
                raise InvalidRequest(f"a write of {length} bytes; at most {PAYLOAD_BYTES_MAX}")
            self._incoming = _Incoming(cookie, bool(flags & wire.CMD_FLAG_FUA), offset, length, error)
        elif kind == wire.CMD_DISC:
            self.ended = True
        elif error is not None:
            self.errors += 1
            self._replies.error(cookie, *error)
        else:
            yield from self._carry_out(_Request(kind, flags, cookie, offset, length))

    def _refusal(self, kind: int, flags: int, offset: int, length: int) -> tuple[int, str] | None:
        """Return error and text if the request cannot be carried out (T3)."""
        allowed = _ALLOWED.get(kind)
        if allowed is None:
            return wire.EINVAL, f"command {kind} is unknown here"
        if flags & ~allowed or (flags & wire.CMD_FLAG_DF and not self._replies.structured):
            return wire.EINVAL, f"flags {flags:#x} do not go with command {kind}"
        if kind in _CHANGES and self._device.read_only:
            return wire.EPERM, "this export is read-only"
        if kind == wire.CMD_FLUSH:
            return None
        if offset + length > self._size:
            error = wire.ENOSPC if kind in {wire.CMD_WRITE, wire.CMD_WRITE_ZEROES} else wire.EINVAL
            return error, f"bytes {offset} to {offset + length} are outside {self._size}"
        if kind == wire.CMD_READ and length > PAYLOAD_BYTES_MAX:
            return wire.EINVAL, f"a read has at most {PAYLOAD_BYTES_MAX} bytes"
        if kind == wire.CMD_BLOCK_STATUS and not (self._contexts and length):
            return wire.EINVAL, "block status of nothing, or without a context"
        return None

    def _carry_out(self, request: _Request) -> Iterator[memoryview]:
        kind = request.kind
        if kind == wire.CMD_READ:
            yield from self._read(request)
            return
        try:
            if kind == wire.CMD_BLOCK_STATUS:
                yield from self._block_status(request)
                return
            if request.length and kind == wire.CMD_TRIM:
                self._device.trim(request.offset, request.length)
            elif request.length and kind == wire.CMD_WRITE_ZEROES:
                allocate = bool(request.flags & wire.CMD_FLAG_NO_HOLE)
                self._device.write_zeroes(request.offset, request.length, allocate=allocate)
            elif request.length and kind == wire.CMD_CACHE:
                self._device.cache(request.offset, request.length)
        except ArrayliftError as error:
            self._fail(request.cookie, error)
            return
        fua = request.flags & wire.CMD_FLAG_FUA and kind in _CHANGES
        self._answer(request.cookie, durable=kind == wire.CMD_FLUSH or bool(fua))

    def _answer(self, cookie: int, *, durable: bool) -> None:
        if durable:
            self._deferred.append(cookie)  # T1
        else:
            self._replies.simple(cookie)

    def _fail(self, cookie: int, error: ArrayliftError, *, at: int | None = None) -> None:
        self.errors += 1
        self._tell(error)
        if at is None:
            self._replies.error(cookie, errno_of(error), error.message)
        else:
            self._replies.error_at(cookie, errno_of(error), error.message, at)

    def _tell(self, error: ArrayliftError) -> None:
        """Log the first failure of the device; ``errors`` counts the rest."""
        if not self._told:
            _log.warning("nbd_request_failed", error=error.message, reason=error.reason)
        self._told = True

    # -- writes ---------------------------------------------------------------------------------

    def _take_payload(self, coming: _Incoming) -> bool:
        """Use what has arrived of a write; False where more must arrive first."""
        available = self._high - self._low
        count = min(available, coming.remaining)
        if count < coming.remaining and coming.error is None:
            if coming.remaining <= len(self._memory):
                return False  # fits whole
            if available < len(self._memory) - self._block:
                return False  # a larger piece fits, behind what is held or in its place (window)
            count -= (coming.offset + count) % self._block
            assert count > 0
        if count and coming.error is None:
            try:
                self._device.write(coming.offset, self._view[self._low : self._low + count])
            except ArrayliftError as error:
                coming.error = errno_of(error), error.message
                self._tell(error)
        self._low += count
        coming.offset += count
        coming.remaining -= count
        self.bytes_written += count
        if coming.remaining:
            return count > 0
        self._incoming = None
        if coming.error is None:
            self._answer(coming.cookie, durable=coming.fua)
        else:
            self.errors += 1
            self._replies.error(coming.cookie, *coming.error)
        return True

    # -- reads ----------------------------------------------------------------------------------

    def _read(self, request: _Request) -> Iterator[memoryview]:
        length, replies = request.length, self._replies
        self.bytes_read += length
        if not length:
            replies.nothing(request.cookie)
        elif replies.structured and length >= SPARSE_BYTES_MIN:
            yield from self._read_sparse(request)
        elif length <= PIECE_BYTES:
            if replies.room < length + HEAD_BYTES + SMALL_BYTES:
                yield replies.take()
            self._read_whole(request)
        else:
            yield from self._read_stream(request)

    def _read_whole(self, request: _Request) -> None:
        """Data that fit the buffer: an error can still take the place of their head."""
        replies, before = self._replies, self._replies.filled
        replies.data_head(request.cookie, request.offset, request.length, done=True)
        try:
            self._device.read_into(request.offset, replies.space(request.length))
        except ArrayliftError as error:
            replies.filled = before
            self._fail(request.cookie, error)

    def _read_stream(self, request: _Request) -> Iterator[memoryview]:
        """One head, then data in pieces. Raises BrokenReplyError once the head has gone (T4)."""
        replies, offset, stop = self._replies, request.offset, request.offset + request.length
        first = True
        while offset < stop:
            if replies.room < PIECE_BYTES + HEAD_BYTES:
                yield replies.take()
            before = replies.filled
            if first:
                replies.data_head(request.cookie, offset, request.length, done=True)
            count = min(PIECE_BYTES, stop - offset)
            try:
                self._device.read_into(offset, replies.space(count))
            except ArrayliftError as error:
                if not first:
                    raise BrokenReplyError(error.message) from error
                replies.filled = before
                self._fail(request.cookie, error)
                return
            offset, first = offset + count, False

    def _read_sparse(self, request: _Request) -> Iterator[memoryview]:
        """A chunk for each hole and each piece of data; one chunk in all where the client wants that."""
        offset, stop = request.offset, request.offset + request.length
        sent = False
        try:
            for length, state in self._device.status(BASE_ALLOCATION, offset, request.length):
                end = min(offset + length, stop)
                is_hole = bool(state & wire.STATE_ZERO)
                if request.flags & wire.CMD_FLAG_DF and not (is_hole and end == stop):
                    yield from self._read_stream(request)
                    return
                if is_hole:
                    if self._replies.room < SMALL_BYTES:
                        yield self._replies.take()
                    self._replies.hole(request.cookie, offset, end - offset, done=end == stop)
                    offset, sent = end, True
                while offset < end:
                    count = min(PIECE_BYTES, end - offset)
                    if self._replies.room < count + HEAD_BYTES + SMALL_BYTES:
                        yield self._replies.take()
                    self._read_chunk(request.cookie, offset, count, done=offset + count == stop)
                    offset, sent = offset + count, True
        except ArrayliftError as error:
            self._fail(request.cookie, error, at=offset if sent else None)

    def _read_chunk(self, cookie: int, offset: int, count: int, *, done: bool) -> None:
        before = self._replies.filled
        self._replies.data_head(cookie, offset, count, done=done)
        try:
            self._device.read_into(offset, self._replies.space(count))
        except ArrayliftError:
            self._replies.filled = before
            raise

    # -- block status ---------------------------------------------------------------------------

    def _block_status(self, request: _Request) -> Iterator[memoryview]:
        most = 1 if request.flags & wire.CMD_FLAG_REQ_ONE else EXTENTS_MAX
        answers = [self._extents(context, request, most) for _, context in self._contexts]
        for index, (number, _) in enumerate(self._contexts):
            packed = answers[index]
            if self._replies.room < len(packed) + SMALL_BYTES:
                yield self._replies.take()
            self._replies.status(request.cookie, number, packed, done=index == len(self._contexts) - 1)

    def _extents(self, context: str, request: _Request, most: int) -> bytes:
        found = islice(self._device.status(context, request.offset, request.length), most)
        packed = b"".join(wire.STATUS.pack(length, state) for length, state in found)
        assert packed, f"{context} has no extents"
        return packed
