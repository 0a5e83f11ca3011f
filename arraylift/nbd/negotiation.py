"""A connection from its greeting until it has its disk: bytes in, bytes out.

A machine without sockets, threads or clock. Who holds it sends ``greeting``, then hands over what
arrives and sends what comes out, until there is an ``outcome``.
Invariants:
  N1 where TLS is demanded, nothing is told of exports in the clear.
  N2 what was negotiated in the clear does not count after TLS; bytes that a client sent in
     the clear beyond its STARTTLS are an error, never taken for the start of TLS or of anything after.
  N3 memory and work are bounded: OPTION_BYTES_MAX held, OPTIONS_MAX options, LISTINGS_MAX listings.
Callers: connection, its thread. Protocol: docs/protocols/nbd.md
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from arraylift.errors import ArrayliftError, InvalidRequest, NotFound
from arraylift.nbd import options, wire
from arraylift.nbd.access import Caller
from arraylift.nbd.device import PAYLOAD_BYTES_MAX, Device, Exports, transmission_flags
from arraylift.nbd.options import ContextRequest

OPTION_BYTES_MAX = 64 << 10
OPTIONS_MAX = 64
LISTINGS_MAX = 4
CONTEXTS_MAX = 8
"""Contexts that one connection asks for at once."""
TEXT_BYTES_MAX = 1024

_CLIENT_FLAGS_BYTES = 4
_NEEDS_NOTHING = (wire.OPT_ABORT, wire.OPT_LIST, wire.OPT_STARTTLS, wire.OPT_STRUCTURED_REPLY)


class Tls(enum.Enum):
    """What a listener offers."""

    DEMANDED = "demanded"
    OFFERED = "offered"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class StartTls:
    """Outcome: TLS begins with the next byte; afterwards call ``secured``."""


@dataclass(frozen=True, slots=True)
class Ended:
    """Outcome: the client has taken its leave."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Outcome: requests follow, the first perhaps in ``rest``. The device is the caller's to close."""

    name: str
    device: Device
    structured: bool
    contexts: tuple[tuple[int, str], ...]
    rest: bytes


Outcome = StartTls | Ended | Ready


