"""Addresses of daemons: ``host:port``, IPv6 hosts in brackets.

Owns: how an address is written, and why one cannot be listened on.
Callers: any thread.
"""

from __future__ import annotations

import errno
import os
import socket

from arraylift.errors import ArrayliftError, InvalidRequest, NotPermitted, WrongState


def split_address(address: str, *, port_min: int = 1) -> tuple[str, int]:
    """Return host (without brackets) and port, or raise InvalidRequest. Port 0 where a server
    lets the system choose."""
    host, colon, port = address.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    bracketed = host != bare
    well_formed = colon and bare and port.isascii() and port.isdigit() and (":" not in bare or bracketed)
    if not well_formed or not port_min <= int(port) <= 65535:
        raise InvalidRequest(
            f"{address[:200]!r} is not an address", next_step="write host:port, or [host]:port for IPv6"
        )
    return bare, int(port)


def check_bindable(address: str) -> None:
    """Raise WrongState (port taken), NotPermitted or InvalidRequest if a server cannot listen there.

    Tries every address that the host stands for: gRPC is content with one of them, and a server
    that half its clients miss helps nobody.
    """
    host, port = split_address(address, port_min=0)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, where in found:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(where)
    except OSError as error:
        raise _refusal(host, port, address, error) from None


def _refusal(host: str, port: int, address: str, error: OSError) -> ArrayliftError:
    if error.errno == errno.EADDRINUSE:
        return WrongState(
            f"port {port} on {host} is taken",
            subject=address,
            next_step="stop what listens there, or set another address",
        )
    if error.errno == errno.EACCES:
        return NotPermitted(
            f"this process may not listen on port {port}", subject=address, next_step="use one from 1024 up"
        )
    is_system = error.errno is not None and error.errno > 0
    why = os.strerror(error.errno) if is_system and error.errno else error.strerror
    return InvalidRequest(
        f"cannot listen on {address}: {why}", subject=address, next_step="use an address of this machine"
    )
