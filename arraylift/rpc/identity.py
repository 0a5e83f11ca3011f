"""Who is calling, as the caller's certificate says (law 12).

Owns: the roles, and the one spelling of an identity: the URI
``arraylift://<role>/<name>`` among the certificate's subject alternative names.
Invariants:
  I1 an identity comes from a certificate that TLS has verified, never from a message.
  I2 a certificate has exactly one Arraylift URI; none or two is no identity.
Callers: any thread. ``current_peer`` only inside a handler, on gRPC's thread.
"""

from __future__ import annotations

import re
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from arraylift.errors import InvalidRequest, NotPermitted

if TYPE_CHECKING:
    from collections.abc import Iterable

    import grpc

ROLES = ("operator", "server", "vcenter", "host", "array", "target")
"""operator: a person's command line; server: a backup server; the rest are daemons of that kind."""

URI_SCHEME = "arraylift://"

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
