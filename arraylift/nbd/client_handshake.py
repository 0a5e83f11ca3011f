"""The client's side of the negotiation, sans I/O: fixed newstyle, up to the moment when reads may begin.

Owns: what is asked for, in which order, and what of the answers is believed.
Invariants:
  H1 where TLS is wanted, nothing but STARTTLS is said or believed before it has come about.
  H2 the server cannot make us keep more than REPLIES_MAX replies of REPLY_BYTES_MAX each.
Callers: client, one thread: send ``outgoing``, take exactly ``needs`` bytes, ``receive`` them, until
``done``; where ``tls_due``, bring TLS about and call ``secured``.
Protocol: docs/protocols/nbd.md
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from arraylift.errors import (
    ArrayliftError,
    Corruption,
    InvalidRequest,
    NotFound,
    NotPermitted,
    PeerUnavailable,
    WrongState,
)
from arraylift.nbd import wire
from arraylift.nbd.device import PAYLOAD_BYTES_MAX
from arraylift.nbd.options import NAME_BYTES_MAX

REPLIES_MAX = 64
REPLY_BYTES_MAX = 16 << 10
_GREETING_BYTES = 18


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What a server said of its export."""

    size_bytes: int
    flags: int
    block_bytes_min: int
    payload_bytes_max: int
    structured: bool
    contexts: dict[int, str]
    """Those of the asked that it has, by the number that it gave them."""


_Talk = Generator[int, bytes, Negotiated]
_Replies = Generator[int, bytes, list[tuple[int, bytes]]]


