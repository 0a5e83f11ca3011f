"""Migrations that have ended at this host: whatever comes of one later, late or twice, is refused.

Owns: ``<state>/ended-migrations.alm``; nobody else opens it.
Invariants:
  E1 an id is here, durably, before what its migration left at this host is undone, forgotten or given on.
Limits: ENDED_MAX ids, the oldest go first. A message that is late by more migrations of one host than that is
no longer known for what it is; each is from a connection that ended long before.
Callers: use cases, any thread.
Failpoints: those of arraylift.durable under the label ``ended-migrations``.
Format: docs/formats/vm-record-v1.md
"""

from __future__ import annotations

import threading

from arraylift import envelope
from arraylift.durable import Files
from arraylift.errors import Corruption, InvalidRequest
from arraylift.ids import MigrationId, check_id

MAGIC = b"ALMIGEND"
FILE_NAME = "ended-migrations.alm"
ENDED_MAX = 1024


class EndedMigrations:
    """Ids in the order in which their migrations ended."""

    def __init__(self, files: Files, state_path: str) -> None:
        """Read them. Raises Corruption, WrongState (a newer format)."""
        self._files, self._path = files, f"{state_path}/{FILE_NAME}"
        self._lock = threading.Lock()
        self._ids: dict[MigrationId, None] = {}
        if files.exists(self._path):
            self._ids = dict.fromkeys(decode(files.read(self._path), what=self._path))

    def __contains__(self, migration_id: MigrationId) -> bool:
        with self._lock:
            return migration_id in self._ids

    def add(self, *migration_ids: MigrationId | None) -> None:
        """Note that they have ended; durable on return (E1). Raises OutOfSpace."""
        with self._lock:
            new = [one for one in migration_ids if one is not None and one not in self._ids]
            if new:
                ids = [*self._ids, *new][-ENDED_MAX:]
                self._files.publish(self._path, [encode(ids)], label="ended-migrations")
                self._ids = dict.fromkeys(ids)


def encode(migration_ids: list[MigrationId]) -> bytes:
    """Return the whole file."""
    return envelope.encode(MAGIC, envelope.canonical_json({"ended": migration_ids}))


def decode(data: bytes, *, what: str) -> list[MigrationId]:
    """Raises Corruption, WrongState (a newer format)."""
    value = envelope.decode_json(MAGIC, data, what=what, keys=frozenset({"ended"}))
    try:
        return [MigrationId(check_id(one, "migration id")) for one in value["ended"]]
    except (TypeError, InvalidRequest) as error:
        raise Corruption(f"{what} makes no sense: {error}", subject=what) from error
