"""Settings of the host agent; read by ``__main__`` alone, through arraylift.config."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from arraylift.sizes import GIB

STATE_ROOT = Path("~/.local/state/arraylift")
DRIVERS = ("emulated",)
"""What ``driver`` may be."""


@dataclass(frozen=True, slots=True)
class HostSettings:
    """One TOML file's worth; every field has a default that works on one machine."""

    name: str = field(default="host1", metadata={"doc": "Name of this host, as in its certificate."})
    listen: str = field(default="127.0.0.1:7402", metadata={"doc": "host:port to serve gRPC on."})
    advertise: str = field(
        default="", metadata={"doc": "host:port at which others reach this host; empty: that of listen."}
    )
    state: Path = field(default=STATE_ROOT / "host1", metadata={"doc": "Directory of the VMs' records."})
    pki: Path = field(
        default=STATE_ROOT / "pki",
        metadata={"doc": "Directory with ca.pem, host-<name>.pem and host-<name>.key."},
    )
    vcenter: str = field(
        default="127.0.0.1:7401", metadata={"doc": "host:port of the virtual center; empty: none."}
    )
    driver: str = field(
        default="emulated", metadata={"doc": f"VMM that runs the VMs: {' or '.join(DRIVERS)}."}
    )
    memory_bytes: int = field(
        default=64 * GIB, metadata={"doc": "Memory for VMs, as told to the virtual center."}
    )
    cpus: int = field(default=16, metadata={"doc": "CPUs for VMs, as told to the virtual center."})
    log_level: str = field(default="info", metadata={"doc": "debug, info, warning or error."})
    log_format: str = field(default="console", metadata={"doc": "console, or json for machines."})
