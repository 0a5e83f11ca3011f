"""Settings of the dedup target; read by ``__main__`` alone, through arraylift.config."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from arraylift.sizes import MIB

STATE_ROOT = Path("~/.local/state/arraylift")


@dataclass(frozen=True, slots=True)
class TargetSettings:
    """One TOML file's worth; every field has a default that works on one machine."""

    name: str = field(default="target1", metadata={"doc": "Name of this target, as in its certificate."})
    listen: str = field(default="127.0.0.1:7404", metadata={"doc": "host:port to serve gRPC on."})
    state: Path = field(
        default=STATE_ROOT / "target1", metadata={"doc": "Directory of units, index and transfers."}
    )
    pki: Path = field(
        default=STATE_ROOT / "pki",
        metadata={"doc": "Directory with ca.pem, target-<name>.pem and target-<name>.key."},
    )
    lease_seconds: int = field(
        default=3600, metadata={"doc": "A transfer that nobody continues for this long is given up."}
    )
    container_cache_bytes: int = field(
        default=96 * MIB, metadata={"doc": "Memory for whole containers while images are read."}
    )
    reserve_bytes: int = field(
        default=0,
        metadata={
            "doc": "Below this much free space no transfer begins; deletion and restore go on. "
            "0: a sixteenth of the file system, 8 MiB to 4 GiB."
        },
    )
    scrub_days: float = field(
        default=28.0,
        metadata={"doc": "Every stored record is read and fingerprinted once in so many days. 0: never."},
    )
    gc_interval_hours: int = field(
        default=24,
        metadata={"doc": "Hours between two cycles of garbage collection; 0: only when asked for."},
    )
    gc_bytes_per_second: int = field(
        default=32 * MIB,
        metadata={"doc": "Bytes a second that such a cycle copies at most; 0: as fast as it goes."},
    )
    archive_after_days: int = field(
        default=0,
        metadata={"doc": "Images older than this are moved to the archive unit; 0: only by hand."},
    )
    log_level: str = field(default="info", metadata={"doc": "debug, info, warning or error."})
    log_format: str = field(default="console", metadata={"doc": "console, or json for machines."})
