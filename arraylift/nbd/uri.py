"""Where an NBD export is: the URIs of its standard, and nothing else of them than we use.

Callers: any. Source: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

from arraylift.errors import InvalidRequest

PORT = 10809
URI_CHARS_MAX = 4096
_SOCKET_BYTES_MAX = 107
_SCHEMES = {
    "nbd": (False, False),
    "nbds": (True, False),
    "nbd+unix": (False, True),
    "nbds+unix": (True, True),
}


@dataclass(frozen=True, slots=True)
class NbdUri:
    """``socket_path`` or host and port; ``tls_name`` is what the server's certificate must name."""

    export: str
    tls: bool
    host: str = ""
    port: int = 0
    socket_path: str = ""
    tls_name: str = ""

    def __str__(self) -> str:
        scheme = "nbds" if self.tls else "nbd"
        if self.socket_path:
            return f"{scheme}+unix:///{self.export}?socket={self.socket_path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}/{self.export}"


def parse_uri(text: str) -> NbdUri:
    """Raises InvalidRequest, which says what is wrong."""
    if len(text) > URI_CHARS_MAX or not text.isprintable():
        raise _odd(text, "it is too long, or has characters that nothing prints")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise _odd(text, str(error)) from None
    if parts.scheme not in _SCHEMES:
        raise _odd(text, f"its scheme is none of {', '.join(_SCHEMES)}")
    tls, unix = _SCHEMES[parts.scheme]
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise _odd(text, "users, passwords and fragments mean nothing here")
    query = parse_qs(parts.query, keep_blank_values=True)
    if not query.keys() <= {"socket", "tls-hostname"} or any(len(values) != 1 for values in query.values()):
        raise _odd(text, "it takes socket= and tls-hostname=, each once, and no more")
    export = unquote(parts.path.removeprefix("/"))
    socket_path = query.get("socket", [""])[0]
    tls_name = query.get("tls-hostname", [""])[0]
    if unix:
        if parts.netloc or not socket_path.startswith("/") or len(socket_path.encode()) > _SOCKET_BYTES_MAX:
            raise _odd(text, "name a socket by its whole path: nbd+unix:///EXPORT?socket=/PATH")
        return NbdUri(export, tls, socket_path=socket_path, tls_name=tls_name or "localhost")
    if not parts.hostname or socket_path:
        raise _odd(text, "name a host: nbd://HOST:PORT/EXPORT")
    return NbdUri(
        export,
        tls,
        host=parts.hostname,
        port=PORT if port is None else port,
        tls_name=tls_name or parts.hostname,
    )


def _odd(text: str, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"{text[:200]!r} names no NBD export: {why}", next_step="write nbd://HOST:PORT/EXPORT or nbds://..."
    )
