"""Whether something listens: the cheapest question that needs no certificate."""

from __future__ import annotations

import socket


def is_serving(address: str) -> bool:
    """True once the daemon's port takes connections: it is bound after the store is open."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=1):
            return True
    except OSError:
        return False
