"""What is asked of many backups at once: answered by indexes of the server's database, no document is read.

Invariants:
  I1 a backup that is being deleted counts nowhere.
Callers: any thread. Format: docs/formats/server-db-v3.md
"""

from __future__ import annotations

from typing import NamedTuple

from backup_server.policies.retention import Candidate
from backup_server.server_db import ServerDb


class Sums(NamedTuple):
    """What the backups of one VM, or on one target, amount to. Bytes."""

    name: str
    backup_count: int
    bytes_protected: int
    bytes_sent: int
    bytes_stored: int


class BackupIndex:
    """Over one database."""

    def __init__(self, db: ServerDb) -> None:
        self._db = db

    def made_by(self, policy: str, *, now_ns: int) -> list[Candidate]:
        """Those that the policy's runs made, by VM (name, then id), newest first."""
        with self._db.read() as db:
            rows = db.execute(
                "SELECT backup_id, vm_id, vm_name, snapshot_at_ns, iif(lock_until_ns > ?2, 'locked', '')"
                " FROM backups WHERE policy = ?1 AND NOT deleting"
                " ORDER BY vm_name, vm_id, snapshot_at_ns DESC, backup_id",
                (policy, now_ns),
            ).fetchall()
        return [Candidate(one, vm_id, vm, at_ns, held=held) for one, vm_id, vm, at_ns, held in rows]

    def to_lock(self, policy: str, *, seconds: int, now_ns: int) -> list[tuple[str, int]]:
        """Backups of the policy that are not locked for so long after their instant, and until when that
        is; only where it lies ahead."""
        with self._db.read() as db:
            rows: list[tuple[str, int]] = db.execute(
                "SELECT backup_id, snapshot_at_ns + ?2 AS until FROM backups"
                " WHERE policy = ?1 AND NOT deleting AND lock_until_ns < until AND until > ?3",
                (policy, seconds * 10**9, now_ns),
            ).fetchall()
        return rows

    def newest(self) -> dict[tuple[str, str], int]:
        """Instant of the newest backup by (VM id, policy)."""
        with self._db.read() as db:
            rows = db.execute(
                "SELECT vm_id, policy, max(snapshot_at_ns) FROM backups INDEXED BY backups_by_policy"
                " WHERE NOT deleting GROUP BY policy, vm_name, vm_id"
            ).fetchall()
        newest: dict[tuple[str, str], int] = {}
        for vm_id, policy, at_ns in rows:  # a VM that was renamed comes twice
            newest[vm_id, policy] = max(newest.get((vm_id, policy), 0), at_ns)
        return newest

    def was_read_whole(self, vm_id: str, *, target: str, since_ns: int) -> bool:
        """Some backup of the VM on that target, of then or later, is no incremental."""
        with self._db.read() as db:
            row = db.execute(
                "SELECT 1 FROM backups WHERE vm_id = ? AND snapshot_at_ns >= ? AND target = ?"
                " AND NOT incremental AND NOT deleting LIMIT 1",
                (vm_id, since_ns, target),
            ).fetchone()
        return row is not None

    def space(self, by: str) -> list[Sums]:
        """By ``vm_name`` or by ``target``; largest first."""
        assert by in {"vm_name", "target"}, by
        with self._db.read() as db:
            rows = db.execute(
                f"SELECT {by}, count(*), sum(bytes_protected), sum(bytes_sent), sum(bytes_stored)"  # noqa: S608
                f" FROM backups INDEXED BY backups_by_space WHERE NOT deleting GROUP BY {by}"
                f" ORDER BY 5 DESC, {by}"
            ).fetchall()
        return list(map(Sums._make, rows))

    def on_target(self, target: str) -> set[str]:
        """Ids of what is known to be there."""
        with self._db.read() as db:
            rows = db.execute(
                "SELECT backup_id FROM backups INDEXED BY backups_by_space WHERE target = ? AND NOT deleting",
                (target,),
            ).fetchall()
        return {row[0] for row in rows}
