"""Settings of the primary array; read by ``__main__`` alone, through arraylift.config."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

STATE_ROOT = Path("~/.local/state/arraylift")


@dataclass(frozen=True, slots=True)
class ArraySettings:
    """One TOML file's worth; every field has a default that works on one machine."""

    name: str = field(default="array1", metadata={"doc": "Name of this array, as in its certificate."})
    listen: str = field(default="127.0.0.1:7403", metadata={"doc": "host:port to serve gRPC on."})
    state: Path = field(default=STATE_ROOT / "array1", metadata={"doc": "Directory of the pool."})
    pki: Path = field(
        default=STATE_ROOT / "pki",
        metadata={"doc": "Directory with ca.pem, array-<name>.pem and array-<name>.key."},
    )
    send_workers: int = field(
        default=2, metadata={"doc": "Processes that read, cut and send backups; 1 to 16."}
    )
    nbd_listen: str = field(
        default="127.0.0.1:10809", metadata={"doc": "host:port to serve NBD on; empty for none."}
    )
    nbd_tls: str = field(
        default="demanded",
        metadata={"doc": "TLS on nbd_listen: demanded, offered, or none (no identities: anybody may write)."},
    )
    nbd_socket: str = field(
        default="",
        metadata={"doc": "Path of a Unix socket to serve NBD on, to this user's processes, without TLS."},
    )
    nbd_connections: int = field(default=256, metadata={"doc": "NBD clients at once; 1 to 1024."})
    log_level: str = field(default="info", metadata={"doc": "debug, info, warning or error."})
    log_format: str = field(default="console", metadata={"doc": "console, or json for machines."})
