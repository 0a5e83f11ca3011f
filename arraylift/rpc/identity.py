"""Who is at the other end, as its certificate says (law 12).

Owns: the roles, and the spellings of an identity among a certificate's subject alternative names:
the URI ``arraylift://<role>/<name>``, by which a server knows its caller, and DNS names, by which a
caller demands its server, for a gRPC client can check nothing else.
Invariants:
  I1 an identity comes from a certificate that TLS has verified, never from a message.
  I2 a certificate has exactly one Arraylift URI; none or two is no identity.
  I3 a DNS name below NAMES_DOMAIN says a role in its last label, and before it one daemon of that
     role or one host that a daemon of that role is reached at; no other name lies below it.
Callers: any thread. ``current_peer`` only inside a handler, on gRPC's thread.
"""

from __future__ import annotations

import ipaddress
import re
from contextvars import ContextVar
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, cast

from arraylift.errors import InvalidRequest, NotPermitted

if TYPE_CHECKING:
    from collections.abc import Iterable

    import grpc

ROLES = ("operator", "server", "vcenter", "host", "array", "target")
"""operator: a person's command line; server: a backup server; the rest are daemons of that kind."""

URI_SCHEME = "arraylift://"
NAMES_DOMAIN = "arraylift.internal"
"""Of a zone that nobody can register; nothing ever looks it up."""

_LABEL_CHARS_MAX = 190
_PLAIN = re.compile(r"[a-z0-9][a-z0-9.-]*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_URIS = "peer_uri"  # gRPC's list of the verified certificate's URI names, and of no others


@dataclass(frozen=True, slots=True, order=True)
class Peer:
    """One identity; prints as ``array/a1``."""

    role: str
    name: str

    def __str__(self) -> str:
        return f"{self.role}/{self.name}"

    @property
    def uri(self) -> str:
        """As it stands in the certificate."""
        return f"{URI_SCHEME}{self.role}/{self.name}"


def checked_peer(role: str, name: str) -> Peer:
    """Return the identity, or raise InvalidRequest: names also name files, so they are narrow."""
    if role not in ROLES:
        raise InvalidRequest(f"{role!r} is not a role", next_step=f"use one of {', '.join(ROLES)}")
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"{name[:80]!r} cannot name a certificate",
            next_step="use 1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit",
        )
    return Peer(role, name)


def peer_of_names(names: Iterable[str]) -> Peer:
    """Return the identity among a certificate's alternative names (I2), or raise NotPermitted."""
    uris = [name for name in names if name.startswith(URI_SCHEME)]
    role, slash, name = uris[0].removeprefix(URI_SCHEME).partition("/") if len(uris) == 1 else ("", "", "")
    if not slash or role not in ROLES or not _NAME.fullmatch(name):
        raise NotPermitted(
            f"the certificate names no Arraylift identity ({len(uris)} {URI_SCHEME} names)",
            next_step="issue one with `arraylift pki issue ROLE NAME`",
        )
    return Peer(role, name)


def demanded_name(role: str, *, name: str = "", host: str = "") -> str:
    """Return the DNS name (I3) that a daemon's certificate must have to be taken for what is called.

    By its name, where the caller knows it; else by the host that he dialled.
    """
    assert role in ROLES, role
    if name:
        return f"{_label(name)}.named.{role}.{NAMES_DOMAIN}"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f"{_label(host.lower())}.at.{role}.{NAMES_DOMAIN}"
    digits = address.exploded.replace(".", "-").replace(":", "-")
    return f"{digits}.ip.{role}.{NAMES_DOMAIN}"


def _label(text: str) -> str:
    """Itself where DNS has no doubt about it: case does not count there, and length does."""
    if len(text) <= _LABEL_CHARS_MAX and _PLAIN.fullmatch(text):
        return text
    return f"--{blake2b(text.encode(), digest_size=16).hexdigest()}"


def peer_of(context: grpc.ServicerContext) -> Peer:
    """Return the caller of an RPC (I1), or raise NotPermitted."""
    # The stubs say bytes; gRPC gives a list of them for each property.
    names = cast("Iterable[bytes]", context.auth_context().get(_URIS, ()))
    return peer_of_names(name.decode("utf-8", "replace") for name in names)


_CURRENT: ContextVar[Peer] = ContextVar("arraylift_peer")


def bind_peer(peer: Peer) -> None:
    """For the interceptor: gRPC runs each call, generators included, in a context of its own."""
    _CURRENT.set(peer)


def current_peer() -> Peer:
    """Return the caller of the RPC that this thread is handling.

    Works in plain handlers and in generators. A thread that a handler starts does not inherit it:
    hand the Peer over instead.
    """
    peer = _CURRENT.get(None)
    assert peer is not None, "current_peer() outside a handler"
    return peer
