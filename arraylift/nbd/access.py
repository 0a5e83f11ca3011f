"""Which role may use disks by NBD: the one table (law 12).

Owns: ``ROLES_WRITING`` and ``ROLES_READING``. Which disk is for whom is the daemon's matter.
Invariants:
  Y1 a role without an entry gets nothing, not even the names of exports.
Callers: daemons' Exports, any thread.
"""

from __future__ import annotations

from arraylift.errors import NotPermitted
from arraylift.rpc.identity import Peer

Caller = Peer | None
"""Who is at the other end, as its certificate says; None where the listener asks for none."""

ROLES_WRITING = frozenset({"host", "operator"})
"""Hosts attach disks to VMs."""

ROLES_READING = frozenset({"array", "target"})
"""They copy disks from elsewhere; they never have business writing here."""


def may_write(caller: Caller) -> bool:
    """Whether this caller may write; raises NotPermitted where it may not even read (Y1)."""
    if caller is None or caller.role in ROLES_WRITING:
        return True
    if caller.role in ROLES_READING:
        return False
    raise NotPermitted(
        f"{caller} may not use disks by NBD", next_step="use a host's or operator's certificate"
    )
