"""Settings of the host agent; read by ``__main__`` alone, through arraylift.config."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from arraylift.sizes import GIB

STATE_ROOT = Path("~/.local/state/arraylift")
DRIVERS = ("emulated", "qemu", "libvirt")
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
    libvirt_uri: str = field(
        default="qemu:///system", metadata={"doc": "With driver libvirt: whose guests are adopted."}
    )
    libvirt_exports: str = field(
        default="",
        metadata={
            "doc": "Folder in which libvirt's QEMU makes sockets and scratch files while foreign disks are\n"
            "read: its account must be able to write there. Empty: below state."
        },
    )
    libvirt_listen: str = field(
        default="",
        metadata={
            "doc": "host:first-last at which foreign disks are served by TLS to a gateway elsewhere.\n"
            "Empty: Unix sockets, for one on this machine."
        },
    )
    memory_bytes: int = field(
        default=64 * GIB, metadata={"doc": "Memory for VMs, as told to the virtual center."}
    )
    cpus: int = field(default=16, metadata={"doc": "CPUs for VMs, as told to the virtual center."})
    networks: tuple[str, ...] = field(
        default=("*=isolated",),
        metadata={
            "doc": "Networks of QEMU guests: NAME=bridge:br0, NAME=user (out through this host) or\n"
            "NAME=isolated; * names all others."
        },
    )
    migration_ports: str = field(
        default="7480-7499", metadata={"doc": "Ports at which QEMU guests come in from other hosts."}
    )
    qemu_program: str = field(default="qemu-system-x86_64", metadata={"doc": "QEMU, by name or path."})
    qemu_accelerator: str = field(
        default="", metadata={"doc": "kvm or tcg; empty: the first that runs a guest when it is tried."}
    )
    qemu_cpu: str = field(
        default="", metadata={"doc": "CPU model of QEMU guests; empty: this host's own, or qemu64."}
    )
    qemu_user: str = field(
        default="",
        metadata={"doc": "User that QEMU runs as, if this daemon is root; empty: the daemon's own."},
    )
    ovmf_code: Path = field(
        default=Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), metadata={"doc": "UEFI firmware of QEMU guests."}
    )
    ovmf_variables: Path = field(
        default=Path("/usr/share/OVMF/OVMF_VARS_4M.fd"), metadata={"doc": "Its variables, as they begin."}
    )
    log_level: str = field(default="info", metadata={"doc": "debug, info, warning or error."})
    log_format: str = field(default="console", metadata={"doc": "console, or json for machines."})