class Negotiation:
    """One client. Methods raise InvalidRequest where only hanging up is left."""

    def __init__(self, exports: Exports, *, tls: Tls, caller: Caller, hang_up: Callable[[], None]) -> None:
        self.greeting = wire.greeting()
        self.outcome: Outcome | None = None
        self._exports = exports
        self._tls = tls
        self._caller = caller
        self._hang_up = hang_up
        self._secure = False
        self._held = bytearray()
        self._client_flags: int | None = None
        self._options = self._listings = 0
        self._structured = False
        self._context_name: str | None = None
        self._contexts: list[tuple[int, str]] = []

    def received(self, data: bytes) -> Iterator[bytes]:
        """Take what arrived; yield what is to be sent, an answer at a time. Ends with an outcome, or
        for want of more."""
        self._held += data
        if self._client_flags is None:
            if len(self._held) < _CLIENT_FLAGS_BYTES:
                return
            self._client_flags = self._take_flags()
        while self.outcome is None:
            found = self._take_option()
            if found is None:
                return
            yield from self._answer(*found)
        if isinstance(self.outcome, StartTls) and self._held:
            raise InvalidRequest("bytes in the clear after STARTTLS")  # N2

    def secured(self, caller: Caller) -> None:
        """TLS is up, with this client; the negotiation goes on from the start of options (N2)."""
        assert isinstance(self.outcome, StartTls)
        self.outcome = None
        self._secure = True
        self._caller = caller
        self._structured = False
        self._context_name, self._contexts = None, []

    # -- taking apart ---------------------------------------------------------------------------

    def _take(self, count: int) -> bytes:
        taken = bytes(self._held[:count])
        del self._held[:count]
        return taken

    def _take_flags(self) -> int:
        flags = int.from_bytes(self._take(_CLIENT_FLAGS_BYTES), "big")
        if flags & ~(wire.FLAG_FIXED_NEWSTYLE | wire.FLAG_NO_ZEROES):
            raise InvalidRequest(f"client flags {flags:#x} are unknown")
        return flags

    def _take_option(self) -> tuple[int, bytes] | None:
        """Return the next option and its data, or None until all of it has arrived (N3)."""
        if len(self._held) < wire.OPTION.size:
            return None
        magic, option, length = wire.OPTION.unpack_from(self._held)
        if magic != wire.OPTION_MAGIC:
            raise InvalidRequest("an option does not begin as one")
        if length > OPTION_BYTES_MAX:
            raise InvalidRequest(f"an option has at most {OPTION_BYTES_MAX} bytes of data, not {length}")
        if len(self._held) < wire.OPTION.size + length:
            return None
        self._options += 1
        if self._options > OPTIONS_MAX:
            raise InvalidRequest(f"more than {OPTIONS_MAX} options")
        self._take(wire.OPTION.size)
        return option, self._take(length)

    # -- answering ------------------------------------------------------------------------------

    def _answer(self, option: int, data: bytes) -> Iterator[bytes]:
        hidden = self._tls is Tls.DEMANDED and not self._secure
        if option == wire.OPT_EXPORT_NAME:
            if hidden:
                raise InvalidRequest("an export asked for by name, in the clear")
            yield self._old_style(data)
            return
        if hidden and option not in {wire.OPT_ABORT, wire.OPT_STARTTLS}:  # N1
            yield _error(option, wire.REP_ERR_TLS_REQD, "this server speaks TLS only: STARTTLS first")
            return
        if data and option in _NEEDS_NOTHING:
            yield _error(option, wire.REP_ERR_INVALID, "this option has no data")
            return
        try:
            yield from self._answer_well_formed(option, data)
        except NotFound as error:
            yield _error(option, wire.REP_ERR_UNKNOWN, error.message)
        except InvalidRequest as error:
            yield _error(option, wire.REP_ERR_INVALID, error.message)
        except ArrayliftError as error:
            yield _error(option, wire.REP_ERR_POLICY, error.message)

    def _answer_well_formed(self, option: int, data: bytes) -> Iterator[bytes]:
        if option == wire.OPT_ABORT:
            self.outcome = Ended()
            yield _ack(option)
        elif option == wire.OPT_STARTTLS:
            yield self._start_tls()
        elif option == wire.OPT_STRUCTURED_REPLY:
            self._structured = True
            yield _ack(option)
        elif option == wire.OPT_LIST:
            yield self._list()
        elif option in {wire.OPT_INFO, wire.OPT_GO}:
            yield self._describe(option, data)
        elif option == wire.OPT_LIST_META_CONTEXT:
            yield self._list_contexts(options.parse_contexts(data))
        elif option == wire.OPT_SET_META_CONTEXT:
            self._context_name, self._contexts = None, []
            yield self._set_contexts(options.parse_contexts(data))
        else:
            yield _error(option, wire.REP_ERR_UNSUP, "this option is unknown here")

    def _start_tls(self) -> bytes:
        option = wire.OPT_STARTTLS
        if self._tls is Tls.NONE:
            return _error(option, wire.REP_ERR_POLICY, "this server speaks no TLS here")
        if self._secure:
            return _error(option, wire.REP_ERR_INVALID, "TLS is up already")
        self.outcome = StartTls()
        return _ack(option)

    def _list(self) -> bytes:
        self._listings += 1
        if self._listings > LISTINGS_MAX:
            return _error(wire.OPT_LIST, wire.REP_ERR_TOO_BIG, f"at most {LISTINGS_MAX} listings")  # N3
        parts = []
        for listed in self._exports.listed(self._caller):
            name = listed.name.encode()
            data = wire.U32.pack(len(name)) + name + listed.description.encode()
            parts.append(wire.option_reply(wire.OPT_LIST, wire.REP_SERVER, data))
        return b"".join(parts) + _ack(wire.OPT_LIST)

    def _open(self, name: str) -> Device:
        return self._exports.open(name, self._caller, self._hang_up)

    def _old_style(self, data: bytes) -> bytes:
        try:
            name = options.as_text(data)
            device = self._open(name)
        except ArrayliftError as error:  # the old style knows no refusal
            raise InvalidRequest(f"export {data[:100]!r} was refused: {error.message}") from None
        reply = wire.EXPORT.pack(device.size_bytes, transmission_flags(device))
        assert self._client_flags is not None
        if not self._client_flags & wire.FLAG_NO_ZEROES:
            reply += wire.EXPORT_PADDING
        self._become_ready(name, device)
        return reply

    def _describe(self, option: int, data: bytes) -> bytes:
        request = options.parse_export(data)
        device = self._open(request.name)
        try:
            infos = [wire.U16.pack(wire.INFO_EXPORT)]
            infos[0] += wire.EXPORT.pack(device.size_bytes, transmission_flags(device))
            sizes = wire.BLOCK_SIZES.pack(1, device.block_bytes, PAYLOAD_BYTES_MAX)
            infos.append(wire.U16.pack(wire.INFO_BLOCK_SIZE) + sizes)
            if wire.INFO_NAME in request.wanted:
                infos.append(wire.U16.pack(wire.INFO_NAME) + request.name.encode())
            if wire.INFO_DESCRIPTION in request.wanted:
                infos.append(wire.U16.pack(wire.INFO_DESCRIPTION) + device.description.encode())
        except BaseException:
            device.close()
            raise
        if option == wire.OPT_GO:
            self._become_ready(request.name, device)
        else:
            device.close()
        return b"".join(wire.option_reply(option, wire.REP_INFO, info) for info in infos) + _ack(option)

    def _become_ready(self, name: str, device: Device) -> None:
        contexts = tuple(self._contexts) if self._context_name == name else ()
        self.outcome = Ready(name, device, self._structured, contexts, bytes(self._held))
        self._held.clear()

    # -- contexts -------------------------------------------------------------------------------

    def _offered(self, request: ContextRequest) -> list[str]:
        if not self._structured:
            raise InvalidRequest("contexts need structured replies")
        device = self._open(request.name)
        try:
            return list(device.contexts())
        finally:
            device.close()

    def _list_contexts(self, request: ContextRequest) -> bytes:
        option = wire.OPT_LIST_META_CONTEXT
        self._listings += 1
        if self._listings > LISTINGS_MAX:
            return _error(option, wire.REP_ERR_TOO_BIG, f"at most {LISTINGS_MAX} listings")  # N3
        found = options.matching(request.queries, self._offered(request))
        return _contexts(option, [(0, name) for name in found])

    def _set_contexts(self, request: ContextRequest) -> bytes:
        option = wire.OPT_SET_META_CONTEXT
        found = options.chosen(request.queries, self._offered(request))
        if len(found) > CONTEXTS_MAX:
            return _error(option, wire.REP_ERR_TOO_BIG, f"at most {CONTEXTS_MAX} contexts at once")
        self._context_name, self._contexts = request.name, list(enumerate(found, 1))
        return _contexts(option, self._contexts)


def _ack(option: int) -> bytes:
    return wire.option_reply(option, wire.REP_ACK)


def _error(option: int, kind: int, text: str) -> bytes:
    return wire.option_reply(option, kind, text.encode()[:TEXT_BYTES_MAX])


def _contexts(option: int, found: list[tuple[int, str]]) -> bytes:
    replies = [
        wire.option_reply(option, wire.REP_META_CONTEXT, options.meta_context(number, name))
        for number, name in found
    ]
    return b"".join(replies) + _ack(option)
