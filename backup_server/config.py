"""Settings of the backup server; read by ``__main__`` alone, through arraylift.config."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from backup_server.job_turns import (
    JOBS_PER_ARRAY_MAX,
    JOBS_PER_HOST_MAX,
    JOBS_PER_TARGET_MAX,
    JOBS_RUNNING_MAX,
)

STATE_ROOT = Path("~/.local/state/arraylift")


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """One TOML file's worth; every field has a default that works on one machine."""

    name: str = field(default="server1", metadata={"doc": "Name of this server, as in its certificate."})
    listen: str = field(default="127.0.0.1:7405", metadata={"doc": "host:port to serve gRPC on."})
    state: Path = field(default=STATE_ROOT / "server1", metadata={"doc": "Directory of the database."})
    pki: Path = field(
        default=STATE_ROOT / "pki",
        metadata={"doc": "Directory with ca.pem, server-<name>.pem and server-<name>.key."},
    )
    vcenter: str = field(
        default="127.0.0.1:7401",
        metadata={"doc": "host:port of the virtual center; empty: none, hosts are asked directly."},
    )
    catalog: bool = field(
        default=True,
        metadata={"doc": "Parse backups for their files once they are made, for search and diff."},
    )
    patience_seconds: float = field(
        default=300.0, metadata={"doc": "A step of a job that fails for so long fails the job."}
    )
    jobs_running_max: int = field(
        default=JOBS_RUNNING_MAX, metadata={"doc": "Jobs that run at once, in all."}
    )
    jobs_per_host_max: int = field(
        default=JOBS_PER_HOST_MAX, metadata={"doc": "Of these, with VMs on one host."}
    )
    jobs_per_array_max: int = field(
        default=JOBS_PER_ARRAY_MAX, metadata={"doc": "Likewise, with disks on one array."}
    )
    jobs_per_target_max: int = field(
        default=JOBS_PER_TARGET_MAX, metadata={"doc": "Likewise, of one target."}
    )
    log_level: str = field(default="info", metadata={"doc": "debug, info, warning or error."})
    log_format: str = field(default="console", metadata={"doc": "console, or json for machines."})
