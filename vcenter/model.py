"""Hosts and what they report, as the virtual center keeps it. Values only.

Owns: these types and the limits on what a host may report; VMs are those of ``arraylift.vm.types``,
whose V1 holds here too: an unchanged report changes nothing.
Callers: any thread.
"""

from __future__ import annotations

from dataclasses import dataclass

from arraylift.vm.types import Vm

HOSTS_MAX = 1024
VMS_PER_HOST_MAX = 10_000
VMS_MAX = 100_000
"""Of one center, claims of several hosts on one VM counted each."""


@dataclass(frozen=True, slots=True)
class Host:
    """A registered host. Memory and the time of the last report are soft: the store may lag behind."""

    name: str
    address: str
    driver: str
    sequence: int = 0
    """Of the last report that was taken; 0: none yet."""
    lost: bool = False
    memory_bytes: int = 0
    memory_free_bytes: int = 0
    cpus: int = 0
    last_report_ns: int = 0
    load_percent: int = 0
    """Of all its processors, over the last minute; soft, too."""


@dataclass(frozen=True, slots=True)
class Report:
    """The whole inventory of a host at one moment."""

    host: str
    sequence: int
    vms: tuple[Vm, ...]
    memory_bytes: int = 0
    memory_free_bytes: int = 0
    cpus: int = 0
    received_at_ns: int = 0
    load_percent: int = 0
