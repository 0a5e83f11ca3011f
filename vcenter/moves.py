"""Migrations that have not ended: kept durably, and asked about by whoever wants something of a VM.

Invariants:
  V1 store, then show: a phase is durable before a host is asked anything in it.
  V2 a VM has at most one migration in which it may move, and besides that only ones that are left over.
  V3 a VM that moves is "unavailable, retry" to everybody else.
Limits: MIGRATIONS_MAX that may move, LEFT_MAX that are left over; then none is begun.
Failpoints: ``move.expect``, ``.hand-over``, ``.accept``, ``.finish``, ``.undo`` when that phase is durable;
``move.end`` before the end is.
Callers: any thread.
"""

from __future__ import annotations

import threading

from arraylift.errors import Conflict, Overloaded, PeerUnavailable
from arraylift.failpoints import FAILPOINTS
from arraylift.ids import MigrationId, VmId
from vcenter.inventory_store import InventoryStore
from vcenter.migration import Migration

MIGRATIONS_MAX = 8
LEFT_MAX = 256


class Moves:
    """One center's."""

    def __init__(self, store: InventoryStore) -> None:
        """Load them. Raises Corruption."""
        self._store = store
        self._lock = threading.Lock()
        self._moves: dict[MigrationId, Migration] = {one.migration_id: one for one in store.migrations()}
        self._waits: dict[MigrationId, str] = {}

    # -- looks ----------------------------------------------------------------------------------

    def all(self) -> list[tuple[Migration, str]]:
        """Every one, and what it waits for; the oldest first."""
        with self._lock:
            found = [(one, self._waits.get(one.migration_id, "")) for one in self._moves.values()]
        return sorted(found, key=lambda pair: (pair[0].began_at_ns, pair[0].migration_id))

    def of_vm(self, vm_id: VmId) -> Migration | None:
        """The one in which a VM may move now (V2)."""
        with self._lock:
            return self._of_vm(vm_id)

    def refuse_moving(self, vm_id: VmId) -> None:
        """Raises PeerUnavailable while a VM moves (V3)."""
        with self._lock:
            move = self._of_vm(vm_id)
            waits_for = self._waits.get(move.migration_id, "") if move else ""
        if move is not None and move.is_moving:
            raise PeerUnavailable(
                f"{move.subject} is being moved from host {move.source} to {move.destination}, phase "
                f"{move.phase.value!r}" + (f"; it waits: {waits_for}" if waits_for else ""),
                subject=f"vm {vm_id}",
                next_step="see `arraylift vm migrations`" if waits_for else "retry in a few seconds",
            )

    def promised(self) -> dict[str, int]:
        """Bytes of memory by host, of VMs that may come there."""
        promised: dict[str, int] = {}
        with self._lock:
            for one in self._moves.values():
                if not one.is_left_over:
                    promised[one.destination] = promised.get(one.destination, 0) + one.memory_bytes
        return promised

    # -- changes --------------------------------------------------------------------------------

    def begin(self, migration: Migration) -> None:
        """Note a new one (V1, V2). Raises Conflict, Overloaded, OutOfSpace, StoreFailed."""
        with self._lock:
            others = list(self._moves.values())
            for other in others:
                same_place = migration.destination in (other.destination, other.source)
                if other.vm_id == migration.vm_id and (not other.is_left_over or same_place):
                    raise Conflict(
                        f"{other.subject} is in a migration from {other.source} to {other.destination} that "
                        f"has not ended, phase {other.phase.value!r}",
                        subject=f"vm {other.vm_id}",
                        next_step="see `arraylift vm migrations`, and repeat when it has ended",
                    )
            left = sum(one.is_left_over for one in others)
            if len(others) - left >= MIGRATIONS_MAX:
                raise Overloaded(f"{MIGRATIONS_MAX} VMs are being moved", next_step="repeat later")
            if left >= LEFT_MAX:
                raise Overloaded(
                    f"{LEFT_MAX} migrations wait for hosts that are away",
                    next_step="see `arraylift vm migrations`; bring those hosts back",
                )
            self._put(migration)

    def put(self, migration: Migration) -> Migration:
        """Note the next phase (V1). Raises OutOfSpace, StoreFailed."""
        with self._lock:
            assert migration.migration_id in self._moves, "one that has ended does not go on"
            self._put(migration)
        return migration

    def drop(self, migration: Migration) -> None:
        """It has ended. Raises OutOfSpace, StoreFailed."""
        FAILPOINTS.hit("move.end")
        with self._lock:
            self._store.forget_migration(migration.migration_id)
            self._moves.pop(migration.migration_id, None)
            self._waits.pop(migration.migration_id, None)

    def wait(self, migration: Migration, why: str) -> None:
        """Say what it waits for; "": nothing. Kept by this process only."""
        with self._lock:
            if why and migration.migration_id in self._moves:
                self._waits[migration.migration_id] = why
            else:
                self._waits.pop(migration.migration_id, None)

    def _put(self, migration: Migration) -> None:
        self._store.note_migration(migration)
        FAILPOINTS.hit(f"move.{migration.phase.value.replace(' ', '-')}")
        self._moves[migration.migration_id] = migration

    def _of_vm(self, vm_id: VmId) -> Migration | None:
        for one in self._moves.values():
            if one.vm_id == vm_id and not one.is_left_over:
                return one
        return None
