"""The array's NBD server, from its settings.

Callers: the composition root.
"""

from __future__ import annotations

import socket
from urllib.parse import quote

from arraylift.durable import Files
from arraylift.errors import InvalidRequest
from arraylift.nbd.negotiation import Tls
from arraylift.nbd.server import Listener, NbdServer
from arraylift.nbd.tls import server_context
from arraylift.pki import TlsMaterial
from primary_array.config import ArraySettings
from primary_array.exports import ArrayExports

CONNECTIONS_MAX = 1024

_ANYWHERE = ("0.0.0.0", "[::]")  # noqa: S104  # to be told otherwise, not to listen
_SCHEMES = {Tls.DEMANDED: "nbds", Tls.OFFERED: "nbds", Tls.NONE: "nbd"}


class NbdService:
    """The server, where the settings ask for one, and where its exports are found."""

    def __init__(
        self, settings: ArraySettings, tls: TlsMaterial, exports: ArrayExports, files: Files
    ) -> None:
        """Bind. Raises InvalidRequest, WrongState (address taken), NotPermitted."""
        self._listen = settings.nbd_listen
        self._socket = settings.nbd_socket
        self._mode = _mode(settings.nbd_tls)
        if not 1 <= settings.nbd_connections <= CONNECTIONS_MAX:
            raise InvalidRequest(f"nbd_connections is 1 to {CONNECTIONS_MAX}, not {settings.nbd_connections}")
        if self._socket and not self._socket.startswith("/"):
            raise InvalidRequest(f"nbd_socket is a path from the root, not {self._socket}")
        listeners = [Listener(self._listen, self._mode)] if self._listen else []
        if self._socket:
            listeners.append(Listener(self._socket, Tls.NONE))
        self._server = NbdServer(
            listeners,
            exports,
            context=server_context(tls),
            files=files,
            connections_max=settings.nbd_connections,
        )
        self._server.start()

    def uri(self, name: str) -> str:
        """Return where a client finds an export; empty where nothing is served."""
        path = quote(name, safe="")
        if self._listen:
            host = self._listen.rpartition(":")[0]
            known = socket.gethostname() if host in _ANYWHERE else host
            return f"{_SCHEMES[self._mode]}://{known}:{self._server.port}/{path}"
        return f"nbd+unix:///{path}?socket={quote(self._socket)}" if self._socket else ""

    def stop(self) -> None:
        """Hang up; no device is in use afterwards."""
        self._server.stop()


def _mode(text: str) -> Tls:
    try:
        return Tls(text)
    except ValueError:
        allowed = ", ".join(mode.value for mode in Tls)
        raise InvalidRequest(f"nbd_tls is one of {allowed}, not {text!r}") from None
