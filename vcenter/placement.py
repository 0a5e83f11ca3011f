"""Which host a VM goes to, a new one or one that moves. Pure.

Invariants:
  C1 a host is chosen only if it is alive and has the memory, less what was promised on it to VMs
     that it has not reported yet, and at least as many processors as the VM wants.
  C2 hosts that already use all the arrays asked for come first: they are known to reach them; then
     those that are not busy; among equals the one with most free memory, then with least load, then with
     fewest VMs, then by name.
Callers: provision, and through it migrate.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from arraylift.errors import Overloaded, PeerUnavailable
from arraylift.sizes import human
from vcenter.inventory import Inventory
from vcenter.model import Host

BUSY_PERCENT = 80
"""Load of all processors from which a host comes after the others, however much memory it has."""


def choose_host(
    inventory: Inventory,
    *,
    memory_bytes: int,
    cpus: int,
    arrays: Collection[str],
    promised: Mapping[str, int],
    among: Callable[[Host], bool] = lambda _: True,
) -> Host:
    """Return the host for a VM. ``promised``: bytes by host name; ``among`` says which may be chosen.

    Raises PeerUnavailable (no host is alive), Overloaded (none has room).
    """
    eligible = [host for host in inventory.hosts.values() if among(host)]
    living = [host for host in eligible if not host.lost and host.sequence]
    if not living:
        raise PeerUnavailable(
            f"none of {len(eligible)} hosts that may take the VM is alive",
            next_step="start a host agent; it registers by itself",
        )

    def free(host: Host) -> int:
        return host.memory_free_bytes - promised.get(host.name, 0)

    roomy = [host for host in living if free(host) >= memory_bytes and host.cpus >= cpus]
    if not roomy:
        most, most_cpus = max(map(free, living)), max(host.cpus for host in living)
        raise Overloaded(
            f"no host has {human(memory_bytes)} of memory free and {cpus} processors; the most free of "
            f"{len(living)} has {human(max(0, most))}, the largest {most_cpus} processors",
            next_step="stop or move VMs, or add a host",
        )

    def rank(host: Host) -> tuple[bool, bool, int, int, int, str]:
        reaches = arrays_of(inventory, host.name) >= frozenset(arrays)
        busy = host.load_percent >= BUSY_PERCENT
        count = len(inventory.ids_by_host[host.name])
        return not reaches, busy, -free(host), host.load_percent, count, host.name

    return min(roomy, key=rank)


def arrays_of(inventory: Inventory, host: str) -> frozenset[str]:
    """Return the arrays that the VMs of a host have disks on."""
    found: set[str] = set()
    for vm_id in inventory.ids_by_host[host]:
        for claim in inventory.claims[vm_id]:
            if claim.vm.host == host:
                found |= claim.vm.config.arrays()
    return frozenset(found)
