"""Settings of the virtual center; read by ``__main__`` alone, through arraylift.config."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

STATE_ROOT = Path("~/.local/state/arraylift")


@dataclass(frozen=True, slots=True)
class CenterSettings:
    """One TOML file's worth; every field has a default that works on one machine."""

    name: str = field(
        default="vcenter1", metadata={"doc": "Name of this virtual center, as in its certificate."}
    )
    listen: str = field(default="127.0.0.1:7401", metadata={"doc": "host:port to serve gRPC on."})
    state: Path = field(default=STATE_ROOT / "vcenter1", metadata={"doc": "Directory of the inventory."})
    pki: Path = field(
        default=STATE_ROOT / "pki",
        metadata={"doc": "Directory with ca.pem, vcenter-<name>.pem and vcenter-<name>.key."},
    )
    log_level: str = field(default="info", metadata={"doc": "debug, info, warning or error."})
    log_format: str = field(default="console", metadata={"doc": "console, or json for machines."})