class ClientHandshake:
    """One negotiation."""

    def __init__(self, export: str, *, contexts: Sequence[str], tls: bool) -> None:
        if len(export.encode()) > NAME_BYTES_MAX:
            raise InvalidRequest(f"an export's name has at most {NAME_BYTES_MAX} bytes")
        self._export = export
        self._contexts = contexts
        self._tls = tls
        self._outgoing = bytearray()
        self.tls_due = False
        self.done: Negotiated | None = None
        self._talk = self._negotiate()
        self.needs = next(self._talk)

    def take_outgoing(self) -> bytes:
        """Return what is to be sent before anything is received."""
        said = bytes(self._outgoing)
        self._outgoing.clear()
        return said

    def receive(self, data: bytes) -> None:
        """Take ``needs`` bytes. Raises what ends the negotiation."""
        assert len(data) == self.needs
        try:
            self.needs = self._talk.send(data)
        except StopIteration as end:
            self.needs, self.done = 0, end.value

    def secured(self) -> None:
        """TLS has come about (H1)."""
        assert self.tls_due
        self.tls_due = False
        self.receive(b"")

    # -- the conversation -----------------------------------------------------------------------

    def _negotiate(self) -> _Talk:
        greeting = yield _GREETING_BYTES
        if greeting[:8] != wire.GREETING_MAGIC:
            raise Corruption("this is no NBD server", next_step="look at host and port")
        flags = int.from_bytes(greeting[16:], "big")
        if greeting[8:16] != wire.OPTION_MAGIC or not flags & wire.FLAG_FIXED_NEWSTYLE:
            raise WrongState("the NBD server is too old: it does not speak fixed newstyle")
        self._outgoing += wire.U32.pack(flags & (wire.FLAG_FIXED_NEWSTYLE | wire.FLAG_NO_ZEROES))
        if self._tls:
            yield from self._start_tls()
        answers = yield from self._ask(wire.OPT_STRUCTURED_REPLY)
        structured = answers[-1][0] == wire.REP_ACK
        contexts: dict[int, str] = {}
        if structured and self._contexts:
            contexts = yield from self._set_contexts()
        return (yield from self._go(structured, contexts))

    def _start_tls(self) -> Generator[int, bytes, None]:
        answers = yield from self._ask(wire.OPT_STARTTLS)
        if answers[-1][0] != wire.REP_ACK:
            raise NotPermitted(
                "the NBD server has no TLS",
                next_step="nothing was read; where the way to it is safe, say nbd:// instead of nbds://",
            )
        self.tls_due = True
        yield 0

    def _set_contexts(self) -> Generator[int, bytes, dict[int, str]]:
        parts = [_text(self._export), wire.U32.pack(len(self._contexts)), *map(_text, self._contexts)]
        answers = yield from self._ask(wire.OPT_SET_META_CONTEXT, b"".join(parts))
        found: dict[int, str] = {}
        if answers[-1][0] == wire.REP_ACK:
            for kind, data in answers[:-1]:
                name = data[4:].decode(errors="replace")
                if kind != wire.REP_META_CONTEXT or name not in self._contexts or name in found.values():
                    raise broken("it names contexts that were not asked for")
                found[int.from_bytes(data[:4], "big")] = name
        return found

    def _go(self, structured: bool, contexts: dict[int, str]) -> _Talk:
        wanted = wire.U16.pack(1) + wire.U16.pack(wire.INFO_BLOCK_SIZE)
        answers = yield from self._ask(wire.OPT_GO, _text(self._export) + wanted)
        kind, text = answers[-1]
        if kind != wire.REP_ACK:
            raise _refusal(kind, self._export, text)
        infos = {int.from_bytes(data[:2], "big"): data[2:] for kind, data in answers[:-1]}
        if len(infos.get(wire.INFO_EXPORT, b"")) != wire.EXPORT.size:
            raise broken("it does not say how large the export is")
        size_bytes, flags = wire.EXPORT.unpack(infos[wire.INFO_EXPORT])
        smallest, largest = 1, PAYLOAD_BYTES_MAX
        if wire.INFO_BLOCK_SIZE in infos:
            if len(infos[wire.INFO_BLOCK_SIZE]) != wire.BLOCK_SIZES.size:
                raise broken("its block sizes are malformed")
            smallest, _, largest = wire.BLOCK_SIZES.unpack(infos[wire.INFO_BLOCK_SIZE])
            if not smallest or smallest & (smallest - 1) or largest < smallest:
                raise broken(f"its block sizes make no sense: {smallest}, {largest}")
        return Negotiated(size_bytes, flags, smallest, min(largest, PAYLOAD_BYTES_MAX), structured, contexts)

    def _ask(self, option: int, data: bytes = b"") -> _Replies:
        """Send an option; return its replies, the last of which is an acknowledgement or an error (H2)."""
        self._outgoing += wire.OPTION.pack(wire.OPTION_MAGIC, option, len(data)) + data
        found: list[tuple[int, bytes]] = []
        while len(found) < REPLIES_MAX:
            magic, answered, kind, length = wire.OPTION_REPLY.unpack((yield wire.OPTION_REPLY.size))
            if magic != wire.OPTION_REPLY_MAGIC or answered != option or length > REPLY_BYTES_MAX:
                raise broken("a reply to an option is malformed")
            found.append((kind, (yield length) if length else b""))
            if kind == wire.REP_ACK or kind & wire.REP_ERROR:
                return found
        raise broken("it answers an option without an end")


def broken(why: str) -> Corruption:
    """A server that breaks the protocol: nothing that follows is believed."""
    return Corruption(
        f"the NBD server breaks the protocol: {why}", next_step="nothing was kept; look at that server"
    )


def said(data: bytes) -> str:
    """What a server wrote, for people: short, printable."""
    text = data[:160].decode(errors="replace")
    return "".join(char if char.isprintable() else "?" for char in text)


def _text(text: str) -> bytes:
    encoded = text.encode()
    return wire.U32.pack(len(encoded)) + encoded


_REFUSALS: dict[int, type[ArrayliftError]] = {
    wire.REP_ERR_UNKNOWN: NotFound,
    wire.REP_ERR_POLICY: NotPermitted,
    wire.REP_ERR_TLS_REQD: NotPermitted,
    wire.REP_ERR_SHUTDOWN: PeerUnavailable,
}


def _refusal(kind: int, export: str, text: bytes) -> ArrayliftError:
    told = said(text)
    if kind == wire.REP_ERR_TLS_REQD:
        return NotPermitted("the NBD server demands TLS", next_step="say nbds:// instead of nbd://")
    error = _REFUSALS.get(kind, WrongState)
    why = told or f"error {kind & ~wire.REP_ERROR}"
    return error(f"the NBD server does not serve the export {export!r}: {why}", subject=f"export {export}")
