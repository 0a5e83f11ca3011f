"""An NBD client of the plainest sort, and a device in memory, for tests.

The client says exactly what it is told to, right or wrong: what a well-behaved one does is for the
outside programs of tests/e2e to show.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from arraylift.durable import Buffer
from arraylift.errors import ArrayliftError, NotFound, NotPermitted
from arraylift.nbd import wire
from arraylift.nbd.access import Caller, may_write
from arraylift.nbd.device import BASE_ALLOCATION, Listed

BLOCK = 4096


class MemoryDevice:
    """Bytes, with holes where nothing but zeros was ever written in a block."""

    block_bytes = 4096
    description = "memory"

    def __init__(self, size_bytes: int, *, read_only: bool = False) -> None:
        self.size_bytes = size_bytes
        self.read_only = read_only
        self.content = bytearray(size_bytes)
        self.mapped: set[int] = set()
        self.flushes = 0
        self.closed = 0
        self.fail: ArrayliftError | None = None
        self.fail_from = 0
        """Reads and writes that reach past this byte raise ``fail``, where it is set."""
        self.calls: list[tuple[str, int, int]] = []

    def _note(self, what: str, offset: int, length: int) -> None:
        assert offset >= 0
        assert length > 0
        assert offset + length <= self.size_bytes
        self.calls.append((what, offset, length))
        if self.fail is not None and offset + length > self.fail_from:
            raise self.fail

    def read_into(self, offset: int, into: memoryview) -> None:
        self._note("read", offset, len(into))
        into[:] = self.content[offset : offset + len(into)]

    def write(self, offset: int, data: Buffer) -> None:
        data = memoryview(data)
        assert not self.read_only
        self._note("write", offset, len(data))
        self.content[offset : offset + len(data)] = data
        self.mapped |= set(range(offset // BLOCK, -(-(offset + len(data)) // BLOCK)))

    def trim(self, offset: int, length: int) -> None:
        assert not self.read_only
        self._note("trim", offset, length)
        self.content[offset : offset + length] = bytes(length)
        self.mapped -= set(range(-(-offset // BLOCK), (offset + length) // BLOCK))

    def write_zeroes(self, offset: int, length: int, *, allocate: bool) -> None:
        if allocate:
            self.write(offset, bytes(length))
        else:
            self.trim(offset, length)

    def flush(self) -> None:
        self.flushes += 1
        if self.fail is not None:
            raise self.fail

    def cache(self, offset: int, length: int) -> None:
        self._note("cache", offset, length)

    def contexts(self) -> Sequence[str]:
        return [BASE_ALLOCATION, "test:odd"]

    def status(self, context: str, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Of ``test:odd``: 1 for odd blocks."""
        stop = offset + length
        while offset < stop:
            state, end = self._state(context, offset // BLOCK), offset
            while end < stop and self._state(context, end // BLOCK) == state:
                end = (end // BLOCK + 1) * BLOCK
            yield min(end, stop) - offset, state
            offset = min(end, stop)

    def _state(self, context: str, block: int) -> int:
        if context == BASE_ALLOCATION:
            return 0 if block in self.mapped else wire.STATE_HOLE | wire.STATE_ZERO
        return block % 2

    def close(self) -> None:
        self.closed += 1


@dataclass
class MemoryExports:
    """Devices by name; every caller of a role with access may use them."""

    devices: dict[str, MemoryDevice]
    callers: list[Caller] = field(default_factory=list)
    hang_ups: list[Callable[[], None]] = field(default_factory=list)

    def listed(self, caller: Caller) -> Sequence[Listed]:
        may_write(caller)
        return [Listed(name, device.description) for name, device in sorted(self.devices.items())]

    def open(self, name: str, caller: Caller, hang_up: Callable[[], None]) -> MemoryDevice:
        may_write(caller)
        self.callers.append(caller)
        if name == "forbidden":
            raise NotPermitted("not for you")
        if name not in self.devices:
            raise NotFound(f"there is no export {name}")
        self.hang_ups.append(hang_up)
        return self.devices[name]


# -- what a client says -------------------------------------------------------------------------


def option(number: int, data: bytes = b"", *, length: int | None = None) -> bytes:
    """One option; ``length`` may lie."""
    return wire.OPTION.pack(wire.OPTION_MAGIC, number, len(data) if length is None else length) + data


def named(name: str, *infos: int) -> bytes:
    """Data of OPT_GO and OPT_INFO."""
    parts = [wire.U32.pack(len(name.encode())), name.encode(), wire.U16.pack(len(infos))]
    return b"".join([*parts, *map(wire.U16.pack, infos)])


def queries(name: str, *asked: str) -> bytes:
    """Data of OPT_LIST_META_CONTEXT and OPT_SET_META_CONTEXT."""
    parts = [wire.U32.pack(len(name.encode())), name.encode(), wire.U32.pack(len(asked))]
    for query in asked:
        parts += [wire.U32.pack(len(query.encode())), query.encode()]
    return b"".join(parts)


def request(
    kind: int, offset: int = 0, length: int = 0, *, flags: int = 0, cookie: int = 7, payload: bytes = b""
) -> bytes:
    """One request."""
    return wire.REQUEST.pack(wire.REQUEST_MAGIC, flags, kind, cookie, offset, length) + payload


# -- what a server says -------------------------------------------------------------------------


@dataclass(frozen=True)
class OptionReply:
    option: int
    kind: int
    data: bytes


def option_replies(data: bytes) -> list[OptionReply]:
    """Take a run of whole replies to options apart."""
    found = []
    while data:
        magic, number, kind, length = wire.OPTION_REPLY.unpack_from(data)
        assert magic == wire.OPTION_REPLY_MAGIC
        end = wire.OPTION_REPLY.size + length
        assert len(data) >= end
        found.append(OptionReply(number, kind, data[wire.OPTION_REPLY.size : end]))
        data = data[end:]
    return found


@dataclass
class Reply:
    """All that answered one request."""

    cookie: int
    error: int = 0
    error_offset: int | None = None
    pieces: list[tuple[int, bytes]] = field(default_factory=list)
    holes: list[tuple[int, int]] = field(default_factory=list)
    states: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    chunks: int = 0

    def content(self, offset: int, length: int) -> bytes:
        """What a read answered; every byte exactly once."""
        filled = bytearray(length)
        covered = bytearray(length)
        for at, data in [*self.pieces, *((at, bytes(count)) for at, count in self.holes)]:
            assert data, "an empty chunk"
            assert 0 <= at - offset <= at - offset + len(data) <= length
            assert not any(covered[at - offset : at - offset + len(data)]), "a byte twice"
            covered[at - offset : at - offset + len(data)] = b"\1" * len(data)
            filled[at - offset : at - offset + len(data)] = data
        assert all(covered), "a byte is missing"
        return bytes(filled)


class Decoder:
    """Takes replies out of a stream. ``take`` gives the next bytes, blocking or not."""

    def __init__(self, take: Callable[[int], bytes]) -> None:
        self._take = take
        self.reads: dict[int, tuple[int, int]] = {}
        """Offset and length of the reads that simple replies may answer, by cookie."""

    def next(self) -> Reply:
        magic = int.from_bytes(self._take(4), "big")
        if magic == wire.SIMPLE_MAGIC:
            error = int.from_bytes(self._take(4), "big")
            reply = Reply(int.from_bytes(self._take(8), "big"), error)
            if not error and reply.cookie in self.reads:
                offset, length = self.reads.pop(reply.cookie)
                reply.pieces = [(offset, self._take(length))] if length else []
            return reply
        assert magic == wire.CHUNK_MAGIC, f"{magic:#x} begins no reply"
        return self._chunks()

    def _chunks(self) -> Reply:
        reply: Reply | None = None
        while True:
            head = self._take(wire.CHUNK.size - 4)
            _, flags, kind, cookie, length = wire.CHUNK.unpack(wire.U32.pack(wire.CHUNK_MAGIC) + head)
            reply = reply or Reply(cookie)
            assert reply.cookie == cookie, "chunks of two replies are mixed"
            self._add(reply, kind, self._take(length))
            if flags & wire.CHUNK_DONE:
                return reply
            assert int.from_bytes(self._take(4), "big") == wire.CHUNK_MAGIC

    def _add(self, reply: Reply, kind: int, data: bytes) -> None:
        reply.chunks += 1
        if kind == wire.CHUNK_DATA:
            reply.pieces.append((int.from_bytes(data[:8], "big"), data[8:]))
        elif kind == wire.CHUNK_HOLE:
            offset, length = wire.HOLE.unpack(data)
            reply.holes.append((offset, length))
        elif kind == wire.CHUNK_STATUS:
            extents = [wire.STATUS.unpack_from(data, at) for at in range(4, len(data), wire.STATUS.size)]
            reply.states[int.from_bytes(data[:4], "big")] = extents
        elif kind in {wire.CHUNK_ERROR, wire.CHUNK_ERROR_OFFSET}:
            reply.error, text = wire.ERROR.unpack_from(data)
            if kind == wire.CHUNK_ERROR_OFFSET:
                reply.error_offset = int.from_bytes(data[wire.ERROR.size + text :], "big")
        else:
            assert (kind, data) == (wire.CHUNK_NONE, b"")


class Client:
    """A connection that has gone through the negotiation."""

    def __init__(
        self,
        connection: socket.socket,
        name: str,
        *,
        structured: bool = True,
        contexts: Sequence[str] = (),
        seconds: float = 30,
    ) -> None:
        connection.settimeout(seconds)
        self.socket = connection
        self.decoder = Decoder(self.take)
        self._cookie = 0
        assert self.take(18) == wire.greeting()
        self.send(wire.U32.pack(wire.FLAG_FIXED_NEWSTYLE | wire.FLAG_NO_ZEROES))
        if structured:
            assert self.ask(wire.OPT_STRUCTURED_REPLY)[-1].kind == wire.REP_ACK
        if contexts:
            replies = self.ask(wire.OPT_SET_META_CONTEXT, queries(name, *contexts))
            assert [reply.data[4:].decode() for reply in replies[:-1]] == list(contexts)
        answers = self.ask(wire.OPT_GO, named(name))
        if answers[-1].kind != wire.REP_ACK:
            raise ConnectionRefusedError(answers[-1].data.decode())
        infos = {int.from_bytes(answer.data[:2], "big"): answer.data[2:] for answer in answers[:-1]}
        self.size_bytes, self.flags = wire.EXPORT.unpack(infos[wire.INFO_EXPORT])

    @classmethod
    def connect(cls, address: str | tuple[str, int], name: str, **how: object) -> Client:
        """``address``: the path of a Unix socket, or host and port."""
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        connection = socket.socket(family, socket.SOCK_STREAM)
        # Without room in a Unix socket's backlog, one that has a timeout is refused; one without waits.
        connection.settimeout(None if family == socket.AF_UNIX else 30)
        try:
            connection.connect(address)
            return cls(connection, name, **how)  # type: ignore[arg-type]
        except BaseException:
            connection.close()
            raise

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes; EOFError at the end."""
        taken = bytearray()
        while len(taken) < count:
            piece = self.socket.recv(count - len(taken))
            if not piece:
                raise EOFError
            taken += piece
        return bytes(taken)

    def ask(self, number: int, data: bytes = b"") -> list[OptionReply]:
        """Send an option; return its replies, the last of which is an acknowledgement or an error."""
        self.send(option(number, data))
        found: list[OptionReply] = []
        while not found or found[-1].kind in {wire.REP_SERVER, wire.REP_INFO, wire.REP_META_CONTEXT}:
            head = self.take(wire.OPTION_REPLY.size)
            found += option_replies(head + self.take(wire.OPTION_REPLY.unpack(head)[3]))
        return found

    def start(
        self, kind: int, offset: int = 0, length: int = 0, *, flags: int = 0, payload: bytes = b""
    ) -> int:
        """Send a request; return its cookie."""
        self._cookie += 1
        if kind == wire.CMD_READ:
            self.decoder.reads[self._cookie] = offset, length
        self.send(request(kind, offset, length, flags=flags, cookie=self._cookie, payload=payload))
        return self._cookie

    def call(
        self, kind: int, offset: int = 0, length: int = 0, *, flags: int = 0, payload: bytes = b""
    ) -> Reply:
        """Send a request and wait for its reply, which must be the next."""
        cookie = self.start(kind, offset, length, flags=flags, payload=payload)
        reply = self.decoder.next()
        assert reply.cookie == cookie
        return reply

    def read(self, offset: int, length: int, *, flags: int = 0) -> bytes:
        reply = self.call(wire.CMD_READ, offset, length, flags=flags)
        assert reply.error == 0
        return reply.content(offset, length)

    def write(self, offset: int, data: bytes, *, flags: int = 0) -> None:
        assert self.call(wire.CMD_WRITE, offset, len(data), flags=flags, payload=data).error == 0

    def flush(self) -> None:
        assert self.call(wire.CMD_FLUSH).error == 0

    def close(self) -> None:
        self.socket.close()
